/** Maintenance by several processes: one at a time, taken over where one ends, never in a writer's way; and months over years. */
import { randomUUID } from 'node:crypto';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { type Clock, systemClock } from '../../src/clock.ts';
import { type Database, openDatabase } from '../../src/db/database.ts';
import { databaseNow } from '../../src/db/database-time.ts';
import { registerTasks, takeTask } from '../../src/db/maintenance.ts';
import { workOn } from '../../src/db/maintenance-run.ts';
import { databaseTasks, type MaintenanceTask, monthTask, rowTask } from '../../src/db/maintenance-tasks.ts';
import {
  loadRetention,
  MONTHLY,
  type Monthly,
  type RowRule,
  rowRules,
} from '../../src/db/retention-rules.ts';
import { type MaintenanceDeps, maintenance, tidyOnce } from '../../src/services/maintenance.ts';
import { rollUp } from '../../src/services/usage-rollup.ts';
import { silentLogger } from '../../src/telemetry/logger.ts';
import { createMetrics } from '../../src/telemetry/metrics.ts';
import {
  onServer,
  setDatabaseClock,
  shiftDatabaseClock,
  type TestDatabase,
  testDatabase,
} from '../support/database.ts';
import { makePlatform, makeTask, type Platform } from '../support/platform.ts';

const LIMITS = { lockMs: 250, statementMs: 30_000, answerMs: 40_000 };
const logs = rowRules.find((rule) => rule.name === 'agent_logs') as RowRule;

let db: TestDatabase;
let at: Platform;

beforeEach(async () => {
  db = await testDatabase();
  at = await makePlatform(db);
});
afterEach(() => db?.dispose());

function deps(tasks: readonly MaintenanceTask[], over: Database = db, workerId = 'one'): MaintenanceDeps {
  return { db: over, clock: systemClock, log: silentLogger(), metrics: createMetrics(), workerId, tasks };
}

const oldLogs = (rows: number) =>
  db.query(
    `insert into public.agent_logs (workspace_id, agent_id, timestamp)
     select $1, $2, now() - interval '400 days' + n * interval '1 second' from generate_series(1, $3) n`,
    [at.workspaceId, at.agentId, rows],
  );
const logRows = async (): Promise<number> =>
  (await db.query<{ n: number }>('select count(*) as n from public.agent_logs'))[0]?.n ?? -1;
const passes = (name: string) =>
  db.query<{ outcome: string; rows: number; worker_id: string; error: string | null }>(
    'select outcome, rows, worker_id, error from agentd.maintenance_log where name = $1 order by id',
    [name],
  );
const makeDue = (name: string) =>
  db.query(
    `update agentd.maintenance_tasks set due_at = agentd.now() - interval '1 second' where name = $1`,
    [name],
  );

test('a pass that its process left is gone on with by another, and counted once', async () => {
  await oldLogs(1000);
  const task = rowTask(logs, 180);
  await registerTasks(db, [task.name]);
  const first = await takeTask(db, { names: [task.name], worker: 'first', leaseMs: 60_000, isForced: true });
  if (first === null) throw new Error('not taken');
  // two batches, then the process is gone without a word
  const context = {
    db,
    task: first,
    leaseMs: 60_000,
    elapsed: () => systemClock.elapsed(),
    now: () => systemClock.now(),
    signal: new AbortController().signal,
  };
  const one = await task.batch(context, null);
  const two = await task.batch(context, one.place);
  expect(one.rows + two.rows).toBeGreaterThan(0);
  expect(one.rows + two.rows).toBeLessThan(1000);
  await makeDue(task.name);
  // its lease holds
  expect(await tidyOnce(deps([rowTask(logs, 180)], db, 'second'))).toBe(false);
  await db.query(`update agentd.maintenance_tasks set lease_expires_at = agentd.now() - interval '1 second'`);
  expect(await tidyOnce(deps([rowTask(logs, 180)], db, 'second'))).toBe(true);
  expect(await logRows()).toBe(0);
  expect(await passes(task.name)).toEqual([
    { outcome: 'completed', rows: 1000, worker_id: 'second', error: null },
  ]);
  // the first wakes up, and what it does is undone
  await oldLogs(10);
  await expect(task.batch(context, null)).rejects.toThrow(/another process/);
  expect(await logRows()).toBe(10);
});

