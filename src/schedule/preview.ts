import { nextWallClock } from './calendar.ts';
import { type Expression, parseExpression } from './expression.ts';
import { dateText, listText, offsetText, timeText } from './local-time.ts';
import { occurrences } from './next.ts';
import { segmentAt } from './zone.ts';

export { describe } from './describe.ts';

/** One coming occurrence, for a person to check a schedule by. */
export type PreviewLine = {
  readonly at: Date;
  /** '2026-03-08 03:00:00 -04:00 EDT'; the abbreviation is missing where the zone has none. */
  readonly local: string;
  /** What a change of the clocks does to this occurrence; null on ordinary days. */
  readonly note: string | null;
};

/**
 * The next `count` occurrences strictly after `after`, with a note wherever clocks change. Fewer lines when the schedule ends.
 *
 * @throws ScheduleError invalid_cron, invalid_zone
 */
export function preview(source: string, zone: string, after: Date, count: number): PreviewLine[] {
  const expr = parseExpression(source);
  const times = occurrences(expr, zone, after, count);
  const abbreviation = new Intl.DateTimeFormat('en-US', { timeZone: zone, timeZoneName: 'short' });
  let previous = after.getTime();
  return times.map((at) => {
    const { offset } = segmentAt(zone, at.getTime());
    const name = abbreviation.formatToParts(at).find((part) => part.type === 'timeZoneName')?.value ?? '';
    const wall = new Date(at.getTime() + offset).toISOString().slice(0, 19).replace('T', ' ');
    const note = expr.interval
      ? intervalNote(expr, zone, at.getTime(), previous)
      : fixedNote(expr, zone, at.getTime());
    previous = at.getTime();
    // 'GMT+1' would only repeat the offset.
    return { at, local: `${wall} ${offsetText(offset)}${/^GMT[+-]/.test(name) ? '' : ` ${name}`}`, note };
  });
}

/**
 * A plain text table of a preview, without colours; one trailing newline. Pure.
 * @returns 'This schedule never fires again.' for no lines
 */
export function renderPreview(lines: readonly PreviewLine[]): string {
  if (lines.length === 0) return 'This schedule never fires again.\n';
  const rows = [
    ['#', 'Local time', 'UTC', 'Note'],
    ...lines.map((line, i) => [
      `${i + 1}`,
      line.local,
      line.at.toISOString().replace('.000Z', 'Z'),
      line.note ?? '',
    ]),
  ];
  const widths = [0, 1, 2].map((column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
  return rows
    .map((row) => row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join('  '))
    .map((line) => `${line.trimEnd()}\n`)
    .join('');
}

function fixedNote(expr: Expression, zone: string, at: number): string | null {
  const lost = gapEndingAt(expr, zone, at);
  if (lost) {
    const runs = timeText(at + segmentAt(zone, at).offset);
    return `${lost} on this day (clocks go forward): runs at ${runs}`;
  }
  return passOfOverlap(zone, at) === 'first'
    ? `${timeText(at + segmentAt(zone, at).offset)} occurs twice on this day (clocks go back): runs once, the first time`
    : null;
}

function intervalNote(expr: Expression, zone: string, at: number, previous: number): string | null {
  const { start, offset } = segmentAt(zone, at);
  const pass = passOfOverlap(zone, at);
  if (pass)
    return `${timeText(at + offset)} occurs twice on this day (clocks go back): runs both times, this is the ${pass}`;
  const lost = start > previous ? gapEndingAt(expr, zone, start) : null;
  return lost ? `${lost} (clocks went forward): intervals follow real time` : null;
}

/** @returns '02:30 does not exist', naming the matching times that the gap ending at this instant swallowed; null without such */
function gapEndingAt(expr: Expression, zone: string, at: number): string | null {
  const { start, offset } = segmentAt(zone, at);
  if (start !== at) return null;
  const from = at + segmentAt(zone, at - 1).offset;
  const to = at + offset;
  const times: string[] = [];
  for (
    let wall = nextWallClock(expr, from);
    wall !== null && wall < to;
    wall = nextWallClock(expr, wall + 1)
  ) {
    if (times.length === 3) {
      times.push('more');
      break;
    }
    times.push(dateText(wall) === dateText(to) ? timeText(wall) : `${dateText(wall)} ${timeText(wall)}`);
  }
  return times.length === 0 ? null : `${listText(times)} ${times.length === 1 ? 'does' : 'do'} not exist`;
}

/** @returns which of two readings of the same wall clock `at` is; null when it happens once */
function passOfOverlap(zone: string, at: number): 'first' | 'second' | null {
  const { start, end, offset } = segmentAt(zone, at);
  const wall = at + offset;
  if (wall >= end + segmentAt(zone, end).offset) return 'first';
  return wall < start + segmentAt(zone, start - 1).offset ? 'second' : null;
}
