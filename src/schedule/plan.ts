import { type Expression, parseExpression } from './expression.ts';
import { COUNT_LIMIT, firstOnes, following, latestBefore, type Series } from './missed.ts';
import { nextInstant } from './next.ts';
import { ScheduleError } from './schedule-error.ts';
import { type TaskDates, taskDates } from './task-dates.ts';
import { validateZone } from './zone.ts';

/** What the planner needs of an `agent_tasks` row. */
export type TaskSchedule = {
  /** null: a task without a schedule of its own (event_based, manual); only a given `nextRunAt` makes it due. */
  readonly cronExpression: string | null;
  /** IANA name. */
  readonly timezone: string;
  /** The truth about when it is due, on the cron grid or not; null for a task that is new, edited or resumed. */
  readonly nextRunAt: Date | null;
  /** 'YYYY-MM-DD', a day in the task's zone, inclusive. */
  readonly startDate: string | null;
  /** Likewise, inclusive. */
  readonly endDate: string | null;
  /** At least 1; null for no limit. */
  readonly maxExecutions: number | null;
  readonly totalExecutions: number;
  readonly misfirePolicy: 'run_once' | 'skip' | 'run_all';
};

export type PlannedRun = { readonly scheduledFor: Date; readonly trigger: 'schedule' | 'catch_up' };

/** Occurrences that will not run, as one entry however many there are. */
export type SkippedRuns = {
  /** The first of them. */
  readonly scheduledFor: Date;
  /** The last of them; the same for one. */
  readonly through: Date;
  /** How many; 1,000 when `countCapped`. */
  readonly count: number;
  /** True: there are more than `count`, counting stopped. */
  readonly countCapped: boolean;
  readonly reasonCode: 'missed' | 'before_start_date' | 'after_end_date';
  readonly reason: string;
};

export type Completed = {
  readonly reasonCode: 'end_date_passed' | 'max_executions_reached' | 'no_more_occurrences';
  readonly reason: string;
};

/**
 * What to write for one task, in one transaction. Invariants: runs and skipped entries have distinct `scheduledFor`; runs are ascending;
 * `nextRunAt` is later than every one of them; it is null when the task is completed (or has no cron expression and nothing left).
 */
export type Plan = {
  readonly runs: readonly PlannedRun[];
  readonly skipped: readonly SkippedRuns[];
  /** Already due when more runs are owed than one plan holds: plan again. */
  readonly nextRunAt: Date | null;
  /** Not null: set the task's status to completed. */
  readonly completed: Completed | null;
};

export type PlanOptions = {
  /** Milliseconds; an occurrence later than this counts as missed. Default 60,000. */
  readonly lateAfterMs?: number;
  /** Milliseconds; how old the latest missed occurrence may be for run_once still to run it. Default 24 hours. */
  readonly runOnceWindowMs?: number;
  /** Most missed occurrences that run_all runs, and most on-time runs, in one plan. Default 100. */
  readonly runAllLimit?: number;
};

export const DEFAULT_LATE_AFTER_MS = 60_000;
export const DEFAULT_RUN_ONCE_WINDOW_MS = 86_400_000;
export const DEFAULT_RUN_ALL_LIMIT = 100;

/**
 * Decides what one task owes at `now`.
 *
 * Every time comes from the previous scheduled instant or the schedule itself, never from the clock; `now` only decides what is due and
 * what is late. Costs microseconds, and is bounded however long the task was down.
 *
 * @throws ScheduleError invalid_cron, invalid_zone, invalid_dates; never_fires when a task without `nextRunAt` has an expression that no
 *   date satisfies. Pause the task with its message.
 */
export function planTask(task: TaskSchedule, now: Date, options: PlanOptions = {}): Plan {
  // Before anything else: a bad zone must not wait until the task is due, nor hide behind a task that has no dates.
  validateZone(task.timezone);
  const expr = task.cronExpression === null ? null : parseExpression(task.cronExpression);
  const dates = taskDates(task.timezone, task.startDate, task.endDate);
  const remaining =
    task.maxExecutions === null ? Number.POSITIVE_INFINITY : task.maxExecutions - task.totalExecutions;
  const nowMs = now.getTime();
  if (remaining <= 0) return finished([], [], maxReached(task));

  const due = task.nextRunAt?.getTime() ?? null;
  if (due === null || due > nowMs) {
    if (due !== null && due >= dates.from) return proceed(task, dates, [], [], due);
    // New, edited, resumed, or moved to a later start: no catch-up.
    return proceed(task, dates, [], [], firstFrom(task, expr, dates, nowMs));
  }
  if (due < dates.from) {
    const skipped = [skip('before_start_date', [due], due, false, `before its start date ${task.startDate}`)];
    return proceed(task, dates, [], skipped, firstFrom(task, expr, dates, due));
  }
  if (due >= dates.until) {
    const skipped = [skip('after_end_date', [due], due, false, `after its end date ${task.endDate}`)];
    return finished([], skipped, endPassed(task, due));
  }
  return planDue(task, { first: due, expr, zone: task.timezone }, dates, nowMs, remaining, options);
}

