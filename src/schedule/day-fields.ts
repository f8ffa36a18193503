import { DAY_OF_MONTH, DAY_OF_WEEK, fieldError, parseField, parseValue } from './fields.ts';

/** The day of month field. */
export type DayOfMonth = {
  /** Bit d (1 to 31) is set for a plain day d. */
  readonly days: number;
  readonly star: boolean;
  /** `L`: the last day of the month. */
  readonly last: boolean;
  /** `15W`: the weekday nearest to that day; 'last' for `LW`; null without W. Never leaves the month. */
  readonly nearestWeekday: number | 'last' | null;
};

/** The day of week field; weekdays count from Sunday, 0. */
export type DayOfWeek = {
  /** Bit w (0 to 6) is set for a plain weekday w. */
  readonly weekdays: number;
  readonly star: boolean;
  /** `MON#2` is {weekday 1, nth 2}; `FRI#L` and `5L` are {weekday 5, nth 'last'}. */
  readonly nth: readonly { readonly weekday: number; readonly nth: number | 'last' }[];
  /** `+MON`: day of month and day of week must both match (OCPS 1.4). */
  readonly and: boolean;
};

const ALL_DAYS = 0xfffffffe | 0;
const ALL_WEEKDAYS = 0x7f;

const bits = (values: readonly number[]): number => values.reduce((mask, v) => mask | (1 << v), 0);

/** @throws ScheduleError invalid_cron */
export function parseDayOfMonth(text: string): DayOfMonth {
  const none = { star: false, last: false, nearestWeekday: null };
  if (text === '?') return { ...none, days: ALL_DAYS, star: true };
  if (text.includes('W')) {
    const [, day] = /^(\d{1,2}|L)W$/.exec(text) ?? [];
    if (day === undefined) {
      throw fieldError(
        DAY_OF_MONTH,
        `W goes with one single day, not with "${text}"`,
        'Write for example 15W (the weekday nearest the 15th) or LW (the last weekday), alone in its field.',
      );
    }
    return { ...none, days: 0, nearestWeekday: day === 'L' ? 'last' : parseValue(DAY_OF_MONTH, day) };
  }
  const items = text.split(',');
  const plain = items.filter((item) => item !== 'L');
  const last = plain.length < items.length;
  if (plain.length === 0) return { ...none, days: 0, last };
  const field = parseField(DAY_OF_MONTH, plain.join(','));
  return { days: bits(field.values), star: text.startsWith('*'), last, nearestWeekday: null };
}

/** @throws ScheduleError invalid_cron */
export function parseDayOfWeek(text: string): DayOfWeek {
  if (text === '?') return { weekdays: ALL_WEEKDAYS, star: true, nth: [], and: false };
  const and = text.startsWith('+');
  const body = and ? text.slice(1) : text;
  if (body === '')
    throw fieldError(DAY_OF_WEEK, 'nothing follows the +', 'Write a day after it, as in +MON.');
  const plain: string[] = [];
  const nth: { weekday: number; nth: number | 'last' }[] = [];
  for (const item of body.split(',')) {
    const special = /^(.+)#(.*)$/.exec(item) ?? /^([0-9]|[A-Za-z]{3})(L)$/.exec(item);
    if (!special) {
      if (item === 'L') {
        throw fieldError(
          DAY_OF_WEEK,
          'L needs a weekday here',
          'Write FRI#L for the last Friday of the month; L for its last day belongs in the day of month field.',
        );
      }
      plain.push(item);
      continue;
    }
    const [, day = '', which = ''] = special;
    const weekday = parseValue(DAY_OF_WEEK, day) % 7;
    if (which !== 'L' && !/^[1-5]$/.test(which)) {
      throw fieldError(
        DAY_OF_WEEK,
        `"${which}" after # is neither 1 to 5 nor L`,
        'Write MON#1 for the first Monday, FRI#L for the last Friday.',
      );
    }
    nth.push({ weekday, nth: which === 'L' ? 'last' : Number(which) });
  }
  const values = plain.length === 0 ? [] : parseField(DAY_OF_WEEK, plain.join(',')).values;
  return { weekdays: bits(values.map((v) => v % 7)), star: body.startsWith('*'), nth, and };
}
