/** What a tenant may make of others without asking them, and that it harms them nothing. */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { asService, asUser, denied, stateOf } from '../support/sessions.ts';
import { makeWorld, type World } from './isolation-world.ts';
import { type Company, company, inserted, personalWorkspace, signUp, value } from './schema-support.ts';

let db: TestDatabase;
let c: Company;

beforeAll(async () => {
  db = await testDatabase();
  c = await company(db.pool);
});
afterAll(() => db?.dispose());

const remove = (user: string): Promise<unknown> => db.query('delete from auth.users where id = $1', [user]);

describe('a user whom others have named', () => {
  test('is deleted, whatever they made him owner or member of, and what they use stays', async () => {
    const victim = await signUp(db.pool);
    const mine = await inserted(
      db.pool,
      `insert into public.workspaces (name, owner_user_id) values ('t', $1)`,
      [c.owner],
    );
    await asUser(db, c.owner, async (client) => {
      const team = await inserted(
        client,
        `insert into public.teams (workspace_id, name, owner_user_id) values ($1, 't', $2)`,
        [c.workspace, victim],
      );
      await client.query('insert into public.user_team_memberships (team_id, user_id) values ($1, $2)', [
        team,
        victim,
      ]);
      for (const workspace of [c.workspace, mine]) {
        await client.query(
          `insert into public.workspace_members (workspace_id, user_id, role) values ($1, $2, 'member')`,
          [workspace, victim],
        );
      }
      await client.query('update public.workspaces set owner_user_id = $2 where id = $1', [mine, victim]);
    });
    await remove(victim);
    expect(await value(db.pool, 'select owner_user_id from public.workspaces where id = $1', [mine])).toBe(
      c.owner,
    );
    expect(
      await value(db.pool, 'select count(*)::int from public.teams where owner_user_id = $1', [c.owner]),
    ).toBe(1);
  });

  test('leaves by himself, and lists nothing of theirs from then on', async () => {
    const victim = await signUp(db.pool);
    const [team, room] = [
      await inserted(db.pool, `insert into public.teams (workspace_id, name) values ($1, 't')`, [
        c.workspace,
      ]),
      await inserted(db.pool, `insert into public.chat_rooms (workspace_id, name) values ($1, 'r')`, [
        c.workspace,
      ]),
    ];
    await asUser(db, c.owner, async (client) => {
      await client.query('insert into public.workspace_members (workspace_id, user_id) values ($1, $2)', [
        c.workspace,
        victim,
      ]);
      await client.query('insert into public.user_team_memberships (team_id, user_id) values ($1, $2)', [
        team,
        victim,
      ]);
      await client.query('insert into public.chat_room_members (room_id, user_id) values ($1, $2)', [
        room,
        victim,
      ]);
    });
    await asUser(db, victim, async (client) => {
      const deleted = async (table: string): Promise<number | null> =>
        (await client.query(`delete from public.${table} where user_id = $1`, [victim])).rowCount;
      expect(await deleted('chat_room_members')).toBe(1);
      expect(await deleted('user_team_memberships')).toBe(1);
      expect(await client.query('delete from public.workspace_members').then((done) => done.rowCount)).toBe(
        2,
      );
      expect(
        (await client.query('select 1 from public.workspaces where id = $1', [c.workspace])).rowCount,
      ).toBe(0);
      expect(
        (await client.query('select 1 from public.agents where workspace_id = $1', [c.workspace])).rowCount,
      ).toBe(0);
    });
    // nobody else was thrown out
    expect(
      await value(db.pool, 'select count(*)::int from public.workspace_members where workspace_id = $1', [
        c.workspace,
      ]),
    ).toBe(3);
  });

  test('is deleted with a row of his in every table there is', async () => {
    const world: World = await makeWorld(db);
    for (const user of [world.here.author, world.here.owner, world.here.manager, world.here.viewer])
      await remove(user);
    // the last of them were no managers
    const owner = 'select owner_user_id from public.workspaces where id = $1';
    expect(await value(db.pool, owner, [world.here.workspace])).toBe(
      await value(db.pool, 'select agentd.system_user_id()'),
    );
    expect(await value(db.pool, owner, [world.there.workspace])).toBe(world.there.owner);
  });

  test('a workspace that only viewers are left in is nobody’s of them, and goes on', async () => {
    const other = await company(db.pool);
    await remove(other.owner);
    await remove(other.manager);
    const owner = await value<string>(db.pool, 'select owner_user_id from public.workspaces where id = $1', [
      other.workspace,
    ]);
    expect(owner).toBe(await value(db.pool, 'select agentd.system_user_id()'));
    const role = await asUser(db, other.viewer, (client) =>
      value(client, 'select public.get_user_role($1)', [other.workspace]),
    );
    expect(role).toBe('VIEWER');
  });
});

