import { boundedCache } from './bounded-cache.ts';
import { type DayOfMonth, type DayOfWeek, parseDayOfMonth, parseDayOfWeek } from './day-fields.ts';
import { type FieldValues, HOUR, MINUTE, MONTH, parseField, SECOND, YEAR } from './fields.ts';
import { ScheduleError } from './schedule-error.ts';

export { ScheduleError, type ScheduleErrorCode } from './schedule-error.ts';
export { validateZone } from './zone.ts';

/** The fields of an expression, ready for matching. */
export type ExpressionFields = {
  readonly second: FieldValues;
  readonly minute: FieldValues;
  readonly hour: FieldValues;
  readonly dayOfMonth: DayOfMonth;
  readonly month: FieldValues;
  readonly dayOfWeek: DayOfWeek;
  /** null: every year. */
  readonly year: FieldValues | null;
};

/**
 * A parsed cron expression. Immutable and shared: the parser hands the same object to everyone who asks for the same text.
 * Only this folder looks inside.
 */
export type Expression = {
  /** As written, comment and all. */
  readonly source: string;
  readonly fields: ExpressionFields;
  /**
   * True when minute or hour speak of an interval (`*`, `*\/n`): such a schedule follows real time when clocks change.
   * False: fixed times of the day, each of which happens exactly once a day, whatever the clocks do.
   */
  readonly interval: boolean;
  /** `@reboot`: valid to write, but there is no such event here, so it never fires. */
  readonly reboot: boolean;
  /** For each value v of a field, the smallest matching value >= v, or -1. Lookup tables, because matching is the hot path. */
  readonly nextSecond: Int8Array;
  readonly nextMinute: Int8Array;
  readonly nextHour: Int8Array;
  /** Bit m (1 to 12). */
  readonly months: number;
  /** Index year - 1970; null: every year. */
  readonly years: Uint8Array | null;
};

/** OCPS 1.1 and, below the line, the further ones that cron-parser has taught people. Case-sensitive, as OCPS demands. */
const NICKNAMES: Readonly<Record<string, string>> = {
  '@yearly': '0 0 1 1 *',
  '@annually': '0 0 1 1 *',
  '@monthly': '0 0 1 * *',
  '@weekly': '0 0 * * 0',
  '@daily': '0 0 * * *',
  '@midnight': '0 0 * * *',
  '@hourly': '0 * * * *',

  '@minutely': '* * * * *',
  '@secondly': '* * * * * *',
  '@weekdays': '0 0 * * 1-5',
  '@weekends': '0 0 * * 0,6',
};

const MAX_LENGTH = 1000;

/** Many more distinct schedules than a large installation has; an entry is about two kilobytes. */
const parsed = boundedCache<string, Expression>(5000);

/**
 * Reads a cron expression of 5 fields (minute first), 6 (second first) or 7 (year last), or a nickname such as `@daily`; either may be
 * followed by a comment (` # …`).
 *
 * The dialect is the Open Cron Pattern Specification, 1.0 to 1.4, strictly: names in any case, `L`, `W`, `#`, `?` and `+` where they
 * belong, a step only after `*` or a range, years 1970 to 2199. Beyond it: `LW`, and the nicknames `@minutely`, `@secondly`, `@weekdays`,
 * `@weekends`. An impossible date (31 February) is valid: it parses, and nextOccurrence answers null.
 *
 * @returns an object shared by everyone who asks for the same text
 * @throws ScheduleError invalid_cron; the message names the field
 */
export function parseExpression(source: string): Expression {
  const known = parsed.get(source);
  if (known) return known;
  const expression = parse(source);
  parsed.set(source, expression);
  return expression;
}

function parse(source: string): Expression {
  if (source.length > MAX_LENGTH) {
    throw new ScheduleError(
      'invalid_cron',
      `The cron expression has ${source.length} characters.`,
      `Keep it under ${MAX_LENGTH}.`,
    );
  }
  // A # after white space begins a comment; a # inside MON#1 does not.
  const text = ` ${source}`.replace(/\s#.*$/s, '').trim();
  if (text === '') {
    throw new ScheduleError(
      'invalid_cron',
      'The cron expression is empty.',
      'Write five fields, as in "0 9 * * MON-FRI", or a nickname such as @daily.',
    );
  }
  if (text === '@reboot') return { ...compile(source, '0 0 1 1 *'), reboot: true };
  if (text.startsWith('@')) {
    const fields = Object.hasOwn(NICKNAMES, text) ? NICKNAMES[text] : undefined;
    if (fields !== undefined) return compile(source, fields);
    throw new ScheduleError(
      'invalid_cron',
      `"${text}" is not a nickname.`,
      `Use one of ${Object.keys(NICKNAMES).join(', ')}, in lower case and with no fields after it; or write the fields.`,
    );
  }
  return compile(source, text);
}

function compile(source: string, text: string): Expression {
  const words = text.split(/[ \t]+/);
  if (words.length < 5 || words.length > 7) {
    throw new ScheduleError(
      'invalid_cron',
      `The cron expression "${text}" has ${words.length} field${words.length === 1 ? '' : 's'}, not 5, 6 or 7.`,
      'Write minute, hour, day of month, month and day of week; a sixth field in front is the second, a seventh at the end the year.',
    );
  }
  if (words.length === 5) words.unshift('0');
  const [second = '', minute = '', hour = '', dayOfMonth = '', month = '', dayOfWeek = '', year] = words;
  const fields: ExpressionFields = {
    second: parseField(SECOND, second),
    minute: parseField(MINUTE, minute),
    hour: parseField(HOUR, hour),
    dayOfMonth: parseDayOfMonth(dayOfMonth),
    month: parseField(MONTH, month),
    dayOfWeek: parseDayOfWeek(dayOfWeek),
    year: year === undefined || year === '*' ? null : parseField(YEAR, year),
  };
  return {
    source,
    fields,
    interval: fields.minute.spansAll || fields.hour.spansAll,
    reboot: false,
    nextSecond: nextTable(fields.second.values, 60),
    nextMinute: nextTable(fields.minute.values, 60),
    nextHour: nextTable(fields.hour.values, 24),
    months: fields.month.values.reduce((mask, m) => mask | (1 << m), 0),
    years: fields.year && yearTable(fields.year.values),
  };
}

function nextTable(values: readonly number[], size: number): Int8Array {
  const table = new Int8Array(size + 1).fill(-1);
  let i = values.length - 1;
  for (let v = size - 1; v >= 0; v--) {
    if (i >= 0 && values[i] === v) {
      table[v] = v;
      i--;
    } else {
      table[v] = table[v + 1] ?? -1;
    }
  }
  return table;
}

function yearTable(values: readonly number[]): Uint8Array {
  const table = new Uint8Array(YEAR.max - YEAR.min + 1);
  for (const v of values) table[v - YEAR.min] = 1;
  return table;
}
