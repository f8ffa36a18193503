import { type Command, Option } from 'commander';
import type { Queryable } from '../db/database.ts';
import {
  findRun,
  listRuns,
  type ModelCallRow,
  modelCallsOfRun,
  type RunRow,
  type StepRunRow,
  stepsOfRun,
  type ToolCallRow,
  toolCallsOfRun,
} from '../db/run-reports.ts';
import { type CommandContext, resolveId } from './context.ts';
import { cost, count, cut, duration, orDash, shortId, statusStyle, time } from './format.ts';
import { wholeNumber } from './options.ts';
import { type Output, oneLine } from './output.ts';
import { registerDecisions } from './run-decisions.ts';
import { contextSummary, drawMoments, momentsOfStep } from './run-timeline.ts';

type Json = { readonly json?: boolean };
type ListOptions = { workspace?: string; task?: string; status?: string; limit: number };
const STATUSES = ['queued', 'running', 'waiting', 'completed', 'failed', 'cancelled', 'skipped'];

/** `agentd runs list|show|cancel|retry|approve|deny`. */
export function register(program: Command, context: CommandContext): void {
  const runs = program
    .command('runs')
    .description('list runs, look into one, cancel or retry one, allow or deny what it waits for');

  runs
    .command('list')
    .description('list the newest runs')
    .option('--workspace <id>', 'only this workspace')
    .option('--task <id>', 'only this task')
    .addOption(new Option('--status <status>', 'only runs in this status').choices(STATUSES))
    .option('--limit <count>', 'how many at most', wholeNumber(1, 1000), 20)
    .action(async (options: ListOptions, command: Command) => {
      const output = context.output(command.optsWithGlobals<Json>());
      const rows = await context.withDatabase(async (db) =>
        listRuns(db, {
          limit: options.limit,
          ...(options.workspace ? { workspaceId: await resolveId(db, 'workspace', options.workspace) } : {}),
          ...(options.task ? { taskId: await resolveId(db, 'task', options.task) } : {}),
          ...(options.status ? { status: options.status } : {}),
        }),
      );
      if (output.json) return output.data({ runs: rows });
      printList(output, rows);
    });

  runs
    .command('show')
    .description('draw one run as a timeline of its steps, calls, waits, tokens and cost')
    .argument('<run>', 'id of the run, or its first six digits or more')
    .addHelpText(
      'after',
      '\nExamples:\n  agentd runs show 3f2a91c0\n  agentd runs show 3f2a91c0 --json | jq .steps',
    )
    .action(async (text: string, _: unknown, command: Command) => {
      const output = context.output(command.optsWithGlobals<Json>());
      const journal = await context.withDatabase(async (db) =>
        readJournal(db, await resolveId(db, 'run', text)),
      );
      if (output.json) return output.data(journalAsJson(journal));
      printJournal(output, journal);
    });

  registerDecisions(runs, context);
}

function printList(output: Output, rows: readonly RunRow[]): void {
  output.table(
    rows,
    [
      { title: 'RUN', value: (row) => shortId(row.id) },
      { title: 'STATUS', value: (row) => row.status, style: (row) => statusStyle(row.status) },
      { title: 'TASK', value: (row) => cut(orDash(row.task_name), 32) },
      { title: 'WORKSPACE', value: (row) => cut(orDash(row.workspace_name), 20) },
      { title: 'TRIGGER', value: (row) => row.trigger },
      { title: 'CREATED', value: (row) => time(row.created_at) },
      { title: 'TOOK', value: (row) => duration(tookOf(row, null)), align: 'right' },
      { title: 'TOKENS', value: (row) => count(row.prompt_tokens + row.completion_tokens), align: 'right' },
      { title: 'COST', value: (row) => cost(row.cost_micros), align: 'right' },
      { title: 'REASON', value: (row) => orDash(row.reason_code) },
    ],
    'There are no such runs.',
  );
}

type Journal = {
  readonly run: NonNullable<Awaited<ReturnType<typeof findRun>>>;
  readonly steps: readonly StepRunRow[];
  readonly calls: readonly ModelCallRow[];
  readonly tools: readonly ToolCallRow[];
  /** The database's time when the journal was read: until then open work has lasted. */
  readonly readAt: Date;
};

/** One snapshot: a running run must not show a call whose run has not counted it yet. */
function readJournal(db: Queryable & { transaction: Transaction }, id: string): Promise<Journal> {
  return db.transaction(async (tx) => {
    const [clock] = await tx.query<{ now: Date }>('select agentd.now() as now');
    const run = await findRun(tx, id);
    if (!run || !clock) throw new Error(`The run ${id} was deleted just now.`);
    return {
      run,
      steps: await stepsOfRun(tx, id),
      calls: await modelCallsOfRun(tx, id),
      tools: await toolCallsOfRun(tx, id),
      readAt: clock.now,
    };
  }, 'repeatable read');
}

