/** An Agentopia application: nothing here is named otherwise than in its document. */
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
let eve: Caller;
let annId: string;
let benId: string;
let workspace: string;
let channel: string;
let agent: string;
let team: string;
let task: string;
const steps: string[] = [];

beforeAll(async () => {
  app = application(db, 'agentopia');
  annId = await signUp(db.pool);
  benId = await signUp(db.pool);
  ann = app.user(annId);
  ben = app.user(benId);
  eve = app.user(await signUp(db.pool));
});

describe('people, teams and workspaces', () => {
  test('a user writes her profile and preferences; the documented defaults are there', async () => {
    await ann.rows(
      `insert into profiles (id, full_name, avatar_url) values ($1, 'Ann', 'https://a.example/a.png')`,
      [annId],
    );
    const preferences = await ann.one(
      'insert into user_preferences (user_id) values ($1) returning theme, timezone, notification_settings',
      [annId],
    );
    expect(preferences).toMatchObject({ theme: 'light', timezone: 'UTC' });
    expect(await ann.value('select full_name from profiles where id = $1', [annId])).toBe('Ann');
    expect(await eve.rows('select * from profiles where id = $1', [annId])).toEqual([]);
  });

  test('an agent belongs to its user and has the document’s defaults', async () => {
    agent = await ann.value(
      `insert into agents (user_id, name, instructions) values ($1, 'Ada', 'You are brief.') returning id`,
      [annId],
    );
    expect(
      await ann.one('select user_id, is_active, context_window_size, max_tokens from agents where id = $1', [
        agent,
      ]),
    ).toEqual({ user_id: annId, is_active: true, context_window_size: 4000, max_tokens: 1000 });
  });

  test('the agent joins a team, and teams are connected and laid out by RPC', async () => {
    const other = await ann.value(
      `insert into teams (name, owner_user_id) values ('Support', $1) returning id`,
      [annId],
    );
    team = await ann.value(
      `insert into teams (name, description, owner_user_id) values ('Research', 'Reads', $1) returning id`,
      [annId],
    );
    const member = await ann.one(
      'insert into team_members (team_id, agent_id) values ($1, $2) returning team_role, reports_to_user',
      [team, agent],
    );
    expect(member).toEqual({ team_role: 'member', reports_to_user: false });

    const connection = await ann.value(`select create_team_connection($1, $2, 'reports_to', $3)`, [
      other,
      team,
      annId,
    ]);
    expect(await ann.one('select * from team_connections')).toMatchObject({
      id: connection,
      from_team_id: other,
      to_team_id: team,
      connection_type: 'reports_to',
      created_by_user_id: annId,
    });
    const unknown = await ann.refused(`select create_team_connection($1, $2, 'hates', $3)`, [
      team,
      other,
      annId,
    ]);
    expect(unknown).toMatchObject({ code: '22P02', message: expect.stringContaining('"hates"') });
  });

  test('a second member of a workspace reads and writes in its channel', async () => {
    const made = await ann.one<{ id: string; is_public: boolean }>(
      `insert into workspaces (name, owner_user_id) values ('Lab', $1) returning id, is_public`,
      [annId],
    );
    workspace = made.id;
    expect(made.is_public).toBe(false);
    await ann.rows('insert into workspace_members (workspace_id, user_id) values ($1, $2)', [
      workspace,
      benId,
    ]);
    expect(
      await ben.value('select role from workspace_members where workspace_id = $1 and user_id = $2', [
        workspace,
        benId,
      ]),
    ).toBe('member');
    const talk = await ann.value(
      `insert into chat_channels (workspace_id, name, created_by_user_id) values ($1, 'talk', $2) returning id`,
      [workspace, annId],
    );
    const said = await ben.one(
      `insert into chat_messages (channel_id, user_id, content) values ($1, $2, 'Hello Ann')
       returning message_type, agent_id`,
      [talk, benId],
    );
    expect(said).toEqual({ message_type: 'text', agent_id: null });
    expect(await ann.value('select content from chat_messages where channel_id = $1', [talk])).toBe(
      'Hello Ann',
    );
    expect(await eve.rows('select * from chat_messages where channel_id = $1', [talk])).toEqual([]);
  });

  test('the canvas is saved by RPC, and saved again over itself', async () => {
    const save = (positions: object): Promise<string> =>
      ann.value('select save_team_canvas_layout($1, $2, $3, $4, $5)', [
        annId,
        workspace,
        JSON.stringify(positions),
        '[]',
        '{"zoom": 2}',
      ]);
    const first = await save({ a: 1 });
    expect(await save({ a: 2 })).toBe(first);
    expect(await ann.one('select positions, view_settings from team_canvas_layouts')).toEqual({
      positions: { a: 2 },
      view_settings: { zoom: 2 },
    });
  });

  test('the predicates of the document’s example policies find what they found there', async () => {
    expect(await ann.rows('select id from agents where auth.uid() = user_id')).toEqual([{ id: agent }]);
    const channels = `select name from chat_channels where workspace_id in
      (select workspace_id from workspace_members where user_id = auth.uid())`;
    expect(await ben.rows(channels)).toEqual([{ name: 'talk' }]);
    expect(await eve.rows(channels)).toEqual([]);
  });

  test('who is no member is refused, with a sentence', async () => {
    const planted = await eve.refused(`insert into chat_channels (workspace_id, name) values ($1, 'mine')`, [
      workspace,
    ]);
    expect(planted).toMatchObject({ code: '42501', message: expect.stringContaining('"chat_channels"') });
    const invited = await ben.refused(
      'insert into workspace_members (workspace_id, user_id) values ($1, $2)',
      [workspace, await signUp(db.pool)],
    );
    expect(invited).toMatchObject({ code: '42501', message: expect.stringContaining('workspace_members') });
    expect(await eve.count(`update agents set name = 'Mine' where id = $1`, [agent])).toBe(0);
    expect(await eve.count('delete from agents where id = $1', [agent])).toBe(0);
  });
});

