/**
 * Which rows have had their time: the tables, where each row's time and workspace are, and what happens to it. How many days that is, is in
 * config/retention.json and, for one workspace, in agentd.retention_overrides.
 */
import { z } from 'zod';
import { readConfigFile } from '../config.ts';

/** What one rule does with the rows of one table. SQL fragments call the row `t`. */
export type RowRule = {
  /** As in config/retention.json and agentd.retention_overrides. */
  readonly name: string;
  readonly table: string;
  /** The row's time. */
  readonly at: string;
  /** The table has an index in the order of that time, or one of each workspace's rows in it. */
  readonly walk: 'time' | 'workspace';
  /** Its workspace; null: the rule is the whole database's. */
  readonly workspace: string | null;
  /** Joins that `workspace` needs. */
  readonly join?: string;
  /** Which rows it is about, if not all. */
  readonly when?: string;
  /** Statements about the rows `due` (column tid), as CTEs; the last, `done`, returns a row for each that was changed. */
  readonly change: string;
  /** FOR UPDATE takes rows away; what changes them takes the weaker lock, which a foreign key does not wait for. */
  readonly lock: 'update' | 'no key update';
  /** Days below which it does not go, whatever is configured. */
  readonly leastDays: number;
  /** The most rows of one batch: of what cascades, few. */
  readonly most: number;
  /** For people: `deletes runs that ended …`. */
  readonly does: string;
};

const gone = (table: string): string =>
  `done as (delete from ${table} t where t.ctid = any (array(select due.tid from due)) returning 1 as one)`;

type Plain = Pick<RowRule, 'name' | 'table' | 'at' | 'does'> & Partial<RowRule>;

const deleting = (rule: Plain): RowRule => ({
  walk: 'time',
  workspace: 't.workspace_id',
  change: gone(rule.table),
  lock: 'update',
  leastDays: 1,
  most: 5_000,
  ...rule,
});

