import { boundedCache } from './bounded-cache.ts';
import { ScheduleError } from './schedule-error.ts';

/** A stretch of time in which a zone's offset stays the same. */
export type Segment = {
  /** UTC milliseconds, inclusive. */
  readonly start: number;
  /** UTC milliseconds, exclusive. */
  readonly end: number;
  /** Milliseconds to add to UTC to read the wall clock. */
  readonly offset: number;
};

/**
 * A zone's segments, one UTC year at a time. A year's end cuts a segment in two with the same offset, which is harmless to every
 * reader and saves merging.
 */
type Timeline = {
  readonly format: Intl.DateTimeFormat;
  readonly years: ReturnType<typeof boundedCache<number, readonly Segment[]>>;
  /** The segment of the last question: neighbouring tasks ask about the same days. */
  recent: Segment;
};

/**
 * How far apart the offset is sampled when a year's transitions are looked for; between two samples that differ the transition is
 * found by bisection. The shortest season since 1970 is the week of summer time that north-eastern Brazil kept in October 2000: sampling
 * every 7 days misses it, every 5 days agrees with daily readings of every zone from 1970 to 2037. About 0.1 ms per zone and year.
 */
const SAMPLE_MS = 5 * 86_400_000;

const timelines = boundedCache<string, Timeline>(1000);

/**
 * @param zone an IANA name such as 'Europe/London', in any case, or 'UTC'
 * @throws ScheduleError invalid_zone, with a near name as the hint where there is one
 */
export function validateZone(zone: string): void {
  timeline(zone);
}

/** @throws ScheduleError invalid_zone */
export function segmentAt(zone: string, at: number): Segment {
  const line = timeline(zone);
  const recent = line.recent;
  if (at >= recent.start && at < recent.end) return recent;
  const year = new Date(at).getUTCFullYear();
  let segments = line.years.get(year);
  if (!segments) {
    segments = segmentsOfYear(line.format, year);
    line.years.set(year, segments);
  }
  for (const segment of segments) {
    if (at < segment.end) {
      line.recent = segment;
      return segment;
    }
  }
  throw new RangeError(`No offset of ${zone} is known at ${at}.`);
}

/**
 * The first instant at which the zone's wall clock has reached `wall`: the time itself, the first of two in an overlap, the end of the
 * gap in a gap. Never decreases as `wall` grows; everything about clock changes follows from this.
 *
 * @param wall local milliseconds (the wall clock read as if it were UTC)
 * @returns UTC milliseconds
 */
export function instantOf(zone: string, wall: number): number {
  // No zone has been further than 16 hours from UTC since 1970, so the search begins before the answer.
  let segment = segmentAt(zone, wall - 16 * 3_600_000);
  while (segment.end + segment.offset <= wall) segment = segmentAt(zone, segment.end);
  return Math.max(segment.start, wall - segment.offset);
}

/** @returns local milliseconds: the wall clock of `zone` at `at`, read as if it were UTC */
export function wallClockOf(zone: string, at: number): number {
  return at + segmentAt(zone, at).offset;
}

function timeline(zone: string): Timeline {
  const known = timelines.get(zone);
  if (known) return known;
  // Intl also takes '+02:00', which SQL reads with the opposite sign ('UTC+2'), and which knows no summer time.
  if (!/^[A-Za-z][A-Za-z0-9_+\-/]*$/.test(zone)) throw zoneError(zone);
  if (/^[A-Za-z]{3}$/.test(zone) && !SHORT_NAMES.has(zone.toUpperCase())) throw zoneError(zone);
  let format: Intl.DateTimeFormat;
  try {
    format = new Intl.DateTimeFormat('en-US', {
      timeZone: zone,
      calendar: 'gregory',
      numberingSystem: 'latn',
      hourCycle: 'h23',
      year: 'numeric',
      month: 'numeric',
      day: 'numeric',
      hour: 'numeric',
      minute: 'numeric',
      second: 'numeric',
    });
  } catch {
    throw zoneError(zone);
  }
  const line: Timeline = { format, years: boundedCache(64), recent: { start: 0, end: 0, offset: 0 } };
  timelines.set(zone, line);
  return line;
}

