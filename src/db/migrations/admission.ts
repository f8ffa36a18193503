/**
 * Rows that are requests of work: how those that wait are let in.
 *
 * A row waits without a job. A daemon that has room gives jobs to rows that are due: as many of each workspace as its ceiling allows, the
 * workspaces in turn, so that nobody's many rows stand before another's few.
 */
import { insertJobs } from './insert-jobs.ts';

export type Admission = {
  readonly queue: string;
  /** Qualified. Has id, workspace_id and job_id. */
  readonly table: string;
  /** Of agentd: tells how many more rows of a workspace may be let in. */
  readonly roomFunction: string;
  /** Of agentd: lets rows in. */
  readonly admitFunction: string;
  /** Whether a row waits, as the index (workspace_id, due at, order) has it. Wrapped, so that it implies no other partial index's predicate. */
  readonly waiting: (row: string) => string;
  /** From when on it may be let in; an expression that is never null. */
  readonly dueAt: (row: string) => string;
  /** Which comes first of those that are due at the same time: a column. */
  readonly order: string;
  /** Whether a row takes a place of its workspace. */
  readonly admitted: (row: string) => string;
  /** Columns that data, key and order are made of, id among them. */
  readonly columns: readonly string[];
  /** The job's data and its key, of the row `n`. */
  readonly data: string;
  readonly key: string;
};

/** Places of a workspace where neither its plan nor the queue says. */
const DEFAULT_CEILING = 4;
/** Workspaces that one look passes because nothing of theirs is due, and those whose room it asks for, at most. */
const PASSED = 5_000;
const ASKED = 500;

/**
 * `create function` of the room: the workspace's ceiling (its plan's features -> ceilings -> queue, else the queue's) less what is
 * admitted and has not ended; 0 while the workspace or the queue is paused.
 */
export function roomFunction({ queue, table, roomFunction: name, admitted }: Admission): string {
  return `create function agentd.${name}(p_workspace_id uuid) returns integer
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_ceiling integer;
begin
  if exists (select 1 from agentd.queue_controls c
              where c.queue = '${queue}' and c.workspace_id = p_workspace_id) then
    return 0;
  end if;
  v_ceiling := coalesce(
    (select (p.features #>> '{ceilings,${queue}}')::integer
       from public.workspace_subscriptions s
       join public.pricing_plans p on p.id = s.plan_id
      where s.workspace_id = p_workspace_id
        and s.status in ('trialing', 'active', 'past_due')
        and p.features #>> '{ceilings,${queue}}' ~ '^[1-9][0-9]{0,5}$'
      limit 1),
    (select q.workspace_ceiling + q.workspace_buffer from agentd.queue_settings q where q.queue = '${queue}'),
    ${DEFAULT_CEILING});
  return v_ceiling - (
    select count(*) from (
      select 1 from ${table} k
       where k.workspace_id = p_workspace_id and ${admitted('k')}
       limit v_ceiling) admitted);
end
$$;`;
}

/**
 * `create function` that lets rows in, the workspaces from a random one on. One daemon at a time does: whoever comes meanwhile is told
 * nothing, and looks again. Workspaces in which nothing is due yet are passed. Returns how many have a job now.
 */
export function admitFunction(admission: Admission): string {
  const { queue, table, waiting, dueAt, order, columns, data, key } = admission;
  return `create function agentd.${admission.admitFunction}(p_limit integer) returns integer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_admitted  integer := 0;
  v_workspace uuid;
  v_after     uuid := gen_random_uuid();
  v_first     uuid := v_after;
  v_wrapped   boolean := false;
  v_is_due    boolean;
  v_asked     integer := 0;
  v_room      integer;
  v_count     integer;
begin
  -- a row that no tenant can reach, and no advisory lock, which anybody could hold
  perform 1 from agentd.queue_settings q where q.queue = '${queue}' for update skip locked;
  if not found or to_regclass('pgboss.job') is null then
    return 0;
  end if;
  for look in 1 .. ${PASSED} loop
    v_workspace := null;
    select k.workspace_id, ${dueAt('k')} <= agentd.now() into v_workspace, v_is_due from ${table} k
     where ${waiting('k')} and k.workspace_id > v_after
     order by k.workspace_id, ${dueAt('k')}, k.${order} limit 1;
    if v_workspace is null then
      exit when v_wrapped;
      v_wrapped := true;
      v_after := '00000000-0000-0000-0000-000000000000';
      continue;
    end if;
    exit when v_wrapped and v_workspace > v_first;
    v_after := v_workspace;
    continue when not v_is_due;
    v_asked := v_asked + 1;
    exit when v_asked > ${ASKED};
    v_room := least(agentd.${admission.roomFunction}(v_workspace), p_limit - v_admitted);
    continue when v_room <= 0;
    with next as materialized (
      select ${columns.map((column) => `k.${column}`).join(', ')}
        from ${table} k
       where ${waiting('k')} and k.workspace_id = v_workspace and ${dueAt('k')} <= agentd.now()
       order by ${dueAt('k')}, k.${order}
       limit v_room
         for no key update skip locked
    ),
    job as (
      ${insertJobs(`(
        select '${queue}' as queue, ${data} as data, ${key} as key, null::timestamptz as start_after
          from next n order by n.${order})`)}
      returning id, singleton_key
    )
    update ${table} k set job_id = job.id
      from next n, job
     where k.id = n.id and job.singleton_key = ${key};
    get diagnostics v_count = row_count;
    v_admitted := v_admitted + v_count;
    exit when v_admitted >= p_limit;
  end loop;
  return v_admitted;
end
$$;`;
}
