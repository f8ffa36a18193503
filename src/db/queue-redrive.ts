/**
 * Dead letters of queue task-run: jobs that failed for good, whose runs failed with them. A run that has ended never begins
 * again: its dead letter is redriven by a new run of the same task with the same input.
 */
import type { Queryable } from './database.ts';

/** Letters that one transaction redrives. */
const BATCH = 100;

/**
 * What a redrive does with a letter: `retry` starts a new run; `drop` only removes the letter, because its run is gone, or was
 * retried already, or ended otherwise after all; `leave` keeps it, because its run has not ended.
 */
export type Treatment = 'retry' | 'drop' | 'leave';

/** Letters of one kind. */
export type LetterGroup = {
  readonly treatment: Treatment;
  /** Reason code of the run; `run_gone`, `task_gone`, `retried_already` or `not_failed` where the letter is dropped. */
  readonly reason: string;
  readonly count: number;
  /** When the oldest of them failed. */
  readonly oldest_at: Date;
  /** Ids of a few of their runs. */
  readonly runs: readonly string[];
};

/** What became of the letters. */
export type Redriven = { retried: number; dropped: number; left: number };

const SAMPLE = 3;

// $1: the queue of dead letters. A letter whose payload names no run counts as one whose run is gone.
const LETTERS = `
  select l.*, r.id as run_id,
         case when r.id is null then 'run_gone'
              when r.status in ('queued', 'running', 'waiting') then 'not_ended'
              when r.status <> 'failed' then 'not_failed'
              when r.task_id is null then 'task_gone'
              when exists (select 1 from public.task_runs n where n.retry_of_run_id = r.id) then 'retried_already'
              else coalesce(r.reason_code, 'unknown') end as reason,
         case when r.status in ('queued', 'running', 'waiting') then 'leave'
              when r.status = 'failed' and r.task_id is not null
                   and not exists (select 1 from public.task_runs n where n.retry_of_run_id = r.id) then 'retry'
              else 'drop' end as treatment
    from (select j.id, j.created_on,
                 case when j.data ->> 'run_id' ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                      then (j.data ->> 'run_id')::uuid end as named_run
            from pgboss.job j
           where j.name = $1 and j.state < 'active'`;

/** What redriving the oldest `limit` dead letters would do, the largest group first. Changes nothing. */
export function previewRedrive(db: Queryable, queue: string, limit: number): Promise<LetterGroup[]> {
  return db.query<LetterGroup>(
    `select x.treatment, x.reason, count(*)::integer as count, min(x.created_on) as oldest_at,
            coalesce((array_agg(x.run_id order by x.created_on) filter (where x.run_id is not null))[1:${SAMPLE}], '{}') as runs
       from (${LETTERS}
              order by j.created_on, j.id
              limit $2) l
       left join public.task_runs r on r.id = l.named_run) x
      group by x.treatment, x.reason
      order by count(*) desc, x.reason`,
    [deadLettersOf(queue), limit],
  );
}

/**
 * Redrives the oldest `limit` dead letters, a batch a transaction: whatever interrupts it, each letter was either redriven and
 * is gone, or stands as before. Two that redrive at once share the letters.
 *
 * @param transaction runs its work in one transaction, in the name of whoever redrives
 */
export async function redriveRuns(
  transaction: <T>(work: (tx: Queryable) => Promise<T>) => Promise<T>,
  queue: string,
  limit: number,
): Promise<Redriven> {
  const sum: Redriven = { retried: 0, dropped: 0, left: 0 };
  let after: { created_on: string; id: string } | null = null;
  for (let seen = 0; seen < limit; ) {
    const batch = await transaction((tx) => redriveBatch(tx, queue, Math.min(BATCH, limit - seen), after));
    if (batch.last === null) break;
    after = batch.last;
    seen += batch.seen;
    sum.retried += batch.retried;
    sum.dropped += batch.dropped;
    sum.left += batch.left;
  }
  return sum;
}

type Letter = { id: string; created_on: string; run_id: string | null; treatment: Treatment };

async function redriveBatch(
  tx: Queryable,
  queue: string,
  limit: number,
  after: { created_on: string; id: string } | null,
): Promise<Redriven & { seen: number; last: { created_on: string; id: string } | null }> {
  const letters = await tx.query<Letter>(
    `select l.id, l.created_on::text, l.run_id, l.treatment
       from (${LETTERS}
                and ($2::timestamptz is null or (j.created_on, j.id) > ($2::timestamptz, $3::uuid))
              order by j.created_on, j.id
              limit $4
                for update skip locked) l
       left join public.task_runs r on r.id = l.named_run) l
      order by l.created_on, l.id`,
    [deadLettersOf(queue), after?.created_on ?? null, after?.id ?? null, limit],
  );
  const of = (treatment: Treatment): Letter[] => letters.filter((letter) => letter.treatment === treatment);
  // two letters of one run are one retry
  const runs = [...new Set(of('retry').map((letter) => letter.run_id))];
  await tx.query('select agentd.retry_run(run) from unnest($1::uuid[]) as x (run)', [runs]);
  const done = letters.filter((letter) => letter.treatment !== 'leave');
  await tx.query('delete from pgboss.job where name = $1 and id = any ($2::uuid[])', [
    deadLettersOf(queue),
    done.map((letter) => letter.id),
  ]);
  const result = {
    retried: runs.length,
    dropped: done.length - runs.length,
    left: letters.length - done.length,
  };
  if (done.length > 0) {
    await tx.query(`select agentd.audit('redrive', 'queue', $1, null, $2)`, [queue, JSON.stringify(result)]);
  }
  const last = letters.at(-1);
  return {
    ...result,
    seen: letters.length,
    last: last ? { created_on: last.created_on, id: last.id } : null,
  };
}

function deadLettersOf(queue: string): string {
  return `${queue}-failed`;
}
