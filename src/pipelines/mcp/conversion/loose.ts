/** A schema as one that is not strict: the same one, without what breaks requests or says nothing. */
import { COUNTS, KNOWN_FORMATS, NUMBERS, saysNothing } from './keywords.ts';
import { MAX_DEFAULT } from './limits.ts';
import type { Walk } from './strict-walk.ts';
import { parameterDescription } from './text.ts';
import { entriesOf, isSchema, listOf, type Schema } from './types.ts';

const KEPT: ReadonlySet<string> = new Set([
  ...[...COUNTS, ...NUMBERS],
  ...'type enum const required pattern uniqueItems dependentRequired'.split(' '),
]);
const ONE: ReadonlySet<string> = new Set(
  'additionalProperties unevaluatedItems unevaluatedProperties contains propertyNames not if then else'.split(
    ' ',
  ),
);
const NAMED: ReadonlySet<string> = new Set('properties patternProperties dependentSchemas'.split(' '));
const LISTED: ReadonlySet<string> = new Set('anyOf oneOf allOf'.split(' '));

/**
 * A schema in the words of 2020-12 that allows the same values.
 *
 * Left out are keywords that are not JSON Schema's, identities, examples, and formats and patterns that nobody can check. References lead to
 * `$defs` of the result's root.
 */
export function looseOf(schema: unknown, walk: Walk): Schema {
  if (!isSchema(schema)) return schema === false ? { not: {} } : {};
  const made: Record<string, unknown> = {};
  const description = parameterDescription(schema);
  for (const [keyword, value] of Object.entries(schema)) {
    if (saysNothing(keyword, value, schema)) continue;
    if (keyword === '$ref') made.$ref = walk.refer(value as string);
    else if (KEPT.has(keyword)) made[keyword] = value;
    else if (keyword === 'format' && KNOWN_FORMATS.has(value as string)) made.format = value;
    else if (keyword === 'default' && JSON.stringify(value).length <= MAX_DEFAULT) made.default = value;
    else if (LISTED.has(keyword)) made[keyword] = listOf(value).map((inner) => looseOf(inner, walk));
    else if (keyword === 'additionalProperties' && typeof value === 'boolean') made[keyword] = value;
    else if (ONE.has(keyword)) made[keyword] = looseOf(value, walk);
    else if (NAMED.has(keyword)) made[keyword] = named(value, walk);
  }
  if (description !== null) made.description = description;
  listItems(schema, made, walk);
  depend(schema, made, walk);
  // "array schema missing items"
  if ([schema.type].flat().includes('array') && made.items === undefined && made.prefixItems === undefined)
    made.items = {};
  return made;
}

function named(value: unknown, walk: Walk): Schema {
  return Object.fromEntries(entriesOf(value).map(([name, inner]) => [name, looseOf(inner, walk)]));
}

/** `items` and `prefixItems`; before 2020-12 a list in `items` and `additionalItems` were these two. */
function listItems(schema: Schema, made: Record<string, unknown>, walk: Walk): void {
  const { items, additionalItems, prefixItems } = schema;
  const listed = Array.isArray(items) ? items : listOf(prefixItems);
  if (listed.length > 0) made.prefixItems = listed.map((inner) => looseOf(inner, walk));
  const others = Array.isArray(items) ? additionalItems : items;
  if (others !== undefined) made.items = looseOf(others, walk);
}

/** `dependencies` were `dependentRequired` and `dependentSchemas` in one. */
function depend(schema: Schema, made: Record<string, unknown>, walk: Walk): void {
  const [names, schemas]: [[string, unknown][], [string, unknown][]] = [[], []];
  for (const [name, value] of entriesOf(schema.dependencies))
    (Array.isArray(value) ? names : schemas).push([name, value]);
  if (names.length > 0)
    made.dependentRequired = Object.fromEntries([...entriesOf(made.dependentRequired), ...names]);
  if (schemas.length > 0)
    made.dependentSchemas = Object.fromEntries([
      ...entriesOf(made.dependentSchemas),
      ...schemas.map(([name, inner]): [string, Schema] => [name, looseOf(inner, walk)]),
    ]);
}
