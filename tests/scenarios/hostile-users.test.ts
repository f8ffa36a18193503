/** What users of an application may write reaches no run but by the ways that are theirs. */
import { randomUUID } from 'node:crypto';
import type pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { onServer } from '../support/database.ts';
import {
  daemonOfItsOwn,
  db,
  holdAnswers,
  model,
  platform,
  untilIdle,
  useDaemon,
} from '../support/one-daemon.ts';
import { insert, makePlatform, makeTask, type Platform, startRun, startTask } from '../support/platform.ts';
import { findRun, modelCalls, openRows, waitForRun } from '../support/runs.ts';

useDaemon();

/** Commits what `act` does in a session as it is after `settings`. */
async function session<T>(settings: string[], act: (db: pg.PoolClient) => Promise<T>): Promise<T> {
  const client = await db.pool.connect();
  try {
    await client.query('begin');
    for (const setting of settings) await client.query(setting);
    const result = await act(client);
    await client.query('commit');
    return result;
  } catch (error) {
    await client.query('rollback');
    throw error;
  } finally {
    client.release();
  }
}

const asUser = <T>(userId: string, act: (db: pg.PoolClient) => Promise<T>): Promise<T> =>
  session([`set local role authenticated`, `set local app.current_user_id = '${userId}'`], act);

const asService = <T>(act: (db: pg.PoolClient) => Promise<T>): Promise<T> =>
  session(['set local role service_role'], act);

/** SQLSTATE of a refusal; 'ok' if there was none. */
async function stateOf(work: Promise<unknown>): Promise<string> {
  return work.then(
    () => 'ok',
    (error: { code?: string }) => error.code ?? String(error),
  );
}

const denied = '42501';

async function member(owner: Platform, role: 'viewer' | 'manager'): Promise<string> {
  const userId = await insert(db, 'auth.users', { email: `${randomUUID()}@example.test` });
  await db.query('insert into public.workspace_members (workspace_id, user_id, role) values ($1, $2, $3)', [
    owner.workspaceId,
    userId,
    role,
  ]);
  return userId;
}

