/**
 * How runs are let into pg-boss: the functions of the waiting room.
 *
 * A run that is queued and has no job waits in its workspace's waiting room. Whoever lets runs in counts what the workspace has
 * admitted, and makes jobs up to its ceiling. That the ceiling is never passed rests on two locks of each workspace, held to the end of
 * the transaction. They are advisory locks here, and rows that no tenant reaches from migration 0028 on (door-locks.ts):
 *
 * - the **inner door** is for daemons alone. Whoever lets runs in holds it exclusively, so that the count that follows sees
 *   what the last one admitted. A run that ends while nobody waits holds it shared: the next count sees the place that it left.
 *   Daemons wait for it, those that need several in the order of their keys, and wait for nothing of a tenant's while they hold it
 *   but the rows that a checkpoint writes messages for.
 * - the **outer door** is for an application's insert that makes the job itself: its run is not visible until it commits, and
 *   its transaction may stay open for as long as it likes. So nobody ever waits for this one: an insert that finds it shut
 *   leaves its run to the daemons, and a daemon that finds it shut leaves the workspace for a later look.
 *
 * Run rows come before doors: a checkpoint has locked its runs when it comes to a door, and whoever is behind one skips rows
 * that are locked. Counting works because each statement in a VOLATILE function of PL/pgSQL has a snapshot of its own.
 *
 * Every look is bounded: by workspaces (two locks each, from a table of the server's that all share), by runs of one workspace,
 * and by tasks whose runs go one after the other.
 */
import { insertJobs } from './insert-jobs.ts';

const innerDoor = (workspace: string): string => `pg_catalog.uuid_hash_extended(${workspace}, 7201)`;
const outerDoor = (workspace: string): string => `pg_catalog.uuid_hash_extended(${workspace}, 7202)`;

/** Workspaces whose doors one look holds at most. */
const WORKSPACES = 32;
/** Workspaces whose doors one look tries at most. */
const TRIES = 100;
/** Runs of one workspace that one look lets in at most. */
const RUNS = 100;
/** Tasks whose serial runs one look considers, from the beginning and again from a random place. */
const TASKS = 100;
/** So many runs may wait as arrivals; the workspace's further ones are parked as they come. */
const ARRIVALS = 32;

/**
 * A condition of the waiting room as its partial indexes have it. Wrapped, so that it implies no other index's predicate: on a table
 * whose statistics know of nobody waiting, every index that holds queued rows looks alike, and the one that is ordered by
 * tasks was chosen, and read from end to end in each insert (a quarter of the speed).
 */
const waiting = (row: string, rest: string): string =>
  `((${row}status = 'queued' and ${row}job_id is null and ${rest}) is true)`;
/** Runs that wait for nothing but a place. */
export const isFree = (row = 'r.'): string => waiting(row, `not ${row}is_serial`);
/** Runs that also wait for earlier ones of their task. */
export const isSerial = (row = 'r.'): string => waiting(row, `${row}is_serial`);
/** Runs that no daemon has looked at. */
export const isArrival = (row = 'r.'): string => waiting(row, `not ${row}is_parked`);

const ofWorkspace = 'r.workspace_id = p_workspace_id and ';
const waitsFree = ofWorkspace + isFree();
const waitsSerial = ofWorkspace + isSerial();

