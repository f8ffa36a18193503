import { createCipheriv, randomBytes } from 'node:crypto';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { columnSecretStore, parseKeyRing } from '../../src/providers/secrets.ts';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { type TestDaemon, testDaemon } from '../support/daemon.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import {
  agentKey,
  insert,
  makePlatform,
  makeTask,
  type Platform,
  startRun,
  startTask,
  workspaceKey,
} from '../support/platform.ts';
import { findRun, modelCalls, openRows, type Run, stepRuns, until, waitForRun } from '../support/runs.ts';

const ENCRYPTION_KEY = randomBytes(32).toString('hex');
const ENVIRONMENT_KEY = 'sk-environment-0123456789abcdef';
const WORKSPACE_KEY = 'sk-workspace-0123456789abcdef';
const AGENT_KEY = 'sk-agent-key-0123456789abcdef';

let db: TestDatabase;
let model: ModelServer;
let daemon: TestDaemon;
let platform: Platform;

beforeAll(async () => {
  db = await testDatabase();
  model = await startModelServer({ apiKeys: [ENVIRONMENT_KEY, WORKSPACE_KEY, AGENT_KEY] });
  platform = await makePlatform(db);
  daemon = await testDaemon(db, model, { env: { ENCRYPTION_KEY } });
});

afterAll(async () => {
  await daemon?.stop();
  await model?.close();
  await db?.dispose();
});

beforeEach(() => {
  model.requests.length = 0;
  model.respond(() => ({ content: 'answer' }));
});

afterEach(() => {
  expect(model.rejected).toEqual([]);
});

/** The run failed with this code before anything was asked, and none of its rows is open. */
async function expectRefused(id: string, code: string, sentence: RegExp): Promise<Run> {
  const run = await waitForRun(db, id);
  expect(run).toMatchObject({ status: 'failed', reason_code: code, lease_epoch: 1 });
  expect(run.reason).toMatch(sentence);
  expect(model.requests).toEqual([]);
  expect(await openRows(db, id)).toEqual([]);
  return run;
}

describe('what a task lacks', () => {
  test('a task without any instructions fails with the place to write them', async () => {
    await expectRefused(
      await startTask(db, platform, '', {}, [{ instructions: '  ' }]),
      'no_instructions',
      /instructions/,
    );
  });

  test('gaps in the numbering of steps do not matter', async () => {
    const id = await startTask(db, platform, 'x', {}, [{ order: 3 }, { order: 7 }, { order: 20 }]);
    expect((await waitForRun(db, id)).status).toBe('completed');
    expect((await stepRuns(db, id)).map((s) => [s.step_order, s.status])).toEqual([
      [1, 'completed'],
      [2, 'completed'],
      [3, 'completed'],
    ]);
    const projected = await db.query<{ status: string }>(
      `select s.status from public.task_steps s join public.task_runs r on r.task_id = s.task_id where r.id = $1`,
      [id],
    );
    expect(projected.map((row) => row.status)).toEqual(['completed', 'completed', 'completed']);
  });

  test('earlier results reach only the steps that include them', async () => {
    model.respond((_, index) => ({ content: `result-${index + 1}` }));
    const id = await startTask(db, platform, 'x', {}, [{}, { previous: false }, { previous: true }]);
    await waitForRun(db, id);
    const texts = model.requests.map((r) => r.userText);
    expect(texts[1]).not.toContain('result-1');
    expect(texts[2]).toContain('result-1');
    expect(texts[2]).toContain('result-2');
  });
});

