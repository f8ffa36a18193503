/** Budgets: no call is made beyond them, whatever dies, and what they count is what the journal has. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { reserveBudgets } from '../../src/db/budgets.ts';
import { sweepBudgets } from '../../src/db/reconcile.ts';
import type { ToolSource } from '../../src/pipelines/agent/tools.ts';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { testDaemon } from '../support/daemon.ts';
import { onServer, setDatabaseClock, type TestDatabase, testDatabase } from '../support/database.ts';
import {
  type Columns,
  insert,
  makeAgent,
  makePlatform,
  makeTask,
  type Platform,
  startRun,
  startTask,
} from '../support/platform.ts';
import { findRun, loseLease, modelCalls, openRows, stepRuns, until, waitForRun } from '../support/runs.ts';
import { testTool, testTools } from '../support/tools.ts';

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

const budget = (columns: Columns): Promise<string> =>
  insert(db, 'public.budgets', { workspace_id: platform.workspaceId, ...columns });

type Counter = Record<
  | 'turns'
  | 'tool_calls'
  | 'tokens'
  | 'cost_micros'
  | 'reserved_turns'
  | 'reserved_tokens'
  | 'reserved_tool_calls',
  number
>;

async function counter(id: string): Promise<Counter> {
  const [row] = await db.query<Counter>('select * from agentd.budget_counters where budget_id = $1', [id]);
  if (!row) throw new Error(`Budget ${id} has no counter.`);
  return row;
}

/** A model that calls a tool for ever. */
function neverEnds(): ToolSource {
  let calls = 0;
  model.respond(() => ({ toolCalls: [{ name: 'next', arguments: {} }] }));
  return testTools(testTool('next', 'read', () => `result ${calls++}`));
}

describe('a budget of a run', () => {
  test.each([
    ['turns', { max_turns: 2 }, 2],
    ['tool calls', { max_tool_calls: 3 }, 4],
  ])(
    'in %s ends the run before the call that would pass it, and keeps what there is',
    async (metric, limits, turns) => {
      await using _daemon = await testDaemon(db, model, { toolSources: [neverEnds()] });
      await budget({ period: 'run', ...limits });
      const id = await startTask(db, platform, 'x');
      const run = await waitForRun(db, id);
      expect(run).toMatchObject({ status: 'failed', reason_code: 'budget_exhausted', turns });
      expect(run.reason).toContain(metric);
      expect(run.reason).toContain('Raise it in budgets');
      expect(model.requests).toHaveLength(turns);
      expect(await openRows(db, id)).toEqual([]);
    },
  );

  test('in tokens or money counts what the calls before really used', async () => {
    await using _daemon = await testDaemon(db, model);
    await db.query('update public.agents set max_tokens = 100 where id = $1', [platform.agentId]);
    await budget({ period: 'run', max_tokens: 550 });
    const id = await startTask(db, platform, 'x', {}, [{}, {}, {}, {}]);
    const run = await waitForRun(db, id);
    // 120 a call are used; the fourth might pass 550 with the 270 or so that it may need
    expect(run).toMatchObject({ status: 'failed', reason_code: 'budget_exhausted', turns: 3 });
    expect(run.output).toEqual({ text: 'answer', partial: true });
    expect((await stepRuns(db, id)).map((step) => step.status)).toEqual([
      'completed',
      'completed',
      'completed',
      'failed',
    ]);
  });

  test('in seconds bounds its wall time', async () => {
    model.respond(() => ({ hang: true }));
    await using _daemon = await testDaemon(db, model);
    await budget({ period: 'run', max_seconds: 1 });
    const run = await waitForRun(db, await startTask(db, platform, 'x'));
    expect(run).toMatchObject({ status: 'failed', reason_code: 'budget_exhausted' });
    expect(run.reason).toContain('max_seconds');
  });

  test('that is to wait lets the run go on when it is raised', async () => {
    await using _daemon = await testDaemon(db, model);
    const id = await budget({ period: 'run', max_turns: 1, when_exhausted: 'wait' });
    const run = await startTask(db, platform, 'x', {}, [{}, {}]);
    expect(await waitForRun(db, run, ['waiting'])).toMatchObject({
      reason_code: 'budget_exhausted',
      job_id: null,
    });
    await db.query('update public.budgets set max_turns = 2 where id = $1', [id]);
    expect((await waitForRun(db, run)).status).toBe('completed');
    expect(model.requests).toHaveLength(2);
  });
});

