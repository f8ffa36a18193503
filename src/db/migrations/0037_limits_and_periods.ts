/**
 * Limits that hold by the periods that usage is summed up by: grants that can be settled, warnings, what a run does at a limit, and what follows
 * from changed and ended subscriptions.
 */
import { type Kysely, sql } from 'kysely';
import { applyAccess } from './access.ts';
import { COUNTER_PERIODS, DROP_COUNTER_PERIODS } from './counter-periods.ts';
import { DROP_KEPT_LIMIT_COLUMNS, DROP_KEPT_LIMITS, KEPT_LIMIT_COLUMNS, KEPT_LIMITS } from './kept-limits.ts';
import { DROP_MEMBER_CALLS, MEMBER_CALLS } from './member-calls.ts';
import { runSql } from './run-sql.ts';
import { DROP_SUBSCRIPTION_CHANGES, SUBSCRIPTION_CHANGES } from './subscription-changes.ts';
import { DROP_USAGE_LIMITS, USAGE_LIMITS } from './usage-limits.ts';

export async function up(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    alter table public.pricing_plans
      add column grace_days   integer not null default 7 constraint pricing_plans_grace_days_check check (grace_days between 0 and 365),
      add column limit_policy text    not null default 'wait' constraint pricing_plans_limit_policy_check check (limit_policy in ('wait', 'fail'));
    comment on column public.pricing_plans.grace_days is
      'How many days a subscription goes on that is past_due, or whose trial is over, before its workspace falls back to the default plan.';
    comment on column public.pricing_plans.limit_policy is
      'What a run does whose workspace has used its tokens: wait for the next period or a larger plan, or fail. settings.limit_policy of the workspace goes before.';
    alter table public.workspace_subscriptions add column past_due_since timestamptz;
    update public.workspace_subscriptions set past_due_since = agentd.now() where status = 'past_due';

    create table public.usage_warnings (
      id           uuid        primary key default gen_random_uuid(),
      workspace_id uuid        not null references public.workspaces (id) on delete cascade,
      month        date        not null,
      metric       text        not null constraint usage_warnings_metric_check check (metric in ('conversations', 'messages', 'tokens')),
      threshold    integer     not null constraint usage_warnings_threshold_check check (threshold in (80, 100)),
      max_amount   bigint      not null,
      used_amount  bigint      not null,
      created_at   timestamptz not null default agentd.now(),
      constraint usage_warnings_once unique (workspace_id, month, metric, threshold, max_amount)
    );
    comment on table public.usage_warnings is 'That 80 or 100 of a hundred of a limit are used: once a period, limit and threshold.';
    comment on column public.usage_warnings.month is 'The period, as in workspace_usage.';

    create table agentd.member_calls (
      id           bigint      generated always as identity primary key,
      workspace_id uuid        not null references public.workspaces (id) on delete cascade,
      called_at    timestamptz not null default agentd.now(),
      looked_at    timestamptz not null default clock_timestamp(),
      row_key      text
    );
    create index member_calls_workspace_id_idx on agentd.member_calls (workspace_id);
    create index member_calls_called_at_idx on agentd.member_calls (called_at);
    create index member_calls_unpaired_idx on agentd.member_calls (workspace_id, looked_at) where row_key is null;
    comment on table agentd.member_calls is
      'Calls of increment_conversation_count by users; row_key: the event of the row that was taken back for it. Forgotten after two hours.';

    create table agentd.workspace_plans (
      workspace_id uuid        primary key references public.workspaces (id) on delete cascade,
      changes_at   timestamptz
    );
    create index workspace_plans_changes_at_idx on agentd.workspace_plans (changes_at);
    comment on table agentd.workspace_plans is 'When time alone ends a subscription of a workspace; null: only a change of its row does.';
    `,
  );
  await runSql(db, sql.raw(KEPT_LIMIT_COLUMNS));
  await runSql(db, sql.raw(USAGE_LIMITS));
  await runSql(db, sql.raw(MEMBER_CALLS));
  await runSql(db, sql.raw(COUNTER_PERIODS));
  await runSql(db, sql.raw(KEPT_LIMITS));
  await runSql(db, sql.raw(SUBSCRIPTION_CHANGES));
  await runSql(
    db,
    sql`
    insert into agentd.workspace_plans (workspace_id, changes_at)
    select distinct s.workspace_id, agentd.now() from public.workspace_subscriptions s
    `,
  );
  await applyAccess(db);
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    ${sql.raw(DROP_SUBSCRIPTION_CHANGES)}
    ${sql.raw(DROP_KEPT_LIMITS)}
    drop table public.usage_warnings, agentd.workspace_plans;
    ${sql.raw(DROP_COUNTER_PERIODS)}
    ${sql.raw(DROP_MEMBER_CALLS)}
    ${sql.raw(DROP_USAGE_LIMITS)}
    ${sql.raw(DROP_KEPT_LIMIT_COLUMNS)}
    delete from agentd.usage_deltas where events = 0;
    alter table public.workspace_subscriptions drop column past_due_since;
    alter table public.pricing_plans drop column grace_days, drop column limit_policy;
    `,
  );
  await applyAccess(db);
}