describe('whose key is used', () => {
  test('the agent’s own key comes before the workspace’s, and that before the environment’s', async () => {
    const owner = await makePlatform(db);
    const used: (string | null)[] = [];
    const sources: (string | null | undefined)[] = [];
    const once = async (): Promise<void> => {
      const id = await startTask(db, owner, 'key');
      await waitForRun(db, id);
      used.push(model.requests.at(-1)?.apiKey ?? null);
      sources.push((await modelCalls(db, id))[0]?.credential_source);
    };
    await once();
    await workspaceKey(db, owner, WORKSPACE_KEY);
    await once();
    await agentKey(db, owner, AGENT_KEY);
    await once();
    expect(used).toEqual([ENVIRONMENT_KEY, WORKSPACE_KEY, AGENT_KEY]);
    expect(sources).toEqual(['environment', 'workspace', 'agent']);
  });

  test('a key of another workspace is never used', async () => {
    const other = await makePlatform(db);
    await workspaceKey(db, other, WORKSPACE_KEY);
    await agentKey(db, other, AGENT_KEY);
    await waitForRun(db, await startTask(db, await makePlatform(db), 'key'));
    expect(model.requests.map((r) => r.apiKey)).toEqual([ENVIRONMENT_KEY]);
  });

  test('a workspace’s key that is switched off is not used', async () => {
    const owner = await makePlatform(db);
    await workspaceKey(db, owner, WORKSPACE_KEY, { is_active: false });
    await waitForRun(db, await startTask(db, owner, 'key'));
    expect(model.requests.map((r) => r.apiKey)).toEqual([ENVIRONMENT_KEY]);
  });

  test('a key in the form iv:tag:ciphertext is opened with ENCRYPTION_KEY', async () => {
    const owner = await makePlatform(db);
    await workspaceKey(db, owner, referenceForm(WORKSPACE_KEY, ENCRYPTION_KEY));
    await waitForRun(db, await startTask(db, owner, 'key'));
    expect(model.requests.map((r) => r.apiKey)).toEqual([WORKSPACE_KEY]);
  });

  test('a sealed key opens in its own row and in no other', async () => {
    const owner = await makePlatform(db);
    const id = await workspaceKey(db, owner, null);
    const store = columnSecretStore(parseKeyRing({ ENCRYPTION_KEY }));
    const seal = (row: string): string =>
      store.seal(WORKSPACE_KEY, {
        table: 'public.workspace_llm_config',
        row,
        column: 'api_key',
        workspace: owner.workspaceId,
      });
    const save = (sealed: string) =>
      db.query('update public.workspace_llm_config set api_key = $2 where id = $1', [id, sealed]);
    await save(seal(owner.agentId));
    await expectRefused(await startTask(db, owner, 'key'), 'secret_tampered', /workspace_llm_config/);
    await save(seal(id));
    await waitForRun(db, await startTask(db, owner, 'key'));
    expect(model.requests.map((r) => r.apiKey)).toEqual([WORKSPACE_KEY]);
  });

  test('a key sealed with another ENCRYPTION_KEY, or changed since, fails the run and names its row', async () => {
    const owner = await makePlatform(db);
    const other = referenceForm(WORKSPACE_KEY, randomBytes(32).toString('hex'));
    const id = await workspaceKey(db, owner, other);
    const run = await expectRefused(await startTask(db, owner, 'key'), 'secret_tampered', new RegExp(id));
    expect(run.reason).not.toContain(WORKSPACE_KEY);
    const good = referenceForm(WORKSPACE_KEY, ENCRYPTION_KEY);
    const changed = good.slice(0, -1) + (good.endsWith('0') ? '1' : '0');
    await db.query('update public.workspace_llm_config set api_key = $2 where id = $1', [id, changed]);
    await expectRefused(await startTask(db, owner, 'key'), 'secret_tampered', new RegExp(id));
  });

  test('without ENCRYPTION_KEY a sealed key fails the run and says which variable to set', async () => {
    await using other = await daemonOfItsOwn({});
    await workspaceKey(other.db, other.owner, referenceForm(WORKSPACE_KEY, ENCRYPTION_KEY));
    const run = await waitForRun(other.db, await startTask(other.db, other.owner, 'key'));
    expect(run).toMatchObject({ status: 'failed', reason_code: 'secret_no_key' });
    expect(run.reason).toContain('ENCRYPTION_KEY');
  });

  test('without any key the run fails and says where to put one', async () => {
    await using other = await daemonOfItsOwn({ OPENAI_API_KEY: '' });
    const id = await startTask(other.db, other.owner, 'key');
    const run = await waitForRun(other.db, id);
    expect(run).toMatchObject({ status: 'failed', reason_code: 'no_model_credential' });
    expect(run.reason).toMatch(/workspace_llm_config.*OPENAI_API_KEY/);
    expect(await openRows(other.db, id)).toEqual([]);
    expect(model.requests).toEqual([]);
  });
});

