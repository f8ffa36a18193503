/** A row builder for every table of schema public that tenants' rows are in, in an order in which parents come first. */
import { randomUUID } from 'node:crypto';
import { type Company, inserted, personalWorkspace, type Runner, signUp, value } from './schema-support.ts';

/** Where a row is to lie, and in whose name it is written. */
export type Place = {
  readonly workspace: string;
  readonly user: string;
  /** Someone who is not in the workspace yet, for rows that make a member. */
  readonly newcomer: string;
  /** The id of the company's own row of another table. */
  readonly of: (table: string) => string;
};

type Columns = Record<string, unknown>;

/** The columns of a new row. Names that must be unique are random. */
export const newRow: Readonly<Record<string, (at: Place) => Columns>> = {
  workspaces: (at) => ({ name: 'w', owner_user_id: at.user }),
  profiles: (at) => ({ id: at.user, full_name: 'N' }),
  user_preferences: (at) => ({ user_id: at.user }),
  user_roles: (at) => ({ workspace_id: at.workspace, user_id: at.newcomer, role: 'VIEWER' }),
  user_secrets: (at) => ({ user_id: at.user, vault_id: 'v' }),
  teams: (at) => ({ workspace_id: at.workspace, name: 't', owner_user_id: at.user }),
  user_team_memberships: (at) => ({ user_id: at.user, team_id: at.of('teams') }),
  team_canvas_layouts: (at) => ({ user_id: at.user, workspace_id: at.workspace }),
  team_connections: (at) => ({
    workspace_id: at.workspace,
    from_team_id: at.of('teams'),
    to_team_id: at.of('teams'),
    connection_type: 'supports',
  }),

  workspace_llm_config: (at) => ({ workspace_id: at.workspace, provider: 'openai', api_key: 'k' }),
  user_integration_credentials: (at) => ({
    user_id: at.user,
    workspace_id: at.workspace,
    service_provider_id: at.of('service_providers'),
    credential_type: 'oauth',
  }),
  api_connections: (at) => ({
    user_id: at.user,
    workspace_id: at.workspace,
    name: 'n',
    service: 's',
    api_key: 'k',
  }),

  personas: (at) => ({ workspace_id: at.workspace, name: 'p' }),
  agents: (at) => ({ workspace_id: at.workspace, user_id: at.user, name: 'a' }),
  workspace_members: (at) => ({ workspace_id: at.workspace, user_id: at.newcomer, role: 'member' }),
  team_members: (at) => ({ workspace_id: at.workspace, team_id: at.of('teams'), agent_id: at.of('agents') }),
  user_agents: (at) => ({ user_id: at.user, agent_id: at.of('agents') }),
  integrations: (at) => ({ user_agent_id: at.of('user_agents'), type: 'mail' }),
  agent_api_connections: (at) => ({
    agent_id: at.of('agents'),
    api_connection_id: at.of('api_connections'),
  }),
  agent_integration_permissions: (at) => ({
    agent_id: at.of('agents'),
    connection_id: at.of('user_integration_credentials'),
  }),
  agent_discord_connections: (at) => ({ agent_id: at.of('agents'), guild_id: 'g' }),
  channel_configs: (at) => ({ workspace_id: at.workspace, agent_id: at.of('agents'), channel: 'web' }),
  agent_web_widget_config: (at) => ({ agent_id: at.of('agents') }),

  datastores: (at) => ({ user_id: at.user, workspace_id: at.workspace, name: 'd', type: 'pgvector' }),
  agent_datastores: (at) => ({ agent_id: at.of('agents'), datastore_id: at.of('datastores') }),
  media_library: (at) => ({ user_id: at.user, workspace_id: at.workspace, file_name: 'f' }),
  agent_media_assignments: (at) => ({ agent_id: at.of('agents'), media_id: at.of('media_library') }),
  media_processing_logs: (at) => ({
    media_id: at.of('media_library'),
    processing_step: 'upload',
    status: 'started',
  }),
  knowledge_sources: (at) => ({ workspace_id: at.workspace, name: 's', type: 'TEXT' }),
  knowledge_chunks: (at) => ({
    workspace_id: at.workspace,
    source_id: at.of('knowledge_sources'),
    chunk_index: Math.floor(Math.random() * 1e9),
    content: 'c',
  }),

  chat_rooms: (at) => ({ workspace_id: at.workspace, name: 'r', owner_user_id: at.user }),
  chat_room_members: (at) => ({
    workspace_id: at.workspace,
    room_id: at.of('chat_rooms'),
    agent_id: at.of('agents'),
  }),
  chat_channels: (at) => ({ workspace_id: at.workspace, name: 'c' }),
  conversations: (at) => ({ workspace_id: at.workspace, agent_id: at.of('agents'), user_id: at.user }),
  chat_messages: (at) => ({
    workspace_id: at.workspace,
    channel_id: at.of('chat_channels'),
    sender_user_id: at.user,
    content: 'm',
  }),
  agent_messages: (at) => ({
    workspace_id: at.workspace,
    conversation_id: at.of('conversations'),
    agent_id: at.of('agents'),
    user_id: at.user,
    role: 'user',
    content: 'm',
  }),
  agent_feedback: (at) => ({ message_id: at.of('agent_messages'), user_id: at.user, rating: 1 }),
  chat_sessions: (at) => ({ workspace_id: at.workspace, agent_id: at.of('agents') }),
  leads: (at) => ({ workspace_id: at.workspace, agent_id: at.of('agents') }),
  agent_logs: (at) => ({ workspace_id: at.workspace, agent_id: at.of('agents'), user_id: at.user }),

  mcp_configurations: (at) => ({ agent_id: at.of('agents') }),
  mcp_servers: (at) => ({
    config_id: at.of('mcp_configurations'),
    name: 's',
    endpoint_url: 'https://s.example',
  }),
  agent_mcp_connections: (at) => ({
    agent_id: at.of('agents'),
    connection_name: 'c',
    server_url: 'https://s.example',
  }),
  mcp_tools_cache: (at) => ({
    connection_id: at.of('agent_mcp_connections'),
    tool_name: randomUUID(),
    tool_schema: {},
    openai_schema: {},
  }),
  mcp_refresh_log: (at) => ({ connection_id: at.of('agent_mcp_connections'), status: 'ok' }),
  account_tool_environments: (at) => ({ user_id: at.user }),
  credential_refresh_log: (at) => ({
    credential_id: at.of('user_integration_credentials'),
    outcome: 'refreshed',
  }),

  agent_tasks: (at) => ({
    workspace_id: at.workspace,
    agent_id: at.of('agents'),
    user_id: at.user,
    name: 't',
  }),
  task_steps: (at) => ({
    task_id: at.of('agent_tasks'),
    step_order: 1 + Math.floor(Math.random() * 1e9),
    step_name: 's',
  }),
  agent_task_event_triggers: (at) => ({
    workspace_id: at.workspace,
    task_id: at.of('agent_tasks'),
    trigger_type: 'manual',
  }),
  integration_events: (at) => ({ workspace_id: at.workspace, source: 's', event_type: 'e' }),
  budgets: (at) => ({ workspace_id: at.workspace, max_turns: 10 }),
  task_runs: (at) => ({ workspace_id: at.workspace, task_id: at.of('agent_tasks') }),
  task_step_runs: (at) => ({
    workspace_id: at.workspace,
    run_id: at.of('task_runs'),
    step_order: Math.floor(Math.random() * 1e9),
    step_name: 's',
  }),
  llm_calls: (at) => ({ ...call(at), idempotency_key: randomUUID() }),
  tool_calls: (at) => ({
    ...call(at),
    idempotency_key: randomUUID(),
    call_index: 1,
    provider_call_id: 'c',
    tool_name: 't',
    source: 's',
    effect: 'read',
  }),

  workspace_subscriptions: (at) => ({ workspace_id: at.workspace, plan_id: at.of('pricing_plans') }),
  billing_invoices: (at) => ({ workspace_id: at.workspace, amount: 1, status: 'paid' }),
  usage_events: (at) => ({ workspace_id: at.workspace, metric: 'message' }),
  usage_event_keys: (at) => ({ workspace_id: at.workspace, idempotency_key: randomUUID() }),
  usage_quarter_hours: (at) => ({ workspace_id: at.workspace, bucket: '2030-01-01', metric: 'message' }),
  workspace_usage: (at) => ({ workspace_id: at.workspace, month: '2030-01-01' }),
  workspace_usage_counters: (at) => ({
    workspace_id: at.workspace,
    month: '2030-01-01',
    metric: 'messages',
  }),
  usage_warnings: (at) => ({
    workspace_id: at.workspace,
    month: '2030-01-01',
    metric: 'messages',
    threshold: 80,
    max_amount: Math.floor(Math.random() * 1e9),
    used_amount: 1,
  }),
};

