// The Standard Webhooks library's word on a delivery.
//
// stdin: {"secret", "headers", "body"}; stdout: {"event"}, or {"refused"} and exit code 1.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

// The library is where install.sh put it, not beside this script.
const require = createRequire(`${process.env.RDEV_TEST_CLIENTS}/`);
const { Webhook, WebhookVerificationError } = require("standardwebhooks");

const { secret, headers, body } = JSON.parse(readFileSync(0, "utf8"));
// A secret without the prefix is its own key.
const webhook = secret.startsWith("whsec_") ? new Webhook(secret) : new Webhook(secret, { format: "raw" });
try {
  console.log(JSON.stringify({ event: webhook.verify(body, headers) }));
} catch (error) {
  if (!(error instanceof WebhookVerificationError)) throw error;
  console.log(JSON.stringify({ refused: error.message }));
  process.exitCode = 1;
}
