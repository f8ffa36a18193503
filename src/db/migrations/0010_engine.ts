/**
 * The engine's private tables and functions: how a row becomes a job, who works, what happened.
 *
 * pg-boss's own schema is installed after the migrations (db/migrate.ts), so every reference to it here is
 * inside a function body and tolerates its absence: an application's insert never fails because of agentd.
 */
import { type Kysely, sql } from 'kysely';
import { insertJobs } from './insert-jobs.ts';

/** How runs are let in, until the waiting room of 0012. */
export const ADMISSION = `
    -- Lets newly inserted runs into pg-boss, the oldest first: as many of each workspace as it has room for. The
    -- others are parked: the end of a run of their workspace lets them in. Returns how many have a job now.
    create or replace function agentd.admit_arrivals(max_runs integer) returns integer
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    declare
      v_admitted integer;
    begin
      if to_regclass('pgboss.job') is null
         or not exists (select 1 from public.task_runs r
                         where r.status = 'queued' and r.job_id is null and not r.is_parked) then
        return 0;
      end if;
      with arrival as materialized (
        select r.id, r.seq, r.workspace_id, r.task_id, r.is_serial, r.wake_at
          from public.task_runs r
         where r.status = 'queued' and r.job_id is null and not r.is_parked
         order by r.seq
         limit max_runs
           for no key update skip locked
      ),
      room as (
        select w.workspace_id, agentd.workspace_room(w.workspace_id) as room
          from (select distinct a.workspace_id from arrival a) w
      ),
      admissible as (
        select a.id, a.workspace_id, a.wake_at
          from (
            select a.*, row_number() over (partition by a.workspace_id order by a.seq) as place
              from arrival a
             where not (a.is_serial and exists (
               select 1 from public.task_runs e
                where e.task_id = a.task_id and e.id <> a.id
                  and (e.status in ('running', 'waiting')
                       or (e.status = 'queued' and e.seq < a.seq))))
          ) a
          join room on room.workspace_id = a.workspace_id
         where a.place <= room.room
      ),
      job as (
        ${insertJobs(`(
            select 'task-run' as queue, jsonb_build_object('run_id', a.id, 'workspace_id', a.workspace_id) as data,
                   a.id::text as key, a.wake_at as start_after
              from admissible a)`)}
        returning id, singleton_key
      ),
      settled as (
        update public.task_runs r
           set job_id = job.id, is_parked = job.id is null
          from arrival a
          left join job on job.singleton_key = a.id::text
         where r.id = a.id
        returning r.job_id
      )
      select count(s.job_id) into v_admitted from settled s;
      return v_admitted;
    end
    $$;

    -- Lets a workspace's oldest waiting runs in, as many as there is room for. Returns how many.
    create or replace function agentd.admit_runs(workspace_id uuid) returns integer
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    declare
      v_room     integer;
      v_admitted integer := 0;
      v_run      record;
      v_job      uuid;
    begin
      -- most workspaces have nobody waiting: that costs one probe of a partial index
      if not exists (select 1 from public.task_runs r
                      where r.workspace_id = admit_runs.workspace_id and r.status = 'queued' and r.job_id is null) then
        return 0;
      end if;
      v_room := agentd.workspace_room(admit_runs.workspace_id);
      if v_room <= 0 then
        return 0;
      end if;
      for v_run in
        select r.id, r.wake_at
          from public.task_runs r
         where r.workspace_id = admit_runs.workspace_id and r.status = 'queued' and r.job_id is null
           and not (r.is_serial and exists (
             select 1 from public.task_runs e
              where e.task_id = r.task_id and e.id <> r.id
                and (e.status in ('running', 'waiting')
                     or (e.status = 'queued' and e.seq < r.seq))))
         order by r.seq
         limit v_room
         for update of r skip locked
      loop
        v_job := agentd.enqueue('task-run', jsonb_build_object('run_id', v_run.id), v_run.id::text,
                                admit_runs.workspace_id, v_run.wake_at);
        continue when v_job is null;
        update public.task_runs set job_id = v_job where id = v_run.id;
        v_admitted := v_admitted + 1;
      end loop;
      return v_admitted;
    end
    $$;
`;

/** Work that ought to have been repaired, until the waiting room of 0012. */
export const STUCK_WORK = `
    -- Work that the reconciler should have repaired by now: normally empty.
    create or replace view agentd.stuck_work as
      select 'run' as kind, r.id, r.workspace_id, 'lease_lapsed' as problem, r.lease_expires_at as since
        from public.task_runs r
       where r.status = 'running' and r.lease_expires_at < agentd.now() - interval '30 seconds'
      union all
      select 'run', r.id, r.workspace_id, 'not_woken', r.wake_at
        from public.task_runs r
       where r.status = 'waiting' and r.wake_at < agentd.now() - interval '30 seconds'
      union all
      select 'run', r.id, r.workspace_id, 'not_admitted', r.created_at
        from public.task_runs r
       where r.status = 'queued' and r.job_id is null and not r.is_serial
         and r.created_at < agentd.now() - interval '30 seconds'
         and agentd.workspace_room(r.workspace_id) > 0;
`;

