/**
 * A second, deliberately slow reading of cron: one predicate per field, asked of every value and every day. It shares no code and no idea with
 * src/schedule, so that the two agreeing means something. It reads valid expressions only, without nicknames and comments.
 */

const MONTHS = ['JAN', 'FEB', 'MAR', 'APR', 'MAY', 'JUN', 'JUL', 'AUG', 'SEP', 'OCT', 'NOV', 'DEC'];
const DAYS = ['SUN', 'MON', 'TUE', 'WED', 'THU', 'FRI', 'SAT'];

function plain(field: string, value: number, low: number, high: number): boolean {
  return field.split(',').some((item) => {
    const [range = '', step = '1'] = item.split('/');
    const [from = low, to] = range === '*' ? [low, high] : range.split('-').map(Number);
    const end = to ?? from;
    return value >= from && value <= end && (value - from) % Number(step) === 0;
  });
}

function numbers(field: string, names: readonly string[], first: number): string {
  return names.reduce((text, name, i) => text.replaceAll(new RegExp(name, 'gi'), String(i + first)), field);
}

const lastDay = (year: number, month: number): number => new Date(Date.UTC(year, month, 0)).getUTCDate();
const weekdayOf = (year: number, month: number, day: number): number =>
  new Date(Date.UTC(year, month - 1, day)).getUTCDay();

function dateMatches(field: string, year: number, month: number, day: number): boolean {
  const last = lastDay(year, month);
  return field.split(',').some((item) => {
    if (item === '?') return true;
    if (item === 'L') return day === last;
    if (item.endsWith('W')) {
      const wanted = item === 'LW' ? last : Number.parseInt(item, 10);
      if (wanted > last) return false;
      const nearest = [0, -1, 1, -2, 2]
        .map((shift) => wanted + shift)
        .find((d) => d >= 1 && d <= last && ![0, 6].includes(weekdayOf(year, month, d)));
      return day === nearest;
    }
    return plain(item, day, 1, 31);
  });
}

function weekdayMatches(field: string, year: number, month: number, day: number): boolean {
  const weekday = weekdayOf(year, month, day);
  const last = lastDay(year, month);
  return numbers(field.replace('+', '').replace('-SUN', '-7'), DAYS, 0)
    .split(',')
    .some((item) => {
      if (item === '?') return true;
      const [, which, nth] = /^(\d)#?(L|(?<=#)\d)$/.exec(item) ?? [];
      if (which !== undefined) {
        if (weekday !== Number(which) % 7) return false;
        return nth === 'L' ? day + 7 > last : Math.ceil(day / 7) === Number(nth);
      }
      return plain(item, weekday, 0, 7) || (weekday === 0 && plain(item.replace('*', '0-6'), 7, 0, 7));
    });
}

/** Whether the day (month and day from 1) is one of the expression's, whatever the time. */
export function naiveDay(expression: string, year: number, month: number, day: number): boolean {
  const f = fieldsOf(expression);
  if (!plain(f.year, year, 1970, 2199) || !plain(numbers(f.month, MONTHS, 1), month, 1, 12)) return false;
  const byDate = dateMatches(f.date, year, month, day);
  const byWeekday = weekdayMatches(f.weekday, year, month, day);
  const free = /^[*?]/.test(f.date) || /^\+?[*?]/.test(f.weekday);
  return free || f.weekday.startsWith('+') ? byDate && byWeekday : byDate || byWeekday;
}

/** Whether the time of day is one of the expression's, whatever the day. */
export function naiveTime(expression: string, hour: number, minute: number, second: number): boolean {
  const f = fieldsOf(expression);
  return plain(f.hour, hour, 0, 23) && plain(f.minute, minute, 0, 59) && plain(f.second, second, 0, 59);
}

/** Every matching second of a day, ascending, as seconds since midnight. */
function naiveTimes(expression: string): number[] {
  const f = fieldsOf(expression);
  const count = (size: number) => Array.from({ length: size }, (_, i) => i);
  const seconds = count(60).filter((s) => plain(f.second, s, 0, 59));
  const minutes = count(60).filter((m) => plain(f.minute, m, 0, 59));
  const hours = count(24).filter((h) => plain(f.hour, h, 0, 23));
  return hours.flatMap((h) => minutes.flatMap((m) => seconds.map((s) => h * 3600 + m * 60 + s)));
}

/** The first `count` matches after `after` in UTC, by walking every day. */
export function naiveOccurrences(expression: string, after: Date, count: number): Date[] {
  const times = naiveTimes(expression);
  const found: Date[] = [];
  const start = Date.UTC(after.getUTCFullYear(), after.getUTCMonth(), after.getUTCDate());
  for (
    let midnight = start;
    found.length < count && midnight < Date.UTC(2200, 0, 1);
    midnight += 86_400_000
  ) {
    const day = new Date(midnight);
    if (!naiveDay(expression, day.getUTCFullYear(), day.getUTCMonth() + 1, day.getUTCDate())) continue;
    const later = times.map((s) => midnight + s * 1000).filter((t) => t > after.getTime());
    found.push(...later.slice(0, count - found.length).map((t) => new Date(t)));
  }
  return found;
}

function fieldsOf(expression: string) {
  const words = expression.trim().split(/\s+/);
  if (words.length === 5) words.unshift('0');
  const [second = '', minute = '', hour = '', date = '', month = '', weekday = '', year = '*'] = words;
  return { second, minute, hour, date, month, weekday, year };
}
