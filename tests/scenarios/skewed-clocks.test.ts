/** Nodes whose date is wrong by a minute and a half: the database's clock decides everything. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type Clock, systemClock } from '../../src/clock.ts';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import {
  startDaemonProcess,
  type TestDaemon,
  type TestDaemonOptions,
  testDaemon,
} from '../support/daemon.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { networkTo } from '../support/network.ts';
import { makePlatform, makeTask, type Platform, startRun, startTask } from '../support/platform.ts';
import { findRun, toolCalls, until, waitForRun } from '../support/runs.ts';

const SKEW_MS = 90_000;
/** Late, on a busy machine, but not by a skew. */
const LATE_MS = 30_000;
/** Long enough that none lapses on a busy machine. */
const LEASE_SECONDS = 9;

let db: TestDatabase;
let model: ModelServer;
let platform: Platform;
/** The times that the tables had at the beginning. */
let before: Set<string>;

beforeEach(async () => {
  db = await testDatabase();
  model = await startModelServer();
  platform = await makePlatform(db);
  before = await allTimes();
});

afterEach(async () => {
  expect(model.rejected).toEqual([]);
  await model.close();
  await db.dispose();
});

function skewed(ms: number): Clock {
  return { ...systemClock, now: () => systemClock.now() + ms };
}

/** A node that is ahead and one that is behind, each with room for `slots` runs. */
async function twoNodes(slots: number, options: TestDaemonOptions = {}) {
  const env = { AGENTD_QUEUES: `task-run=${slots}`, ...options.env };
  const nodes: TestDaemon[] = [];
  for (const ms of [SKEW_MS, -SKEW_MS]) {
    nodes.push(
      await testDaemon(db, model, { leaseSeconds: LEASE_SECONDS, ...options, env, clock: skewed(ms) }),
    );
  }
  return {
    nodes,
    [Symbol.asyncDispose]: async () => {
      await Promise.all(nodes.map((node) => node.stop()));
    },
  };
}

async function databaseNow(): Promise<number> {
  const [row] = await db.query<{ now: Date }>('select agentd.now() as now');
  return row?.now.getTime() ?? Number.NaN;
}

/** Every time in every table, as 'table.column time'. */
async function allTimes(): Promise<Set<string>> {
  const columns = await db.query<{ name: string; query: string }>(
    `select format('%I.%I.%I', c.table_schema, c.table_name, c.column_name) as name,
            format('select %L || t.%I::text as at from %I.%I t where t.%I is not null',
                   format('%I.%I.%I ', c.table_schema, c.table_name, c.column_name),
                   c.column_name, c.table_schema, c.table_name, c.column_name) as query
       from information_schema.columns c
       join information_schema.tables t using (table_schema, table_name)
      where c.table_schema in ('public', 'agentd', 'pgboss') and t.table_type = 'BASE TABLE'
        and c.data_type = 'timestamp with time zone'`,
  );
  expect(columns.length).toBeGreaterThan(50);
  const rows = await db.query<{ at: string }>(columns.map(({ query }) => query).join(' union '));
  return new Set(rows.map((row) => row.at));
}

/** Times that were written since the beginning of the test and are off by about as much as the nodes' dates. */
async function skewedTimes(): Promise<string[]> {
  const now = await databaseNow();
  return [...(await allTimes())].filter((one) => {
    const [, time = ''] = /^\S+ (.+)$/.exec(one) ?? [];
    const off = Math.abs(Date.parse(time) - now);
    return !before.has(one) && off > 60_000 && off < 120_000;
  });
}

async function workersOf(ids: readonly string[]): Promise<Set<string | null>> {
  return new Set(await Promise.all(ids.map(async (id) => (await findRun(db, id))?.worker_id ?? null)));
}

