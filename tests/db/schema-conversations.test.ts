import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import {
  asUser,
  checkViolation,
  company,
  denied,
  foreignKeyViolation,
  inserted,
  outcome,
  personalWorkspace,
  signUp,
  uniqueViolation,
  value,
} from './schema-support.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await testDatabase();
});
afterAll(() => db.dispose());

const channel = (workspace: string) =>
  inserted(db.pool, `insert into public.chat_channels (workspace_id, name) values ($1, 'general')`, [
    workspace,
  ]);

test('rooms, channels, members and messages take the workspace of what they are in', async () => {
  const { workspace, owner, viewer, agent } = await company(db.pool);
  const room = await inserted(
    db.pool,
    `insert into public.chat_rooms (workspace_id, name) values ($1, 'room')`,
    [workspace],
  );
  expect(await value(db.pool, 'select owner_user_id from public.chat_rooms where id = $1', [room])).toBe(
    owner,
  );
  const inRoom = await inserted(
    db.pool,
    `insert into public.chat_channels (room_id, name) values ($1, 'c')`,
    [room],
  );
  const workspaces = [
    await value(db.pool, 'select workspace_id from public.chat_channels where id = $1', [inRoom]),
    await value(
      db.pool,
      'insert into public.chat_room_members (room_id, agent_id) values ($1, $2) returning workspace_id',
      [room, agent],
    ),
    await value(
      db.pool,
      `insert into public.chat_messages (channel_id, sender_user_id, content) values ($1, $2, 'hi') returning workspace_id`,
      [inRoom, viewer],
    ),
    await value(db.pool, 'insert into public.conversations (agent_id) values ($1) returning workspace_id', [
      agent,
    ]),
    await value(db.pool, 'insert into public.chat_sessions (agent_id) values ($1) returning workspace_id', [
      agent,
    ]),
    await value(db.pool, 'insert into public.leads (agent_id) values ($1) returning workspace_id', [agent]),
  ];
  expect(workspaces).toEqual(Array(6).fill(workspace));
  const personal = await asUser(db.pool, viewer, (client) =>
    value(client, `insert into public.chat_rooms (name) values ('own') returning workspace_id`),
  );
  expect(personal).toBe(await personalWorkspace(db.pool, viewer));
});

test('a member of a room is exactly one user, agent or team, and its type and id follow', async () => {
  const { workspace, viewer, agent } = await company(db.pool);
  const elsewhere = await company(db.pool);
  const room = await inserted(
    db.pool,
    `insert into public.chat_rooms (workspace_id, name) values ($1, 'r')`,
    [workspace],
  );
  const add = (columns: string, ...ids: string[]) =>
    outcome(
      db.pool,
      `insert into public.chat_room_members (room_id, ${columns}) values ($1, ${ids.map((_, i) => `$${i + 2}`)})`,
      [room, ...ids],
    );
  expect(await add('user_id', viewer)).toBe('ok');
  expect(await add('agent_id', agent)).toBe('ok');
  expect(await add('user_id, agent_id', viewer, agent)).toBe(checkViolation);
  expect(await add('agent_id', elsewhere.agent)).toBe(foreignKeyViolation);
  const rows = await db.pool.query(
    'select member_type, member_id from public.chat_room_members where room_id = $1 order by member_type',
    [room],
  );
  expect(rows.rows).toEqual([
    { member_type: 'agent', member_id: agent },
    { member_type: 'user', member_id: viewer },
  ]);
});

test('last_message_at of a channel is the time of its newest message, also for many at once', async () => {
  const { workspace } = await company(db.pool);
  const id = await channel(workspace);
  const last = () =>
    value<Date>(db.pool, 'select last_message_at from public.chat_channels where id = $1', [id]);
  await db.pool.query(
    `insert into public.chat_messages (channel_id, content, created_at)
     values ($1, 'a', '2030-01-01Z'), ($1, 'b', '2030-01-03Z'), ($1, 'c', '2030-01-02Z')`,
    [id],
  );
  expect(await last()).toEqual(new Date('2030-01-03Z'));
  await db.pool.query(
    `insert into public.chat_messages (channel_id, content, created_at) values ($1, 'late', '2029-01-01Z')`,
    [id],
  );
  expect(await last()).toEqual(new Date('2030-01-03Z'));
});

test('a run says one message in a channel and one in a conversation', async () => {
  const { workspace, owner, agent } = await company(db.pool);
  const run = randomUUID();
  const say =
    'insert into public.chat_messages (channel_id, sender_agent_id, content, run_id) values ($1, $2, $3, $4)';
  const id = await channel(workspace);
  expect(await outcome(db.pool, say, [id, agent, 'done', run])).toBe('ok');
  expect(await outcome(db.pool, say, [id, agent, 'done', run])).toBe(uniqueViolation);

  const conversation = await inserted(
    db.pool,
    'insert into public.conversations (agent_id, user_id) values ($1, $2)',
    [agent, owner],
  );
  const answer = `insert into public.agent_messages (conversation_id, agent_id, user_id, role, content, run_id)
                  values ($1, $2, $3, 'assistant', 'done', $4)`;
  expect(await outcome(db.pool, answer, [conversation, agent, owner, run])).toBe('ok');
  expect(await outcome(db.pool, answer, [conversation, agent, owner, run])).toBe(uniqueViolation);
});

