import { describe, expect, test } from 'vitest';
import { planTask } from '../../src/schedule/index.ts';
import { at, daily, iso, nothing, read } from './plan-support.ts';

describe('a task without a next time (new, edited or resumed)', () => {
  const fresh = { ...daily, nextRunAt: null };

  test('gets its first occurrence strictly after now, and makes up for nothing', () => {
    expect(read(planTask(fresh, at('2026-01-05T09:00')))).toEqual({ ...nothing, next: '2026-01-06T09:00' });
    expect(read(planTask(fresh, at('2026-01-05T08:59')))).toEqual({ ...nothing, next: '2026-01-05T09:00' });
  });

  test('does not begin before its start date in its own zone', () => {
    const task = { ...fresh, cronExpression: '0 * * * *', timezone: 'Asia/Tokyo', startDate: '2026-02-01' };
    expect(read(planTask(task, at('2026-01-05')))).toEqual({ ...nothing, next: '2026-01-31T15:00' });
  });

  test('a start date in the past changes nothing', () => {
    const task = { ...fresh, startDate: '0001-01-01', endDate: '9999-12-31' };
    expect(read(planTask(task, at('2026-01-05')))).toEqual({ ...nothing, next: '2026-01-05T09:00' });
  });

  test('is completed at once when its dates or its count are used up', () => {
    const ended = planTask({ ...fresh, endDate: '2026-01-04' }, at('2026-01-05'));
    expect(read(ended)).toEqual({ ...nothing, next: null, completed: 'end_date_passed' });
    expect(ended.completed?.reason).toBe(
      'The next occurrence, 2026-01-05T09:00:00.000Z, is after the end date 2026-01-04 (UTC).',
    );
    const counted = planTask({ ...fresh, maxExecutions: 3, totalExecutions: 3 }, at('2026-01-05'));
    expect(read(counted)).toEqual({ ...nothing, next: null, completed: 'max_executions_reached' });
    expect(counted.completed?.reason).toBe('The task has run 3 times, as often as it may.');
    const past = planTask({ ...fresh, cronExpression: '0 0 9 1 1 * 2025' }, at('2026-01-05'));
    expect(read(past)).toEqual({ ...nothing, next: null, completed: 'no_more_occurrences' });
  });

  test.each(['0 0 31 2 *', '@reboot'])(
    '%s never fires, which is an error and no completion',
    (cronExpression) => {
      expect(() => planTask({ ...fresh, cronExpression }, at('2026-01-05'))).toThrow(
        expect.objectContaining({
          code: 'never_fires',
          message: `The schedule "${cronExpression}" never fires.`,
        }),
      );
    },
  );

  test('without a cron expression there is nothing to plan and nothing is completed', () => {
    expect(read(planTask({ ...fresh, cronExpression: null }, at('2026-01-05')))).toEqual({
      ...nothing,
      next: null,
    });
  });
});

