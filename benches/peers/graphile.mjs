// graphile-worker at its best, as somebody would set it up who read its page on performance:
// a local queue, completions in batches. One measurement a start; what was seen is printed
// as one line of JSON.
//
//   node graphile.mjs drain|enqueue|pickup URL '{"tasks": 100000, …}'

import { performance } from "node:perf_hooks";
import { setTimeout as sleep } from "node:timers/promises";
import { Logger, makeWorkerUtils, run } from "graphile-worker";
import pg from "pg";

const [what, url, text] = process.argv.slice(2);
const wanted = JSON.parse(text ?? "{}");
const logger = new Logger(() => (level, message) => {
  if (level === "error" || level === "warning") console.error(message);
});

const measurements = { drain, enqueue, pickup };
const pool = new pg.Pool({ connectionString: url, max: wanted.pool ?? 25 });
pool.on("error", (error) => console.error(error));
pool.on("connect", (client) => client.on("error", (error) => console.error(error)));
const seen = await measurements[what]();
await pool.end();
console.log(JSON.stringify(seen));

function preset() {
  const batches = { localQueue: { size: wanted.batch }, completeJobBatchDelay: 0, failJobBatchDelay: 0 };
  const fetched = wanted.batch > 0 ? batches : {};
  return { worker: { concurrentJobs: wanted.concurrency ?? 24, maxPoolSize: wanted.pool ?? 25, ...fetched } };
}

function start(taskList) {
  return run({ pgPool: pool, preset: preset(), taskList, noHandleSignals: true, parsedCronItems: [], logger });
}

/** Tasks that wait already; from the first that starts to the last that is written off. */
async function drain() {
  const utils = await makeWorkerUtils({ pgPool: pool, logger });
  await utils.migrate();
  const specs = "array(select json_populate_record(null::graphile_worker.job_spec, '{\"identifier\":\"noop\",\"payload\":{}}')";
  await pool.query(`select count(*) from graphile_worker.add_jobs(${specs} from generate_series(1, $1)))`, [wanted.tasks]);
  await pool.query("checkpoint");
  await pool.query("vacuum analyze graphile_worker._private_jobs");
  const before = await wal();
  let left = wanted.tasks;
  let begun;
  let runner;
  await new Promise((carriedOut, failed) => {
    const noop = () => {
      begun ??= performance.now();
      if (--left === 0) carriedOut();
    };
    start({ noop }).then((started) => (runner = started), failed);
  });
  while ((await pool.query("select from graphile_worker._private_jobs limit 1")).rowCount > 0) await sleep(1);
  const seconds = (performance.now() - begun) / 1e3;
  const bytes = (await wal()) - before;
  await runner.stop();
  await utils.release();
  return { per_second: wanted.tasks / seconds, wal: bytes / wanted.tasks };
}

/** The position in the write-ahead log, in bytes. */
async function wal() {
  return (await pool.query("select (pg_current_wal_insert_lsn() - '0/0')::float8 as at")).rows[0].at;
}

/** Callers that add a job each as soon as their last one is in. Nobody works on them. */
async function enqueue() {
  const utils = await makeWorkerUtils({ pgPool: pool, preset: preset(), logger });
  await utils.migrate();
  const caller = async (until) => {
    const times = [];
    while (performance.now() < until) {
      const asked = performance.now();
      await utils.addJob("chat", wanted.payload);
      times.push(performance.now() - asked);
    }
    return times;
  };
  const callers = (seconds) => {
    const until = performance.now() + seconds * 1e3;
    return Promise.all(Array.from({ length: wanted.callers }, () => caller(until)));
  };
  await callers(wanted.warm);
  const begun = performance.now();
  const times = (await callers(wanted.seconds)).flat();
  const took = (performance.now() - begun) / 1e3;
  await utils.release();
  return { per_second: times.length / took, ...percentiles(times) };
}

/** From the call that adds a job to the first line of its task, in the same process. */
async function pickup() {
  const added = [];
  const times = [];
  const runner = await start({
    stamp({ n }) {
      times.push(performance.now() - added[n]);
    },
  });
  await sleep(500);
  for (let n = 0; n < wanted.warm; n++) {
    added[n] = performance.now();
    await runner.addJob("stamp", { n });
  }
  await sleep(500);
  times.length = 0;
  const begun = performance.now();
  const adding = [];
  for (let n = 0; n < wanted.tasks; n++) {
    const due = begun + (n * 1e3) / wanted.rate;
    if (due > performance.now()) await sleep(due - performance.now());
    added[n] = performance.now();
    adding.push(runner.addJob("stamp", { n }));
  }
  await Promise.all(adding);
  while (times.length < wanted.tasks) await sleep(5);
  await runner.stop();
  return percentiles(times);
}

function percentiles(times) {
  times.sort((a, b) => a - b);
  const at = (share) => times[Math.round((times.length - 1) * share)];
  return { p50: at(0.5), p99: at(0.99) };
}
