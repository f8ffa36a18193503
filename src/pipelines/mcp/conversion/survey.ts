/** One bounded walk over a schema before anything else touches it. */
import { hasListedItems } from './dialect.ts';
import { COUNTS, eachInner, expressionOf, LISTED, NAMED, NUMBERS, ONE, TYPES } from './keywords.ts';
import { MAX_SCHEMA_CHARACTERS, MAX_SCHEMA_DEPTH, MAX_SCHEMA_NODES } from './limits.ts';
import { isSchema, type Schema, Unfit } from './types.ts';

/** What the walk found on its way. */
export type Survey = {
  /** Whether `items` is a list somewhere. */
  listedItems: boolean;
  /** Whether there is any `$ref`. */
  references: boolean;
  /** Whether a schema below the root has an `$id`, a new base for its references. */
  innerIds: boolean;
};

/** Throws `Unfit` where the value is larger or deeper than we work on. JSON alone: it must hold no circle. */
export function checkSize(value: unknown): void {
  const left = { nodes: MAX_SCHEMA_NODES, characters: MAX_SCHEMA_CHARACTERS };
  sizeOf(value, left, 0);
}

function sizeOf(value: unknown, left: { nodes: number; characters: number }, depth: number): void {
  left.nodes--;
  left.characters -= typeof value === 'string' ? value.length : 4;
  if (left.nodes < 0 || left.characters < 0)
    throw new Unfit(
      'schema_too_large',
      `The schema has more than ${MAX_SCHEMA_CHARACTERS} characters or ${MAX_SCHEMA_NODES} values.`,
    );
  if (typeof value !== 'object' || value === null) return;
  if (depth >= MAX_SCHEMA_DEPTH)
    throw new Unfit('schema_too_deep', `The schema has more than ${MAX_SCHEMA_DEPTH} levels.`);
  if (Array.isArray(value)) {
    for (const inner of value) sizeOf(inner, left, depth + 1);
    return;
  }
  for (const key in value) {
    left.characters -= key.length;
    sizeOf((value as Schema)[key], left, depth + 1);
  }
}

/** Throws `Unfit` where a keyword holds what JSON Schema does not allow, and where we can't follow it. */
export function survey(root: Schema): Survey {
  const found: Survey = { listedItems: false, references: false, innerIds: false };
  visit(root, '', found, true);
  return found;
}

function visit(schema: unknown, at: string, found: Survey, top: boolean): void {
  if (typeof schema === 'boolean') return;
  if (!isSchema(schema)) throw invalid(at, 'a schema is an object, true or false');
  for (const keyword in schema) {
    const wrong = wrongValue(keyword, schema[keyword]);
    if (wrong) throw invalid(`${at}/${keyword}`, wrong);
  }
  if (hasListedItems(schema)) found.listedItems = true;
  if (schema.$ref !== undefined) found.references = true;
  if (schema.$id !== undefined && !top) found.innerIds = true;
  if (schema.$dynamicRef !== undefined || schema.$recursiveRef !== undefined)
    throw new Unfit('unsupported_reference', `At '${short(at)}': a reference that depends on the way to it.`);
  eachInner(schema, (inner, keyword, name) => {
    if (name === '__proto__')
      throw new Unfit(
        'forbidden_property',
        `At '${short(at)}': a property called __proto__ can't be checked.`,
      );
    visit(inner, name === null ? `${at}/${keyword}` : `${at}/${keyword}/${name}`, found, false);
  });
}

/** What a keyword should hold instead; null where its value is right or the keyword is not ours. Schemas within are visited on their own. */
function wrongValue(keyword: string, value: unknown): string | null {
  switch (keyword) {
    case 'type':
      if (Array.isArray(value))
        return value.length > 0 &&
          value.every((type) => TYPES.has(type)) &&
          new Set(value).size === value.length
          ? null
          : 'a list of different JSON types';
      return TYPES.has(value) ? null : 'a JSON type';
    case 'required':
      return isNames(value) ? null : 'a list of different names';
    case 'enum':
      return Array.isArray(value) && value.length > 0 ? null : 'a list with values';
    case 'pattern':
    case 'format':
    case '$ref':
    case '$id':
    case '$anchor':
      return typeof value === 'string' ? null : 'a string';
    case 'uniqueItems':
      return typeof value === 'boolean' ? null : 'true or false';
    case 'dependentRequired':
      return isSchema(value) && Object.values(value).every(isNames) ? null : 'lists of names by name';
    case 'patternProperties':
      return isSchema(value) && Object.keys(value).every((pattern) => expressionOf(pattern) !== null)
        ? null
        : 'schemas by patterns that JavaScript can read';
    case 'dependencies':
      return isSchema(value) && Object.values(value).every((each) => !Array.isArray(each) || isNames(each))
        ? null
        : 'schemas or lists of names by name';
  }
  if (COUNTS.has(keyword)) return Number.isInteger(value) && (value as number) >= 0 ? null : 'a count';
  if (NUMBERS.has(keyword))
    return typeof value === 'number' && (keyword !== 'multipleOf' || value > 0) ? null : 'a number';
  if (LISTED.has(keyword)) return Array.isArray(value) && value.length > 0 ? null : 'a list of schemas';
  if (NAMED.has(keyword)) return isSchema(value) ? null : 'schemas by name';
  if (ONE.has(keyword)) return Array.isArray(value) && keyword !== 'items' ? 'a schema' : null;
  return null;
}

function isNames(value: unknown): boolean {
  return (
    Array.isArray(value) &&
    value.every((name) => typeof name === 'string') &&
    new Set(value).size === value.length
  );
}

function invalid(at: string, wanted: string): Unfit {
  return new Unfit(
    'invalid_schema',
    `At '${short(at)}': expected ${wanted}. Ask the server's maker to mend the tool.`,
  );
}

/** A place in a schema, bounded: its names are the server's. */
function short(at: string): string {
  return at.length <= 120 ? at : `…${at.slice(-119).toWellFormed()}`;
}

/** Whether a root that the survey let through could be an object's schema at all. */
export function mayBeObject(root: Schema): boolean {
  const { type } = root;
  return type === undefined || type === 'object' || (Array.isArray(type) && type.includes('object'));
}
