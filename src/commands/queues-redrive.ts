/** What `agentd queues redrive` says and does. */
import { PgBoss } from 'pg-boss';
import { bossOptions } from '../db/boss.ts';
import type { Database } from '../db/database.ts';
import {
  type LetterGroup,
  previewRedrive,
  type Redriven,
  redriveRuns,
  type Treatment,
} from '../db/queue-redrive.ts';
import { count, shortId, time } from './format.ts';
import { asOperator } from './operator.ts';
import type { Output } from './output.ts';

type Options = { readonly limit: number; readonly yes: boolean };

/** Runs have a journal of their own, which pg-boss's own redrive would go past. */
const RUNS = 'task-run';

const WORDS: Readonly<Record<Treatment, string>> = {
  retry: 'starts a new run',
  drop: 'drops the letter',
  leave: 'leaves it: the run goes on',
};

/** Shows what a redrive of a queue's dead letters would do, or does it. */
export async function redrive(db: Database, output: Output, queue: string, options: Options): Promise<void> {
  if (queue !== RUNS) return redriveJobs(db, output, queue, options);
  const groups = await previewRedrive(db, queue, options.limit);
  const done = options.yes ? await redriveRuns((work) => asOperator(db, work), queue, options.limit) : null;
  if (output.json) return output.data({ queue, done: done !== null, groups, ...done });
  if (done === null) printPreview(output, queue, groups);
  else printDone(output, queue, done);
}

function printPreview(output: Output, queue: string, groups: readonly LetterGroup[]): void {
  const total = groups.reduce((sum, group) => sum + group.count, 0);
  if (total === 0) {
    output.line(`Queue ${queue} has no dead letters.`);
    return;
  }
  const oldest = new Date(Math.min(...groups.map((group) => group.oldest_at.getTime())));
  output.line(`${count(total)} dead letters of ${queue}, the oldest of ${time(oldest)}:\n`);
  output.table(
    groups,
    [
      { title: 'COUNT', value: (row) => count(row.count), align: 'right' },
      { title: 'REASON', value: (row) => row.reason },
      { title: 'REDRIVE', value: (row) => WORDS[row.treatment] },
      { title: 'OLDEST', value: (row) => time(row.oldest_at) },
      { title: 'RUNS', value: (row) => row.runs.map(shortId).join(' ') },
    ],
    '',
  );
  output.line(`\nNothing was changed. To do it: agentd queues redrive ${queue} --yes`);
}

function printDone(output: Output, queue: string, { retried, dropped, left }: Redriven): void {
  output.line(
    retried + dropped + left === 0
      ? `Queue ${queue} has no dead letters.`
      : `${count(retried)} new runs were started, ${count(dropped)} letters only dropped, ${count(left)} left alone.`,
  );
}

async function redriveJobs(db: Database, output: Output, queue: string, options: Options): Promise<void> {
  const boss = new PgBoss({ ...bossOptions(db), supervise: false });
  boss.on('error', () => {});
  await boss.start();
  try {
    const letters = `${queue}-failed`;
    const preview = await boss.previewRedrive(letters);
    const moved = options.yes ? await boss.redrive(letters, { limit: options.limit }) : null;
    if (moved !== null && moved > 0) {
      await asOperator(db, (tx) =>
        tx.query(`select agentd.audit('redrive', 'queue', $1, null, $2)`, [queue, JSON.stringify({ moved })]),
      );
    }
    if (output.json) return output.data({ queue, done: moved !== null, ...preview, moved });
    if (moved !== null) return output.line(`${count(moved)} jobs are back in their queue.`);
    if (preview.total === 0) return output.line(`Queue ${queue} has no dead letters.`);
    output.line(
      `${count(preview.total)} dead letters of ${queue}; ${count(preview.unroutable)} of them have no queue to go back to.`,
    );
    output.line(`Nothing was changed. To do it: agentd queues redrive ${queue} --yes`);
  } finally {
    await boss.stop({ graceful: false });
  }
}
