/** The top of a tool's schema: the API wants a plain object there. */

import { ASSERTIVE, saysNothing } from './keywords.ts';
import type { References } from './references.ts';
import { mayBeObject } from './survey.ts';
import { isSchema, listOf, type Schema, Unfit } from './types.ts';

/** The parameter that holds all arguments of a tool whose own top can't stand at the top of a function's. */
export const WRAPPER = 'arguments';

const FORBIDDEN = ['oneOf', 'anyOf', 'allOf', 'enum', 'not', 'const', '$ref'];

/** The schema that judges a tool's arguments, and whether a function has them one level deeper, as its parameter `WRAPPER`. */
export type Root = { readonly schema: Schema; readonly wrapped: boolean };

/**
 * Follows references, and unions and intersections of one, from the top. What then still has a keyword that the API refuses at the top is to
 * be wrapped: there it may stay as it is, so nothing that it says is lost.
 */
export function rootOf(tool: Schema, references: References | null): Root {
  let schema = tool;
  for (;;) {
    if (!mayBeObject(schema)) throw new Unfit('not_an_object', 'The arguments of a tool must be an object.');
    const inner = handedOn(schema, references);
    if (inner === false) throw new Unfit('not_an_object', 'The schema allows no arguments at all.');
    if (inner === undefined) break;
    if (inner === true) return { schema: {}, wrapped: false };
    schema = inner;
  }
  return { schema, wrapped: FORBIDDEN.some((keyword) => schema[keyword] !== undefined) };
}

/** The one schema that this one leaves everything to but the type, which is known; undefined where there is none. */
function handedOn(schema: Schema, references: References | null): Schema | boolean | undefined {
  const said = Object.keys(schema).filter(
    (keyword) =>
      keyword !== 'type' && ASSERTIVE.has(keyword) && !saysNothing(keyword, schema[keyword], schema),
  );
  const [only, second] = said;
  if (only === undefined || second !== undefined) return undefined;
  const inner =
    only === '$ref'
      ? references?.target(schema.$ref as string)
      : (only === 'allOf' || only === 'anyOf' || only === 'oneOf') && listOf(schema[only]).length === 1
        ? listOf(schema[only])[0]
        : undefined;
  return isSchema(inner) || typeof inner === 'boolean' ? inner : undefined;
}
