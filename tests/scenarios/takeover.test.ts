import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { claimRuns, renewLeases, writeCheckpoints } from '../../src/db/runs.ts';
import { RunJournal, RunLost } from '../../src/pipelines/agent/journal.ts';
import type { Tool, ToolContext, ToolSource } from '../../src/pipelines/agent/tools.ts';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { startDaemonProcess, testDaemon } from '../support/daemon.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, makeTask, type Platform, startRun, startTask } from '../support/platform.ts';
import {
  findRun,
  jobOutcomes,
  loseLease,
  modelCalls,
  openRows,
  stepRuns,
  toolCalls,
  until,
  waitForRun,
} from '../support/runs.ts';

let db: TestDatabase;
let model: ModelServer;
let platform: Platform;
let channel: string;

beforeEach(async () => {
  db = await testDatabase();
  model = await startModelServer();
  platform = await makePlatform(db);
  channel = await insert(db, 'public.chat_channels', { workspace_id: platform.workspaceId, name: 'results' });
});

afterEach(async () => {
  expect(model.rejected).toEqual([]);
  await model.close();
  await db.dispose();
});

/** How often each call was sent, by its key. */
function requestsByKey(): Map<string, number> {
  const counts = new Map<string, number>();
  for (const { idempotencyKey } of model.requests) {
    counts.set(idempotencyKey ?? '', (counts.get(idempotencyKey ?? '') ?? 0) + 1);
  }
  return counts;
}

describe.skipIf(!onServer)('server-only: a worker that is killed', () => {
  test('another one goes on after its last finished calls, and each run speaks once', async () => {
    const { promise: killed, resolve: release } = Promise.withResolvers<void>();
    model.respond(({ userText }) =>
      userText.includes('Second part.') ? { content: 'two', delay: killed } : { content: 'one' },
    );
    await using first = await startDaemonProcess(db, model);
    const taskId = await makeTask(db, platform, { target_channel_id: channel, overlap_policy: 'allow' }, [
      { instructions: 'First part.' },
      { instructions: 'Second part.' },
    ]);
    const ids = await Promise.all([1, 2, 3].map(() => startRun(db, taskId)));
    await model.waitForRequest((r) => r.userText.includes('Second part.'), ids.length);
    await first.kill();
    release();

    // Its lease of fifteen seconds passes.
    await db.query(
      `update public.task_runs set lease_expires_at = agentd.now() - interval '1 second' where status = 'running'`,
    );
    await using _second = await testDaemon(db, model);
    for (const id of ids) {
      expect(await waitForRun(db, id)).toMatchObject({
        status: 'completed',
        output: { text: 'two' },
        lease_epoch: 2,
      });
      const [one, two] = await modelCalls(db, id);
      expect(requestsByKey().get(one?.idempotency_key ?? '')).toBe(1);
      expect(requestsByKey().get(two?.idempotency_key ?? '')).toBe(2);
      expect((await stepRuns(db, id)).map((s) => [s.status, s.attempt])).toEqual([
        ['completed', 1],
        ['completed', 1],
      ]);
      expect(await openRows(db, id)).toEqual([]);
      const messages = await db.query('select content from public.chat_messages where run_id = $1', [id]);
      expect(messages).toEqual([{ content: 'two' }]);
      const usage = await db.query<{ events: number }>(
        `select count(*)::integer as events from public.usage_events where run_id = $1 and metric = 'tokens'`,
        [id],
      );
      expect(usage[0]?.events).toBe(2);
    }
  });

  test('killed again and again, the work still ends, every run with one message', async () => {
    const taskId = await makeTask(db, platform, { target_channel_id: channel, overlap_policy: 'allow' }, [
      {},
      {},
      {},
    ]);
    const ids = await Promise.all(Array.from({ length: 6 }, () => startRun(db, taskId)));
    for (const after of [3, 4]) {
      const before = model.requests.length;
      await using worker = await startDaemonProcess(db, model);
      await model.waitForRequest(() => true, before + after);
      await worker.kill();
      await db.query(
        `update public.task_runs set lease_expires_at = agentd.now() - interval '1 second' where status = 'running'`,
      );
    }
    await using _last = await testDaemon(db, model);
    for (const id of ids) {
      expect((await waitForRun(db, id)).status).toBe('completed');
      expect(await openRows(db, id)).toEqual([]);
    }
    const messages = await db.query('select run_id from public.chat_messages');
    expect(messages.map((m) => (m as { run_id: string }).run_id).sort()).toEqual([...ids].sort());
    // Two kills can make a run's open call be sent again, one time each; nothing else is.
    for (const [key, count] of requestsByKey()) expect([key, count <= 3]).toEqual([key, true]);
    const calls = await db.query<{ calls: number }>(
      'select count(*)::integer as calls from public.llm_calls',
    );
    expect(calls[0]?.calls).toBe(ids.length * 3);
  });
});