/** Depth and age by queue, until the waiting room of 0012. */
export const QUEUE_DEPTHS = `
    create or replace function agentd.queue_depths()
    returns table (
      queue text, ready bigint, delayed bigint, active bigint, dead bigint, oldest_ready_at timestamptz
    )
    language plpgsql stable security definer set search_path = pg_catalog, pg_temp
    as $$
    begin
      if to_regclass('pgboss.job') is null then
        return;
      end if;
      return query
        select q.name,
               count(*) filter (where j.state < 'active' and j.start_after <= agentd.now()),
               count(*) filter (where j.state < 'active' and j.start_after > agentd.now()),
               count(*) filter (where j.state = 'active'),
               (select count(*) from pgboss.job d where d.name = q.dead_letter and d.state < 'active'),
               min(j.start_after) filter (where j.state < 'active' and j.start_after <= agentd.now())
          from pgboss.queue q
          left join pgboss.job j on j.name = q.name and j.state <= 'active'
         where q.dead_letter is not null
         group by q.name, q.dead_letter;
    end
    $$;
`;

/** The view of it. */
export const QUEUE_HEALTH = `
    create or replace view agentd.queue_health as
      select d.queue, d.ready, d.delayed, d.active, d.dead,
             extract(epoch from agentd.now() - d.oldest_ready_at)::double precision as oldest_ready_seconds,
             case when d.queue = 'task-run' then (
               select count(*) from public.task_runs r where r.status = 'queued' and r.job_id is null
             ) else 0 end as waiting_room,
             (select count(*) from agentd.workers w
               where w.queues ? d.queue and w.state = 'running'
                 and w.last_seen_at > agentd.now() - interval '30 seconds') as workers,
             exists (select 1 from agentd.queue_controls c
                      where c.queue = d.queue and c.workspace_id is null) as paused
        from agentd.queue_depths() d;
`;

/** Waking a daemon, until the waiting room of 0012. */
export const WAKE = `
    -- Wakes a daemon that sleeps on a queue. One caller of many takes the daemon's row, and it alone notifies;
    -- the daemon writes it anew when it sleeps again. Returns whether this caller did.
    create or replace function agentd.wake(queue text) returns boolean
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    begin
      if not exists (select 1 from agentd.sleepers s where s.queue = wake.queue) then
        return false;
      end if;
      delete from agentd.sleepers s
       where (s.queue, s.worker_id) in (
         select o.queue, o.worker_id from agentd.sleepers o
          where o.queue = wake.queue
          limit 1
            for update skip locked);
      if found then
        perform pg_notify('agentd_wake', wake.queue);
      end if;
      return found;
    end
    $$;
`;