/** A new row of a table that belongs to the platform. */
export const referenceRow: Readonly<Record<string, () => Columns>> = {
  roles: () => ({ name: randomUUID() }),
  llm_models: () => ({ provider: 'openai', name: 'm', model_id: 'm' }),
  service_providers: () => ({ name: randomUUID(), display_name: 'P', provider_type: 'oauth' }),
  tool_catalog: () => ({ name: randomUUID(), display_name: 'T' }),
  pricing_plans: () => ({ name: 'p' }),
};

function call(at: Place): Columns {
  return { workspace_id: at.workspace, run_id: at.of('task_runs'), step_order: 1, turn: 1 };
}

/** The statement that inserts a row, and its values. */
export function insertText(relation: string, columns: Columns): { text: string; values: unknown[] } {
  const names = Object.keys(columns);
  return {
    text: `insert into ${relation} (${names}) values (${names.map((_, i) => `$${i + 1}`)})`,
    values: Object.values(columns),
  };
}

/** A company's rows, one in each table. */
export type Rows = {
  /** The condition that finds the row, by table. */
  readonly where: ReadonlyMap<string, string>;
  readonly place: Place;
};

const keyOf: Readonly<Record<string, string>> = {
  user_preferences: 'user_id',
  usage_event_keys: 'idempotency_key',
  usage_quarter_hours: 'workspace_id',
  workspace_usage_counters: 'workspace_id',
};

