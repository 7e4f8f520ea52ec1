// A browser that came by a preview link, before there was a program: it sees the page of a dev server
// as soon as that listens, and a change of a source file reaches the page without a reload.
//
// stdin: {"link", "exec", "key", "start", "change", "after"}: scripts for the session, and the text that the change brings.
// stdout: what was seen, as one JSON value.

import { accessSync, constants, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { delimiter, join } from "node:path";

// The library is where install.sh put it, not beside this script.
const require = createRequire(`${process.env.RDEV_TEST_CLIENTS}/`);
const { chromium } = require("playwright-core");

const { link, exec, key, start, change, after } = JSON.parse(readFileSync(0, "utf8"));

const executablePath = () => {
  const names = ["chromium", "chromium-browser", "google-chrome"];
  const places = process.env.PATH.split(delimiter).flatMap((dir) => names.map((name) => join(dir, name)));
  const found = places.find((path) => {
    try {
      accessSync(path, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
  if (!found) throw new Error("chromium is not installed: run ./dev test");
  return found;
};

const run = async (body) => {
  const headers = { authorization: `Bearer ${key}` };
  const answer = await fetch(exec, { method: "POST", headers, body: JSON.stringify(body) });
  if (!answer.ok) throw new Error(`${exec}: ${answer.status} ${await answer.text()}`);
};

// As root Chromium has no sandbox, and /dev/shm may be small.
const browser = await chromium.launch({
  executablePath: executablePath(),
  args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
});
try {
  const page = await browser.newPage();
  page.setDefaultTimeout(60_000);
  const sockets = [];
  page.on("websocket", (socket) => sockets.push(socket.url()));
  const isConnected = (message) => message.text().includes("[vite] connected.");
  const connected = page.waitForEvent("console", { predicate: isConnected });

  await page.goto(link, { waitUntil: "load" });
  const waiting = await page.title();
  await run({ script: start });
  await connected;
  const shown = page.locator("#app");
  await shown.filter({ hasText: /./ }).waitFor();
  const before = await shown.textContent();
  await page.evaluate(() => {
    window.kept = true;
  });

  // Again, where the watcher of files was not there yet.
  for (let tries = 0; tries < 20; tries += 1) {
    await run({ script: change, wait: "10s" });
    const seen = await shown.filter({ hasText: after }).waitFor({ timeout: 1000 }).then(() => true, () => false);
    if (seen) break;
  }
  const inside = await page.evaluate(() => ({ kept: window.kept === true, cookie: document.cookie }));
  const cookies = (await page.context().cookies()).map(({ name, httpOnly }) => ({ name, httpOnly }));
  const seen = { waiting, url: page.url(), before, after: await shown.textContent(), ...inside, cookies, sockets };
  console.log(JSON.stringify(seen));
} finally {
  await browser.close();
}
