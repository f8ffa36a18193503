/** Who tidies what: a task at a time by one process, fenced by an epoch, with a log that is written in the transactions that do the work. */
import type { Database, Queryable } from './database.ts';

/** A task that this process has taken. */
export type Taken = {
  readonly name: string;
  readonly epoch: number;
  readonly passId: number;
  /** How far the pass has come that this one goes on with; null: at the beginning. */
  readonly place: unknown;
  /** Since when it was due, in milliseconds. */
  readonly lateMs: number;
};

/** Another process is at the task: what this one has done since is undone. */
export class TaskLost extends Error {
  override readonly name = 'TaskLost';
}

/**
 * Makes the rows of tasks that this version knows and the database does not. Their first turns come within the hour, none at once: who has just
 * set the system up, or upgraded it, has ten minutes to say what is to be kept for longer.
 */
export async function registerTasks(db: Queryable, names: readonly string[]): Promise<void> {
  await db.query(
    `insert into agentd.maintenance_tasks (name, due_at)
     select n.name, agentd.now() + interval '10 minutes' + random() * interval '50 minutes' from unnest($1::text[]) n (name)
     on conflict do nothing`,
    [names],
  );
}

/**
 * Takes the task that has been due for the longest, or the named one whether it is due or not. A pass that another process has left is gone on with.
 * Null: nothing is due, or somebody is at it.
 */
export async function takeTask(
  db: Database,
  wanted: {
    readonly names: readonly string[];
    readonly worker: string;
    readonly leaseMs: number;
    readonly isForced?: boolean;
  },
): Promise<Taken | null> {
  return db.transaction(async (tx) => {
    const [task] = await tx.query<{
      name: string;
      epoch: number;
      pass_id: number | null;
      place: unknown;
      late_ms: number;
    }>(
      `
with due as (
  select t.name, extract(epoch from agentd.now() - t.due_at)::float8 * 1000 as late_ms
    from agentd.maintenance_tasks t
   where t.name = any ($1)
     -- one that is due in so long was written before the clock was set back
     and ($4 or t.due_at <= agentd.now() or t.due_at > agentd.now() + interval '2 days')
     and (t.lease_expires_at is null or t.lease_expires_at <= agentd.now() or t.lease_expires_at > agentd.now() + interval '1 hour')
   order by t.due_at
   limit 1
     for update skip locked
)
update agentd.maintenance_tasks t
   set worker_id = $2, lease_epoch = t.lease_epoch + 1, lease_expires_at = agentd.now() + make_interval(secs => $3)
  from due where t.name = due.name
returning t.name, t.lease_epoch as epoch, t.pass_id, t.place, greatest(due.late_ms, 0) as late_ms`,
      [wanted.names, wanted.worker, wanted.leaseMs / 1000, wanted.isForced === true],
    );
    if (!task) return null;
    let passId = task.pass_id;
    if (passId === null) {
      const [made] = await tx.query<{ id: number }>(
        'insert into agentd.maintenance_log (name, worker_id, started_at) values ($1, $2, agentd.now()) returning id',
        [task.name, wanted.worker],
      );
      passId = (made as { id: number }).id;
      await tx.query('update agentd.maintenance_tasks set pass_id = $2, place = null where name = $1', [
        task.name,
        passId,
      ]);
    } else {
      await tx.query('update agentd.maintenance_log set worker_id = $2 where id = $1', [
        passId,
        wanted.worker,
      ]);
    }
    return {
      name: task.name,
      epoch: task.epoch,
      passId,
      place: passId === task.pass_id ? task.place : null,
      lateMs: task.late_ms,
    };
  });
}

/** What a batch has done. */
export type Done = {
  readonly rows: number;
  readonly held?: number;
  readonly bytes?: number;
  readonly busyMs: number;
};

