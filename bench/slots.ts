/**
 * Slots: how much of 100 slots is used by 3,000 jobs of 5–105 ms, one in twenty of them 1 s, settlement included?
 *
 * The ideal is the makespan of list scheduling: the same durations in the same order, each given to the slot that is free first.
 * Statements are counted where they leave for the server, BEGIN and COMMIT among them.
 */
import { createRequire } from 'node:module';
import { setTimeout as wait } from 'node:timers/promises';
import pg from 'pg';
import { PgBoss } from 'pg-boss';
import { z } from 'zod';
import { systemClock } from '../src/clock.ts';
import { type QueueConfig, readConfigFile } from '../src/config.ts';
import { bossOptions } from '../src/db/boss.ts';
import { openDatabase } from '../src/db/database.ts';
import { Consumer } from '../src/queue/consumer.ts';
import { defineJob } from '../src/queue/job.ts';
import { silentLogger } from '../src/telemetry/logger.ts';
import { createMetrics } from '../src/telemetry/metrics.ts';
import { withDatabase } from './support/database.ts';
import type { Result } from './support/result.ts';
import { median, seeded } from './support/stats.ts';

const JOBS = 3000;
const SLOTS = 100;
const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 3);
const QUEUE = 'bench';

export function durations(): number[] {
  const random = seeded(2);
  return Array.from({ length: JOBS }, () => (random() < 0.05 ? 1000 : 5 + Math.floor(random() * 101)));
}

/** Milliseconds in which list scheduling finishes the jobs. */
export function makespan(jobs: readonly number[], slots: number): number {
  const free = new Array<number>(slots).fill(0);
  for (const job of jobs) {
    let first = 0;
    for (let i = 1; i < slots; i++) if ((free[i] as number) < (free[first] as number)) first = i;
    free[first] = (free[first] as number) + job;
  }
  return Math.max(...free);
}

type Outcome = { readonly share: number; readonly statements: number };

export async function bench(): Promise<Result> {
  const jobs = durations();
  const ideal = makespan(jobs, SLOTS);
  const ours: Outcome[] = [];
  const theirs: Outcome[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    theirs.push(await pgBossWork(jobs, ideal));
    ours.push(await agentd(jobs, ideal));
  }
  const share = median(ours.map((o) => o.share));
  const statements = median(ours.map((o) => o.statements));
  const peer = `pg-boss work(), 50 × batch 2, burst: ${median(theirs.map((o) => o.share)).toFixed(3)}`;
  return {
    bench: 'slots',
    lines: [
      {
        measured: `share of the ideal (${(ideal / 1000).toFixed(2)} s)`,
        agentd: share.toFixed(3),
        beside: peer,
        goal: '≥ 0.97',
        met: share >= 0.97,
        note: `${JOBS.toLocaleString('en-US')} jobs, ${SLOTS} slots; median of ${ROUNDS}`,
      },
      {
        measured: 'statements a job',
        agentd: statements.toFixed(2),
        beside: `pg-boss work(): ${median(theirs.map((o) => o.statements)).toFixed(2)}`,
        goal: '≤ 0.3',
        met: statements <= 0.3,
        note: 'claims, settlements with their rows of job_runs, sleeping and waking; begin and commit counted',
      },
    ],
  };
}

// the product's own copy of the driver; the peers have theirs
const productPg = createRequire(new URL('../src/db/database.ts', import.meta.url))('pg') as typeof pg;

/** Counts what is sent by every client of either driver in this process. */
async function countStatements(work: () => Promise<void>): Promise<number> {
  let count = 0;
  const undo = [...new Set([pg.Client.prototype, productPg.Client.prototype])].map((prototype) => {
    const countable = prototype as unknown as { query: (...args: unknown[]) => unknown };
    const original = countable.query;
    countable.query = function (this: unknown, ...args: unknown[]) {
      count++;
      return original.apply(this, args);
    };
    return () => {
      countable.query = original;
    };
  });
  try {
    await work();
  } finally {
    for (const put of undo) put();
  }
  return count;
}

async function agentd(jobs: readonly number[], ideal: number): Promise<Outcome> {
  return withDatabase('slots', { migrated: true }, async ({ url, pool }) => {
    const db = openDatabase({ url, embedded: false, max: 12 });
    const boss = new PgBoss({ ...bossOptions(db), supervise: false });
    boss.on('error', () => {});
    await boss.start();
    const all = readConfigFile('queues.json', z.record(z.string(), z.custom<QueueConfig>()));
    const config = { ...(all['task-run'] as QueueConfig), concurrency: SLOTS };
    await boss.createQueue(QUEUE, { policy: 'exclusive', retryLimit: config.retryLimit });
    await boss.insert(
      QUEUE,
      jobs.map((ms, i) => ({ data: { ms, i }, singletonKey: String(i) })),
    );
    await pool.query('vacuum analyze');
    let done = 0;
    const finished = Promise.withResolvers<void>();
    const consumer = new Consumer({
      job: defineJob({
        queue: QUEUE,
        parse: (data) => data as { ms: number; i: number },
        key: ({ i }) => String(i),
        async handler({ ms }) {
          await wait(ms);
          if (++done === jobs.length) finished.resolve();
          return undefined;
        },
      }),
      config,
      db,
      boss,
      clock: systemClock,
      log: silentLogger(),
      metrics: createMetrics({ builtInTools: [] }),
      workerId: 'bench',
    });
    const started = performance.now();
    const statements = await countStatements(async () => {
      consumer.start();
      await finished.promise;
      await consumer.drain(0);
    });
    const took = performance.now() - started;
    await boss.stop({ graceful: false });
    await db.close();
    const { rows } = await pool.query<{ settled: number; logged: number }>(
      `select (select count(*)::integer from pgboss.job where name = $1 and state = 'completed') as settled,
              (select count(*)::integer from agentd.job_runs where outcome = 'completed') as logged`,
      [QUEUE],
    );
    if (rows[0]?.settled !== jobs.length || rows[0].logged !== jobs.length)
      throw new Error(`Not every job was settled: ${JSON.stringify(rows[0])}`);
    return { share: ideal / took, statements: statements / jobs.length };
  });
}

async function pgBossWork(jobs: readonly number[], ideal: number): Promise<Outcome> {
  return withDatabase('slots_peer', {}, async ({ url, pool }) => {
    const boss = new PgBoss({ connectionString: url, max: 12, schedule: false, supervise: false });
    boss.on('error', () => {});
    await boss.start();
    await boss.createQueue(QUEUE);
    await boss.insert(
      QUEUE,
      jobs.map((ms) => ({ data: { ms } })),
    );
    await pool.query('vacuum analyze');
    let done = 0;
    const finished = Promise.withResolvers<void>();
    const started = performance.now();
    const statements = await countStatements(async () => {
      await boss.work<{ ms: number }>(
        QUEUE,
        { localConcurrency: 50, batchSize: 2, burstWhenBatchFull: true, pollingIntervalSeconds: 0.5 },
        async (batch) => {
          await Promise.all(batch.map((job) => wait(job.data.ms)));
          done += batch.length;
          if (done === jobs.length) finished.resolve();
        },
      );
      await finished.promise;
      await boss.stop({ graceful: true, timeout: 10_000 });
    });
    const took = performance.now() - started;
    return { share: ideal / took, statements: statements / jobs.length };
  });
}