describe('a node 90 s ahead and one 90 s behind', () => {
  test('start every occurrence once and on time, and write no time of their own', async () => {
    await using _both = await twoNodes(4);
    const taskId = await makeTask(db, platform, { cron_expression: '* * * * * *', overlap_policy: 'allow' });
    type Row = { id: string; scheduled_for: Date; created_at: Date; status: string };
    const rows = await until('four occurrences have ended', async () => {
      const found = await db.query<Row>(
        'select id, scheduled_for, created_at, status from public.task_runs where task_id = $1 order by scheduled_for',
        [taskId],
      );
      return found.filter((row) => row.status === 'completed').length >= 4 ? found : null;
    });
    await db.query(`update public.agent_tasks set status = 'paused'`);
    const seconds = rows.map((row) => row.scheduled_for.getTime() / 1000);
    expect(seconds).toEqual(seconds.map((_, i) => (seconds[0] ?? 0) + i));
    for (const row of rows) {
      const late = row.created_at.getTime() - row.scheduled_for.getTime();
      expect(late).toBeGreaterThanOrEqual(0);
      expect(late).toBeLessThan(LATE_MS);
    }
    expect(rows.filter((row) => row.status === 'skipped')).toEqual([]);
    await until('the jobs are settled', async () => {
      const [settled] = await db.query<{ n: number }>(
        `select count(*)::integer as n from agentd.job_runs where outcome = 'completed'`,
      );
      return (settled?.n ?? 0) >= 4;
    });
    expect(await skewedTimes()).toEqual([]);
    // The check itself would find one.
    await db.query(`update public.agents set created_at = agentd.now() + interval '90 seconds'`);
    expect(await skewedTimes()).toHaveLength(1);
  });

  test('hold leases of one length, and end runs after their own time limit', async () => {
    await using _both = await twoNodes(1);
    model.respond(() => ({ hang: true }));
    const started = performance.now();
    const ids = [
      await startTask(db, platform, 'one', { timeout_seconds: 6 }),
      await startTask(db, platform, 'two', { timeout_seconds: 6 }),
    ];
    await model.waitForRequest(() => true, 2);
    const leases = await db.query<{ left: number }>(
      'select extract(epoch from lease_expires_at - agentd.now())::double precision as left from public.task_runs',
    );
    expect(leases).toHaveLength(2);
    for (const { left } of leases) {
      expect(left).toBeGreaterThan(0);
      expect(left).toBeLessThanOrEqual(LEASE_SECONDS);
    }
    expect((await workersOf(ids)).size).toBe(2);
    for (const id of ids) {
      expect(await waitForRun(db, id)).toMatchObject({
        status: 'failed',
        reason_code: 'timeout',
        lease_epoch: 1,
      });
    }
    const took = performance.now() - started;
    expect(took).toBeGreaterThan(5_900);
    expect(took).toBeLessThan(LATE_MS);
    expect(await skewedTimes()).toEqual([]);
  });

  test('wake waiting runs when the provider said, whichever put them to sleep', async () => {
    await using _both = await twoNodes(1);
    const asked = new Map<string, number[]>();
    const { promise: together, resolve } = Promise.withResolvers<void>();
    model.respond(({ userText }) => {
      const times = asked.get(userText) ?? [];
      asked.set(userText, [...times, performance.now()]);
      if (asked.size === 2) resolve();
      return times.length === 0
        ? { status: 429, headers: { 'retry-after-ms': '5200' }, delay: together }
        : { content: 'awake' };
    });
    const ids = [await startTask(db, platform, 'one'), await startTask(db, platform, 'two')];
    for (const id of ids) {
      const run = await waitForRun(db, id, ['waiting']);
      const left = (run.wake_at?.getTime() ?? 0) - (await databaseNow());
      expect(left).toBeGreaterThan(-LATE_MS);
      expect(left).toBeLessThanOrEqual(10_000);
    }
    expect((await workersOf(ids)).size).toBe(2);
    for (const id of ids) expect((await waitForRun(db, id)).status).toBe('completed');
    for (const [first = 0, second = 0] of asked.values()) {
      expect(second - first).toBeGreaterThan(5_000);
      expect(second - first).toBeLessThan(LATE_MS);
    }
    expect(await skewedTimes()).toEqual([]);
  });

  test('tell their agents the same time, which is the database’s', async () => {
    await using _both = await twoNodes(1);
    let waiting = 0;
    const { promise: together, resolve } = Promise.withResolvers<void>();
    model.respond(({ body }) => {
      if (body.messages.at(-1)?.role === 'tool') return { content: 'done' };
      if (++waiting === 2) resolve();
      return { toolCalls: [{ name: 'current_time', arguments: {} }], delay: together };
    });
    const ids = [await startTask(db, platform, 'one'), await startTask(db, platform, 'two')];
    for (const id of ids) expect((await waitForRun(db, id)).status).toBe('completed');
    expect((await workersOf(ids)).size).toBe(2);
    const now = await databaseNow();
    for (const id of ids) {
      const [call] = await toolCalls(db, id);
      const told = Date.parse(/\((.+)\)$/.exec(call?.result?.content ?? '')?.[1] ?? '');
      expect(Math.abs(now - told)).toBeLessThan(LATE_MS);
    }
  });
});

