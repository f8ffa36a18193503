import { type Command, Option } from 'commander';
import { findTask, listTasks, runTask, type TaskRow } from '../db/task-reports.ts';
import { describe, preview, renderPreview, ScheduleError } from '../schedule/index.ts';
import { type CommandContext, resolveId } from './context.ts';
import { CommandError, UsageError } from './errors.ts';
import { count, cut, orDash, shortId, statusStyle, time } from './format.ts';
import { jsonObject, wholeNumber } from './options.ts';

type Json = { readonly json?: boolean };
const STATUSES = ['active', 'paused', 'completed', 'failed', 'cancelled'];

/** `agentd tasks list|preview|run`. */
export function register(program: Command, context: CommandContext): void {
  const tasks = program.command('tasks').description('list tasks, check their schedules, start them');

  tasks
    .command('list')
    .description('list tasks, the next to run first')
    .option('--workspace <id>', 'only this workspace')
    .addOption(new Option('--status <status>', 'only tasks in this status').choices(STATUSES))
    .option('--limit <count>', 'how many at most', wholeNumber(1, 1000), 50)
    .action(async (options: { workspace?: string; status?: string; limit: number }, command: Command) => {
      const output = context.output(command.optsWithGlobals<Json>());
      const rows = await context.withDatabase(async (db) =>
        listTasks(db, {
          limit: options.limit,
          ...(options.workspace ? { workspaceId: await resolveId(db, 'workspace', options.workspace) } : {}),
          ...(options.status ? { status: options.status } : {}),
        }),
      );
      if (output.json) return output.data({ tasks: rows });
      output.table(
        rows,
        [
          { title: 'TASK', value: (row) => shortId(row.id) },
          { title: 'NAME', value: (row) => cut(row.name, 36) },
          { title: 'WORKSPACE', value: (row) => cut(orDash(row.workspace_name), 20) },
          { title: 'STATUS', value: statusText, style: (row) => statusStyle(row.status) },
          { title: 'SCHEDULE', value: scheduleText },
          { title: 'NEXT', value: (row) => time(row.next_run_at) },
          { title: 'LAST', value: (row) => time(row.last_run_at) },
          { title: 'RUNS', value: (row) => count(row.total_executions), align: 'right' },
        ],
        'There are no such tasks.',
      );
    });

  tasks
    .command('preview')
    .description('show when a schedule fires next, and what changes of the clocks do to it')
    .argument('<schedule>', 'a cron expression in quotes, or the id of a task')
    .option('--zone <zone>', 'IANA time zone of the expression (a task has its own)')
    .option('--count <count>', 'how many occurrences', wholeNumber(1, 1000), 10)
    .addHelpText(
      'after',
      '\nExamples:\n  agentd tasks preview "30 2 * * *" --zone America/New_York\n  agentd tasks preview 3f2a91c0',
    )
    .action(async (source: string, options: { zone?: string; count: number }, command: Command) => {
      const output = context.output(command.optsWithGlobals<Json>());
      const task = isExpression(source) ? null : await taskToPreview(context, source, options.zone);
      const expression = task?.cron_expression ?? source;
      const zone = task?.timezone ?? options.zone ?? 'UTC';
      let lines: ReturnType<typeof preview>;
      let words: string;
      try {
        lines = preview(expression, zone, new Date(), options.count);
        words = describe(expression);
      } catch (error) {
        if (error instanceof ScheduleError) throw new UsageError(error.message, error.hint);
        throw error;
      }
      if (output.json) return output.data({ expression, zone, description: words, task, occurrences: lines });
      if (task) output.line(`${output.paint('bold', task.name)}  ${output.paint('dim', task.id)}`);
      output.line(`${expression}  (${words}) in ${zone}\n`);
      output.line(renderPreview(lines).trimEnd());
      const notes = task ? limitsOf(task) : [];
      if (notes.length > 0) output.line(`\n${notes.join('\n')}`);
    });

  tasks
    .command('run')
    .description('start a run of a task now, whatever its schedule says')
    .argument('<task>', 'id of the task, or its first digits')
    .option('--input <json>', 'what the run is given, a JSON object', jsonObject, {})
    .action(async (text: string, options: { input: Record<string, unknown> }, command: Command) => {
      const output = context.output(command.optsWithGlobals<Json>());
      const runId = await context.withDatabase(async (db) =>
        runTask(db, await resolveId(db, 'task', text), options.input),
      );
      if (output.json) return output.data({ run_id: runId });
      output.line(`Run ${runId} is queued. Follow it: agentd runs show ${shortId(runId)}`);
    });
}

/** An id has no blanks; of the expressions only nicknames such as @daily have none. */
function isExpression(source: string): boolean {
  return /\s/.test(source.trim()) || source.startsWith('@');
}

async function taskToPreview(
  context: CommandContext,
  text: string,
  zone: string | undefined,
): Promise<TaskRow> {
  if (zone !== undefined) {
    throw new UsageError(
      'A task has its own time zone.',
      'Leave --zone out, or give a cron expression in quotes.',
    );
  }
  const task = await context.withDatabase(async (db) => findTask(db, await resolveId(db, 'task', text)));
  if (task?.cron_expression) return task;
  throw new CommandError(
    `The task ${text} has no cron expression.`,
    'It runs on events or when somebody starts it: agentd tasks run.',
  );
}

/** What the bare schedule does not show: limits of the task that end or hold it. */
function limitsOf(task: TaskRow): string[] {
  const notes: string[] = [];
  if (task.status !== 'active')
    notes.push(`The task is ${task.status}${task.reason ? `: ${task.reason}` : ''}. It does not run.`);
  if (task.start_date) notes.push(`Not before ${task.start_date}.`);
  if (task.end_date) notes.push(`Not after ${task.end_date}.`);
  if (task.max_executions !== null) {
    notes.push(`At most ${count(task.max_executions)} times; ${count(task.total_executions)} are done.`);
  }
  return notes;
}

function statusText(row: TaskRow): string {
  return row.reason_code === null ? row.status : `${row.status}: ${row.reason_code}`;
}

function scheduleText(row: TaskRow): string {
  if (row.cron_expression === null) return row.task_type === 'event_based' ? 'on events' : '–';
  return cut(`${row.cron_expression} ${row.timezone}`, 36);
}