describe('a task that is due', () => {
  test('runs once, and the next time follows from the scheduled instant', () => {
    for (const now of ['2026-01-05T09:00', '2026-01-05T09:00:59', '2026-01-05T09:01']) {
      expect(read(planTask(daily, at(now)))).toEqual({
        ...nothing,
        runs: ['2026-01-05T09:00 schedule'],
        next: '2026-01-06T09:00',
      });
    }
  });

  test('is not due a millisecond early', () => {
    const early = new Date(at('2026-01-05T09:00').getTime() - 1);
    expect(read(planTask(daily, early))).toEqual({ ...nothing, next: '2026-01-05T09:00' });
  });

  test('counts as missed one millisecond after the allowed lateness', () => {
    const late = new Date(at('2026-01-05T09:01').getTime() + 1);
    expect(read(planTask(daily, late)).runs).toEqual(['2026-01-05T09:00 catch_up']);
    expect(read(planTask(daily, late, { lateAfterMs: 120_000 })).runs).toEqual(['2026-01-05T09:00 schedule']);
  });

  test('a next time that the application set off the grid is run, and the grid goes on after it', () => {
    const task = { ...daily, nextRunAt: at('2026-01-05T11:11:11') };
    expect(read(planTask(task, at('2026-01-05T11:00')))).toEqual({ ...nothing, next: '2026-01-05T11:11:11' });
    expect(read(planTask(task, at('2026-01-05T11:12')))).toEqual({
      ...nothing,
      runs: ['2026-01-05T11:11:11 schedule'],
      next: '2026-01-06T09:00',
    });
  });

  test('a next time given to a task without a schedule is run once', () => {
    const task = { ...daily, cronExpression: null };
    expect(read(planTask(task, at('2026-01-05T09:00')))).toEqual({
      ...nothing,
      runs: ['2026-01-05T09:00 schedule'],
      next: null,
    });
  });

  test('several occurrences that are due and on time all run', () => {
    const task = { ...daily, cronExpression: '*/20 * * * * *', nextRunAt: at('2026-01-05T09:00') };
    expect(read(planTask(task, at('2026-01-05T09:00:45')))).toEqual({
      ...nothing,
      runs: ['2026-01-05T09:00 schedule', '2026-01-05T09:00:20 schedule', '2026-01-05T09:00:40 schedule'],
      next: '2026-01-05T09:01',
    });
  });

  test('more on-time occurrences than one plan holds stay due for the next plan', () => {
    const task = { ...daily, cronExpression: '* * * * * *', nextRunAt: at('2026-01-05T09:00') };
    const plan = planTask(task, at('2026-01-05T09:00:30'), { runAllLimit: 10 });
    expect(plan.runs).toHaveLength(10);
    expect(iso(plan.nextRunAt)).toBe('2026-01-05T09:00:10');
  });
});

