/**
 * Usage is summed up, exactly: events of messages and conversations, the roll-up into quarter hours and periods, corrections of what comes late,
 * and a recomputation beside it.
 */
import { type Kysely, sql } from 'kysely';
import { GET_WORKSPACE_USAGE } from './0009_billing.ts';
import { incrementConversationCount } from './0020_platforms.ts';
import { applyAccess } from './access.ts';
import { changed, runSql } from './run-sql.ts';
import { countCalls, DROP_EVENTS, EVENT_FUNCTIONS, EVENT_TRIGGERS } from './usage-events.ts';
import { DROP_PERIODS, PERIOD_FUNCTIONS, PERIOD_TRIGGERS } from './usage-periods.ts';
import { DROP_REPAIR, REPAIR_FUNCTIONS } from './usage-repair.ts';
import { DROP_ROLLUP, ROLLUP_FUNCTIONS } from './usage-rollup.ts';

/** Views of dashboards that this migration adds: their query, and what a row is found by. */
const DASHBOARDS = {
  usage_by_agent: {
    key: 'workspace_id, agent_id, day, metric',
    comment: 'What each agent has used on each of the last thirty days (UTC), by metric; as of refreshed_at.',
    query: `
      select e.workspace_id, e.agent_id, (e.occurred_at at time zone 'UTC')::date as day, e.metric,
             count(*) as events, sum(e.quantity)::bigint as quantity, sum(e.cost_micros)::bigint as cost_micros
        from public.usage_events e
       where e.recorded_at >= since.at and e.occurred_at >= since.at and e.agent_id is not null
       group by e.workspace_id, e.agent_id, day, e.metric`,
  },
  usage_by_model: {
    key: 'workspace_id, provider, model, day, metric',
    comment:
      'The tokens of each model on each of the last thirty days (UTC), and what they cost; as of refreshed_at.',
    query: `
      select e.workspace_id, left(coalesce(e.dimensions ->> 'provider', ''), 200) as provider,
             left(coalesce(e.dimensions ->> 'model', ''), 200) as model, (e.occurred_at at time zone 'UTC')::date as day, e.metric,
             count(*) as events, sum(e.quantity)::bigint as quantity,
             ${['prompt_tokens', 'completion_tokens', 'cached_tokens']
               .map(
                 (name) =>
                   `sum(case when jsonb_typeof(e.dimensions -> '${name}') = 'number' then (e.dimensions ->> '${name}')::numeric end) as ${name}`,
               )
               .join(',\n             ')},
             sum(e.cost_micros)::bigint as cost_micros
        from public.usage_events e
       where e.recorded_at >= since.at and e.occurred_at >= since.at and e.metric in ('tokens', 'embedding_tokens')
       group by e.workspace_id, provider, 3, day, e.metric`,
  },
} as const;

const SINCE = `(date_trunc('day', agentd.now() at time zone 'UTC') - interval '29 days') at time zone 'UTC'`;

export async function up(db: Kysely<unknown>): Promise<void> {
  await addTables(db);
  await runSql(db, sql.raw(ROLLUP_FUNCTIONS));
  await runSql(db, sql.raw(PERIOD_FUNCTIONS));
  await runSql(db, sql.raw(REPAIR_FUNCTIONS));
  await runSql(db, sql.raw(EVENT_FUNCTIONS));
  await runSql(db, sql.raw(EVENT_TRIGGERS));
  await runSql(db, sql.raw(PERIOD_TRIGGERS));
  await runSql(db, sql.raw(countCalls(incrementConversationCount)));
  await runSql(
    db,
    sql.raw(changed(GET_WORKSPACE_USAGE, 'from agentd.month_bounds(', 'from agentd.usage_period(')),
  );
  await addViews(db);
  await applyAccess(db);
}

