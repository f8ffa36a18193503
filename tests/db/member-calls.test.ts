/** Calls of increment_conversation_count by users: each takes one row back, and what one workspace does with them holds up no other. */
import { randomUUID } from 'node:crypto';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { systemClock } from '../../src/clock.ts';
import { openDatabase, WORKER_LIMITS } from '../../src/db/database.ts';
import { pairMemberCalls, workspacesWithCalls } from '../../src/db/usage-limits.ts';
import { callPairing, followLimits } from '../../src/services/usage-limits.ts';
import { rollUp } from '../../src/services/usage-rollup.ts';
import { WorkspaceWalk } from '../../src/services/workspace-walk.ts';
import { silentLogger } from '../../src/telemetry/logger.ts';
import { createMetrics } from '../../src/telemetry/metrics.ts';
import { onServer, setDatabaseClock, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert } from '../support/platform.ts';
import { type Company, column, company } from './schema-support.ts';

let db: TestDatabase;
let at: Company;

beforeAll(async () => {
  db = await testDatabase();
});
afterAll(() => db?.dispose());
beforeEach(async () => {
  at = await company(db.pool);
  await setDatabaseClock(db, new Date('2026-03-10T12:00:00Z'));
});
afterEach(async () => {
  await setDatabaseClock(db, null);
  await db.query('drop trigger if exists fail_here on public.usage_event_keys');
  await db.query('delete from public.workspaces where not is_personal');
  await db.query('delete from public.pricing_plans');
});

const deps = () => ({ db, clock: systemClock, log: silentLogger(), metrics: createMetrics() });
/** Calls as members make them, of which none has been looked at. */
const call = (times: readonly string[], workspace = at.workspace) =>
  db.query(
    `insert into agentd.member_calls (workspace_id, called_at, looked_at) select $1, t, '2026-01-01Z' from unnest($2::timestamptz[]) t`,
    [workspace, times.map((time) => `2026-03-10T${time}Z`)],
  );
/** Rows of conversations that are counted. */
const rows = async (times: readonly string[], workspace = at.workspace) => {
  for (const time of times)
    await db.query(`select agentd.record_usage($1, 'conversation', 1, $2, 0, $3)`, [
      workspace,
      `conversation:${randomUUID()}`,
      `2026-03-10T${time}Z`,
    ]);
};
/** The times of the rows that were taken back. */
const taken = (workspace = at.workspace) =>
  column<string>(
    db.pool,
    `select to_char(occurred_at at time zone 'UTC', 'HH24:MI') from public.usage_events
      where workspace_id = $1 and idempotency_key like 'void:%' order by 1`,
    [workspace],
  );
const other = async () => (await company(db.pool)).workspace;

test('a call takes one row of the hour around it back, and as many calls as can have one do', async () => {
  // the second row is the only one of the last call, and the first of the first
  await rows(['10:00', '10:50', '11:40']);
  await call(['10:20', '10:25', '11:45']);
  expect(await pairMemberCalls(db, at.workspace, 100)).toBe(3);
  await call(['11:00', '11:01']);
  expect([await pairMemberCalls(db, at.workspace, 100), await taken()]).toEqual([
    0,
    ['10:00', '10:50', '11:40'],
  ]);
  await rows(['12:00', '09:59', '12:02']);
  expect([await pairMemberCalls(db, at.workspace, 100), await taken()]).toEqual([
    1,
    ['10:00', '10:50', '11:40', '12:00'],
  ]);
});

test('a call for which no row can come any more is forgotten, however many there are', async () => {
  await db.query(
    `insert into agentd.member_calls (workspace_id, called_at, row_key)
     select $1, '2026-03-10T10:00:00Z', nullif(n % 2, 0) from generate_series(1, 12000) n`,
    [at.workspace],
  );
  await call(['10:01']);
  await followLimits(deps());
  expect(await db.query('select called_at from agentd.member_calls')).toEqual([
    { called_at: new Date('2026-03-10T10:01:00Z') },
  ]);
});

test('who makes many calls keeps nobody else’s from being paired', async () => {
  await call(Array.from({ length: 3_000 }, () => '11:00:00'));
  const second = await other();
  await rows(['11:30'], second);
  await call(['11:31'], second);
  await db.query('update agentd.member_calls set looked_at = agentd.now() where workspace_id = $1', [second]);
  await followLimits(deps());
  expect([await taken(), await taken(second)]).toEqual([[], ['11:30']]);
});