describe('integrations and knowledge', () => {
  test('a permission is granted, listed and revoked by RPC', async () => {
    const provider = await app.service.value(
      `insert into service_providers (name, display_name, provider_type, scopes_supported, configuration_metadata)
       values ('gmail', 'Gmail', 'oauth', '["read", "send"]', '{"client_secret": "hidden"}') returning id`,
    );
    const vault = await app.service
      .value<string>(`select create_vault_secret('token', 'Ann''s Gmail', '')`)
      .catch(
        // without Supabase's Vault secrets are sealed by the worker
        () => randomUUID(),
      );
    const credential = await app.service.one<{ id: string; connection_status: string }>(
      `insert into user_integration_credentials (user_id, service_provider_id, credential_type, vault_access_token_id)
       values ($1, $2, 'oauth', $3) returning id, connection_status`,
      [annId, provider, vault],
    );
    expect(credential.connection_status).toBe('active');
    expect(
      await ann.one('select vault_access_token_id, encrypted_access_token from user_integration_credentials'),
    ).toEqual({ vault_access_token_id: null, encrypted_access_token: null });
    expect(await app.service.value('select vault_access_token_id from user_integration_credentials')).toBe(
      vault,
    );
    expect(await ann.value('select configuration_metadata from service_providers')).toBeNull();

    const permission = await ann.value(
      `select grant_agent_integration_permission($1, $2, '{read}', 'custom')`,
      [agent, credential.id],
    );
    const listed = () => ann.rows('select * from get_agent_integration_permissions($1)', [agent]);
    expect(await listed()).toMatchObject([
      { permission_id: permission, allowed_scopes: ['read'], permission_level: 'custom', is_active: true },
    ]);
    expect(
      await eve.refused(`select grant_agent_integration_permission($1, $2, '{read}', 'custom')`, [
        agent,
        credential.id,
      ]),
    ).toMatchObject({ code: '42501' });
    expect(await eve.rows('select * from get_agent_integration_permissions($1)', [agent])).toEqual([]);
    await ann.rows('select revoke_agent_integration_permission($1)', [permission]);
    expect(await listed()).toMatchObject([{ is_active: false }]);
    expect(await ann.value('select is_active from agent_integration_permissions')).toBe(false);
  });

  test('a datastore and a file are given to the agent; the datastore’s credentials are not shown', async () => {
    const datastore = await ann.value(
      `insert into datastores (name, type, config, created_by_user_id) values ('Notes', 'pinecone', '{"api_key": "k"}', $1)
       returning id`,
      [annId],
    );
    expect(
      await ann.one(
        'insert into agent_datastores (agent_id, datastore_id) values ($1, $2) returning is_active',
        [agent, datastore],
      ),
    ).toEqual({ is_active: true });
    expect(await ann.one('select created_by_user_id, config from datastores')).toEqual({
      created_by_user_id: annId,
      config: null,
    });
    const media = await ann.one<{ id: string }>(
      `insert into media_library (user_id, file_name, file_type, file_size, tags)
       values ($1, 'a.pdf', 'application/pdf', 10, '{x,y}')
       returning id, bucket, assigned_agents_count, chunk_count, is_archived, tags`,
      [annId],
    );
    expect(media).toMatchObject({
      bucket: 'media-library',
      assigned_agents_count: 0,
      chunk_count: 0,
      is_archived: false,
      tags: ['x', 'y'],
    });
    await ann.rows(
      `insert into agent_media_assignments (agent_id, media_id, assignment_type, assigned_by_user_id)
       values ($1, $2, 'reference', $3)`,
      [agent, media.id, annId],
    );
    expect(await ann.value('select assigned_agents_count from media_library')).toBe(1);
    expect(
      await eve.refused(
        `insert into agent_media_assignments (agent_id, media_id, assignment_type) values ($1, $2, 'reference')`,
        [agent, media.id],
      ),
    ).toMatchObject({ code: '42501' });
  });
});