describe('a message that claims to be the answer of a run', () => {
  /** Where a user of a workspace may write. */
  type Place = {
    readonly table: 'chat_messages' | 'agent_messages';
    readonly columns: Record<string, string>;
    /** Column of a task that makes its answer appear here. */
    readonly target: Record<string, string>;
  };

  async function channel(owner: Platform, userId: string): Promise<Place> {
    const id = await insert(db, 'public.chat_channels', {
      workspace_id: owner.workspaceId,
      name: randomUUID(),
    });
    return {
      table: 'chat_messages',
      columns: { workspace_id: owner.workspaceId, channel_id: id, sender_user_id: userId },
      target: { target_channel_id: id },
    };
  }

  async function conversation(owner: Platform, userId: string): Promise<Place> {
    const id = await insert(db, 'public.conversations', {
      workspace_id: owner.workspaceId,
      agent_id: owner.agentId,
      user_id: userId,
    });
    return {
      table: 'agent_messages',
      columns: {
        workspace_id: owner.workspaceId,
        conversation_id: id,
        agent_id: owner.agentId,
        user_id: userId,
        role: 'assistant',
      },
      target: { target_conversation_id: id },
    };
  }

  async function write(
    client: pg.PoolClient,
    { table, columns }: Place,
    more: Record<string, string> = {},
  ): Promise<string> {
    const row = { ...columns, content: 'hi', ...more };
    const names = Object.keys(row);
    const { rows } = await client.query<{ id: string }>(
      `insert into public.${table} (${names.join(', ')}) values (${names.map((_, i) => `$${i + 1}`).join(', ')})
       returning id`,
      Object.values(row),
    );
    return rows[0]?.id ?? '';
  }

  async function runOf({ table }: Place, id: string): Promise<string | null | undefined> {
    const [row] = await db.query<{ run_id: string | null }>(
      `select run_id from public.${table} where id = $1`,
      [id],
    );
    return row?.run_id;
  }

  async function answers({ table }: Place, run: string): Promise<string[]> {
    const rows = await db.query<{ content: string }>(
      `select content from public.${table} where run_id = $1`,
      [run],
    );
    return rows.map((row) => row.content);
  }

  const places = [
    ['a channel', channel],
    ['a conversation', conversation],
  ] as const;

  describe.each(places)('in %s', (_, makePlace) => {
    test.each(['a viewer of the workspace', 'a user of another tenant'])(
      'from %s claims nothing: the run completes and its answer appears',
      async (who) => {
        const owner = await makePlatform(db, { shared: true });
        const place = await makePlace(owner, owner.userId);
        const hold = holdAnswers();
        const id = await startTask(db, owner, 'x', place.target);
        await model.waitForRequest();
        const stranger = await makePlatform(db);
        const writer = who.includes('viewer') ? await member(owner, 'viewer') : stranger.userId;
        const own = await makePlace(who.includes('viewer') ? owner : stranger, writer);
        const [inserted, updated] = await asUser(writer, async (client) => {
          const first = await write(client, own, { run_id: id });
          const second = await write(client, own);
          // Some tables let nobody edit a message: then it is refused, or nothing is found to be edited.
          await client.query('savepoint edit');
          await client
            .query(`update public.${own.table} set run_id = $1 where id = $2`, [id, second])
            .catch(() => client.query('rollback to savepoint edit'));
          return [first, second];
        });
        expect(await runOf(own, inserted ?? '')).toBeNull();
        expect(await runOf(own, updated ?? '')).toBeNull();
        hold.release();
        expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', output: { text: 'held' } });
        expect(await answers(place, id)).toEqual(['held']);
      },
    );

    test('that a service has written is the one answer: the run completes without another', async () => {
      const place = await makePlace(platform, platform.userId);
      const hold = holdAnswers();
      const id = await startTask(db, platform, 'x', place.target);
      await model.waitForRequest();
      const message = await asService((client) => write(client, place, { run_id: id, content: 'early' }));
      expect(await runOf(place, message)).toBe(id);
      hold.release();
      const run = await waitForRun(db, id);
      expect(run).toMatchObject({ status: 'completed', reason_code: null, output: { text: 'held' } });
      expect(run.prompt_tokens).toBeGreaterThan(0);
      expect(await answers(place, id)).toEqual(['early']);
    });

    test('whose run_id a user edits away stays the answer of its run', async () => {
      const place = await makePlace(platform, platform.userId);
      const id = await startTask(db, platform, 'x', place.target);
      await waitForRun(db, id);
      await stateOf(
        asUser(platform.userId, (client) =>
          client.query(`update public.${place.table} set run_id = $2 where run_id = $1`, [id, randomUUID()]),
        ),
      );
      expect(await answers(place, id)).toEqual(['answer']);
    });
  });
});

describe('a checkpoint that the database refuses', () => {
  const books = async (id: string): Promise<Record<string, number>> => {
    const rows = await db.query<{ metric: string; quantity: number; cost_micros: number }>(
      `select metric, sum(quantity)::integer as quantity, sum(cost_micros)::integer as cost_micros
         from public.usage_events where run_id = $1 group by metric`,
      [id],
    );
    return Object.fromEntries(
      rows.flatMap((row) => [
        [row.metric, row.quantity],
        [`${row.metric} cost`, row.cost_micros],
      ]),
    );
  };

  beforeAll(async () => {
    // A rule of the application's own that an answer may break.
    await db.query(
      `alter table public.chat_messages add constraint no_shouting check (content not like '%SHOUT%')`,
    );
  });
  afterAll(async () => {
    await db.query('alter table public.chat_messages drop constraint no_shouting');
  });

  test('fails the run, and leaves what was paid on the books', async () => {
    const channel = await insert(db, 'public.chat_channels', {
      workspace_id: platform.workspaceId,
      name: 'quiet',
    });
    const usage = { promptTokens: 1_000_000, completionTokens: 2_000 };
    model.respond((_, index) => ({ content: index === 0 ? 'one' : 'SHOUT', usage }));
    const id = await startTask(db, platform, 'x', { target_channel_id: channel }, [{}, {}]);
    const run = await waitForRun(db, id);
    expect(run).toMatchObject({
      status: 'failed',
      reason_code: 'journal_refused',
      lease_epoch: 1,
      turns: 2,
      prompt_tokens: 2_000_000,
      completion_tokens: 4_000,
    });
    expect(run.reason).toContain('no_shouting');
    expect(Number(run.cost_micros)).toBeGreaterThan(0);
    expect(await modelCalls(db, id)).toMatchObject([
      { status: 'completed', prompt_tokens: 1_000_000 },
      { status: 'completed', prompt_tokens: 1_000_000 },
    ]);
    expect(await books(id)).toEqual({
      tokens: 2_004_000,
      'tokens cost': Number(run.cost_micros),
      task_run: 1,
      'task_run cost': 0,
    });
    expect(await openRows(db, id)).toEqual([]);
    expect(model.requests).toHaveLength(2);
  });
});

