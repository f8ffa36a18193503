/** Which of a worker's runs are no longer its own. */
import type { Queryable } from './database.ts';

/** A run that a worker executes, and the claim under which it does. */
export type HeldRun = { readonly run: string; readonly epoch: number };

/** Those that were cancelled, ended, taken over or deleted. Only reads: it may be asked often. */
export async function findLostRuns(db: Queryable, held: readonly HeldRun[]): Promise<HeldRun[]> {
  return db.query<HeldRun>(
    {
      name: 'find_lost_runs',
      text: `
select held.run, held.epoch
  from jsonb_to_recordset($1::jsonb) as held (run uuid, epoch integer)
  left join public.task_runs r on r.id = held.run
 where r.id is null or r.lease_epoch <> held.epoch or r.status <> 'running'`,
    },
    [JSON.stringify(held)],
  );
}
