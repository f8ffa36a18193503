/** A workspace at the limit of its plan: its runs wait, without a slot, or fail, and go on with a larger plan or the next period. */
import { afterEach, beforeEach, expect, test } from 'vitest';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { testDaemon } from '../support/daemon.ts';
import { setDatabaseClock, type TestDatabase, testDatabase } from '../support/database.ts';
import { type Columns, insert, makePlatform, type Platform, startTask } from '../support/platform.ts';
import { until, waitForRun } from '../support/runs.ts';

let db: TestDatabase;
let model: ModelServer;
let platform: Platform;

beforeEach(async () => {
  db = await testDatabase();
  model = await startModelServer();
  platform = await makePlatform(db);
  model.respond(() => ({ content: 'answer', usage: { promptTokens: 100, completionTokens: 20 } }));
});

afterEach(async () => {
  expect(model.rejected).toEqual([]);
  await model.close();
  await db.dispose();
});

const plan = (columns: Columns) => insert(db, 'public.pricing_plans', { name: 'p', ...columns });
const subscribe = (planId: string) =>
  insert(db, 'public.workspace_subscriptions', {
    workspace_id: platform.workspaceId,
    plan_id: planId,
    status: 'active',
  });
const used = async () => {
  const [row] = await db.query<{ used: number }>(
    `select coalesce(sum(used), 0)::integer as used from public.workspace_usage_counters where workspace_id = $1 and metric = 'tokens'`,
    [platform.workspaceId],
  );
  return row?.used ?? 0;
};
/** A first run brings the workspace to its limit. */
async function reachLimit() {
  await waitForRun(db, await startTask(db, platform, 'first'));
  await until('the tokens are counted', async () => (await used()) === 120);
}
const waits = { status: 'waiting', reason_code: 'usage_limit_reached', job_id: null };

test('a run waits without a slot, and goes on once the plan is larger', async () => {
  await using _daemon = await testDaemon(db, model);
  const subscription = await subscribe(await plan({ token_limit: 120 }));
  await reachLimit();
  const run = await startTask(db, platform, 'x');
  const waiting = await waitForRun(db, run, ['waiting']);
  expect(waiting).toMatchObject(waits);
  expect(waiting.reason).toContain('120 of the 120 tokens');
  expect(model.requests).toHaveLength(1);
  await db.query('update public.workspace_subscriptions set plan_id = $2 where id = $1', [
    subscription,
    await plan({ token_limit: 1_000 }),
  ]);
  expect((await waitForRun(db, run)).status).toBe('completed');
});

test('a run goes on when the limit of its plan is raised, and when the next period begins', async () => {
  await using _daemon = await testDaemon(db, model);
  const standard = await plan({ token_limit: 100, is_default: true });
  await reachLimit();
  const run = await startTask(db, platform, 'x');
  const waiting = await waitForRun(db, run, ['waiting']);
  expect(waiting).toMatchObject(waits);
  // by itself it looks again now and then
  expect((waiting.wake_at as Date).getTime() - Date.now()).toBeLessThan(60_000);
  await db.query('update public.pricing_plans set token_limit = 121 where id = $1', [standard]);
  expect((await waitForRun(db, run)).status).toBe('completed');
  await until('the tokens are counted', async () => (await used()) === 240);

  const next = await startTask(db, platform, 'y');
  expect(await waitForRun(db, next, ['waiting'])).toMatchObject(waits);
  const [period = { ends: new Date(0) }] = await db.query<{ ends: Date }>(
    'select period_end as ends from agentd.usage_period($1, agentd.now())',
    [platform.workspaceId],
  );
  await setDatabaseClock(db, new Date(period.ends.getTime() + 1_000));
  expect((await waitForRun(db, next)).status).toBe('completed');
  await setDatabaseClock(db, null);
});

test('a run fails where the plan, or the workspace, says so', async () => {
  await using _daemon = await testDaemon(db, model);
  const standard = await plan({ token_limit: 1, is_default: true, limit_policy: 'fail' });
  await reachLimit();
  const failed = await waitForRun(db, await startTask(db, platform, 'x'));
  expect(failed).toMatchObject({ status: 'failed', reason_code: 'usage_limit_reached' });
  expect(failed.reason).toContain('with a larger plan');
  await db.query(`update public.pricing_plans set limit_policy = 'wait' where id = $1`, [standard]);
  await db.query(
    `update public.workspaces set settings = settings || '{"limit_policy": "fail"}' where id = $1`,
    [platform.workspaceId],
  );
  expect((await waitForRun(db, await startTask(db, platform, 'y'))).status).toBe('failed');
  expect(model.requests).toHaveLength(1);
});

test('a run that comes to the limit between two steps keeps what it has, and goes on after it', async () => {
  await using _daemon = await testDaemon(db, model);
  const standard = await plan({ token_limit: 120, is_default: true });
  model.respond(async (_request, index) => {
    // another uses the rest while the first step is under way
    if (index === 0) {
      await db.query(`select agentd.record_usage($1, 'tokens', 120, 'other')`, [platform.workspaceId]);
      await until('the tokens are counted', async () => (await used()) === 120);
    }
    return { content: 'answer', usage: { promptTokens: 100, completionTokens: 20 } };
  });
  const run = await startTask(db, platform, 'x', {}, [{}, {}]);
  expect(await waitForRun(db, run, ['waiting', 'completed'])).toMatchObject({ ...waits, turns: 1 });
  expect(model.requests).toHaveLength(1);
  await db.query('update public.pricing_plans set token_limit = null where id = $1', [standard]);
  expect(await waitForRun(db, run)).toMatchObject({ status: 'completed', turns: 2 });
  expect(model.requests).toHaveLength(2);
});
