import { describe, expect, test } from 'vitest';
import { occurrences, parseExpression, planTask, type TaskSchedule } from '../../src/schedule/index.ts';
import { at, daily, iso, nothing, read } from './plan-support.ts';

describe('what was missed', () => {
  const now = at('2026-01-10T08:00');

  test('run_once runs the latest and accounts for the older ones in one entry', () => {
    const plan = planTask(daily, now);
    expect(read(plan)).toEqual({
      runs: ['2026-01-09T09:00 catch_up'],
      skipped: ['missed 4 2026-01-05T09:00 2026-01-08T09:00'],
      next: '2026-01-10T09:00',
      completed: null,
    });
    expect(plan.skipped[0]?.reason).toBe(
      '4 occurrences from 2026-01-05T09:00:00.000Z to 2026-01-08T09:00:00.000Z were skipped: the latest missed one runs in their place.',
    );
  });

  test('run_once of a single missed occurrence skips nothing', () => {
    const task = { ...daily, nextRunAt: at('2026-01-09T09:00') };
    expect(read(planTask(task, now))).toEqual({
      ...nothing,
      runs: ['2026-01-09T09:00 catch_up'],
      next: '2026-01-10T09:00',
    });
  });

  test('run_once leaves alone what is older than its window, and says so', () => {
    const task = { ...daily, cronExpression: '0 9 * * MON', nextRunAt: at('2026-01-05T09:00') };
    const plan = planTask(task, now);
    expect(read(plan)).toEqual({
      ...nothing,
      skipped: ['missed 1 2026-01-05T09:00 2026-01-05T09:00'],
      next: '2026-01-12T09:00',
    });
    expect(plan.skipped[0]?.reason).toBe(
      'The occurrence at 2026-01-05T09:00:00.000Z was skipped: too long ago to make up for.',
    );
    expect(read(planTask(task, now, { runOnceWindowMs: 7 * 86_400_000 })).runs).toEqual([
      '2026-01-05T09:00 catch_up',
    ]);
  });

  test('the window of run_once includes its end', () => {
    const task = { ...daily, nextRunAt: at('2026-01-09T08:00') };
    expect(read(planTask(task, now)).runs).toEqual(['2026-01-09T09:00 catch_up']);
    const only = { ...task, cronExpression: null };
    expect(read(planTask(only, now)).runs).toEqual(['2026-01-09T08:00 catch_up']);
    expect(read(planTask(only, new Date(now.getTime() + 1))).skipped).toEqual([
      'missed 1 2026-01-09T08:00 2026-01-09T08:00',
    ]);
  });

  test('skip runs none of them', () => {
    expect(read(planTask({ ...daily, misfirePolicy: 'skip' }, now))).toEqual({
      ...nothing,
      skipped: ['missed 5 2026-01-05T09:00 2026-01-09T09:00'],
      next: '2026-01-10T09:00',
    });
  });

  test('skip still runs the occurrence that is on time', () => {
    expect(read(planTask({ ...daily, misfirePolicy: 'skip' }, at('2026-01-10T09:00:30')))).toEqual({
      ...nothing,
      runs: ['2026-01-10T09:00 schedule'],
      skipped: ['missed 5 2026-01-05T09:00 2026-01-09T09:00'],
      next: '2026-01-11T09:00',
    });
  });

  test('run_all runs every one, oldest first', () => {
    expect(read(planTask({ ...daily, misfirePolicy: 'run_all' }, now))).toEqual({
      ...nothing,
      runs: [5, 6, 7, 8, 9].map((day) => `2026-01-0${day}T09:00 catch_up`),
      next: '2026-01-10T09:00',
    });
  });

  test('run_all is bounded and accounts for the surplus', () => {
    const plan = planTask({ ...daily, misfirePolicy: 'run_all' }, now, { runAllLimit: 2 });
    expect(read(plan)).toEqual({
      runs: ['2026-01-05T09:00 catch_up', '2026-01-06T09:00 catch_up'],
      skipped: ['missed 3 2026-01-07T09:00 2026-01-09T09:00'],
      next: '2026-01-10T09:00',
      completed: null,
    });
    const one = planTask({ ...daily, misfirePolicy: 'run_all' }, now, { runAllLimit: 4 });
    expect(read(one).skipped).toEqual(['missed 1 2026-01-09T09:00 2026-01-09T09:00']);
  });

  test.each(['run_once', 'skip', 'run_all'] as const)(
    'a task of every second, down for a year, is planned in bounded work (%s)',
    (misfirePolicy) => {
      const task = { ...daily, misfirePolicy, cronExpression: '* * * * * *', nextRunAt: at('2025-01-05') };
      const times = [1, 2, 3].map(() => {
        const started = performance.now();
        planTask(task, at('2026-01-05'));
        return performance.now() - started;
      });
      const plan = planTask(task, at('2026-01-05'));
      // Half a million steps of a minute, or 31 million of a second, would take 0.5 s and more; this takes 1 to 2 ms.
      expect(Math.min(...times)).toBeLessThan(250);
      expect(plan.skipped).toHaveLength(1);
      expect(plan.skipped[0]).toMatchObject({ count: 1000, countCapped: true });
      expect(plan.skipped[0]?.reason).toMatch(/^More than 1,000 occurrences from 2025-01-05T00:0/);
      expect(iso(plan.skipped[0]?.through ?? null)).toBe(
        misfirePolicy === 'run_once' ? '2026-01-04T23:58:58' : '2026-01-04T23:58:59',
      );
      expect(plan.runs.filter((r) => r.trigger === 'schedule')).toHaveLength(61);
    },
  );

  test('exactly 1,000 are counted exactly', () => {
    const task = {
      ...daily,
      misfirePolicy: 'skip' as const,
      cronExpression: '* * * * *',
      nextRunAt: at('2026-01-05'),
    };
    const until = new Date(at('2026-01-05').getTime() + 1001 * 60_000);
    expect(planTask(task, until).skipped[0]).toMatchObject({ count: 1000, countCapped: false });
    expect(planTask(task, new Date(until.getTime() + 60_000)).skipped[0]).toMatchObject({
      count: 1000,
      countCapped: true,
    });
  });

  test('a scheduler that wakes late on the day of a clock change neither doubles nor loses a run', () => {
    const newYork = { ...daily, timezone: 'America/New_York' };
    const fallBack = { ...newYork, cronExpression: '30 1 * * *', nextRunAt: at('2026-11-01T05:30') };
    expect(read(planTask(fallBack, at('2026-11-01T05:45')))).toMatchObject({
      runs: ['2026-11-01T05:30 catch_up'],
      next: '2026-11-02T06:30',
    });
    const spring = { ...newYork, cronExpression: '30 2 * * *', nextRunAt: at('2026-03-07T07:30') };
    expect(read(planTask(spring, at('2026-03-08T07:30')))).toMatchObject({
      runs: ['2026-03-08T07:00 catch_up'],
      skipped: ['missed 1 2026-03-07T07:30 2026-03-07T07:30'],
      next: '2026-03-09T06:30',
    });
  });
});