async function addTables(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    alter table public.pricing_plans
      add column usage_period text not null default 'month' constraint pricing_plans_usage_period_check check (usage_period in ('month', 'subscription'));
    comment on column public.pricing_plans.usage_period is
      'What usage is summed up by: calendar months in the workspace''s time zone, or the periods of its subscription.';
    alter table public.workspace_usage
      add column period_kind text not null default 'month' constraint workspace_usage_period_kind_check check (period_kind in ('month', 'subscription'));
    comment on column public.workspace_usage.month is 'The first day of the month; of a subscription''s period the day that it begins on.';
    comment on column public.workspace_usage.closed_at is 'What comes later for this period is a correction of the open one.';

    alter table public.workspace_usage_counters add column ends_at timestamptz;
    comment on column public.workspace_usage_counters.ends_at is
      'Where the period was cut: what is used from then on is not added to this counter, also by who knew the period as it was.';

    -- Sums stay within their types whatever an application writes, and a time can be placed.
    alter table public.usage_events
      add constraint usage_events_bounds_check
        check (quantity between -1000000000000 and 1000000000000 and cost_micros between -1000000000000 and 1000000000000
               and recorded_at >= timestamptz '1900-01-01 00:00:00+00' and recorded_at < timestamptz '3000-01-01 00:00:00+00');

    alter table agentd.usage_rollup_state
      add column server_id bigint,
      add column rebuilds  bigint not null default 0;
    insert into agentd.usage_rollup_state (name, snapshot) values ('fold', pg_current_snapshot()), ('reconcile', pg_current_snapshot());
    -- events of before are new to it
    update agentd.usage_rollup_state set snapshot = '3:3:' where name = 'usage' and last_run_at is null;

    -- Sums of new events on their way into the sums of their workspace. No foreign key: gathering waits for no tenant.
    create table agentd.usage_deltas (
      id           bigint      generated always as identity primary key,
      workspace_id uuid        not null,
      at           timestamptz not null,
      metric       text        not null,
      in_counter   boolean     not null,
      events       bigint      not null,
      quantity     bigint      not null,
      cost_micros  bigint      not null
    );
    create index usage_deltas_workspace_id_idx on agentd.usage_deltas (workspace_id);

    create table agentd.usage_corrections (
      id           bigint      generated always as identity primary key,
      workspace_id uuid        not null references public.workspaces (id) on delete cascade,
      occurred_at  timestamptz not null,
      booked_at    timestamptz not null,
      metric       text        not null,
      events       bigint      not null,
      quantity     bigint      not null,
      cost_micros  bigint      not null,
      created_at   timestamptz not null default agentd.now()
    );
    create index usage_corrections_workspace_id_idx on agentd.usage_corrections (workspace_id);
    comment on table agentd.usage_corrections is
      'What came for a period that was closed (occurred_at lies in it) and was booked to the one that was open (booked_at lies in it).';

    create table agentd.usage_by_second (
      workspace_id uuid primary key references public.workspaces (id) on delete cascade
    );
    comment on table agentd.usage_by_second is 'Workspaces whose periods begin, or began, at any second.';

    -- No key and no reference: who asks waits for nobody, also not for an owner who holds his workspace.
    create table agentd.usage_recuts (
      id           bigint      generated always as identity primary key,
      workspace_id uuid        not null,
      requested_at timestamptz not null default agentd.now()
    );
    create index usage_recuts_workspace_id_idx on agentd.usage_recuts (workspace_id);
    comment on table agentd.usage_recuts is 'Changes of the zone or plan of workspaces, whose open period is to be cut anew.';

    create table agentd.usage_period_locks (
      workspace_id uuid   primary key references public.workspaces (id) on delete cascade,
      changes      bigint not null default 0
    );
    comment on table agentd.usage_period_locks is 'Held by whoever opens or cuts periods of the workspace.';

    create table agentd.usage_drifts (
      id           bigint      generated always as identity primary key,
      workspace_id uuid        not null references public.workspaces (id) on delete cascade,
      level        text        not null,
      at           timestamptz not null,
      metric       text        not null,
      expected     numeric     not null,
      found        numeric     not null,
      found_at     timestamptz not null default agentd.now(),
      repaired_at  timestamptz
    );
    create index usage_drifts_workspace_id_idx on agentd.usage_drifts (workspace_id, found_at desc);
    comment on table agentd.usage_drifts is 'Where a recomputation from the events differed from the sums.';

    create table agentd.conversation_calls (
      workspace_id uuid        primary key references public.workspaces (id) on delete cascade,
      since        timestamptz not null
    );
    comment on table agentd.conversation_calls is 'When a workspace''s application first called increment_conversation_count.';

    create table agentd.model_prices (
      provider           text           not null,
      model              text           not null,
      valid_from         timestamptz    not null,
      input_cost_per_1k  numeric(18, 8) not null,
      output_cost_per_1k numeric(18, 8) not null,
      primary key (model, provider, valid_from)
    );
    comment on table agentd.model_prices is 'What models have cost, from when: the history of llm_models.';
    insert into agentd.model_prices (provider, model, valid_from, input_cost_per_1k, output_cost_per_1k)
    select distinct on (m.provider, m.model_id) m.provider, m.model_id, '-infinity', m.input_cost_per_1k, m.output_cost_per_1k
      from public.llm_models m order by m.provider, m.model_id, m.created_at desc;
    `,
  );
}

async function addViews(db: Kysely<unknown>): Promise<void> {
  for (const [name, view] of Object.entries(DASHBOARDS)) {
    await runSql(
      db,
      sql.raw(`
      create materialized view agentd.${name} as ${view.query.replaceAll('since.at', SINCE)};
      create unique index ${name}_key on agentd.${name} (${view.key});
      insert into agentd.dashboard_refreshes (view_name, refreshed_at) values ('${name}', agentd.now());
      create view public.${name} with (security_barrier = true) as
        select f.*, (select d.refreshed_at from agentd.dashboard_refreshes d where d.view_name = '${name}') as refreshed_at
          from agentd.${name} f
         where f.workspace_id = any (
           case when pg_catalog.row_security_active('public.workspaces'::regclass)
             then array(select agentd.my_workspace_ids())
             else array(select w.id from public.workspaces w)
           end);
      comment on view public.${name} is '${view.comment}';
      `),
    );
  }
  await runSql(
    db,
    sql`
    create view agentd.usage_rollup as
      select s.last_run_at, extract(epoch from agentd.now() - s.last_run_at) as seconds_since, s.last_duration_ms, s.events_rolled,
             (select count(*) from agentd.usage_deltas d where d.events <> 0) as waiting_deltas,
             (select count(distinct d.workspace_id) from agentd.usage_deltas d where d.events <> 0) as waiting_workspaces,
             (select count(distinct r.workspace_id) from agentd.usage_recuts r) as waiting_recuts,
             (select count(*) from agentd.usage_drifts f where f.repaired_at is null) as open_drifts,
             (pg_snapshot_xmax(s.snapshot) > pg_snapshot_xmax(pg_current_snapshot())
              or coalesce(s.server_id <> agentd.server_identity(), false)) as is_restored
        from agentd.usage_rollup_state s where s.name = 'usage';
    comment on view agentd.usage_rollup is 'How far usage is summed up, and what waits; is_restored: run agentd usage rebuild.';
    `,
  );
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    drop view agentd.usage_rollup;
    ${sql.raw(
      Object.keys(DASHBOARDS)
        .map(
          (name) =>
            `drop view public.${name}; drop materialized view agentd.${name}; delete from agentd.dashboard_refreshes where view_name = '${name}';`,
        )
        .join('\n'),
    )}
    ${sql.raw(GET_WORKSPACE_USAGE)}
    ${sql.raw(incrementConversationCount)}
    ${sql.raw(DROP_EVENTS)}
    ${sql.raw(DROP_REPAIR)}
    ${sql.raw(DROP_PERIODS)}
    ${sql.raw(DROP_ROLLUP)}
    drop table agentd.model_prices, agentd.conversation_calls, agentd.usage_drifts, agentd.usage_period_locks, agentd.usage_recuts, agentd.usage_by_second,
      agentd.usage_corrections, agentd.usage_deltas;
    -- what is summed up goes with what knows how far
    delete from public.usage_quarter_hours;
    delete from public.workspace_usage;
    delete from agentd.usage_rollup_state where name in ('fold', 'reconcile');
    update agentd.usage_rollup_state set last_run_at = null, events_rolled = 0, last_duration_ms = null;
    alter table agentd.usage_rollup_state drop column server_id, drop column rebuilds;
    alter table public.usage_events drop constraint usage_events_bounds_check;
    alter table public.workspace_usage drop column period_kind;
    alter table public.workspace_usage_counters drop column ends_at;
    alter table public.pricing_plans drop column usage_period;
    comment on column public.workspace_usage.month is null;
    comment on column public.workspace_usage.closed_at is null;
    `,
  );
  await applyAccess(db);
}
