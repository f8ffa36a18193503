import { describe, expect, test } from 'vitest';
import { setDatabaseClock } from '../support/database.ts';
import { makeAgent } from '../support/platform.ts';
import {
  at,
  db,
  endRuns,
  nextOf,
  occurrences,
  platform,
  rows,
  scheduled,
  short,
  task,
  useSchedule,
} from '../support/schedule.ts';

useSchedule();

describe('the bounds of a task', () => {
  test('start and end dates are days in its zone, both inclusive; after the last one it is completed', async () => {
    const id = await scheduled({
      cron_expression: '0 0,23 * * *',
      timezone: 'Pacific/Auckland',
      start_date: '2026-06-10',
      end_date: '2026-06-11',
      overlap_policy: 'allow',
    });
    await at('2026-06-01T00:00');
    // Midnight of the 10th in Auckland (+12).
    expect(await nextOf(id)).toBe('2026-06-09T12:00');
    for (const time of [
      '2026-06-09T12:00:01',
      '2026-06-10T11:00:01',
      '2026-06-10T12:00:01',
      '2026-06-11T11:00:01',
    ])
      await at(time);
    expect((await occurrences(id)).map((row) => short(row.scheduled_for))).toEqual([
      '2026-06-09T12:00',
      '2026-06-10T11:00',
      '2026-06-10T12:00',
      '2026-06-11T11:00',
    ]);
    expect(await task(id)).toMatchObject({
      status: 'completed',
      reason_code: 'end_date_passed',
      next_run_at: null,
    });
  });

  test('max_executions counts what was started, and completes the task with the last one', async () => {
    const id = await scheduled({ cron_expression: '0 * * * *', max_executions: 2, overlap_policy: 'skip' });
    await at('2026-01-01T08:30');
    await at('2026-01-01T09:00:01');
    // Skipped for its overlap: not an execution.
    await at('2026-01-01T10:00:01');
    expect(await task(id)).toMatchObject({ status: 'active', total_executions: 1 });
    await endRuns();
    await at('2026-01-01T11:00:01');
    await at('2026-01-01T12:00:01');
    expect(await task(id)).toMatchObject({
      status: 'completed',
      reason_code: 'max_executions_reached',
      total_executions: 2,
    });
    expect((await rows(id)).map((row) => row.slice(11))).toEqual([
      '09:00 schedule completed',
      '10:00 schedule skipped overlap',
      '11:00 schedule queued',
    ]);
  });

  test('a task with one date runs once and is completed', async () => {
    const id = await scheduled({ next_run_at: '2026-02-03T04:05:06Z' });
    await at('2026-02-03T04:05:05');
    expect(await rows(id)).toEqual([]);
    await at('2026-02-03T04:05:07');
    await at('2026-02-03T04:06:00');
    expect(await rows(id)).toEqual(['2026-02-03T04:05:06 schedule queued']);
    expect(await task(id)).toMatchObject({ status: 'completed', next_run_at: null, total_executions: 1 });
  });
});

