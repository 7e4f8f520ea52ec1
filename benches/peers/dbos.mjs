// DBOS Transact in its usual way: workflows called in its own process, each step and the end
// stored in its system database before they count. What was seen is printed as one line of JSON.
//
//   node dbos.mjs URL '{"steps": 3, "clients": 16, "pool": 20, "warm": 1, "seconds": 3}'

import { performance } from "node:perf_hooks";
import { DBOS } from "@dbos-inc/dbos-sdk";
import pg from "pg";

const [url, text] = process.argv.slice(2);
const wanted = JSON.parse(text);
// It insists on a name of a host, which the parameter then overrides.
const named = url.replace("postgres:///", "postgres://postgres@localhost/");
process.noDeprecation = true;

async function nothing() {}

const workflow = DBOS.registerWorkflow(
  async () => {
    for (let n = 0; n < wanted.steps; n++) await DBOS.runStep(nothing, { name: `step ${n}` });
  },
  { name: "measured" },
);

DBOS.setConfig({
  name: "measured",
  systemDatabaseUrl: named,
  systemDatabasePoolSize: wanted.pool,
  logLevel: "error",
});
await DBOS.launch();
const conn = new pg.Client({ connectionString: url });
await conn.connect();
await carry(wanted.warm);
const before = await wal();
const begun = performance.now();
const done = await carry(wanted.seconds);
const took = (performance.now() - begun) / 1e3;
const bytes = (await wal()) - before;
await conn.end();
await DBOS.shutdown();
console.log(JSON.stringify({ per_second: done / took, wal: bytes / done }));
process.exit(0);

/** Clients that have a workflow carried through, one after another. */
async function carry(seconds) {
  const until = performance.now() + seconds * 1e3;
  let done = 0;
  const client = async () => {
    for (; performance.now() < until; done++) await workflow();
  };
  await Promise.all(Array.from({ length: wanted.clients }, client));
  return done;
}

/** The position in the write-ahead log, in bytes. */
async function wal() {
  return (await conn.query("select (pg_current_wal_insert_lsn() - '0/0')::float8 as at")).rows[0].at;
}