describe('a budget of a month', () => {
  test('bounds all runs of its scope together, to the call, on two daemons', async () => {
    await using _one = await testDaemon(db, model);
    await using _two = await testDaemon(db, model);
    const id = await budget({ max_turns: 10 });
    const task = await makeTask(db, platform, {}, [{}, {}]);
    const runs = await Promise.all(Array.from({ length: 12 }, () => startRun(db, task)));
    const ended = await Promise.all(runs.map((run) => waitForRun(db, run)));
    const made = ended.reduce((sum, run) => sum + run.turns, 0);
    expect(made).toBe(10);
    expect(model.requests).toHaveLength(10);
    for (const run of ended.filter((one) => one.status === 'failed'))
      expect(run.reason_code).toBe('budget_exhausted');
    expect(await counter(id)).toMatchObject({
      turns: 10,
      tokens: 1_200,
      reserved_turns: 0,
      reserved_tokens: 0,
    });
    expect(await db.query('select * from agentd.budget_reservations')).toEqual([]);
  });

  test('of an agent or a task bounds only that one', async () => {
    await using _daemon = await testDaemon(db, model);
    const other = { ...platform, agentId: await makeAgent(db, platform) };
    const task = await makeTask(db, platform);
    await budget({ agent_id: platform.agentId, max_turns: 1 });
    await budget({ task_id: task, max_turns: 0 });
    expect((await waitForRun(db, await startRun(db, task))).reason_code).toBe('budget_exhausted');
    expect((await waitForRun(db, await startTask(db, platform, 'a'))).status).toBe('completed');
    expect((await waitForRun(db, await startTask(db, platform, 'b'))).reason_code).toBe('budget_exhausted');
    expect((await waitForRun(db, await startTask(db, other, 'c'))).status).toBe('completed');
  });

  test('begins with what the month has used already', async () => {
    await using _daemon = await testDaemon(db, model);
    await waitForRun(db, await startTask(db, platform, 'before'));
    const id = await budget({ max_turns: 2 });
    expect((await waitForRun(db, await startTask(db, platform, 'a'))).status).toBe('completed');
    expect((await waitForRun(db, await startTask(db, platform, 'b'))).reason_code).toBe('budget_exhausted');
    expect((await counter(id)).turns).toBe(2);
  });

  test('in money counts the cost of the calls', async () => {
    await using _daemon = await testDaemon(db, model);
    const id = await budget({ max_cost_micros: 1_000_000 });
    const run = await waitForRun(db, await startTask(db, platform, 'x'));
    expect(run.cost_micros).toBeGreaterThan(0);
    expect((await counter(id)).cost_micros).toBe(run.cost_micros);
  });

  test('is not counted twice by a takeover, and its reservation goes over to the next worker', async () => {
    const id = await budget({ max_turns: 2 });
    model.respond((_, index) => (index === 0 ? { content: 'one' } : { hang: true }));
    const first = await testDaemon(db, model);
    const run = await startTask(db, platform, 'x', {}, [{}, {}]);
    await model.waitForRequest(() => true, 2);
    expect(await counter(id)).toMatchObject({ turns: 1, reserved_turns: 1 });
    await loseLease(db, run);
    model.respond(() => ({ content: 'two', usage: { promptTokens: 100, completionTokens: 20 } }));
    await using _second = await testDaemon(db, model);
    expect((await waitForRun(db, run)).status).toBe('completed');
    await first.stop();
    expect(await counter(id)).toMatchObject({ turns: 2, reserved_turns: 0 });
    expect((await modelCalls(db, run)).map((call) => call.status)).toEqual(['completed', 'completed']);
  });

  test('gives back what was set aside for a run that is cancelled', async () => {
    const id = await budget({ max_turns: 5 });
    model.respond(() => ({ hang: true }));
    await using _daemon = await testDaemon(db, model);
    const run = await startTask(db, platform, 'x');
    await model.waitForRequest();
    await db.query('select public.cancel_run($1)', [run]);
    await until('the sweep found it', async () => {
      await sweepBudgets(db);
      return (await counter(id)).reserved_turns === 0;
    });
    expect(await counter(id)).toMatchObject({ turns: 0, tokens: 0 });
  });

  test('that is to wait lets the run go on when the month ends', async () => {
    await using _daemon = await testDaemon(db, model);
    await waitForRun(db, await startTask(db, platform, 'before'));
    await budget({ max_turns: 1, when_exhausted: 'wait' });
    const run = await startTask(db, platform, 'x');
    const waiting = await waitForRun(db, run, ['waiting']);
    const [month = { ends: new Date(0) }] = await db.query<{ ends: Date }>(
      'select period_end as ends from agentd.month_bounds($1, agentd.now())',
      [platform.workspaceId],
    );
    // it looks again by itself now and then
    expect((waiting.wake_at as Date).getTime() - Date.now()).toBeLessThan(60_000);
    await setDatabaseClock(db, new Date(month.ends.getTime() + 1_000));
    expect((await waitForRun(db, run)).status).toBe('completed');
    await setDatabaseClock(db, null);
  });

  test('refuses whole or not at all where two budgets bound a call', async () => {
    const wide = await budget({ max_turns: 10 });
    const narrow = await budget({ agent_id: platform.agentId, max_tokens: 100 });
    const run = await startTask(db, platform, 'x');
    const ask = { run, budgets: [wide, narrow], turns: 1, tool_calls: 0, cost_micros: 0 };
    const [first, second, again] = await reserveBudgets(db, [
      { ...ask, key: 'a', tokens: 60 },
      { ...ask, key: 'b', tokens: 60 },
      { ...ask, key: 'a', tokens: 60 },
    ]);
    expect([first, again]).toEqual([null, null]);
    expect(second).toMatchObject({
      budget_id: narrow,
      metric: 'tokens',
      max_amount: 100,
      used_amount: 60,
      asked_amount: 60,
    });
    expect((await counter(wide)).reserved_turns).toBe(1);
  });

  test.runIf(onServer)('server-only: many at once never pass it and never stop short of it', async () => {
    const id = await budget({ max_turns: 100 });
    const run = await startTask(db, platform, 'x');
    const answers = await Promise.all(
      Array.from({ length: 40 }, (_, batch) =>
        reserveBudgets(
          db,
          Array.from({ length: 5 }, (_, i) => ({
            key: `${batch}:${i}`,
            run,
            budgets: [id],
            turns: 1,
            tool_calls: 0,
            tokens: 10,
            cost_micros: 0,
          })),
        ),
      ),
    );
    expect(answers.flat().filter((answer) => answer === null)).toHaveLength(100);
    expect((await counter(id)).reserved_turns).toBe(100);
  });

  test('is shown to members of the workspace and to nobody else', async () => {
    await using _daemon = await testDaemon(db, model);
    await budget({ max_turns: 3 });
    await waitForRun(db, await startTask(db, platform, 'x'));
    const seen = (userId: string): Promise<unknown[]> =>
      db.transaction(async (tx) => {
        await tx.query(`select set_config('app.current_user_id', $1, true)`, [userId]);
        await tx.query('set local role authenticated');
        return tx.query('select metric, max_amount, used_amount from public.get_budget_usage($1)', [
          platform.workspaceId,
        ]);
      });
    expect(await seen(platform.userId)).toEqual([{ metric: 'turns', max_amount: 3, used_amount: 1 }]);
    expect(await seen((await makePlatform(db)).userId)).toEqual([]);
  });
});

