/** The waiting room: admission that never passes a ceiling, pauses, new runs of a workspace that has many waiting. */
import { type Kysely, sql } from 'kysely';
import { ADMISSION, QUEUE_DEPTHS, QUEUE_HEALTH, STUCK_WORK, WAKE } from './0010_engine.ts';
import { applyAccess } from './access.ts';
import { changed } from './run-sql.ts';
import { ADMIT, ENTER, isArrival, isFree, isSerial, LOOKS, NEXT_RUNS } from './waiting-room.ts';

/** Queues with those who wait for a place, until documents wait as well (0021). */
export const WAITING_HEALTH = `
    create or replace view agentd.queue_health as
      select d.queue, d.ready, d.delayed, d.active, d.dead,
             extract(epoch from agentd.now() - d.oldest_ready_at)::double precision as oldest_ready_seconds,
             case when d.queue = 'task-run' then agentd.count_waiting() else 0 end as waiting_room,
             (select count(*) from agentd.workers w
               where w.queues ? d.queue and w.state = 'running'
                 and w.last_seen_at > agentd.now() - interval '30 seconds') as workers,
             exists (select 1 from agentd.queue_controls c
                      where c.queue = d.queue and c.workspace_id is null) as paused
        from agentd.queue_depths() d;
`;

export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    -- The waiting room in two: whoever must wait for earlier runs of its task is no candidate, however many of them there are.
    drop index public.task_runs_waiting_room_idx;
    create index task_runs_waiting_room_idx on public.task_runs (workspace_id, seq)
      where ${sql.raw(isFree(''))};
    create index task_runs_serial_room_idx on public.task_runs (workspace_id, task_id, seq)
      where ${sql.raw(isSerial(''))};
    drop index public.task_runs_arrivals_idx;
    create index task_runs_arrivals_idx on public.task_runs (seq) where ${sql.raw(isArrival(''))};
    -- whether anything of a task is before a run of it: one probe for each status
    drop index public.task_runs_live_by_task_idx;
    create index task_runs_live_by_task_idx on public.task_runs (task_id, status, seq)
      where status in ('queued', 'running', 'waiting');
  `.execute(db);
  // In a transaction with one old snapshot a sleeper's row that is gone by now is an error, which would be an application's.
  const wake = changed(
    WAKE,
    / {8}return false;\n {6}end if;\n/,
    `        return false;
      end if;
      if current_setting('transaction_isolation') <> 'read committed' then
        perform pg_notify('agentd_wake', wake.queue);
        return true;
      end if;
