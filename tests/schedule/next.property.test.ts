import { Cron } from 'croner';
import { describe, expect, test } from 'vitest';
import { nextOccurrence, occurrences, parseExpression } from '../../src/schedule/index.ts';
import { naiveDay, naiveOccurrences, naiveTime } from './naive-cron.ts';

/** A small seeded generator (mulberry32), so that a failure names the seed that repeats it. */
function seeded(seed: number) {
  let state = seed;
  const next = () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const int = (low: number, high: number) => low + Math.floor(next() * (high - low + 1));
  const pick = <T>(items: readonly T[]): T => items[int(0, items.length - 1)] as T;
  return { int, pick };
}

function randomField(r: ReturnType<typeof seeded>, low: number, high: number, wild: number): string {
  if (r.int(1, 10) <= wild) return '*';
  const item = () => {
    const a = r.int(low, high);
    const b = r.int(a, high);
    return r.pick([
      `${a}`,
      `${a}`,
      `${a}-${b}`,
      `*/${r.int(2, Math.min(high, 20))}`,
      `${a}-${b}/${r.int(1, 7)}`,
    ]);
  };
  return r.int(1, 3) === 1 ? `${item()},${item()}` : item();
}

function randomExpression(r: ReturnType<typeof seeded>): string {
  const date = r.pick(['*', '*', '?', 'L', '15W', '1W', 'LW', `${r.int(1, 28)},L`, randomField(r, 1, 31, 3)]);
  const weekday = r.pick([
    '*',
    '*',
    '?',
    'FRI#L',
    'MON#1',
    '2#3',
    '5L',
    '+MON-FRI',
    '6-7',
    randomField(r, 0, 6, 4),
  ]);
  const fields = [
    randomField(r, 0, 59, 2),
    randomField(r, 0, 23, 3),
    date,
    randomField(r, 1, 12, 6),
    weekday,
  ];
  if (r.int(1, 4) === 1) fields.unshift(randomField(r, 0, 59, 1));
  return fields.join(' ');
}

const ZONES = [
  'UTC',
  'America/New_York',
  'Europe/London',
  'Australia/Lord_Howe',
  'Africa/Cairo',
  'Asia/Kolkata',
  'Pacific/Apia',
];

test('random expressions in UTC equal a day-by-day reading of the calendar', () => {
  for (let seed = 1; seed <= 250; seed++) {
    const r = seeded(seed);
    const expression = randomExpression(r);
    const after = new Date(
      Date.UTC(r.int(1990, 2050), r.int(0, 11), r.int(1, 28), r.int(0, 23), r.int(0, 59), r.int(0, 59)),
    );
    const own = occurrences(parseExpression(expression), 'UTC', after, 3);
    // A search over days is slow when nothing matches; what comes within 30 years is compared in full.
    const last = own.at(-1);
    if (own.length < 3 || !last || last.getTime() - after.getTime() > 30 * 365 * 86_400_000) continue;
    expect([seed, expression, own]).toEqual([seed, expression, naiveOccurrences(expression, after, 3)]);
  }
});

describe.each(ZONES)('in %s', (zone) => {
  const wall = new Intl.DateTimeFormat('sv-SE', { timeZone: zone, dateStyle: 'short', timeStyle: 'medium' });

  test('occurrences strictly increase, and each is the next from any instant before it', () => {
    for (let seed = 1; seed <= 120; seed++) {
      const r = seeded(seed);
      const expr = parseExpression(randomExpression(r));
      let at = Date.UTC(r.int(1995, 2040), r.int(0, 11), r.int(1, 28), r.int(0, 23));
      for (let i = 0; i < 20; i++) {
        const next = nextOccurrence(expr, zone, new Date(at))?.getTime();
        if (next === undefined) break;
        expect(next, `seed ${seed}: ${expr.source} after ${new Date(at).toISOString()}`).toBeGreaterThan(at);
        const between = at + Math.floor((next - at) * 0.7);
        if (between < next) expect(nextOccurrence(expr, zone, new Date(between))?.getTime()).toBe(next);
        at = next;
      }
    }
  });

  test('away from changes, a scan of every minute finds the same occurrences', () => {
    for (let seed = 1; seed <= 40; seed++) {
      const r = seeded(seed * 7);
      const expression = randomExpression(r);
      if (expression.split(' ').length === 6) continue;
      // The second week of a January or July: no zone here changes its clocks then.
      const begin = Date.UTC(r.int(2013, 2035), r.pick([0, 6]), 8);
      const end = begin + 3 * 86_400_000;
      const scanned: string[] = [];
      for (let t = begin; t < end; t += 60_000) {
        const [y = 0, mo = 0, d = 0, h = 0, mi = 0] = wall.format(t).split(/\D+/).map(Number);
        if (naiveTime(expression, h, mi, 0) && naiveDay(expression, y, mo, d))
          scanned.push(new Date(t).toISOString());
      }
      const expr = parseExpression(expression);
      const own: string[] = [];
      for (let at = begin - 1; ; ) {
        const next = nextOccurrence(expr, zone, new Date(at))?.getTime();
        if (next === undefined || next >= end) break;
        own.push(new Date(next).toISOString());
        at = next;
      }
      expect([seed, expression, own]).toEqual([seed, expression, scanned]);
    }
  });

  test('croner, as a second opinion, agrees away from changes', () => {
    let compared = 0;
    for (let seed = 1; seed <= 100; seed++) {
      const r = seeded(seed * 13);
      const expression = randomExpression(r);
      const fields = expression.split(' ').slice(-3);
      // Croner takes a day field that begins with * and has a step as a restriction (OR); Vixie and OCPS as a filter (AND).
      if (/^\*\/|,/.test(fields[0] ?? '') || /^\*\/|,/.test(fields[2] ?? '')) continue;
      const after = new Date(Date.UTC(r.int(2013, 2035), r.pick([0, 6]), 8));
      const own = occurrences(parseExpression(expression), zone, after, 3);
      if (own.length < 3 || (own[2]?.getTime() ?? 0) > after.getTime() + 10 * 86_400_000) continue;
      compared++;
      expect([seed, expression, own]).toEqual([
        seed,
        expression,
        new Cron(expression, { timezone: zone }).nextRuns(3, after),
      ]);
    }
    expect(compared).toBeGreaterThan(10);
  });
});

test('a fixed daily time runs exactly once on every day of a year, in every zone', () => {
  for (const zone of Intl.supportedValuesOf('timeZone')) {
    if (zone === 'Pacific/Apia' || zone === 'Pacific/Kwajalein') continue;
    const expr = parseExpression('30 2 * * *');
    // One whole year a zone, chosen by the zone's name so that all years are covered somewhere.
    const year = 1995 + ((zone.length * 7 + zone.charCodeAt(zone.length - 1)) % 40);
    const times = occurrences(expr, zone, new Date(Date.UTC(year, 0, 1, 12)), 364);
    const day = new Intl.DateTimeFormat('sv-SE', { timeZone: zone });
    const days = new Set(times.map((t) => day.format(t)));
    expect([zone, year, days.size]).toEqual([zone, year, 364]);
    const first = times[0]?.getTime() ?? 0;
    expect(Math.round(((times.at(-1)?.getTime() ?? 0) - first) / 86_400_000)).toBe(363);
  }
});
