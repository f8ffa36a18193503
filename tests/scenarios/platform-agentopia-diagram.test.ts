/** An application of the earlier Agentopia: nothing here is named otherwise than in its diagram. */
import { randomUUID } from 'node:crypto';
import { beforeAll, describe, expect, test } from 'vitest';
import { signUp } from '../db/schema-support.ts';
import { type Application, application, type Caller } from '../support/application.ts';
import { db, expectNoRepairs, model, useDaemon } from '../support/one-daemon.ts';
import { until } from '../support/runs.ts';

useDaemon();

let app: Application;
let ann: Caller;
let ben: Caller;
let annId: string;
let benId: string;
let agent: string;
let team: string;

beforeAll(async () => {
  app = application(db, 'agentopia_diagram');
  annId = await signUp(db.pool);
  benId = await signUp(db.pool);
  ann = app.user(annId);
  ben = app.user(benId);
});

describe('people', () => {
  test('a user’s profile has his name, and he has the roles that the platform gives him', async () => {
    await ann.rows(`insert into user_profiles (id, username, full_name) values ($1, 'ann', 'Ann')`, [annId]);
    await ann.rows(`update user_profiles set avatar_url = 'https://a.example/a.png' where id = $1`, [annId]);
    expect(
      await ann.one(
        'select username, full_name, avatar_url, updated_at is not null as dated from user_profiles',
      ),
    ).toEqual({ username: 'ann', full_name: 'Ann', avatar_url: 'https://a.example/a.png', dated: true });

    const role = await app.service.value(
      `insert into roles (name, description) values ('editor', 'Edits') returning id`,
    );
    await app.service.rows('insert into user_roles (user_id, role_id) values ($1, $2)', [annId, role]);
    const roles = 'select r.name from user_roles u join roles r on r.id = u.role_id where u.user_id = $1';
    expect(await ann.value(roles, [annId])).toBe('editor');
    expect(await ben.rows(roles, [annId])).toEqual([]);
    const given = await ben.refused('insert into user_roles (user_id, role_id) values ($1, $2)', [
      benId,
      role,
    ]);
    expect(given).toMatchObject({ code: '42501', message: expect.stringContaining('user_roles') });
  });

  test('a user’s secrets are references that he alone sees', async () => {
    await ann.rows(`insert into user_secrets (user_id, vault_id, vault_item_id) values ($1, 'v', 'i')`, [
      annId,
    ]);
    expect(await ann.one('select vault_id, vault_item_id from user_secrets')).toEqual({
      vault_id: 'v',
      vault_item_id: 'i',
    });
    expect(await ben.rows('select * from user_secrets')).toEqual([]);
    expect(
      await ben.refused(`insert into user_secrets (user_id, vault_id) values ($1, 'v')`, [annId]),
    ).toMatchObject({ code: '42501' });
  });
});

describe('an agent', () => {
  test('is off until it is switched on; its bot key is never shown', async () => {
    const made = await ann.one<{ id: string }>(
      `insert into agents (user_id, name, description, system_instructions, assistant_instructions, discord_bot_key)
       values ($1, 'Max', 'Helps', 'You are Max.', 'Be kind.', 'bot-key') returning id, active, discord_bot_key`,
      [annId],
    );
    agent = made.id;
    expect(made).toMatchObject({ active: false, discord_bot_key: null });
    expect(await app.service.value('select discord_bot_key from agents where id = $1', [agent])).toBe(
      'bot-key',
    );
    expect(await ben.rows('select * from agents')).toEqual([]);
  });

  test('has a place in a team and on a Discord server', async () => {
    team = await ann.value(`insert into teams (name, owner_user_id) values ('T', $1) returning id`, [annId]);
    const lead = await ann.value(`insert into agents (name, active) values ('Lead', true) returning id`);
    await ann.rows(
      `insert into team_members (team_id, agent_id, team_role, team_role_description, reports_to_agent_id)
       values ($1, $2, 'writer', 'Writes', $3)`,
      [team, agent, lead],
    );
    expect(
      await ann.one('select reports_to_agent_id, joined_at is not null as dated from team_members'),
    ).toEqual({
      reports_to_agent_id: lead,
      dated: true,
    });
    await ann.rows('insert into user_team_memberships (user_id, team_id) values ($1, $2)', [annId, team]);
    await ann.rows(`insert into agent_discord_connections (agent_id, guild_id) values ($1, '42')`, [agent]);
    expect(
      await ann.value('select guild_id from agent_discord_connections where agent_id = $1', [agent]),
    ).toBe('42');
    expect(
      await ben.refused(`insert into agent_discord_connections (agent_id, guild_id) values ($1, '43')`, [
        agent,
      ]),
    ).toMatchObject({ code: '42501' });
  });

  test('has a datastore whose type is a word, and its MCP servers', async () => {
    const datastore = await ann.value(
      `insert into datastores (user_id, name, type, config, similarity_metric, similarity_threshold, max_results)
       values ($1, 'D', 'pinecone', '{"api_key": "k"}', 'cosine', 0.5, 3) returning id`,
      [annId],
    );
    await ann.rows('insert into agent_datastores (agent_id, datastore_id) values ($1, $2)', [
      agent,
      datastore,
    ]);
    expect(await ann.one('select type, config, similarity_threshold, max_results from datastores')).toEqual({
      type: 'pinecone',
      config: null,
      similarity_threshold: 0.5,
      max_results: 3,
    });
    await ann.rows(`update datastores set name = 'E', config = config`);
    expect(await app.service.one('select name, config from datastores')).toEqual({
      name: 'E',
      config: { api_key: 'k' },
    });
    const refusal = await ann.refused(`insert into datastores (name, type) values ('F', 'paper')`);
    expect(refusal).toMatchObject({ code: '22P02', message: expect.stringContaining('"paper"') });

    const configuration = await ann.value(
      'insert into mcp_configurations (agent_id, is_enabled) values ($1, true) returning id',
      [agent],
    );
    const vault = randomUUID();
    const server = await ann.one(
      `insert into mcp_servers (config_id, name, endpoint_url, vault_api_key_id, timeout_ms, max_retries, retry_backoff_ms,
                                priority, is_active, capabilities)
       values ($1, 'Files', 'https://mcp.example/mcp', $2, 5000, 2, 100, 1, true, '{"tools": true}')
       returning name, vault_api_key_id, capabilities`,
      [configuration, vault],
    );
    expect(server).toEqual({ name: 'Files', vault_api_key_id: null, capabilities: { tools: true } });
    expect(await app.service.value('select vault_api_key_id from mcp_servers')).toBe(vault);
  });
});

