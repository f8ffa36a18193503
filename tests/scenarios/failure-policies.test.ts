/** What a failure does: to the run, to the task, and what a person can do about it afterwards. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { Tool } from '../../src/pipelines/agent/tools.ts';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { type TestDaemon, testDaemon } from '../support/daemon.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, makeTask, type Platform, startRun, startTask } from '../support/platform.ts';
import {
  findRun,
  loseLease,
  modelCalls,
  openRows,
  stepRuns,
  toolCalls,
  waitForRun,
} from '../support/runs.ts';
import { testTool, testTools } from '../support/tools.ts';

let db: TestDatabase;
let model: ModelServer;
let platform: Platform;

beforeEach(async () => {
  db = await testDatabase();
  model = await startModelServer();
  platform = await makePlatform(db);
});

afterEach(async () => {
  expect(model.rejected).toEqual([]);
  await model.close();
  await db.dispose();
});

function daemonWith(...tools: Tool[]): Promise<TestDaemon> {
  return testDaemon(db, model, { toolSources: [testTools(...tools)] });
}

function reader(name: string, answer: (call: number) => string): Tool {
  let calls = 0;
  return testTool(name, 'read', () => answer(calls++));
}

/** A run of three steps of which the second is refused by the model. */
async function secondFails(policy: string): Promise<string> {
  model.respond(({ userText }) =>
    userText.includes('Part two.') ? { refusal: 'No.' } : { content: `said ${userText.slice(-200)}` },
  );
  const task = await makeTask(db, platform, {}, [
    { instructions: 'Part one.' },
    { instructions: 'Part two.' },
    { instructions: 'Part three.', previous: true },
  ]);
  await db.query('update public.task_steps set on_failure = $2 where task_id = $1 and step_order = 2', [
    task,
    policy,
  ]);
  return startRun(db, task);
}

describe('a step whose last attempt failed', () => {
  test('stops the run unless it says otherwise; what the steps before gave is kept', async () => {
    await using _daemon = await daemonWith();
    const id = await secondFails('stop');
    const run = await waitForRun(db, id);
    expect(run).toMatchObject({ status: 'failed', reason_code: 'refusal' });
    expect(run.output).toMatchObject({ partial: true, text: expect.stringContaining('Part one.') });
    expect((await stepRuns(db, id)).map((s) => s.status)).toEqual(['completed', 'failed']);
  });

  test.each([
    ['skip', 'skipped'],
    ['continue', 'failed'],
  ])('goes on with %s, says so, and the later steps see what there is', async (policy, status) => {
    await using _daemon = await daemonWith();
    const id = await secondFails(policy);
    const run = await waitForRun(db, id);
    expect(run).toMatchObject({ status: 'completed', reason_code: 'refusal' });
    expect(run.reason).toContain('Step 2');
    expect((await stepRuns(db, id)).map((s) => s.status)).toEqual(['completed', status, 'completed']);
    const third = model.requests.at(-1)?.userText ?? '';
    expect(third).toContain('said');
    expect(third.includes('step 2')).toBe(policy === 'continue');
    expect(await openRows(db, id)).toEqual([]);
  });

  test('is not tried again by a worker that takes the run over', async () => {
    await using _daemon = await daemonWith();
    const id = await secondFails('continue');
    let asked = 0;
    model.respond(({ userText }) => {
      if (userText.includes('Part two.')) return { refusal: 'No.' };
      if (!userText.includes('Part three.')) return { content: 'one' };
      return asked++ === 0 ? { hang: true } : { content: 'three' };
    });
    await model.waitForRequest((r) => r.userText.includes('Part three.'));
    await loseLease(db, id);
    expect(await waitForRun(db, id)).toMatchObject({
      status: 'completed',
      output: { text: 'three' },
      lease_epoch: 2,
    });
    expect(model.requests.filter((r) => r.userText.includes('Part two.'))).toHaveLength(1);
  });

  test('fails the run where no step was completed at all', async () => {
    await using _daemon = await daemonWith();
    model.respond(() => ({ refusal: 'No.' }));
    const task = await makeTask(db, platform, {}, [{}, {}]);
    await db.query(`update public.task_steps set on_failure = 'skip' where task_id = $1`, [task]);
    const id = await startRun(db, task);
    expect(await waitForRun(db, id)).toMatchObject({
      status: 'failed',
      reason_code: 'refusal',
      output: null,
    });
  });
});