describe('rows that go away while a run executes', () => {
  test.each([
    ['agent', 'public.agents', 'agent_deleted'],
    ['task', 'public.agent_tasks', 'task_deleted'],
  ])('a deleted %s ends its run; the run and its journal stay', async (what, table, code) => {
    const owner = await makePlatform(db, { shared: true });
    const hold = holdAnswers();
    const taskId = await makeTask(db, owner);
    const id = await startRun(db, taskId);
    const request = await model.waitForRequest();
    await db.query(`delete from ${table} where id = $1`, [what === 'agent' ? owner.agentId : taskId]);
    const run = await waitForRun(db, id);
    expect(run).toMatchObject({ status: 'cancelled', reason_code: code });
    expect(await request.finished).toBe(true);
    hold.release();
    await untilIdle();
    expect(await openRows(db, id)).toEqual([]);
    expect(await modelCalls(db, id)).toMatchObject([{ status: 'failed', error_code: code }]);
    expect((await findRun(db, id))?.status).toBe('cancelled');
  });

  test('a deleted workspace takes its runs with it, and the daemon works on', async () => {
    const owner = await makePlatform(db, { shared: true });
    const hold = holdAnswers();
    const id = await startTask(db, owner, 'doomed');
    const request = await model.waitForRequest();
    await db.query('delete from public.workspaces where id = $1', [owner.workspaceId]);
    expect(await findRun(db, id)).toBeNull();
    expect(await request.finished).toBe(true);
    hold.release();
    await untilIdle();
    model.respond(() => ({ content: 'alive' }));
    const next = await waitForRun(db, await startTask(db, platform, 'next'));
    expect(next.output?.text).toBe('alive');
    const left = await db.query('select 1 from public.llm_calls where run_id = $1', [id]);
    expect(left).toEqual([]);
  });

  test('a deleted conversation stops no run: its answer is in the output', async () => {
    const conversation = await insert(db, 'public.conversations', {
      workspace_id: platform.workspaceId,
      agent_id: platform.agentId,
      user_id: platform.userId,
    });
    const hold = holdAnswers();
    const id = await startTask(db, platform, 'x', { target_conversation_id: conversation });
    await model.waitForRequest();
    await db.query('delete from public.conversations where id = $1', [conversation]);
    hold.release();
    expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', output: { text: 'held' } });
  });
});

describe('cancelling', () => {
  test('a running run: its request is aborted within a second and nothing of its answer is kept', async () => {
    // On a server the notification does it: the next renewal would be in twenty seconds.
    await using other = await daemonOfItsOwn({}, { leaseSeconds: 60 });
    const hold = holdAnswers();
    const id = await startTask(other.db, other.owner, 'long');
    const request = await model.waitForRequest();
    const before = performance.now();
    expect(await cancel(id, other.db)).toBe(true);
    expect(await request.finished).toBe(true);
    expect(performance.now() - before).toBeLessThan(1_500);
    hold.release();
    await untilIdle(other.db);
    const run = await findRun(other.db, id);
    expect(run).toMatchObject({ status: 'cancelled', reason_code: 'cancelled', output: null });
    expect(await openRows(other.db, id)).toEqual([]);
    expect(await cancel(id, other.db)).toBe(false);
  });

  test('a queued run is never started', async () => {
    await using other = await daemonOfItsOwn({ AGENTD_QUEUES: 'task-run=1' });
    let release = (): void => {};
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    model.respond(() => ({ content: 'held', delay: held }));
    const first = await startTask(other.db, other.owner, 'first');
    await model.waitForRequest();
    const second = await startTask(other.db, other.owner, 'second');
    await other.db.query('select public.cancel_run($1)', [second]);
    release();
    await waitForRun(other.db, first);
    const third = await startTask(other.db, other.owner, 'third');
    await waitForRun(other.db, third);
    expect((await findRun(other.db, second))?.status).toBe('cancelled');
    expect(model.requests.map((r) => r.userText)).toEqual(['first', 'third']);
    expect(await stepRuns(other.db, second)).toEqual([]);
  });

  test('a waiting run is not woken', async () => {
    model.respond(() => ({ status: 429, headers: { 'retry-after-ms': '6000' } }));
    const id = await startTask(db, platform, 'limited');
    const waiting = await waitForRun(db, id, ['waiting']);
    await cancel(id);
    expect(await findRun(db, id)).toMatchObject({ status: 'cancelled', wake_at: null });
    expect(await openRows(db, id)).toEqual([]);
    const jobs = await db.query(
      `select 1 from pgboss.job where id = $1 and state in ('created', 'retry', 'active')`,
      [waiting.job_id],
    );
    expect(jobs).toEqual([]);
  });
});

