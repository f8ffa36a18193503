import type { References } from './references.ts';

/** Thrown where a strict schema can't say the same; caught where a schema begins. */
export class Inexact extends Error {
  override name = 'Inexact';
}

/** What a conversion knows on its way down. */
export type Walk = {
  /** Null where the schema has no reference. */
  readonly references: References | null;
  /** What to write for a reference: one below `$defs`. The definition itself is made later. */
  readonly refer: (reference: string) => string;
};