describe('dates and counts', () => {
  test('the end date is inclusive, and the task is completed with its last run', () => {
    const task = { ...daily, endDate: '2026-01-05' };
    expect(read(planTask(task, at('2026-01-05T09:00')))).toEqual({
      ...nothing,
      runs: ['2026-01-05T09:00 schedule'],
      next: null,
      completed: 'end_date_passed',
    });
  });

  test('the end of the last day is that of the task, not of the server', () => {
    const task = {
      ...daily,
      cronExpression: '0 23 * * *',
      timezone: 'America/Los_Angeles',
      endDate: '2026-01-05',
      nextRunAt: null,
    };
    expect(read(planTask(task, at('2026-01-06T06:00')))).toEqual({ ...nothing, next: '2026-01-06T07:00' });
    expect(read(planTask(task, at('2026-01-06T07:00'))).completed).toBe('end_date_passed');
  });

  test('a day that begins at 01:00 begins then', () => {
    const task = {
      ...daily,
      cronExpression: '0 0 * * *',
      timezone: 'America/Sao_Paulo',
      startDate: '2018-11-04',
      nextRunAt: null,
    };
    expect(read(planTask(task, at('2018-10-01'))).next).toBe('2018-11-04T03:00');
  });

  test('what was missed before the end date is still owed after it; what lies beyond is not', () => {
    const task = {
      ...daily,
      cronExpression: '0 * * * *',
      endDate: '2026-01-05',
      nextRunAt: at('2026-01-05T21:00'),
    };
    expect(read(planTask(task, at('2026-01-06T08:30')))).toEqual({
      runs: ['2026-01-05T23:00 catch_up'],
      skipped: ['missed 2 2026-01-05T21:00 2026-01-05T22:00'],
      next: null,
      completed: 'end_date_passed',
    });
  });

  test('an occurrence on time does not run when it lies beyond the end date, midnight itself included', () => {
    const task = {
      ...daily,
      cronExpression: '* * * * *',
      endDate: '2026-01-05',
      nextRunAt: at('2026-01-05T23:59'),
    };
    expect(read(planTask(task, at('2026-01-06T00:00:30'), { lateAfterMs: 120_000 }))).toEqual({
      ...nothing,
      runs: ['2026-01-05T23:59 schedule'],
      next: null,
      completed: 'end_date_passed',
    });
    const midnight = {
      ...daily,
      cronExpression: '0 0 * * *',
      endDate: '2026-01-05',
      nextRunAt: at('2026-01-05'),
    };
    expect(read(planTask(midnight, at('2026-01-05'))).completed).toBe('end_date_passed');
  });

  test('a stale next time outside dates that were edited is not run, and leaves a trace', () => {
    expect(read(planTask({ ...daily, endDate: '2026-01-04' }, at('2026-01-05T09:00')))).toEqual({
      runs: [],
      skipped: ['after_end_date 1 2026-01-05T09:00 2026-01-05T09:00'],
      next: null,
      completed: 'end_date_passed',
    });
    expect(read(planTask({ ...daily, startDate: '2026-01-20' }, at('2026-01-05T09:00')))).toEqual({
      runs: [],
      skipped: ['before_start_date 1 2026-01-05T09:00 2026-01-05T09:00'],
      next: '2026-01-20T09:00',
      completed: null,
    });
  });

  test('a next time still to come moves to a later start date without a trace', () => {
    expect(read(planTask({ ...daily, startDate: '2026-01-20' }, at('2026-01-05T08:00')))).toEqual({
      ...nothing,
      next: '2026-01-20T09:00',
    });
  });

  test('the last execution completes the task', () => {
    const task = { ...daily, maxExecutions: 5, totalExecutions: 4 };
    expect(read(planTask(task, at('2026-01-05T09:00')))).toEqual({
      ...nothing,
      runs: ['2026-01-05T09:00 schedule'],
      next: null,
      completed: 'max_executions_reached',
    });
  });

  test('making up never exceeds the count', () => {
    const task = { ...daily, misfirePolicy: 'run_all' as const, maxExecutions: 5, totalExecutions: 2 };
    const plan = read(planTask(task, at('2026-01-10T09:00')));
    expect(plan.runs).toEqual([5, 6, 7].map((day) => `2026-01-0${day}T09:00 catch_up`));
    expect(plan).toMatchObject({ skipped: [], next: null, completed: 'max_executions_reached' });
    // What lies beyond the count was never owed, so it is not skipped either.
    expect(read(planTask(task, at('2026-01-10T09:00'), { runAllLimit: 3 }))).toEqual(plan);
  });

  test.each([
    ['2026-02-30', null, /start date "2026-02-30" is not a date/],
    [null, '2025-02-29', /end date "2025-02-29" is not a date/],
    ['2026-13-01', null, /not a date/],
    ['2026-1-1', null, /not a date/],
    ['', null, /not a date/],
    ['2026-02-02', '2026-02-01', /start date 2026-02-02 is after the end date 2026-02-01/],
  ])('start %s and end %s are refused', (startDate, endDate, message) => {
    expect(() => planTask({ ...daily, startDate, endDate }, at('2026-01-05'))).toThrow(
      expect.objectContaining({ code: 'invalid_dates', message: expect.stringMatching(message) }),
    );
  });

  test('a task of one day may have that day as both dates', () => {
    const task = { ...daily, startDate: '2028-02-29', endDate: '2028-02-29', nextRunAt: null };
    expect(read(planTask(task, at('2026-01-05')))).toEqual({ ...nothing, next: '2028-02-29T09:00' });
  });

  test('a bad expression and a bad zone are errors of the task, due or not', () => {
    expect(() => planTask({ ...daily, cronExpression: '* * * *' }, at('2020-01-01'))).toThrow(
      expect.objectContaining({ code: 'invalid_cron' }),
    );
    expect(() => planTask({ ...daily, timezone: 'Europe/Atlantis' }, at('2020-01-01'))).toThrow(
      expect.objectContaining({ code: 'invalid_zone' }),
    );
  });
});
