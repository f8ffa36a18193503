/** Transactions of applications that hold rows which a worker wants: they hold up their own runs at most. */
import pg from 'pg';
import { describe, expect, test } from 'vitest';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { testDaemon } from '../support/daemon.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, makeTask, type Platform, startRun } from '../support/platform.ts';
import { findRun, openRows, until, waitForRun } from '../support/runs.ts';

type Tenant = Platform & {
  readonly channelId: string;
  readonly conversationId: string;
  /** A task of one step whose answer goes to the channel. */
  readonly taskId: string;
};

async function makeTenant(db: TestDatabase, marker: string): Promise<Tenant> {
  const owner = await makePlatform(db, { shared: true });
  const { workspaceId, agentId, userId } = owner;
  const channelId = await insert(db, 'public.chat_channels', { workspace_id: workspaceId, name: 'general' });
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

/** Statements that a daemon has in flight at once for checkpoints. */
const IN_FLIGHT = 2;

/** A daemon with two tenants' runs, and an open transaction of the first one's application. */
type Scene = {
  readonly db: TestDatabase;
  readonly model: ModelServer;
  readonly holder: Tenant;
  readonly other: Tenant;
  /** In its transaction. */
  readonly application: pg.Client;
  /** Lets the model answer the request that waits longest; before, it keeps all waiting. */
  answerOne(): void;
  /** From now on the model answers at once. */
  answer(): void;
  /** Starts runs; before `answer()` resolves when the model has been asked for each. */
  start(taskId: string, count: number): Promise<string[]>;
  [Symbol.asyncDispose](): Promise<void>;
};

async function openScene(): Promise<Scene> {
  const db = await testDatabase();
  const model = await startModelServer();
  const [holder, other] = [await makeTenant(db, 'held'), await makeTenant(db, 'free')];
  const waiting: (() => void)[] = [];
  let answering = false;
  model.respond(() => {
    if (answering) return { content: 'answer' };
    const { promise, resolve } = Promise.withResolvers<void>();
    waiting.push(resolve);
    return { content: 'answer', delay: promise };
  });
  const daemon = await testDaemon(db, model, { leaseSeconds: 15 });
  const application = new pg.Client({ connectionString: db.url });
  await application.connect();
  await application.query('begin');
  return {
    db,
    model,
    holder,
    other,
    application,
    answerOne: () => waiting.shift()?.(),
    answer() {
      answering = true;
      for (const resolve of waiting.splice(0)) resolve();
    },
    async start(taskId, count) {
      const before = model.requests.length;
      const ids: string[] = [];
      for (let i = 0; i < count; i++) ids.push(await startRun(db, taskId));
      if (!answering) await model.waitForRequest(() => true, before + count);
      return ids;
    },
    async [Symbol.asyncDispose]() {
      await application.end();
      await daemon.stop();
      await model.close();
      await db.dispose();
      expect(model.rejected).toEqual([]);
    },
  };
}

/**
 * Resolves when so many statements have met the held rows, or so many of the runs have ended without needing them.
 * The statements are told from each other by when they began: a worker gives up after a second and comes again.
 */
async function untilMet(
  db: TestDatabase,
  runs: readonly string[],
  count: number,
  statements: Set<string>,
): Promise<void> {
  await until(`${count} statements wait for the held rows, or as many runs have ended`, async () => {
    const waits = await db.query<{ statement: string }>(
      `select pid || ' ' || query_start as statement from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock'`,
    );
    for (const { statement } of waits) statements.add(statement);
    const ended = await db.query(
      `select 1 from public.task_runs where id = any ($1) and status in ('completed', 'failed')`,
      [runs],
    );
    return statements.size + ended.length >= count;
  });
}

/**
 * Brings the runs to the held rows, one after the other so that each meets them in a statement of its own, and
 * lets the other tenant start runs meanwhile: they complete within a few seconds, on a busy machine.
 */
async function expectOthersUnhindered(
  { db, other, answerOne, answer, start }: Scene,
  held: readonly string[],
): Promise<void> {
  const statements = new Set<string>();
  for (let met = 1; met <= held.length; met++) {
    answerOne();
    // Where there are as many statements in flight as there may be, the next one can't meet anything.
    await untilMet(db, held, Math.min(met, IN_FLIGHT), statements);
  }
  answer();
  const before = performance.now();
  const runs = await start(other.taskId, 3);
  for (const id of runs) expect((await waitForRun(db, id)).status).toBe('completed');
  expect(performance.now() - before).toBeLessThan(8_000);
  expect(await messages(db, 'chat_messages', other)).toHaveLength(runs.length);
}

async function messages(
  db: TestDatabase,
  table: 'chat_messages' | 'agent_messages',
  { workspaceId }: Tenant,
): Promise<string[]> {
  const rows = await db.query<{ content: string }>(
    `select content from public.${table} where workspace_id = $1`,
    [workspaceId],
  );
  return rows.map((row) => row.content);
}

/** The runs complete, none of them was executed twice and each has its one message. */
async function expectCompleted({ db, model, holder }: Scene, runs: readonly string[]): Promise<void> {
  for (const id of runs) {
    expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', lease_epoch: 1 });
    expect(await openRows(db, id)).toEqual([]);
  }
  expect(model.requests.filter((r) => r.userText.includes('held'))).toHaveLength(runs.length);
  expect(await messages(db, 'chat_messages', holder)).toHaveLength(runs.length);
}

// Embedded there is one backend: a transaction that stays open holds up everybody, whatever it locks.
// Concurrent, because what they do most is wait for time limits of locks.
describe.skipIf(!onServer).concurrent('server-only: an open transaction of one tenant', () => {
  test.each<[string, (tenant: Tenant, runs: readonly string[]) => [string, unknown]]>([
    [
      'edits the steps of its task',
      ({ taskId }) => [`update public.task_steps set instructions = 'new' where task_id = $1`, taskId],
    ],
    [
      'edits the channel that its runs write to',
      ({ channelId }) => [`update public.chat_channels set name = 'new' where id = $1`, channelId],
    ],
    [
      'holds that channel',
      ({ channelId }) => ['select 1 from public.chat_channels where id = $1 for update', channelId],
    ],
    ['holds its runs', (_, runs) => ['select 1 from public.task_runs where id = any ($1) for update', runs]],
    ['holds its agent', ({ agentId }) => ['select 1 from public.agents where id = $1 for update', agentId]],
    [
      'holds its workspace',
      ({ workspaceId }) => ['select 1 from public.workspaces where id = $1 for update', workspaceId],
    ],
  ])('that %s holds up no run of another, and its own complete after it', async (_, lock) => {
    await using scene = await openScene();
    const runs = await scene.start(scene.holder.taskId, IN_FLIGHT + 1);
    const [text, value] = lock(scene.holder, runs);
    await scene.application.query(text, [value]);
    await expectOthersUnhindered(scene, runs);
    await scene.application.query('rollback');
    await expectCompleted(scene, runs);
  });

  test('whose runs share their checkpoints with another’s does not make those wait for each of them', async () => {
    await using scene = await openScene();
    const { db, holder, other, application } = scene;
    const runs = await scene.start(holder.taskId, 7);
    const underWay = await scene.start(other.taskId, 3);
    runs.push(...(await scene.start(holder.taskId, 7)));
    await application.query('select 1 from public.agents where id = $1 for update', [holder.agentId]);
    const before = performance.now();
    scene.answer();
    for (const id of underWay) expect((await waitForRun(db, id)).status).toBe('completed');
    expect(performance.now() - before).toBeLessThan(8_000);
    await application.query('rollback');
    await expectCompleted(scene, runs);
  });

  test.each([
    ['takes that back gets the answers', 'rollback', ['answer']],
    ['commits that fails no run', 'commit', []],
  ])('that deletes what its runs write to and %s', async (_, end, contents) => {
    await using scene = await openScene();
    const { db, holder, application } = scene;
    const taskId = await makeTask(db, holder, {
      instructions: 'held',
      target_conversation_id: holder.conversationId,
    });
    const runs = [...(await scene.start(holder.taskId, 1)), ...(await scene.start(taskId, 1))];
    await application.query('delete from public.chat_channels where id = $1', [holder.channelId]);
    await application.query('delete from public.conversations where id = $1', [holder.conversationId]);
    await expectOthersUnhindered(scene, runs);
    await application.query(end);
    for (const id of runs) {
      expect(await waitForRun(db, id)).toMatchObject({
        status: 'completed',
        lease_epoch: 1,
        output: { text: 'answer' },
      });
    }
    expect(await messages(db, 'chat_messages', holder)).toEqual(contents);
    expect(await messages(db, 'agent_messages', holder)).toEqual(contents);
  });

  test('that holds a run which has yet to start holds up no other, and the run is executed after it', async () => {
    await using scene = await openScene();
    const { db, holder, application } = scene;
    // Paused, its workspace lets no run in before it is held.
    const pause = [holder.workspaceId];
    await db.query(`insert into agentd.queue_controls (queue, workspace_id) values ('task-run', $1)`, pause);
    const id = await startRun(db, holder.taskId);
    await application.query('select 1 from public.task_runs where id = $1 for update', [id]);
    await db.query('delete from agentd.queue_controls where workspace_id = $1', pause);
    await expectOthersUnhindered(scene, []);
    expect((await findRun(db, id))?.status).toBe('queued');
    await application.query('rollback');
    await expectCompleted(scene, [id]);
  });

  test('that edits a step loses nothing of its edit', async () => {
    await using scene = await openScene();
    const { db, holder, application } = scene;
    const runs = await scene.start(holder.taskId, 1);
    await application.query(`update public.task_steps set instructions = 'new' where task_id = $1`, [
      holder.taskId,
    ]);
    await expectOthersUnhindered(scene, runs);
    await application.query('commit');
    await expectCompleted(scene, runs);
    const steps = await db.query('select instructions from public.task_steps where task_id = $1', [
      holder.taskId,
    ]);
    expect(steps).toEqual([{ instructions: 'new' }]);
  });
});