describe('a task', () => {
  test('gets its steps by RPC', async () => {
    channel = await ann.value(
      `insert into chat_channels (workspace_id, name)
       select id, 'reports' from workspaces where owner_user_id = $1 and id <> $2 returning id`,
      [annId, workspace],
    );
    // the scheduler waits for its first time while the steps are written
    task = await ann.value(
      `insert into agent_tasks (user_id, agent_id, name, description, instructions, cron_expression, timezone,
                                is_multi_step, target_conversation_id)
       values ($1, $2, 'Morning', 'Every day', 'Report.', '0 9 * * *', 'Europe/Berlin', true, $3) returning id`,
      [annId, agent, channel],
    );
    for (const [order, name] of ['Collect', 'Wrong', 'Write'].entries()) {
      steps.push(await ann.value(`select create_task_step($1, $2, $3, 'Do it.')`, [task, order + 1, name]));
    }
    await ann.rows(`select update_task_step($1, 'Write it', 'Write the report.', true)`, [steps[2]]);
    await ann.rows('select delete_task_step($1)', [steps[1]]);
    expect(
      await ann.rows(
        `select step_order, step_name, include_previous_context, status, retry_count from task_steps where task_id = $1
         order by step_order`,
        [task],
      ),
    ).toEqual([
      {
        step_order: 1,
        step_name: 'Collect',
        include_previous_context: false,
        status: 'pending',
        retry_count: 0,
      },
      {
        step_order: 2,
        step_name: 'Write it',
        include_previous_context: true,
        status: 'pending',
        retry_count: 0,
      },
    ]);
    expect(
      await ann.one('select task_type, status, step_count, total_executions from agent_tasks where id = $1', [
        task,
      ]),
    ).toEqual({ task_type: 'scheduled', status: 'active', step_count: 2, total_executions: 0 });
  });

  test('runs when it is due; the steps have the results, and the answer is in the channel', async () => {
    model.respond(({ body }) => ({
      content: JSON.stringify(body.messages).includes('Write it') ? 'The report' : 'The facts',
    }));
    await ann.rows(`update agent_tasks set next_run_at = now() where id = $1`, [task]);
    const messages = await until('the answer is in the channel', async () => {
      const found = await ann.rows(
        'select content, agent_id, user_id from chat_messages where channel_id = $1',
        [channel],
      );
      return found.length > 0 && found;
    });
    expect(messages).toEqual([{ content: 'The report', agent_id: agent, user_id: null }]);
    const results = await ann.rows<{ execution_duration_ms: number }>(
      `select status, execution_result, error_message, execution_started_at <= execution_completed_at as timed,
              execution_duration_ms
         from task_steps where task_id = $1 order by step_order`,
      [task],
    );
    expect(results).toMatchObject([
      { status: 'completed', execution_result: { text: 'The facts' }, error_message: null, timed: true },
      { status: 'completed', execution_result: { text: 'The report' }, error_message: null, timed: true },
    ]);
    expect(results[0]?.execution_duration_ms).toBeGreaterThanOrEqual(0);
    expect(
      await ann.one(
        'select total_executions, status, next_run_at > now() as planned from agent_tasks where id = $1',
        [task],
      ),
    ).toEqual({ total_executions: 1, status: 'active', planned: true });
    expect(model.requests.map((request) => request.userText).at(-1)).toContain('The facts');
  });

  test('may name a conversation of the application’s own making, which is then there', async () => {
    const conversation = randomUUID();
    await ann.rows(
      `insert into agent_tasks (user_id, agent_id, name, instructions, next_run_at, target_conversation_id)
       values ($1, $2, 'Once', 'Say it.', now(), $3)`,
      [annId, agent, conversation],
    );
    // the one table that the document has no name for: schema public's
    const answer = await until('the answer is in the conversation', async () => {
      const [row] = await ann.rows<{ content: string }>(
        'select content from agent_messages where conversation_id = $1',
        [conversation],
      );
      return row;
    });
    expect(answer.content).toBe('answer');
    expect(await ann.rows('select content from chat_messages where channel_id = $1', [channel])).toHaveLength(
      1,
    );
  });

  test('leaves the channel when it is given another conversation', async () => {
    const moved = randomUUID();
    await ann.rows('update agent_tasks set target_conversation_id = $2 where id = $1', [task, moved]);
    expect(
      await ann.value('select target_channel_id from public.agent_tasks where id = $1', [task]),
    ).toBeNull();
    await ann.rows('update agent_tasks set target_conversation_id = $2 where id = $1', [task, channel]);
    expect(await ann.value('select target_channel_id from public.agent_tasks where id = $1', [task])).toBe(
      channel,
    );
  });

  test('cannot deliver into another’s channel or conversation', async () => {
    const hers = await eve.value(`insert into agents (name) values ('Spy') returning id`);
    const insert = `insert into agent_tasks (agent_id, name, target_conversation_id) values ($1, 'Leak', $2)`;
    // as for any id that is taken, whether she could see whose it is or not
    for (const theirs of [channel, await ben.value(`select id from chat_channels where name = 'talk'`)])
      expect(await eve.refused(insert, [hers, theirs])).toMatchObject({ code: '23505' });
    expect(await eve.rows('select id from public.agent_tasks where agent_id = $1', [hers])).toEqual([]);
  });

  test('of an agent that does not exist, or that is another’s, is refused with a sentence', async () => {
    const insert = `insert into agent_tasks (agent_id, name) values ($1, 'Nothing')`;
    for (const unknown of [randomUUID(), agent]) {
      const refusal = await eve.refused(insert, [unknown]);
      expect(refusal.code).toBe('42501');
      expect(refusal.message).toContain(`agent ${unknown} does not exist`);
      expect(refusal.hint).toBe('Name an agent that the user sees.');
    }
    expect(await app.service.refused(insert, [randomUUID()])).toMatchObject({
      code: '23503',
      message: expect.stringMatching(/^agent .* does not exist$/),
    });
    const wrong = await ann.refused(`update agent_tasks set status = 'asleep' where id = $1`, [task]);
    expect(wrong).toMatchObject({ code: '22P02', message: expect.stringContaining('"asleep"') });
  });
});

test('no run of this file was taken over or spent an attempt of its job', expectNoRepairs);