/** Children go with their run; a run that is to be kept is not found here, as it has no finished_at. */
const RULES: readonly RowRule[] = [
  deleting({
    name: 'task_runs',
    table: 'public.task_runs',
    at: 't.finished_at',
    when: 't.finished_at is not null',
    most: 500,
    // a month's budget that is made, or asked, at its end begins with what the journal has of the month (agentd.budget_use)
    leastDays: 33,
    does: 'deletes runs that ended, with their steps and calls',
  }),
  {
    name: 'call_bodies',
    table: 'public.task_runs',
    at: 't.finished_at',
    walk: 'time',
    workspace: 't.workspace_id',
    when: '(t.finished_at is not null and t.stripped_at is null) is true',
    change: `
ended as materialized (select t.id from public.task_runs t where t.ctid = any (array(select due.tid from due))),
models as (
  update public.llm_calls c set response = null
   where c.run_id = any (array(select ended.id from ended)) and c.response is not null),
tools as (
  update public.tool_calls c set arguments = '{}', result = null
   where c.run_id = any (array(select ended.id from ended)) and (c.result is not null or c.arguments <> '{}')),
steps as (
  update public.task_step_runs s set context = null
   where s.run_id = any (array(select ended.id from ended)) and s.context is not null),
done as (
  update public.task_runs t set stripped_at = agentd.now() where t.id = any (array(select ended.id from ended)) returning 1 as one)`,
    lock: 'no key update',
    leastDays: 1,
    most: 500,
    does: 'removes what calls of runs that ended were told and answered; the run, its result and its figures stay',
  },
  deleting({
    name: 'agent_logs',
    table: 'public.agent_logs',
    at: 't."timestamp"',
    does: 'deletes lines of what agents did',
  }),
  deleting({
    name: 'mcp_refresh_log',
    table: 'public.mcp_refresh_log',
    at: 't.created_at',
    workspace: 'a.workspace_id',
    join: 'join public.agent_mcp_connections c on c.id = t.connection_id join public.agents a on a.id = c.agent_id',
    does: 'deletes looks at what MCP servers offer',
  }),
  deleting({
    name: 'credential_refresh_log',
    table: 'public.credential_refresh_log',
    at: 't.created_at',
    workspace: 'c.workspace_id',
    join: 'join public.user_integration_credentials c on c.id = t.credential_id',
    does: 'deletes refreshes of connected accounts',
  }),
  deleting({
    name: 'media_processing_logs',
    table: 'public.media_processing_logs',
    at: 't.created_at',
    workspace: 'coalesce(m.workspace_id, k.workspace_id)',
    join: 'left join public.media_library m on m.id = t.media_id left join public.knowledge_sources k on k.id = t.source_id',
    does: 'deletes steps of the reading of documents',
  }),
  deleting({
    name: 'audit_log',
    table: 'agentd.audit_log',
    at: 't.at',
    leastDays: 30,
    does: 'deletes what people and operators did',
  }),
  deleting({
    name: 'usage_event_keys',
    table: 'public.usage_event_keys',
    at: 't.recorded_at',
    // events come up to 35 days late, and a client may send one again
    leastDays: 40,
    does: 'deletes keys of usage events: an event that is sent again after that counts twice',
  }),
  deleting({
    name: 'usage_reservations',
    table: 'agentd.usage_reservations',
    at: 't.created_at',
    leastDays: 40,
    does: 'deletes keys of consume_usage: a call that is repeated after that consumes twice',
  }),
  deleting({
    name: 'usage_quarter_hours',
    table: 'public.usage_quarter_hours',
    at: 't.bucket',
    walk: 'workspace',
    // as long as the events are there, they are compared with these sums
    when: 't.bucket < agentd.usage_complete_since()',
    leastDays: 100,
    does: 'deletes sums by quarter of an hour whose events are retired; workspace_usage stays',
  }),
  deleting({
    name: 'usage_drifts',
    table: 'agentd.usage_drifts',
    at: 't.found_at',
    when: 't.repaired_at is not null',
    does: 'deletes differences of sums that were repaired',
  }),
  deleting({
    name: 'integration_events',
    table: 'public.integration_events',
    at: 't.received_at',
    leastDays: 2,
    does: 'deletes events from outside: one that is sent again after that is a new one',
  }),
  {
    name: 'expired_approvals',
    table: 'public.tool_calls',
    at: 't.created_at',
    walk: 'time',
    workspace: 't.workspace_id',
    when: `t.status = 'waiting' and t.decided_at is null`,
    change: `
waiting as materialized (select t.id from public.tool_calls t where t.ctid = any (array(select due.tid from due))),
done as (select 1 as one from waiting w where agentd.expire_approval(w.id))`,
    lock: 'no key update',
    leastDays: 1,
    most: 100,
    does: 'denies tool calls on which nobody decided, and lets their runs go on',
  },
  {
    name: 'stale_chat_sessions',
    table: 'public.chat_sessions',
    at: 't.started_at',
    walk: 'time',
    workspace: 't.workspace_id',
    when: `t.status = 'active'`,
    change: `
done as (
  update public.chat_sessions t set status = 'completed', ended_at = coalesce(t.ended_at, agentd.now())
   where t.ctid = any (array(select due.tid from due)) returning 1 as one)`,
    lock: 'no key update',
    leastDays: 1,
    most: 1_000,
    does: 'ends visits on websites that nobody ended; what was said stays',
  },
  deleting({
    name: 'chat_sessions',
    table: 'public.chat_sessions',
    at: 't.started_at',
    when: `t.status <> 'active'`,
    most: 1_000,
    does: 'deletes visits on websites that have ended, with what was said',
  }),
  deleting({
    name: 'temporary_chat_messages',
    table: 'public.chat_messages',
    at: 't.created_at',
    when: `t.metadata @> '{"temporary": true}'`,
    does: 'deletes messages of channels whose metadata say "temporary": true',
  }),
  deleting({
    name: 'temporary_agent_messages',
    table: 'public.agent_messages',
    at: 't.created_at',
    when: `t.metadata @> '{"temporary": true}'`,
    does: 'deletes messages of conversations whose metadata say "temporary": true',
  }),
  deleting({
    name: 'signup_failures',
    table: 'agentd.signup_failures',
    at: 't.created_at',
    workspace: null,
    does: 'deletes users for whom something could not be made at sign-up',
  }),
  deleting({
    name: 'closed_workspaces',
    table: 'agentd.closed_workspaces',
    at: 't.closed_at',
    workspace: null,
    leastDays: 40,
    does: 'deletes what remains of workspaces that were deleted: what their bills were made of, and that their ids are taken',
  }),
  deleting({
    name: 'maintenance_log',
    table: 'agentd.maintenance_log',
    at: 't.started_at',
    workspace: null,
    when: `t.outcome <> 'running'`,
    leastDays: 2,
    does: 'deletes passes of maintenance',
  }),
];

/** The rules, in the order in which they are carried out when all are due. */
export const rowRules: readonly RowRule[] = RULES;

/** Tables by month. */
export const MONTHLY = { usage_events: 'public.usage_events', job_runs: 'agentd.job_runs' } as const;
export type Monthly = keyof typeof MONTHLY;

/** How long everything is kept. */
export type Retention = {
  readonly partitions: Readonly<
    Record<Monthly, { readonly monthsAhead: number; readonly keepMonths: number }>
  >;
  /** Days by the name of the rule; null: for ever. */
  readonly rules: Readonly<Record<string, number | null>>;
  /** Days for which no row has named a stored object before it is removed. */
  readonly storedObjectsGraceDays: number;
};

const monthly = (least: number) =>
  z.strictObject({ monthsAhead: z.int().min(2).max(36), keepMonths: z.int().min(least).max(1200) });

const days = (least: number) => z.int().min(least).max(36_500).nullable();

const schema = z.strictObject({
  partitions: z.strictObject({
    // dashboards look back thirty days, and events come up to 35 days late
    usage_events: monthly(3),
    job_runs: monthly(1),
  }),
  rules: z.strictObject(Object.fromEntries(RULES.map((rule) => [rule.name, days(rule.leastDays)]))),
  storedObjectsGraceDays: z.int().min(1).max(3650),
});

/** Reads config/retention.json. Throws ConfigError naming the field. */
export function loadRetention(): Retention {
  return readConfigFile<Retention>('retention.json', schema as z.ZodType<Retention>);
}
