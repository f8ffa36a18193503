/** Calls that a person must allow: the run waits without a slot, and goes on as was decided. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { Tool } from '../../src/pipelines/agent/tools.ts';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { type TestDaemon, testDaemon } from '../support/daemon.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { makePlatform, type Platform, startTask } from '../support/platform.ts';
import { findRun, listen, openRows, toolCalls, until, waitForRun } from '../support/runs.ts';
import { testTool, testTools } from '../support/tools.ts';

let db: TestDatabase;
let model: ModelServer;
let platform: Platform;
/** Names of the tools that were called, in order. */
let made: string[];

beforeEach(async () => {
  db = await testDatabase();
  model = await startModelServer();
  platform = await makePlatform(db);
  made = [];
});

afterEach(async () => {
  expect(model.rejected).toEqual([]);
  await model.close();
  await db.dispose();
});

function tool(name: string, effect: Tool['effect'], needsApproval = false): Tool {
  const call = (): string => {
    made.push(name);
    return `${name} is done`;
  };
  return testTool(name, effect, call, { needsApproval });
}

function daemonWith(...tools: Tool[]): Promise<TestDaemon> {
  return testDaemon(db, model, { toolSources: [testTools(...tools)] });
}

/** The first answer calls these tools, the next one ends the step. */
function callsOnce(...names: string[]): void {
  model.respond(({ body }) =>
    body.messages.at(-1)?.role === 'tool'
      ? { content: 'the end' }
      : { toolCalls: names.map((name) => ({ name, arguments: { to: 'x' } })) },
  );
}

const waits = (id: string) => waitForRun(db, id, ['waiting', 'failed', 'completed']);

async function decide(name: string, approve: boolean, reason: string | null = null): Promise<boolean> {
  const [row] = await db.query<{ decided: boolean }>(
    `select public.decide_tool_call(id, $2, $3) as decided from public.tool_calls where tool_name = $1`,
    [name, approve, reason],
  );
  return row?.decided ?? false;
}

