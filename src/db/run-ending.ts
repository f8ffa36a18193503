/** How a run ended, asked by a worker that lost it. */
import { first, type Queryable } from './database.ts';

export type RunEnding = {
  readonly status: string;
  readonly reason_code: string | null;
  readonly lease_epoch: number;
};

/** Null for a run that is gone. */
export function runEnding(db: Queryable, runId: string): Promise<RunEnding | null> {
  return first(
    db.query<RunEnding>('select status, reason_code, lease_epoch from public.task_runs where id = $1', [
      runId,
    ]),
  );
}
