/** A step that is tried again goes on where it was: what was done is not done twice. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { Tool, ToolContext, ToolSource } from '../../src/pipelines/agent/tools.ts';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { type TestDaemon, testDaemon } from '../support/daemon.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, type Platform, startTask } from '../support/platform.ts';
import { modelCalls, openRows, stepRuns, toolCalls, waitForRun } from '../support/runs.ts';

let db: TestDatabase;
let model: ModelServer;
let platform: Platform;
/** Calls that were made of each tool. */
let made: Record<string, string[]>;

beforeEach(async () => {
  db = await testDatabase();
  model = await startModelServer();
  platform = await makePlatform(db, { agent: { capabilities: '["send_message"]' } });
  made = {};
});

afterEach(async () => {
  expect(model.rejected).toEqual([]);
  await model.close();
  await db.dispose();
});

/** `hangs` says which calls of the tool, counted from 1, go on until they are aborted. */
function tool(name: string, effect: Tool['effect'], hangs: (call: number) => boolean = () => false): Tool {
  return {
    source: 'test',
    effect,
    definition: { type: 'function', function: { name, parameters: { type: 'object', properties: {} } } },
    async call(_args: unknown, { signal, idempotencyKey }: ToolContext) {
      made[name] = [...(made[name] ?? []), idempotencyKey];
      if (hangs(made[name].length)) {
        await new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
      }
      return { content: `${name} is done` };
    },
  };
}

function daemonWith(...tools: Tool[]): Promise<TestDaemon> {
  const source: ToolSource = { name: 'test', list: async () => tools };
  return testDaemon(db, model, { toolSources: [source] });
}

/** The first answer calls these tools; the next one is the step's. */
function callsOnce(...calls: { name: string; arguments: object }[]): void {
  model.respond((_, index) => (index === 0 ? { toolCalls: calls } : { content: 'done' }));
}

const call = (name: string, args: object = {}): { name: string; arguments: object } => ({
  name,
  arguments: args,
});

/** What the model was told of its calls with the last request. */
function told(): string[] {
  const messages = model.requests.at(-1)?.body.messages ?? [];
  return messages.filter((m) => m.role === 'tool').map((m) => String(m.content));
}

async function quantities(id: string, metric: string): Promise<number> {
  const [row] = await db.query<{ n: number }>(
    'select count(*)::integer as n from public.usage_events where run_id = $1 and metric = $2',
    [id, metric],
  );
  return row?.n ?? -1;
}

const always = (): boolean => true;
const theFirst = (call: number): boolean => call === 1;
const retriedAfter1s = [{ timeoutSeconds: 1, maxRetries: 2 }];