test.runIf(onServer)('of several processes one works on a task, and all tasks are worked on', async () => {
  await oldLogs(3000);
  const nodes = await Promise.all(
    ['a', 'b', 'c'].map(async (name) => {
      const own = openDatabase({ url: db.url, embedded: false, max: 2, limits: LIMITS });
      return { own, deps: deps(databaseTasks(loadRetention()), own, name) };
    }),
  );
  const names = databaseTasks(loadRetention()).map((task) => task.name);
  await registerTasks(db, names);
  await db.query(`update agentd.maintenance_tasks set due_at = agentd.now() - interval '1 second'`);
  await Promise.all(
    nodes.map(async (node) => {
      while (await tidyOnce(node.deps));
    }),
  );
  for (const { own } of nodes) await own.close();
  const all = await db.query<{ name: string; n: number; outcome: string }>(
    'select name, count(*) as n, min(outcome) as outcome from agentd.maintenance_log group by name order by name',
  );
  expect(all).toEqual(names.toSorted().map((name) => ({ name, n: 1, outcome: 'completed' })));
  expect((await passes('agent_logs'))[0]?.rows).toBe(3000);
  expect(await logRows()).toBe(0);
});

test('a task that fails is written down, tried again later, and stops no other', async () => {
  await oldLogs(10);
  const broken = rowTask({ ...logs, name: 'broken', table: 'public.no_such_table' }, 10);
  const tasks = [broken, rowTask(logs, 180)];
  await registerTasks(
    db,
    tasks.map((task) => task.name),
  );
  await makeDue('broken');
  await makeDue('agent_logs');
  const all = deps(tasks);
  while (await tidyOnce(all));
  expect(await logRows()).toBe(0);
  expect(await passes('broken')).toMatchObject([
    { outcome: 'failed', error: expect.stringMatching(/^42P01: /) },
  ]);
  const [state] = await db.query(
    `select failures, due_at > agentd.now() + interval '50 seconds' as later, last_error is not null as said from agentd.maintenance_tasks where name = 'broken'`,
  );
  expect(state).toEqual({ failures: 1, later: true, said: true });
});

test('while the clocks of the database and of the process are days apart nothing is removed', async () => {
  await oldLogs(10);
  await registerTasks(db, ['agent_logs']);
  await makeDue('agent_logs');
  await shiftDatabaseClock(db, 10 * 365 * 86_400_000);
  const service = maintenance(deps([rowTask(logs, 180)]));
  service.start();
  await service.stop();
  expect(await logRows()).toBe(10);
  await shiftDatabaseClock(db, 0);
  await makeDue('agent_logs');
  const sure = maintenance(deps([rowTask(logs, 180)]));
  sure.start();
  await sure.stop();
  // stopping lets the batch under way end
  while (await tidyOnce(deps([rowTask(logs, 180)])));
  expect(await logRows()).toBe(0);
});

const months = async (table: Monthly): Promise<string[]> =>
  (
    await db.query<{ month: string }>(
      `select right(inhrelid::regclass::text, 7) as month from pg_inherits
        where inhparent = $1::text::regclass and right(inhrelid::regclass::text, 7) ~ '^[0-9]{4}_[0-9]{2}$' order by 1`,
      [MONTHLY[table]],
    )
  ).map(({ month }) => month);

/** Of a process whose clock was set with the database's. */
async function sameClock(): Promise<Clock> {
  const now = (await databaseNow(db)).getTime();
  return { ...systemClock, now: () => now };
}

async function pass(task: MaintenanceTask): Promise<void> {
  const taken = await takeTask(db, { names: [task.name], worker: 'w', leaseMs: 60_000, isForced: true });
  if (taken === null) throw new Error(`${task.name} is taken.`);
  const { error, left } = await workOn({ db, clock: await sameClock(), leaseMs: 60_000 }, task, taken, {
    sliceMs: 60_000,
    signal: new AbortController().signal,
  });
  expect(error).toBeNull();
  expect(left?.how).toBe('completed');
}