test('a workspace whose calls take too long to pair is left: others’ are paired, and all are warned', async () => {
  await insert(db, 'public.pricing_plans', { name: 'p', conversation_limit: 1, is_default: true });
  const workspaces = [at.workspace, await other(), await other()];
  for (const id of workspaces) {
    await rows(['11:30', '11:31'], id);
    await call(['11:31'], id);
  }
  await rollUp(deps());
  await db.query(`
    create or replace function public.fail_here() returns trigger language plpgsql as
      $$ begin raise exception 'too long' using errcode = '57014'; end $$;
    create trigger fail_here before insert on public.usage_event_keys
      for each row when (new.workspace_id = '${at.workspace}') execute function public.fail_here();`);
  let elapsed = 0;
  const slow = { ...deps(), clock: { ...systemClock, elapsed: () => elapsed } };
  const pairing = callPairing(slow);
  // 80 and 100 of a hundred of each: one conversation is left of two, two are where no row could be taken back
  expect((await followLimits(slow, pairing)).warnings).toBe(6);
  expect(await Promise.all(workspaces.map(taken))).toEqual([[], ['11:31'], ['11:31']]);
  await db.query('drop trigger fail_here on public.usage_event_keys');
  elapsed = 59_000;
  await followLimits(slow, pairing);
  expect(await taken()).toEqual([]);
  elapsed = 61_000;
  await followLimits(slow, pairing);
  expect(await taken()).toEqual(['11:31']);
});

test('a look that has taken its time goes on with the next workspace another time', async () => {
  const workspaces = [at.workspace, await other(), await other()].sort();
  for (const id of workspaces) {
    await rows(['11:30'], id);
    await call(['11:31'], id);
  }
  let elapsed = 0;
  const walk = new WorkspaceWalk(
    { ...deps(), clock: { ...systemClock, elapsed: () => elapsed } },
    {
      find: workspacesWithCalls,
      each: (on, id) => {
        elapsed += 3_000;
        return pairMemberCalls(on, id, 10);
      },
      onSlow: () => {},
    },
  );
  expect([await walk.pass(), await taken(workspaces[1]), await taken(workspaces[2])]).toEqual([
    2,
    ['11:30'],
    [],
  ]);
  expect([await walk.pass(), await taken(workspaces[2])]).toEqual([1, ['11:30']]);
});

test.runIf(onServer)(
  'server-only: calls are paired by the rows of conversations alone, and each row is looked at about once',
  async () => {
    await db.query(
      `insert into public.usage_events (workspace_id, metric, idempotency_key, occurred_at, recorded_at)
       select $1, 'message', 'message:' || n, agentd.now() - n * interval '100 ms', agentd.now() from generate_series(1, 20000) n`,
      [at.workspace],
    );
    await rows(Array.from({ length: 150 }, (_, n) => `11:${String(n % 60).padStart(2, '0')}:30`));
    await db.query('analyze public.usage_events');
    await call(Array.from({ length: 200 }, (_, n) => `11:${String(n % 60).padStart(2, '0')}:00`));
    const client = await db.pool.connect();
    try {
      await client.query('begin');
      const paired = await column(client, 'select agentd.pair_member_calls($1, 200)', [at.workspace]);
      const [read] = await column<number>(
        client,
        `select sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::float8 from pg_stat_xact_all_tables where relname like 'p\\_usage\\_events\\_%'`,
      );
      await client.query('commit');
      expect(paired).toEqual([150]);
      expect(read).toBeGreaterThan(0);
      expect(read).toBeLessThan(1_000);
    } finally {
      client.release();
    }
  },
);

test.runIf(onServer)(
  'server-only: a workspace whose counter somebody holds is left, and no other waits',
  async () => {
    const second = await other();
    for (const id of [at.workspace, second]) {
      await rows(['11:30', '11:31'], id);
      await call(['11:31', '11:32'], id);
    }
    await rollUp(deps());
    const worker = openDatabase({ url: db.url, embedded: false, max: 1, limits: WORKER_LIMITS });
    const holder = await db.pool.connect();
    try {
      await holder.query('begin');
      await holder.query('update public.workspace_usage_counters set used = used where workspace_id = $1', [
        at.workspace,
      ]);
      await followLimits({ ...deps(), db: worker });
      expect([await taken(), await taken(second)]).toEqual([[], ['11:30', '11:31']]);
      await holder.query('commit');
      await followLimits({ ...deps(), db: worker });
      expect(await taken()).toEqual(['11:30', '11:31']);
    } finally {
      holder.release();
      await worker.close();
    }
  },
);
