import type { Command } from 'commander';
import { systemClock } from '../clock.ts';
import { type Database, WORKER_LIMITS } from '../db/database.ts';
import { maintenanceTasks, registerTasks, type TaskState, takeTask } from '../db/maintenance.ts';
import { ClocksApart, requireOneTime } from '../db/maintenance-clock.ts';
import { workOn } from '../db/maintenance-run.ts';
import { databaseTasks, type MaintenanceTask, type Preview } from '../db/maintenance-tasks.ts';
import { loadRetention } from '../db/retention-rules.ts';
import { storedObjectTask } from '../db/stored-objects.ts';
import type { PastFailures } from '../providers/failing-buckets.ts';
import { ObjectRemover } from '../providers/object-remover.ts';
import { openStorage } from '../providers/object-storage.ts';
import type { CommandContext } from './context.ts';
import { CommandError, UsageError } from './errors.ts';
import { count, cut, orDash, time } from './format.ts';
import { operatorName } from './operator.ts';
import type { Output } from './output.ts';

type Json = { readonly json?: boolean };

const LEASE_MS = 120_000;
const HELD = {
  held: 'somebody holds what hangs on it',
  too_slow: 'what hangs on it is too much for one statement',
} as const;

/** `agentd maintenance list|run`. */
export function register(program: Command, context: CommandContext): void {
  const maintenance = program
    .command('maintenance')
    .description('what daemons tidy by themselves: look at it, try it out, do it now');

  maintenance
    .command('list')
    .description('every task: how long it keeps what, its last pass, when the next one is')
    .action(async (_: unknown, command: Command) => {
      const output = context.output(command.optsWithGlobals<Json>());
      const tasks = allTasks(context);
      const states = await context.withDatabase((db) => maintenanceTasks(db));
      const byName = new Map(states.map((state) => [state.name, state]));
      const rows = tasks.map((task) => ({ task, state: byName.get(task.name) ?? null }));
      if (output.json) {
        return output.data(rows.map(({ task, state }) => ({ ...describe(task), ...stateOf(state) })));
      }
      output.table(
        rows,
        [
          { title: 'TASK', value: ({ task }) => task.name },
          { title: 'KEEPS', value: ({ task }) => task.keeps },
          {
            title: 'LAST PASS',
            value: ({ state }) => (state?.last_started_at ? time(state.last_started_at) : '-'),
          },
          {
            title: 'ROWS',
            value: ({ state }) => (state?.last_rows == null ? '-' : count(state.last_rows)),
            align: 'right',
          },
          { title: 'NEXT', value: ({ state }) => nextOf(state) },
          {
            title: 'PROBLEM',
            value: ({ state }) => cut(orDash(state?.last_error ?? null), 48),
            style: ({ state }) => (state !== null && state.failures > 0 ? 'red' : null),
          },
        ],
        '',
      );
    });

  maintenance
    .command('run')
    .description('do a task now, to its end')
    .argument('<name>', 'name of the task, as agentd maintenance list shows it, or all')
    .option('--dry-run', 'count what would go and change nothing')
    .addHelpText(
      'after',
      '\nWhat is kept for how long is in config/retention.json and, for single workspaces, in agentd.retention_overrides.\n' +
        'It may be stopped at any time: a daemon goes on where it ended.',
    )
    .action(async (name: string, options: { dryRun?: boolean }, command: Command) => {
      const output = context.output(command.optsWithGlobals<Json>());
      const tasks = chosen(name, allTasks(context));
      if (options.dryRun === true) return context.withDatabase((db) => preview(db, output, tasks));
      await context.withDatabase(
        async (db) => {
          await requireOneTime(db, systemClock.now).catch(clocksApart);
          await run(db, output, tasks, (text) => context.note(text));
        },
        { limits: WORKER_LIMITS },
      );
    });
}

function allTasks(context: CommandContext): MaintenanceTask[] {
  const retention = loadRetention();
  const { storageUrl, storageKeys } = context.config();
  return [
    ...databaseTasks(retention),
    storedObjectTask(
      retention.storedObjectsGraceDays,
      (past) => new ObjectRemover(openStorage(storageUrl, storageKeys), past as PastFailures | null),
    ),
  ];
}

function chosen(name: string, all: MaintenanceTask[]): MaintenanceTask[] {
  if (name === 'all') return all;
  const task = all.find((each) => each.name === name);
  if (task === undefined) {
    throw new UsageError(
      `There is no task ${name}.`,
      `The tasks are: ${all.map((each) => each.name).join(', ')}, and all.`,
    );
  }
  return [task];
}

