/**
 * Figures for dashboards, computed beforehand: what each workspace has, and what each agent did on each of the last thirty days.
 *
 * The worker refreshes them every few minutes (src/services/dashboards.ts) through a function of their owner. Materialized views know no row
 * security, so applications read them through views of schema public, which show a signed-in user his workspaces and the platform's own
 * roles everything. When a figure was computed is in agentd.dashboard_refreshes and not in the materialized view: a concurrent refresh
 * writes the rows that differ, and a time in each row would make that all of them.
 */
import { type Kysely, sql } from 'kysely';
import { applyAccess } from './access.ts';

export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    create table agentd.dashboard_refreshes (
      view_name    text primary key,
      -- when a worker last set about it; nobody else does so until it is due again
      started_at   timestamptz,
      refreshed_at timestamptz not null,
      took_ms      integer not null default 0,
      -- tries since the last that succeeded, and the SQLSTATE of the last of them
      failures     integer not null default 0,
      last_error   text
    );
    insert into agentd.dashboard_refreshes (view_name, refreshed_at)
    values ('workspace_overview', agentd.now()), ('agent_activity', agentd.now());

    -- Messages of the last thirty days without a walk through those of all time. A page of it covers a megabyte of messages.
    create index chat_messages_created_at_idx on public.chat_messages using brin (created_at) with (autosummarize = on);
  `.execute(db);

  await sql`
    -- runs: of those that ended in the last thirty days
    create materialized view agentd.workspace_overview as
      select w.id                                       as workspace_id,
             coalesce(a.agents, 0)                      as agents,
             coalesce(a.live_agents, 0)                 as live_agents,
             coalesce(m.members, 0)                     as members,
             coalesce(t.active_tasks, 0)                as active_tasks,
             coalesce(s.sources, 0)                     as knowledge_sources,
             coalesce(s.chunks, 0)                      as knowledge_chunks,
             coalesce(f.media, 0)                       as media,
             coalesce(c.conversations, 0)               as conversations,
             coalesce(g.messages, 0)                    as messages,
             coalesce(r.completed, 0)                   as runs_completed,
             coalesce(r.failed, 0)                      as runs_failed,
             coalesce(r.cancelled, 0)                   as runs_cancelled,
             coalesce(r.skipped, 0)                     as runs_skipped
        from public.workspaces w
        left join (
          select workspace_id, count(*) as agents, count(*) filter (where status = 'live' and is_active) as live_agents
            from public.agents
           group by workspace_id
        ) a on a.workspace_id = w.id
        left join (
          select workspace_id, count(*) as members
            from public.workspace_members
           where user_id is not null
           group by workspace_id
        ) m on m.workspace_id = w.id
        left join (
          select workspace_id, count(*) as active_tasks
            from public.agent_tasks
           where status = 'active'
           group by workspace_id
        ) t on t.workspace_id = w.id
        left join (
          select workspace_id, count(*) as sources, sum(chunk_count) as chunks
            from public.knowledge_sources
           group by workspace_id
        ) s on s.workspace_id = w.id
        left join (
          select workspace_id, count(*) as media
            from public.media_library
           where not is_archived
           group by workspace_id
        ) f on f.workspace_id = w.id
        left join (
          select workspace_id, count(*) as conversations
            from public.conversations
           group by workspace_id
        ) c on c.workspace_id = w.id
        left join (
          select workspace_id, sum(messages)::bigint as messages
            from (
              select workspace_id, count(*) as messages
                from public.chat_messages
               where created_at > agentd.now() - interval '30 days'
               group by workspace_id
              union all
              select workspace_id, count(*)
                from public.agent_messages
               where created_at > agentd.now() - interval '30 days'
               group by workspace_id
            ) of_either
           group by workspace_id
        ) g on g.workspace_id = w.id
        left join (
          select workspace_id,
                 count(*) filter (where status = 'completed') as completed,
                 count(*) filter (where status = 'failed')    as failed,
                 count(*) filter (where status = 'cancelled') as cancelled,
                 count(*) filter (where status = 'skipped')   as skipped
            from public.task_runs
           where finished_at > agentd.now() - interval '30 days'
           group by workspace_id
        ) r on r.workspace_id = w.id;
    -- what a concurrent refresh needs
    create unique index workspace_overview_key on agentd.workspace_overview (workspace_id);

    -- A day is one of UTC, and a run belongs to the day on which it ended: today and the twenty-nine before.
    create materialized view agentd.agent_activity as
      select r.workspace_id,
             r.agent_id,
             (r.finished_at at time zone 'UTC')::date                as day,
             count(*) filter (where r.status = 'completed')          as runs_completed,
             count(*) filter (where r.status = 'failed')             as runs_failed,
             sum(r.turns)                                            as turns,
             sum(r.tool_calls)                                       as tool_calls,
             sum(r.prompt_tokens + r.completion_tokens)::bigint      as tokens,
             sum(r.cost_micros)::bigint                              as cost_micros,
             -- from the start to the end of runs that completed or failed, waiting included
             (avg(extract(epoch from r.finished_at - r.started_at))
                filter (where r.status in ('completed', 'failed')) * 1000)::bigint as average_duration_ms
        from public.task_runs r
       where r.finished_at >= (date_trunc('day', agentd.now() at time zone 'UTC') - interval '29 days') at time zone 'UTC'
         and r.agent_id is not null
       group by r.workspace_id, r.agent_id, day;
    create unique index agent_activity_key on agentd.agent_activity (workspace_id, agent_id, day);
  `.execute(db);

  for (const name of ['workspace_overview', 'agent_activity']) {
    // One condition, which the index on the workspace answers. Two halves joined by "union all" would not keep a user's own functions
    // from being asked about others' rows: the barrier does not hold inside of a union (PostgreSQL 15).
    await sql`
      create view public.${sql.id(name)} with (security_barrier = true) as
        select f.*, (select d.refreshed_at from agentd.dashboard_refreshes d where d.view_name = ${sql.lit(name)}) as refreshed_at
          from agentd.${sql.id(name)} f
         where f.workspace_id = any (
           case when pg_catalog.row_security_active('public.workspaces'::regclass)
             then array(select agentd.my_workspace_ids())
             else array(select w.id from public.workspaces w)
           end)
    `.execute(db);
  }
  await sql`
    comment on view public.workspace_overview is
      'What each workspace has, and its messages and ended runs of the last thirty days; as of refreshed_at.';
    comment on view public.agent_activity is
      'What each agent did on each of the last thirty days (UTC), by the runs that ended on it; as of refreshed_at.';

    -- Computes one of the materialized views anew, beside those who read it, and writes down when and how long. Raises for another name.
    create function agentd.refresh_dashboard(p_view text) returns integer
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
    as $$
    declare
      v_from constant timestamptz := clock_timestamp();
      v_took integer;
    begin
      if not exists (select 1 from agentd.dashboard_refreshes d where d.view_name = p_view) then
        raise exception '% is no dashboard view', p_view using errcode = 'invalid_parameter_value';
      end if;
      execute format('refresh materialized view concurrently agentd.%I', p_view);
      v_took := extract(epoch from clock_timestamp() - v_from) * 1000;
      update agentd.dashboard_refreshes d
         set refreshed_at = agentd.now(), took_ms = v_took, failures = 0, last_error = null
       where d.view_name = p_view;
      return v_took;
    end
    $$;

    -- A concurrent refresh writes a temporary table, as the owner. A database that gives nobody TEMPORARY must give it to him.
    do $$
    begin
      if not pg_catalog.has_database_privilege('agentd_owner', current_database(), 'TEMPORARY') then
        execute format('grant temporary on database %I to agentd_owner', current_database());
      end if;
    exception when insufficient_privilege then
      raise warning 'agentd: % may not grant agentd_owner the use of temporary tables: dashboards are not refreshed', current_user;
    end
    $$;
  `.execute(db);
  await applyAccess(db);
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await sql`
    drop function agentd.refresh_dashboard(text);
    drop view public.agent_activity, public.workspace_overview;
    drop materialized view agentd.agent_activity, agentd.workspace_overview;
    drop index public.chat_messages_created_at_idx;
    drop table agentd.dashboard_refreshes;
  `.execute(db);
}
