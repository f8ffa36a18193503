import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { Tool, ToolContext, ToolSource } from '../../src/pipelines/agent/tools.ts';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { testDaemon } from '../support/daemon.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, type Platform, startTask } from '../support/platform.ts';
import { loseLease, toolCalls, until, waitForRun } from '../support/runs.ts';

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