`,
  );
  await sql`${sql.raw([wake, NEXT_RUNS, ADMIT, LOOKS, ENTER].join('\n'))}`.execute(db);
  await pauses(db);
  await watching(db);
  await applyAccess(db);
}

/** What is looked at every few seconds costs by what is under way, not by what waits or has ended. */
async function watching(db: Kysely<unknown>): Promise<void> {
  await sql`
    -- How many runs wait for a place: exactly up to 20,000, beyond that by the server's statistics of the waiting room's indexes.
    create function agentd.count_waiting() returns bigint
    language plpgsql stable security definer set search_path = pg_catalog, pg_temp
    as $$
    declare
      v_counted bigint;
    begin
      v_counted :=
        (select count(*) from (
           select 1 from public.task_runs r
            where ${sql.raw(isFree())} limit 20000) w)
        + (select count(*) from (
           select 1 from public.task_runs r
            where ${sql.raw(isSerial())} limit 20000) w);
      if v_counted < 20000 then
        return v_counted;
      end if;
      return greatest(v_counted, (
        select sum(c.reltuples)::bigint from pg_catalog.pg_class c
         where c.oid in ('public.task_runs_waiting_room_idx'::regclass, 'public.task_runs_serial_room_idx'::regclass)));
    end
    $$;

    -- Each count by the index of pg-boss's that holds just those jobs: finished ones, of which there may be millions, are in none.
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
        select q.name, waiting.ready, waiting.delayed,
               case when q.policy = 'exclusive'
                 then (select count(*) from pgboss.job j
                        where j.name = q.name and j.state = 'active' and j.policy = 'exclusive')
                 else (select count(*) from pgboss.job j where j.name = q.name and j.state = 'active')
               end,
               (select count(*) from pgboss.job d where d.name = q.dead_letter and d.state < 'active' and not d.blocked),
               waiting.oldest_ready_at
          from pgboss.queue q
         cross join lateral (
           select count(*) filter (where j.start_after <= agentd.now()) as ready,
                  count(*) filter (where j.start_after > agentd.now()) as delayed,
                  min(j.start_after) filter (where j.start_after <= agentd.now()) as oldest_ready_at
             from pgboss.job j
            where j.name = q.name and j.state < 'active' and not j.blocked) waiting
         where q.dead_letter is not null;
    end
    $$;

    ${sql.raw(WAITING_HEALTH)}

    create or replace view agentd.stuck_work as
      select 'run' as kind, r.id, r.workspace_id, 'lease_lapsed' as problem, r.lease_expires_at as since
        from public.task_runs r
       where r.status = 'running' and r.lease_expires_at < agentd.now() - interval '30 seconds'
      union all
      select 'run', r.id, r.workspace_id, 'not_woken', r.wake_at
        from public.task_runs r
       where r.status = 'waiting' and r.wake_at < agentd.now() - interval '30 seconds'
      union all
      -- of each workspace the oldest: a million may wait rightly
      select 'run', r.id, r.workspace_id, 'not_admitted', r.created_at
        from agentd.waiting_workspaces(null, 10000) as w (id)
       cross join lateral (
         select o.id, o.workspace_id, o.created_at
           from public.task_runs o
          where o.workspace_id = w.id and ${sql.raw(isFree('o.'))}
          order by o.seq
          limit 1) r
       where r.created_at < agentd.now() - interval '30 seconds'
         and agentd.workspace_room(r.workspace_id) > 0;
  `.execute(db);
}

async function pauses(db: Kysely<unknown>): Promise<void> {
  await sql`
    -- Every daemon hears of a pause and of its end at once, and both are on record.
    create function agentd.control_queue() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    begin
      if tg_op <> 'DELETE' then
        perform agentd.tell_control(case tg_op when 'INSERT' then 'pause' else 'change_pause' end, new);
      end if;
      if tg_op = 'DELETE' or (tg_op = 'UPDATE' and (old.queue, old.workspace_id) is distinct from (new.queue, new.workspace_id)) then
        perform agentd.tell_control('resume', old);
        if old.workspace_id is not null and old.queue = 'task-run' then
          perform agentd.unpark_runs(old.workspace_id, 1);
        end if;
        perform agentd.wake(old.queue);
      end if;
      return null;
    end
    $$;

    create function agentd.tell_control(p_action text, p_control agentd.queue_controls) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
    as $$
    begin
      perform pg_notify('agentd_control', p_control.queue);
      -- comes with a later migration
      if to_regprocedure('agentd.audit(text,text,text,uuid,jsonb)') is null then
        return;
      end if;
      perform agentd.audit(p_action, 'queue', p_control.queue, p_control.workspace_id,
        jsonb_strip_nulls(jsonb_build_object('paused_by', p_control.paused_by, 'reason', p_control.reason)));
    end
    $$;

    create trigger control_queue after insert or update or delete on agentd.queue_controls
      for each row execute function agentd.control_queue();
  `.execute(db);
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await sql`
    ${sql.raw([STUCK_WORK, QUEUE_HEALTH, QUEUE_DEPTHS].join('\n'))}
    drop function agentd.count_waiting();
    drop trigger control_queue on agentd.queue_controls;
    drop function agentd.control_queue();
    drop function agentd.tell_control(text, agentd.queue_controls);
    ${sql.raw([ADMISSION, WAKE].join('\n'))}
    drop function agentd.unpark_runs(uuid, integer);
    drop function agentd.enter_run(uuid, uuid, uuid, boolean, timestamptz);
    drop function agentd.look_at_waiting(uuid, integer);
    drop function agentd.look_at_arrivals(integer);
    drop function agentd.admit_workspaces(uuid[]);
    drop function agentd.admit_behind_doors(uuid[]);
    drop function agentd.waiting_workspaces(uuid, integer);
    drop function agentd.next_runs(uuid, integer);
    drop function agentd.next_serial_runs(uuid);
    drop index public.task_runs_live_by_task_idx;
    create index task_runs_live_by_task_idx on public.task_runs (task_id)
      where status in ('queued', 'running', 'waiting');
    drop index public.task_runs_arrivals_idx;
    create index task_runs_arrivals_idx on public.task_runs (seq)
      where status = 'queued' and job_id is null and not is_parked;
    drop index public.task_runs_serial_room_idx;
    drop index public.task_runs_waiting_room_idx;
    create index task_runs_waiting_room_idx on public.task_runs (workspace_id, seq)
      where status = 'queued' and job_id is null;
  `.execute(db);
}
