/** An AgentCenter application: nothing here is named otherwise than in its document. */
import { randomUUID } from 'node:crypto';
import { beforeAll, describe, expect, test } from 'vitest';
import { signUp } from '../db/schema-support.ts';
import { type Application, application, type Caller } from '../support/application.ts';
import { db, expectNoRepairs, model, useDaemon } from '../support/one-daemon.ts';
import { until } from '../support/runs.ts';

const WORKSPACE_KEY = 'sk-workspace-0123456789abcdef';

useDaemon({ model: { apiKeys: ['sk-environment-0123456789abcdef', WORKSPACE_KEY] } });

let app: Application;
let owner: Caller;
let manager: Caller;
let viewer: Caller;
let stranger: Caller;
let ownerId: string;
let viewerId: string;
let workspace: string;
let agent: string;

beforeAll(async () => {
  app = application(db, 'agentcenter');
  ownerId = await signUp(db.pool);
  viewerId = await signUp(db.pool);
  owner = app.user(ownerId);
  viewer = app.user(viewerId);
  stranger = app.user(await signUp(db.pool));
});

describe('a workspace', () => {
  test('belongs to whoever makes it, and has a slug', async () => {
    const made = await owner.one<{ id: string }>(
      `insert into workspaces (name) values ('Clinic Nord') returning id, slug, created_at is not null as dated`,
    );
    expect(made).toMatchObject({ slug: 'clinic-nord', dated: true });
    workspace = made.id;
    expect(await owner.value('select get_user_role($1)', [workspace])).toBe('OWNER');
    await owner.rows(`insert into profiles (id, workspace_id, full_name) values ($1, $2, 'Olga')`, [
      ownerId,
      workspace,
    ]);
    expect(await stranger.rows('select * from workspaces where id = $1', [workspace])).toEqual([]);
  });

  test('gets a manager and a viewer from its owner, and from nobody else', async () => {
    const managerId = await signUp(db.pool);
    manager = app.user(managerId);
    const insert = 'insert into user_roles (user_id, workspace_id, role) values ($1, $2, $3) returning role';
    expect(await owner.value(insert, [managerId, workspace, 'MANAGER'])).toBe('MANAGER');
    expect(await owner.value(insert, [viewerId, workspace, 'VIEWER'])).toBe('VIEWER');
    for (const caller of [viewer, manager, stranger]) {
      expect(await caller.refused(insert, [await signUp(db.pool), workspace, 'OWNER'])).toEqual({
        code: '42501',
        message: `only an OWNER of workspace ${workspace} gives roles in it`,
        hint: 'Ask an owner, or let the platform (service_role) write the role.',
        column: undefined,
      });
    }
    expect(
      await viewer.count(`update user_roles set role = 'OWNER' where user_id = $1 and workspace_id = $2`, [
        viewerId,
        workspace,
      ]),
    ).toBe(0);
    expect(await viewer.value('select get_user_role($1)', [workspace])).toBe('VIEWER');
    expect((await owner.refused(insert, [viewerId, workspace, 'MANAGER'])).code).toBe('23505');
    expect(
      await owner.rows('select role from user_roles where workspace_id = $1 order by role', [workspace]),
    ).toEqual([{ role: 'VIEWER' }, { role: 'MANAGER' }, { role: 'OWNER' }]);
  });

  test('loses a member, or gives him another role, by its owner’s word', async () => {
    const guestId = await signUp(db.pool);
    const guest = app.user(guestId);
    const made = await owner.one<{ id: string }>(
      `insert into user_roles (user_id, workspace_id, role) values ($1, $2, 'VIEWER') returning *`,
      [guestId, workspace],
    );
    expect(made).toMatchObject({ user_id: guestId, workspace_id: workspace, role: 'VIEWER' });
    expect(await owner.count(`update user_roles set role = 'MANAGER' where id = $1`, [made.id])).toBe(1);
    expect(await guest.value('select get_user_role($1)', [workspace])).toBe('MANAGER');
    const moved = await owner.refused('update user_roles set user_id = $2 where id = $1', [
      made.id,
      viewerId,
    ]);
    expect(moved).toMatchObject({
      message: 'the user and the workspace of a role cannot be changed',
      hint: 'Delete the role and insert another.',
    });
    expect(await owner.count('delete from user_roles where id = $1', [made.id])).toBe(1);
    expect(await guest.value('select user_has_workspace_access($1)', [workspace])).toBe(false);
    expect(await guest.rows('select id from agents where workspace_id = $1', [workspace])).toEqual([]);
  });

  test('answers what a user may do in it', async () => {
    const may = (caller: Caller) =>
      caller.one(
        `select has_role($1, 'MANAGER') as manage, has_role($1, 'VIEWER') as view, user_has_workspace_access($1) as access`,
        [workspace],
      );
    expect(await may(owner)).toEqual({ manage: true, view: true, access: true });
    expect(await may(manager)).toEqual({ manage: true, view: true, access: true });
    expect(await may(viewer)).toEqual({ manage: false, view: true, access: true });
    expect(await may(stranger)).toEqual({ manage: false, view: false, access: false });
  });
});

