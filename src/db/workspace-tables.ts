/** What the catalog can't say about the rows of a workspace: a line for each table that needs one. tests/db/workspace-plan.test.ts asks for it. */

/** Tables that hold nothing of a workspace's, with the reason. */
export const APART: Readonly<Record<string, string>> = {
  'public.profiles': 'a person’s; people are in several workspaces',
  'public.user_preferences': 'a person’s',
  'public.user_secrets': 'a person’s',
  'public.account_tool_environments': 'a person’s',
  'public.roles': 'the platform’s',
  'public.llm_models': 'the platform’s',
  'public.service_providers': 'the platform’s',
  'public.integration_capabilities': 'the platform’s',
  'public.tool_catalog': 'the platform’s',
  'public.pricing_plans': 'the platform’s',
  'agentd.dashboard_refreshes': 'of the dashboards of all',
  'agentd.locks': 'names of locks',
  'agentd.maintenance_log': 'of the housekeeping of all',
  'agentd.maintenance_tasks': 'of the housekeeping of all',
  'agentd.model_prices': 'the platform’s',
  'agentd.platform_objects': 'the platform’s',
  'agentd.provider_states': 'of providers',
  'agentd.queue_settings': 'of queues',
  'agentd.rate_limits': 'of keys, by their hash',
  'agentd.retired_partitions': 'of the housekeeping of all',
  'agentd.signup_failures': 'of people',
  'agentd.sleepers': 'of daemons',
  'agentd.stored_objects': 'of the storage; a note goes when its object is gone',
  'agentd.usage_rollup_state': 'of the roll-up of all',
  'agentd.workers': 'of daemons',
};

/**
 * Which references say whose row it is, in tables without a workspace that have several. The others say what the row is about, which
 * may be another workspace's.
 */
export const OWNERS: Readonly<Record<string, readonly string[]>> = {
  'public.agent_api_connections': ['agent_id'],
  'public.agent_datastores': ['agent_id'],
  'public.agent_integration_permissions': ['agent_id'],
  'public.agent_mcp_connections': ['agent_id'],
  'public.agent_media_assignments': ['agent_id'],
  // a step of a file's, or of a page that is no file
  'public.media_processing_logs': ['media_id', 'source_id'],
};

/** References that no constraint makes: table, column, whose id it holds. */
export const LINKS: Readonly<Record<string, { readonly column: string; readonly to: string }>> = {
  'agentd.budget_counters': { column: 'budget_id', to: 'public.budgets' },
  'agentd.budget_reservations': { column: 'budget_id', to: 'public.budgets' },
};

/** Rows that are exported only where this holds too (over `t`, the workspace is $1), with the reason. */
export const EXPORTED_IF: Readonly<Record<string, { readonly sql: string; readonly reason: string }>> = {
  'public.user_agents': {
    sql: 'exists (select 1 from public.workspace_members m where m.workspace_id = $1 and m.user_id = t.user_id)',
    reason: 'who else uses a public agent is his own affair',
  },
  'public.integrations': {
    sql: 'exists (select 1 from public.user_agents u join public.workspace_members m on m.user_id = u.user_id where m.workspace_id = $1 and u.id = t.user_agent_id)',
    reason: 'what another has connected to a public agent is his own',
  },
};

/**
 * What is in other stores, and on its way there: these rows are needed to delete it, with the keys, and go when that is done. Erasing a
 * workspace retires its stores; the daemons do the rest.
 */
export const REMOTE: readonly string[] = [
  'agentd.vector_stores',
  'agentd.vector_outbox',
  'agentd.vector_copies',
  'agentd.zep_graphs',
  'agentd.graph_episodes',
];

/** Rows that go by a way of their own, at the end. */
export const LAST: readonly string[] = ['agentd.audit_log', 'agentd.vault_owners'];

/** What bills were made of. Kept with --keep-billing, beside a workspace without its name. */
export const BILLING: readonly string[] = [
  'public.workspaces',
  'public.billing_invoices',
  'public.workspace_subscriptions',
  'public.workspace_usage',
  'public.workspace_usage_counters',
  'public.usage_warnings',
  'public.usage_events',
  'public.usage_event_keys',
  'public.usage_quarter_hours',
  'agentd.conversation_calls',
  'agentd.usage_by_second',
  'agentd.usage_corrections',
  'agentd.usage_deltas',
  'agentd.usage_drifts',
  'agentd.usage_period_locks',
  'agentd.usage_recuts',
  'agentd.usage_reservations',
  'agentd.member_calls',
  'agentd.workspace_plans',
  'agentd.closed_workspaces',
];
