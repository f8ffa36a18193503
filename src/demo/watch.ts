/** A run as a person watches it: the journal read again and again, and every change told once. */
import { sleep, systemClock } from '../clock.ts';
import { cost, count, duration } from '../commands/format.ts';
import { oneLine } from '../commands/output.ts';
import { shortArguments } from '../commands/run-timeline.ts';
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

/** One thing that happened, at a database time. */
export type Event = {
  /** Told once. */
  readonly key: string;
  readonly at: Date;
  /** Steps and the run itself stand at the margin, what happens in a step is indented. */
  readonly depth: 0 | 1;
  readonly text: string;
  readonly status: string | null;
};

export type Journal = {
  readonly run: RunRow & { readonly output: unknown };
  readonly steps: readonly StepRunRow[];
  readonly calls: readonly ModelCallRow[];
  readonly tools: readonly ToolCallRow[];
};

/** The newest run of a task with its journal; null before there is one. */
export async function readJournal(db: Queryable, taskId: string): Promise<Journal | null> {
  const [newest] = await listRuns(db, { taskId, limit: 1 });
  const run = newest ? await findRun(db, newest.id) : null;
  if (!run) return null;
  return {
    run,
    steps: await stepsOfRun(db, run.id),
    calls: await modelCallsOfRun(db, run.id),
    tools: await toolCallsOfRun(db, run.id),
  };
}

/** Whether a run has come to its end. */
export function hasEnded(run: RunRow): boolean {
  return ['completed', 'failed', 'cancelled', 'skipped'].includes(run.status);
}

/** Everything that the journal says has happened, in the order of time. */
export function eventsOf({ run, steps, calls, tools }: Journal): Event[] {
  const events: Event[] = [];
  const tell = (key: string, at: Date | null, depth: 0 | 1, text: string, status: string | null = null) => {
    if (at !== null) events.push({ key, at, depth, text: oneLine(text), status });
  };
  tell('queued', run.created_at, 0, `the task is due: run ${run.id.slice(0, 8)} is queued`);
  tell('claimed', run.started_at, 0, `picked up by worker ${run.worker_id ?? ''}`);
  for (const step of steps) {
    const of = `step ${step.step_order} of ${steps.length}`;
    // begun in the statement that claims the run, a moment before the claim has its time
    const began =
      step.started_at && run.started_at && step.started_at < run.started_at
        ? run.started_at
        : step.started_at;
    tell(`step ${step.step_order}`, began, 0, `${of}: ${step.step_name}`);
    if (step.finished_at)
      tell(`step ${step.step_order} end`, step.finished_at, 1, `step ${step.status}`, step.status);
  }
  for (const call of calls) {
    const key = `call ${call.step_order}.${call.turn}`;
    const model = call.model ?? 'the model';
    if (call.status === 'completed') {
      const wants = call.finish_reason === 'tool_calls' ? ', asks for tools' : '';
      tell(
        key,
        call.finished_at,
        1,
        `${model} answered in ${duration(call.latency_ms)}: ${count(call.prompt_tokens)} + ` +
          `${count(call.completion_tokens)} tokens, ${cost(call.cost_micros)}${wants}`,
      );
    } else if (call.error_code) {
      const what = `${model}: ${call.error_code}, ${call.error_message ?? ''}`;
      tell(`${key} ${call.attempt} ${call.status}`, call.finished_at ?? call.created_at, 1, what, 'failed');
    }
  }
  for (const tool of tools) {
    if (tool.status === 'started' || tool.status === 'waiting') continue;
    const outcome = tool.error_message ?? `done in ${duration(tool.duration_ms)}`;
    tell(
      `tool ${tool.step_order}.${tool.turn}.${tool.call_index}`,
      tool.finished_at,
      1,
      `tool ${tool.tool_name} ${shortArguments(tool.arguments, 56)}: ${outcome}`,
      tool.status === 'completed' ? null : tool.status,
    );
  }
  if (hasEnded(run)) {
    const used = `${count(run.prompt_tokens + run.completion_tokens)} tokens, ${cost(run.cost_micros)}`;
    const took =
      run.started_at && run.finished_at ? run.finished_at.getTime() - run.started_at.getTime() : null;
    const why = run.reason ? `: ${run.reason_code}, ${run.reason}` : '';
    tell('end', run.finished_at, 0, `run ${run.status} in ${duration(took)}, ${used}${why}`, run.status);
  }
  // the end comes last, whatever else has its instant
  return events.sort((a, b) => a.at.getTime() - b.at.getTime() || rank(a) - rank(b));
}

/** Events of one transaction have one time: what was given comes before what was made of it. */
function rank({ key }: Event): number {
  if (key === 'end') return 5;
  if (key.endsWith(' end')) return 3;
  if (key.startsWith('call')) return 1;
  if (key.startsWith('tool')) return 2;
  return key.startsWith('step') ? 4 : 0;
}

/** Resolves when the run is in its workspace's usage, or after `patienceMs`: sums follow their events within a second or two. */
export async function untilSummed(
  db: Queryable,
  runId: string,
  patienceMs: number,
  signal: AbortSignal,
): Promise<void> {
  const deadline = performance.now() + patienceMs;
  while (performance.now() < deadline) {
    const [row] = await db.query<{ isSummed: boolean }>(
      `select exists (select from public.workspace_usage u join public.task_runs r on r.workspace_id = u.workspace_id
                       where r.id = $1 and u.task_runs > 0) as "isSummed"`,
      [runId],
    );
    if (row?.isSummed) return;
    await sleep(systemClock, 100, signal);
  }
}