describe('an agent', () => {
  test('is made by a manager, with its persona, as a draft', async () => {
    const insert = `insert into agents (workspace_id, name, description, domain, persona_id, goals, channels)
                    values ($1, 'Reception', 'Answers', 'healthcare', $2, '{help}', '{web,phone}') returning id, status`;
    const persona = await manager.value(
      `insert into personas (workspace_id, name, tone, greeting, escalation_policy)
       values ($1, 'Warm', 'friendly', 'Welcome!', 'escalate') returning id`,
      [workspace],
    );
    const made = await manager.one<{ id: string; status: string }>(insert, [workspace, persona]);
    expect(made.status).toBe('draft');
    agent = made.id;
    for (const caller of [viewer, stranger]) {
      expect(await caller.refused(insert, [workspace, null])).toMatchObject({
        code: '42501',
        message: 'new row violates row-level security policy for table "agents"',
      });
    }
    expect(await viewer.value('select name from agents where id = $1', [agent])).toBe('Reception');
    expect(await viewer.count(`update agents set name = 'Mine' where id = $1`, [agent])).toBe(0);
    const nowhere = await manager.refused(insert, [workspace, randomUUID()]);
    expect(nowhere).toMatchObject({ code: '23503', message: expect.stringContaining('persona') });
    const domain = await manager.refused(
      `insert into agents (workspace_id, name, domain) values ($1, 'X', 'space')`,
      [workspace],
    );
    expect(domain).toMatchObject({ code: '22P02', message: expect.stringContaining('"space"') });
  });

  test('has a model, and the workspace’s key for its provider, which nobody reads', async () => {
    const chosen = await app.service.value(
      `insert into llm_models (provider, name, model_id, context_window, input_cost_per_1k, output_cost_per_1k, is_default)
       values ('OpenAI', 'Mini', 'gpt-4.1-mini', 100000, 0.001, 0.002, true) returning id`,
    );
    await manager.rows('update agents set llm_model_id = $2 where id = $1', [agent, chosen]);
    await owner.rows(
      `insert into workspace_llm_config (workspace_id, provider, api_key) values ($1, 'OpenAI', 'sk-wrong')`,
      [workspace],
    );
    await owner.rows('update workspace_llm_config set api_key = $2 where workspace_id = $1', [
      workspace,
      WORKSPACE_KEY,
    ]);
    await owner.rows('update workspace_llm_config set is_active = true where workspace_id = $1', [workspace]);
    expect(await owner.one('select provider, api_key, is_active from workspace_llm_config')).toEqual({
      provider: 'OpenAI',
      api_key: null,
      is_active: true,
    });
    expect(await manager.rows('select * from workspace_llm_config')).toEqual([]);
    expect(await app.service.value('select api_key from workspace_llm_config')).toBe(WORKSPACE_KEY);
  });

  test('does nothing on schedule as a draft, and works once it is live, with the persona, the model and the key', async () => {
    // AgentCenter has no tasks: they are schema public's, behind the document's in the search_path
    const task = await manager.value(
      `insert into agent_tasks (agent_id, name, instructions, next_run_at) values ($1, 'Note', 'Write.', now()) returning id`,
      [agent],
    );
    const run = () =>
      until('the run has ended', async () => {
        const [found] = await viewer.rows<{
          status: string;
          reason_code: string | null;
          output: object | null;
        }>(
          `select status, reason_code, output from task_runs
            where task_id = $1 and finished_at is not null order by created_at desc limit 1`,
          [task],
        );
        return found;
      });
    expect(await run()).toEqual({ status: 'skipped', reason_code: 'agent_draft', output: null });
    expect(model.requests).toEqual([]);

    await manager.rows(`update agents set status = 'live' where id = $1`, [agent]);
    await manager.rows(`update agent_tasks set status = 'active', next_run_at = now() where id = $1`, [task]);
    await until('it completed', async () => (await run()).status === 'completed');
    expect(await run()).toMatchObject({ output: { text: 'answer' } });
    expect(model.requests).toHaveLength(1);
    expect(model.requests[0]).toMatchObject({ apiKey: WORKSPACE_KEY, body: { model: 'gpt-4.1-mini' } });
  });
});