function segmentsOfYear(format: Intl.DateTimeFormat, year: number): Segment[] {
  const yearEnd = Date.UTC(year + 1, 0, 1);
  const segments: Segment[] = [];
  let start = Date.UTC(year, 0, 1);
  let offset = offsetAt(format, start);
  let sampled = start;
  while (sampled < yearEnd) {
    // The last sample is the year's last second: a change on New Year's Eve must not hide behind the boundary.
    const next = Math.min(sampled + SAMPLE_MS, yearEnd - 1000);
    if (next <= sampled) break;
    const nextOffset = offsetAt(format, next);
    if (nextOffset === offset) {
      sampled = next;
      continue;
    }
    const change = firstChange(format, sampled, next, offset);
    segments.push({ start, end: change, offset });
    start = change;
    sampled = change;
    offset = offsetAt(format, change);
  }
  segments.push({ start, end: yearEnd, offset });
  return segments;
}

/** @returns the first whole second after `low` (where the offset is `offset`) at which it is another; it is at `high` */
function firstChange(format: Intl.DateTimeFormat, low: number, high: number, offset: number): number {
  let same = low;
  let changed = high;
  while (changed - same > 1000) {
    const middle = Math.floor((same + changed) / 2000) * 1000;
    if (offsetAt(format, middle) === offset) same = middle;
    else changed = middle;
  }
  return changed;
}

/** Reading the formatted text is three times faster than formatToParts, and the format is fixed by the options above. */
function offsetAt(format: Intl.DateTimeFormat, at: number): number {
  const [month = 0, day = 0, year = 0, hour = 0, minute = 0, second = 0] = (
    format.format(at).match(/\d+/g) ?? []
  ).map(Number);
  return Date.UTC(year, month - 1, day, hour, minute, second) - at;
}

/**
 * The IANA names of three letters. Intl takes more of them, and reads BST as Bangladesh, CST as Chicago and PST with summer time, which
 * the database beside us reads otherwise or not at all.
 */
const SHORT_NAMES: ReadonlySet<string> = new Set(
  'CET EET EST GMT HST MET MST PRC ROC ROK UCT UTC WET'.split(' '),
);

/** Abbreviations that people write and that are no IANA names. */
const ABBREVIATIONS: Readonly<Record<string, string>> = {
  PST: 'America/Los_Angeles',
  PDT: 'America/Los_Angeles',
  MDT: 'America/Denver',
  CST: 'America/Chicago',
  CDT: 'America/Chicago',
  EDT: 'America/New_York',
  BST: 'Europe/London',
  CEST: 'Europe/Berlin',
  IST: 'Asia/Kolkata',
  JST: 'Asia/Tokyo',
  AEST: 'Australia/Sydney',
};

function zoneError(zone: string): ScheduleError {
  const near = nearestZone(zone);
  return new ScheduleError(
    'invalid_zone',
    zone.trim() === '' ? 'The time zone is empty.' : `"${zone}" is not a time zone.`,
    near
      ? `Did you mean ${near}?`
      : 'Use a name from the IANA time zone database, such as Europe/London or America/New_York, or UTC.',
  );
}

function nearestZone(zone: string): string | null {
  const wanted = zone.trim().replaceAll(/\s+/g, '_').toLowerCase();
  const abbreviation = ABBREVIATIONS[wanted.toUpperCase()];
  if (abbreviation) return abbreviation;
  if (wanted.length < 3 || wanted.length > 64) return null;
  let best: string | null = null;
  // A third of the letters wrong is a different name.
  let bestDistance = Math.floor(wanted.length / 3) + 1;
  for (const name of [...Intl.supportedValuesOf('timeZone'), 'UTC']) {
    const lower = name.toLowerCase();
    const city = lower.slice(lower.lastIndexOf('/') + 1);
    const wantedCity = wanted.slice(wanted.lastIndexOf('/') + 1);
    if (city === wantedCity) return name;
    const distance = Math.min(
      editDistance(wanted, lower),
      wanted.includes('/') ? Number.POSITIVE_INFINITY : editDistance(wanted, city),
    );
    if (distance < bestDistance) {
      best = name;
      bestDistance = distance;
    }
  }
  return best;
}

function editDistance(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const substitution = (previous[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      row.push(Math.min(substitution, (previous[j] ?? 0) + 1, (row[j - 1] ?? 0) + 1));
    }
    previous = row;
  }
  return previous[b.length] ?? 0;
}
