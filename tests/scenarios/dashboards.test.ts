/** Figures for dashboards: true, fresh, for whom they are, and computed by one worker at a time. */
import { randomUUID } from 'node:crypto';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { loadConfig } from '../../src/config.ts';
import { openDatabase } from '../../src/db/database.ts';
import { migrateDown, migrateUp } from '../../src/db/migrate.ts';
import { DASHBOARDS_EVERY_MS, dashboards, refreshDashboards } from '../../src/services/dashboards.ts';
import { silentLogger } from '../../src/telemetry/logger.ts';
import { createMetrics } from '../../src/telemetry/metrics.ts';
import {
  emptyDatabase,
  onServer,
  setDatabaseClock,
  type TestDatabase,
  testDatabase,
} from '../support/database.ts';
import { handClock } from '../support/hand-clock.ts';
import { insert, makeAgent, makePlatform, makeTask, type Platform } from '../support/platform.ts';
import { until } from '../support/runs.ts';
import { asService, asUser, session, stateOf } from '../support/sessions.ts';

const NOON = new Date('2026-03-31T12:00:00Z');
const MINUTE = 60_000;
const VIEWS = ['agent_activity', 'usage_by_agent', 'usage_by_model', 'workspace_overview'] as const;

let db: TestDatabase;
let platform: Platform;
let now = NOON.getTime();

beforeAll(async () => {
  db = await testDatabase();
});
afterAll(() => db?.dispose());
beforeEach(async () => {
  await db.query('delete from public.workspaces');
  await db.query('delete from auth.users');
  await db.query(
    `update agentd.dashboard_refreshes set started_at = null, refreshed_at = '2020-01-01', failures = 0, last_error = null`,
  );
  platform = await makePlatform(db);
  now = NOON.getTime();
  await setDatabaseClock(db, NOON);
});
afterEach(() => setDatabaseClock(db, null));

const parts = () => ({ clock: handClock(), log: silentLogger(), metrics: createMetrics(), db });
const refresh = (): Promise<number> => refreshDashboards(parts());

/** Lets the database's clock go on. */
async function later(ms: number): Promise<void> {
  now += ms;
  await setDatabaseClock(db, new Date(now));
}

type Overview = Readonly<Record<string, number | string>>;

async function overviewOf(of: Pick<Platform, 'workspaceId'>): Promise<Overview | undefined> {
  const [row] = await db.query<Overview>('select * from public.workspace_overview where workspace_id = $1', [
    of.workspaceId,
  ]);
  return row;
}

const refreshes = () =>
  db.query<{ view_name: string; failures: number; last_error: string | null; refreshed: boolean }>(
    `select view_name, failures, last_error, refreshed_at > '2020-01-02' as refreshed
       from agentd.dashboard_refreshes order by view_name`,
  );

/** A run that has ended, as its worker leaves it. */
async function endedRun(
  of: Platform,
  finishedAt: string,
  columns: Record<string, unknown> = {},
): Promise<string> {
  const task = await makeTask(db, of, { task_type: 'event_based' });
  const id = await insert(db, 'public.task_runs', { task_id: task });
  const set = {
    status: 'completed',
    turns: 2,
    tool_calls: 3,
    prompt_tokens: 100,
    completion_tokens: 20,
    cost_micros: 7,
    ...columns,
  };
  const names = Object.keys(set);
  await db.query(
    `update public.task_runs
        set started_at = ${set.status === 'skipped' ? 'null' : `$2::timestamptz - interval '4 seconds'`}, finished_at = $2::timestamptz,
            ${names.map((name, i) => `${name} = $${i + 3}`)} where id = $1`,
    [id, finishedAt, ...Object.values(set)],
  );
  return id;
}