describe('customers', () => {
  test('an agent knows what its sources hold', async () => {
    const source = await manager.value(
      `insert into knowledge_sources (workspace_id, agent_id, name, type, content)
       values ($1, $2, 'Hours', 'TEXT', 'Open from nine.') returning id`,
      [workspace, agent],
    );
    await manager.rows(
      `insert into knowledge_sources (workspace_id, name, type, url) values ($1, 'Site', 'URL', 'https://clinic.example')`,
      [workspace],
    );
    // reading a source into chunks is the application's own work still
    await app.service.rows(
      `insert into knowledge_chunks (source_id, content, embedding, chunk_index) values ($1, 'Open from nine.', '[1,0,0]', 0)`,
      [source],
    );
    const nowhere = randomUUID();
    expect(
      await app.service.refused(
        `insert into knowledge_chunks (source_id, content, chunk_index) values ($1, 'c', 0)`,
        [nowhere],
      ),
    ).toMatchObject({ code: '23503', message: `source ${nowhere} does not exist` });
    const nearest = `select content from knowledge_chunks where source_id = $1 order by embedding <-> '[1,0,0]' limit 1`;
    expect(await viewer.value(nearest, [source])).toBe('Open from nine.');
    expect(await stranger.rows(nearest, [source])).toEqual([]);
    expect(
      await manager.refused(
        `insert into knowledge_sources (workspace_id, name, type) values ($1, 'X', 'DOC')`,
        [workspace],
      ),
    ).toMatchObject({ code: '22P02', message: expect.stringContaining('"DOC"') });
  });

  test('a session with its messages becomes a lead', async () => {
    const messages = [{ role: 'user', content: 'Hi' }];
    const session = await manager.one<{ id: string }>(
      `insert into chat_sessions (workspace_id, agent_id, channel, messages) values ($1, $2, 'web', $3)
       returning id, status, messages, started_at is not null as started`,
      [workspace, agent, JSON.stringify(messages)],
    );
    expect(session).toMatchObject({ status: 'active', messages, started: true });
    await manager.rows(
      `update chat_sessions set messages = messages || $2::jsonb, status = 'completed', ended_at = now() where id = $1`,
      [session.id, JSON.stringify([{ role: 'assistant', content: 'Hello' }])],
    );
    expect(await viewer.value('select jsonb_array_length(messages) from chat_sessions')).toBe(2);
    await manager.rows(
      `insert into leads (workspace_id, agent_id, session_id, name, email, channel, metadata)
       values ($1, $2, $3, 'Pia', 'pia@example.test', 'web', '{"from": "chat"}')`,
      [workspace, agent, session.id],
    );
    expect(await viewer.one('select name, session_id from leads')).toEqual({
      name: 'Pia',
      session_id: session.id,
    });
    expect(await stranger.rows('select * from leads')).toEqual([]);
    expect(
      await stranger.refused(`insert into leads (workspace_id, name) values ($1, 'Planted')`, [workspace]),
    ).toMatchObject({ code: '42501' });
  });

  test('a widget and a channel are set up; the channel’s credentials are not shown', async () => {
    await manager.rows(
      `insert into agent_web_widget_config (agent_id, primary_color, position, welcome_message, allowed_domains)
       values ($1, '#fff', 'bottom-right', 'Hi!', '{clinic.example}')`,
      [agent],
    );
    expect(await viewer.value('select allowed_domains from agent_web_widget_config')).toEqual([
      'clinic.example',
    ]);
    await manager.rows(
      `insert into channel_configs (workspace_id, agent_id, channel, config) values ($1, $2, 'whatsapp', '{"token": "t"}')`,
      [workspace, agent],
    );
    await manager.rows('update channel_configs set enabled = true where workspace_id = $1', [workspace]);
    expect(await viewer.one('select channel, config, enabled from channel_configs')).toEqual({
      channel: 'whatsapp',
      config: null,
      enabled: true,
    });
    expect(await app.service.value('select config from channel_configs')).toEqual({ token: 't' });
  });
});