test('a message has at most one sender, and an agent of another tenant cannot speak', async () => {
  const { workspace, viewer, agent } = await company(db.pool);
  const elsewhere = await company(db.pool);
  const id = await channel(workspace);
  expect(
    await outcome(
      db.pool,
      `insert into public.chat_messages (channel_id, sender_user_id, sender_agent_id, content) values ($1, $2, $3, 'x')`,
      [id, viewer, agent],
    ),
  ).toBe(checkViolation);
  expect(
    await outcome(
      db.pool,
      `insert into public.chat_messages (channel_id, sender_agent_id, content) values ($1, $2, 'x')`,
      [id, elsewhere.agent],
    ),
  ).toBe(foreignKeyViolation);
});

test('messages to an agent stay in the caller’s workspace; only a public agent answers across', async () => {
  const { agent } = await company(db.pool);
  const user = await signUp(db.pool);
  const personal = await personalWorkspace(db.pool, user);
  const talk = (withAgent: string) =>
    asUser(db.pool, user, async (client) => {
      const conversation = await inserted(
        client,
        `insert into public.conversations (user_id) values (public.current_user_id())`,
      );
      return outcome(
        client,
        `insert into public.agent_messages (conversation_id, agent_id, role, content) values ($1, $2, 'user', 'hi')`,
        [conversation, withAgent],
      );
    });
  expect(await talk(agent)).toBe(denied);
  await db.pool.query('update public.agents set is_public = true where id = $1', [agent]);
  expect(await talk(agent)).toBe('ok');

  const conversation = await inserted(db.pool, 'insert into public.conversations (user_id) values ($1)', [
    user,
  ]);
  const message = await db.pool.query(
    `insert into public.agent_messages (conversation_id, agent_id, user_id, role, content) values ($1, $2, $3, 'user', 'hi')
     returning id, workspace_id`,
    [conversation, agent, user],
  );
  expect(message.rows[0].workspace_id).toBe(personal);
  const rated = await asUser(db.pool, user, (client) =>
    value(client, 'insert into public.agent_feedback (message_id, rating) values ($1, 1) returning user_id', [
      message.rows[0].id,
    ]),
  );
  expect(rated).toBe(user);
});

test('a log row is the agent’s workspace’s for its members, and the user’s own where the agent is public', async () => {
  const { workspace, viewer, agent } = await company(db.pool);
  const stranger = await signUp(db.pool);
  const add = 'insert into public.agent_logs (agent_id, user_id, input) values ($1, $2, $3)';
  const where = (user: string | null) => value(db.pool, `${add} returning workspace_id`, [agent, user, 'in']);
  expect(await where(viewer)).toBe(workspace);
  expect(await where(null)).toBe(workspace);
  expect(await outcome(db.pool, add, [agent, stranger, 'in'])).toBe(denied);
  await db.pool.query('update public.agents set is_public = true where id = $1', [agent]);
  expect(await where(stranger)).toBe(await personalWorkspace(db.pool, stranger));
});

test('a lead survives its session and agent', async () => {
  const { agent } = await company(db.pool);
  const session = await inserted(db.pool, 'insert into public.chat_sessions (agent_id) values ($1)', [agent]);
  const lead = await inserted(db.pool, 'insert into public.leads (session_id, agent_id) values ($1, $2)', [
    session,
    agent,
  ]);
  await db.pool.query('delete from public.chat_sessions where id = $1', [session]);
  await db.pool.query('delete from public.agents where id = $1', [agent]);
  expect(
    await value(db.pool, 'select session_id is null and agent_id is null from public.leads where id = $1', [
      lead,
    ]),
  ).toBe(true);
});

test('nobody says more in one message than an export or a worker can hold', async () => {
  const { workspace, viewer, agent } = await company(db.pool);
  const room = await channel(workspace);
  const says = (bytes: number): Promise<string> =>
    asUser(db.pool, viewer, (user) =>
      outcome(
        user,
        `insert into public.chat_messages (channel_id, sender_user_id, content) values ($1, $2, repeat('x', $3))`,
        [room, viewer, bytes],
      ),
    );
  expect([await says(10_000_000), await says(10_000_001)]).toEqual(['ok', checkViolation]);
  const talk = await inserted(
    db.pool,
    `insert into public.conversations (agent_id, user_id, title) values ($1, $2, 't')`,
    [agent, viewer],
  );
  const refused = await asUser(db.pool, viewer, async (user) => [
    await outcome(
      user,
      `insert into public.agent_messages (conversation_id, agent_id, user_id, role, content) values ($1, $2, $3, 'user', repeat('x', 10000001))`,
      [talk, agent, viewer],
    ),
    await outcome(user, `update public.conversations set title = repeat('x', 1000001) where id = $1`, [talk]),
    await outcome(
      user,
      `insert into public.chat_rooms (workspace_id, owner_user_id, name) values ($1, $2, repeat('x', 1000001))`,
      [workspace, viewer],
    ),
  ]);
  expect(refused).toEqual([checkViolation, checkViolation, checkViolation]);
});
