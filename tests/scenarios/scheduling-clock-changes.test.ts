import { describe, expect, test } from 'vitest';
import { at, db, occurrences, scheduled, short, task, useSchedule } from '../support/schedule.ts';

useSchedule();

describe('a change of the clocks', () => {
  /** What | expression | zone | from | to | the instants at which it runs. */
  test.each([
    [
      'New York, spring',
      '30 2 * * *',
      'America/New_York',
      '2026-03-07T12:00',
      '2026-03-09T12:00',
      '2026-03-08T07:00 2026-03-09T06:30',
    ],
    [
      'New York, autumn',
      '30 1 * * *',
      'America/New_York',
      '2026-10-31T12:00',
      '2026-11-02T12:00',
      '2026-11-01T05:30 2026-11-02T06:30',
    ],
    [
      'London, spring',
      '15 1 * * *',
      'Europe/London',
      '2026-03-28T12:00',
      '2026-03-30T12:00',
      '2026-03-29T01:00 2026-03-30T00:15',
    ],
    [
      'London, autumn',
      '30 1 * * *',
      'Europe/London',
      '2026-10-24T12:00',
      '2026-10-26T12:00',
      '2026-10-25T00:30 2026-10-26T01:30',
    ],
    [
      'Lord Howe, autumn',
      '45 1 * * *',
      'Australia/Lord_Howe',
      '2026-04-04T00:00',
      '2026-04-06T00:00',
      '2026-04-04T14:45 2026-04-05T15:15',
    ],
    [
      'Lord Howe, spring',
      '15 2 * * *',
      'Australia/Lord_Howe',
      '2026-10-03T00:00',
      '2026-10-05T00:00',
      '2026-10-03T15:30 2026-10-04T15:15',
    ],
    [
      'Apia, a day that was not',
      '0 9 * * *',
      'Pacific/Apia',
      '2011-12-29T00:00',
      '2011-12-31T00:00',
      '2011-12-29T19:00 2011-12-30T10:00 2011-12-30T19:00',
    ],
    [
      'São Paulo, spring',
      '0 0 * * *',
      'America/Sao_Paulo',
      '2018-11-03T12:00',
      '2018-11-05T12:00',
      '2018-11-04T03:00 2018-11-05T02:00',
    ],
    [
      'São Paulo, autumn',
      '30 23 * * *',
      'America/Sao_Paulo',
      '2019-02-16T12:00',
      '2019-02-18T12:00',
      '2019-02-17T01:30 2019-02-18T02:30',
    ],
  ])(
    '%s: each day once, whether the daemon is on time or late',
    async (_, cron, zone, from, to, expected) => {
      for (const lateMs of [5_000, 35 * 60_000]) {
        const id = await scheduled({ cron_expression: cron, timezone: zone, overlap_policy: 'allow' });
        const end = new Date(`${to}Z`);
        await at(from);
        for (
          let next = (await task(id)).next_run_at;
          next && next < end;
          next = (await task(id)).next_run_at
        ) {
          await at(new Date(next.getTime() + lateMs));
        }
        const found = await occurrences(id);
        expect(found.map((row) => short(row.scheduled_for)).join(' ')).toBe(expected);
        expect(found.every((row) => row.status === 'queued')).toBe(true);
        await db.query(`update public.agent_tasks set status = 'paused' where id = $1`, [id]);
      }
    },
  );

  test('an interval runs through the repeated hour in real time', async () => {
    const id = await scheduled({
      cron_expression: '*/30 * * * *',
      timezone: 'America/New_York',
      overlap_policy: 'allow',
    });
    for (const time of ['04:45', '05:00', '05:30', '06:00', '06:30', '07:00'])
      await at(`2026-11-01T${time}:10`);
    expect((await occurrences(id)).map((row) => short(row.scheduled_for).slice(11))).toEqual([
      '05:00',
      '05:30',
      '06:00',
      '06:30',
      '07:00',
    ]);
  });
});