test('the overview counts what a workspace has, and of the last thirty days what was said and done', async () => {
  await makeAgent(db, platform, { status: 'draft' });
  await makeAgent(db, platform, { is_active: false });
  await makeTask(db, platform, { status: 'paused' });
  await insert(db, 'public.knowledge_sources', {
    workspace_id: platform.workspaceId,
    name: 'A',
    type: 'TEXT',
    content: 'x',
    chunk_count: 4,
  });
  const media = { workspace_id: platform.workspaceId, user_id: platform.userId, file_name: 'a.pdf' };
  await insert(db, 'public.media_library', media);
  await insert(db, 'public.media_library', { ...media, is_archived: true });
  const conversation = await insert(db, 'public.conversations', {
    workspace_id: platform.workspaceId,
    user_id: platform.userId,
  });
  const channel = await insert(db, 'public.chat_channels', {
    workspace_id: platform.workspaceId,
    name: 'all',
  });
  for (const created_at of ['2026-03-01T12:00:01Z', '2026-03-01T11:59:59Z']) {
    await insert(db, 'public.chat_messages', { channel_id: channel, content: 'x', created_at });
    await insert(db, 'public.agent_messages', {
      conversation_id: conversation,
      agent_id: platform.agentId,
      user_id: platform.userId,
      role: 'user',
      content: 'x',
      created_at,
    });
  }
  for (const status of ['completed', 'failed', 'cancelled', 'skipped', 'completed'])
    await endedRun(platform, '2026-03-20T00:00:00Z', { status });
  await endedRun(platform, '2026-03-01T11:59:59Z');
  expect(await refresh()).toBe(VIEWS.length);
  expect(await overviewOf(platform)).toEqual({
    workspace_id: platform.workspaceId,
    agents: 3,
    live_agents: 1,
    members: 1,
    active_tasks: 6,
    knowledge_sources: 1,
    knowledge_chunks: 4,
    media: 1,
    conversations: 1,
    messages: 2,
    runs_completed: 2,
    runs_failed: 1,
    runs_cancelled: 1,
    runs_skipped: 1,
    refreshed_at: NOON,
  });
});

test('an agent’s days are days of UTC: today and the twenty-nine before, each run on the day on which it ended', async () => {
  await endedRun(platform, '2026-03-31T00:00:00Z');
  await endedRun(platform, '2026-03-31T11:00:00Z', { status: 'failed' });
  await endedRun(platform, '2026-03-31T11:00:00Z', {
    status: 'skipped',
    turns: 0,
    tool_calls: 0,
  });
  await endedRun(platform, '2026-03-30T23:59:59.9Z');
  await endedRun(platform, '2026-03-02T00:00:00Z');
  await endedRun(platform, '2026-03-01T23:59:59.9Z');
  await refresh();
  const rows = await db.query(
    `select day::text, runs_completed, runs_failed, turns, tool_calls, tokens, cost_micros, average_duration_ms, refreshed_at
       from public.agent_activity where workspace_id = $1 and agent_id = $2 order by day`,
    [platform.workspaceId, platform.agentId],
  );
  const one = { runs_completed: 1, runs_failed: 0, turns: 2, tool_calls: 3, tokens: 120, cost_micros: 7 };
  const each = { average_duration_ms: 4000, refreshed_at: NOON };
  expect(rows).toEqual([
    { day: '2026-03-02', ...one, ...each },
    { day: '2026-03-30', ...one, ...each },
    {
      day: '2026-03-31',
      runs_completed: 1,
      runs_failed: 1,
      turns: 4,
      tool_calls: 6,
      tokens: 360,
      cost_micros: 21,
      ...each,
    },
  ]);
});