/** Writes down what a batch has done, in the batch's own transaction. Throws TaskLost. */
export async function noteBatch(
  tx: Queryable,
  task: Taken,
  done: Done,
  next: { readonly place: unknown; readonly leaseMs: number },
): Promise<void> {
  const kept = await tx.query(
    `update agentd.maintenance_tasks set place = $3::jsonb, lease_expires_at = agentd.now() + make_interval(secs => $4)
      where name = $1 and lease_epoch = $2 and pass_id = $5 returning 1`,
    [
      task.name,
      task.epoch,
      next.place === null ? null : JSON.stringify(next.place),
      next.leaseMs / 1000,
      task.passId,
    ],
  );
  if (kept.length === 0) throw new TaskLost(`The task ${task.name} is another process's now.`);
  await tx.query(
    `update agentd.maintenance_log
        set batches = batches + 1, rows = rows + $2, held = held + $3, bytes = case when $4::bigint is null then bytes else coalesce(bytes, 0) + $4 end,
            busy_ms = busy_ms + $5
      where id = $1`,
    [task.passId, done.rows, done.held ?? 0, done.bytes ?? null, Math.round(done.busyMs)],
  );
}

/** How a pass is left: over, failed, or to be gone on with by whoever has time. */
export type Left =
  | { readonly how: 'completed'; readonly nextMs: number }
  | { readonly how: 'failed'; readonly nextMs: number; readonly error: string }
  | { readonly how: 'paused' };

/** Gives the task back. Returns the row of the log; null: it was another process's already. */
export async function leaveTask(db: Database, task: Taken, left: Left): Promise<PassRow | null> {
  return db.transaction(async (tx) => {
    const isOver = left.how !== 'paused';
    const kept = await tx.query(
      `update agentd.maintenance_tasks
          set worker_id = null, lease_expires_at = null, due_at = agentd.now() + make_interval(secs => $3),
              pass_id = case when $4 then null else pass_id end,
              place = case when $4 then null else place end,
              failures = case $5 when 'completed' then 0 when 'failed' then least(failures, 1000) + 1 else failures end,
              succeeded_at = case when $5 = 'completed' then agentd.now() else succeeded_at end,
              last_error = case $5 when 'completed' then null when 'failed' then $6 else last_error end
        where name = $1 and lease_epoch = $2 returning 1`,
      [
        task.name,
        task.epoch,
        isOver ? left.nextMs / 1000 : 0,
        isOver,
        left.how,
        left.how === 'failed' ? left.error : null,
      ],
    );
    if (kept.length === 0) return null;
    const [row] = await tx.query<PassRow>(
      `update agentd.maintenance_log
          set finished_at = case when $2 then agentd.now() end, outcome = case when $2 then $3 else 'running' end, error = $4
        where id = $1
       returning name, outcome, batches, rows, held, bytes, busy_ms`,
      [task.passId, isOver, left.how, left.how === 'failed' ? left.error : null],
    );
    return row ?? null;
  });
}

export type PassRow = {
  readonly name: string;
  readonly outcome: string;
  readonly batches: number;
  readonly rows: number;
  readonly held: number;
  readonly bytes: number | null;
  readonly busy_ms: number;
};

export type TaskState = {
  readonly name: string;
  readonly due_at: Date;
  readonly worker_id: string | null;
  readonly failures: number;
  readonly succeeded_at: Date | null;
  readonly last_error: string | null;
  /** Seconds since it was due and nobody began; 0 while somebody is at it. */
  readonly late_seconds: number;
  readonly last_rows: number | null;
  readonly last_started_at: Date | null;
  readonly last_outcome: string | null;
};

/** Every task, with its last pass. */
export function maintenanceTasks(db: Queryable): Promise<TaskState[]> {
  return db.query<TaskState>(
    `select t.name, t.due_at, case when t.lease_expires_at > agentd.now() then t.worker_id end as worker_id, t.failures, t.succeeded_at, t.last_error,
            case when t.lease_expires_at > agentd.now() then 0 else greatest(extract(epoch from agentd.now() - t.due_at), 0) end::float8 as late_seconds,
            l.rows as last_rows, l.started_at as last_started_at, l.outcome as last_outcome
       from agentd.maintenance_tasks t
       left join lateral (
         select m.rows, m.started_at, m.outcome from agentd.maintenance_log m where m.name = t.name order by m.started_at desc, m.id desc limit 1) l on true
      order by t.name`,
  );
}

/** Failures in a row of a task so far. */
export async function failuresOf(db: Queryable, name: string): Promise<number> {
  const [row] = await db.query<{ failures: number }>(
    'select failures from agentd.maintenance_tasks where name = $1',
    [name],
  );
  return row?.failures ?? 0;
}
