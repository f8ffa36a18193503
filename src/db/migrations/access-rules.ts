// Who may do what with which row: the data from which access.ts makes row security and grants. A migration that adds a table adds
// its rule here; a rule that changes needs a migration of its own.
//
// Every predicate is for the role authenticated; service_role and agentd_worker bypass row security, anon has nothing.
// Memberships are asked for as `= any (array(select …))`: evaluated once a statement and usable as an index condition.
// Measured on 500,000 rows in 200 workspaces for a caller in three: 0.45 ms, where `in (select …)` took 38 ms and a function
// called per row 10 s.

/** Predicates for one table. A command without a predicate is not allowed, and not granted either. */
export type TableRule = {
  readonly select: string;
  readonly insert?: string;
  /** For the row as it was; `insert` is what the row must be afterwards. */
  readonly update?: string;
  readonly delete?: string;
};

const me = '(select public.current_user_id())';
const mine = 'user_id = (select public.current_user_id())';
const inWorkspace = 'workspace_id = any (array(select agentd.my_workspace_ids()))';
/**
 * The same for reading alone: beside the asker's own condition on the workspace the planner would expect too few rows to read an index
 * in its order. The second argument is never reached; the planner counts what it would cost in a heap, and not in an index.
 */
const inWorkspaceWeighted =
  'workspace_id = any (coalesce(array(select agentd.my_workspace_ids()), agentd.no_workspaces()))';
const asManager = `workspace_id = any (array(select agentd.my_workspace_ids('MANAGER')))`;
const asOwner = `workspace_id = any (array(select agentd.my_workspace_ids('OWNER')))`;
const ofAgent = 'agent_id = any (array(select agentd.my_agent_ids()))';
const ofManagedAgent = `agent_id = any (array(select agentd.my_agent_ids('MANAGER')))`;

/** A rule for reading as it is where agentd.no_workspaces() is there; the rule itself if it is another. */
export const weighted = (select: string): string => (select === inWorkspace ? inWorkspaceWeighted : select);

function writable(select: string, write: string, after: string = write): TableRule {
  return { select, insert: after, update: write, delete: write };
}

/** Nobody asks a user before he is named in such a row: he may take himself out. */
const leavable = (rule: TableRule): TableRule => ({ ...rule, delete: `${mine} or ${rule.delete}` });

const workspace = writable(inWorkspace, asManager);
const workspaceOwner = writable(asOwner, asOwner);
/** Written by the worker; users act through functions. */
const workspaceReadOnly: TableRule = { select: inWorkspace };
const user = writable(mine, mine);
const childOfAgent = writable(ofAgent, ofManagedAgent);
const reference: TableRule = { select: `${me} is not null` };
/** A user's own row that lies in a workspace: he must belong to it, or he could plant rows in another tenant's. */
const userInWorkspace = writable(mine, mine, `${mine} and ${inWorkspace}`);
/** The same for what costs the workspace work or money. */
const userAsManager = writable(mine, mine, `${mine} and ${asManager}`);