describe('a retry after the step’s time limit', () => {
  test('repeats no write that is settled, nor the one that was under way: that is unknown', async () => {
    const channel = await insert(db, 'public.chat_channels', {
      workspace_id: platform.workspaceId,
      name: 'general',
    });
    callsOnce(call('pay'), call('send_message', { content: 'paid', channel: 'general' }), call('slow'));
    await using _daemon = await daemonWith(tool('pay', 'write'), tool('slow', 'write', always));
    const id = await startTask(db, platform, 'x', {}, retriedAfter1s);
    const run = await waitForRun(db, id);
    expect(run).toMatchObject({ status: 'completed', output: { text: 'done' }, lease_epoch: 1, turns: 2 });
    expect(made.pay).toHaveLength(1);
    expect(made.slow).toHaveLength(1);
    const messages = await db.query('select content from public.chat_messages where channel_id = $1', [
      channel,
    ]);
    expect(messages).toEqual([{ content: 'paid' }]);
    expect(await toolCalls(db, id)).toMatchObject([
      { tool_name: 'pay', status: 'completed' },
      { tool_name: 'send_message', status: 'completed' },
      { tool_name: 'slow', status: 'unknown', error_code: 'outcome_unknown' },
    ]);
    const [pay, , slow] = told();
    expect(pay).toBe('pay is done');
    expect(slow).toMatch(/may or may not have taken effect/);
    expect((await stepRuns(db, id)).map((s) => [s.status, s.attempt])).toEqual([['completed', 2]]);
    expect(model.requests).toHaveLength(2);
    expect(run.tool_calls).toBe(3);
    expect(await quantities(id, 'tool_call')).toBe(2);
    expect(await openRows(db, id)).toEqual([]);
  });

  test('makes a read that was under way again, with its key, and no read that was settled', async () => {
    callsOnce(call('look'), call('stare'), call('pay'));
    await using _daemon = await daemonWith(
      tool('look', 'read'),
      tool('stare', 'read', theFirst),
      tool('pay', 'write'),
    );
    const id = await startTask(db, platform, 'x', {}, retriedAfter1s);
    expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', lease_epoch: 1 });
    expect(made.look).toHaveLength(1);
    expect(made.stare).toHaveLength(2);
    expect(new Set(made.stare).size).toBe(1);
    // Its intent was on record with theirs, so whether it is made now or called unknown is open; twice it is not.
    expect(made.pay?.length ?? 0).toBeLessThanOrEqual(1);
    expect(told().slice(0, 2)).toEqual(['look is done', 'stare is done']);
    expect(await openRows(db, id)).toEqual([]);
  });

  test('makes an idempotent call that was under way again, with its key', async () => {
    callsOnce(call('put'));
    await using _daemon = await daemonWith(tool('put', 'idempotent', theFirst));
    const id = await startTask(db, platform, 'x', {}, retriedAfter1s);
    expect((await waitForRun(db, id)).status).toBe('completed');
    expect(made.put).toHaveLength(2);
    expect(new Set(made.put).size).toBe(1);
    expect(await toolCalls(db, id)).toMatchObject([{ status: 'completed' }]);
    expect(await quantities(id, 'tool_call')).toBe(1);
  });

  test('that meets the limit again still repeats nothing, and the step fails with what it did on record', async () => {
    await using _daemon = await daemonWith(tool('pay', 'write'), tool('stare', 'read', always));
    // Reads go before writes of the same turn: for the write to be settled, the read comes a turn later.
    model.respond((_, index) => ({ toolCalls: [index === 0 ? call('pay') : call('stare')] }));
    const id = await startTask(db, platform, 'x', {}, [{ timeoutSeconds: 1, maxRetries: 1 }]);
    expect(await waitForRun(db, id)).toMatchObject({ status: 'failed', reason_code: 'step_timeout' });
    expect(made.pay).toHaveLength(1);
    expect(made.stare).toHaveLength(2);
    expect(model.requests).toHaveLength(2);
    expect(await toolCalls(db, id)).toMatchObject([
      { tool_name: 'pay', status: 'completed' },
      { tool_name: 'stare', status: 'failed' },
    ]);
    expect(await openRows(db, id)).toEqual([]);
  });

  test('asks a model that did not answer in time again with the same key, and pays for one answer', async () => {
    model.respond((_, index) => (index === 0 ? { hang: true } : { content: 'in time' }));
    await using _daemon = await daemonWith();
    const id = await startTask(db, platform, 'x', {}, retriedAfter1s);
    expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', output: { text: 'in time' } });
    expect(new Set(model.requests.map((r) => r.idempotencyKey)).size).toBe(1);
    expect(await modelCalls(db, id)).toMatchObject([{ status: 'completed', attempt: 2 }]);
    expect(await quantities(id, 'tokens')).toBe(1);
  });
});

describe('a worker that takes a step over after a retry', () => {
  test('knows what the attempts before it have done', async () => {
    const tools = [tool('pay', 'write'), tool('slow', 'write', always)];
    model.respond((_, index) => (index === 0 ? { toolCalls: [call('pay'), call('slow')] } : { hang: true }));
    const first = await daemonWith(...tools);
    const id = await startTask(db, platform, 'x', {}, [{ timeoutSeconds: 1, maxRetries: 20 }]);
    await model.waitForRequest(() => true, 2);
    await first.stop();
    model.respond(() => ({ content: 'done' }));
    await using _second = await daemonWith(...tools);
    expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', lease_epoch: 2 });
    expect(made).toMatchObject({ pay: [expect.any(String)], slow: [expect.any(String)] });
    expect((await toolCalls(db, id)).map((t) => t.status)).toEqual(['completed', 'unknown']);
    expect(told()[1]).toMatch(/may or may not have taken effect/);
  });
});

describe('a time limit that is longer than a timer counts', () => {
  test('means what it says, in any step', async () => {
    await using _daemon = await daemonWith(tool('look', 'read'));
    for (const seconds of [2_147_484, 2_500_000, 9_999_999, 2_147_483_647]) {
      model.requests.length = 0;
      model.respond(({ body }, index) =>
        index === 0 || body.messages.at(-1)?.role === 'tool'
          ? { content: 'done' }
          : { toolCalls: [call('look')] },
      );
      const id = await startTask(db, platform, 'x', {}, [{}, { timeoutSeconds: seconds, maxRetries: 0 }]);
      const run = await waitForRun(db, id);
      expect(run, `${seconds} s`).toMatchObject({ status: 'completed', lease_epoch: 1, turns: 3 });
      expect((await stepRuns(db, id)).map((s) => [s.status, s.attempt])).toEqual([
        ['completed', 1],
        ['completed', 1],
      ]);
      expect(model.requests).toHaveLength(3);
    }
  });
});
