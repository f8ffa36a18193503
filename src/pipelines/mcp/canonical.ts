/** One text, and so one hash, for values that JSON takes for the same. */
import { createHash } from 'node:crypto';

/** Levels that are looked into: a schema has 64 at most, and lies a few below the top. */
const MAX_DEPTH = 100;

/** A value nested more deeply than anything here looks. */
export class TooDeep extends Error {
  override readonly name = 'TooDeep';
}

/** JSON with the names of every object in order of their code units. Throws `TooDeep`. */
export function canonical(value: unknown, depth = 0): string {
  if (depth > MAX_DEPTH) throw new TooDeep(`More than ${MAX_DEPTH} levels.`);
  if (typeof value !== 'object' || value === null) return JSON.stringify(value) ?? 'null';
  if (Array.isArray(value)) return `[${value.map((each) => canonical(each, depth + 1)).join(',')}]`;
  const parts: string[] = [];
  for (const name of Object.keys(value).sort()) {
    const inner = (value as Record<string, unknown>)[name];
    if (inner !== undefined) parts.push(`${JSON.stringify(name)}:${canonical(inner, depth + 1)}`);
  }
  return `{${parts.join(',')}}`;
}

/** Sha256 of the canonical text, in hex: of a whole tool with everything in it. Throws `TooDeep`. */
export function canonicalHash(value: unknown): string {
  return createHash('sha256').update(canonical(value)).digest('hex');
}