function planDue(
  task: TaskSchedule,
  series: Series,
  dates: TaskDates,
  now: number,
  remaining: number,
  options: PlanOptions,
): Plan {
  const lateAfter = options.lateAfterMs ?? DEFAULT_LATE_AFTER_MS;
  const limit = Math.max(1, options.runAllLimit ?? DEFAULT_RUN_ALL_LIMIT);
  const runs: PlannedRun[] = [];
  const skipped: SkippedRuns[] = [];
  const run = (at: number, trigger: PlannedRun['trigger']) => {
    if (runs.length < remaining) runs.push({ scheduledFor: new Date(at), trigger });
  };

  // Missed: later than allowed. What lies past the end date was never owed.
  const missedBefore = Math.min(now - lateAfter, dates.until);
  let next: number | null = series.first;
  if (series.first < missedBefore) {
    const latest = latestBefore(series, missedBefore);
    if (task.misfirePolicy === 'run_all') {
      const owed = firstOnes(series, missedBefore, limit);
      for (const at of owed) run(at, 'catch_up');
      const surplus = following(series, owed.at(-1) as number);
      if (surplus !== null && surplus <= latest && runs.length < remaining) {
        skipped.push(
          missed({ ...series, first: surplus }, latest, `beyond the ${limit} that are made up for`),
        );
      }
    } else if (
      task.misfirePolicy === 'run_once' &&
      now - latest <= (options.runOnceWindowMs ?? DEFAULT_RUN_ONCE_WINDOW_MS)
    ) {
      if (latest > series.first) {
        skipped.push(
          missed(series, latestBefore(series, latest), 'the latest missed one runs in their place'),
        );
      }
      run(latest, 'catch_up');
    } else {
      const why =
        task.misfirePolicy === 'skip' ? 'the task skips what it missed' : 'too long ago to make up for';
      skipped.push(missed(series, latest, why));
    }
    next = following(series, latest);
  }

  // On time: due, not late, within the dates. What exceeds one plan stays due and is planned next.
  for (let onTime = 0; onTime < limit && next !== null && next <= now && next < dates.until; onTime++) {
    run(next, 'schedule');
    next = following(series, next);
  }
  if (runs.length >= remaining) return finished(runs, skipped, maxReached(task));
  return proceed(task, dates, runs, skipped, next);
}

/** The first occurrence after `now` and not before the start date. */
function firstFrom(
  task: TaskSchedule,
  expr: Expression | null,
  dates: TaskDates,
  now: number,
): number | null {
  if (expr === null) return null;
  const next = nextInstant(expr, task.timezone, Math.max(now, dates.from - 1));
  if (next === null && nextInstant(expr, task.timezone, Number.MIN_SAFE_INTEGER) === null) {
    throw new ScheduleError(
      'never_fires',
      `The schedule "${expr.source}" never fires.`,
      expr.reboot
        ? 'A task has no start-up to run at: write a time instead of @reboot.'
        : 'No date fits it; look at the days and months, and use L for the last day of a month.',
    );
  }
  return next;
}

function proceed(
  task: TaskSchedule,
  dates: TaskDates,
  runs: readonly PlannedRun[],
  skipped: readonly SkippedRuns[],
  next: number | null,
): Plan {
  if (next === null) {
    // A task that has no schedule still listens for its events or its button.
    if (task.cronExpression === null) return { runs, skipped, nextRunAt: null, completed: null };
    const reason = `The schedule "${task.cronExpression}" has no further occurrence.`;
    return finished(runs, skipped, { reasonCode: 'no_more_occurrences', reason });
  }
  if (next >= dates.until) return finished(runs, skipped, endPassed(task, next));
  return { runs, skipped, nextRunAt: new Date(next), completed: null };
}

function finished(runs: readonly PlannedRun[], skipped: readonly SkippedRuns[], completed: Completed): Plan {
  return { runs, skipped, nextRunAt: null, completed };
}

function maxReached(task: TaskSchedule): Completed {
  return {
    reasonCode: 'max_executions_reached',
    reason: `The task has run ${task.maxExecutions} time${task.maxExecutions === 1 ? '' : 's'}, as often as it may.`,
  };
}

function endPassed(task: TaskSchedule, next: number): Completed {
  const at = new Date(next).toISOString();
  return {
    reasonCode: 'end_date_passed',
    reason: `The next occurrence, ${at}, is after the end date ${task.endDate} (${task.timezone}).`,
  };
}

/** One entry for everything missed from the series' first to `through`. */
function missed(series: Series, through: number, why: string): SkippedRuns {
  const some = firstOnes(series, through + 1, COUNT_LIMIT + 1);
  const capped = some.length > COUNT_LIMIT;
  return skip('missed', capped ? some.slice(0, COUNT_LIMIT) : some, through, capped, why);
}

function skip(
  reasonCode: SkippedRuns['reasonCode'],
  ones: readonly number[],
  last: number,
  countCapped: boolean,
  why: string,
): SkippedRuns {
  const scheduledFor = new Date(ones[0] as number);
  const through = new Date(last);
  const amount = countCapped ? `More than ${COUNT_LIMIT.toLocaleString('en-US')}` : `${ones.length}`;
  const reason =
    ones.length === 1
      ? `The occurrence at ${scheduledFor.toISOString()} was skipped: ${why}.`
      : `${amount} occurrences from ${scheduledFor.toISOString()} to ${through.toISOString()} were skipped: ${why}.`;
  return { scheduledFor, through, count: ones.length, countCapped, reasonCode, reason };
}