describe('a slug of a personal workspace', () => {
  const squat = (user: string, slug: string): Promise<string> =>
    stateOf(
      asUser(db, user, (client) =>
        client.query('insert into public.workspaces (name, slug) values ($1, $1)', [slug]),
      ),
    );

  test('is taken by nobody else, nor by a name or a change that makes it', async () => {
    const future = `personal-${randomUUID()}`;
    expect(await squat(c.owner, future)).toBe(denied);
    const slug = await asUser(db, c.owner, (client) =>
      value<string>(client, 'insert into public.workspaces (name) values ($1) returning slug', [future]),
    );
    expect(slug).not.toBe(future);
    const change = asUser(db, c.owner, (client) =>
      client.query('update public.workspaces set slug = $1 where id = $2', [future, c.workspace]),
    );
    expect(await stateOf(change)).toBe(denied);
    expect(await squat(c.owner, `of-my-own-${randomUUID()}`)).toBe('ok');
  });

  test('that was taken before is done without', async () => {
    const id = randomUUID();
    await db.query('insert into public.workspaces (name, slug, owner_user_id) values ($1, $2, $3)', [
      'squat',
      `personal-${id}`,
      c.owner,
    ]);
    await db.query('insert into auth.users (id, email) values ($1, $2)', [id, `${id}@example.test`]);
    expect(await personalWorkspace(db.pool, id)).toBeTruthy();
    expect(await db.query('select * from agentd.signup_failures where user_id = $1', [id])).toEqual([]);
  });
});

test('a trigger of a temporary table of his own lets nobody say what only the worker says', async () => {
  const made = asUser(db, c.manager, async (client) => {
    await client.query(`
      create temp table mine (workspace uuid);
      create function pg_temp.say() returns trigger language plpgsql as $$
      begin
        insert into public.knowledge_sources (workspace_id, name, type, content, processing_status, request, cost_micros)
        values (new.workspace, 'deep', 'TEXT', 'x', 'processing', 2147483647, 5);
        return null;
      end $$;
      create trigger say after insert on mine for each row execute function pg_temp.say()`);
    await client.query('insert into mine values ($1)', [c.workspace]);
    const { rows } = await client.query(
      `select processing_status, request, cost_micros::int from public.knowledge_sources where name = 'deep'`,
    );
    await client.query('drop table mine; drop function pg_temp.say()');
    return rows;
  });
  expect(await made).toEqual([{ processing_status: 'uploaded', request: 1, cost_micros: 0 }]);
});

describe('an id of a channel', () => {
  test('is no conversation of another workspace, and stays good for a task of its own', async () => {
    const channel = await inserted(
      db.pool,
      `insert into public.chat_channels (workspace_id, name) values ($1, 'c')`,
      [c.workspace],
    );
    const other = await company(db.pool);
    // as a word that is taken, wherever it is
    const taken = asUser(db, other.owner, (client) =>
      client.query('insert into public.conversations (id, workspace_id, user_id) values ($1, $2, $3)', [
        channel,
        other.workspace,
        other.owner,
      ]),
    );
    expect(await stateOf(taken)).toBe('23505');
    await asUser(db, c.manager, (client) =>
      client.query(
        `insert into public.agent_tasks (workspace_id, agent_id, name, target_conversation_id) values ($1, $2, 't', $3)`,
        [c.workspace, c.agent, channel],
      ),
    );
    expect(
      await value(
        db.pool,
        'select target_channel_id from public.agent_tasks where target_conversation_id = $1',
        [channel],
      ),
    ).toBe(channel);
  });
});

test('who has left still reads, in agent_platform, what he said himself, and no word of others', async () => {
  const talk = await inserted(
    db.pool,
    `insert into public.conversations (workspace_id, agent_id, user_id, external_id) values ($1, $2, $3, 'talk')`,
    [c.workspace, c.agent, c.owner],
  );
  const gone = await signUp(db.pool);
  await db.query(`insert into public.workspace_members (workspace_id, user_id) values ($1, $2)`, [
    c.workspace,
    gone,
  ]);
  const say = (user: string, text: string): Promise<string> =>
    inserted(
      db.pool,
      `insert into public.agent_messages (workspace_id, agent_id, conversation_id, user_id, role, content) values ($1, $2, $3, $4, 'user', $5)`,
      [c.workspace, c.agent, talk, user, text],
    );
  await say(gone, 'mine');
  const theirs = await say(c.owner, 'theirs');
  await db.query('insert into public.agent_feedback (message_id, user_id, rating) values ($1, $2, 5)', [
    theirs,
    gone,
  ]);
  const seen = () =>
    asUser(db, gone, async (client) => ({
      messages: (
        await client.query(
          'select content, conversation_id from agent_platform.agent_messages order by content',
        )
      ).rows,
      feedback: (await client.query('select message_id, rating from agent_platform.agent_feedback')).rows,
    }));
  expect(await seen()).toEqual({
    messages: [
      { content: 'mine', conversation_id: 'talk' },
      { content: 'theirs', conversation_id: 'talk' },
    ],
    feedback: [{ message_id: theirs, rating: 5 }],
  });
  await db.query('delete from public.workspace_members where workspace_id = $1 and user_id = $2', [
    c.workspace,
    gone,
  ]);
  expect(await seen()).toEqual({
    messages: [{ content: 'mine', conversation_id: talk }],
    feedback: [{ message_id: theirs, rating: 5 }],
  });
});

describe('agentexpress.users', () => {
  const set = (user: string, assignment: string): Promise<string> =>
    stateOf(
      asService(db, (client) =>
        client.query(`update agentexpress.users set ${assignment} where id = $1`, [user]),
      ),
    );

  test('says that an id cannot be changed, and that a role cannot be null', async () => {
    const user = await signUp(db.pool);
    expect(await set(user, 'id = gen_random_uuid()')).toBe('0A000');
    expect(await set(user, 'role = null')).toBe('23502');
    expect(await set(user, `role = 'editor', first_name = 'Ada'`)).toBe('ok');
    expect(await value(db.pool, 'select role from agentexpress.users where id = $1', [user])).toBe('editor');
  });
});
