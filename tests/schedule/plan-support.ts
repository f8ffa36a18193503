import type { Plan, TaskSchedule } from '../../src/schedule/index.ts';

export const at = (text: string) => new Date(text.includes('T') ? `${text}Z` : `${text}T00:00Z`);
export const iso = (time: Date | null) => time?.toISOString().replace(/(:00)?\.000Z$/, '') ?? null;

export const daily: TaskSchedule = {
  cronExpression: '0 9 * * *',
  timezone: 'UTC',
  nextRunAt: at('2026-01-05T09:00'),
  startDate: null,
  endDate: null,
  maxExecutions: null,
  totalExecutions: 0,
  misfirePolicy: 'run_once',
};

/** A plan in the short form that the tests compare. */
export const read = (plan: Plan) => ({
  runs: plan.runs.map((r) => `${iso(r.scheduledFor)} ${r.trigger}`),
  skipped: plan.skipped.map(
    (s) => `${s.reasonCode} ${s.count}${s.countCapped ? '+' : ''} ${iso(s.scheduledFor)} ${iso(s.through)}`,
  ),
  next: iso(plan.nextRunAt),
  completed: plan.completed?.reasonCode ?? null,
});

export const nothing = { runs: [], skipped: [], completed: null };