/**
 * One row in every table of schema public that belongs to a company, written by the platform in the name of one user,
 * who must be a member.
 */
export async function rowsOf(db: Runner, c: Company, user: string = c.owner): Promise<Rows> {
  const where = new Map<string, string>();
  const ids = new Map<string, string>();
  for (const [table, columns] of Object.entries(referenceRow)) {
    const { text, values } = insertText(`public.${table}`, columns());
    ids.set(table, await inserted(db, text, values));
  }
  const place: Place = {
    workspace: c.workspace,
    user,
    newcomer: await signUp(db),
    of(table) {
      const id = ids.get(table);
      if (id === undefined) throw new Error(`There is no row of ${table} yet.`);
      return id;
    },
  };
  const keep = (table: string, id: string, condition = `id = '${id}'`): void => {
    ids.set(table, id);
    where.set(table, condition);
  };
  keep('workspaces', c.workspace);
  keep('agents', c.agent);
  // Written by the triggers that followed the making of the company.
  for (const table of ['workspace_members', 'user_roles']) {
    const id = await value<string>(
      db,
      `select id from public.${table} where workspace_id = $1 and user_id = $2`,
      [c.workspace, user],
    );
    if (id === undefined) throw new Error('The user is no member of the company.');
    keep(table, id);
  }
  for (const [table, columns] of Object.entries(newRow)) {
    if (ids.has(table)) continue;
    const row = columns(place);
    const { text, values } = insertText(`public.${table}`, row);
    const key = keyOf[table] ?? 'id';
    const key_value = await value<string>(db, `${text} returning ${key}`, values);
    if (key_value === undefined) throw new Error(`No row of ${table}.`);
    keep(table, key_value, `${key} = '${key_value}'`);
  }
  // Rows of a user's own stay visible to him alone; here they must lie in the company, not in his personal workspace.
  if ((await personalWorkspace(db, user)) === c.workspace)
    throw new Error('The company is a personal workspace.');
  return { where, place };
}
