import { describe, expect, test } from 'vitest';
import { ScheduleError, validateZone } from '../../src/schedule/index.ts';
import { instantOf, segmentAt, wallClockOf } from '../../src/schedule/zone.ts';

function hintFor(zone: string): string {
  try {
    validateZone(zone);
  } catch (error) {
    if (error instanceof ScheduleError && error.code === 'invalid_zone') return error.hint;
    throw error;
  }
  throw new Error(`${zone} was accepted.`);
}

test.each([
  'UTC',
  'Europe/London',
  'europe/london',
  'America/Argentina/Buenos_Aires',
  'Etc/GMT+5',
  'US/Eastern',
  'CET',
  'GMT',
])('%s is a zone', (zone) => {
  expect(() => validateZone(zone)).not.toThrow();
});

describe('what is not a zone is refused with a near name', () => {
  test.each([
    ['Europe/Londn', 'Europe/London'],
    ['America/NewYork', 'America/New_York'],
    ['new york', 'America/New_York'],
    ['Berlin', 'Europe/Berlin'],
    ['PST', 'America/Los_Angeles'],
    ['BST', 'Europe/London'],
    ['edt', 'America/New_York'],
  ])('%s: %s', (zone, near) => {
    expect(hintFor(zone)).toBe(`Did you mean ${near}?`);
  });

  test.each(['', ' ', '+02:00', '-5', 'Mars/Phobos', 'x'.repeat(5000), 'UTC; drop', '../etc'])(
    '%s',
    (zone) => {
      expect(hintFor(zone)).toMatch(/IANA/);
    },
  );
});

test('offsets equal those of Intl on every day of years with unusual changes', () => {
  for (const [zone, year] of [
    ['America/Recife', 2000],
    ['Africa/Casablanca', 2026],
    ['Africa/Cairo', 2014],
    ['Australia/Lord_Howe', 2026],
    ['Pacific/Apia', 2011],
    ['Asia/Gaza', 2016],
    ['Africa/Monrovia', 1972],
    ['Asia/Pyongyang', 2018],
    ['America/Caracas', 2007],
    ['Europe/Istanbul', 2016],
  ] as const) {
    const format = new Intl.DateTimeFormat('sv-SE', {
      timeZone: zone,
      dateStyle: 'short',
      timeStyle: 'medium',
    });
    for (let t = Date.UTC(year, 0, 1); t < Date.UTC(year + 1, 0, 1); t += 6 * 3_600_000) {
      const expected = Date.parse(`${format.format(t).replace(' ', 'T')}Z`);
      expect([zone, t, wallClockOf(zone, t)]).toEqual([zone, t, expected]);
    }
  }
});

test('the instant of a wall clock never goes back as the wall clock goes on', () => {
  for (const zone of ['America/New_York', 'Australia/Lord_Howe', 'Pacific/Apia', 'America/Sao_Paulo']) {
    for (const year of [2011, 2018, 2026]) {
      const wrong: string[] = [];
      let previous = Number.NEGATIVE_INFINITY;
      for (let wall = Date.UTC(year, 0, 1); wall < Date.UTC(year + 1, 0, 1); wall += 600_000) {
        const instant = instantOf(zone, wall);
        // It has been reached at the instant, and not a second before.
        const reached = wallClockOf(zone, instant) >= wall && wallClockOf(zone, instant - 1000) < wall;
        if (instant < previous || !reached) wrong.push(new Date(wall).toISOString());
        previous = instant;
      }
      expect([zone, year, wrong]).toEqual([zone, year, []]);
    }
  }
});

test('segments are gapless across years', () => {
  let at = Date.UTC(1999, 5, 1);
  for (let i = 0; i < 60; i++) {
    const segment = segmentAt('Europe/London', at);
    expect(segment.start).toBeLessThanOrEqual(at);
    expect(segmentAt('Europe/London', segment.end).start).toBe(segment.end);
    at = segment.end;
  }
  expect(at).toBeGreaterThan(Date.UTC(2015, 0, 1));
});
