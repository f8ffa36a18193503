import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { ToolResult, ToolSource } from '../../src/pipelines/agent/tools.ts';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { testDaemon } from '../support/daemon.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { makePlatform, type Platform, startTask } from '../support/platform.ts';
import { findRun, openRows, toolCalls, until, waitForRun } from '../support/runs.ts';

let db: TestDatabase;
let model: ModelServer;
let platform: Platform;

beforeEach(async () => {
  db = await testDatabase();
  model = await startModelServer();
  platform = await makePlatform(db);
  model.respond(({ body }) =>
    body.messages.at(-1)?.role === 'tool'
      ? { content: 'done' }
      : { toolCalls: [{ name: 'odd', arguments: {} }] },
  );
});

afterEach(async () => {
  expect(model.rejected).toEqual([]);
  await model.close();
  await db.dispose();
});

function source(call: () => Promise<ToolResult>): ToolSource {
  return {
    name: 'test',
    list: async () => [
      {
        source: 'test',
        effect: 'read',
        definition: {
          type: 'function',
          function: { name: 'odd', parameters: { type: 'object', properties: {} } },
        },
        call,
      },
    ],
  };
}

const never = (): Promise<never> => new Promise(() => {});

describe('a tool that ignores its signal', () => {
  const oneSlot = { toolSources: [source(never)], env: { AGENTD_QUEUES: 'task-run=1' } };

  test('does not keep its run past the time limit, nor the slot', async () => {
    await using _daemon = await testDaemon(db, model, oneSlot);
    const id = await startTask(db, platform, 'x', { timeout_seconds: 1 });
    expect(await waitForRun(db, id)).toMatchObject({ status: 'failed', reason_code: 'timeout' });
    expect(await openRows(db, id)).toEqual([]);
    model.respond(() => ({ content: 'next' }));
    expect((await waitForRun(db, await startTask(db, platform, 'y'))).output?.text).toBe('next');
  });

  test('does not keep the slot of a run that was cancelled', async () => {
    await using _daemon = await testDaemon(db, model, oneSlot);
    const id = await startTask(db, platform, 'x');
    await until('the tool is called', async () => (await toolCalls(db, id)).length > 0);
    await db.query('select public.cancel_run($1)', [id]);
    model.respond(() => ({ content: 'next' }));
    expect((await waitForRun(db, await startTask(db, platform, 'y'))).output?.text).toBe('next');
  });

  test('does not keep a drain waiting', async () => {
    const daemon = await testDaemon(db, model, oneSlot);
    const id = await startTask(db, platform, 'x');
    await until('the tool is called', async () => (await toolCalls(db, id)).length > 0);
    const before = performance.now();
    await daemon.stop();
    // Below the grace that is given to handlers which do not come back.
    expect(performance.now() - before).toBeLessThan(5_000);
    expect((await findRun(db, id))?.status).toBe('queued');
  });
});

describe('a tool that answers with what it should not', () => {
  test.each([
    ['NUL and lone surrogates', { content: 'a\u0000b\ud800' }, 'a\uFFFDb\uFFFD'],
    ['nothing', undefined, null],
    ['a number', { content: 7 }, null],
    ['no content', {}, null],
  ])('%s: the run goes on', async (_, result, kept) => {
    await using _daemon = await testDaemon(db, model, {
      toolSources: [source(async () => result as ToolResult)],
    });
    const id = await startTask(db, platform, 'x');
    expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', lease_epoch: 1 });
    const [call] = await toolCalls(db, id);
    if (kept !== null) expect(call?.result?.content).toBe(kept);
  });

  test('megabytes: the model gets its share of the window', async () => {
    await using _daemon = await testDaemon(db, model, {
      toolSources: [source(async () => ({ content: 'x'.repeat(5_000_000) }))],
    });
    const id = await startTask(db, platform, 'x');
    expect((await waitForRun(db, id)).status).toBe('completed');
    const told = String(model.requests[1]?.body.messages.at(-1)?.content);
    expect(told.length).toBeLessThan(4_200);
    expect(told).toMatch(/more characters were left out/);
  });
});

describe('a source of tools that can’t be asked', () => {
  test('ends or passes, but holds no run up: the other runs’ slots are theirs', async () => {
    const broken: ToolSource = { name: 'broken', list: () => Promise.reject(new Error('no route to host')) };
    model.respond(() => ({ content: 'without it' }));
    await using _daemon = await testDaemon(db, model, { toolSources: [broken], leaseSeconds: 60 });
    const run = await waitForRun(db, await startTask(db, platform, 'x'));
    expect(['completed', 'failed']).toContain(run.status);
    if (run.status === 'failed') expect(run.reason).toMatch(/tool/i);
    expect(run.lease_epoch).toBe(1);
  });
});
