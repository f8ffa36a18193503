import { setTimeout as pause } from 'node:timers/promises';
import type { Command } from 'commander';
import type { Queryable } from '../db/database.ts';
import {
  heldWork,
  lateTasks,
  queueHealth,
  recentFailures,
  stuckWork,
  workerHealth,
  workspaceActivity,
} from '../db/operations.ts';
import type { CommandContext } from './context.ts';
import { explain, UsageError } from './errors.ts';
import { cost, count, cut, orDash, seconds, shortId, statusStyle, time } from './format.ts';
import { headline, nextStepOf, problemOf } from './held-work.ts';
import type { Output } from './output.ts';
import { printQueues } from './queue-table.ts';

const REDRAW_MS = 2_000;
const WORKSPACES = 20;
const PROBLEMS = 10;

/** `agentd status [--watch]`. */
export function register(program: Command, context: CommandContext): void {
  program
    .command('status')
    .description('queues, workers, runs by workspace, and what is late, stuck or failed')
    .option('--watch', 'draw it anew every two seconds until Ctrl-C (with --json: one line each time)')
    .action(async (options: { watch?: boolean }, command: Command) => {
      const output = context.output(command.optsWithGlobals<{ json?: boolean }>());
      if (options.watch !== true) {
        const now = await context.withDatabase(readStatus);
        return output.json ? output.data(now) : print(output, now);
      }
      if (!output.terminal && !output.json) {
        throw new UsageError('--watch draws on a terminal.', 'Add --json to get one line every two seconds.');
      }
      await watch(context, output);
    });
}

type Status = Awaited<ReturnType<typeof readStatus>>;

async function readStatus(db: Queryable) {
  return {
    queues: await queueHealth(db),
    workers: await workerHealth(db),
    workspaces: await workspaceActivity(db, WORKSPACES),
    late_tasks: await lateTasks(db, PROBLEMS),
    stuck_work: await stuckWork(db, PROBLEMS),
    held_work: await heldWork(db, PROBLEMS),
    recent_failures: await recentFailures(db, PROBLEMS),
  };
}

/** A database that goes away is shown and waited for: whoever watches, watches for that. */
async function watch(context: CommandContext, output: Output): Promise<void> {
  const stop = new AbortController();
  const interrupt = (): void => stop.abort();
  process.once('SIGINT', interrupt);
  process.once('SIGTERM', interrupt);
  try {
    await context.withDatabase(async (db) => {
      while (!stop.signal.aborted) {
        try {
          const now = await readStatus(db);
          if (output.json) output.data({ at: new Date(), ...now }, true);
          else {
            output.clear();
            print(output, now);
            output.line(output.paint('dim', `\n${time(new Date())}, every two seconds; Ctrl-C ends it`));
          }
        } catch (error) {
          context.note(`The database does not answer: ${explain(error).message}`);
        }
        await pause(REDRAW_MS, undefined, { signal: stop.signal }).catch(() => {});
      }
    });
  } finally {
    process.off('SIGINT', interrupt);
    process.off('SIGTERM', interrupt);
  }
}

function print(output: Output, status: Status): void {
  const title = (text: string): void => output.line(output.paint('bold', text));
  title('Queues');
  printQueues(output, status.queues);
  title('\nWorkers');
  output.table(
    status.workers,
    [
      { title: 'WORKER', value: (row) => cut(row.id, 40) },
      { title: 'HOST', value: (row) => `${row.hostname}:${row.pid}` },
      { title: 'VERSION', value: (row) => row.version },
      { title: 'STATE', value: workerState, style: (row) => (row.alive ? statusStyle(row.state) : 'dim') },
      { title: 'BUSY', value: (row) => count(row.running), align: 'right' },
      { title: 'SEEN', value: (row) => `${seconds(row.silent_seconds)} ago`, align: 'right' },
    ],
    'No worker was seen in the last day. Run: agentd start',
  );
  title(`\nWorkspaces with work (at most ${WORKSPACES})`);
  output.table(
    status.workspaces,
    [
      { title: 'WORKSPACE', value: (row) => cut(row.name, 28) },
      { title: 'ID', value: (row) => shortId(row.workspace_id) },
      { title: 'QUEUED', value: (row) => count(row.queued), align: 'right' },
      { title: 'WAITING ROOM', value: (row) => count(row.waiting_room), align: 'right' },
      { title: 'RUNNING', value: (row) => count(row.running), align: 'right' },
      { title: 'WAITING', value: (row) => count(row.waiting), align: 'right' },
      { title: 'DONE 1H', value: (row) => count(row.completed_last_hour), align: 'right' },
      { title: 'FAILED 1H', value: (row) => count(row.failed_last_hour), align: 'right' },
      { title: 'TOKENS 1H', value: (row) => count(row.tokens_last_hour), align: 'right' },
      { title: 'COST 1H', value: (row) => cost(row.cost_micros_last_hour), align: 'right' },
    ],
    'No workspace has work now or had any in the last hour.',
  );
  title('\nLate tasks');
  output.table(
    status.late_tasks,
    [
      { title: 'TASK', value: (row) => shortId(row.task_id) },
      { title: 'NAME', value: (row) => cut(row.name, 36) },
      { title: 'DUE', value: (row) => time(row.next_run_at) },
      { title: 'LATE BY', value: (row) => seconds(row.late_seconds), align: 'right', style: () => 'yellow' },
    ],
    'None.',
  );
  title('\nStuck work');
  if (status.stuck_work.length > 0 || status.held_work.length === 0) printStuck(output, status.stuck_work);
  for (const held of status.held_work) {
    output.line(`${headline(held)}: ${output.paint('red', problemOf(held))}`);
    output.line(`  → ${nextStepOf(held)}`);
  }
  title('\nFailed in the last day');
  output.table(
    status.recent_failures,
    [
      { title: 'RUN', value: (row) => shortId(row.run_id) },
      { title: 'TASK', value: (row) => cut(orDash(row.task_name), 32) },
      { title: 'AT', value: (row) => time(row.finished_at) },
      { title: 'CODE', value: (row) => orDash(row.reason_code), style: () => 'red' },
      { title: 'REASON', value: (row) => cut(orDash(row.reason), 60) },
    ],
    'None.',
  );
}

function printStuck(output: Output, rows: Status['stuck_work']): void {
  output.table(
    rows,
    [
      { title: 'WHAT', value: (row) => `${row.kind} ${shortId(row.id)}` },
      { title: 'PROBLEM', value: (row) => row.problem, style: () => 'red' },
      { title: 'SINCE', value: (row) => time(row.since) },
    ],
    'None.',
  );
}

function workerState(row: { readonly alive: boolean; readonly state: string }): string {
  return row.alive || row.state === 'stopped' ? row.state : 'silent';
}