describe('billing', () => {
  test('conversations are counted up to the plan’s limit, and there the limit says no', async () => {
    expect(await viewer.value('select check_usage_limit($1)', [workspace])).toBe(true);
    const plan = await app.service.value(
      `insert into pricing_plans (name, stripe_price_id, price_monthly, price_yearly, conversation_limit, features)
       values ('Small', 'price_1', 9.5, 95, 3, '{"web": true}') returning id`,
    );
    await app.service.rows(
      `insert into workspace_subscriptions (workspace_id, plan_id, stripe_subscription_id, status, current_period_start, current_period_end)
       values ($1, $2, 'sub_1', 'active', now(), now() + interval '1 month')`,
      [workspace, plan],
    );
    expect(await viewer.one('select plan_id, status from workspace_subscriptions')).toEqual({
      plan_id: plan,
      status: 'active',
    });
    // what was inserted before is in the counter: a call that is about one of its rows then counts no second time
    await until('the rows of before are counted', () =>
      app.service.value(
        `select (select coalesce(sum(used), 0) from public.workspace_usage_counters where workspace_id = $1 and metric = 'conversations')
              = (select count(*) from public.usage_events where workspace_id = $1 and metric = 'conversation')`,
        [workspace],
      ),
    );
    const allowed: boolean[] = [];
    for (let conversation = 1; conversation <= 4; conversation++) {
      await viewer.rows('select increment_conversation_count($1)', [workspace]);
      allowed.push(await viewer.value('select check_usage_limit($1)', [workspace]));
    }
    expect(allowed).toEqual([true, true, false, false]);
    const refusal = await stranger.refused('select increment_conversation_count($1)', [workspace]);
    expect(refusal).toMatchObject({
      code: '42501',
      message: `workspace ${workspace} does not exist, or you are no member of it`,
    });
    expect(
      await owner.refused(`update workspace_subscriptions set status = 'active' where workspace_id = $1`, [
        workspace,
      ]),
    ).toMatchObject({ code: '42501' });
    expect(
      await app.service.refused(`update workspace_subscriptions set status = 'cancelled'`),
    ).toMatchObject({ code: '22P02', message: expect.stringContaining('"cancelled"') });
  });

  test('the month’s usage is a row of the document’s shape', async () => {
    const usage = 'select (get_workspace_usage($1)).*';
    const row = await until('the month is summed up', async () => {
      const found = await viewer.one(usage, [workspace]);
      return Number(found.tokens_used) > 0 && found.conversations === 4 ? found : null;
    });
    expect(Object.keys(row)).toEqual([
      'id',
      'workspace_id',
      'month',
      'conversations',
      'messages',
      'tokens_used',
      'created_at',
      'updated_at',
    ]);
    // what the platform knows of before
    await app.service.rows(
      `insert into workspace_usage (workspace_id, month, conversations, messages, tokens_used) values ($1, '2025-01-01', 4, 8, 1000)`,
      [workspace],
    );
    expect(await viewer.one(`select * from workspace_usage where month = '2025-01-01'`)).toMatchObject({
      conversations: 4,
      messages: 8,
      tokens_used: '1000',
    });
    expect(await stranger.value('select (get_workspace_usage($1)).id', [workspace])).toBeNull();
  });

  test('invoices are written by the platform and read by members', async () => {
    await app.service.rows(
      `insert into billing_invoices (workspace_id, stripe_invoice_id, amount, status, invoice_url)
       values ($1, 'in_1', 9.5, 'paid', 'https://stripe.example/in_1')`,
      [workspace],
    );
    expect(await viewer.one('select amount, status from billing_invoices')).toEqual({
      amount: '9.50',
      status: 'paid',
    });
    expect(await stranger.rows('select * from billing_invoices')).toEqual([]);
    expect((await owner.refused('delete from billing_invoices')).code).toBe('42501');
  });
});

test('no run of this file was taken over or spent an attempt of its job', expectNoRepairs);
