/** Retention: each rule takes what has had its time, by the workspace's own word where it has one, and nothing else. */
import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { systemClock } from '../../src/clock.ts';
import { registerTasks, takeTask } from '../../src/db/maintenance.ts';
import { workOn } from '../../src/db/maintenance-run.ts';
import { rowTask } from '../../src/db/maintenance-tasks.ts';
import { loadRetention, type RowRule, rowRules } from '../../src/db/retention-rules.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform } from '../support/platform.ts';
import { type Home, plant, ruleRows } from './retention-rows.ts';

const DAY_MS = 86_400_000;

let db: TestDatabase;
const homes: Home[] = [];

beforeAll(async () => {
  db = await testDatabase();
  const provider = await insert(db, 'public.service_providers', {
    name: 'p',
    display_name: 'P',
    provider_type: 'oauth',
  });
  for (let i = 0; i < 3; i++) {
    const platform = await makePlatform(db, { shared: true });
    const own = { workspace_id: platform.workspaceId, user_id: platform.userId };
    homes.push({
      ...platform,
      connectionId: await insert(db, 'public.agent_mcp_connections', {
        agent_id: platform.agentId,
        connection_name: 'c',
        server_url: 'https://tools.example.test/mcp',
        is_active: false,
      }),
      credentialId: await insert(db, 'public.user_integration_credentials', {
        ...own,
        service_provider_id: provider,
        credential_type: 'oauth',
      }),
      mediaId: await insert(db, 'public.media_library', {
        ...own,
        file_name: 'f',
        storage_path: 'a/b',
        file_size: 1,
      }),
      channelId: await insert(db, 'public.chat_channels', { workspace_id: platform.workspaceId, name: 'c' }),
      conversationId: await insert(db, 'public.conversations', { ...own, agent_id: platform.agentId }),
    });
  }
  await registerTasks(
    db,
    rowRules.map((rule) => rule.name),
  );
});
afterAll(() => db?.dispose());
afterEach(async () => {
  await db.query('delete from agentd.retention_overrides');
  await db.query('delete from agentd.retired_partitions');
});

const rule = (name: string): RowRule => rowRules.find((each) => each.name === name) as RowRule;

/** One whole pass. */
async function tidy(name: string, keepDays: number | null, onBatch?: () => void) {
  const taken = await takeTask(db, { names: [name], worker: 'test', leaseMs: 60_000, isForced: true });
  if (taken === null) throw new Error('Somebody has the task.');
  const outcome = await workOn(
    { db, clock: systemClock, leaseMs: 60_000, ...(onBatch ? { onBatch } : {}) },
    rowTask(rule(name), keepDays),
    taken,
    { sliceMs: 60_000, signal: new AbortController().signal },
  );
  expect(outcome.error).toBeNull();
  expect(outcome.left?.how).toBe('completed');
  return outcome.row;
}

const override = (home: Home, name: string, days: number | null) =>
  db.query('insert into agentd.retention_overrides (workspace_id, rule, keep_days) values ($1, $2, $3)', [
    home.workspaceId,
    name,
    days,
  ]);

/** Rows by table, of all tables but those that a rule is about, what hangs on them, and maintenance's own. */
async function census(except: readonly string[]): Promise<Record<string, number>> {
  const tables = await db.query<{ name: string }>(
    `select c.oid::regclass::text as name from pg_class c
      where c.relnamespace in ('public'::regnamespace, 'agentd'::regnamespace) and c.relkind in ('r', 'p') and not c.relispartition`,
  );
  const counts: Record<string, number> = {};
  for (const { name } of tables) {
    const full = name.includes('.') ? name : `public.${name}`;
    if (except.includes(full) || full.startsWith('agentd.maintenance_')) continue;
    const [row] = await db.query<{ n: number }>(`select count(*) as n from ${full}`);
    counts[full] = row?.n ?? -1;
  }
  return counts;
}

/** What of the rows of a rule is not yet dealt with. */
const undone: Readonly<Record<string, string>> = {
  call_bodies: 'stripped_at is null',
  stale_chat_sessions: `status = 'active'`,
};

