/** A schema as a strict one, where that can say the same. */
import { ASSERTIVE, expressionOf, STRICT_FORMATS, saysNothing } from './keywords.ts';
import { MAX_DEFAULT } from './limits.ts';
import { union } from './strict-alternatives.ts';
import { nullable } from './strict-null.ts';
import { allowsNull } from './strict-union.ts';
import { Inexact, type Walk } from './strict-walk.ts';
import { parameterDescription } from './text.ts';
import { entriesOf, isSchema, listOf, type Schema } from './types.ts';

const EACH: ReadonlySet<string> = new Set(['type', 'enum', 'const']);
const OF_TYPE: Readonly<Record<string, ReadonlySet<string>>> = {
  string: new Set(['pattern', 'format']),
  number: new Set(['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum', 'multipleOf']),
  integer: new Set(['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum', 'multipleOf']),
  array: new Set(['items', 'minItems', 'maxItems']),
  object: new Set(['properties', 'required', 'additionalProperties']),
  boolean: new Set(),
  null: new Set(),
};
const OF_ANY_TYPE: ReadonlySet<string> = new Set(Object.values(OF_TYPE).flatMap((keywords) => [...keywords]));

/** Lookarounds, backreferences, names, properties and word boundaries: the documentation promises none of them. */
const BEYOND_PLAIN = /\(\?(?!:)|\\[1-9kpPbB]/;

/** A schema as a strict one that allows the same meanings. Throws `Inexact` where there is none. */
export function strictOf(schema: unknown, walk: Walk): Schema {
  if (!isSchema(schema)) throw new Inexact('Any value, or none.');
  const said = Object.keys(schema).filter(
    (keyword) => ASSERTIVE.has(keyword) && !saysNothing(keyword, schema[keyword], schema),
  );
  const made = said.length === 1 ? indirect(schema, said[0] as string, walk) : null;
  return described(made ?? typed(schema, said, walk), schema);
}

/** A schema that hands the value on to others; null if it judges the value itself. */
function indirect(schema: Schema, keyword: string, walk: Walk): Schema | null {
  if (keyword === '$ref') return referred(schema.$ref as string, walk);
  if (keyword === 'allOf') {
    const [only, second] = listOf(schema.allOf);
    if (second !== undefined) throw new Inexact('Several schemas at once.');
    return strictOf(only, walk);
  }
  if (keyword === 'anyOf' || keyword === 'oneOf') return union(schema, keyword, walk);
  return null;
}

function referred(reference: string, walk: Walk): Schema {
  const target = walk.references?.target(reference);
  if (!isSchema(target)) throw new Inexact('A reference to any value, or none.');
  return { $ref: walk.refer(reference) };
}

function typed(schema: Schema, said: readonly string[], walk: Walk): Schema {
  if (schema.const !== undefined || schema.enum !== undefined) return listed(schema, said);
  const types = (
    Array.isArray(schema.type) ? schema.type : schema.type === undefined ? [] : [schema.type]
  ) as string[];
  if (types.length === 0) throw new Inexact('No type.');
  const foreign = said.find(
    (keyword) => keyword !== 'type' && !types.some((type) => OF_TYPE[type]?.has(keyword)),
  );
  // a keyword for another type says nothing here; one that strict schemas lack does
  if (foreign !== undefined && !OF_ANY_TYPE.has(foreign)) throw new Inexact(`The keyword ${foreign}.`);
  const [first] = types;
  if (first !== undefined && types.length === 1) return ofType(first, schema, walk);
  const each = types.filter((type) => type !== 'null').map((type) => ofType(type, schema, walk));
  const [only] = each;
  if (!types.includes('null')) return { anyOf: each };
  return only && each.length === 1 ? nullable(only) : { anyOf: [...each, { type: 'null' }] };
}

/** `enum` and `const`: strings, numbers, booleans and null, with their type. */
function listed(schema: Schema, said: readonly string[]): Schema {
  const other = said.find((keyword) => !EACH.has(keyword));
  if (other !== undefined) throw new Inexact(`Listed values with ${other}.`);
  if (schema.const !== undefined && schema.enum !== undefined) throw new Inexact('Listed values twice.');
  const allowed = schema.type === undefined ? null : [schema.type].flat();
  const given = schema.const !== undefined ? [schema.const] : listOf(schema.enum);
  const values = [...new Set(given)].filter(
    (value) => allowed === null || allowed.some((type) => isOf(value, type)),
  );
  const types = [...new Set(values.map(typeOfListed))];
  if (values.length === 0) throw new Inexact('No value is allowed.');
  // numbers that are equal but written otherwise, or several types beside null, are rare enough
  if (types.filter((type) => type !== 'null').length > 1)
    throw new Inexact('Listed values of several types.');
  return { type: types.length === 1 ? types[0] : types, enum: values };
}

function typeOfListed(value: unknown): string {
  if (value === null) return 'null';
  if (typeof value === 'object') throw new Inexact('Listed objects or arrays.');
  return typeof value;
}

function isOf(value: unknown, type: unknown): boolean {
  if (type === 'integer') return Number.isInteger(value);
  if (type === 'null') return value === null;
  if (type === 'array') return Array.isArray(value);
  return type === 'object' ? isSchema(value) : typeof value === type;
}

function ofType(type: string, schema: Schema, walk: Walk): Schema {
  const made: Record<string, unknown> = { type };
  for (const keyword of OF_TYPE[type] ?? []) {
    if (schema[keyword] !== undefined && !saysNothing(keyword, schema[keyword], schema))
      made[keyword] = schema[keyword];
  }
  if (type === 'object') return objectOf(schema, walk);
  if (type === 'array') {
    if (!isSchema(schema.items)) throw new Inexact('Items of any kind.');
    made.items = strictOf(schema.items, walk);
    possible(schema.minItems, schema.maxItems);
  }
  if (type === 'number' || type === 'integer') {
    possible(schema.minimum, schema.maximum);
    possible(schema.exclusiveMinimum ?? schema.minimum, schema.exclusiveMaximum ?? schema.maximum);
  }
  if (made.format !== undefined && !STRICT_FORMATS.has(made.format as string))
    throw new Inexact('A format that strict schemas lack.');
  if (typeof made.pattern === 'string') {
    if (
      made.format !== undefined ||
      BEYOND_PLAIN.test(made.pattern) ||
      expressionOf(made.pattern)?.flags !== 'u'
    )
      throw new Inexact('A pattern that strict schemas may not read.');
  }
  return made;
}

/** Decoding under a schema that nothing obeys has no good end: the check of the arguments says it better. */
function possible(least: unknown, most: unknown): void {
  if (typeof least === 'number' && typeof most === 'number' && least > most)
    throw new Inexact('No value is allowed.');
}

/**
 * An object with its declared properties alone, all of them required.
 *
 * An optional property may be null instead, which is taken out again before the tool sees it. So one that may be null by itself can't be
 * strict: absent (leave it) and null (clear it) would become one.
 */
function objectOf(schema: Schema, walk: Walk): Schema {
  const { additionalProperties: others, properties } = schema;
  if (others !== undefined && others !== false) throw new Inexact('Properties of any name.');
  if (others === undefined && entriesOf(properties).length === 0) throw new Inexact('An object of any kind.');
  const required = listOf(schema.required);
  for (const name of required)
    if (!isSchema(properties) || !Object.hasOwn(properties, name as string))
      throw new Inexact('A required property that is not declared.');
  const made = entriesOf(properties).map(([name, property]): [string, Schema] => {
    const strict = strictOf(property, walk);
    if (required.includes(name)) return [name, strict];
    if (allowsNull(property, walk.references)) throw new Inexact('An optional property that may be null.');
    return [name, nullable(strict)];
  });
  return {
    type: 'object',
    properties: Object.fromEntries(made),
    required: made.map(([name]) => name),
    additionalProperties: false,
  };
}

/** With the description, and the default, which strict schemas can't have as a keyword. */
function described(made: Schema, from: Schema): Schema {
  const text = parameterDescription(from);
  const byDefault = from.default === undefined ? '' : JSON.stringify(from.default);
  const note = byDefault !== '' && byDefault.length <= MAX_DEFAULT ? `Default: ${byDefault}` : null;
  const description = [text, note].filter((part) => part !== null).join(' ');
  if (description === '') return made;
  // a reference may have nothing beside it
  return made.$ref === undefined ? { ...made, description } : { anyOf: [made], description };
}
