/** The words of the conversion: what comes in, what goes out, and why something stays behind. */

/** A JSON Schema that is an object; what its keywords hold is not known yet. */
export type Schema = { readonly [keyword: string]: unknown };

/** A tool as a server listed it. Nothing about it is trusted: each field may have any type. */
export type ListedTool = {
  readonly name?: unknown;
  readonly description?: unknown;
  readonly inputSchema?: unknown;
};

/** A function as chat completions take it, below `function` of an entry of `tools`. */
export type OpenAiFunction = {
  /** 1 to 64 characters of `[a-zA-Z0-9_-]`, unique in its conversion. */
  readonly name: string;
  /** Cleaned and bounded, marked as the server's own words. */
  readonly description: string;
  readonly parameters: Schema;
  /** True only if every value that `parameters` allows is one that the tool allows, and none of its meanings is lost. */
  readonly strict: boolean;
};

/** Why a tool can't be offered to a model. */
export type QuarantineReason =
  | 'empty_name'
  | 'invalid_name'
  | 'duplicate_name'
  | 'invalid_schema'
  | 'not_an_object'
  | 'unsupported_dialect'
  | 'unsupported_reference'
  | 'remote_reference'
  | 'broken_reference'
  | 'endless_reference'
  | 'forbidden_property'
  | 'schema_too_large'
  | 'schema_too_deep';

/** A tool that was left out. `name` is the server's own, cut to 200 characters; empty where it has none. */
export type Quarantined = {
  readonly name: string;
  readonly reason: QuarantineReason;
  /** A sentence: where, and what an operator can do. */
  readonly detail: string;
};

export type Conversion = {
  readonly functions: readonly OpenAiFunction[];
  /** From a function's name to the tool's. One to one; a Map, since a function may be called `__proto__`. */
  readonly names: ReadonlyMap<string, string>;
  readonly quarantined: readonly Quarantined[];
};

/** The vocabulary that a schema is written in, as far as it matters to us. */
export type Dialect = '2020-12' | '2019-09' | 'draft-07';

/** Thrown within the conversion alone, and caught at its entry: this tool can't be offered. */
export class Unfit extends Error {
  override name = 'Unfit';
  readonly reason: QuarantineReason;

  constructor(reason: QuarantineReason, detail: string) {
    super(detail);
    this.reason = reason;
  }
}

export function isSchema(value: unknown): value is Schema {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** A list of a keyword, or an empty one. */
export function listOf(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}

/** The own entries of a keyword that holds names, or none. */
export function entriesOf(value: unknown): [string, unknown][] {
  return isSchema(value) ? Object.entries(value) : [];
}
