import { ScheduleError } from './schedule-error.ts';

/** The range and vocabulary of one position in an expression. */
export type FieldSpec = {
  readonly name: string;
  readonly min: number;
  readonly max: number;
  readonly names?: Readonly<Record<string, number>>;
  /** Digits that a value may have; 2 except for the year. */
  readonly digits: number;
};

/** The plain values of one field: what `*`, lists, ranges and steps come to. */
export type FieldValues = {
  /** Ascending, without duplicates, within the field's range. */
  readonly values: readonly number[];
  /** The field begins with a literal `*` (or is `?`): it does not restrict the day (OCPS 1.0, 6.1; as Vixie cron does). */
  readonly star: boolean;
  /** Some item spans the field's whole range (`*`, `*\/n`, `0-59/n`): the field speaks of an interval, not of fixed times. */
  readonly spansAll: boolean;
};

const MONTHS = {
  JAN: 1,
  FEB: 2,
  MAR: 3,
  APR: 4,
  MAY: 5,
  JUN: 6,
  JUL: 7,
  AUG: 8,
  SEP: 9,
  OCT: 10,
  NOV: 11,
  DEC: 12,
};
const WEEKDAYS = { SUN: 0, MON: 1, TUE: 2, WED: 3, THU: 4, FRI: 5, SAT: 6 };

export const SECOND: FieldSpec = { name: 'second', min: 0, max: 59, digits: 2 };
export const MINUTE: FieldSpec = { name: 'minute', min: 0, max: 59, digits: 2 };
export const HOUR: FieldSpec = { name: 'hour', min: 0, max: 23, digits: 2 };
export const DAY_OF_MONTH: FieldSpec = { name: 'day of month', min: 1, max: 31, digits: 2 };
export const MONTH: FieldSpec = { name: 'month', min: 1, max: 12, digits: 2, names: MONTHS };
/** 7 is Sunday as well as 0, and is folded into it after ranges are expanded. */
export const DAY_OF_WEEK: FieldSpec = { name: 'day of week', min: 0, max: 7, digits: 2, names: WEEKDAYS };
/** The portable range of OCPS 1.2; its upper bound also bounds every search. */
export const YEAR: FieldSpec = { name: 'year', min: 1970, max: 2199, digits: 4 };

/** @returns the error for one field, never thrown here so that control flow stays visible at the call. */
export function fieldError(spec: FieldSpec, problem: string, hint?: string): ScheduleError {
  const names = spec.names ? ` or ${Object.keys(spec.names)[0]} to ${Object.keys(spec.names).at(-1)}` : '';
  return new ScheduleError(
    'invalid_cron',
    `The ${spec.name} field is invalid: ${problem}.`,
    hint ??
      `Use ${spec.min} to ${spec.max}${names} in the ${spec.name} field, with *, lists (1,2), ranges (1-5) and steps (*/2).`,
  );
}

/**
 * Reads one number or name.
 * @throws ScheduleError invalid_cron when it is neither, or out of the field's range
 */
export function parseValue(spec: FieldSpec, text: string): number {
  if (/^\d+$/.test(text) && text.length <= spec.digits) {
    const value = Number(text);
    if (value < spec.min || value > spec.max)
      throw fieldError(spec, `${text} is out of range (${spec.min} to ${spec.max})`);
    return value;
  }
  const named = spec.names?.[text.toUpperCase()];
  if (named !== undefined) return named;
  if (text === '') throw fieldError(spec, 'a value is missing');
  if (/^\d+$/.test(text)) throw fieldError(spec, `${text} is out of range (${spec.min} to ${spec.max})`);
  throw fieldError(spec, `"${text}" is not a value it knows`, wordHint(spec, text));
}

function wordHint(spec: FieldSpec, text: string): string | undefined {
  const short = text.slice(0, 3).toUpperCase();
  if (spec.names && short in spec.names && text.length > 3) return `Write ${short} instead of "${text}".`;
  if (text === '?')
    return 'The character ? stands only in the day of month and day of week fields; use * here.';
  if (text.includes('+')) return 'A + may only begin the day of week field, where it means "and".';
  if (/^(l|w|\d+w|\d+l)$/.test(text)) return `Write ${text.toUpperCase()}: L and W are upper case.`;
  return undefined;
}

/** One item of a list, expanded; a step keeps the lowest value and every n-th after it. */
function parseItem(spec: FieldSpec, item: string): { values: number[]; spansAll: boolean } {
  const slash = item.indexOf('/');
  const base = slash < 0 ? item : item.slice(0, slash);
  const stepText = slash < 0 ? null : item.slice(slash + 1);
  let low: number;
  let high: number;
  if (base === '*') {
    low = spec.min;
    high = spec.max;
  } else {
    const ends = base.split('-');
    if (ends.length > 2) throw fieldError(spec, `"${base}" is not a range`);
    const [first = '', last] = ends;
    if (stepText !== null && last === undefined) {
      // Vixie cron and OCPS 1.0 reject 5/15; Quartz reads it as 5-59/15. Saying so beats guessing.
      throw fieldError(
        spec,
        `the step in "${item}" has neither * nor a range before it`,
        `Write ${first === '' ? '*' : `${first}-${spec === DAY_OF_WEEK ? 6 : spec.max}`}/${stepText || 'n'}.`,
      );
    }
    low = parseValue(spec, first);
    high = last === undefined ? low : parseValue(spec, last);
    // SUN is 0 and 7: as the end of a range such as FRI-SUN it is 7.
    if (spec === DAY_OF_WEEK && last !== undefined && last.toUpperCase() === 'SUN' && low > 0) high = 7;
    if (low > high) {
      throw fieldError(
        spec,
        `the range "${base}" runs backwards`,
        `Write it as two: ${first}-${spec.max},${spec.min}-${last}.`,
      );
    }
  }
  let step = 1;
  if (stepText !== null) {
    if (!/^\d+$/.test(stepText)) throw fieldError(spec, `"${stepText}" is not a step`);
    step = Number(stepText);
    if (step === 0) throw fieldError(spec, 'a step of 0 never moves');
    if (step > spec.max)
      throw fieldError(spec, `the step ${stepText} is larger than the field (1 to ${spec.max})`);
  }
  const values: number[] = [];
  for (let v = low; v <= high; v += step) values.push(v);
  return { values, spansAll: low === spec.min && high === spec.max };
}

/**
 * Reads a field of plain values: `*`, numbers, names, ranges, lists and steps.
 * @throws ScheduleError invalid_cron with the field's name
 */
export function parseField(spec: FieldSpec, text: string): FieldValues {
  const found = new Set<number>();
  let spansAll = false;
  for (const item of text.split(',')) {
    if (item === '') throw fieldError(spec, 'a list has an empty item', 'Remove the extra comma.');
    const parsed = parseItem(spec, item);
    for (const v of parsed.values) found.add(v);
    spansAll ||= parsed.spansAll;
  }
  return { values: [...found].sort((a, b) => a - b), star: text.startsWith('*'), spansAll };
}
