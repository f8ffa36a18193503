import { describe, expect, test } from 'vitest';
import { openDatabase } from '../../src/db/database.ts';
import { schedulePass } from '../../src/services/scheduler.ts';
import { setDatabaseClock } from '../support/database.ts';
import { startRun } from '../support/platform.ts';
import {
  admitted,
  at,
  db,
  endRuns,
  nextOf,
  parts,
  rows,
  scheduled,
  task,
  useSchedule,
} from '../support/schedule.ts';

useSchedule();

describe('many schedulers on one database', () => {
  test('start every occurrence exactly once', async () => {
    const others = [1, 2].map(() => openDatabase({ url: db.url, embedded: db.embedded }));
    const schedulers = [db, ...others];
    const tasks = await Promise.all(
      Array.from({ length: 40 }, () => scheduled({ cron_expression: '* * * * *', overlap_policy: 'allow' })),
    );
    await at('2026-05-01T10:00:30');
    for (let minute = 1; minute <= 4; minute++) {
      await setDatabaseClock(db, new Date(`2026-05-01T10:0${minute}:05Z`));
      await Promise.all(schedulers.flatMap((one) => [0, 1].map(() => schedulePass({ db: one, ...parts }))));
      // What one of them skipped because another had it locked is done by now.
      expect(await schedulePass({ db, ...parts })).toBe(0);
    }
    await Promise.all(others.map((one) => one.close()));
    for (const id of tasks) {
      expect(await rows(id)).toEqual(
        [1, 2, 3, 4].map((minute) => `2026-05-01T10:0${minute} schedule queued`),
      );
      // The unique index hides a second start; the count would not.
      expect((await task(id)).total_executions).toBe(4);
    }
  });
});

describe('a daemon that comes late', () => {
  async function fiveDaysLate(misfire: string): Promise<string> {
    const id = await scheduled({
      cron_expression: '0 9 * * *',
      misfire_policy: misfire,
      overlap_policy: 'allow',
    });
    await at('2026-01-04T12:00');
    await at('2026-01-09T12:00');
    expect(await nextOf(id)).toBe('2026-01-10T09:00');
    return id;
  }

  test('run_once makes the latest missed occurrence up and accounts for the others', async () => {
    const id = await fiveDaysLate('run_once');
    expect(await rows(id)).toEqual([
      '2026-01-05T09:00 catch_up skipped missed',
      '2026-01-09T09:00 catch_up queued',
    ]);
    const [skipped] = await db.query<{ reason: string }>(
      `select reason from public.task_runs where task_id = $1 and status = 'skipped'`,
      [id],
    );
    expect(skipped?.reason).toMatch(/^4 occurrences/);
    expect((await task(id)).total_executions).toBe(1);
  });

  test('skip makes none up and says so', async () => {
    const id = await fiveDaysLate('skip');
    expect(await rows(id)).toEqual(['2026-01-05T09:00 catch_up skipped missed']);
    expect((await task(id)).total_executions).toBe(0);
  });

  test('run_all makes all of them up, one after the other', async () => {
    const id = await fiveDaysLate('run_all');
    expect(await rows(id)).toEqual([5, 6, 7, 8, 9].map((day) => `2026-01-0${day}T09:00 catch_up queued`));
    expect(await admitted(id)).toEqual([true, false, false, false, false]);
  });

  test('run_all under the overlap policy skip makes all of them up as well', async () => {
    const id = await scheduled({ cron_expression: '0 9 * * *', misfire_policy: 'run_all' });
    await at('2026-01-04T12:00');
    await at('2026-01-07T12:00');
    expect(await rows(id)).toEqual([5, 6, 7].map((day) => `2026-01-0${day}T09:00 catch_up queued`));
  });
});

describe('an occurrence while the run before has not ended', () => {
  async function twice(overlap: string): Promise<string> {
    const id = await scheduled({ cron_expression: '0 * * * *', overlap_policy: overlap });
    await at('2026-01-01T08:30');
    await at('2026-01-01T09:00:01');
    await at('2026-01-01T10:00:01');
    return id;
  }

  test('skip: it is a row that names the run in its way', async () => {
    const id = await twice('skip');
    expect(await rows(id)).toEqual([
      '2026-01-01T09:00 schedule queued',
      '2026-01-01T10:00 schedule skipped overlap',
    ]);
    const [first, second] = await db.query<{ id: string; reason: string | null }>(
      'select id, reason from public.task_runs where task_id = $1 order by scheduled_for',
      [id],
    );
    expect(second?.reason).toContain(first?.id);
    expect((await task(id)).total_executions).toBe(1);
    await endRuns();
    await at('2026-01-01T11:00:01');
    expect((await rows(id)).at(-1)).toBe('2026-01-01T11:00 schedule queued');
  });

  test('skip: occurrences that fall due together do not run together', async () => {
    const id = await scheduled({ cron_expression: '*/20 * * * * *', overlap_policy: 'skip' });
    await at('2026-01-01T08:59:50');
    await at('2026-01-01T09:00:45');
    expect(await rows(id)).toEqual([
      '2026-01-01T09:00 schedule queued',
      '2026-01-01T09:00:20 schedule skipped overlap',
      '2026-01-01T09:00:40 schedule skipped overlap',
    ]);
  });

  test('queue: it waits for its turn', async () => {
    expect(await admitted(await twice('queue'))).toEqual([true, false]);
  });

  test('allow: both run', async () => {
    expect(await admitted(await twice('allow'))).toEqual([true, true]);
  });

  test.each(['skip', 'queue'])('%s: a run that a person asked for is not held back', async (overlap) => {
    const id = await twice(overlap);
    await startRun(db, id);
    expect((await admitted(id)).at(-1)).toBe(true);
  });
});