type Transaction = <T>(work: (tx: Queryable) => Promise<T>, isolation?: 'repeatable read') => Promise<T>;

function journalAsJson({ run, steps, calls, tools }: Journal): unknown {
  return {
    run,
    steps: steps.map((step) => ({
      ...step,
      model_calls: calls.filter((call) => call.step_order === step.step_order),
      tool_calls: tools.filter((tool) => tool.step_order === step.step_order),
    })),
  };
}

/** Milliseconds from the start to the end, or to `until` while the run lasts; null before the start. */
function tookOf(run: RunRow, until: Date | null): number | null {
  const end = run.finished_at ?? until;
  return run.started_at === null || end === null ? null : end.getTime() - run.started_at.getTime();
}

function printJournal(output: Output, journal: Journal): void {
  const { run, steps, calls, tools, readAt } = journal;
  printHeader(output, run, readAt);
  const firstAt = calls[0]?.created_at ?? tools[0]?.created_at ?? run.created_at;
  const start = run.started_at ?? firstAt;
  const end = run.finished_at ?? readAt;
  const whole = end.getTime() - start.getTime();
  for (const step of steps) {
    const moments = momentsOfStep(step, calls, tools, { start, end });
    const took =
      step.duration_ms ??
      (step.started_at ? (step.finished_at ?? end).getTime() - step.started_at.getTime() : null);
    output.line();
    output.line(
      [
        output.paint('bold', `Step ${step.step_order}  ${oneLine(step.step_name)}`),
        output.paint(statusStyle(step.status), step.status),
        ...(took === null ? [] : [duration(took)]),
        ...(step.attempt > 1 ? [`attempt ${step.attempt}`] : []),
      ].join('  '),
    );
    const context = contextSummary(step.context);
    if (context !== null) output.line(`  context: ${context}`);
    if (step.reason_code !== null || step.error_message !== null) {
      const reason = [step.reason_code, step.error_message].filter((part) => part !== null).join(': ');
      output.line(`  ${output.paint('red', oneLine(reason))}`);
    }
    for (const line of drawMoments(moments, whole, output.paint)) output.line(line);
  }
  if (run.status === 'waiting') {
    const call = tools.some((tool) => tool.status === 'waiting');
    output.line(
      call
        ? `\nThe run waits for a decision: agentd runs approve ${shortId(run.id)}, or agentd runs deny ${shortId(run.id)} --reason TEXT.`
        : `\nThe run waits${run.wake_at ? ` until ${time(run.wake_at)}` : ' until what its reason names has changed'}.`,
    );
  }
}

function printHeader(output: Output, run: RunRow, readAt: Date): void {
  const named = (name: string | null, id: string | null): string =>
    id === null
      ? orDash(name)
      : `${orDash(name === null ? null : oneLine(name))}  ${output.paint('dim', id)}`;
  const reason = [run.reason_code, run.reason].filter((part) => part !== null).join(': ');
  output.line(
    `${output.paint('bold', `Run ${run.id}`)}  ${output.paint(statusStyle(run.status), run.status)}` +
      (reason === '' ? '' : `  ${oneLine(reason)}`),
  );
  const waited = (run.started_at ?? run.finished_at ?? readAt).getTime() - run.created_at.getTime();
  const lines: [string, string][] = [
    ['task', named(run.task_name, run.task_id)],
    ['agent', named(run.agent_name, run.agent_id)],
    ['workspace', named(run.workspace_name, run.workspace_id)],
    ['trigger', run.scheduled_for ? `${run.trigger}, for ${time(run.scheduled_for)}` : run.trigger],
    ...(run.retry_of_run_id ? [['retries', run.retry_of_run_id] as [string, string]] : []),
    ['created', `${time(run.created_at)}, waited ${duration(waited)}`],
    ['started', time(run.started_at)],
    ['finished', `${time(run.finished_at)}, took ${duration(tookOf(run, readAt))}`],
    [
      'used',
      `${count(run.turns)} turns, ${count(run.tool_calls)} tool calls, ` +
        `${count(run.prompt_tokens)} + ${count(run.completion_tokens)} tokens, ${cost(run.cost_micros)}`,
    ],
  ];
  for (const [name, value] of lines) output.line(`  ${name.padEnd(9)}  ${value}`);
}
