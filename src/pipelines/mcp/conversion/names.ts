/** Names of functions for the names of tools, one to one. */
import { createHash } from 'node:crypto';
import { MAX_NAME } from './limits.ts';

const FITTING = /^[a-zA-Z0-9_-]{1,64}$/;
const DIGITS = 10;

/**
 * Gives each tool's name a function's name. The given names must differ.
 *
 * A name that fits stays. Any other loses what does not fit and gets a hash of the whole name, so that two that look alike, or become alike by
 * cutting, stay two. A server may list a tool whose fitting name is another's with its hash: then that other is hashed again. The result
 * does not depend on the order.
 */
export function functionNames(
  names: readonly string[],
  reserved: ReadonlySet<string>,
): ReadonlyMap<string, string> {
  const byTool = new Map<string, string>();
  const taken = new Set(reserved);
  for (const name of names) {
    if (!FITTING.test(name) || reserved.has(name)) continue;
    taken.add(name);
    byTool.set(name, name);
  }
  for (const name of names.filter((each) => !byTool.has(each)).toSorted(byCodeUnits)) {
    let round = 0;
    let made = hashed(name, round);
    while (taken.has(made)) made = hashed(name, ++round);
    taken.add(made);
    byTool.set(name, made);
  }
  return byTool;
}

function hashed(name: string, round: number): string {
  // as JSON: UTF-8 alone would make one of all lone surrogates
  const hash = createHash('sha256')
    .update(JSON.stringify([name, round]))
    .digest('hex')
    .slice(0, DIGITS);
  const shown = name.slice(0, MAX_NAME - DIGITS - 1).replace(/[^a-zA-Z0-9_-]/g, '_');
  return `${shown}_${hash}`;
}

function byCodeUnits(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