describe('a tool call that a person must allow', () => {
  test('waits without a job or a slot while the reads of the same turn are made, and is made once when allowed', async () => {
    await using _daemon = await daemonWith(tool('pay', 'write'), tool('look', 'read'));
    callsOnce('pay', 'look');
    const id = await startTask(db, platform, 'x', { approval_policy: 'writes' });
    expect(await waits(id)).toMatchObject({
      status: 'waiting',
      reason_code: 'approval_required',
      wake_at: null,
      job_id: null,
    });
    expect((await findRun(db, id))?.reason).toContain('pay');
    expect(made).toEqual(['look']);
    expect((await toolCalls(db, id)).map((c) => [c.tool_name, c.status])).toEqual([
      ['pay', 'waiting'],
      ['look', 'completed'],
    ]);

    expect(await decide('pay', true)).toBe(true);
    expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', output: { text: 'the end' } });
    expect(made).toEqual(['look', 'pay']);
    expect(model.requests).toHaveLength(2);
    expect(await openRows(db, id)).toEqual([]);
    const [call] = await db.query(
      `select approved, decided_at is not null as decided, status from public.tool_calls where tool_name = 'pay'`,
    );
    expect(call).toEqual({ approved: true, decided: true, status: 'completed' });
    expect(await decide('pay', true)).toBe(false);
  });

  test('is not made when denied, and the model is told why', async () => {
    await using _daemon = await daemonWith(tool('pay', 'write'));
    callsOnce('pay');
    const id = await startTask(db, platform, 'x', { approval_policy: 'writes' });
    await waits(id);
    expect(await decide('pay', false, 'Too much money.')).toBe(true);
    expect((await waitForRun(db, id)).status).toBe('completed');
    expect(made).toEqual([]);
    expect(model.requests.at(-1)?.body.messages.at(-1)).toMatchObject({
      role: 'tool',
      content: 'A person denied this call. Reason: Too much money.',
    });
    expect((await toolCalls(db, id))[0]).toMatchObject({ status: 'denied', error_code: 'denied' });
    const audit = await db.query(
      `select action, object_type, details ->> 'reason' as reason from agentd.audit_log where action in ('deny', 'approve')`,
    );
    expect(audit).toEqual([{ action: 'deny', object_type: 'tool_call', reason: 'Too much money.' }]);
  });

  test('of several, the run goes on when all are decided', async () => {
    await using _daemon = await daemonWith(tool('pay', 'write'), tool('post', 'write'));
    callsOnce('pay', 'post');
    const id = await startTask(db, platform, 'x', { approval_policy: 'writes' });
    await waits(id);
    expect(await decide('post', true)).toBe(true);
    expect((await findRun(db, id))?.status).toBe('waiting');
    expect(await decide('pay', false)).toBe(true);
    expect((await waitForRun(db, id)).status).toBe('completed');
    expect(made).toEqual(['post']);
  });

  test('a source or an agent can ask for it as well; policy all leaves only reads free', async () => {
    await using _daemon = await daemonWith(
      tool('drop', 'read', true),
      tool('sync', 'idempotent'),
      tool('look', 'read'),
    );
    callsOnce('drop', 'sync', 'look');
    const id = await startTask(db, platform, 'x');
    await waits(id);
    expect(made.sort()).toEqual(['look', 'sync']);
    await decide('drop', false);
    await waitForRun(db, id);

    made = [];
    await db.query(`update public.agents set approval_policy = 'all' where id = $1`, [platform.agentId]);
    callsOnce('sync', 'look');
    const other = await startTask(db, platform, 'y', { approval_policy: 'writes' });
    await waits(other);
    expect(made).toEqual(['look']);
  });

  test('the wait does not count against the run’s time, and those who follow runs are told of it', async () => {
    await using _daemon = await daemonWith(tool('pay', 'write'));
    const heard = db.embedded ? null : await listen(db, 'agentd_runs');
    callsOnce('pay');
    const id = await startTask(db, platform, 'x', { approval_policy: 'writes', timeout_seconds: 60 });
    await waits(id);
    if (heard) expect(await until('the wait is told', () => heard.payloads.length > 0)).toBe(true);
    // an hour goes by
    await db.query(
      `update public.task_runs set started_at = started_at - interval '1 hour', paused_at = paused_at - interval '1 hour' where id = $1`,
      [id],
    );
    await decide('pay', true);
    expect((await waitForRun(db, id)).status).toBe('completed');
    const [row] = await db.query<{ waited_ms: number }>(
      'select waited_ms from public.task_runs where id = $1',
      [id],
    );
    expect(row?.waited_ms).toBeGreaterThanOrEqual(3_600_000);
    await heard?.close();
  });

  test('a cancelled run takes no decision any more', async () => {
    await using _daemon = await daemonWith(tool('pay', 'write'));
    callsOnce('pay');
    const id = await startTask(db, platform, 'x', { approval_policy: 'writes' });
    await waits(id);
    await db.query('select public.cancel_run($1)', [id]);
    expect(await decide('pay', true)).toBe(false);
    expect(made).toEqual([]);
    expect((await toolCalls(db, id))[0]?.status).toBe('failed');
  });

  test('only managers of the workspace decide', async () => {
    await using _daemon = await daemonWith(tool('pay', 'write'));
    callsOnce('pay');
    const id = await startTask(db, platform, 'x', { approval_policy: 'writes' });
    await waits(id);
    const stranger = await makePlatform(db);
    const call = db.transaction(async (tx) => {
      await tx.query(`select set_config('app.current_user_id', $1, true)`, [stranger.userId]);
      await tx.query('set local role authenticated');
      await tx.query(`select public.decide_tool_call((select id from public.tool_calls limit 1), true)`);
    });
    // row security hides the call from a stranger, so that not even its id is found
    await expect(call).rejects.toThrow(/not a manager/);
    const ids = await db.query<{ id: string }>('select id from public.tool_calls');
    await expect(
      db.transaction(async (tx) => {
        await tx.query(`select set_config('app.current_user_id', $1, true)`, [stranger.userId]);
        await tx.query('set local role authenticated');
        await tx.query('select public.decide_tool_call($1, true)', [ids[0]?.id]);
      }),
    ).rejects.toThrow(/not a manager/);
    expect((await findRun(db, id))?.status).toBe('waiting');
  });
});