describe('a model that goes in circles', () => {
  test('is stopped when the same call gave the same result five times', async () => {
    model.respond(() => ({ toolCalls: [{ name: 'look', arguments: { at: 1 } }] }));
    await using _daemon = await daemonWith(reader('look', () => 'nothing new'));
    const id = await startTask(db, platform, 'x');
    const run = await waitForRun(db, id);
    expect(run).toMatchObject({ status: 'failed', reason_code: 'loop', turns: 5, tool_calls: 5 });
    expect(run.reason).toContain('look');
  });

  test('may ask the same as long as the answers differ', async () => {
    model.respond((_, index) =>
      index < 8 ? { toolCalls: [{ name: 'look', arguments: {} }] } : { content: 'done' },
    );
    await using _daemon = await daemonWith(reader('look', (call) => `state ${call}`));
    expect((await waitForRun(db, await startTask(db, platform, 'x'))).status).toBe('completed');
  });

  test('gets no more than 64 calls of one answer made', async () => {
    model.respond((_, index) =>
      index === 0
        ? { toolCalls: Array.from({ length: 70 }, (_, i) => ({ name: 'look', arguments: { i } })) }
        : { content: 'done' },
    );
    await using _daemon = await daemonWith(reader('look', (call) => `${call}`));
    const id = await startTask(db, platform, 'x');
    expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', tool_calls: 64 });
    const refused = (await toolCalls(db, id)).filter((c) => c.error_code === 'too_many_calls');
    expect(refused).toHaveLength(6);
  });
});

describe('a conversation that outgrows its window', () => {
  test('is shortened, the journal says how, and the run ends well', async () => {
    await db.query('update public.agents set context_window_size = 3000, max_tokens = 500 where id = $1', [
      platform.agentId,
    ]);
    model.respond((_, index) =>
      index < 12 ? { toolCalls: [{ name: 'look', arguments: { index } }] } : { content: 'done' },
    );
    await using _daemon = await daemonWith(reader('look', (call) => `${call} `.repeat(700)));
    const id = await startTask(db, platform, 'x');
    expect((await waitForRun(db, id)).status).toBe('completed');
    const calls = await db.query<{ left_out: string[] | null }>(
      'select left_out from public.llm_calls where run_id = $1 order by turn',
      [id],
    );
    expect(calls[0]?.left_out).toBeNull();
    expect(calls.at(-1)?.left_out?.join()).toMatch(/earlier turns/);
    // the strict server has refused none of them: no tool message was orphaned
    for (const { body } of model.requests)
      expect(JSON.stringify(body.messages).length / 4).toBeLessThan(3_000);
  });

  test('that the provider finds too long is asked again, shorter', async () => {
    const small = await startModelServer({ contextTokens: 2_500 });
    small.respond(({ body }) =>
      body.messages.filter((m) => m.role === 'tool').length < 2 && body.messages.length < 6
        ? { toolCalls: [{ name: 'look', arguments: { at: body.messages.length } }] }
        : { content: 'done' },
    );
    await db.query('update public.agents set context_window_size = 100000 where id = $1', [platform.agentId]);
    const source = testTools(reader('look', (call) => `${call} `.repeat(4_000)));
    await using _daemon = await testDaemon(db, small, { toolSources: [source] });
    const id = await startTask(db, platform, 'x');
    expect((await waitForRun(db, id)).status).toBe('completed');
    expect(small.rejected.length).toBeGreaterThan(0);
    expect(small.rejected.every((r) => /context/i.test(r.message))).toBe(true);
    expect((await modelCalls(db, id)).every((call) => call.status === 'completed')).toBe(true);
    await small.close();
  });
});