describe('whenever the scheduler wakes, every occurrence is accounted for exactly once', () => {
  const SCHEDULES: readonly (readonly [string, string, string])[] = [
    ['*/20 * * * *', 'America/New_York', '2026-10-30'],
    ['30 1,2 * * *', 'America/New_York', '2026-03-05'],
    ['0 */3 * * *', 'Australia/Lord_Howe', '2026-04-02'],
    ['15 2 * * *', 'Australia/Lord_Howe', '2026-09-30'],
    ['*/7 8-18 * * MON-FRI', 'Europe/London', '2026-03-25'],
    ['0 0 * * *', 'Africa/Cairo', '2024-04-22'],
  ];

  test.each(SCHEDULES)('%s in %s', (cronExpression, timezone, start) => {
    const begin = at(start).getTime();
    const all = occurrences(parseExpression(cronExpression), timezone, new Date(begin), 6000);
    for (const misfirePolicy of ['run_once', 'skip', 'run_all'] as const) {
      for (const [i, gap] of [1, 17, 61, 600, 3000].entries()) {
        let task: TaskSchedule = {
          ...daily,
          cronExpression,
          timezone,
          misfirePolicy,
          nextRunAt: all[0] ?? null,
        };
        const run: number[] = [];
        let accounted = 0;
        let now = begin;
        for (let wake = 0; wake < 30; wake++) {
          // Uneven steps around `gap` minutes.
          now += (gap + ((wake * 7 + i) % 5)) * 60_000;
          const plan = planTask(task, new Date(now));
          const times = plan.runs.map((r) => r.scheduledFor.getTime());
          for (const s of plan.skipped) {
            accounted += s.count;
            for (const t of times) expect(t < s.scheduledFor.getTime() || t > s.through.getTime()).toBe(true);
          }
          run.push(...times);
          expect(plan.nextRunAt?.getTime()).toBeGreaterThan(Math.max(now, ...times));
          task = { ...task, nextRunAt: plan.nextRunAt };
        }
        const owed = all.filter((t) => t.getTime() <= now).map((t) => t.getTime());
        expect(run).toEqual(owed.filter((t) => run.includes(t)));
        expect(run.length + accounted).toBe(owed.length);
        if (misfirePolicy === 'run_all' && owed.length <= 100) expect(run).toEqual(owed);
      }
    }
  });
});

test('10,000 tasks are planned in well under a second', () => {
  const zones = ['UTC', 'America/New_York', 'Europe/London', 'Asia/Tokyo', 'Australia/Sydney'];
  const tasks = Array.from({ length: 10_000 }, (_, i) => ({
    ...daily,
    cronExpression: `${i % 60} ${i % 24} * * ${i % 7}`,
    timezone: zones[i % zones.length] ?? 'UTC',
    nextRunAt: at('2026-01-05T09:00'),
  }));
  const started = performance.now();
  for (const task of tasks) planTask(task, at('2026-01-05T09:00:01'));
  // Measured at 20 to 40 ms; the bound leaves room for a machine that is busy with other tests.
  expect(performance.now() - started).toBeLessThan(5_000);
});