const record = async (): Promise<void> => {
  const now = (await databaseNow(db)).toISOString();
  await db.query(
    `insert into public.usage_events (workspace_id, metric, recorded_at, occurred_at) values ($1, 'message', $2, $2)`,
    [at.workspaceId, now],
  );
  await db.query(
    `insert into agentd.job_runs (queue, job_id, attempt, worker_id, outcome, started_at, duration_ms) values ('q', $1, 1, 'w', 'completed', $2, 1)`,
    [randomUUID(), now],
  );
};

test('twenty-six months, five of them without a worker: the configured range is kept, every insert has its place, and no event goes before it is summed up', async () => {
  const retention = loadRetention();
  const tasks = {
    usage_events: monthTask('usage_events', {
      ...retention,
      partitions: { ...retention.partitions, usage_events: { monthsAhead: 12, keepMonths: 6 } },
    }),
    job_runs: monthTask('job_runs', retention),
  };
  await registerTasks(
    db,
    Object.values(tasks).map((task) => task.name),
  );
  const usage = { db, clock: systemClock, log: silentLogger(), metrics: createMetrics() };
  const begin = new Date();
  const monthOf = (n: number): Date =>
    new Date(Date.UTC(begin.getUTCFullYear(), begin.getUTCMonth() + n, 15, 12));
  const name = (n: number): string => monthOf(n).toISOString().slice(0, 7).replace('-', '_');
  const span = (from: number, to: number): string[] =>
    Array.from({ length: to - from + 1 }, (_, i) => name(from + i));
  let recorded = 0;
  for (let month = 0; month <= 26; month++) {
    await setDatabaseClock(db, monthOf(month));
    await record();
    recorded++;
    // from the ninth to the thirteenth month nobody works
    if (month >= 9 && month <= 13) continue;
    const isSummedUp = month !== 20;
    if (isSummedUp) await rollUp(usage);
    for (const task of Object.values(tasks)) await pass(task);
    expect(await months('job_runs')).toEqual(span(Math.max(0, month - 3), month + 12));
    // without a roll-up the month that is due waits for it
    if (isSummedUp) expect(await months('usage_events')).toEqual(span(Math.max(0, month - 6), month + 12));
  }
  // what was recorded is there, or was summed up and had its time
  const [left] = await db.query<{ n: number }>('select count(*) as n from public.usage_events');
  expect(left?.n).toBe(7);
  const [summed] = await db.query<{ n: number }>(
    'select sum(messages)::integer as n from public.workspace_usage where workspace_id = $1',
    [at.workspaceId],
  );
  expect(summed?.n).toBe(recorded);
  const [drift] = await db.query<{ n: number }>('select count(*) as n from agentd.usage_drift(null)');
  expect(drift?.n).toBe(0);
  // rows from before the first month have a place as well
  await db.query(
    `insert into public.usage_events (workspace_id, metric, recorded_at) values ($1, 'message', '2001-01-01')`,
    [at.workspaceId],
  );
  await setDatabaseClock(db, null);
});

test('events that no roll-up has seen keep their month', async () => {
  await registerTasks(db, ['months_of_usage_events']);
  await record();
  await shiftDatabaseClock(db, 40 * 31 * 86_400_000);
  const task = monthTask('usage_events', loadRetention());
  const before = await months('usage_events');
  await pass(task);
  expect((await months('usage_events')).slice(0, before.length)).toEqual(before);
  expect(await db.query('select 1 from public.usage_events')).toHaveLength(1);
  expect((await passes(task.name))[0]).toMatchObject({ outcome: 'completed' });
  await rollUp({ db, clock: systemClock, log: silentLogger(), metrics: createMetrics() });
  await pass(task);
  expect(await db.query('select 1 from public.usage_events')).toHaveLength(0);
  await shiftDatabaseClock(db, 0);
});