/** A tool whose calls stay under way until they are let go or stopped. */
function slowTool(effect: Tool['effect']) {
  const calls: ToolContext[] = [];
  let letGo = false;
  const source: ToolSource = {
    name: 'shop',
    list: async () => [
      {
        source: 'shop',
        effect,
        definition: {
          type: 'function',
          function: { name: 'order', parameters: { type: 'object', properties: {} } },
        },
        async call(_args, context) {
          calls.push(context);
          if (!letGo) {
            await new Promise((_, reject) => {
              context.signal.addEventListener('abort', () => reject(context.signal.reason), { once: true });
            });
          }
          return { content: `order number ${calls.length}` };
        },
      },
    ],
  };
  return {
    source,
    calls,
    letGo: () => {
      letGo = true;
    },
  };
}

describe('a tool call under way when the run changes hands', () => {
  async function takeOverDuring(effect: Tool['effect']) {
    const tool = slowTool(effect);
    model.respond(({ body }) =>
      body.messages.at(-1)?.role === 'tool'
        ? { content: 'done' }
        : { toolCalls: [{ name: 'order', arguments: {} }] },
    );
    await using _daemon = await testDaemon(db, model, { toolSources: [tool.source] });
    const id = await startTask(db, platform, 'Order tea.', { target_channel_id: channel });
    await until('the tool is called', () => tool.calls.length === 1);
    tool.letGo();
    // The conversation that was begun goes on, whatever the agent has become.
    await db.query(`update public.agents set instructions = 'Speak in riddles.'`);
    await loseLease(db, id);
    const run = await waitForRun(db, id);
    await until('the first worker has let go', () => tool.calls[0]?.signal.aborted);
    expect(model.requests[1]?.body.messages.slice(0, 2)).toEqual(model.requests[0]?.body.messages);
    return { id, run, tool };
  }

  test('a write is not repeated: its outcome is unknown, and the model is told so', async () => {
    const { id, run, tool } = await takeOverDuring('write');
    expect(run).toMatchObject({ status: 'completed', lease_epoch: 2 });
    expect(tool.calls).toHaveLength(1);
    expect(await toolCalls(db, id)).toMatchObject([{ status: 'unknown', error_code: 'outcome_unknown' }]);
    expect(model.requests).toHaveLength(2);
    expect(model.requests[1]?.body.messages.at(-1)).toMatchObject({
      role: 'tool',
      content: expect.stringMatching(/may or may not/),
    });
    expect(await db.query('select 1 from public.chat_messages')).toHaveLength(1);
  });

  test.each(['read', 'idempotent'] as const)(
    'a call that is %s is made again under the same key',
    async (effect) => {
      const { id, run, tool } = await takeOverDuring(effect);
      expect(run).toMatchObject({ status: 'completed', lease_epoch: 2 });
      expect(tool.calls).toHaveLength(2);
      expect(tool.calls[1]?.idempotencyKey).toBe(tool.calls[0]?.idempotencyKey);
      expect(await toolCalls(db, id)).toMatchObject([
        { status: 'completed', idempotency_key: tool.calls[0]?.idempotencyKey },
      ]);
      expect(model.requests).toHaveLength(2);
    },
  );
});

describe('a worker that takes its own run over after a stall', () => {
  test('its older attempt is stopped and the newer one keeps its lease', async () => {
    const tool = slowTool('read');
    model.respond(({ body }) =>
      body.messages.at(-1)?.role === 'tool'
        ? { content: 'done' }
        : { toolCalls: [{ name: 'order', arguments: {} }] },
    );
    await using _daemon = await testDaemon(db, model, { toolSources: [tool.source] });
    const id = await startTask(db, platform, 'Order tea.');
    await until('the tool is called', () => tool.calls.length === 1);
    await loseLease(db, id);
    await until('the tool is called by the newer attempt', () => tool.calls.length === 2);
    await until('the older attempt is stopped', () => tool.calls[0]?.signal.aborted);
    const first = await db.query<{ at: Date }>(
      'select lease_expires_at as at from public.task_runs where id = $1',
      [id],
    );
    // The newer attempt sits in its tool call, so only a renewal moves its lease.
    await until('the newer attempt’s lease is renewed', async () => {
      const [row] = await db.query<{ at: Date }>(
        'select lease_expires_at as at from public.task_runs where id = $1 and lease_epoch = 2',
        [id],
      );
      return row && row.at > (first[0]?.at as Date);
    });
    expect(tool.calls).toHaveLength(2);
    expect(tool.calls[1]?.signal.aborted).toBe(false);
    await db.query('select public.cancel_run($1)', [id]);
  });
});

