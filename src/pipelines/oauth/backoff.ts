/** When to try again: capped, and spread, so that what failed together does not come back together. */

const FIRST_MS = 10_000;
const LONGEST_MS = 600_000;

/** Milliseconds after so many failures before this one: 10 s, 20 s, 40 s, … 10 minutes, each a quarter more or less. */
export function againAfter(failures: number): number {
  return spread(Math.min(LONGEST_MS, FIRST_MS * 2 ** Math.min(Math.max(failures, 0), 10)));
}

/** A quarter more or less. */
export function spread(ms: number): number {
  return Math.round(ms * (0.75 + Math.random() / 2));
}
