/** The daemons that are, or were. */
import type { Queryable } from './database.ts';

export type WorkerRow = {
  readonly id: string;
  readonly hostname: string;
  readonly pid: number;
  readonly version: string;
  /** Queue → concurrency. */
  readonly queues: Readonly<Record<string, number>>;
  readonly state: 'running' | 'draining' | 'stopped';
  /** Jobs being worked on. */
  readonly running: number;
};

/** Writes a worker's row and that it is alive now. Returns the database's time. */
export async function saveWorker(db: Queryable, worker: WorkerRow): Promise<Date> {
  const [row] = await db.query<{ now: Date }>(
    {
      name: 'save_worker',
      text: `
insert into agentd.workers as w (id, hostname, pid, version, queues, state, running, started_at, last_seen_at)
values ($1, $2, $3, $4, $5, $6, $7, agentd.now(), agentd.now())
on conflict (id) do update
   set queues = excluded.queues, state = excluded.state, running = excluded.running, last_seen_at = agentd.now(),
       stopped_at = case when excluded.state = 'stopped' then agentd.now() end
returning agentd.now() as now`,
    },
    [
      worker.id,
      worker.hostname,
      worker.pid,
      worker.version,
      JSON.stringify(worker.queues),
      worker.state,
      worker.running,
    ],
  );
  if (!row) throw new Error('The database gave no time.');
  return row.now;
}