describe('a task that is changed', () => {
  test('an edited expression counts from now: nothing of the old one is made up for', async () => {
    const id = await scheduled({ cron_expression: '0 9 * * *', overlap_policy: 'allow' });
    await at('2026-01-01T08:00');
    await at('2026-01-01T09:00:01');
    // While that run is under way and the old expression's next time passes unnoticed.
    await setDatabaseClock(db, new Date('2026-01-02T09:30:00Z'));
    await db.query(`update public.agent_tasks set cron_expression = '45 * * * *' where id = $1`, [id]);
    await at('2026-01-02T09:30:01');
    expect(await nextOf(id)).toBe('2026-01-02T09:45');
    await at('2026-01-02T09:45:01');
    expect(await rows(id)).toEqual(['2026-01-01T09:00 schedule queued', '2026-01-02T09:45 schedule queued']);
  });

  test('a next_run_at that the application sets is kept, and the schedule goes on after it', async () => {
    const id = await scheduled({
      cron_expression: '0 9 * * *',
      next_run_at: '2026-01-01T07:13:00Z',
      overlap_policy: 'allow',
    });
    await at('2026-01-01T07:13:02');
    expect(await nextOf(id)).toBe('2026-01-01T09:00');
    await db.query(`update public.agent_tasks set next_run_at = '2026-01-01T08:30:00Z' where id = $1`, [id]);
    await at('2026-01-01T08:30:02');
    expect(await rows(id)).toEqual(['2026-01-01T07:13 schedule queued', '2026-01-01T08:30 schedule queued']);
    expect(await nextOf(id)).toBe('2026-01-01T09:00');
  });

  test('while it is paused nothing runs, and what passed meanwhile is not made up for', async () => {
    const id = await scheduled({ cron_expression: '0 * * * *', overlap_policy: 'allow' });
    await at('2026-01-01T08:30');
    await db.query(`update public.agent_tasks set status = 'paused' where id = $1`, [id]);
    await at('2026-01-01T11:30');
    expect(await rows(id)).toEqual([]);
    await db.query(`update public.agent_tasks set status = 'active' where id = $1`, [id]);
    await at('2026-01-01T11:31');
    expect(await nextOf(id)).toBe('2026-01-01T12:00');
    await at('2026-01-01T12:00:01');
    expect(await rows(id)).toEqual(['2026-01-01T12:00 schedule queued']);
  });

  test.each([
    ['agent_draft', { status: 'draft' }],
    ['agent_inactive', { is_active: false }],
  ])(
    '%s: its occurrences are rows that say why they did not run, and count for nothing',
    async (code, columns) => {
      const agentId = await makeAgent(db, platform, columns);
      const id = await scheduled({ cron_expression: '0 * * * *', max_executions: 1 }, agentId);
      await at('2026-01-01T08:30');
      await at('2026-01-01T09:00:01');
      expect(await rows(id)).toEqual([`2026-01-01T09:00 schedule skipped ${code}`]);
      expect(await task(id)).toMatchObject({ status: 'active', total_executions: 0 });
      await db.query(`update public.agents set status = 'live', is_active = true where id = $1`, [agentId]);
      await at('2026-01-01T10:00:01');
      expect((await rows(id)).at(-1)).toBe('2026-01-01T10:00 schedule queued');
    },
  );
});

describe('a schedule that can’t be computed', () => {
  test.each([
    ['invalid_cron', { cron_expression: 'every day' }],
    ['invalid_cron', { cron_expression: '*/70 * * * *' }],
    ['invalid_cron', { cron_expression: '* * * *' }],
    ['invalid_cron', { cron_expression: '' }],
    ['invalid_zone', { cron_expression: '0 9 * * *', timezone: 'Mars/Olympus' }],
    ['invalid_dates', { cron_expression: '0 9 * * *', start_date: '2026-02-02', end_date: '2026-02-01' }],
    ['never_fires', { cron_expression: '0 0 30 2 *' }],
  ])('%s %o: the task is paused with a sentence, and the other tasks go on', async (code, columns) => {
    const bad = await scheduled(columns);
    const good = await scheduled({ cron_expression: '0 * * * *' });
    await at('2026-01-01T08:30');
    await at('2026-01-01T09:00:01');
    const found = await task(bad);
    expect(found).toMatchObject({ status: 'paused', reason_code: code });
    expect(found.reason).toMatch(/\w.*[.]$/);
    expect(await rows(bad)).toEqual([]);
    expect(await rows(good)).toEqual(['2026-01-01T09:00 schedule queued']);
  });

  test('corrected and resumed it runs again, and the reason is gone', async () => {
    const id = await scheduled({ cron_expression: '0 25 * * *' });
    await at('2026-01-01T08:30');
    expect((await task(id)).status).toBe('paused');
    await db.query(
      `update public.agent_tasks set cron_expression = '0 9 * * *', status = 'active' where id = $1`,
      [id],
    );
    await at('2026-01-01T08:31');
    expect(await task(id)).toMatchObject({ status: 'active', reason_code: null, reason: null });
    expect(await nextOf(id)).toBe('2026-01-01T09:00');
  });

  test('a due task whose zone was broken since is paused and not started', async () => {
    const id = await scheduled({ next_run_at: '2026-01-01T09:00:00Z', timezone: 'Nowhere/Else' });
    await at('2026-01-01T09:00:01');
    expect(await task(id)).toMatchObject({ status: 'paused', reason_code: 'invalid_zone' });
    expect(await rows(id)).toEqual([]);
  });
});