/** Which runs are next. */
export const NEXT_RUNS = `
    -- The oldest waiting run of each task whose runs go one after the other (is_serial), where nothing of the task is before it.
    -- Costs by the tasks, however many of their runs wait. With more tasks than one look considers, each has its chance.
    create function agentd.next_serial_runs(p_workspace_id uuid) returns uuid[]
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
    as $$
    declare
      v_found  uuid[] := '{}';
      v_start  uuid;
      v_part   uuid[];
      v_tasks  integer;
    begin
      foreach v_start in array array['00000000-0000-0000-0000-000000000000'::uuid, gen_random_uuid()] loop
        with recursive head as (
          (select r.task_id, r.id, r.seq from public.task_runs r
            where ${waitsSerial} and r.task_id >= v_start
            order by r.task_id, r.seq limit 1)
          union all
          select n.task_id, n.id, n.seq
            from head h
           cross join lateral (
             select r.task_id, r.id, r.seq from public.task_runs r
              where ${waitsSerial} and r.task_id > h.task_id
              order by r.task_id, r.seq limit 1) n
        ),
        considered as (select * from head limit ${TASKS})
        select count(*),
               array_agg(c.id order by c.seq) filter (where
                 not exists (select 1 from public.task_runs e where e.task_id = c.task_id and e.status = 'running')
                 and not exists (select 1 from public.task_runs e where e.task_id = c.task_id and e.status = 'waiting')
                 and not exists (select 1 from public.task_runs e
                                  where e.task_id = c.task_id and e.status = 'queued' and e.seq < c.seq))
          into v_tasks, v_part
          from considered c;
        v_found := v_found || coalesce(v_part, '{}');
        exit when v_tasks < ${TASKS};
      end loop;
      return v_found;
    end
    $$;

    -- The oldest waiting runs of a workspace that may go, locked. Rows that somebody holds are left out.
    create function agentd.next_runs(p_workspace_id uuid, p_count integer) returns setof uuid
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
    as $$
    declare
      v_serial uuid[] := '{}';
    begin
      if p_count <= 0 then
        return;
      end if;
      if exists (select 1 from public.task_runs r where ${waitsSerial}) then
        v_serial := agentd.next_serial_runs(p_workspace_id);
      end if;
      if v_serial = '{}' then
        return query
          select r.id from public.task_runs r
           where ${waitsFree}
           order by r.seq
           limit p_count
             for no key update skip locked;
        return;
      end if;
      return query
        select c.id
          from (
            select free.id, free.seq
              from (select r.id, r.seq from public.task_runs r
                     where ${waitsFree}
                     order by r.seq
                     limit p_count
                       for no key update skip locked) free
            union all
            select serial.id, serial.seq
              from (select r.id, r.seq from public.task_runs r
                     where r.id = any (v_serial) and r.status = 'queued' and r.job_id is null
                     order by r.seq
                     limit p_count
                       for no key update skip locked) serial
          ) c
         order by c.seq
         limit p_count;
    end
    $$;

    -- Workspaces in which somebody waits, in the order of their ids, from the one after p_after (null: from the first) on.
    create function agentd.waiting_workspaces(p_after uuid, p_count integer) returns setof uuid
    language sql stable security definer set search_path = pg_catalog, pg_temp
    as $$
      with recursive found as (
        select least(
                 (select r.workspace_id from public.task_runs r
                   where ${isFree()}
                     and (p_after is null or r.workspace_id > p_after)
                   order by r.workspace_id limit 1),
                 (select r.workspace_id from public.task_runs r
                   where ${isSerial()}
                     and (p_after is null or r.workspace_id > p_after)
                   order by r.workspace_id limit 1)) as workspace_id
        union all
        select least(
                 (select r.workspace_id from public.task_runs r
                   where ${isFree()} and r.workspace_id > f.workspace_id
                   order by r.workspace_id limit 1),
                 (select r.workspace_id from public.task_runs r
                   where ${isSerial()} and r.workspace_id > f.workspace_id
                   order by r.workspace_id limit 1))
          from found f
         where f.workspace_id is not null
      )
      select f.workspace_id from found f where f.workspace_id is not null limit p_count
    $$;
`;

/** Letting them in. */
export const ADMIT = `
    -- Makes jobs of the oldest waiting runs of workspaces whose two doors the caller holds. Returns of how many.
    create function agentd.admit_behind_doors(p_workspace_ids uuid[]) returns integer
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
    as $$
    declare
      v_runs     uuid[];
      v_admitted integer;
    begin
      v_runs := array(
        select n.id
          from unnest(p_workspace_ids) as w (id)
         cross join lateral agentd.next_runs(w.id, least(agentd.workspace_room(w.id), ${RUNS})) as n (id));
      if v_runs = '{}' then
        return 0;
      end if;
      -- a statement of its own: it sees every row that the one before has locked
      with job as (
        ${insertJobs(`(
          select 'task-run' as queue, jsonb_build_object('run_id', r.id, 'workspace_id', r.workspace_id) as data,
                 r.id::text as key, r.wake_at as start_after
            from public.task_runs r
           where r.id = any (v_runs)
           -- jobs of one moment are fetched in the order of their rows
           order by r.seq)`)}
        returning id, singleton_key
      )
      update public.task_runs r set job_id = job.id, is_parked = false from job where r.id = job.singleton_key::uuid;
      get diagnostics v_admitted = row_count;
      return v_admitted;
    end
    $$;

    -- For the transaction in which runs of these workspaces end: lets their oldest waiting runs in. Returns how many.
    -- A door that stays shut costs the waiting runs a later look, never the caller its transaction.
    create function agentd.admit_workspaces(p_workspace_ids uuid[]) returns integer
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
    as $$
    declare
      v_workspace uuid;
      v_mine      uuid[] := '{}';
      v_admitted  integer;
      v_has_waited boolean := false;
    begin
      if p_workspace_ids is null or to_regclass('pgboss.job') is null then
        return 0;
      end if;
      for v_workspace in
        select w.id from unnest(p_workspace_ids) as w (id) where w.id is not null group by w.id order by ${innerDoor('w.id')}
      loop
        -- Most workspaces have nobody waiting: two probes of partial indexes. A run that is parked between these and the lock
        -- is left to the reconciler; later ones are counted with the place that this transaction leaves.
        if not exists (select 1 from public.task_runs r
                        where r.workspace_id = v_workspace and ${isFree()})
           and not exists (select 1 from public.task_runs r
                            where r.workspace_id = v_workspace and ${isSerial()})
           and pg_try_advisory_xact_lock_shared(${innerDoor('v_workspace')}) then
          continue;
        end if;
        if not pg_try_advisory_xact_lock(${innerDoor('v_workspace')}) then
          continue when v_has_waited;
          begin
            perform pg_advisory_xact_lock(${innerDoor('v_workspace')});
          exception when lock_not_available then
            -- one patience for all of them
            v_has_waited := true;
            continue;
          end;
        end if;
        if pg_try_advisory_xact_lock(${outerDoor('v_workspace')}) then
          v_mine := v_mine || v_workspace;
        end if;
      end loop;
      v_admitted := agentd.admit_behind_doors(v_mine);
      for n in 1 .. least(v_admitted, 16) loop
        exit when not agentd.wake('task-run');
      end loop;
      return v_admitted;
    end
    $$;

    create or replace function agentd.admit_runs(workspace_id uuid) returns integer
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    begin
      return agentd.admit_workspaces(array[admit_runs.workspace_id]);
    end
    $$;
`;