describe('a chat room', () => {
  let room: string;

  test('has users, agents and teams as members', async () => {
    room = await ann.value(`insert into chat_rooms (name, owner_user_id) values ('R', $1) returning id`, [
      annId,
    ]);
    for (const [type, id] of [
      ['user', annId],
      ['agent', agent],
      ['team', team],
    ]) {
      const member = await ann.one<{ id: string; member_type: string; member_id: string }>(
        'insert into chat_room_members (room_id, member_type, member_id) values ($1, $2, $3) returning *',
        [room, type, id],
      );
      expect(member).toMatchObject({ member_type: type, member_id: id, added_at: expect.any(Date) });
    }
    expect(
      await ann.rows('select member_type from chat_room_members where room_id = $1 order by member_type', [
        room,
      ]),
    ).toEqual([{ member_type: 'agent' }, { member_type: 'team' }, { member_type: 'user' }]);
    expect(await ann.count(`delete from chat_room_members where member_type = 'team'`)).toBe(1);
    expect(await ann.count(`delete from chat_room_members where member_type = 'team'`)).toBe(0);
    const robot = await ann.refused(
      `insert into chat_room_members (room_id, member_type, member_id) values ($1, 'robot', $2)`,
      [room, agent],
    );
    expect(robot).toMatchObject({ code: '23514', message: 'member_type is robot, not user, agent or team' });
    const nobody = await ann.refused(
      `insert into chat_room_members (room_id, member_type, member_id) values ($1, 'agent', $2)`,
      [room, randomUUID()],
    );
    expect(nobody).toMatchObject({ code: '23503', message: expect.stringContaining('agent') });
  });

  test('keeps what is said in its channels, with its embedding', async () => {
    const channel = await ann.value(
      `insert into chat_channels (room_id, name, topic) values ($1, 'general', 'all') returning id`,
      [room],
    );
    const embedding = JSON.stringify(Array.from({ length: 1536 }, (_, i) => i % 2));
    await ann.rows(
      'insert into chat_messages (channel_id, sender_user_id, content, embedding) values ($1, $2, $3, $4)',
      [channel, annId, 'Hello', embedding],
    );
    await app.service.rows(
      'insert into chat_messages (channel_id, sender_agent_id, content) values ($1, $2, $3)',
      [channel, agent, 'Hello Ann'],
    );
    expect(
      await ann.rows(
        'select sender_user_id, sender_agent_id, content from chat_messages where channel_id = $1 order by created_at',
        [channel],
      ),
    ).toEqual([
      { sender_user_id: annId, sender_agent_id: null, content: 'Hello' },
      { sender_user_id: null, sender_agent_id: agent, content: 'Hello Ann' },
    ]);
    expect(
      await ann.value(
        'select content from chat_messages where embedding is not null order by embedding <=> $1 limit 1',
        [embedding],
      ),
    ).toBe('Hello');
    expect(
      await ann.value('select last_message_at is not null from chat_channels where id = $1', [channel]),
    ).toBe(true);
    expect(await ben.rows('select * from chat_messages')).toEqual([]);
    const forged = await ann.refused(
      'insert into chat_messages (channel_id, sender_user_id, content) values ($1, $2, $3)',
      [channel, benId, 'Not Ben'],
    );
    expect(forged).toMatchObject({ code: '42501', message: expect.stringContaining('chat_messages') });
  });
});

describe('a scheduled task', () => {
  // the diagram has no tasks: they are schema public's, behind the document's in the search_path
  const ended = (task: string) =>
    until('the run has ended', async () => {
      const [run] = await ann.rows<{ status: string; reason_code: string | null; output: { text: string } }>(
        `select status, reason_code, output from task_runs where task_id = $1 and finished_at is not null`,
        [task],
      );
      return run;
    });

  test('of an agent that is not active does not run; once it is active it does', async () => {
    const insert = `insert into agent_tasks (agent_id, name, instructions, next_run_at)
                    values ($1, 'Note', 'Write.', now()) returning id`;
    const asleep = await ended(await ann.value(insert, [agent]));
    expect(asleep).toMatchObject({ status: 'skipped', reason_code: 'agent_inactive' });
    expect(model.requests).toEqual([]);

    expect(await ann.count('update agents set active = true where id = $1', [agent])).toBe(1);
    expect(await ended(await ann.value(insert, [agent]))).toMatchObject({
      status: 'completed',
      output: { text: 'answer' },
    });
    const asked = JSON.stringify(model.requests[0]?.body.messages);
    expect(asked).toContain('You are Max.');
  });
});

test('no run of this file was taken over or spent an attempt of its job', expectNoRepairs);
