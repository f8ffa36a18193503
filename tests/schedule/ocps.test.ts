import { describe, expect, test } from 'vitest';
import { nextOccurrence, parseExpression, ScheduleError } from '../../src/schedule/index.ts';

/*
 * The conformance vectors of the Open Cron Pattern Specification (OCPS), versions 1.0 to 1.4, as facts. The one recommendation not
 * followed is 1.4's "SHOULD skip" for a fixed time in a gap: a task set for 02:30 every day is owed its day (see clock-changes).
 */

const at = (text: string) => new Date(`${text.replace(' ', 'T')}Z`);

/** A pattern matches an instant when that instant is the first occurrence after the millisecond before it. */
function matches(pattern: string, text: string): boolean {
  const instant = at(text);
  const next = nextOccurrence(parseExpression(pattern), 'UTC', new Date(instant.getTime() - 1));
  return next?.getTime() === instant.getTime();
}

const VECTORS: readonly (readonly [version: string, pattern: string, must: string[], mustNot: string[]])[] = [
  ['1.0', '15 10 * * *', ['2025-03-10 10:15'], ['2025-03-10 10:14']],
  ['1.0', '30 8 * jan Mon', ['2025-01-06 08:30'], ['2025-02-03 08:30']],
  [
    '1.0',
    '5-59/15 9 * * *',
    ['2025-03-10 09:05', '2025-03-10 09:20', '2025-03-10 09:35', '2025-03-10 09:50'],
    ['2025-03-10 09:15'],
  ],
  ['1.0', '0 12 1 * MON', ['2025-10-01 12:00', '2025-10-06 12:00'], ['2025-10-07 12:00']],
  ['1.0', '0 12 * * MON', [], ['2025-10-07 12:00']],
  ['1.0', '0 12 1-31 * MON', ['2025-10-07 12:00'], []],
  ['1.1', '@yearly', ['2026-01-01 00:00'], ['2026-01-02 00:00']],
  ['1.1', '@monthly', ['2026-02-01 00:00'], ['2026-02-02 00:00']],
  ['1.1', '@weekly', ['2025-10-05 00:00'], ['2025-10-06 00:00']],
  ['1.1', '@daily', ['2025-10-07 00:00'], ['2025-10-07 00:01']],
  ['1.1', '@hourly', ['2025-10-07 10:00'], ['2025-10-07 10:01']],
  ['1.2', '15 10 * * *', ['2025-03-10 10:15:00'], ['2025-03-10 10:15:30']],
  ['1.2', '30 15 10 * * *', ['2025-03-10 10:15:30'], ['2025-03-10 10:15:29']],
  ['1.2', '0 15 10 * * * 2025', ['2025-03-10 10:15:00'], ['2026-03-10 10:15:00']],
  ['1.2', '0 0 0 1 1 * 1970-2199/2', ['2026-01-01 00:00:00'], ['2025-01-01 00:00:00']],
  ['1.3', '0 0 L * *', ['2025-02-28 00:00'], ['2025-02-27 00:00']],
  ['1.3', '0 0 * * FRI#L', ['2025-02-28 00:00'], ['2025-02-21 00:00']],
  ['1.3', '0 0 * * TUE#3', ['2025-06-17 00:00'], ['2025-06-10 00:00']],
  ['1.3', '0 12 15W * *', ['2025-06-16 12:00'], ['2025-06-15 12:00']],
  ['1.3', '0 12 1W * *', ['2025-02-03 12:00'], ['2025-02-01 12:00']],
  ['1.4', '0 12 1 * MON', ['2025-09-01 12:00', '2025-09-08 12:00', '2025-10-01 12:00'], ['2025-10-07 12:00']],
  ['1.4', '0 12 1 * +MON', ['2025-09-01 12:00'], ['2025-09-08 12:00', '2025-10-01 12:00']],
];

describe('OCPS: matches and does not match', () => {
  test.each(VECTORS)('%s  %s', (_version, pattern, must, mustNot) => {
    for (const instant of must) expect([instant, matches(pattern, instant)]).toEqual([instant, true]);
    for (const instant of mustNot) expect([instant, matches(pattern, instant)]).toEqual([instant, false]);
  });
});

describe('OCPS: refuses', () => {
  test.each([
    ['1.0', '60 0 * * *'],
    ['1.0', '0 0 10-5 * *'],
    ['1.0', '0 0 /30 * *'],
    ['1.0', '0/15 0 * * *'],
    ['1.0', '10/10 0 * * *'],
    ['1.1', '@Daily'],
    ['1.1', '@daily 0 0 * * *'],
    ['1.2', '0 0 0 1 1 * 1969'],
    ['1.3', '0 12 1-15W * *'],
    ['1.3', '0 0 l * *'],
    ['1.4', '0 12 +1 * MON'],
    ['1.4', '? 12 * * *'],
  ])('%s  %s', (_version, pattern) => {
    expect(() => parseExpression(pattern)).toThrow(ScheduleError);
  });
});

describe('OCPS: accepts', () => {
  test.each([
    ['1.0', '* * 31 2 *'],
    ['1.1', '@reboot'],
    ['1.2', '0 0 1 1 *'],
    ['1.2', '0 0 0 1 1 *'],
    ['1.2', '0 0 0 1 1 * *'],
  ])('%s  %s', (_version, pattern) => {
    expect(parseExpression(pattern).source).toBe(pattern);
  });
});

test('OCPS 1.1: @daily is 0 0 * * *', () => {
  expect(parseExpression('@daily').fields).toEqual(parseExpression('0 0 * * *').fields);
});