describe('a login that inherits the rights of signed-in users and has named no user', () => {
  const role = `agentd_test_app_${randomUUID().slice(0, 8)}`;
  // The embedded database has one login, and does not get back to it: there the role is taken on instead.
  const login = onServer ? `set local session authorization ${role}` : `set local role ${role}`;
  const anonymous = <T>(act: (db: pg.PoolClient) => Promise<T>): Promise<T> => session([login], act);
  let taskId: string;

  beforeAll(async () => {
    await db.query(`create role ${role} login in role authenticated`);
    taskId = await makeTask(db, platform);
  });
  afterAll(async () => {
    await db?.query(`drop role if exists ${role}`);
  });

  test('starts no run of anybody’s task', async () => {
    const run = anonymous((client) => client.query('select public.run_task($1)', [taskId]));
    expect(await stateOf(run)).toBe(denied);
    expect(await db.query('select 1 from public.task_runs where task_id = $1', [taskId])).toEqual([]);
  });

  test('cancels no run of anybody', async () => {
    const hold = holdAnswers();
    const id = await startRun(db, taskId);
    await model.waitForRequest();
    const cancel = anonymous((client) => client.query('select public.cancel_run($1)', [id]));
    expect(await stateOf(cancel)).toBe(denied);
    hold.release();
    expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', lease_epoch: 1 });
  });

  test('does both as soon as it has named a manager of the workspace, and not for a viewer', async () => {
    const owner = await makePlatform(db, { shared: true });
    const task = await makeTask(db, owner);
    const hold = holdAnswers();
    const named = (user: string): Promise<string> =>
      anonymous(async (client) => {
        await client.query(`select set_config('app.current_user_id', $1, true)`, [user]);
        const { rows } = await client.query<{ run: string }>('select public.run_task($1) as run', [task]);
        await client.query('select public.cancel_run($1)', [rows[0]?.run]);
        return rows[0]?.run ?? '';
      });
    expect(await stateOf(named(await member(owner, 'viewer')))).toBe(denied);
    const id = await named(await member(owner, 'manager'));
    expect(await findRun(db, id)).toMatchObject({ status: 'cancelled' });
    hold.release();
    await untilIdle();
  });
});