describe('limits', () => {
  test('a step that fails is tried again and goes on; the attempts are counted', async () => {
    model.respond((_, index) => (index < 2 ? { body: 'nonsense' } : { content: 'third time' }));
    const id = await startTask(db, platform, 'x', { max_retries: 2 });
    expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', output: { text: 'third time' } });
    expect(await stepRuns(db, id)).toMatchObject([{ attempt: 3, status: 'completed' }]);
  });

  test('a step’s own max_retries counts, not the task’s', async () => {
    model.respond(() => ({ body: 'nonsense' }));
    const id = await startTask(db, platform, 'x', { max_retries: 3 }, [{ maxRetries: 1 }]);
    const run = await waitForRun(db, id);
    expect(run).toMatchObject({ status: 'failed', reason_code: 'bad_response' });
    expect(run.reason).toContain('after 2 attempts');
    expect(model.requests).toHaveLength(2);
  });

  test('what a failed run had finished before stays readable', async () => {
    model.respond((_, index) => (index === 0 ? { content: 'kept' } : { refusal: 'No.' }));
    const id = await startTask(db, platform, 'x', {}, [{}, {}, {}]);
    expect((await waitForRun(db, id)).status).toBe('failed');
    const steps = await stepRuns(db, id);
    expect(steps.map((s) => [s.step_order, s.status, s.result?.text])).toEqual([
      [1, 'completed', 'kept'],
      [2, 'failed', undefined],
    ]);
  });

  test.each([3_000_000, 2_000_000_000])(
    'a step may have %i seconds: longer than a timer counts',
    async (seconds) => {
      const id = await startTask(db, platform, 'x', { timeout_seconds: seconds }, [
        { timeoutSeconds: seconds },
      ]);
      expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', output: { text: 'answer' } });
    },
  );

  test('a run ends at its timeout_seconds, whatever its model does', async () => {
    model.respond(() => ({ hang: true }));
    const id = await startTask(db, platform, 'x', { timeout_seconds: 1, max_retries: 5 });
    const run = await waitForRun(db, id);
    expect(run).toMatchObject({ status: 'failed', reason_code: 'timeout' });
    expect(run.reason).toContain('timeout_seconds');
    expect(await model.requests[0]?.finished).toBe(true);
    expect(await openRows(db, id)).toEqual([]);
  });
});

