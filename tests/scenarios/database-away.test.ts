import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { startDaemonProcess, testDaemon } from '../support/daemon.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, makeTask, type Platform, startRun } from '../support/platform.ts';
import { findRun, openRows, until } from '../support/runs.ts';

let db: TestDatabase;
let model: ModelServer;
let platform: Platform;

beforeEach(async () => {
  db = await testDatabase();
  model = await startModelServer();
  platform = await makePlatform(db);
});

afterEach(async () => {
  await model.close();
  await db.dispose();
});

/** Ends every session of the database except the test's own; returns how many. */
async function endAllSessions(): Promise<number> {
  const rows = await db.query(
    `select pg_terminate_backend(pid) from pg_stat_activity
      where datname = current_database() and pid <> pg_backend_pid() and application_name <> 'agentd'`,
  );
  return rows.length;
}

describe.skipIf(!onServer)('server-only: a database that ends every session again and again', () => {
  test('no daemon exits, every run completes, and no call is paid twice', async () => {
    let ended = 0;
    model.respond(async (_, index) => {
      // While a call is under way, so that its outcome meets the broken connections.
      if (index % 8 === 5) ended += await endAllSessions();
      return { content: 'answer' };
    });
    await using worker = await startDaemonProcess(db, model);
    await using daemon = await testDaemon(db, model, { env: { AGENTD_QUEUES: 'task-run=4' } });
    let gone = false;
    void daemon.stopped.then(() => {
      gone = true;
    });
    const channel = await insert(db, 'public.chat_channels', {
      workspace_id: platform.workspaceId,
      name: 'results',
    });
    const taskId = await makeTask(db, platform, { target_channel_id: channel }, [{}, {}, {}]);
    const ids: string[] = [];
    for (let i = 0; i < 12; i++) ids.push(await startRun(db, taskId));

    for (const id of ids) {
      const run = await until(`run ${id} has ended`, async () => {
        const found = await findRun(db, id);
        return found?.finished_at ? found : null;
      });
      expect(run.status).toBe('completed');
      expect(await openRows(db, id)).toEqual([]);
    }
    expect(ended).toBeGreaterThan(8);
    expect(gone).toBe(false);
    expect(worker.child.exitCode).toBeNull();
    expect(model.rejected).toEqual([]);

    const keys = model.requests.map((r) => r.idempotencyKey);
    expect(keys).toHaveLength(new Set(keys).size);
    expect(keys).toHaveLength(36);
    const messages = await db.query('select 1 from public.chat_messages');
    expect(messages).toHaveLength(12);
    const [usage] = await db.query<{ tokens: number; runs: number }>(
      `select count(*) filter (where metric = 'tokens')::integer as tokens,
              count(*) filter (where metric = 'task_run')::integer as runs from public.usage_events`,
    );
    expect(usage).toEqual({ tokens: 36, runs: 12 });
  });

  test('a daemon that was idle meanwhile works on what comes after', async () => {
    await using _daemon = await testDaemon(db, model);
    const taskId = await makeTask(db, platform);
    await until(
      'the daemon sleeps',
      async () => (await db.query('select 1 from agentd.sleepers')).length > 0,
    );
    expect(await endAllSessions()).toBeGreaterThan(0);
    const id = await startRun(db, taskId);
    const run = await until('the run has ended', async () => {
      const found = await findRun(db, id);
      return found?.finished_at ? found : null;
    });
    expect(run.status).toBe('completed');
  });
});