for (const each of rowRules.filter((one) => ruleRows[one.name] !== undefined)) {
  test(`${each.name}: rows go when their own workspace's time is over, and no others`, async () => {
    const { time, row } = ruleRows[each.name] as (typeof ruleRows)[string];
    const isShared = each.workspace === null;
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.integer({ min: 0, max: 2 }), fc.integer({ min: 0, max: 400 })), {
          minLength: 1,
          maxLength: 25,
        }),
        fc.integer({ min: each.leastDays, max: 300 }),
        fc.option(fc.integer({ min: 1, max: 400 })),
        fc.boolean(),
        async (ages, keep, own, isForEver) => {
          // whole days and a bit, so that the moments between two statements decide nothing
          const old = (days: number, n: number): Date =>
            new Date(Date.now() - days * DAY_MS - 3_600_000 - n * 900_000);
          const [, second, third] = homes as [Home, Home, Home];
          await plantNothing(each.table);
          if (!isShared && own !== null) await override(second, each.name, own);
          if (!isShared && isForEver) await override(third, each.name, null);
          if (each.name === 'usage_quarter_hours')
            await db.query(
              `insert into agentd.retired_partitions values ('public.usage_events', agentd.now())`,
            );
          const planted = ages.map(([home, days], n) => ({
            home,
            days,
            columns: { ...row(homes[home] as Home), [time]: old(days, n) },
          }));
          await plant(
            db,
            each.table,
            planted.map(({ columns }) => columns),
          );
          const others = await census([each.table]);
          const stays = planted.filter(({ home, days }) => {
            const limit =
              !isShared && home === 1 && own !== null
                ? Math.max(own, each.leastDays)
                : !isShared && home === 2 && isForEver
                  ? Number.POSITIVE_INFINITY
                  : keep;
            return days < limit;
          });
          const done = await tidy(each.name, keep);
          const left = await db.query<{ at: Date }>(
            `select t."${time}" as at from ${each.table} t where ${undone[each.name] ?? (each.name === 'maintenance_log' ? `name = 'x'` : 'true')} order by 1`,
          );
          expect(left.map(({ at }) => at.getTime())).toEqual(
            stays
              .map(({ columns }) => (columns[time as keyof typeof columns] as unknown as Date).getTime())
              .toSorted((a, b) => a - b),
          );
          expect(done).toMatchObject({ rows: planted.length - stays.length, held: 0 });
          expect(await census([each.table])).toEqual(others);
        },
      ),
      { numRuns: onServer ? 8 : 3, endOnFailure: true },
    );
    await plantNothing(each.table);
  });
}

async function plantNothing(table: string): Promise<void> {
  await db.query('delete from agentd.retention_overrides');
  await db.query('delete from agentd.retired_partitions');
  await db.query(`delete from ${table}${table === 'agentd.maintenance_log' ? ` where name = 'x'` : ''}`);
}

test('every rule has rows in this test, or a test of its own', () => {
  const apart = ['expired_approvals'];
  expect(rowRules.map((each) => each.name).filter((name) => ruleRows[name] === undefined)).toEqual(apart);
  expect(Object.keys(loadRetention().rules).toSorted()).toEqual(rowRules.map((each) => each.name).toSorted());
});

/** A run with its step and calls, as it lies there after its end, or while it waits. */
async function runWithCalls(home: Home, columns: object, call: object = {}): Promise<string> {
  const id = crypto.randomUUID();
  const own = { workspace_id: home.workspaceId, run_id: id };
  await plant(db, 'public.task_runs', [
    {
      id,
      workspace_id: home.workspaceId,
      agent_id: home.agentId,
      steps: '[]',
      settings: '{}',
      output: '{"text":"kept"}',
      ...columns,
    },
  ]);
  await plant(db, 'public.task_step_runs', [
    { ...own, step_order: 1, step_name: 's', context: '{"a":1}', result: '{"r":1}' },
  ]);
  await plant(db, 'public.llm_calls', [
    {
      ...own,
      step_order: 1,
      turn: 1,
      idempotency_key: crypto.randomUUID(),
      status: 'completed',
      response: '{"content":"secret"}',
      prompt_tokens: 7,
    },
  ]);
  await plant(db, 'public.tool_calls', [
    {
      ...own,
      step_order: 1,
      turn: 1,
      call_index: 0,
      idempotency_key: crypto.randomUUID(),
      provider_call_id: 'c',
      tool_name: 't',
      source: 'builtin',
      effect: 'write',
      arguments: '{"q":1}',
      result: '{"content":"x"}',
      status: 'completed',
      ...call,
    },
  ]);
  return id;
}