describe('a scheduled task that fails again and again', () => {
  /** So many occurrences of the task have ended like this, one a minute. */
  async function ended(task: string, ...statuses: string[]): Promise<void> {
    for (const [i, status] of statuses.entries()) {
      const id = await insert(db, 'public.task_runs', {
        task_id: task,
        trigger: 'schedule',
        scheduled_for: new Date(Date.UTC(2026, 0, 1, 0, i)),
        status: 'queued',
        wake_at: new Date(Date.UTC(2100, 0, 1)),
      });
      await db.query(
        `update public.task_runs set status = $2::public.run_status, finished_at = agentd.now() where id = $1`,
        [id, status],
      );
    }
  }

  async function failOnce(task: string): Promise<void> {
    const id = await insert(db, 'public.task_runs', {
      task_id: task,
      trigger: 'schedule',
      scheduled_for: new Date(Date.UTC(2026, 0, 2)),
    });
    expect((await waitForRun(db, id)).status).toBe('failed');
  }

  const stateOf = async (task: string): Promise<unknown> => {
    const [row] = await db.query('select status, reason_code, reason from public.agent_tasks where id = $1', [
      task,
    ]);
    return row;
  };

  const cron = { cron_expression: '0 0 1 1 *', pause_after_failures: 3, overlap_policy: 'allow' };

  test('is paused with the reason of the last one', async () => {
    model.respond(() => ({ refusal: 'No.' }));
    const task = await makeTask(db, platform, cron);
    await ended(task, 'completed', 'failed', 'failed');
    await using _daemon = await daemonWith();
    await failOnce(task);
    expect(await stateOf(task)).toMatchObject({
      status: 'paused',
      reason_code: 'repeated_failures',
      reason: expect.stringMatching(/^3 scheduled runs in a row failed, the last one with refusal/),
    });
  });

  test('is left alone where a run between went well, or the task asks for that', async () => {
    model.respond(() => ({ refusal: 'No.' }));
    await using _daemon = await daemonWith();
    const task = await makeTask(db, platform, cron);
    await ended(task, 'failed', 'completed', 'failed');
    await failOnce(task);
    expect(await stateOf(task)).toMatchObject({ status: 'active' });
    const never = await makeTask(db, platform, { ...cron, pause_after_failures: null });
    await ended(never, 'failed', 'failed', 'failed', 'failed');
    await failOnce(never);
    expect(await stateOf(never)).toMatchObject({ status: 'active' });
  });

  test('that a person resumes starts to count anew, and both are in the audit log', async () => {
    model.respond(() => ({ refusal: 'No.' }));
    await using _daemon = await daemonWith();
    const task = await makeTask(db, platform, cron);
    await ended(task, 'failed', 'failed', 'failed');
    await db.query(`update public.agent_tasks set status = 'paused' where id = $1`, [task]);
    await db.query(`update public.agent_tasks set status = 'active' where id = $1`, [task]);
    await failOnce(task);
    expect(await stateOf(task)).toMatchObject({ status: 'active', reason_code: null });
    const audit = await db.query(`select action from agentd.audit_log where object_id = $1 order by id`, [
      task,
    ]);
    expect(audit).toEqual([{ action: 'pause' }, { action: 'resume' }]);
  });
});

describe('retry_run', () => {
  test('makes a new run with the same input of the task as it is now, and says which one it retries', async () => {
    model.respond(() => ({ refusal: 'No.' }));
    await using _daemon = await daemonWith();
    const task = await makeTask(db, platform, { instructions: 'old words' });
    const failed = await startRun(db, task, { country: 'Peru' });
    await waitForRun(db, failed);
    await db.query(`update public.agent_tasks set instructions = 'new words' where id = $1`, [task]);
    model.respond(() => ({ content: 'well' }));
    const [row] = await db.query<{ id: string }>('select public.retry_run($1) as id', [failed]);
    const again = row?.id as string;
    expect(await waitForRun(db, again)).toMatchObject({ status: 'completed', output: { text: 'well' } });
    const [made] = await db.query(
      'select retry_of_run_id, trigger, input from public.task_runs where id = $1',
      [again],
    );
    expect(made).toEqual({ retry_of_run_id: failed, trigger: 'retry', input: { country: 'Peru' } });
    expect(model.requests.at(-1)?.userText).toContain('new words');
    expect((await findRun(db, failed))?.status).toBe('failed');
  });

  test('is one retry at a time: a double click is not paid for twice', async () => {
    const failed = await startTask(db, platform, 'x');
    await db.query(`update public.task_runs set status = 'cancelled' where id = $1`, [failed]);
    await db.query('select public.retry_run($1)', [failed]);
    await expect(db.query('select public.retry_run($1)', [failed])).rejects.toThrow(
      /is being retried already/,
    );
  });

  test('refuses a run that has not ended, one whose task is gone, and strangers', async () => {
    const id = await startTask(db, platform, 'x');
    await expect(db.query('select public.retry_run($1)', [id])).rejects.toThrow(
      /has not ended: it is queued/,
    );
    await db.query('delete from public.agent_tasks');
    await expect(db.query('select public.retry_run($1)', [id])).rejects.toThrow(/task of run .* was deleted/);
    const stranger = await makePlatform(db);
    await expect(
      db.transaction(async (tx) => {
        await tx.query(`select set_config('app.current_user_id', $1, true)`, [stranger.userId]);
        await tx.query('set local role authenticated');
        await tx.query('select public.retry_run($1)', [id]);
      }),
    ).rejects.toThrow(/not a manager/);
  });
});
