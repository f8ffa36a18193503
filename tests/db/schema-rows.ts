import { randomUUID } from 'node:crypto';
import { type Company, inserted, personalWorkspace, type Runner } from './schema-support.ts';

/**
 * One row in every table of schema public that belongs to a company, written by the platform.
 *
 * @returns the condition that finds the rows, by table
 */
export async function rowsOf(db: Runner, c: Company): Promise<Map<string, string>> {
  const rows = new Map<string, string>();
  const add = async (table: string, columns: Record<string, unknown>, key = 'id'): Promise<string> => {
    const names = Object.keys(columns);
    const text = `insert into public.${table} (${names}) values (${names.map((_, i) => `$${i + 1}`)})`;
    const values = Object.values(columns);
    if (key !== 'id') await db.query(text, values);
    const id = key === 'id' ? await inserted(db, text, values) : String(columns[key]);
    rows.set(table, `${key} = '${id}'`);
    return id;
  };
  const { workspace, owner, agent } = c;
  rows.set('workspaces', `id = '${workspace}'`);
  rows.set('agents', `id = '${agent}'`);
  rows.set('workspace_members', `workspace_id = '${workspace}' and user_id = '${owner}'`);
  rows.set('user_roles', `workspace_id = '${workspace}' and user_id = '${owner}'`);

  await add('profiles', { id: owner, full_name: 'Owner' });
  await add('user_preferences', { user_id: owner }, 'user_id');
  await add('user_secrets', { user_id: owner, vault_id: 'v' });
  const team = await add('teams', { workspace_id: workspace, name: 't' });
  const otherTeam = await inserted(db, `insert into public.teams (workspace_id, name) values ($1, 'u')`, [
    workspace,
  ]);
  await add('user_team_memberships', { user_id: owner, team_id: team });
  await add('team_canvas_layouts', { user_id: owner, workspace_id: workspace });
  await add('team_connections', {
    from_team_id: team,
    to_team_id: otherTeam,
    connection_type: 'supports',
  });

  await add('workspace_llm_config', { workspace_id: workspace, provider: 'openai', api_key: 'k' });
  const provider = await inserted(
    db,
    `insert into public.service_providers (name, display_name, provider_type) values ($1, 'P', 'oauth')`,
    [randomUUID()],
  );
  const credential = await add('user_integration_credentials', {
    user_id: owner,
    workspace_id: workspace,
    service_provider_id: provider,
    credential_type: 'oauth',
  });
  const connection = await add('api_connections', {
    user_id: owner,
    workspace_id: workspace,
    name: 'n',
    service: 's',
    api_key: 'k',
  });

  await add('personas', { workspace_id: workspace, name: 'p' });
  await add('team_members', { team_id: team, agent_id: agent });
  const userAgent = await add('user_agents', { user_id: owner, agent_id: agent });
  await add('integrations', { user_agent_id: userAgent, type: 'mail' });
  await add('agent_api_connections', { agent_id: agent, api_connection_id: connection });
  await add('agent_integration_permissions', { agent_id: agent, connection_id: credential });
  await add('agent_discord_connections', { agent_id: agent, guild_id: 'g' });
  await add('channel_configs', { agent_id: agent, channel: 'web' });
  await add('agent_web_widget_config', { agent_id: agent });

  const datastore = await add('datastores', {
    user_id: owner,
    workspace_id: workspace,
    name: 'd',
    type: 'pgvector',
  });
  await add('agent_datastores', { agent_id: agent, datastore_id: datastore });
  const media = await add('media_library', { user_id: owner, workspace_id: workspace, file_name: 'f' });
  await add('agent_media_assignments', { agent_id: agent, media_id: media });
  await add('media_processing_logs', { media_id: media, processing_step: 'upload', status: 'started' });
  const source = await add('knowledge_sources', { workspace_id: workspace, name: 's', type: 'TEXT' });
  await add('knowledge_chunks', { source_id: source, chunk_index: 0, content: 'c' });

  const room = await add('chat_rooms', { workspace_id: workspace, name: 'r', owner_user_id: owner });
  await add('chat_room_members', { room_id: room, agent_id: agent });
  const channel = await add('chat_channels', { workspace_id: workspace, name: 'c' });
  const conversation = await add('conversations', { agent_id: agent, user_id: owner });
  await add('chat_messages', { channel_id: channel, sender_user_id: owner, content: 'm' });
  const message = await add('agent_messages', {
    conversation_id: conversation,
    agent_id: agent,
    user_id: owner,
    role: 'user',
    content: 'm',
  });
  await add('agent_feedback', { message_id: message, user_id: owner, rating: 1 });
  await add('chat_sessions', { agent_id: agent });
  await add('leads', { agent_id: agent });
  await add('agent_logs', { agent_id: agent, user_id: owner });

  const configuration = await add('mcp_configurations', { agent_id: agent });
  await add('mcp_servers', { config_id: configuration, name: 's', endpoint_url: 'https://s.example' });
  const mcp = await add('agent_mcp_connections', {
    agent_id: agent,
    connection_name: 'c',
    server_url: 'https://s.example',
  });
  await add('mcp_tools_cache', {
    connection_id: mcp,
    tool_name: 't',
    tool_schema: {},
    openai_schema: {},
  });
  await add('mcp_refresh_log', { connection_id: mcp, status: 'ok' });
  await add('account_tool_environments', { user_id: owner });
  await add('credential_refresh_log', { credential_id: credential, outcome: 'refreshed' });

  const task = await add('agent_tasks', { agent_id: agent, user_id: owner, name: 't' });
  await add('task_steps', { task_id: task, step_order: 1, step_name: 's' });
  await add('budgets', { workspace_id: workspace, max_turns: 10 });
  await add('agent_task_event_triggers', { task_id: task, trigger_type: 'manual' });
  const run = await add('task_runs', { task_id: task });
  await add('task_step_runs', { workspace_id: workspace, run_id: run, step_order: 1, step_name: 's' });
  const call = { workspace_id: workspace, run_id: run, step_order: 1, turn: 1 };
  await add('llm_calls', { ...call, idempotency_key: randomUUID() });
  await add('tool_calls', {
    ...call,
    idempotency_key: randomUUID(),
    call_index: 1,
    provider_call_id: 'c',
    tool_name: 't',
    source: 's',
    effect: 'read',
  });

  const plan = await inserted(db, `insert into public.pricing_plans (name) values ('p')`);
  await add('workspace_subscriptions', { workspace_id: workspace, plan_id: plan });
  await add('billing_invoices', { workspace_id: workspace, amount: 1, status: 'paid' });
  await add('usage_events', { workspace_id: workspace, metric: 'message' });
  await add('usage_event_keys', { workspace_id: workspace, idempotency_key: 'k' }, 'workspace_id');
  await add(
    'usage_quarter_hours',
    { workspace_id: workspace, bucket: '2030-01-01', metric: 'message' },
    'workspace_id',
  );
  await add('workspace_usage', { workspace_id: workspace, month: '2030-01-01' });
  await add(
    'workspace_usage_counters',
    { workspace_id: workspace, month: '2030-01-01', metric: 'messages' },
    'workspace_id',
  );

  // Rows of the owner's own stay visible to him alone; here they must lie in the company, not in his personal workspace.
  if ((await personalWorkspace(db, owner)) === workspace)
    throw new Error('The company is a personal workspace.');
  return rows;
}