describe('a budget that is changed while runs go on', () => {
  test('raised before the run waits, it lets it go on all the same', async () => {
    const id = await budget({ period: 'run', max_turns: 1, when_exhausted: 'wait' });
    const { promise, resolve } = Promise.withResolvers<void>();
    model.respond((_, index) => (index === 0 ? { content: 'one', delay: promise } : { content: 'two' }));
    await using _daemon = await testDaemon(db, model);
    const run = await startTask(db, platform, 'x', {}, [{}, {}]);
    await model.waitForRequest();
    await db.query('update public.budgets set max_turns = 50 where id = $1', [id]);
    resolve();
    const waiting = await waitForRun(db, run, ['waiting']);
    expect(waiting.wake_at).not.toBeNull();
    // the half minute is over
    await db.query('update public.task_runs set wake_at = agentd.now() where id = $1', [run]);
    expect((await waitForRun(db, run)).status).toBe('completed');
  });

  test('made while a run goes on, it counts what that run spends', async () => {
    const { promise, resolve } = Promise.withResolvers<void>();
    model.respond(({ userText }) =>
      userText.includes('slow') ? { content: 'late', delay: promise } : { content: 'quick' },
    );
    await using _daemon = await testDaemon(db, model);
    const slow = await startTask(db, platform, 'slow');
    await model.waitForRequest();
    const id = await budget({ max_turns: 100 });
    await waitForRun(db, await startTask(db, platform, 'quick'));
    resolve();
    await waitForRun(db, slow);
    const [used] = await db.query<{ tokens: number }>(
      'select sum(prompt_tokens + completion_tokens)::bigint as tokens from public.llm_calls',
    );
    expect(await counter(id)).toMatchObject({ turns: 2, tokens: used?.tokens, reserved_turns: 0 });
  });

  test('its scope and period stay as they are', async () => {
    const id = await budget({ max_turns: 1 });
    await expect(db.query(`update public.budgets set period = 'run' where id = $1`, [id])).rejects.toThrow(
      /do not change/,
    );
  });
});