test('a signed-in user sees his workspaces and nothing of others, whatever he asks; the platform sees all', async () => {
  const other = await makePlatform(db);
  await endedRun(platform, '2026-03-31T00:00:00Z');
  await endedRun(other, '2026-03-31T00:00:00Z');
  for (const of of [platform, other])
    await db.query(
      `select agentd.record_usage($1, 'tokens', 30, $2, 5, null, $3, null, '{"provider": "p", "model": "m", "prompt_tokens": 20, "cached_tokens": "many"}')`,
      [of.workspaceId, randomUUID(), of.agentId],
    );
  await refresh();
  expect(
    await db.query(
      'select quantity, prompt_tokens::integer, cached_tokens, cost_micros from public.usage_by_model',
    ),
  ).toEqual(Array(2).fill({ quantity: 30, prompt_tokens: 20, cached_tokens: null, cost_micros: 5 }));
  expect(
    await db.query(`select metric, quantity from public.usage_by_agent where agent_id = $1`, [
      platform.agentId,
    ]),
  ).toEqual([{ metric: 'tokens', quantity: 30 }]);
  for (const view of VIEWS) {
    const ask = `select distinct workspace_id::text as id from public.${view} order by 1`;
    const seenBy = (user: string) => asUser(db, user, async (client) => (await client.query(ask)).rows);
    expect(await seenBy(platform.userId)).toEqual([{ id: platform.workspaceId }]);
    expect(await seenBy(other.userId)).toEqual([{ id: other.workspaceId }]);
    expect(await seenBy(randomUUID())).toEqual([]);
    const all = [platform.workspaceId, other.workspaceId].sort().map((id) => ({ id }));
    expect(await asService(db, async (client) => (await client.query(ask)).rows)).toEqual(all);

    // a condition that tells what it is given is not asked about others' rows
    const told = await asUser(db, platform.userId, async (client) => {
      await client.query('set local enable_indexscan = off; set local enable_bitmapscan = off');
      await client.query(
        `create or replace function pg_temp.told(id uuid) returns boolean language plpgsql immutable cost 0.0001
             as $$ begin perform set_config('app.told', coalesce(current_setting('app.told', true), '') || id, true); return true; end $$`,
      );
      await client.query(`select count(*) from public.${view} where pg_temp.told(workspace_id)`);
      return (await client.query(`select current_setting('app.told', true) as told`)).rows[0].told as string;
    });
    expect(told).not.toContain(other.workspaceId);

    // and neither the view behind it nor the function that computes it is his
    const tries = [
      `select * from agentd.${view}`,
      `select agentd.refresh_dashboard('${view}')`,
      `refresh materialized view agentd.${view}`,
      `delete from public.${view}`,
      'select * from agentd.dashboard_refreshes',
    ];
    for (const text of tries) {
      const state = await stateOf(asUser(db, platform.userId, (client) => client.query(text)));
      expect([text, state]).toEqual([
        text,
        text.startsWith('delete') ? expect.stringMatching(/42501|55000/) : '42501',
      ]);
    }
    expect(await stateOf(session(db, ['set local role anon'], (client) => client.query(ask)))).toBe('42501');
  }
});

test('a user who is in no workspace any more sees nothing at once, not at the next refresh', async () => {
  const workspace = await insert(db, 'public.workspaces', { name: 'Ours', owner_user_id: platform.userId });
  const guest = await makePlatform(db);
  await insert(db, 'public.workspace_members', {
    workspace_id: workspace,
    user_id: guest.userId,
    role: 'viewer',
  });
  await refresh();
  const seen = () =>
    asUser(
      db,
      guest.userId,
      async (client) =>
        (await client.query('select 1 from public.workspace_overview where workspace_id = $1', [workspace]))
          .rowCount,
    );
  expect(await seen()).toBe(1);
  await db.query('delete from public.workspace_members where workspace_id = $1 and user_id = $2', [
    workspace,
    guest.userId,
  ]);
  expect(await seen()).toBe(0);
});

test('the figures are computed every five minutes, by one of any number of workers', async () => {
  expect(await Promise.all([refresh(), refresh(), refresh()])).toEqual(expect.arrayContaining([0]));
  expect((await refreshes()).map((row) => row.refreshed)).toEqual(VIEWS.map(() => true));
  await later(DASHBOARDS_EVERY_MS - 1);
  expect(await refresh()).toBe(0);
  await later(1);
  const tries = await Promise.all([refresh(), refresh(), refresh()]);
  expect(tries.reduce((sum, count) => sum + count)).toBe(VIEWS.length);
});

test('a database’s clock that is set back does not stop the figures', async () => {
  await refresh();
  await later(-24 * 60 * MINUTE);
  expect(await refresh()).toBe(VIEWS.length);
});

test('without a workspace nothing is computed', async () => {
  await db.query('delete from public.workspaces');
  expect(await refresh()).toBe(0);
  expect((await refreshes()).map((row) => row.refreshed)).toEqual(VIEWS.map(() => false));
});

