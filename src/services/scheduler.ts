/**
 * Starts scheduled tasks when they are due: exactly one run for every occurrence, on any number of nodes.
 *
 * A batch of due tasks is locked (others skip them), their runs are inserted and their next times advanced in
 * one transaction. What is due is decided by the database's clock; the next time is computed from the
 * scheduled instant and not from any clock.
 */
import type { Database } from '../db/database.ts';
import { isLockTimeout, isTransient } from '../db/retry.ts';
import {
  advanceTasks,
  type DueTask,
  lockDueTasks,
  nextDueInMs,
  type OccurrenceRow,
  pauseTask,
  type TaskAdvance,
} from '../db/tasks.ts';
import { type Plan, planTask, ScheduleError } from '../schedule/index.ts';
import { periodic, type Service, type ServiceDeps } from './periodic.ts';

const BATCH = 500;
/** A task that was edited without our hearing of it is found at the latest after this time. */
const LONGEST_SLEEP_MS = 30_000;
/** Embedded, no notification tells of a new or edited task. */
const LONGEST_SLEEP_EMBEDDED_MS = 250;

/** The transaction with an occurrence's run and its task's next time is about to be committed, or was. */
export type SchedulerSignal = 'schedule_written' | 'schedule_committed';

export type SchedulerDeps = ServiceDeps & {
  readonly db: Database;
  /** For tests. */
  readonly signal?: (at: SchedulerSignal) => void;
};

/** The scheduler as a service; wake it when a task is new or edited. */
export function scheduler(deps: SchedulerDeps): Service {
  const longest = deps.db.embedded ? LONGEST_SLEEP_EMBEDDED_MS : LONGEST_SLEEP_MS;
  return periodic('scheduler', deps, async () => {
    for (;;) {
      const found = await schedulePass(deps);
      if (found < BATCH) break;
    }
    const due = await nextDueInMs(deps.db);
    return due === null ? longest : Math.min(Math.max(due, 1), longest);
  });
}

/**
 * Advances due tasks, a batch in one transaction. Returns how many.
 *
 * A batch that the database refuses is gone through task by task: the one that can't be advanced is paused with
 * the reason, and holds up no other.
 */
export async function schedulePass(deps: SchedulerDeps): Promise<number> {
  try {
    return await advanceBatch(deps, BATCH);
  } catch (error) {
    if (isTransient(error)) throw error;
    deps.log.warn(
      { event: 'schedule_batch_failed', err: error },
      'a batch of tasks could not be advanced, going one by one',
    );
  }
  let found = 0;
  while (found < BATCH && (await advanceOne(deps))) found++;
  return found;
}

/** Advances the task that is due longest, or pauses it if that can't be done. False when none is due. */
async function advanceOne(deps: SchedulerDeps): Promise<boolean> {
  let current: DueTask | undefined;
  try {
    return (
      (await advanceBatch(deps, 1, (tasks) => {
        current = tasks[0];
      })) > 0
    );
  } catch (error) {
    if (isTransient(error) || isLockTimeout(error) || !current) throw error;
    const reason = cantBeScheduled(error);
    await pauseTask(deps.db, current.id, 'schedule_error', reason);
    deps.log.warn({ event: 'task_paused', task_id: current.id, reason_code: 'schedule_error' }, reason);
    return true;
  }
}

async function advanceBatch(
  deps: SchedulerDeps,
  limit: number,
  onLocked?: (tasks: DueTask[]) => void,
): Promise<number> {
  const outcome = await deps.db.transaction(async (tx) => {
    const tasks = await lockDueTasks(tx, limit);
    onLocked?.(tasks);
    if (tasks.length === 0) return null;
    const planned = tasks.map(plan);
    await advanceTasks(
      tx,
      planned.flatMap((p) => p.occurrences),
      planned.map((p) => p.advance),
    );
    deps.signal?.('schedule_written');
    return { tasks, planned };
  });
  if (!outcome) return 0;
  deps.signal?.('schedule_committed');
  report(deps, outcome.tasks, outcome.planned);
  return outcome.tasks.length;
}

function report(deps: SchedulerDeps, tasks: readonly DueTask[], planned: readonly Planned[]): void {
  const runs = planned.flatMap((p) => p.occurrences);
  const queued = runs.filter((run) => run.status === 'queued');
  if (queued.length > 0) {
    const now = (tasks[0] as DueTask).now.getTime();
    const oldest = Math.min(...queued.map((run) => run.scheduled_for.getTime()));
    deps.metrics.schedule.inserted(queued.length, Math.max(now - oldest, 0) / 1000);
  }
  if (runs.length > queued.length) deps.metrics.schedule.skipped(runs.length - queued.length);
  for (const { advance } of planned) {
    if (advance.status === 'paused') {
      deps.log.warn(
        { event: 'task_paused', task_id: advance.id, reason_code: advance.reason_code },
        advance.reason ?? '',
      );
    }
  }
}

