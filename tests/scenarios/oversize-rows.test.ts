/** Texts of megabytes, wherever somebody else decides their length. */
import { describe, expect, test } from 'vitest';
import type { ToolSource } from '../../src/pipelines/agent/tools.ts';
import { onServer } from '../support/database.ts';
import { db, expectNoRepairs, model, platform, useDaemon } from '../support/one-daemon.ts';
import { insert, makeAgent, makeTask, startRun, startTask } from '../support/platform.ts';
import { findRun, modelCalls, openRows, stepRuns, toolCalls, waitForRun } from '../support/runs.ts';

/** The embedded database takes seconds for what a server does at once. */
const MEGABYTE = 1_000_000;

const dump: ToolSource = {
  name: 'dump',
  list: async () => [
    {
      source: 'dump',
      effect: 'read',
      definition: {
        type: 'function',
        function: {
          name: 'dump',
          parameters: { type: 'object', properties: { megabytes: { type: 'number' } } },
        },
      },
      call: async ({ megabytes }) => ({ content: 'ä'.repeat(Number(megabytes) * MEGABYTE) }),
    },
  ],
};

// The leases of production: what is measured here is not how long they hold.
useDaemon({ daemon: { toolSources: [dump], leaseSeconds: 15 } });

describe('results of tools', () => {
  test('of many megabytes reach the model and the journal cut to the agent’s window, with a note', async () => {
    model.respond((_, index) =>
      index === 0
        ? {
            toolCalls: [1, 2, 3, 4].map(() => ({
              name: 'dump',
              arguments: { megabytes: onServer ? 20 : 5 },
            })),
          }
        : { content: 'read' },
    );
    const id = await startTask(db, platform, 'x');
    expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', output: { text: 'read' } });
    const sent = JSON.stringify(model.requests[1]?.body).length;
    expect(sent).toBeLessThan(MEGABYTE);
    for (const call of await toolCalls(db, id)) {
      expect(call.status).toBe('completed');
      expect(call.result?.content).toMatch(/more characters were left out\]$/);
      expect(call.result?.content.length).toBeLessThan(MEGABYTE / 4);
    }
  });
});

describe('answers', () => {
  test.each(onServer ? [1, 6] : [0.2])('of %d megabytes are kept whole, and posted', async (megabytes) => {
    const text = `${'word '.repeat((megabytes * MEGABYTE) / 5)}end`;
    model.respond(() => ({ content: text }));
    const channel = await insert(db, 'public.chat_channels', {
      workspace_id: platform.workspaceId,
      name: `big-${megabytes}`,
    });
    const id = await startTask(db, platform, 'x', { target_channel_id: channel });
    const run = await waitForRun(db, id);
    expect(run.status).toBe('completed');
    expect(run.output?.text.length).toBe(text.length);
    const posted = await db.query<{ size: number }>(
      'select length(content) as size from public.chat_messages where channel_id = $1',
      [channel],
    );
    expect(posted).toEqual([{ size: text.length }]);
  });

  test('larger than a provider may send fail the call with a reason, and the worker goes on', async () => {
    model.respond(() => ({ content: 'x'.repeat(40 * MEGABYTE) }));
    const id = await startTask(db, platform, 'x', { timeout_seconds: 20 });
    const run = await waitForRun(db, id);
    expect(run.status).toBe('failed');
    expect(run.reason).toBeTruthy();
    expect(await openRows(db, id)).toEqual([]);
    model.respond(() => ({ content: 'small' }));
    expect((await waitForRun(db, await startTask(db, platform, 'next'))).status).toBe('completed');
  });

  test('that call a tool with megabytes of arguments end, and the call is paid once', async () => {
    model.respond((_, index) =>
      index === 0
        ? {
            toolCalls: [
              {
                name: 'dump',
                arguments: { megabytes: 1, note: 'y'.repeat((onServer ? 8 : 0.5) * MEGABYTE) },
              },
            ],
          }
        : { content: 'done' },
    );
    const id = await startTask(db, platform, 'x');
    expect((await waitForRun(db, id)).status).toMatch(/completed|failed/);
    expect(await openRows(db, id)).toEqual([]);
    const [call] = await modelCalls(db, id);
    expect(call).toMatchObject({ status: 'completed', attempt: 1 });
    // What the model said is part of the conversation, and this is more than it takes.
    const refusals = model.rejected.splice(0);
    expect(refusals.filter((refusal) => !/maximum context length/.test(refusal.message))).toEqual([]);
  });
});

describe('inputs', () => {
  test('of a megabyte are cut to half of the agent’s window, and it is said', async () => {
    const agentId = await makeAgent(db, platform);
    const taskId = await makeTask(db, { ...platform, agentId });
    const id = await startRun(db, taskId, { text: 'z'.repeat(MEGABYTE - 100) });
    expect((await waitForRun(db, id)).status).toBe('completed');
    const [step] = await stepRuns(db, id);
    expect(step?.context?.left_out.join()).toMatch(/\d+ characters of the input/);
    expect(JSON.stringify(model.requests[0]?.body).length).toBeLessThan(MEGABYTE);
  });

  test('of more are refused by the insert that brings them', async () => {
    const taskId = await makeTask(db, platform);
    await expect(startRun(db, taskId, { text: 'z'.repeat(MEGABYTE + 1) })).rejects.toMatchObject({
      code: '23514',
    });
  });

  test('with instructions of a megabyte in several steps end the run at once with a reason', async () => {
    const long = 'w'.repeat(600_000);
    const taskId = await makeTask(db, platform, {}, [{ instructions: long }, { instructions: long }]);
    const id = await startRun(db, taskId);
    expect(await findRun(db, id)).toMatchObject({ status: 'failed', reason_code: 'task_too_large' });
    await db.query('delete from public.task_runs where id = $1', [id]);
    expect(model.requests).toEqual([]);
  });
});

test('no run of this file was taken over or spent an attempt of its job', expectNoRepairs);
