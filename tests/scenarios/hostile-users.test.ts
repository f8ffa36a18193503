/** What users of an application may not do to runs and tasks, by whichever way. */
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
import { makePlatform, makeTask, type Platform, startRun, startTask } from '../support/platform.ts';
import { findRun, waitForRun } from '../support/runs.ts';
import { addMember, asService, asUser, denied, session, stateOf } from '../support/sessions.ts';

useDaemon();

describe('a login that inherits the rights of signed-in users and has named no user', () => {
  const role = `agentd_test_app_${randomUUID().slice(0, 8)}`;
  // The embedded database has one login, and does not get back to it: there the role is taken on instead.
  const login = onServer ? `set local session authorization ${role}` : `set local role ${role}`;
  const anonymous = <T>(act: (db: pg.PoolClient) => Promise<T>): Promise<T> => session(db, [login], act);
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
    expect(await stateOf(named(await addMember(db, owner, 'viewer')))).toBe(denied);
    const id = await named(await addMember(db, owner, 'manager'));
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
    manager = await addMember(db, owner, 'manager');
    stranger = (await makePlatform(db)).userId;
  });

  test('is nobody from outside of the workspace when a manager inserts it', async () => {
    expect(await stateOf(asUser(db, manager, (client) => newTask(client, owner, stranger)))).toBe(denied);
    expect(await db.query('select 1 from public.agent_tasks where user_id = $1', [stranger])).toEqual([]);
  });

  test('is nobody from outside of the workspace when a manager edits it', async () => {
    const id = await asUser(db, manager, (client) => newTask(client, owner, manager));
    const edit = asUser(db, manager, (client) =>
      client.query('update public.agent_tasks set user_id = $2 where id = $1', [id, stranger]),
    );
    expect(await stateOf(edit)).toBe(denied);
    expect(await userOf(id)).toBe(manager);
  });

  test('is whom a manager names among the members, or himself', async () => {
    const viewer = await addMember(db, owner, 'viewer');
    const id = await asUser(db, manager, (client) => newTask(client, owner));
    expect(await userOf(id)).toBe(manager);
    await asUser(db, manager, (client) =>
      client.query('update public.agent_tasks set user_id = $2 where id = $1', [id, viewer]),
    );
    expect(await userOf(id)).toBe(viewer);
    expect(await userOf(await asUser(db, manager, (client) => newTask(client, owner, viewer)))).toBe(viewer);
  });

  test('is anybody for a service', async () => {
    const id = await asService(db, (client) => newTask(client, owner, stranger));
    expect(await userOf(id)).toBe(stranger);
    await asService(db, (client) =>
      client.query('update public.agent_tasks set user_id = $2 where id = $1', [id, manager]),
    );
    expect(await userOf(id)).toBe(manager);
  });

  test('who has left the workspace does not stop a manager from editing the rest', async () => {
    const id = await asService(db, (client) => newTask(client, owner, stranger));
    await asUser(db, manager, (client) =>
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
    expect(performance.now() - before).toBeLessThan(8_000);

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
