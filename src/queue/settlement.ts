/**
 * Settles finished jobs: pg-boss's job and its row in agentd.job_runs change in one transaction, for as
 * many jobs as finished within a few milliseconds.
 */
import type { PgBoss } from 'pg-boss';
import { bossDb, settledIds } from '../db/boss.ts';
import type { Database, Queryable } from '../db/database.ts';
import { insertJobRuns, type JobRun, spendRetries } from '../db/jobs.ts';

/** How an attempt of a job ended. */
export type Outcome =
  | { readonly kind: 'completed' }
  | { readonly kind: 'failed'; readonly permanent: boolean; readonly code: string; readonly message: string }
  | { readonly kind: 'again'; readonly afterMs: number; readonly why: 'snoozed' | 'handed_back' };

/** A job as fetched. */
export type FetchedJob = {
  readonly id: string;
  readonly data: Record<string, unknown>;
  readonly retryCount: number;
};

export type Settlement = {
  readonly job: FetchedJob;
  readonly outcome: Outcome;
  readonly durationMs: number;
};

export type SettleContext = {
  readonly db: Database;
  readonly boss: PgBoss;
  readonly queue: string;
  readonly retryLimit: number;
  readonly workerId: string;
  /** The singleton key of a job, from its payload. */
  readonly keyOf: (data: Record<string, unknown>) => string;
};

/**
 * Settles a batch. Each job is fenced by the attempt that was fetched: one that another worker holds by
 * now is left alone, and its row says `lost`. Returns each job's outcome as it is in the row.
 */
export async function settle(
  context: SettleContext,
  batch: readonly Settlement[],
): Promise<JobRun['outcome'][]> {
  return context.db.transaction(async (tx) => {
    const db = { db: bossDb(tx) };
    const settled = new Set<string>();
    const completed = batch.filter((s) => s.outcome.kind === 'completed');
    if (completed.length > 0) {
      const answer = await context.boss.complete(context.queue, completed.map(attempt), null, db);
      for (const id of settledIds(answer)) settled.add(id);
    }
    for (const one of batch) {
      if (one.outcome.kind === 'failed') {
        const { permanent, code, message } = one.outcome;
        if (permanent) await spendRetries(tx, context.queue, one.job.id, one.job.retryCount);
        const answer = await context.boss.fail(context.queue, attempt(one), { code, message }, db);
        for (const id of settledIds(answer)) settled.add(id);
      } else if (one.outcome.kind === 'again') {
        if (await putBack(context, tx, one, one.outcome.afterMs)) settled.add(one.job.id);
      }
    }
    const outcomes = batch.map((one) =>
      settled.has(one.job.id) ? outcomeOf(one, context.retryLimit) : 'lost',
    );
    await insertJobRuns(
      tx,
      batch.map((one, i) => ({
        queue: context.queue,
        jobId: one.job.id,
        attempt: one.job.retryCount + 1,
        workerId: context.workerId,
        workspaceId: typeof one.job.data.workspace_id === 'string' ? one.job.data.workspace_id : null,
        outcome: outcomes[i] as JobRun['outcome'],
        durationMs: Math.round(one.durationMs),
        error:
          one.outcome.kind === 'failed' ? { code: one.outcome.code, message: one.outcome.message } : null,
      })),
    );
    return outcomes;
  });
}

function attempt(one: Settlement): { id: string; retryCount: number } {
  return { id: one.job.id, retryCount: one.job.retryCount };
}

function outcomeOf(one: Settlement, retryLimit: number): JobRun['outcome'] {
  switch (one.outcome.kind) {
    case 'completed':
      return 'completed';
    case 'again':
      return one.outcome.why;
    case 'failed':
      return one.outcome.permanent || one.job.retryCount >= retryLimit ? 'failed' : 'retry';
  }
}

/**
 * Hands a job back without spending an attempt: pg-boss would count one, so the job is deleted (fenced) and
 * inserted anew under its own id, with the retries that remain.
 */
async function putBack(
  context: SettleContext,
  tx: Queryable,
  one: Settlement,
  afterMs: number,
): Promise<boolean> {
  const db = { db: bossDb(tx) };
  const deleted = await context.boss.deleteJob(context.queue, attempt(one), db);
  if (settledIds(deleted).length === 0) return false;
  await context.boss.insert(
    context.queue,
    [
      {
        id: one.job.id,
        data: one.job.data,
        retryLimit: Math.max(context.retryLimit - one.job.retryCount, 0),
        ...(afterMs > 0 ? { startAfter: `${Math.ceil(afterMs)} milliseconds` } : {}),
        // the exclusive policy's key: an enqueue of the same work while this waits is one job, not two
        singletonKey: context.keyOf(one.job.data),
      },
    ],
    db,
  );
  return true;
}