test.runIf(onServer)(
  'a month that somebody writes to or reads keeps its place: writers wait for no change of it',
  async () => {
    await registerTasks(db, ['months_of_job_runs']);
    await record();
    await shiftDatabaseClock(db, 300 * 86_400_000);
    const client = await db.pool.connect();
    await client.query('begin');
    await client.query('select count(*) from agentd.job_runs');
    const waits: number[] = [];
    let isOver = false;
    const writer = (async () => {
      while (!isOver) {
        const from = performance.now();
        await db.query(
          `insert into agentd.job_runs (queue, job_id, attempt, worker_id, outcome, started_at, duration_ms) values ('q', $1, 1, 'w', 'completed', agentd.now(), 1)`,
          [randomUUID()],
        );
        waits.push(performance.now() - from);
      }
    })();
    const before = await months('job_runs');
    await pass(monthTask('job_runs', loadRetention()));
    isOver = true;
    await writer;
    expect((await months('job_runs')).slice(0, before.length)).toEqual(before);
    expect(waits.length).toBeGreaterThan(20);
    // each of the tries waits 50 ms for the table, and so long writers may queue behind it; the rest is a busy machine's
    expect(Math.max(...waits)).toBeLessThan(5_000);
    await client.query('commit');
    client.release();
    await pass(monthTask('job_runs', loadRetention()));
    expect((await months('job_runs')).length).toBeLessThan(before.length + 12);
    await shiftDatabaseClock(db, 0);
  },
);

test.runIf(onServer)(
  'while rows go, writers of the table and of what hangs on it wait for none of it',
  async () => {
    const taskId = await makeTask(db, at);
    await db.transaction(async (tx) => {
      await tx.query('set local session_replication_role = replica');
      await tx.query(
        `insert into public.task_runs (workspace_id, agent_id, steps, settings, status, finished_at)
         select $1, $2, '[]', '{}', 'completed', now() - interval '400 days' from generate_series(1, 1000)`,
        [at.workspaceId, at.agentId],
      );
    });
    await db.query(
      `insert into public.llm_calls (workspace_id, run_id, step_order, turn, idempotency_key)
     select workspace_id, id, 1, n, gen_random_uuid() from public.task_runs, generate_series(1, 5) n`,
    );
    const own = openDatabase({ url: db.url, embedded: false, max: 2, limits: LIMITS });
    // any lock that is waited for at all for longer than this fails the writer
    const writers = openDatabase({ url: db.url, embedded: false, max: 4, limits: { ...LIMITS, lockMs: 60 } });
    const task = rowTask(rowRules.find((rule) => rule.name === 'task_runs') as RowRule, 365);
    await registerTasks(db, [task.name]);
    let isOver = false;
    let written = 0;
    const write = async (): Promise<void> => {
      while (!isOver) {
        const [run] = await writers.query<{ id: string }>(
          'insert into public.task_runs (task_id) values ($1) returning id',
          [taskId],
        );
        await writers.query(
          `insert into public.llm_calls (workspace_id, run_id, step_order, turn, idempotency_key) values ($1, $2, 1, 1, $3)`,
          [at.workspaceId, run?.id, randomUUID()],
        );
        await writers.query(`update public.task_runs set turns = turns + 1 where id = $1`, [run?.id]);
        written++;
      }
    };
    const all = Promise.all([write(), write(), write()]);
    const taken = await takeTask(own, { names: [task.name], worker: 'w', leaseMs: 60_000, isForced: true });
    const { row, error } = await workOn(
      { db: own, clock: systemClock, leaseMs: 60_000 },
      task,
      taken as NonNullable<typeof taken>,
      { sliceMs: 120_000, signal: new AbortController().signal },
    );
    isOver = true;
    await all;
    expect(error).toBeNull();
    expect(row?.rows).toBe(1000);
    expect(written).toBeGreaterThan(10);
    const [left] = await db.query<{ n: number }>('select count(*) as n from public.task_runs');
    expect(left?.n).toBe(written);
    await own.close();
    await writers.close();
  },
);
