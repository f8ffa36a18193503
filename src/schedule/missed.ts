import type { Expression } from './expression.ts';
import { nextInstant } from './next.ts';

/** Counting stops here: a task that ran every minute and was down for a year would otherwise cost half a million steps. */
export const COUNT_LIMIT = 1000;

/**
 * The occurrences of one task: an optional first one that need not be on the schedule (an application may set any next time), then
 * those of the expression.
 */
export type Series = {
  /** UTC milliseconds. */
  readonly first: number;
  /** null: only the first one exists. */
  readonly expr: Expression | null;
  readonly zone: string;
};

/** @param at not before the series' first @returns the occurrence after it, or null; UTC milliseconds */
export function following(series: Series, at: number): number | null {
  return series.expr === null ? null : nextInstant(series.expr, series.zone, at);
}

/**
 * The latest occurrence before `before`, found by bisection: about 30 questions for a year, however many occurrences lie in it.
 *
 * @param before exclusive, later than the series' first
 * @returns UTC milliseconds; the first itself when no other precedes
 */
export function latestBefore(series: Series, before: number): number {
  let latest = series.first;
  let low = series.first;
  let high = before - 1;
  while (low <= high) {
    const middle = low + Math.floor((high - low) / 2);
    const next = following(series, middle);
    if (next !== null && next < before) {
      latest = next;
      low = next;
    } else {
      high = middle - 1;
    }
  }
  return latest;
}

/** @returns up to `limit` occurrences that are before `before`, oldest first, from the series' first on; UTC milliseconds */
export function firstOnes(series: Series, before: number, limit: number): number[] {
  const found: number[] = [];
  let at: number | null = series.first;
  while (at !== null && at < before && found.length < limit) {
    found.push(at);
    at = following(series, at);
  }
  return found;
}
