/** What operators watch: the monitoring views, one query a function. All of them are cheap enough to ask every few seconds. */
import type { Queryable } from './database.ts';

/** Names of the migrations that are applied; empty on a database without agentd. */
export async function appliedMigrations(db: Queryable): Promise<string[]> {
  const [found] = await db.query<{ exists: boolean }>(
    `select to_regclass('agentd.migrations') is not null as exists`,
  );
  if (!found?.exists) return [];
  return (await db.query<{ name: string }>('select name from agentd.migrations')).map((row) => row.name);
}

/** One row of `agentd.queue_health`. */
export type QueueHealth = {
  readonly queue: string;
  readonly ready: number;
  readonly delayed: number;
  readonly active: number;
  /** Jobs in the dead-letter queue. */
  readonly dead: number;
  /** Age in seconds of the oldest job that could start; null when none waits. */
  readonly oldest_ready_seconds: number | null;
  /** Rows of workspaces at their ceiling, which have no job yet. */
  readonly waiting_room: number;
  /** Processes that work the queue and were seen in the last 30 seconds. */
  readonly workers: number;
  readonly paused: boolean;
};

/** Depth and age of every queue, by name. */
export function queueHealth(db: Queryable): Promise<QueueHealth[]> {
  return db.query<QueueHealth>(
    `select queue, ready, delayed, active, dead, oldest_ready_seconds, waiting_room, workers, paused
       from agentd.queue_health
      order by queue`,
  );
}

/** Seconds since when the earliest task that is due should have had its run; 0 when none is due. */
export async function scheduleOverdue(db: Queryable): Promise<number> {
  const [row] = await db.query<{ seconds: number }>(
    `select coalesce(greatest(extract(epoch from agentd.now() - min(next_run_at)), 0), 0)::float8 as seconds
       from public.agent_tasks
      where status = 'active' and task_type = 'scheduled'`,
  );
  return row?.seconds ?? 0;
}

/** Documents that wait for one thing. */
export type DocumentsWaiting = {
  /** `admitted`: for a worker; `waiting_room`: for a place of their workspace; `retry`: for the time of their next attempt. */
  readonly state: 'admitted' | 'waiting_room' | 'retry';
  /** At most 20,000 are counted. */
  readonly documents: number;
  /** How long the first in line has waited; null where nobody waits, or for a set time. */
  readonly oldest_seconds: number | null;
};

/** Heads of lines that are looked at: one of each workspace with documents in the waiting room. */
const MOST_LINES = 2_000;
const MOST_COUNTED = 20_000;
const IN_THE_ROOM = `((k.processing_status = 'uploaded' and k.job_id is null) is true)`;
const IN_LINE = `k.workspace_id, coalesce(k.retry_at, '-infinity'), k.seq`;

/**
 * Documents that wait, by what they wait for. Of a workspace's line only the first is asked since when: a document waits since it was
 * inserted, or since its row last changed.
 */
export function documentsWaiting(db: Queryable): Promise<DocumentsWaiting[]> {
  return db.query<DocumentsWaiting>(
    `with recursive line (workspace_id, since) as (
       (select k.workspace_id, greatest(k.updated_at, k.retry_at) from public.knowledge_sources k
         where ${IN_THE_ROOM} order by ${IN_LINE} limit 1)
       union all
       select next.* from line
        cross join lateral (
          select k.workspace_id, greatest(k.updated_at, k.retry_at) from public.knowledge_sources k
           where ${IN_THE_ROOM} and k.workspace_id > line.workspace_id order by ${IN_LINE} limit 1) next
     ),
     head as (
       select min(h.since) as since from (select * from line limit ${MOST_LINES}) h where h.since <= agentd.now()
     ),
     room as (
       select count(*) filter (where not r.later) as now, count(*) filter (where r.later) as later
         from (select coalesce(k.retry_at > agentd.now(), false) as later from public.knowledge_sources k
                where ${IN_THE_ROOM} limit ${MOST_COUNTED}) r
     ),
     admitted as (
       select count(*) as now, min(a.updated_at) as since
         from (select k.updated_at from public.knowledge_sources k
                where k.job_id is not null and k.processing_status in ('uploaded', 'processing')
                  and k.processing_status = 'uploaded' limit ${MOST_COUNTED}) a
     )
     select 'admitted' as state, a.now::integer as documents,
            extract(epoch from agentd.now() - case when a.since > agentd.now() then agentd.now() else a.since end)::float8 as oldest_seconds from admitted a
     union all
     select 'waiting_room', r.now::integer, extract(epoch from agentd.now() - h.since)::float8 from room r, head h
     union all
     select 'retry', r.later::integer, null from room r`,
  );
}

export type WorkerHealth = {
  readonly id: string;
  readonly hostname: string;
  readonly pid: number;
  readonly version: string;
  /** Queue name to concurrency. */
  readonly queues: Readonly<Record<string, number>>;
  readonly state: 'running' | 'draining' | 'stopped';
  /** Handlers busy when it was last seen. */
  readonly running: number;
  readonly started_at: Date;
  readonly last_seen_at: Date;
  readonly silent_seconds: number;
  readonly alive: boolean;
};

/** Workers that live or were seen in the last day, the living first. */
export function workerHealth(db: Queryable): Promise<WorkerHealth[]> {
  return db.query<WorkerHealth>(
    `select id, hostname, pid, version, queues, state, running, started_at, last_seen_at, silent_seconds, alive
       from agentd.worker_health
      where alive or last_seen_at > agentd.now() - interval '1 day'
      order by alive desc, last_seen_at desc
      limit 50`,
  );
}