/** Says it as a command does. Throws anything else as it is. */
function clocksApart(error: unknown): never {
  if (!(error instanceof ClocksApart)) throw error;
  throw new CommandError(
    'The clocks of the database and of this machine are days apart, so nothing is removed.',
    'Set the one that is wrong: rows would be taken for older, or younger, than they are.',
  );
}

async function preview(db: Database, output: Output, tasks: readonly MaintenanceTask[]): Promise<void> {
  const found: { task: MaintenanceTask; preview: Preview }[] = [];
  for (const task of tasks) found.push({ task, preview: await task.preview(db) });
  if (output.json) {
    return output.data(
      found.map(({ task, preview: { rows, isMore, oldest, bytes } }) => ({
        ...describe(task),
        rows,
        is_more: isMore,
        oldest,
        bytes,
      })),
    );
  }
  output.table(
    found,
    [
      { title: 'TASK', value: ({ task }) => task.name },
      { title: 'KEEPS', value: ({ task }) => task.keeps },
      {
        title: 'WOULD GO',
        value: ({ preview: { rows, isMore } }) => `${isMore ? 'over ' : ''}${count(rows)}`,
        align: 'right',
      },
      { title: 'OLDEST', value: ({ preview: { oldest } }) => (oldest === null ? '-' : time(oldest)) },
      { title: 'WHAT', value: ({ task }) => task.does },
    ],
    '',
  );
  output.line('\nNothing was changed. To do it, run it without --dry-run.');
}

async function run(
  db: Database,
  output: Output,
  tasks: readonly MaintenanceTask[],
  note: (text: string) => void,
): Promise<void> {
  await registerTasks(
    db,
    tasks.map((task) => task.name),
  );
  const passes: { name: string; outcome: string; rows: number; held: number; bytes: number | null }[] = [];
  for (const task of tasks) {
    const taken = await takeTask(db, {
      names: [task.name],
      worker: operatorName(),
      leaseMs: LEASE_MS,
      isForced: true,
    });
    if (taken === null) {
      passes.push({ name: task.name, outcome: 'busy', rows: 0, held: 0, bytes: null });
      continue;
    }
    let told = 0;
    let rows = 0;
    const { row, error } = await workOn(
      {
        db,
        clock: systemClock,
        leaseMs: LEASE_MS,
        onBatch(name, changed) {
          rows += changed;
          // a line for each hundred thousand
          if (Math.floor(rows / 100_000) > told) note(`${name}: ${count(rows)} so far`);
          told = Math.floor(rows / 100_000);
        },
        onHeld({ task: name, key, reason }) {
          note(`${name}: ${key} stays until a later pass: ${HELD[reason]}`);
        },
      },
      task,
      taken,
      { sliceMs: Number.POSITIVE_INFINITY, signal: new AbortController().signal },
    );
    if (error instanceof ClocksApart) clocksApart(error);
    passes.push(
      row === null
        ? { name: task.name, outcome: 'lost', rows, held: 0, bytes: null }
        : { name: row.name, outcome: row.outcome, rows: row.rows, held: row.held, bytes: row.bytes },
    );
  }
  if (output.json) output.data(passes);
  else {
    output.table(
      passes,
      [
        { title: 'TASK', value: (row) => row.name },
        { title: 'OUTCOME', value: (row) => row.outcome },
        { title: 'DONE', value: (row) => count(row.rows), align: 'right' },
        { title: 'HELD', value: (row) => count(row.held), align: 'right' },
      ],
      '',
    );
  }
  const wrong = passes.filter((pass) => pass.outcome !== 'completed');
  if (wrong.length > 0) {
    throw new CommandError(
      `Not done: ${wrong.map((pass) => `${pass.name} (${pass.outcome})`).join(', ')}.`,
      'busy and lost: another process is at it. failed: agentd maintenance list says why.',
    );
  }
}

const describe = (task: MaintenanceTask): object => ({ name: task.name, does: task.does, keeps: task.keeps });

function stateOf(state: TaskState | null): object {
  return {
    due_at: state?.due_at ?? null,
    worker_id: state?.worker_id ?? null,
    failures: state?.failures ?? 0,
    succeeded_at: state?.succeeded_at ?? null,
    last_error: state?.last_error ?? null,
    last_rows: state?.last_rows ?? null,
    last_started_at: state?.last_started_at ?? null,
    last_outcome: state?.last_outcome ?? null,
  };
}

function nextOf(state: TaskState | null): string {
  if (state === null) return 'once a daemon has started';
  if (state.worker_id !== null) return 'now';
  return state.late_seconds > 0 ? `due since ${time(state.due_at)}` : time(state.due_at);
}
