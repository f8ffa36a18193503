import type { DayOfMonth, DayOfWeek } from './day-fields.ts';
import type { Expression } from './expression.ts';
import { YEAR } from './fields.ts';

/*
 * Matching on the wall clock, without any zone: an instant here is "local milliseconds", the wall clock read as if it were UTC.
 * Zones come in at next.ts, and only there.
 */

const DAY_MS = 86_400_000;

/**
 * The first wall-clock second at or after `fromMs` that matches.
 *
 * @param fromMs local milliseconds, any value; fractions of a second are rounded up
 * @returns local milliseconds, or null when nothing matches until the end of 2199. Bounded: about 2,800 month masks at worst (0.2 ms).
 */
export function nextWallClock(expr: Expression, fromMs: number): number | null {
  const from = new Date(Math.ceil(fromMs / 1000) * 1000);
  let year = from.getUTCFullYear();
  let month = from.getUTCMonth() + 1;
  let day = from.getUTCDate();
  if (year > YEAR.max) return null;
  if (year < YEAR.min) {
    year = YEAR.min;
    month = 1;
    day = 1;
  } else {
    if (monthMatches(expr, year, month) && (dayMask(expr, year, month) >>> day) & 1) {
      const time = timeOfDayFrom(expr, from.getUTCHours(), from.getUTCMinutes(), from.getUTCSeconds());
      if (time >= 0) return Date.UTC(year, month - 1, day) + time * 1000;
    }
    day++;
  }
  for (;;) {
    if (year > YEAR.max) return null;
    // A shift by 32 is a shift by 0 in JavaScript: the day after the 31st is handled by its own test.
    const rest = day > 31 || !monthMatches(expr, year, month) ? 0 : dayMask(expr, year, month) >>> day;
    if (rest !== 0) {
      const found = day + 31 - Math.clz32(rest & -rest);
      return Date.UTC(year, month - 1, found) + timeOfDayFrom(expr, 0, 0, 0) * 1000;
    }
    day = 1;
    if (++month > 12) {
      month = 1;
      year++;
    }
  }
}

function monthMatches(expr: Expression, year: number, month: number): boolean {
  return ((expr.months >>> month) & 1) === 1 && (expr.years === null || expr.years[year - YEAR.min] === 1);
}

/** @returns seconds since midnight of the first matching time at or after h:m:s, or -1 when the day holds none */
function timeOfDayFrom(expr: Expression, h: number, m: number, s: number): number {
  const second = expr.nextSecond[s] as number;
  const minute = second < 0 ? (expr.nextMinute[m + 1] as number) : (expr.nextMinute[m] as number);
  const hour = minute < 0 ? (expr.nextHour[h + 1] as number) : (expr.nextHour[h] as number);
  if (hour < 0) return -1;
  if (hour > h) return hour * 3600 + (expr.nextMinute[0] as number) * 60 + (expr.nextSecond[0] as number);
  if (minute > m) return hour * 3600 + minute * 60 + (expr.nextSecond[0] as number);
  return hour * 3600 + minute * 60 + second;
}

/** @returns bit d set for each day d (1 to 31) of the month that the two day fields select */
function dayMask(expr: Expression, year: number, month: number): number {
  const { dayOfMonth, dayOfWeek } = expr.fields;
  const length = daysInMonth(year, month);
  const firstWeekday = new Date(Date.UTC(year, month - 1, 1)).getUTCDay();
  const valid = length === 31 ? 0xfffffffe : (1 << (length + 1)) - 2;
  const byDate = daysOfMonth(dayOfMonth, length, firstWeekday);
  const byWeekday = daysOfWeek(dayOfWeek, length, firstWeekday);
  // Vixie's rule: both restricted means either; a field that begins with * (even *\/2) does not count as a restriction but still filters.
  const either = !dayOfMonth.star && !dayOfWeek.star && !dayOfWeek.and;
  return (either ? byDate | byWeekday : byDate & byWeekday) & valid;
}

function daysOfMonth(field: DayOfMonth, length: number, firstWeekday: number): number {
  let mask = field.days;
  if (field.last) mask |= 1 << length;
  if (field.nearestWeekday !== null) {
    const target = field.nearestWeekday === 'last' ? length : field.nearestWeekday;
    if (target <= length) mask |= 1 << nearestWeekday(target, length, firstWeekday);
  }
  return mask;
}

function nearestWeekday(target: number, length: number, firstWeekday: number): number {
  const weekday = (firstWeekday + target - 1) % 7;
  if (weekday === 6) return target === 1 ? 3 : target - 1;
  if (weekday === 0) return target === length ? target - 2 : target + 1;
  return target;
}

function daysOfWeek(field: DayOfWeek, length: number, firstWeekday: number): number {
  let mask = 0;
  for (let weekday = 0; weekday < 7; weekday++) {
    // Bits 1, 8, 15, 22 and 29, moved to where this weekday first falls.
    if ((field.weekdays >>> weekday) & 1) mask |= 0x20408102 << ((weekday - firstWeekday + 7) % 7);
  }
  for (const { weekday, nth } of field.nth) {
    const first = 1 + ((weekday - firstWeekday + 7) % 7);
    const day = nth === 'last' ? first + 7 * Math.floor((length - first) / 7) : first + 7 * (nth - 1);
    if (day <= length) mask |= 1 << day;
  }
  return mask;
}

/** @param month 1 to 12 */
export function daysInMonth(year: number, month: number): number {
  if (month === 2) return (year % 4 === 0 && year % 100 !== 0) || year % 400 === 0 ? 29 : 28;
  return month === 4 || month === 6 || month === 9 || month === 11 ? 30 : 31;
}

/**
 * A calendar date as local milliseconds of its midnight.
 * @param text 'YYYY-MM-DD'
 * @returns null when it is not written so or is no date of the calendar
 */
export function parseDate(text: string): number | null {
  const [, y, m, d] = /^(\d{4})-(\d{2})-(\d{2})$/.exec(text) ?? [];
  const year = Number(y);
  const month = Number(m);
  const day = Number(d);
  if (y === undefined || month < 1 || month > 12 || day < 1 || day > daysInMonth(year, month)) return null;
  // Not Date.UTC, which reads the years 0 to 99 as 1900 to 1999.
  return new Date(0).setUTCFullYear(year, month - 1, day);
}

/** @param midnight local milliseconds @returns local milliseconds of the next day's midnight */
export const nextMidnight = (midnight: number): number => midnight + DAY_MS;
