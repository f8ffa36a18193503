import type { Command } from 'commander';
import type { Database } from '../db/database.ts';
import { type QueueHealth, queueHealth } from '../db/operations.ts';
import { listPauses, type Pause, pauseQueue, queueNames, resumeQueue } from '../db/queue-controls.ts';
import { type CommandContext, resolveId } from './context.ts';
import { UsageError } from './errors.ts';
import { cut, orDash, shortId, time } from './format.ts';
import { asOperator, operatorName } from './operator.ts';
import { wholeNumber } from './options.ts';
import { type Output, oneLine } from './output.ts';
import { printQueues } from './queue-table.ts';
import { redrive } from './queues-redrive.ts';

type Json = { readonly json?: boolean };
type Target = { readonly queue: string; readonly workspaceId: string | null };
/** Runs have a waiting room by workspace; in other queues a workspace cannot be told apart. */
const WITH_WORKSPACES = 'task-run';
const PAUSES = 100;
const LONGEST_REASON = 500;

/** `agentd queues list|pause|resume|redrive`. */
export function register(program: Command, context: CommandContext): void {
  const queues = program
    .command('queues')
    .description('look at queues, pause them, let them go on, try dead letters again');

  queues
    .command('list')
    .description('list the queues: how much waits, runs and failed for good, and what is paused')
    .action(async (_: unknown, command: Command) => {
      const output = context.output(command.optsWithGlobals<Json>());
      const [health, pauses] = await context.withDatabase(async (db) => [
        await queueHealth(db),
        await listPauses(db, PAUSES),
      ]);
      if (output.json) return output.data({ queues: health, pauses });
      printList(output, health, pauses);
    });

  queues
    .command('pause')
    .description('let nothing new of a queue begin; what runs goes on')
    .argument('<queue>', 'name of the queue, such as task-run')
    .option('--workspace <id>', 'only runs of this workspace')
    .option('--reason <text>', 'why, for whoever finds the queue paused')
    .addHelpText(
      'after',
      '\nExamples:\n  agentd queues pause task-run --reason "provider is down"\n  agentd queues pause task-run --workspace 3f2a91c0',
    )
    .action(async (queue: string, options: { workspace?: string; reason?: string }, command: Command) => {
      const output = context.output(command.optsWithGlobals<Json>());
      const reason = options.reason ?? null;
      if (reason !== null && reason.length > LONGEST_REASON) {
        throw new UsageError(`The reason is longer than ${LONGEST_REASON} characters.`, 'Shorten it.');
      }
      const outcome = await context.withDatabase(async (db) => {
        const target = await resolveTarget(db, queue, options.workspace);
        const changed = await asOperator(db, (tx) => pauseQueue(tx, target, operatorName(), reason));
        const pauses = await listPauses(db, Number.MAX_SAFE_INTEGER);
        return { ...target, changed, pause: pauses.find((pause) => isOf(pause, target)) ?? null };
      });
      if (output.json) return output.data({ ...jsonOf(outcome), paused: true, ...pausedBy(outcome.pause) });
      output.line(
        outcome.changed
          ? `${nameOf(outcome)} is paused. What runs goes on; nothing new begins.`
          : `${nameOf(outcome)} was paused already${byWhom(outcome.pause)}. Nothing was changed.`,
      );
    });

  queues
    .command('resume')
    .description('let a paused queue, or a paused workspace in it, go on')
    .argument('<queue>', 'name of the queue')
    .option('--workspace <id>', 'only the pause of this workspace')
    .action(async (queue: string, options: { workspace?: string }, command: Command) => {
      const output = context.output(command.optsWithGlobals<Json>());
      const outcome = await context.withDatabase(async (db) => {
        const target = await resolveTarget(db, queue, options.workspace);
        const changed = await asOperator(db, (tx) => resumeQueue(tx, target));
        const others = (await listPauses(db, PAUSES)).filter((pause) => pause.queue === queue);
        return { ...target, changed, others };
      });
      if (output.json) return output.data({ ...jsonOf(outcome), paused: false });
      output.line(
        outcome.changed
          ? `${nameOf(outcome)} goes on.`
          : `${nameOf(outcome)} was not paused. Nothing was changed.`,
      );
      if (outcome.others.length > 0) {
        output.line(
          `Still paused in ${queue}: ${outcome.others.map((pause) => nameOf(targetOf(pause))).join(', ')}. ` +
            `To let one go on: agentd queues resume ${queue} --workspace ID.`,
        );
      }
    });

  queues
    .command('redrive')
    .description('try again what failed for good: shows what would happen, and does it with --yes')
    .argument('<queue>', 'name of the queue whose dead letters it is about')
    .option('--yes', 'do it')
    .option(
      '--limit <count>',
      'how many dead letters at most, the oldest first',
      wholeNumber(1, 100_000),
      1000,
    )
    .addHelpText(
      'after',
      '\nA run that failed is not begun again: a new run of its task is started, with the same input.',
    )
    .action(async (queue: string, options: { yes?: boolean; limit: number }, command: Command) => {
      const output = context.output(command.optsWithGlobals<Json>());
      await context.withDatabase(async (db) => {
        await requireQueue(db, queue);
        await redrive(db, output, queue, { limit: options.limit, yes: options.yes === true });
      });
    });
}