describe('the user of a task', () => {
  async function newTask(client: pg.PoolClient, owner: Platform, userId?: string): Promise<string> {
    const { rows } = await client.query<{ id: string }>(
      `insert into public.agent_tasks (workspace_id, agent_id, name, user_id) values ($1, $2, 'x', $3) returning id`,
      [owner.workspaceId, owner.agentId, userId],
    );
    return rows[0]?.id ?? '';
  }
  const userOf = async (id: string): Promise<string | undefined> => {
    const [row] = await db.query<{ user_id: string }>(
      'select user_id from public.agent_tasks where id = $1',
      [id],
    );
    return row?.user_id;
  };
  let owner: Platform;
  let manager: string;
  let stranger: string;

  beforeEach(async () => {
    owner = await makePlatform(db, { shared: true });
    manager = await member(owner, 'manager');
    stranger = (await makePlatform(db)).userId;
  });

  test('is nobody from outside of the workspace when a manager inserts it', async () => {
    expect(await stateOf(asUser(manager, (client) => newTask(client, owner, stranger)))).toBe(denied);
    expect(await db.query('select 1 from public.agent_tasks where user_id = $1', [stranger])).toEqual([]);
  });

  test('is nobody from outside of the workspace when a manager edits it', async () => {
    const id = await asUser(manager, (client) => newTask(client, owner, manager));
    const edit = asUser(manager, (client) =>
      client.query('update public.agent_tasks set user_id = $2 where id = $1', [id, stranger]),
    );
    expect(await stateOf(edit)).toBe(denied);
    expect(await userOf(id)).toBe(manager);
  });

  test('is whom a manager names among the members, or himself', async () => {
    const viewer = await member(owner, 'viewer');
    const id = await asUser(manager, (client) => newTask(client, owner));
    expect(await userOf(id)).toBe(manager);
    await asUser(manager, (client) =>
      client.query('update public.agent_tasks set user_id = $2 where id = $1', [id, viewer]),
    );
    expect(await userOf(id)).toBe(viewer);
    expect(await userOf(await asUser(manager, (client) => newTask(client, owner, viewer)))).toBe(viewer);
  });

  test('is anybody for a service', async () => {
    const id = await asService((client) => newTask(client, owner, stranger));
    expect(await userOf(id)).toBe(stranger);
    await asService((client) =>
      client.query('update public.agent_tasks set user_id = $2 where id = $1', [id, manager]),
    );
    expect(await userOf(id)).toBe(manager);
  });

  test('who has left the workspace does not stop a manager from editing the rest', async () => {
    const id = await asService((client) => newTask(client, owner, stranger));
    await asUser(manager, (client) =>
      client.query(`update public.agent_tasks set name = 'y', user_id = user_id where id = $1`, [id]),
    );
    expect(await userOf(id)).toBe(stranger);
  });
});

// Embedded, nothing is notified between sessions.
describe.skipIf(!onServer)('server-only: a notification that says a run is cancelled', () => {
  test('from anybody stops no run; cancel_run does, within a second', async () => {
    // No renewal comes between: what happens, the notifications do.
    await using other = await daemonOfItsOwn({}, { leaseSeconds: 60 });
    const hold = holdAnswers();
    const id = await startTask(other.db, other.owner, 'long');
    const request = await model.waitForRequest((r) => r.userText === 'long');
    let gone = false;
    void request.finished.then((early) => {
      gone = early;
    });
    const client = await other.db.pool.connect();
    try {
      await client.query('set role anon');
      for (let i = 0; i < 3; i++) await client.query(`select pg_notify('agentd_cancel', $1)`, [id]);
      await client.query(`notify agentd_cancel, 'no run at all'`);
    } finally {
      await client.query('reset role');
      client.release();
    }
    // The daemon hears in order: once it has woken for these runs, it has heard what came before.
    model.respond(() => ({ content: 'after' }));
    for (let i = 0; i < 3; i++) {
      await waitForRun(other.db, await startTask(other.db, other.owner, 'other'));
    }
    expect(gone).toBe(false);
    expect(await findRun(other.db, id)).toMatchObject({ status: 'running', lease_epoch: 1 });

    model.respond(() => ({ hang: true }));
    const second = await startTask(other.db, other.owner, 'hangs');
    const hanging = await model.waitForRequest((r) => r.userText === 'hangs');
    const before = performance.now();
    await other.db.query('select public.cancel_run($1)', [second]);
    expect(await hanging.finished).toBe(true);
    expect(performance.now() - before).toBeLessThan(1_000);

    hold.release();
    expect(await waitForRun(other.db, id)).toMatchObject({
      status: 'completed',
      lease_epoch: 1,
      output: { text: 'held' },
    });
    expect(model.requests.filter((r) => r.userText === 'long')).toHaveLength(1);
    await untilIdle(other.db);
  });
});
