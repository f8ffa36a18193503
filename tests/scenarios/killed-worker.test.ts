import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { startDaemonProcess, testDaemon } from '../support/daemon.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, makeTask, type Platform, startRun } from '../support/platform.ts';
import { modelCalls, openRows, stepRuns, waitForRun } from '../support/runs.ts';

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