type Planned = { readonly occurrences: OccurrenceRow[]; readonly advance: TaskAdvance };

function cantBeScheduled(error: unknown): string {
  // what the database says is about its row; what JavaScript says is about us
  const fromDatabase =
    error instanceof Error && /^[0-9A-Z]{5}$/.test(String((error as { code?: unknown }).code));
  const why = fromDatabase
    ? `: ${(error as Error).message}`
    : ', because its dates or counts are out of range';
  return `The task can't be scheduled${why}. Correct them and set its status to active.`;
}

/** What a due task owes: its occurrences, and how it goes on. A schedule that can't be computed pauses it. */
function plan(task: DueTask): Planned {
  try {
    return owed(task);
  } catch (error) {
    const code = error instanceof ScheduleError ? error.code : 'schedule_error';
    const reason = error instanceof ScheduleError ? `${error.message} ${error.hint}` : cantBeScheduled(error);
    return {
      occurrences: [],
      advance: {
        id: task.id,
        next_run_at: task.next_run_at,
        executions: 0,
        ran: false,
        status: 'paused',
        reason_code: code,
        reason,
      },
    };
  }
}

function owed(task: DueTask): Planned {
  const schedule = {
    cronExpression: task.cron_expression,
    timezone: task.timezone,
    nextRunAt: task.next_run_at,
    startDate: task.start_date,
    endDate: task.end_date,
    maxExecutions: task.max_executions,
    totalExecutions: task.total_executions,
    misfirePolicy: task.misfire_policy,
  };
  const remaining =
    task.max_executions === null ? Number.POSITIVE_INFINITY : task.max_executions - task.total_executions;
  // Only what is started counts against max_executions, and only here is it known what is: the plan has no limit.
  const result = planTask(remaining > 0 ? { ...schedule, maxExecutions: null } : schedule, task.now);
  const occurrences: OccurrenceRow[] = result.skipped.map((s) =>
    occurrence(task, s.scheduledFor, 'catch_up', { code: s.reasonCode, reason: s.reason }),
  );
  let executions = 0;
  for (const run of result.runs) {
    if (executions >= remaining) break;
    const skip = whySkipped(task, run.trigger, executions > 0);
    if (!skip) executions++;
    occurrences.push(occurrence(task, run.scheduledFor, run.trigger, skip));
  }
  const completed = whyCompleted(task, result, executions >= remaining);
  return {
    occurrences,
    advance: {
      id: task.id,
      next_run_at: completed ? null : result.nextRunAt,
      executions,
      ran: executions > 0,
      status: completed ? 'completed' : 'active',
      reason_code: completed?.reasonCode ?? null,
      reason: completed?.reason ?? null,
    },
  };
}

type Reason = { readonly code: string; readonly reason: string };

/** Caught-up runs of run_all follow each other: side by side they would all be one overlap. */
function isSerial(task: DueTask, trigger: OccurrenceRow['trigger']): boolean {
  return task.misfire_policy === 'run_all' && trigger === 'catch_up';
}

function occurrence(
  task: DueTask,
  at: Date,
  trigger: OccurrenceRow['trigger'],
  skip: Reason | null,
): OccurrenceRow {
  return {
    task_id: task.id,
    trigger,
    scheduled_for: at,
    status: skip ? 'skipped' : 'queued',
    is_serial: isSerial(task, trigger),
    reason_code: skip?.code ?? null,
    reason: skip?.reason ?? null,
  };
}

/** Why an occurrence is not started; null if it is. `another` says that one before it is started with it. */
function whySkipped(task: DueTask, trigger: OccurrenceRow['trigger'], another: boolean): Reason | null {
  if (task.agent_blocked === 'agent_draft') {
    return {
      code: 'agent_draft',
      reason: 'The agent is a draft. Set its status to live to let its schedule run.',
    };
  }
  if (task.agent_blocked === 'agent_inactive') {
    return {
      code: 'agent_inactive',
      reason: 'The agent is not active. Set is_active to let its schedule run.',
    };
  }
  if (task.overlap_policy !== 'skip' || isSerial(task, trigger)) return null;
  const advice = 'Set overlap_policy to queue or allow to run it all the same.';
  if (task.live_run !== null) {
    return { code: 'overlap', reason: `Run ${task.live_run} of this task had not ended. ${advice}` };
  }
  return another
    ? { code: 'overlap', reason: `The occurrence before it was only just started. ${advice}` }
    : null;
}

function whyCompleted(
  task: DueTask,
  plan: Plan,
  limitReached: boolean,
): { reasonCode: string; reason: string } | null {
  if (plan.completed) return plan.completed;
  if (limitReached) {
    return {
      reasonCode: 'max_executions_reached',
      reason: `The task has run ${task.max_executions} times, as its max_executions says.`,
    };
  }
  if (task.cron_expression === null && plan.nextRunAt === null) {
    return { reasonCode: 'no_more_occurrences', reason: 'The task had one date and no cron expression.' };
  }
  return null;
}