export const tableRules: Readonly<Record<string, TableRule>> = {
  // Identity
  workspaces: {
    select: `id = any (array(select agentd.my_workspace_ids())) or owner_user_id = ${me} or is_public`,
    insert: `owner_user_id = ${me} or id = any (array(select agentd.my_workspace_ids('OWNER')))`,
    update: `owner_user_id = ${me} or id = any (array(select agentd.my_workspace_ids('OWNER')))`,
    delete: `owner_user_id = ${me}`,
  },
  profiles: {
    select: `id = ${me} or id in (select m.user_id from public.workspace_members m)`,
    insert: `id = ${me}`,
    update: `id = ${me}`,
  },
  user_preferences: user,
  roles: reference,
  user_roles: { select: `${mine} or ${asOwner}` },
  user_secrets: user,
  teams: workspace,
  user_team_memberships: leavable(
    writable(
      `${mine} or team_id in (select t.id from public.teams t)`,
      `team_id in (select t.id from public.teams t where t.owner_user_id = ${me} or t.${asManager})`,
    ),
  ),
  team_canvas_layouts: userInWorkspace,
  team_connections: workspace,

  // Models and credentials
  llm_models: reference,
  workspace_llm_config: workspaceOwner,
  service_providers: reference,
  integration_capabilities: reference,
  user_integration_credentials: userInWorkspace,
  api_connections: userInWorkspace,

  // Agents
  personas: workspace,
  agents: {
    select: `${inWorkspace} or is_public`,
    insert: `${asManager} and ${mine}`,
    update: asManager,
    delete: asManager,
  },
  workspace_members: leavable(writable(inWorkspace, asOwner)),
  team_members: childOfAgent,
  user_agents: user,
  integrations: writable(
    `user_agent_id in (select u.id from public.user_agents u)`,
    `user_agent_id in (select u.id from public.user_agents u)`,
  ),
  agent_api_connections: childOfAgent,
  agent_integration_permissions: childOfAgent,
  agent_discord_connections: childOfAgent,
  channel_configs: workspace,
  agent_web_widget_config: childOfAgent,

  // Knowledge
  datastores: userAsManager,
  agent_datastores: childOfAgent,
  media_library: userAsManager,
  agent_media_assignments: childOfAgent,
  media_processing_logs: { select: `media_id in (select m.id from public.media_library m)` },
  knowledge_sources: workspace,
  knowledge_chunks: workspace,

  // Conversations
  chat_rooms: writable(inWorkspace, `(owner_user_id = ${me} and ${inWorkspace}) or ${asManager}`),
  chat_room_members: leavable(
    writable(
      inWorkspace,
      `room_id in (select r.id from public.chat_rooms r where r.owner_user_id = ${me}) or ${asManager}`,
    ),
  ),
  chat_channels: workspace,
  // Who has left changes nothing of what was said: also not by a statement without a condition, which reads no row.
  conversations: writable(`${mine} or ${inWorkspace}`, `${mine} and ${inWorkspace}`),
  chat_messages: writable(inWorkspace, `sender_user_id = ${me} and ${inWorkspace}`),
  agent_messages: writable(`${mine} or ${inWorkspace}`, `${mine} and ${inWorkspace}`),
  agent_feedback: writable(
    `${mine} or message_id in (select m.id from public.agent_messages m)`,
    mine,
    `${mine} and message_id in (select m.id from public.agent_messages m)`,
  ),
  chat_sessions: workspace,
  leads: workspace,
  agent_logs: workspaceReadOnly,

  // Tools
  mcp_configurations: childOfAgent,
  mcp_servers: writable(
    `config_id in (select c.id from public.mcp_configurations c)`,
    `config_id in (select c.id from public.mcp_configurations c where c.${ofManagedAgent})`,
  ),
  agent_mcp_connections: childOfAgent,
  mcp_tools_cache: { select: `connection_id in (select c.id from public.agent_mcp_connections c)` },
  mcp_refresh_log: { select: `connection_id in (select c.id from public.agent_mcp_connections c)` },
  tool_catalog: reference,
  account_tool_environments: user,
  credential_refresh_log: {
    select: `credential_id in (select c.id from public.user_integration_credentials c)`,
  },

  // Tasks
  agent_tasks: writable(inWorkspace, asManager),
  task_steps: writable(
    `task_id in (select t.id from public.agent_tasks t)`,
    `task_id in (select t.id from public.agent_tasks t where t.${asManager})`,
  ),
  agent_task_event_triggers: workspace,
  // what has come is not changed; weighted from the first, as a table that came after 0028
  integration_events: { select: inWorkspaceWeighted, insert: asManager, delete: asManager },
  // what may be spent is for those who pay
  budgets: writable(inWorkspace, asOwner),
  task_runs: workspaceReadOnly,
  task_step_runs: workspaceReadOnly,
  llm_calls: workspaceReadOnly,
  tool_calls: workspaceReadOnly,

  // Billing
  pricing_plans: reference,
  workspace_subscriptions: workspaceReadOnly,
  billing_invoices: workspaceReadOnly,
  usage_events: workspaceReadOnly,
  usage_event_keys: workspaceReadOnly,
  usage_quarter_hours: workspaceReadOnly,
  workspace_usage: workspaceReadOnly,
  workspace_usage_counters: workspaceReadOnly,
  usage_warnings: { select: inWorkspaceWeighted },
};

/** Views of schema public: everybody signed in may ask, and each shows him what he may see. */
export const publicViews: readonly string[] = [
  'workspace_overview',
  'agent_activity',
  'usage_by_agent',
  'usage_by_model',
];

