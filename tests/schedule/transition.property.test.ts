import { expect, test } from 'vitest';
import { nextOccurrence, parseExpression } from '../../src/schedule/index.ts';
import { naiveDay, naiveTime } from './naive-cron.ts';

/*
 * The policy for clock changes, stated a second time as a scan of real time, with the wall clock read from Intl:
 * an interval fires at every minute whose wall clock matches; a fixed time fires at the first minute at which the wall clock has
 * reached it.
 */

const HOURS = ['*', '0', '1', '2', '3', '23', '1,2', '0-3', '*/2', '*/3', '0-23', '22-23'];
/** All on a grid of five minutes, so that the scan may step by five: no zone here changes at another time. */
const MINUTES = ['*/5', '0', '15', '30', '55', '0,30', '*/20', '10-40/15', '0-59/25', '5,45'];
const DAYS = ['* * *', 'L * *', '1 * *', '* * SUN', '* * SUN#1', '* * FRI', '30,31 * *', '* * 5L'];

const CHANGES: readonly (readonly [zone: string, change: string])[] = [
  ['America/New_York', '2026-03-08T07:00Z'],
  ['America/New_York', '2026-11-01T06:00Z'],
  ['Europe/London', '2026-03-29T01:00Z'],
  ['Europe/London', '2026-10-25T01:00Z'],
  ['Australia/Lord_Howe', '2026-04-04T15:00Z'],
  ['Australia/Lord_Howe', '2026-10-03T15:30Z'],
  ['Pacific/Apia', '2011-12-30T10:00Z'],
  ['America/Sao_Paulo', '2018-11-04T03:00Z'],
  ['America/Sao_Paulo', '2019-02-17T02:00Z'],
  ['Africa/Cairo', '2024-04-25T22:00Z'],
  ['Africa/Cairo', '2024-10-31T21:00Z'],
  ['America/Havana', '2026-11-01T05:00Z'],
  ['Asia/Pyongyang', '2018-05-04T15:00Z'],
  ['America/Caracas', '2016-05-01T07:00Z'],
];

const DAY = 86_400_000;
const STEP = 5 * 60_000;

type Wall = { local: number; y: number; mo: number; d: number; h: number; mi: number };

function wallOf(local: number): Wall {
  const t = new Date(local);
  return {
    local,
    y: t.getUTCFullYear(),
    mo: t.getUTCMonth() + 1,
    d: t.getUTCDate(),
    h: t.getUTCHours(),
    mi: t.getUTCMinutes(),
  };
}

test.each(CHANGES)('in %s around %s the policy holds for every kind of expression', (zone, change) => {
  const format = new Intl.DateTimeFormat('sv-SE', {
    timeZone: zone,
    dateStyle: 'short',
    timeStyle: 'medium',
  });
  const begin = Date.parse(change) - 1.5 * DAY;
  const end = Date.parse(change) + 1.5 * DAY;
  const minutes: { at: number; local: number }[] = [];
  for (let at = begin - DAY; at < end; at += STEP) {
    minutes.push({ at, local: Date.parse(`${format.format(at).replace(' ', 'T')}Z`) });
  }
  const days = DAYS[zone.length % DAYS.length] ?? '* * *';
  const wrong: unknown[] = [];
  for (const [h, hour] of HOURS.entries()) {
    for (const [m, minute] of MINUTES.entries()) {
      const source = `${minute} ${hour} ${(h + m) % 3 === 0 ? days : '* * *'}`;
      const matches = (w: Wall) => naiveTime(source, w.h, w.mi, 0) && naiveDay(source, w.y, w.mo, w.d);
      const interval = /^\*|^0-59|^0-23/.test(minute) || /^\*|^0-23/.test(hour);
      const expected: number[] = [];
      let reached = (minutes[0]?.local ?? 0) - STEP;
      for (const { at, local } of minutes) {
        if (interval) {
          if (matches(wallOf(local))) expected.push(at);
          continue;
        }
        let fires = false;
        for (let wall = reached + STEP; wall <= local; wall += STEP) fires ||= matches(wallOf(wall));
        if (fires) expected.push(at);
        reached = Math.max(reached, local);
      }
      const own: number[] = [];
      const expr = parseExpression(source);
      for (let next = nextOccurrence(expr, zone, new Date(begin - 1)); next && next.getTime() < end; ) {
        own.push(next.getTime());
        next = nextOccurrence(expr, zone, next);
      }
      const should = expected.filter((t) => t >= begin);
      if (own.join() !== should.join()) {
        const show = (times: number[]) => times.map((t) => new Date(t).toISOString()).join(' ');
        wrong.push([
          source,
          show(own.filter((t) => !should.includes(t))),
          show(should.filter((t) => !own.includes(t))),
        ]);
      }
    }
  }
  expect(wrong).toEqual([]);
});
