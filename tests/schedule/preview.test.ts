import { describe, expect, test } from 'vitest';
import { describe as describeSchedule, preview, renderPreview } from '../../src/schedule/index.ts';

const notes = (source: string, zone: string, after: string, count: number) =>
  preview(source, zone, new Date(`${after}Z`), count).map((line) => [line.local, line.note]);

describe('a preview says what a clock change does', () => {
  test('to a fixed time that does not exist', () => {
    expect(notes('30 2 * * *', 'America/New_York', '2026-03-07T12:00', 2)).toEqual([
      [
        '2026-03-08 03:00:00 -04:00 EDT',
        '02:30 does not exist on this day (clocks go forward): runs at 03:00',
      ],
      ['2026-03-09 02:30:00 -04:00 EDT', null],
    ]);
  });

  test('to a fixed time that occurs twice', () => {
    expect(notes('30 1 * * *', 'Europe/London', '2026-10-24T12:00', 2)).toEqual([
      [
        '2026-10-25 01:30:00 +01:00',
        '01:30 occurs twice on this day (clocks go back): runs once, the first time',
      ],
      ['2026-10-26 01:30:00 +00:00 GMT', null],
    ]);
  });

  test('to several times in one gap', () => {
    expect(notes('*/10 2 * * *', 'America/New_York', '2026-03-07T08:00', 1)[0]?.[1]).toBe(
      '02:00, 02:10, 02:20 and more do not exist (clocks went forward): intervals follow real time',
    );
    expect(notes('0,15,30 2 * * *', 'Australia/Lord_Howe', '2026-10-03T00:00', 2)).toEqual([
      [
        '2026-10-04 02:30:00 +11:00',
        '02:00 and 02:15 do not exist on this day (clocks go forward): runs at 02:30',
      ],
      ['2026-10-05 02:00:00 +11:00', null],
    ]);
  });

  test('to a day that does not exist', () => {
    expect(notes('0 9 * * *', 'Pacific/Apia', '2011-12-29T20:00', 1)).toEqual([
      [
        '2011-12-31 00:00:00 +14:00',
        '2011-12-30 09:00 does not exist on this day (clocks go forward): runs at 00:00',
      ],
    ]);
  });

  test('to an interval', () => {
    expect(notes('@hourly', 'America/New_York', '2026-11-01T04:30', 3)).toEqual([
      [
        '2026-11-01 01:00:00 -04:00 EDT',
        '01:00 occurs twice on this day (clocks go back): runs both times, this is the first',
      ],
      [
        '2026-11-01 01:00:00 -05:00 EST',
        '01:00 occurs twice on this day (clocks go back): runs both times, this is the second',
      ],
      ['2026-11-01 02:00:00 -05:00 EST', null],
    ]);
    expect(notes('@hourly', 'America/New_York', '2026-03-08T06:30', 2)).toEqual([
      [
        '2026-03-08 03:00:00 -04:00 EDT',
        '02:00 does not exist (clocks went forward): intervals follow real time',
      ],
      ['2026-03-08 04:00:00 -04:00 EDT', null],
    ]);
  });
});

test('rendering gives an aligned table without trailing blanks', () => {
  expect(renderPreview(preview('30 2 * * *', 'America/New_York', new Date('2026-03-07T00:00Z'), 2))).toBe(
    [
      '#  Local time                      UTC                   Note',
      '1  2026-03-07 02:30:00 -05:00 EST  2026-03-07T07:30:00Z',
      '2  2026-03-08 03:00:00 -04:00 EDT  2026-03-08T07:00:00Z  02:30 does not exist on this day (clocks go forward): runs at 03:00',
      '',
    ].join('\n'),
  );
});

test('a schedule without occurrences renders as a sentence', () => {
  expect(renderPreview(preview('0 0 31 2 *', 'UTC', new Date('2026-01-01T00:00Z'), 5))).toBe(
    'This schedule never fires again.\n',
  );
});

test('a preview of something that is no schedule or no zone is refused', () => {
  expect(() => preview('* * * *', 'UTC', new Date(0), 1)).toThrow(
    expect.objectContaining({ code: 'invalid_cron' }),
  );
  expect(() => preview('@daily', 'Mars/Phobos', new Date(0), 1)).toThrow(
    expect.objectContaining({ code: 'invalid_zone' }),
  );
  expect(() => preview('@reboot', 'Mars/Phobos', new Date(0), 1)).toThrow(
    expect.objectContaining({ code: 'invalid_zone' }),
  );
});

describe('a schedule in words', () => {
  test.each([
    ['* * * * *', 'Every minute'],
    ['*/15 * * * *', 'Every 15 minutes'],
    ['@hourly', 'Every hour'],
    ['15 * * * *', 'Every hour at minute 15'],
    ['0 */2 * * *', 'Every 2 hours'],
    ['*/10 * * * * *', 'Every 10 seconds'],
    ['0 9 * * MON-FRI', 'At 09:00, on Monday to Friday'],
    ['30 8,17 * * *', 'At 08:30 and 17:30'],
    ['*/15 9-17 * * 1-5', 'Every 15 minutes, hours 9 to 17, on Monday to Friday'],
    ['0 0 L * *', 'At 00:00, on the last day of the month'],
    ['0 12 15W JAN,MAR *', 'At 12:00, on the weekday nearest day 15, in January and March'],
    ['0 12 1 * MON', 'At 12:00, on day 1 or on Monday'],
    ['0 12 1 * +MON', 'At 12:00, on day 1 if it is Monday'],
    ['0 0 * * FRI#L', 'At 00:00, on the last Friday of the month'],
    ['0 0 0 1 1 * 2027-2029', 'At 00:00, on day 1, in January, in 2027 to 2029'],
  ])('%s: %s', (source, words) => {
    expect(describeSchedule(source)).toBe(words);
  });
});