export type WorkspaceActivity = {
  readonly workspace_id: string;
  readonly name: string;
  readonly queued: number;
  /** Runs beyond the workspace's ceiling, which have no job yet. */
  readonly waiting_room: number;
  readonly running: number;
  readonly waiting: number;
  readonly completed_last_hour: number;
  readonly failed_last_hour: number;
  readonly tokens_last_hour: number;
  readonly cost_micros_last_hour: number;
};

/** Workspaces with work now or in the last hour, the busiest first; at most `limit`. */
export function workspaceActivity(db: Queryable, limit: number): Promise<WorkspaceActivity[]> {
  return db.query<WorkspaceActivity>(
    `select workspace_id, name, queued, waiting_room, running, waiting, completed_last_hour, failed_last_hour,
            tokens_last_hour::bigint as tokens_last_hour, cost_micros_last_hour::bigint as cost_micros_last_hour
       from agentd.workspace_activity
      where queued + waiting_room + running + waiting + completed_last_hour + failed_last_hour > 0
      order by running desc, queued + waiting_room desc, waiting desc, completed_last_hour desc, name
      limit $1`,
    [limit],
  );
}

export type LateTask = {
  readonly task_id: string;
  readonly workspace_id: string;
  readonly name: string;
  readonly next_run_at: Date;
  readonly late_seconds: number;
};

/** Tasks that should have been started by now, the latest first. */
export function lateTasks(db: Queryable, limit: number): Promise<LateTask[]> {
  return db.query<LateTask>(
    `select task_id, workspace_id, name, next_run_at, late_seconds
       from agentd.late_tasks
      order by next_run_at
      limit $1`,
    [limit],
  );
}

export type StuckWork = {
  readonly kind: string;
  readonly id: string;
  readonly workspace_id: string;
  readonly problem: string;
  readonly since: Date;
};

/** Work that the reconciler should have repaired, the oldest first; normally none. */
export function stuckWork(db: Queryable, limit: number): Promise<StuckWork[]> {
  return db.query<StuckWork>(
    'select kind, id, workspace_id, problem, since from agentd.stuck_work order by since limit $1',
    [limit],
  );
}

/** Copies of vectors, embeddings of messages, moves to another model and connected accounts that wait or were given up, for one reason. */
export type HeldWork = {
  /** What the rows are: stores of vectors, workspaces, messages, workspaces, providers, credentials. */
  readonly kind:
    | 'stores_resting'
    | 'messages_waiting'
    | 'messages_given_up'
    | 'moves_failed'
    | 'connections_failing'
    | 'providers_misconfigured'
    | 'credentials_failing';
  /** `paused`: by an operator. */
  readonly reason_code: string;
  /** At most 20,000 messages are counted. */
  readonly count: number;
  /** The reason of one of them, in words; null: none was written down. */
  readonly example: string | null;
};

/** What waits or was given up besides runs and documents, by kind and reason, at most `limit` of them; normally none. */
export function heldWork(db: Queryable, limit: number): Promise<HeldWork[]> {
  return db.query<HeldWork>(
    `with held (place, kind, reason_code, reason) as (
       select 1, 'stores_resting', s.reason_code, s.reason from agentd.vector_stores s
        where s.rest_until > agentd.now() and s.reason_code is not null
       union all
       select 2, 'messages_waiting', case when w.retry_at = 'infinity' then 'paused' else w.reason_code end, w.reason
         from agentd.message_workspaces w
        where (w.reason_code is not null or w.retry_at = 'infinity')
          and (w.walk_kind is not null
               or exists (select 1 from agentd.message_queue q where q.workspace_id = w.id and q.failed_at is null))
       union all
       select 3, 'messages_given_up', q.reason_code, q.reason
         from (select f.reason_code, f.reason from agentd.message_queue f where f.failed_at is not null limit ${MOST_COUNTED}) q
       union all
       select 4, 'moves_failed', m.reason_code, m.reason from agentd.embedding_migrations m where m.status = 'failed'
       union all
       select 9, 'connections_failing', c.reason_code, c.reason
         from (select n.reason_code, n.reason from public.agent_mcp_connections n
                where n.is_active and n.refresh_failures > 0 limit ${MOST_COUNTED}) c
       union all
       select 5, 'providers_misconfigured', a.reason_code, a.reason from agentd.provider_alarms a where a.is_misconfigured
       union all
       select 6, 'credentials_failing', c.reason_code, c.reason
         from (select f.reason_code, f.reason from agentd.failing_credentials f where f.needs_person limit ${MOST_COUNTED}) c
     )
     select h.kind, coalesce(h.reason_code, 'unknown') as reason_code, count(*)::integer as count, min(h.reason) as example
       from held h group by h.place, 1, 2 order by h.place, count(*) desc, 2 limit $1`,
    [limit],
  );
}

export type RecentFailure = {
  readonly run_id: string;
  readonly workspace_id: string;
  readonly task_id: string | null;
  readonly task_name: string | null;
  readonly reason_code: string | null;
  readonly reason: string | null;
  readonly current_step: number;
  readonly finished_at: Date;
};

/** Runs that failed within a day, the newest first. */
export function recentFailures(db: Queryable, limit: number): Promise<RecentFailure[]> {
  return db.query<RecentFailure>(
    `select run_id, workspace_id, task_id, task_name, reason_code, reason, current_step, finished_at
       from agentd.recent_failures
      order by finished_at desc
      limit $1`,
    [limit],
  );
}
