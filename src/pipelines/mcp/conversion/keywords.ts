/** What the keywords of JSON Schema hold. */
import { entriesOf, isSchema, listOf, type Schema } from './types.ts';

export const TYPES: ReadonlySet<unknown> = new Set([
  'object',
  'array',
  'string',
  'number',
  'integer',
  'boolean',
  'null',
]);

const words = (text: string): ReadonlySet<string> => new Set(text.split(' '));

/** Keywords with one schema. `items` may also be a list, before 2020-12. */
export const ONE = words(
  'items additionalItems additionalProperties unevaluatedItems unevaluatedProperties contains propertyNames not if then else',
);
/** Keywords with schemas by name. `dependencies` may also hold lists of names. */
export const NAMED = words('properties patternProperties $defs definitions dependentSchemas dependencies');
/** Keywords with a list of schemas. */
export const LISTED = words('anyOf oneOf allOf prefixItems');

export const COUNTS = words(
  'minLength maxLength minItems maxItems minProperties maxProperties minContains maxContains',
);
export const NUMBERS = words('minimum maximum exclusiveMinimum exclusiveMaximum multipleOf');

/** Keywords by which another schema judges the same value: a circle of them never ends. */
export const IN_PLACE = words('anyOf oneOf allOf not if then else dependentSchemas dependencies');

/** Keywords that say something of a value. All others are notes, and unknown ones are none of JSON Schema's. */
export const ASSERTIVE: ReadonlySet<string> = new Set([
  ...[...ONE, ...NAMED, ...LISTED, ...COUNTS, ...NUMBERS].filter(
    (keyword) => keyword !== '$defs' && keyword !== 'definitions',
  ),
  ...['type', 'enum', 'const', 'required', 'pattern', 'format', 'uniqueItems', 'dependentRequired', '$ref'],
]);

/** Formats that strict schemas may have, as documented. */
export const STRICT_FORMATS = words('date-time time date duration email hostname ipv4 ipv6 uuid');
/** Formats that ajv-formats checks. Others say nothing to anybody, so they are left out. */
export const KNOWN_FORMATS: ReadonlySet<string> = new Set([
  ...STRICT_FORMATS,
  ...'uri uri-reference uri-template url regex json-pointer json-pointer-uri-fragment'.split(' '),
  ...'relative-json-pointer iso-time iso-date-time byte int32 int64 float double'.split(' '),
]);

/** Whether the keyword has no effect as it stands: it may be left out of a schema that must not have it. */
export function saysNothing(keyword: string, value: unknown, schema: Schema): boolean {
  if (keyword === 'uniqueItems') return value === false;
  if (keyword === 'minLength' || keyword === 'minItems' || keyword === 'minProperties') return value === 0;
  if (keyword === 'then' || keyword === 'else') return schema.if === undefined;
  if (keyword === 'if') return schema.then === undefined && schema.else === undefined;
  if (keyword === 'minContains' || keyword === 'maxContains') return schema.contains === undefined;
  if (keyword === 'additionalItems') return !Array.isArray(schema.items);
  if (keyword === 'required') return Array.isArray(value) && value.length === 0;
  if (keyword === 'format') return !KNOWN_FORMATS.has(value as string);
  if (keyword === 'pattern') return expressionOf(value as string) === null;
  if (keyword === 'patternProperties' || keyword.startsWith('depend'))
    return isSchema(value) && Object.keys(value).length === 0;
  return false;
}

/** Calls back for each schema directly within this one. */
export function eachInner(
  schema: Schema,
  visit: (inner: unknown, keyword: string, name: string | null) => void,
): void {
  for (const [keyword, value] of Object.entries(schema)) {
    if (ONE.has(keyword) && !Array.isArray(value)) visit(value, keyword, null);
    else if (LISTED.has(keyword) || keyword === 'items')
      for (const [index, inner] of listOf(value).entries()) visit(inner, keyword, String(index));
    else if (NAMED.has(keyword))
      for (const [name, inner] of entriesOf(value)) if (!Array.isArray(inner)) visit(inner, keyword, name);
  }
}

/** A copy of a schema, and of those within, with the keywords that `keep` wants. */
export function eachKeyword(schema: unknown, keep: (keyword: string, value: unknown) => boolean): unknown {
  if (!isSchema(schema)) return schema;
  const copy = (inner: unknown): unknown => eachKeyword(inner, keep);
  return Object.fromEntries(
    Object.entries(schema)
      .filter(([keyword, value]) => keep(keyword, value))
      .map(([keyword, value]) => {
        if (NAMED.has(keyword))
          return [
            keyword,
            Object.fromEntries(
              entriesOf(value).map(([name, inner]) => [name, Array.isArray(inner) ? inner : copy(inner)]),
            ),
          ];
        if (Array.isArray(value))
          return [keyword, LISTED.has(keyword) || keyword === 'items' ? value.map(copy) : value];
        return [keyword, ONE.has(keyword) ? copy(value) : value];
      }),
  );
}

const expressions = new Map<string, RegExp | null>();

/**
 * A pattern as a regular expression; null if JavaScript can't read it (`(?P<name>…)` of Python), so that nobody can check it.
 *
 * Strict Unicode first; many servers write `[\w-.]`, which only the older grammar reads.
 */
export function expressionOf(pattern: string): RegExp | null {
  const known = expressions.get(pattern);
  if (known !== undefined) return known;
  let made: RegExp | null = null;
  for (const flags of ['u', '']) {
    try {
      made = new RegExp(pattern, flags);
      break;
    } catch {
      // the next grammar
    }
  }
  // a hostile server could fill the memory with patterns
  if (expressions.size >= 500) expressions.clear();
  if (pattern.length <= 1_000) expressions.set(pattern, made);
  return made;
}
