import type { DayOfMonth, DayOfWeek } from './day-fields.ts';
import { type Expression, parseExpression } from './expression.ts';
import type { FieldValues } from './fields.ts';
import { listText } from './local-time.ts';

const WEEKDAYS = ['Sunday', 'Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday'];
const MONTHS = [
  '',
  'January',
  'February',
  'March',
  'April',
  'May',
  'June',
  'July',
  'August',
  'September',
  'October',
  'November',
  'December',
];

/**
 * A schedule in short English: "At 09:00, on Monday to Friday".
 * @throws ScheduleError invalid_cron
 */
export function describe(source: string): string {
  const expr = parseExpression(source);
  if (expr.reboot) return 'At start-up, which agent tasks do not have: never';
  const { month, year } = expr.fields;
  const parts = [timesText(expr), daysText(expr)];
  if (month.values.length < 12) parts.push(`in ${listText(runs(month.values, (m) => MONTHS[m] ?? ''))}`);
  if (year) parts.push(`in ${listText(runs(year.values, String))}`);
  return parts.filter((part) => part !== '').join(', ');
}

function timesText({ fields: { second, minute, hour } }: Expression): string {
  const plainSecond = second.values.length === 1 && second.values[0] === 0;
  const times = minute.values.length * hour.values.length;
  if (plainSecond && times <= 4) {
    const clock = hour.values.flatMap((h) => minute.values.map((m) => `${two(h)}:${two(m)}`));
    return `At ${listText(clock)}`;
  }
  const ofMinute = plainSecond ? '' : every(second, 60, 'second');
  const minutes = every(minute, 60, 'minute');
  const hours = hour.values.length === 24 ? '' : every(hour, 24, 'hour');
  if (ofMinute !== '' && minute.values.length === 60) return capital([ofMinute, inside(hours)].join(''));
  if (minute.values.length === 1 && hour.values.length > 4) {
    const past = minute.values[0] === 0 ? '' : ` at minute ${minute.values[0]}`;
    return capital(`${hours || 'every hour'}${past}${ofMinute === '' ? '' : `, ${ofMinute}`}`);
  }
  return capital([ofMinute === '' ? '' : `${ofMinute} of `, minutes, inside(hours)].join(''));
}

const inside = (hours: string): string => (hours === '' ? '' : `, ${hours}`);

/** "every minute", "every 15 minutes" where the step divides the field evenly, else the values. */
function every(field: FieldValues, size: number, unit: string): string {
  const { values } = field;
  if (values.length === size) return `every ${unit}`;
  const step = (values[1] ?? 0) - (values[0] ?? 0);
  const even = values.length > 1 && values[0] === 0 && size % step === 0 && values.length === size / step;
  if (even && values.every((v, i) => v === i * step)) return `every ${step} ${unit}s`;
  return `${unit}${values.length === 1 ? '' : 's'} ${listText(runs(values, String))}`;
}

function daysText({ fields: { dayOfMonth, dayOfWeek } }: Expression): string {
  const dates = datesText(dayOfMonth);
  const weekdays = weekdaysText(dayOfWeek);
  if (dates === '' || weekdays === '') return dates || weekdays;
  const both = dayOfMonth.star || dayOfWeek.star || dayOfWeek.and;
  return both ? `${dates} if it is ${weekdays.replace(/^on /, '')}` : `${dates} or ${weekdays}`;
}

function datesText(field: DayOfMonth): string {
  const days = bitsOf(field.days, 1, 31);
  if (days.length === 31) return '';
  if (field.nearestWeekday === 'last') return 'on the last weekday of the month';
  if (field.nearestWeekday !== null) return `on the weekday nearest day ${field.nearestWeekday}`;
  const parts =
    days.length === 0 ? [] : [`day${days.length === 1 ? '' : 's'} ${listText(runs(days, String))}`];
  if (field.last) parts.push('the last day of the month');
  return `on ${listText(parts)}`;
}

function weekdaysText(field: DayOfWeek): string {
  const days = bitsOf(field.weekdays, 0, 6);
  if (days.length === 7) return '';
  const parts = runs(days, (d) => WEEKDAYS[d] ?? '');
  for (const { weekday, nth } of field.nth) {
    const which = nth === 'last' ? 'last' : ['', 'first', 'second', 'third', 'fourth', 'fifth'][nth];
    parts.push(`the ${which} ${WEEKDAYS[weekday]} of the month`);
  }
  return `on ${listText(parts)}`;
}

/** Consecutive values of three or more become "first to last". */
function runs(values: readonly number[], name: (value: number) => string): string[] {
  const parts: string[] = [];
  for (let i = 0; i < values.length; ) {
    let j = i;
    while (values[j + 1] === (values[j] as number) + 1) j++;
    if (j - i >= 2) parts.push(`${name(values[i] as number)} to ${name(values[j] as number)}`);
    else for (let k = i; k <= j; k++) parts.push(name(values[k] as number));
    i = j + 1;
  }
  return parts;
}

function bitsOf(mask: number, low: number, high: number): number[] {
  const values: number[] = [];
  for (let bit = low; bit <= high; bit++) if ((mask >>> bit) & 1) values.push(bit);
  return values;
}

const two = (n: number): string => String(n).padStart(2, '0');

const capital = (text: string): string => text.charAt(0).toUpperCase() + text.slice(1);