/** Looks of the daemons. */
export const LOOKS = `
    -- Looks at the workspaces of new runs, the oldest first, and lets in whoever has waited there longest.
    -- Arrivals without a place are parked: the end of a run of their workspace lets them in. Out: how many runs have a job now;
    -- how many arrivals need no further look.
    create function agentd.look_at_arrivals(p_max_runs integer, out admitted integer, out looked_at integer)
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
    as $$
    declare
      v_arrivals   uuid[];
      v_workspaces uuid[];
      v_workspace  uuid;
      v_mine       uuid[] := '{}';
      v_shut       uuid[] := '{}';
      v_busy       uuid;
      v_tries      integer := 0;
    begin
      admitted := 0;
      looked_at := 0;
      if to_regclass('pgboss.job') is null then
        return;
      end if;
      with arrival as materialized (
        select r.id, r.workspace_id, r.seq
          from public.task_runs r
         where ${isArrival()}
         order by r.seq
         limit p_max_runs
      )
      select array_agg(a.id),
             (select array_agg(w.workspace_id order by w.first)
                from (select o.workspace_id, min(o.seq) as first from arrival o group by o.workspace_id) w)
        into v_arrivals, v_workspaces
        from arrival a;
      if v_arrivals is null then
        return;
      end if;
      foreach v_workspace in array v_workspaces loop
        exit when cardinality(v_mine) >= ${WORKSPACES} or v_tries >= ${TRIES};
        v_tries := v_tries + 1;
        if not pg_try_advisory_xact_lock(${innerDoor('v_workspace')}) then
          -- Another daemon is there, and may not have seen this arrival: it stays one.
          v_busy := coalesce(v_busy, v_workspace);
        elsif pg_try_advisory_xact_lock(${outerDoor('v_workspace')}) then
          v_mine := v_mine || v_workspace;
        else
          v_shut := v_shut || v_workspace;
        end if;
      end loop;
      -- Only where nothing else is to be done, and no door held, is another daemon waited for.
      if v_mine = '{}' and v_shut = '{}' then
        begin
          perform pg_advisory_xact_lock(${innerDoor('v_busy')});
          if pg_try_advisory_xact_lock(${outerDoor('v_busy')}) then
            v_mine := array[v_busy];
          else
            v_shut := array[v_busy];
          end if;
        exception when lock_not_available then
          return;
        end;
      end if;
      admitted := agentd.admit_behind_doors(v_mine);
      -- Behind a door that an open transaction keeps shut, arrivals are parked after a second: they must not stand before others'.
      update public.task_runs p
         set is_parked = true
       where p.id in (
         select r.id from public.task_runs r
          where r.id = any (v_arrivals) and r.status = 'queued' and r.job_id is null and not r.is_parked
            and (r.workspace_id = any (v_mine)
                 or (r.workspace_id = any (v_shut) and r.created_at < agentd.now() - interval '1 second'))
            for no key update skip locked);
      get diagnostics looked_at = row_count;
      looked_at := looked_at + admitted;
    end
    $$;

    create or replace function agentd.admit_arrivals(max_runs integer) returns integer
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    begin
      return (select l.admitted from agentd.look_at_arrivals(max_runs) l);
    end
    $$;

    -- Looks through the waiting rooms, at p_count workspaces after p_after: who waits although there is room? Out: how many runs
    -- have a job now; the last workspace looked at, null at the end.
    create function agentd.look_at_waiting(p_after uuid, p_count integer, out admitted integer, out last_id uuid)
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
    as $$
    declare
      v_workspace uuid;
      v_seen      integer := 0;
      v_mine      uuid[] := '{}';
    begin
      admitted := 0;
      if to_regclass('pgboss.job') is null then
        return;
      end if;
      for v_workspace in select w.id from agentd.waiting_workspaces(p_after, p_count) as w (id) loop
        v_seen := v_seen + 1;
        last_id := v_workspace;
        if agentd.workspace_room(v_workspace) > 0
           and pg_try_advisory_xact_lock(${innerDoor('v_workspace')})
           and pg_try_advisory_xact_lock(${outerDoor('v_workspace')}) then
          v_mine := v_mine || v_workspace;
          exit when cardinality(v_mine) >= ${WORKSPACES};
        end if;
      end loop;
      if v_seen < p_count and cardinality(v_mine) < ${WORKSPACES} then
        last_id := null;
      end if;
      admitted := agentd.admit_behind_doors(v_mine);
    end
    $$;
`;