describe('what a budget can’t bound', () => {
  test('a call that alone needs more than the whole budget fails the run, also where it is to wait', async () => {
    await using _daemon = await testDaemon(db, model);
    await budget({ max_tokens: 10, when_exhausted: 'wait' });
    expect(await waitForRun(db, await startTask(db, platform, 'x'))).toMatchObject({
      status: 'failed',
      reason_code: 'budget_exhausted',
    });
  });

  test('a model without a price is not called under a budget in money', async () => {
    await using _daemon = await testDaemon(db, model);
    await db.query(`update public.agents set model = 'house-model-7' where id = $1`, [platform.agentId]);
    await budget({ max_cost_micros: 1_000_000 });
    expect(await waitForRun(db, await startTask(db, platform, 'x'))).toMatchObject({
      status: 'failed',
      reason_code: 'no_price',
    });
    expect(model.requests).toEqual([]);
  });

  test('an agent without a bound of its own gets that of what was set aside', async () => {
    await using _daemon = await testDaemon(db, model);
    await db.query('update public.agents set max_tokens = null where id = $1', [platform.agentId]);
    await budget({ max_tokens: 100_000 });
    await waitForRun(db, await startTask(db, platform, 'x'));
    expect(model.requests[0]?.body.max_tokens).toBe(4_096);
    await db.query('update public.agents set max_tokens = -5 where id = $1', [platform.agentId]);
    await waitForRun(db, await startTask(db, platform, 'y'));
    expect(model.requests[1]?.body.max_tokens).toBe(4_096);
  });
});

test('a run that waits for a budget keeps nothing of it', async () => {
  model.respond(() => ({
    toolCalls: Array.from({ length: 5 }, (_, i) => ({ name: 'next', arguments: { i } })),
  }));
  const source = testTools(testTool('next', 'read', () => 'x'));
  await using _daemon = await testDaemon(db, model, { toolSources: [source] });
  const id = await budget({ max_tool_calls: 3, when_exhausted: 'wait' });
  const run = await startTask(db, platform, 'x');
  expect(await waitForRun(db, run, ['waiting'])).toMatchObject({ reason_code: 'budget_exhausted' });
  expect(await counter(id)).toMatchObject({ tool_calls: 0, reserved_tool_calls: 0, turns: 1 });
});

test('a run without budgets costs no statement of theirs', async () => {
  await using _daemon = await testDaemon(db, model);
  const id = await startTask(db, platform, 'x');
  expect((await waitForRun(db, id)).status).toBe('completed');
  expect(await findRun(db, id)).toMatchObject({ turns: 1 });
  expect(await db.query('select * from agentd.budget_counters')).toEqual([]);
});
