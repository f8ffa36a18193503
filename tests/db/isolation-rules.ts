/**
 * Who may do what with a company's row: what the tests of isolation expect. Written from the patterns of the design and the
 * documents' own policies, and not derived from access-rules.ts, so that a wrong rule there fails.
 *
 * The row was written in the name of its author, a member with the role MANAGER. An insert is one into the company in the
 * caller's own name. Not in the table, because it is always so: a token without a user and anon may do nothing,
 * service_role and agentd_worker everything.
 */

/** Signed-in users. The stranger owns another company; viewer, manager and owner belong to this one and wrote nothing of it. */
export const signedIn = ['stranger', 'viewer', 'manager', 'owner', 'author'] as const;
export type SignedIn = (typeof signedIn)[number];

const groups = {
  nobody: [],
  everyone: signedIn,
  members: ['viewer', 'manager', 'owner', 'author'],
  managers: ['manager', 'owner', 'author'],
  owners: ['owner'],
  author: ['author'],
  /** His own role, and all roles for the owner. */
  'author, owner': ['author', 'owner'],
} as const satisfies Record<string, readonly SignedIn[]>;
export type Group = keyof typeof groups;

export const group = (name: Group): readonly SignedIn[] => groups[name];

export type Expectation = {
  readonly select: Group;
  readonly insert: Group;
  readonly update: Group;
  readonly delete: Group;
};

const rights = (
  select: Group,
  insert: Group,
  update: Group = insert,
  remove: Group = update,
): Expectation => ({
  select,
  insert,
  update,
  delete: remove,
});

/** Work of the company: all read it, managers change it. */
const work = rights('members', 'managers');
/** Written by the worker. */
const record = rights('members', 'nobody');
/** A user's own, wherever he is. */
const own = rights('author', 'everyone', 'author');
/** A user's own, which lies in a workspace: he must belong to it. */
const ownInside = rights('author', 'members', 'author');
/** The same where it costs the workspace work or money. */
const ownCostly = rights('author', 'managers', 'author');
/** What a member says: all read it, only he changes it. */
const said = rights('members', 'members', 'author');
const reference = rights('everyone', 'nobody');

export const expectations: Readonly<Record<string, Expectation>> = {
  // Identity. Whoever makes a workspace or a profile makes it his own.
  workspaces: rights('members', 'everyone', 'owners'),
  profiles: rights('members', 'everyone', 'author', 'nobody'),
  user_preferences: own,
  roles: reference,
  user_roles: rights('author, owner', 'nobody'),
  user_secrets: own,
  teams: work,
  user_team_memberships: work,
  team_canvas_layouts: ownInside,
  team_connections: work,
  // whoever is a member may leave
  workspace_members: rights('members', 'owners', 'owners', 'author, owner'),

  // Models and credentials
  llm_models: reference,
  workspace_llm_config: rights('owners', 'owners'),
  service_providers: reference,
  integration_capabilities: reference,
  user_integration_credentials: ownInside,
  api_connections: ownInside,

  // Agents
  personas: work,
  agents: work,
  team_members: work,
  user_agents: ownInside,
  integrations: rights('author', 'author'),
  agent_api_connections: work,
  agent_integration_permissions: work,
  agent_discord_connections: work,
  channel_configs: work,
  agent_web_widget_config: work,

  // Knowledge
  datastores: ownCostly,
  agent_datastores: work,
  media_library: ownCostly,
  agent_media_assignments: work,
  media_processing_logs: rights('author', 'nobody'),
  knowledge_sources: work,
  knowledge_chunks: work,

  // Conversations. Any member opens a room; its owner and the managers keep it.
  chat_rooms: rights('members', 'members', 'managers'),
  chat_room_members: work,
  chat_channels: work,
  conversations: said,
  chat_messages: said,
  agent_messages: said,
  agent_feedback: said,
  chat_sessions: work,
  leads: work,
  agent_logs: record,

  // Tools
  mcp_configurations: work,
  mcp_servers: work,
  agent_mcp_connections: work,
  mcp_tools_cache: record,
  mcp_refresh_log: record,
  tool_catalog: reference,
  account_tool_environments: own,
  credential_refresh_log: rights('author', 'nobody'),

  // Tasks. What may be spent is for those who pay.
  agent_tasks: work,
  task_steps: work,
  agent_task_event_triggers: work,
  integration_events: rights('members', 'managers', 'nobody', 'managers'),
  budgets: rights('members', 'owners'),
  task_runs: record,
  task_step_runs: record,
  llm_calls: record,
  tool_calls: record,

  // Billing
  pricing_plans: reference,
  workspace_subscriptions: record,
  billing_invoices: record,
  usage_events: record,
  usage_event_keys: record,
  usage_quarter_hours: record,
  workspace_usage: record,
  workspace_usage_counters: record,
  usage_warnings: record,
};

/** What its author still reads once he has left the company: his own, and what he himself said. */
export const readAfterLeaving: readonly string[] = [
  'account_tool_environments',
  'agent_feedback',
  'agent_messages',
  'api_connections',
  'conversations',
  'credential_refresh_log',
  'datastores',
  'integrations',
  'media_library',
  'media_processing_logs',
  'profiles',
  'team_canvas_layouts',
  'user_agents',
  'user_integration_credentials',
  'user_preferences',
  'user_secrets',
  'user_team_memberships',
];

/** What he may still take away: rows that nobody but he has ever seen, and his word on an answer. */
export const takenAfterLeaving: readonly string[] = [
  'account_tool_environments',
  'agent_feedback',
  'api_connections',
  'datastores',
  'integrations',
  'media_library',
  'team_canvas_layouts',
  'user_agents',
  'user_integration_credentials',
  'user_preferences',
  'user_secrets',
  // he leaves the team, too
  'user_team_memberships',
];

/** In whose name others may write: tables where a manager or owner names another user. Everywhere else a row is its writer's. */
export const writtenForOthers: Readonly<Record<string, string>> = {
  teams: 'a manager makes a team that somebody else leads',
  user_team_memberships: 'a manager puts people into teams',
  chat_rooms: 'a manager opens a room for somebody else',
  agent_tasks: 'a manager makes a task whose answers go to another member',
};