export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    create table agentd.workers (
      id           text primary key,
      hostname     text not null,
      pid          integer not null,
      version      text not null,
      -- queue name → concurrency
      queues       jsonb not null default '{}',
      state        text not null default 'running' check (state in ('running', 'draining', 'stopped')),
      running      integer not null default 0,
      started_at   timestamptz not null default now(),
      last_seen_at timestamptz not null default now(),
      stopped_at   timestamptz
    );

    -- Daemons that sleep with free slots on a queue: only while there is one does an insert notify, and takes
    -- its row away (a notification takes a database-wide lock at commit: with one in each transaction sixteen
    -- clients inserted a quarter as many rows).
    create table agentd.sleepers (
      queue     text not null,
      worker_id text not null,
      since     timestamptz not null default now(),
      primary key (queue, worker_id)
    );

    -- How many of a workspace's jobs may run, by default, and how many more may wait inside pg-boss.
    -- Written by the migrate command from config/queues.json.
    create table agentd.queue_settings (
      queue             text primary key,
      workspace_ceiling integer not null check (workspace_ceiling >= 1),
      workspace_buffer  integer not null check (workspace_buffer >= 0)
    );

    -- A paused queue (workspace_id null), or one workspace of it.
    create table agentd.queue_controls (
      id           bigint generated always as identity primary key,
      queue        text not null,
      workspace_id uuid references public.workspaces (id) on delete cascade,
      paused_at    timestamptz not null default now(),
      paused_by    text,
      reason       text,
      unique nulls not distinct (queue, workspace_id)
    );
    create index queue_controls_workspace_idx on agentd.queue_controls (workspace_id);

    -- Every attempt of every job, written in the transaction that settles it.
    create table agentd.job_runs (
      id           bigint generated always as identity,
      queue        text not null,
      job_id       uuid not null,
      attempt      integer not null,
      worker_id    text not null,
      workspace_id uuid,
      outcome      text not null check (outcome in ('completed', 'retry', 'failed', 'snoozed', 'handed_back', 'lost')),
      started_at   timestamptz not null default now(),
      finished_at  timestamptz not null default now(),
      duration_ms  integer not null,
      error        jsonb,
      primary key (id, started_at)
    ) partition by range (started_at);
    create index job_runs_queue_idx on agentd.job_runs (queue, started_at);
    create index job_runs_job_idx on agentd.job_runs (job_id);
    select agentd.ensure_partitions('agentd.job_runs', 12);

    -- What people and operators did.
    create table agentd.audit_log (
      id           bigint generated always as identity primary key,
      at           timestamptz not null default now(),
      actor        uuid,
      actor_role   text not null default coalesce(nullif(current_setting('role', true), 'none'), session_user),
      action       text not null,
      object_type  text not null,
      object_id    text,
      workspace_id uuid,
      details      jsonb not null default '{}'
    );
    create index audit_log_workspace_idx on agentd.audit_log (workspace_id, at);
  `.execute(db);

  await sql`
    -- Puts a job into pg-boss in the caller's transaction and wakes a sleeping daemon.
    -- Returns the job's id; null if pg-boss or the queue is missing, or a job with this key is already live:
    -- then the row stays pending and the reconciler finds it. Never raises for a reason of the engine's.
    create function agentd.enqueue(
      queue text, data jsonb, singleton_key text, workspace_id uuid, start_after timestamptz
    ) returns uuid
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    declare
      v_id uuid;
    begin
      if to_regclass('pgboss.job') is null then
        return null;
      end if;
      ${sql.raw(
        insertJobs(`(
          select enqueue.queue, enqueue.data || jsonb_build_object('workspace_id', enqueue.workspace_id) as data,
                 enqueue.singleton_key as key, enqueue.start_after)`),
      )}
      returning id into v_id;
      if v_id is not null then
        perform agentd.wake(enqueue.queue);
      end if;
      return v_id;
    end
    $$;

    ${sql.raw(WAKE)}

    -- Removes a job that is no longer wanted, whatever its state.
    create function agentd.drop_job(queue text, job_id uuid) returns void
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    begin
      if job_id is not null and to_regclass('pgboss.job') is not null then
        delete from pgboss.job where name = drop_job.queue and id = drop_job.job_id;
      end if;
    end
    $$;

    -- The waiting room's rule: how many runs of a workspace may still be let into pg-boss. Its ceiling (its plan's
    -- features -> ceilings -> task-run, else the default) and the buffer, less what is admitted and has not ended;
    -- 0 while the workspace is paused.
    create function agentd.workspace_room(workspace_id uuid) returns integer
    language plpgsql stable security definer set search_path = pg_catalog, pg_temp
    as $$
    begin
      return (
        select case when exists (
                 select 1 from agentd.queue_controls c
                  where c.queue = 'task-run' and c.workspace_id = workspace_room.workspace_id) then 0
               else l.admissible - (
                 select count(*) from (
                   select 1 from public.task_runs r
                    where r.workspace_id = workspace_room.workspace_id and r.status in ('queued', 'running') and r.job_id is not null
                    limit l.admissible) admitted)
               end
          from (
            select coalesce(
                     (select (p.features #>> '{ceilings,task-run}')::integer
                        from public.workspace_subscriptions s
                        join public.pricing_plans p on p.id = s.plan_id
                       where s.workspace_id = workspace_room.workspace_id
                         and s.status in ('trialing', 'active', 'past_due')
                         and p.features #>> '{ceilings,task-run}' ~ '^[1-9][0-9]{0,5}$'
                       limit 1),
                     q.workspace_ceiling, 16) + coalesce(q.workspace_buffer, 0) as admissible
              from (values (1)) as one (row)
              left join agentd.queue_settings q on q.queue = 'task-run'
            -- evaluated once, although it is used twice
            offset 0) l
      );
    end
    $$;

    ${sql.raw(ADMISSION)}
  `.execute(db);

  await sql`
    -- Copies the steps of ended runs onto their task's steps, where applications look for the last result.
    -- A step that somebody is editing is left out: a projection must not make a worker wait.
    create function agentd.project_steps(run_ids uuid[]) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
    as $$
    begin
      if run_ids is null then
        return;
      end if;
      with latest as (
        select distinct on (s.step_id)
               s.step_id, s.status, s.result, s.started_at, s.finished_at, s.duration_ms, s.error_message, s.attempt
          from public.task_step_runs s
         where s.run_id = any (run_ids) and s.step_id is not null
         order by s.step_id, s.started_at desc
      ),
      target as (
        select t.id from public.task_steps t where t.id in (select step_id from latest) order by t.id for no key update skip locked
      )
      update public.task_steps t
         set status = l.status, execution_result = l.result, execution_started_at = l.started_at,
             execution_completed_at = l.finished_at, execution_duration_ms = l.duration_ms,
             error_message = l.error_message, retry_count = l.attempt - 1
        from target
        join latest l on l.step_id = target.id
       where t.id = target.id
         and coalesce(t.execution_started_at, '-infinity') <= l.started_at;
    end
    $$;
  `.execute(db);

  await sql`
    -- Depth and age by queue. pg-boss's tables are read by a function so that its own migrations stay free
    -- to change them.
    ${sql.raw(QUEUE_DEPTHS)}

    ${sql.raw(QUEUE_HEALTH)}

    create view agentd.worker_health as
      select w.id, w.hostname, w.pid, w.version, w.queues, w.state, w.running, w.started_at, w.last_seen_at,
             extract(epoch from agentd.now() - w.last_seen_at)::double precision as silent_seconds,
             w.state <> 'stopped' and w.last_seen_at > agentd.now() - interval '30 seconds' as alive
        from agentd.workers w;

    create view agentd.workspace_activity as
      select w.id as workspace_id, w.name,
             coalesce(live.queued, 0)       as queued,
             coalesce(live.waiting_room, 0) as waiting_room,
             coalesce(live.running, 0)      as running,
             coalesce(live.waiting, 0)      as waiting,
             coalesce(done.completed, 0)    as completed_last_hour,
             coalesce(done.failed, 0)       as failed_last_hour,
             coalesce(done.tokens, 0)       as tokens_last_hour,
             coalesce(done.cost_micros, 0)  as cost_micros_last_hour
        from public.workspaces w
        left join (
          select workspace_id,
                 count(*) filter (where status = 'queued' and job_id is not null) as queued,
                 count(*) filter (where status = 'queued' and job_id is null)     as waiting_room,
                 count(*) filter (where status = 'running')                       as running,
                 count(*) filter (where status = 'waiting')                       as waiting
            from public.task_runs
           where status in ('queued', 'running', 'waiting')
           group by workspace_id
        ) live on live.workspace_id = w.id
        left join (
          select workspace_id,
                 count(*) filter (where status = 'completed') as completed,
                 count(*) filter (where status = 'failed')    as failed,
                 sum(prompt_tokens + completion_tokens)       as tokens,
                 sum(cost_micros)                             as cost_micros
            from public.task_runs
           where finished_at > agentd.now() - interval '1 hour'
           group by workspace_id
        ) done on done.workspace_id = w.id;

    -- Tasks that should have been started at least ten seconds ago.
    create view agentd.late_tasks as
      select t.id as task_id, t.workspace_id, t.name, t.next_run_at,
             extract(epoch from agentd.now() - t.next_run_at)::double precision as late_seconds
        from public.agent_tasks t
       where t.status = 'active' and t.task_type = 'scheduled'
         and t.next_run_at < agentd.now() - interval '10 seconds';

    ${sql.raw(STUCK_WORK)}

    create view agentd.recent_failures as
      select r.id as run_id, r.workspace_id, r.task_id, t.name as task_name, r.reason_code, r.reason,
             r.current_step, r.finished_at
        from public.task_runs r
        left join public.agent_tasks t on t.id = r.task_id
       where r.status = 'failed' and r.finished_at > agentd.now() - interval '1 day'
       order by r.finished_at desc;

    create index task_runs_finished_idx on public.task_runs (finished_at) where finished_at is not null;
  `.execute(db);
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await sql`
    drop index public.task_runs_finished_idx;
    drop view agentd.recent_failures, agentd.stuck_work, agentd.late_tasks, agentd.workspace_activity,
      agentd.worker_health, agentd.queue_health;
    drop function agentd.queue_depths();
    drop function agentd.project_steps(uuid[]);
    drop function agentd.admit_runs(uuid);
    drop function agentd.admit_arrivals(integer);
    drop function agentd.wake(text);
    drop function agentd.workspace_room(uuid);
    drop function agentd.drop_job(text, uuid);
    drop function agentd.enqueue(text, jsonb, text, uuid, timestamptz);
    drop table agentd.audit_log, agentd.job_runs, agentd.queue_controls, agentd.queue_settings,
      agentd.sleepers, agentd.workers;
  `.execute(db);
}