const daysAgo = (days: number): Date => new Date(Date.now() - days * DAY_MS);

test('call_bodies: what calls were told and answered goes, figures and results stay; runs under way keep all', async () => {
  const [home] = homes as [Home];
  const ended = await runWithCalls(home, { status: 'completed', finished_at: daysAgo(100) });
  const live = await runWithCalls(home, { status: 'waiting', created_at: daysAgo(500) });
  expect(await tidy('call_bodies', 90)).toMatchObject({ rows: 1 });
  const look = (id: string) =>
    db.query(
      `select c.response is null as r, c.prompt_tokens as p, t.arguments::text as a, t.result is null as tr, s.context is null as sc, s.result is null as sr,
              x.output is null as o, x.stripped_at is null as s
         from public.task_runs x join public.llm_calls c on c.run_id = x.id join public.tool_calls t on t.run_id = x.id
         join public.task_step_runs s on s.run_id = x.id where x.id = $1`,
      [id],
    );
  expect(await look(ended)).toEqual([
    { r: true, p: 7, a: '{}', tr: true, sc: true, sr: false, o: false, s: false },
  ]);
  expect(await look(live)).toEqual([
    { r: false, p: 7, a: '{"q": 1}', tr: false, sc: false, sr: false, o: false, s: true },
  ]);
  expect(await tidy('call_bodies', 90)).toMatchObject({ rows: 0 });
  // the run itself goes with all that hangs on it, and the one that waits stays, however old it is
  expect(await tidy('task_runs', 95)).toMatchObject({ rows: 1 });
  expect(await db.query('select id from public.task_runs')).toEqual([{ id: live }]);
  expect(await db.query('select run_id from public.tool_calls')).toEqual([{ run_id: live }]);
  await db.query('delete from public.task_runs');
});

test('task_runs: whatever a workspace says, a run stays for as long as a budget of its month may begin with it', async () => {
  const [home] = homes as [Home];
  const [recent, old] = [
    await runWithCalls(home, { status: 'completed', finished_at: daysAgo(32) }),
    await runWithCalls(home, { status: 'completed', finished_at: daysAgo(34) }),
  ];
  await override(home, 'task_runs', 1);
  expect(await tidy('task_runs', 365)).toMatchObject({ rows: 1 });
  expect(await db.query('select id from public.task_runs where id = any ($1)', [[recent, old]])).toEqual([
    { id: recent },
  ]);
  await db.query('delete from public.task_runs');
});

test('expired_approvals: a call that nobody decided on is denied, and its run goes on', async () => {
  const [home] = homes as [Home];
  const waiting = { status: 'waiting', reason_code: 'approval_required' };
  const undecided = (days: number) => ({ status: 'waiting', result: null, created_at: daysAgo(days) });
  const old = await runWithCalls(home, waiting, undecided(31));
  const fresh = await runWithCalls(home, waiting, undecided(29));
  expect(await tidy('expired_approvals', 30)).toMatchObject({ rows: 1, held: 0 });
  const state = (id: string) =>
    db.query(
      'select r.status as run, c.status as call, c.approved, c.error_code from public.task_runs r join public.tool_calls c on c.run_id = r.id where r.id = $1',
      [id],
    );
  expect(await state(old)).toEqual([
    { run: 'queued', call: 'denied', approved: false, error_code: 'approval_expired' },
  ]);
  expect(await state(fresh)).toEqual([{ run: 'waiting', call: 'waiting', approved: null, error_code: null }]);
  const audit = await db.query(
    `select action, details ->> 'run_id' as run from agentd.audit_log where object_type = 'tool_call'`,
  );
  expect(audit).toEqual([{ action: 'expire', run: old }]);
  await db.query('delete from public.task_runs');
  await db.query('delete from agentd.audit_log');
});

