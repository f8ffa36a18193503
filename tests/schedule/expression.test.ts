import { describe, expect, test } from 'vitest';
import { occurrences, parseExpression, ScheduleError } from '../../src/schedule/index.ts';
import { REFUSED, TABLE } from './expressions.table.ts';

const AFTER = new Date('2026-01-01T00:00:00Z');
const short = (times: readonly Date[]) =>
  times.map((t) => t.toISOString().replace(/(:00)?\.000Z$/, '')).join(' ');

/** @returns the ScheduleError that `work` throws; fails when it throws none */
function refusal(work: () => unknown): ScheduleError {
  try {
    work();
  } catch (error) {
    if (error instanceof ScheduleError) return error;
    throw error;
  }
  throw new Error('It was accepted.');
}

describe('an expression means what the table says', () => {
  test.each(TABLE)('%s', (expression, expected) => {
    expect(short(occurrences(parseExpression(expression), 'UTC', AFTER, 3))).toBe(expected);
  });
});

describe('what is not an expression is refused, naming the field and a way out', () => {
  const cases = REFUSED.map(([expression, message, hint]) => ({ expression, message, hint }));
  test.each(cases)('$expression', ({ expression, message, hint }) => {
    const error = refusal(() => parseExpression(expression));
    expect(error.code).toBe('invalid_cron');
    expect(error.message).toMatch(message);
    expect(error.message).toMatch(/\.$/);
    expect(error.hint).toMatch(hint ?? /\S.*\.$/);
  });
});

test('an expression of any length is refused before it is read', () => {
  expect(refusal(() => parseExpression(`${'0,'.repeat(100_000)}0 * * * *`)).message).toMatch(
    /200009 characters/,
  );
});

test('the same text is parsed once and shared', () => {
  expect(parseExpression('17 4 * * 2')).toBe(parseExpression('17 4 * * 2'));
});

test('the cache of expressions is bounded and a forgotten expression still parses', () => {
  const first = parseExpression('1 1 1 1 * # first');
  for (let i = 0; i < 6000; i++) parseExpression(`1 1 1 1 * # ${i}`);
  const again = parseExpression('1 1 1 1 * # first');
  expect(again).not.toBe(first);
  expect(again.fields).toEqual(first.fields);
});

test('29 February skips the years that are not leap years, 2100 included', () => {
  const times = occurrences(parseExpression('0 0 29 2 *'), 'UTC', new Date('2092-03-01T00:00:00Z'), 3);
  expect(short(times)).toBe('2096-02-29T00:00 2104-02-29T00:00 2108-02-29T00:00');
});

test('a search ends with the year 2199', () => {
  const before = new Date('2199-12-30T12:00:00Z');
  expect(short(occurrences(parseExpression('@daily'), 'UTC', before, 5))).toBe('2199-12-31T00:00');
  expect(short(occurrences(parseExpression('0 */12 * * *'), 'UTC', before, 5))).toBe(
    '2199-12-31T00:00 2199-12-31T12:00',
  );
});