describe('tools of a task', () => {
  test('selected_tools restrict what the model is offered', async () => {
    await waitForRun(db, await startTask(db, platform, 'x'));
    await waitForRun(db, await startTask(db, platform, 'x', { selected_tools: '["send_message"]' }));
    await waitForRun(db, await startTask(db, platform, 'x', { selected_tools: '[{"name":"current_time"}]' }));
    await waitForRun(db, await startTask(db, platform, 'x', { selected_tools: '["no_such_tool"]' }));
    expect(model.requests.map(({ body }) => (body.tools ?? []).map((tool) => tool.function.name))).toEqual([
      ['current_time'],
      ['send_message'],
      ['current_time'],
      [],
    ]);
  });

  test('a tool that was not selected can’t be called', async () => {
    model.respond((_, index) =>
      index === 0
        ? { toolCalls: [{ name: 'send_message', arguments: { content: 'sneaky', channel: 'general' } }] }
        : { content: 'done' },
    );
    await insert(db, 'public.chat_channels', { workspace_id: platform.workspaceId, name: 'general' });
    await waitForRun(db, await startTask(db, platform, 'x', { selected_tools: '["current_time"]' }));
    expect(await db.query(`select 1 from public.chat_messages where content = 'sneaky'`)).toEqual([]);
  });

  test('send_message posts exactly once, beside the answer', async () => {
    const channel = await insert(db, 'public.chat_channels', {
      workspace_id: platform.workspaceId,
      name: 'alerts',
    });
    model.respond((_, index) =>
      index === 0
        ? { toolCalls: [{ name: 'send_message', arguments: { content: 'heads up' } }] }
        : { content: 'done' },
    );
    const id = await startTask(db, platform, 'x', {
      selected_tools: '["send_message"]',
      target_channel_id: channel,
    });
    await waitForRun(db, id);
    const rows = await db.query<{ content: string }>(
      'select content from public.chat_messages where channel_id = $1 order by created_at',
      [channel],
    );
    expect(rows.map((row) => row.content)).toEqual(['heads up', 'done']);
  });

  test('send_message can’t reach a channel of another workspace', async () => {
    const other = await makePlatform(db);
    const foreign = await insert(db, 'public.chat_channels', {
      workspace_id: other.workspaceId,
      name: 'secret',
    });
    model.respond((_, index) =>
      index < 2
        ? {
            toolCalls: [
              {
                name: 'send_message',
                arguments: { content: 'hi', channel: index === 0 ? 'secret' : foreign },
              },
            ],
          }
        : { content: 'done' },
    );
    const id = await startTask(db, platform, 'x', { selected_tools: '["send_message"]' });
    expect((await waitForRun(db, id)).status).toBe('completed');
    expect(await db.query('select 1 from public.chat_messages where channel_id = $1', [foreign])).toEqual([]);
    expect(model.requests).toHaveLength(3);
  });
});

/** The form iv:tag:ciphertext in hex that applications write by themselves. */
function referenceForm(text: string, keyHex: string): string {
  const iv = randomBytes(16);
  const cipher = createCipheriv('aes-256-gcm', Buffer.from(keyHex, 'hex'), iv);
  const sealed = Buffer.concat([cipher.update(text, 'utf8'), cipher.final()]);
  return [iv, cipher.getAuthTag(), sealed].map((part) => part.toString('hex')).join(':');
}

/** From now on the model answers when released. */
function holdAnswers(): { release(): void } {
  const { promise, resolve } = Promise.withResolvers<void>();
  model.respond(() => ({ content: 'held', delay: promise }));
  return { release: resolve };
}

async function cancel(id: string, on: TestDatabase = db): Promise<boolean | undefined> {
  const [row] = await on.query<{ done: boolean }>('select public.cancel_run($1) as done', [id]);
  return row?.done;
}

/** The daemon holds no job any more: whatever it was going to write, it has. */
function untilIdle(on: TestDatabase = db): Promise<true> {
  return until('no job is active', async () => {
    const active = await on.query(`select 1 from pgboss.job where name = 'task-run' and state = 'active'`);
    return active.length === 0;
  });
}

async function daemonOfItsOwn(env: Record<string, string>, options: { leaseSeconds?: number } = {}) {
  const database = await testDatabase();
  const owner = await makePlatform(database);
  const worker = await testDaemon(database, model, { env, ...options });
  return {
    db: database,
    owner,
    async [Symbol.asyncDispose]() {
      await worker.stop();
      await database.dispose();
    },
  };
}

test('no run of this file was taken over or spent an attempt of its job', async () => {
  const rows = await db.query<{ id: string; lease_epoch: number }>(
    `select id, lease_epoch from public.task_runs where status in ('completed', 'failed') and lease_epoch <> 1`,
  );
  expect(rows).toEqual([]);
  const failed = await db.query(`select 1 from agentd.job_runs where outcome in ('retry', 'failed')`);
  expect(failed).toEqual([]);
});
