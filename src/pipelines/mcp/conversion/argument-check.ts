/** Arguments against a tool's own schema. */
import { Ajv, type AnySchema, type ErrorObject, type Options } from 'ajv';
import { Ajv2019 } from 'ajv/dist/2019.js';
import { Ajv2020 } from 'ajv/dist/2020.js';
import addFormats from 'ajv-formats';
import { boundedRun, OutOfTime } from './bounded-run.ts';
import { ASSERTIVE, eachKeyword, expressionOf, KNOWN_FORMATS } from './keywords.ts';
import { CHECK_MILLISECONDS } from './limits.ts';
import type { Dialect, Schema } from './types.ts';

const OPTIONS: Options = {
  // unknown keywords and types that do not fit are the server's affair; the survey has looked at what the keywords hold
  strict: false,
  validateSchema: false,
  meta: false,
  // an error for each of a million items would be a way to fill the memory
  allErrors: false,
  // `constructor` is no property that an object has
  ownProperties: true,
  inlineRefs: false,
  logger: false,
  code: {
    regExp: Object.assign((pattern: string) => expressionOf(pattern) ?? /(?:)/u, { code: 'expressionOf' }),
  },
};
const CLASSES = { '2020-12': Ajv2020, '2019-09': Ajv2019, 'draft-07': Ajv } as const;

/** What is wrong with a value, or null. */
export type Problem = { readonly reason: 'invalid' | 'too_slow' | 'not_checkable'; readonly text: string };

/**
 * Checks a value against a schema that `surveyed` let through; returns the first problem, or null.
 *
 * Compiling and checking together take `CHECK_MILLISECONDS` at most: a pattern that backtracks for ever, references that double at each level
 * and the like end as `too_slow`, and the call must not be made.
 */
export function argumentProblem(schema: Schema, dialect: Dialect, value: unknown, tries = 4): Problem | null {
  const before = process.threadCpuUsage();
  const checker = checkerOf(dialect);
  try {
    const errors = boundedRun(CHECK_MILLISECONDS, () => {
      const check = checker.compile(checkable(schema) as AnySchema);
      return check(value) ? null : (check.errors ?? []);
    });
    return errors === null ? null : { reason: 'invalid', text: textOf(errors[0]) };
  } catch (error) {
    // it may have stopped half way through a change
    checkers.delete(dialect);
    if (!(error instanceof OutOfTime)) {
      // deeper than the stack, a pattern too large for memory
      return {
        reason: 'not_checkable',
        text: 'The arguments could not be checked against the schema of the tool.',
      };
    }
    // the time is the clock's: on a crowded machine most of it may have gone to others
    const used = process.threadCpuUsage(before);
    if (tries > 1 && used.user + used.system < CHECK_MILLISECONDS * 500)
      return argumentProblem(schema, dialect, value, tries - 1);
    return {
      reason: 'too_slow',
      text: 'The arguments could not be checked in time: the schema of the tool is too costly.',
    };
  }
}

const checkers = new Map<Dialect, { ajv: Ajv; left: number }>();
const USES = 100;

/** A checker takes some milliseconds to make, and keeps something of each schema for ever: it serves for so many. */
function checkerOf(dialect: Dialect): Ajv {
  let checker = checkers.get(dialect);
  if (!checker || checker.left === 0) {
    const ajv = new CLASSES[dialect](OPTIONS);
    addFormats.default(ajv, { mode: 'full' });
    checker = { ajv, left: USES };
    checkers.set(dialect, checker);
  }
  checker.left--;
  return checker.ajv;
}

/** The assertions alone: nothing that names a schema, none of Ajv's own keywords, no pattern or format that can't be checked. */
export function checkable(schema: unknown): unknown {
  return eachKeyword(schema, (keyword, value) => {
    if (keyword === 'pattern') return expressionOf(value as string) !== null;
    if (keyword === 'format') return KNOWN_FORMATS.has(value as string);
    return (
      ASSERTIVE.has(keyword) || keyword === '$defs' || keyword === 'definitions' || keyword === '$anchor'
    );
  });
}

/** An error as a sentence for the model, without values that it did not give or the schema does not list. */
function textOf(error: ErrorObject | undefined): string {
  if (!error) return 'The arguments do not fit the schema of the tool.';
  const place = error.instancePath === '' ? 'The arguments' : `'${error.instancePath.slice(0, 120)}'`;
  const { allowedValues, additionalProperty } = error.params as Record<string, unknown>;
  const more = Array.isArray(allowedValues)
    ? `: ${allowedValues.map((value) => JSON.stringify(value)).join(', ')}`
    : typeof additionalProperty === 'string'
      ? `: ${JSON.stringify(additionalProperty)}`
      : '';
  return `${place} ${error.message ?? 'is wrong'}${more}`.slice(0, 400).toWellFormed();
}