test('usage_quarter_hours: sums whose events are still there stay, as they are compared with them', async () => {
  const [home] = homes as [Home];
  const { row } = ruleRows.usage_quarter_hours as (typeof ruleRows)[string];
  await plant(db, 'public.usage_quarter_hours', [{ ...row(home), bucket: daysAgo(2000) }]);
  expect(await tidy('usage_quarter_hours', 1000)).toMatchObject({ rows: 0 });
  await db.query(
    `insert into agentd.retired_partitions values ('public.usage_events', agentd.now() - interval '1900 days')`,
  );
  expect(await tidy('usage_quarter_hours', 1000)).toMatchObject({ rows: 1 });
});

test('a preview counts what a pass would take, and takes nothing', async () => {
  const [first, second] = homes as [Home, Home];
  await override(second, 'agent_logs', 10);
  await plant(db, 'public.agent_logs', [
    ...[5, 50, 500].map((days) => ({
      workspace_id: first.workspaceId,
      agent_id: first.agentId,
      timestamp: daysAgo(days),
    })),
    ...[5, 50, 500].map((days) => ({
      workspace_id: second.workspaceId,
      agent_id: second.agentId,
      timestamp: daysAgo(days),
    })),
  ]);
  const before = await census([]);
  const preview = await rowTask(rule('agent_logs'), 100).preview(db);
  expect(preview).toMatchObject({ rows: 3, isMore: false });
  expect(await census([])).toEqual(before);
  expect(await tidy('agent_logs', 100)).toMatchObject({ rows: 3 });
  await db.query('delete from public.agent_logs');
});

test.runIf(onServer)(
  'rows that somebody holds are stepped over, and met again by the next pass',
  async () => {
    const [home] = homes as [Home];
    const ids = [await runWithCalls(home, { status: 'failed', finished_at: daysAgo(400) })];
    for (let i = 0; i < 5; i++)
      ids.push(await runWithCalls(home, { status: 'failed', finished_at: daysAgo(390 - i) }));
    const client = await db.pool.connect();
    try {
      await client.query('begin');
      await client.query('select 1 from public.task_runs where id = $1 for key share', [ids[0]]);
      // what hangs on a run
      await client.query('select 1 from public.llm_calls where run_id = $1 for update', [ids[2]]);
      const limited = await testDatabaseWithLimits();
      const taken = await takeTask(limited, {
        names: ['task_runs'],
        worker: 'test',
        leaseMs: 60_000,
        isForced: true,
      });
      const { row, left } = await workOn(
        { db: limited, clock: systemClock, leaseMs: 60_000 },
        rowTask(rule('task_runs'), 365),
        taken as NonNullable<typeof taken>,
        { sliceMs: 60_000, signal: new AbortController().signal },
      );
      expect(left?.how).toBe('completed');
      expect(row).toMatchObject({ rows: 4 });
      expect(
        (await db.query<{ id: string }>('select id from public.task_runs')).map((each) => each.id).toSorted(),
      ).toEqual([ids[0], ids[2]].toSorted());
      await limited.close();
    } finally {
      await client.query('rollback');
      client.release();
    }
    expect(await tidy('task_runs', 365)).toMatchObject({ rows: 2, held: 0 });
  },
);

/** Connections with the limits that a daemon's have. */
async function testDatabaseWithLimits() {
  const { openDatabase } = await import('../../src/db/database.ts');
  return openDatabase({
    url: db.url,
    embedded: false,
    max: 2,
    limits: { lockMs: 100, statementMs: 30_000, answerMs: 40_000 },
  });
}