test('a refresh that fails leaves the old figures with their time, and is tried after a longer pause each time', async () => {
  await refresh();
  const deps = parts();
  await db.query('drop index agentd.workspace_overview_key');
  try {
    let paused = 0;
    for (const pause of [5, 10, 20, 40, 60, 60]) {
      await later(pause * MINUTE - 1);
      // the other views go on as ever
      expect((await refreshDashboards(deps)) < VIEWS.length).toBe(true);
      expect((await refreshes()).at(-1)).toMatchObject({ view_name: 'workspace_overview', failures: paused });
      await later(1);
      await refreshDashboards(deps);
      paused++;
      expect((await refreshes()).at(-1)).toMatchObject({ failures: paused, last_error: '55000' });
    }
    expect(await overviewOf(platform)).toMatchObject({ agents: 1, refreshed_at: NOON });
    const text = await deps.metrics.registry.getSingleMetricAsString('agentd_dashboard_refreshes_total');
    expect(text).toMatch(/view="workspace_overview",outcome="failed"} 6/);
  } finally {
    await db.query('create unique index workspace_overview_key on agentd.workspace_overview (workspace_id)');
  }
  await later(60 * MINUTE);
  await refresh();
  expect((await refreshes()).at(-1)).toMatchObject({ failures: 0, last_error: null });
  expect(await overviewOf(platform)).toMatchObject({ refreshed_at: new Date(now) });
});

test.runIf(onServer)(
  'a worker that stops gives up what it computes, at once and without calling it a failure',
  async () => {
    const holder = await db.pool.connect();
    await holder.query('begin');
    await holder.query('lock table public.task_runs in access exclusive mode');
    const clock = handClock();
    const service = dashboards({ ...parts(), clock });
    try {
      service.start();
      await until('the refresh waits', async () => {
        const waiting = await db.query(
          `select 1 from pg_stat_activity where application_name = 'agentd dashboards' and wait_event_type = 'Lock'`,
        );
        return waiting.length > 0 ? true : null;
      });
      await service.stop();
      const left = await db.query(
        `select 1 from pg_stat_activity where application_name = 'agentd dashboards' and state <> 'idle'`,
      );
      expect(left).toEqual([]);
      expect((await refreshes()).map((row) => row.failures)).toEqual(VIEWS.map(() => 0));
    } finally {
      await holder.query('rollback');
      holder.release();
    }
  },
);

test.runIf(onServer)(
  'the worker’s role refreshes without owning anything, and readers do not wait for it',
  async () => {
    const role = `dashboards_worker_${process.pid}`;
    await db.query(`create role ${role} login in role agentd_worker`);
    const url = new URL(db.url);
    url.username = role;
    const worker = openDatabase({ url: url.toString(), embedded: false });
    const reader = await db.pool.connect();
    try {
      await reader.query('begin');
      await reader.query('select * from public.workspace_overview');
      expect(await refreshDashboards({ ...parts(), db: worker })).toBe(VIEWS.length);
      await reader.query('commit');
    } finally {
      reader.release();
      await worker.close();
      await db.query(`drop role ${role}`);
    }
  },
);

test('the service refreshes on its start where the figures are old, and goes on by its clock', async () => {
  const clock = handClock();
  const service = dashboards({ ...parts(), clock });
  const refreshedAt = async (): Promise<number> => {
    const [row] = await db.query<{ at: Date }>(
      'select max(refreshed_at) as at from agentd.dashboard_refreshes',
    );
    return row?.at.getTime() ?? 0;
  };
  service.start();
  try {
    await until('the first refresh', async () => ((await refreshedAt()) === now ? true : null));
    await later(DASHBOARDS_EVERY_MS);
    await until('the second refresh', async () => {
      await clock.advance(70_000);
      return (await refreshedAt()) === now ? true : null;
    });
  } finally {
    await service.stop();
  }
});

test('a database with rows gets the views filled, and gives them back', async () => {
  const { queues } = loadConfig({});
  const fresh = await emptyDatabase();
  try {
    await migrateUp(fresh, queues);
    while ((await migrateDown(fresh)).every((name) => name !== '0017_dashboards'));
    const there = await makePlatform(fresh);
    await migrateUp(fresh, queues);
    const [row] = await fresh.query('select agents from public.workspace_overview where workspace_id = $1', [
      there.workspaceId,
    ]);
    expect(row).toEqual({ agents: 1 });
  } finally {
    await fresh.dispose();
  }
});