/** What applications' transactions do. */
export const ENTER = `
    -- For the insert of a run. While a daemon sleeps, the run gets its job here and now, and the daemon is woken: latency is what
    -- counts. While all are awake the row itself is the request: they admit new rows in batches, which costs an insert nothing.
    -- Where many wait already the run is parked at once: one tenant's million does not stand before others' arrivals.
    create function agentd.enter_run(
      p_run_id uuid, p_workspace_id uuid, p_task_id uuid, p_is_serial boolean, p_wake_at timestamptz,
      out job_id uuid, out is_parked boolean
    )
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
    as $$
    declare
      v_waiting integer;
    begin
      -- Of what stands before it, not of what may have to wait for longer: a run of the same task that is serial too, or others
      -- that are not.
      if p_is_serial then
        v_waiting := (select count(*) from (
          select 1 from public.task_runs r where ${waitsSerial} and r.task_id = p_task_id limit 1) w);
        is_parked := v_waiting > 0;
      else
        v_waiting := (select count(*) from (
          select 1 from public.task_runs r where ${waitsFree} order by r.seq limit ${ARRIVALS}) w);
        is_parked := v_waiting >= ${ARRIVALS};
      end if;
      if is_parked or not exists (select 1 from agentd.sleepers s where s.queue = 'task-run') then
        return;
      end if;
      -- Nobody is passed by who has waited longer. With the snapshot of a whole transaction nothing can be counted.
      if v_waiting = 0 and current_setting('transaction_isolation') = 'read committed'
         and pg_try_advisory_xact_lock(${outerDoor('p_workspace_id')}) then
        if agentd.workspace_room(p_workspace_id) <= 0 then
          return;
        end if;
        if p_is_serial and exists (
             select 1 from public.task_runs r
              where r.task_id = p_task_id and r.status in ('queued', 'running', 'waiting')) then
          return;
        end if;
        job_id := agentd.enqueue('task-run', jsonb_build_object('run_id', p_run_id), p_run_id::text, p_workspace_id, p_wake_at);
      elsif agentd.workspace_room(p_workspace_id) > 0 then
        perform agentd.wake('task-run');
      end if;
    end
    $$;

    -- For transactions of applications that leave a place or let a workspace go on: makes waiting runs arrivals again, the oldest
    -- first, and wakes a daemon, which sees to the whole workspace. Waits for nobody.
    create function agentd.unpark_runs(p_workspace_id uuid, p_count integer) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
    as $$
    declare
      v_count integer := least(p_count, ${ARRIVALS});
    begin
      -- With one old snapshot a row that has changed since is an error; the reconciler sees to it.
      if current_setting('transaction_isolation') = 'read committed' then
        update public.task_runs p
           set is_parked = false
         where p.is_parked
           and p.id in (
             select c.id
               from (
                 select free.id, free.seq
                   from (select r.id, r.seq from public.task_runs r
                          where ${waitsFree}
                          order by r.seq limit v_count for no key update skip locked) free
                 union all
                 -- any: that a daemon looks at the workspace is what counts
                 select serial.id, serial.seq
                   from (select r.id, r.seq from public.task_runs r
                          where ${waitsSerial}
                          limit v_count for no key update skip locked) serial
               ) c
              order by c.seq
              limit v_count);
      end if;
      perform agentd.wake('task-run');
    end
    $$;
`;
