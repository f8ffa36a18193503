import { nextWallClock } from './calendar.ts';
import type { Expression } from './expression.ts';
import { instantOf, segmentAt } from './zone.ts';

/*
 * When clocks change.
 *
 * Fixed times ("30 2 * * *") happen once a day whatever the clocks do: a time in the gap happens at the instant the gap ends, a time in
 * the overlap the first time round. Both follow from one definition: a fixed time happens at the first instant at which the wall clock
 * has reached it.
 *
 * Intervals ("*\/15 * * * *") follow real time: they happen at every instant whose wall clock matches, so in both passes of an
 * overlap, and in a gap there is no instant that could match.
 *
 * An expression in a zone is therefore a set of instants, and "next" is that set's smallest element after an instant: the answer does
 * not depend on where a search began, so a scheduler that wakes late computes the same times.
 *
 * Why this is not a library's work, measured over every ten minutes around ten changes of clocks: cron-parser 5.10.5 gives 01:30 again
 * when asked between its two passes, runs 02:30 at 03:30, and near Lord Howe's half-hour changes loses the day of a gap and the quarter
 * hours of an interval; a question costs 90 to 1,600 µs. croner 11.0.1 agrees with the definition above except where a whole day is
 * missing (Apia 2011, which it drops), at 22 to 68 µs, but reads what OCPS refuses (@Daily, ? 12 * * *) and takes *\/2 in a day field
 * for a restriction. This takes 1 to 2 µs. croner remains the second opinion in the tests.
 */

const DAY_MS = 86_400_000;

/**
 * The first instant strictly after `after` at which the expression fires in the zone.
 *
 * @param zone IANA name
 * @returns whole seconds; null when it never fires again (until the end of 2199)
 * @throws ScheduleError invalid_zone
 */
export function nextOccurrence(expr: Expression, zone: string, after: Date): Date | null {
  const next = nextInstant(expr, zone, after.getTime());
  return next === null ? null : new Date(next);
}

/**
 * The next occurrences, ascending, strictly after `after`: at most `limit`, fewer when the schedule ends.
 * @throws ScheduleError invalid_zone
 */
export function occurrences(expr: Expression, zone: string, after: Date, limit: number): Date[] {
  const found: Date[] = [];
  let at = after.getTime();
  while (found.length < limit) {
    const next = nextInstant(expr, zone, at);
    if (next === null) break;
    found.push(new Date(next));
    at = next;
  }
  return found;
}

/** {@link nextOccurrence} in milliseconds, for this folder's own loops. */
export function nextInstant(expr: Expression, zone: string, after: number): number | null {
  if (!Number.isFinite(after)) throw new RangeError('The instant to search from is not a date.');
  // Validated even where the expression answers by itself, so that a bad zone never hides behind @reboot.
  segmentAt(zone, 0);
  if (expr.reboot) return null;
  // Years before 1970 are outside the dialect's range, and zones were wilder there than the search allows for.
  const from = Math.max(after, -1000);
  return expr.interval ? nextOfInterval(expr, zone, from) : nextOfFixed(expr, zone, from);
}

function nextOfFixed(expr: Expression, zone: string, after: number): number | null {
  // The furthest the wall clock has come so far: in the second pass of an overlap that is the end of the first.
  let segment = segmentAt(zone, after);
  let reached = after + segment.offset + 1;
  while (segment.start > after - 2 * DAY_MS) {
    segment = segmentAt(zone, segment.start - 1);
    reached = Math.max(reached, segment.end + segment.offset);
  }
  const wall = nextWallClock(expr, reached);
  return wall === null ? null : instantOf(zone, wall);
}

function nextOfInterval(expr: Expression, zone: string, after: number): number | null {
  let at = after + 1;
  for (;;) {
    const segment = segmentAt(zone, at);
    const local = at + segment.offset;
    const wall = nextWallClock(expr, local);
    if (wall !== null && wall < segment.end + segment.offset) return wall - segment.offset;
    at = segment.end;
    // Far away: jump close instead of visiting every change in between. Two days are more than clocks have ever been set back.
    const low = nextWallClock(expr, local - 2 * DAY_MS);
    if (low === null) return null;
    at = Math.max(at, low - 2 * DAY_MS);
  }
}
