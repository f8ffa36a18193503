/** Transactions of applications that hold rows which a worker wants: they hold up their own runs at most. */
import pg from 'pg';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { type TestDaemon, testDaemon } from '../support/daemon.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, makeTask, type Platform, startRun } from '../support/platform.ts';
import { findRun, openRows, until, waitForRun } from '../support/runs.ts';

// Embedded there is one backend: a transaction that stays open holds up everybody, whatever it locks.
describe.skipIf(!onServer)('server-only: an open transaction of one tenant', () => {
  let db: TestDatabase;
  let model: ModelServer;
  let daemon: TestDaemon;
  let holder: Tenant;
  let other: Tenant;
  let application: pg.Client;
  /** The model answers when this is called. */
  let answerAll: () => void;
  let answered: boolean;

  type Tenant = Platform & {
    readonly channelId: string;
    readonly conversationId: string;
    readonly taskId: string;
  };

  async function tenant(marker: string): Promise<Tenant> {
    const owner = await makePlatform(db, { shared: true });
    const { workspaceId, agentId, userId } = owner;
    const channelId = await insert(db, 'public.chat_channels', {
      workspace_id: workspaceId,
      name: 'general',
    });
    const conversationId = await insert(db, 'public.conversations', {
      workspace_id: workspaceId,
      agent_id: agentId,
      user_id: userId,
    });
    const taskId = await makeTask(db, owner, { instructions: marker, target_channel_id: channelId }, [
      { instructions: marker },
    ]);
    return { ...owner, channelId, conversationId, taskId };
  }

  beforeEach(async () => {
    db = await testDatabase();
    model = await startModelServer();
    [holder, other] = [await tenant('held'), await tenant('free')];
    const { promise, resolve } = Promise.withResolvers<void>();
    answered = false;
    answerAll = () => {
      answered = true;
      resolve();
    };
    model.respond(() => ({ content: 'answer', delay: promise }));
    daemon = await testDaemon(db, model, { leaseSeconds: 15 });
    application = new pg.Client({ connectionString: db.url });
    await application.connect();
    await application.query('begin');
  });

  afterEach(async () => {
    await application.end();
    await daemon.stop();
    expect(model.rejected).toEqual([]);
    await model.close();
    await db.dispose();
  });

  /** Runs that the model has been asked for. */
  async function manyRuns(of: Tenant, count: number): Promise<string[]> {
    const before = model.requests.length;
    const ids: string[] = [];
    for (let i = 0; i < count; i++) ids.push(await startRun(db, of.taskId));
    if (!answered) await model.waitForRequest(() => true, before + count);
    return ids;
  }

  /**
   * Answers all requests. Runs of the other tenant, those whose answers come together with the holder's and
   * those that come while the holder's are held up, complete within a few seconds.
   */
  async function expectOthersUnhindered(
    held: readonly string[],
    together: readonly string[] = [],
  ): Promise<void> {
    const before = performance.now();
    answerAll();
    await until('the holder’s runs have ended, or a worker waits for its rows', async () => {
      const [row] = await db.query<{ met: boolean }>(
        `select exists (select 1 from pg_stat_activity
                         where datname = current_database() and wait_event_type = 'Lock')
             or not exists (select 1 from public.task_runs
                             where id = any ($1) and status in ('queued', 'running')) as met`,
        [held],
      );
      return row?.met;
    });
    const later = await manyRuns(other, 3);
    for (const id of [...later, ...together]) {
      expect((await waitForRun(db, id)).status).toBe('completed');
    }
    console.log('others took', performance.now() - before);
    const messages = await db.query('select 1 from public.chat_messages where channel_id = $1', [
      other.channelId,
    ]);
    expect(messages).toHaveLength(later.length + together.length);
  }

  test.each<[string, (tenant: Tenant, runs: readonly string[]) => Promise<unknown>]>([
    [
      'edits the steps of its task',
      ({ taskId }) =>
        application.query(`update public.task_steps set instructions = 'new' where task_id = $1`, [taskId]),
    ],
    [
      'holds the channel that its runs write to',
      ({ channelId }) =>
        application.query('select 1 from public.chat_channels where id = $1 for update', [channelId]),
    ],
    [
      'edits that channel',
      ({ channelId }) =>
        application.query(`update public.chat_channels set name = 'new' where id = $1`, [channelId]),
    ],
    [
      'holds its runs',
      (_, runs) => application.query('select 1 from public.task_runs where id = any ($1) for update', [runs]),
    ],
    [
      'holds its agent',
      ({ agentId }) => application.query('select 1 from public.agents where id = $1 for update', [agentId]),
    ],
    [
      'holds its workspace',
      ({ workspaceId }) =>
        application.query('select 1 from public.workspaces where id = $1 for update', [workspaceId]),
    ],
    [
      'holds its user',
      ({ userId }) => application.query('select 1 from auth.users where id = $1 for update', [userId]),
    ],
  ])('that %s holds up no run of another, and its own complete when it ends', async (_, lock) => {
    // Nearly a ceiling's worth, with the other tenant's among them: whatever goes together, they do.
    const before = await manyRuns(holder, 7);
    const together = await manyRuns(other, 3);
    const runs = [...before, ...(await manyRuns(holder, 7))];
    await lock(holder, runs);
    await expectOthersUnhindered(runs, together);
    await application.query('rollback');
    for (const id of runs) {
      expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', lease_epoch: 1 });
      expect(await openRows(db, id)).toEqual([]);
    }
    expect(model.requests.filter((r) => r.userText.includes('held'))).toHaveLength(runs.length);
    const messages = await db.query('select 1 from public.chat_messages where channel_id = $1', [
      holder.channelId,
    ]);
    expect(messages).toHaveLength(runs.length);
  });

  describe('that deletes what a run writes to', () => {
    async function expectMessages(end: 'commit' | 'rollback', contents: string[]): Promise<void> {
      const { taskId, channelId, conversationId } = holder;
      const toConversation = await makeTask(db, holder, {
        instructions: 'held',
        target_conversation_id: conversationId,
      });
      const runs = [await startRun(db, taskId), await startRun(db, toConversation)];
      await model.waitForRequest((r) => r.userText.includes('held'), runs.length);
      await application.query('delete from public.chat_channels where id = $1', [channelId]);
      await application.query('delete from public.conversations where id = $1', [conversationId]);
      await expectOthersUnhindered(runs);
      await application.query(end);
      for (const id of runs) {
        expect(await waitForRun(db, id)).toMatchObject({
          status: 'completed',
          lease_epoch: 1,
          output: { text: 'answer' },
        });
      }
      for (const table of ['chat_messages', 'agent_messages']) {
        const found = await db.query<{ content: string }>(
          `select content from public.${table} where workspace_id = $1`,
          [holder.workspaceId],
        );
        expect(found.map((row) => row.content)).toEqual(contents);
      }
    }

    test('and takes that back gets the answers', () => expectMessages('rollback', ['answer']));
    test('for good fails no run', () => expectMessages('commit', []));
  });

  test('that holds queued runs does not hold up others, and they are executed when it ends', async () => {
    const taskId = await makeTask(db, holder, { instructions: 'later' });
    const id = await insert(db, 'public.task_runs', { task_id: taskId, wake_at: null, is_parked: true });
    await application.query('select 1 from public.task_runs where id = $1 for update', [id]);
    await expectOthersUnhindered([]);
    expect((await findRun(db, id))?.status).toBe('queued');
    await application.query('rollback');
    expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', lease_epoch: 1 });
  });

  test('that is committed with an edit of the steps keeps the edit', async () => {
    const [id = ''] = await manyRuns(holder, 1);
    await application.query(`update public.task_steps set instructions = 'new' where task_id = $1`, [
      holder.taskId,
    ]);
    await expectOthersUnhindered([id]);
    await application.query('commit');
    expect((await waitForRun(db, id)).status).toBe('completed');
    const steps = await db.query('select instructions from public.task_steps where task_id = $1', [
      holder.taskId,
    ]);
    expect(steps).toEqual([{ instructions: 'new' }]);
  });
});