/** Columns that a signed-in user may write (where the table's rule allows it) and never read. */
export const secretColumns: Readonly<Record<string, readonly string[]>> = {
  agents: ['discord_bot_key', 'discord_bot_token_id'],
  workspace_llm_config: ['api_key', 'vault_api_key_id'],
  api_connections: ['api_key'],
  integrations: ['credentials'],
  user_integration_credentials: [
    'vault_access_token_id',
    'vault_refresh_token_id',
    'encrypted_access_token',
    'encrypted_refresh_token',
    'refresh_lease_token',
  ],
  datastores: ['config'],
  channel_configs: ['config'],
  service_providers: ['configuration_metadata'],
  tool_catalog: ['default_config'],
  mcp_servers: ['vault_api_key_id'],
  agent_mcp_connections: ['auth_secret'],
};

/** Functions of schema public. All but the Vault's are for signed-in users too. */
export const publicFunctions: readonly string[] = [
  'current_user_id',
  'get_user_role',
  'has_role',
  'user_has_workspace_access',
  'save_team_canvas_layout',
  'create_team_connection',
  'grant_agent_integration_permission',
  'revoke_agent_integration_permission',
  'get_agent_integration_permissions',
  'create_task_step',
  'update_task_step',
  'delete_task_step',
  'run_task',
  'fire_task_trigger',
  'cancel_run',
  'retry_run',
  'decide_tool_call',
  'refresh_mcp_connection',
  'decide_tool_change',
  'get_workspace_usage',
  'get_budget_usage',
  'increment_conversation_count',
  'check_usage_limit',
  'consume_usage',
  'settle_usage',
  'match_knowledge_chunks',
  'search_messages',
  'create_vault_secret',
  'vault_decrypt',
];

/**
 * Their argument types. An application may have a function of one of these names with other arguments, which is none of ours. A
 * function that is not listed here counts with any.
 */
export const publicArguments: Readonly<Record<string, string>> = {
  current_user_id: '',
  get_user_role: 'uuid',
  has_role: 'uuid, app_role',
  user_has_workspace_access: 'uuid',
  save_team_canvas_layout: 'uuid, uuid, jsonb, jsonb, jsonb',
  create_team_connection: 'uuid, uuid, text, uuid',
  grant_agent_integration_permission: 'uuid, uuid, text[], text',
  revoke_agent_integration_permission: 'uuid',
  get_agent_integration_permissions: 'uuid',
  create_task_step: 'uuid, integer, text, text',
  update_task_step: 'uuid, text, text, boolean',
  delete_task_step: 'uuid',
  run_task: 'uuid, jsonb',
  fire_task_trigger: 'uuid, jsonb',
  cancel_run: 'uuid',
  retry_run: 'uuid',
  decide_tool_call: 'uuid, boolean, text',
  refresh_mcp_connection: 'uuid',
  decide_tool_change: 'uuid, boolean, text',
  get_workspace_usage: 'uuid',
  get_budget_usage: 'uuid',
  increment_conversation_count: 'uuid',
  check_usage_limit: 'uuid',
  consume_usage: 'uuid, text, bigint, text',
  settle_usage: 'uuid, text, text, bigint',
  match_knowledge_chunks: 'vector, integer, double precision, uuid, uuid, text, text, uuid[]',
  search_messages: 'vector, text, integer, uuid, uuid, uuid, uuid, uuid, text',
  create_vault_secret: 'text, text, text',
  vault_decrypt: 'text',
};

export const serviceOnlyFunctions: readonly string[] = [
  'create_vault_secret',
  'vault_decrypt',
  'settle_usage',
];

/** Functions of schema agentd that policies, invoker functions and invoker triggers call as the signed-in user. */
export const callableHelpers: readonly string[] = [
  'now',
  'is_service_caller',
  'has_own_users',
  'secret_column',
  'uuid_of',
  'conversation_of',
  'my_workspace_ids',
  'my_agent_ids',
  'month_bounds',
  'usage_period',
  'natural_usage_period',
  'first_instant',
  'valid_time_zone',
  'usage_limit',
  'pending_usage',
  'ask_for_usage',
  'budget_usage',
  'increment_conversation_count',
  'run_task',
  'fire_task_trigger',
  'cancel_run',
  'retry_run',
  'decide_tool_call',
  'refresh_mcp_connection',
  'decide_tool_change',
  'vector_index_name',
  'is_hidden_message',
  'no_workspaces',
  'is_own_statement',
];