describe.skipIf(!onServer)('server-only: a run that changes hands between them', () => {
  test.each([
    ['ahead', 'behind', SKEW_MS],
    ['behind', 'ahead', -SKEW_MS],
  ])(
    'of a node %s that falls silent is taken over by one %s after its lease, not sooner',
    async (_a, _b, ms) => {
      await using network = await networkTo(db.url);
      model.respond((_, index) => (index === 0 ? { hang: true } : { content: 'taken over' }));
      const silent = await testDaemon({ url: network.through(db.url) }, model, { clock: skewed(ms) });
      const id = await startTask(db, platform, 'x');
      await model.waitForRequest();
      await using _other = await testDaemon(db, model, { clock: skewed(-ms) });
      const askedAt = performance.now();
      const [lease] = await db.query<{ left: number }>(
        'select 1000 * extract(epoch from lease_expires_at - agentd.now())::double precision as left from public.task_runs',
      );
      network.cut();
      await model.waitForRequest(() => true, 2);
      const took = performance.now() - askedAt;
      // What was left of it then, or more if it was renewed before the cut; the two clocks are read to the millisecond.
      expect(took).toBeGreaterThan((lease?.left ?? Number.NaN) - 2);
      expect(took).toBeLessThan(LATE_MS);
      expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', lease_epoch: 2 });
      expect(await skewedTimes()).toEqual([]);
      network.heal();
      await silent.stop();
    },
  );

  test('whole processes with such dates, every library in them: times, schedule and runs are right', async () => {
    const nodes = await Promise.all([SKEW_MS, -SKEW_MS].map((ms) => processWithDate(ms)));
    try {
      const scheduled = await makeTask(db, platform, {
        cron_expression: '* * * * * *',
        overlap_policy: 'allow',
      });
      const asked = await makeTask(db, platform, {}, [{}, {}]);
      const ids = await Promise.all([1, 2, 3, 4, 5, 6].map(() => startRun(db, asked)));
      for (const id of ids) {
        expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', lease_epoch: 1 });
      }
      await until('three occurrences have ended', async () => {
        const ended = await db.query(
          `select 1 from public.task_runs where task_id = $1 and status = 'completed'`,
          [scheduled],
        );
        return ended.length >= 3;
      });
      const late = await db.query(
        `select 1 from public.task_runs where task_id = $1
            and extract(epoch from created_at - scheduled_for) not between 0 and 30`,
        [scheduled],
      );
      expect(late).toEqual([]);
      expect(await skewedTimes()).toEqual([]);
      // The proof of the arrangement: their logs are written with the wrong dates.
      for (const [index, node] of nodes.entries()) {
        const time = /"time":"([^"]+)"/.exec(node.output())?.[1] ?? '';
        const off = Date.parse(time) - Date.now();
        expect(Math.abs(off - (index === 0 ? SKEW_MS : -SKEW_MS))).toBeLessThan(45_000);
      }
    } finally {
      await Promise.all(nodes.map((node) => node.kill()));
    }
  });

  function processWithDate(ms: number) {
    const preload = new URL('../support/wrong-date.ts', import.meta.url);
    return startDaemonProcess(db, model, {
      NODE_OPTIONS: `--import ${preload.href}`,
      WRONG_DATE_MS: String(ms),
      AGENTD_QUEUES: 'task-run=4',
    });
  }
});
