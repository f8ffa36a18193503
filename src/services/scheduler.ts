/**
 * Starts scheduled tasks when they are due: exactly one run for every occurrence, on any number of nodes.
 *
 * A batch of due tasks is locked (others skip them), their runs are inserted and their next times advanced in
 * one transaction. What is due is decided by the database's clock; the next time is computed from the
 * scheduled instant and not from any clock.
 */
import type { Database } from '../db/database.ts';
import {
  advanceTasks,
  type DueTask,
  lockDueTasks,
  nextDueInMs,
  type OccurrenceRow,
  type TaskAdvance,
} from '../db/tasks.ts';
import { planTask, ScheduleError } from '../schedule/index.ts';
import { periodic, type Service, type ServiceDeps } from './periodic.ts';

const BATCH = 500;
/** A task that was edited without our hearing of it is found at the latest after this time. */
const LONGEST_SLEEP_MS = 30_000;
/** Embedded, no notification tells of a new or edited task. */
const LONGEST_SLEEP_EMBEDDED_MS = 250;

export type SchedulerDeps = ServiceDeps & { readonly db: Database };

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

/** One batch in one transaction. Returns how many tasks it advanced. */
export async function schedulePass(deps: SchedulerDeps): Promise<number> {
  const outcome = await deps.db.transaction(async (tx) => {
    const tasks = await lockDueTasks(tx, BATCH);
    if (tasks.length === 0) return null;
    const planned = tasks.map(plan);
    await advanceTasks(
      tx,
      planned.flatMap((p) => p.occurrences),
      planned.map((p) => p.advance),
    );
    return { tasks, planned };
  });
  if (!outcome) return 0;
  const runs = outcome.planned.flatMap((p) => p.occurrences);
  const queued = runs.filter((run) => run.status === 'queued');
  if (queued.length > 0) {
    const now = (outcome.tasks[0] as DueTask).now.getTime();
    const oldest = Math.min(...queued.map((run) => run.scheduled_for.getTime()));
    deps.metrics.schedule.inserted(queued.length, Math.max(now - oldest, 0) / 1000);
  }
  if (runs.length > queued.length) deps.metrics.schedule.skipped(runs.length - queued.length);
  for (const { advance } of outcome.planned) {
    if (advance.status === 'paused') {
      deps.log.warn(
        { event: 'task_paused', task_id: advance.id, reason_code: advance.reason_code },
        advance.reason ?? '',
      );
    }
  }
  return outcome.tasks.length;
}

/** What a due task owes: its occurrences, and how it goes on. A schedule that can't be computed pauses it. */
function plan(task: DueTask): { occurrences: OccurrenceRow[]; advance: TaskAdvance } {
  try {
    return owed(task);
  } catch (error) {
    const code = error instanceof ScheduleError ? error.code : 'schedule_error';
    const reason =
      error instanceof ScheduleError ? `${error.message} ${error.hint}` : String((error as Error).message);
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

function owed(task: DueTask): { occurrences: OccurrenceRow[]; advance: TaskAdvance } {
  const result = planTask(
    {
      cronExpression: task.cron_expression,
      timezone: task.timezone,
      nextRunAt: task.next_run_at,
      startDate: task.start_date,
      endDate: task.end_date,
      maxExecutions: task.max_executions,
      totalExecutions: task.total_executions,
      misfirePolicy: task.misfire_policy,
    },
    task.now,
  );
  const row = (
    scheduledFor: Date,
    trigger: OccurrenceRow['trigger'],
    skip: { code: string; reason: string } | null,
  ): OccurrenceRow => ({
    task_id: task.id,
    trigger,
    scheduled_for: scheduledFor,
    status: skip ? 'skipped' : 'queued',
    // caught-up runs follow each other; side by side they would all be one overlap
    is_serial: task.misfire_policy === 'run_all' && trigger === 'catch_up',
    reason_code: skip?.code ?? null,
    reason: skip?.reason ?? null,
  });
  const occurrences: OccurrenceRow[] = [
    ...result.skipped.map((s) =>
      row(s.scheduledFor, 'catch_up' as const, { code: s.reasonCode, reason: s.reason }),
    ),
    ...result.runs.map((run) =>
      row(
        run.scheduledFor,
        run.trigger,
        task.overlap_policy === 'skip' && task.live_run !== null
          ? {
              code: 'overlap',
              reason: `Run ${task.live_run} of this task had not ended. Set overlap_policy to queue or allow to run it all the same.`,
            }
          : null,
      ),
    ),
  ];
  const executions = occurrences.filter((o) => o.status === 'queued').length;
  const once = task.cron_expression === null && result.nextRunAt === null && result.completed === null;
  const completed = once
    ? { reasonCode: 'no_more_occurrences', reason: 'The task had one date and no cron expression.' }
    : result.completed;
  return {
    occurrences,
    advance: {
      id: task.id,
      next_run_at: result.nextRunAt,
      executions,
      ran: executions > 0,
      status: completed ? 'completed' : 'active',
      reason_code: completed?.reasonCode ?? null,
      reason: completed?.reason ?? null,
    },
  };
}