async function requireQueue(db: Database, queue: string): Promise<void> {
  const names = await queueNames(db);
  if (names.includes(queue)) return;
  throw new UsageError(
    `There is no queue ${queue}.`,
    names.length > 0
      ? `The queues are: ${names.join(', ')}.`
      : 'Run agentd migrate up, which makes the queues.',
  );
}

async function resolveTarget(db: Database, queue: string, workspace: string | undefined): Promise<Target> {
  await requireQueue(db, queue);
  if (workspace === undefined) return { queue, workspaceId: null };
  if (queue !== WITH_WORKSPACES) {
    throw new UsageError(
      `Single workspaces can be paused in ${WITH_WORKSPACES} only.`,
      `Leave --workspace out to pause the whole queue ${queue}.`,
    );
  }
  return { queue, workspaceId: await resolveId(db, 'workspace', workspace) };
}

function printList(output: Output, health: readonly QueueHealth[], pauses: readonly Pause[]): void {
  const whole = (queue: string): Pause | undefined =>
    pauses.find((pause) => pause.queue === queue && pause.workspace_id === null);
  printQueues(output, health, (queue) => byWhom(whole(queue) ?? null));
  const single = pauses.filter((pause) => pause.workspace_id !== null);
  if (single.length === 0) return;
  output.line(`\nPaused workspaces${single.length >= PAUSES - 1 ? ', the first ones' : ''}:`);
  output.table(
    single,
    [
      { title: 'QUEUE', value: (row) => row.queue },
      { title: 'WORKSPACE', value: (row) => shortId(row.workspace_id) },
      { title: 'NAME', value: (row) => cut(orDash(row.workspace_name), 24) },
      { title: 'SINCE', value: (row) => time(row.paused_at) },
      { title: 'BY', value: (row) => cut(orDash(row.paused_by), 24) },
      { title: 'REASON', value: (row) => cut(orDash(row.reason), 48) },
    ],
    '',
  );
}

const isOf = (pause: Pause, target: Target): boolean =>
  pause.queue === target.queue && pause.workspace_id === target.workspaceId;

const targetOf = (pause: Pause): Target => ({ queue: pause.queue, workspaceId: pause.workspace_id });

function nameOf({ queue, workspaceId }: Target): string {
  return workspaceId === null ? `Queue ${queue}` : `Workspace ${workspaceId} in queue ${queue}`;
}

function byWhom(pause: Pause | null): string {
  if (pause === null) return '';
  const by = pause.paused_by === null ? '' : ` by ${oneLine(pause.paused_by)}`;
  const why = pause.reason === null ? '' : `: ${oneLine(cut(pause.reason, 60))}`;
  return `${by} since ${time(pause.paused_at)}${why}`;
}

function jsonOf({ queue, workspaceId, changed }: Target & { changed: boolean }): Record<string, unknown> {
  return { queue, workspace_id: workspaceId, changed };
}

function pausedBy(pause: Pause | null): Record<string, unknown> {
  return {
    paused_at: pause?.paused_at ?? null,
    paused_by: pause?.paused_by ?? null,
    reason: pause?.reason ?? null,
  };
}