describe('a stalled worker whose run was taken over', () => {
  test('writes nothing, whatever it tries, and hears that the run is lost', async () => {
    const id = await startTask(db, platform, 'x', { target_channel_id: channel });
    const [claimed] = await claimRuns(db, [id], 'stalled', 15);
    if (!claimed || 'refused' in claimed) throw new Error('The run was not claimed.');
    await loseLease(db, id);
    await using _daemon = await testDaemon(db, model);
    await waitForRun(db, id);
    await until('the job is settled', async () => (await jobOutcomes(db, id)).length > 0);
    const before = await everything(id);

    let answer: unknown;
    const journal = new RunJournal(claimed, async (checkpoint) => {
      const [result] = await writeCheckpoints(db, [checkpoint], 15);
      answer = result;
      if (!result) throw new Error('No answer.');
      return result;
    });
    journal.message({
      channel_id: channel,
      conversation_id: null,
      content: 'a ghost’s',
      is_answer: true,
      metadata: {},
    });
    journal.end({
      status: 'failed',
      reason_code: 'ghost',
      reason: 'A ghost wrote this.',
      output: { text: 'ghost' },
      wake_in_ms: null,
      log: null,
    });
    await expect(journal.flush()).rejects.toBeInstanceOf(RunLost);
    expect(answer).toMatchObject({ applied: false, status: 'completed' });
    expect(await renewLeases(db, [{ run: id, epoch: claimed.lease_epoch }], 15)).toEqual(new Set([id]));
    expect(await everything(id)).toEqual(before);
  });

  test('writes nothing while its successor has not written anything either: the epoch alone tells them apart', async () => {
    const id = await startTask(db, platform, 'x');
    const [older] = await claimRuns(db, [id], 'stalled', 15);
    await loseLease(db, id);
    const [newer] = await claimRuns(db, [id], 'successor', 15);
    if (!older || 'refused' in older || !newer || 'refused' in newer) throw new Error('Not claimed.');
    expect([newer.lease_epoch, newer.journal_seq]).toEqual([older.lease_epoch + 1, older.journal_seq]);
    const write = (claimed: typeof older): Promise<void> => {
      const journal = new RunJournal(claimed, async (checkpoint) => {
        const [result] = await writeCheckpoints(db, [checkpoint], 15);
        return result ?? { applied: true };
      });
      journal.step({ order: 1, step_id: null, name: 's', attempt: 1, status: 'running', context: {} });
      return journal.flush();
    };
    const before = await everything(id);
    await expect(write(older)).rejects.toBeInstanceOf(RunLost);
    expect(await renewLeases(db, [{ run: id, epoch: older.lease_epoch }], 15)).toEqual(new Set([id]));
    expect(await everything(id)).toEqual(before);
    await write(newer);
    expect((await findRun(db, id))?.journal_seq).toBe(1);
  });

  test('a checkpoint whose answer was lost counts once when it is sent again', async () => {
    const id = await startTask(db, platform, 'x');
    const [claimed] = await claimRuns(db, [id], 'worker', 15);
    if (!claimed || 'refused' in claimed) throw new Error('Not claimed.');
    const answers: unknown[] = [];
    const journal = new RunJournal(claimed, async (checkpoint) => {
      answers.push(...(await writeCheckpoints(db, [checkpoint], 15)));
      answers.push(...(await writeCheckpoints(db, [checkpoint], 15)));
      return { applied: true };
    });
    journal.modelCall({
      order: 1,
      turn: 1,
      provider: 'openai',
      model: 'm',
      model_id: null,
      credential_source: 'agent',
      status: 'completed',
      attempt: 1,
      prompt_tokens: 10,
      completion_tokens: 5,
      cost_micros: 3,
    });
    await journal.flush();
    expect(answers).toEqual([{ applied: true }, { applied: true }]);
    expect(await findRun(db, id)).toMatchObject({
      turns: 1,
      prompt_tokens: 10,
      cost_micros: 3,
      journal_seq: 1,
    });
    expect(await db.query('select 1 from public.usage_events')).toHaveLength(1);
  });

  test('writes nothing between the lapse of its lease and the next claim either', async () => {
    const id = await startTask(db, platform, 'x');
    const [claimed] = await claimRuns(db, [id], 'stalled', 15);
    if (!claimed || 'refused' in claimed) throw new Error('The run was not claimed.');
    await loseLease(db, id);
    const before = await findRun(db, id);
    expect(before?.status).toBe('queued');
    const journal = new RunJournal(claimed, async (checkpoint) => {
      const [result] = await writeCheckpoints(db, [checkpoint], 15);
      return result ?? { applied: true };
    });
    journal.end({
      status: 'completed',
      reason_code: null,
      reason: null,
      output: { text: 'late' },
      wake_in_ms: null,
      log: null,
    });
    await expect(journal.flush()).rejects.toBeInstanceOf(RunLost);
    expect(await findRun(db, id)).toEqual(before);
  });
});

async function everything(id: string): Promise<unknown> {
  return {
    run: await findRun(db, id),
    steps: await stepRuns(db, id),
    model: await modelCalls(db, id),
    tools: await toolCalls(db, id),
    messages: await db.query('select * from public.chat_messages order by id'),
    usage: await db.query('select * from public.usage_events order by id'),
    logs: await db.query('select * from public.agent_logs order by id'),
  };
}
