import { nextMidnight, parseDate } from './calendar.ts';
import { ScheduleError } from './schedule-error.ts';
import { instantOf } from './zone.ts';

/** The stretch in which a task may run, in UTC milliseconds. */
export type TaskDates = {
  /** Inclusive; -Infinity without a start date. */
  readonly from: number;
  /** Exclusive; Infinity without an end date. */
  readonly until: number;
};

/**
 * A task's first and last day, both inclusive, in its own zone: a day begins when the wall clock there reaches midnight, which on some
 * days is at 01:00 because the clocks skip midnight itself.
 *
 * @param startDate 'YYYY-MM-DD' or null @param endDate likewise
 * @throws ScheduleError invalid_dates when one is no date or they are the wrong way round; invalid_zone
 */
export function taskDates(zone: string, startDate: string | null, endDate: string | null): TaskDates {
  const start = startDate === null ? null : midnightOf('start', startDate);
  const end = endDate === null ? null : midnightOf('end', endDate);
  if (start !== null && end !== null && start > end) {
    throw new ScheduleError(
      'invalid_dates',
      `The start date ${startDate} is after the end date ${endDate}.`,
      'Move one of them, or remove the end date.',
    );
  }
  return {
    // A start such as 0001-01-01 says "always"; zones are not asked about the time before 1970.
    from: start === null || start < 0 ? Number.NEGATIVE_INFINITY : instantOf(zone, start),
    until: end === null ? Number.POSITIVE_INFINITY : instantOf(zone, nextMidnight(end)),
  };
}

function midnightOf(which: 'start' | 'end', text: string): number {
  const midnight = parseDate(text);
  if (midnight !== null) return midnight;
  throw new ScheduleError(
    'invalid_dates',
    `The ${which} date "${text}" is not a date of the calendar.`,
    'Write a day that exists as YYYY-MM-DD, for example 2026-02-28.',
  );
}
