/**
 * What the real chat completions API accepts as a function's `parameters`, as far as tools of strangers break it.
 *
 * Sources: the public documentation of function calling and structured outputs, and error messages that the API is
 * reported to give. Each rule returns the end of such a message, or null.
 */
import { strictWholeFault } from './tool-schema-limits.ts';

const TYPES = new Set(['object', 'array', 'string', 'number', 'integer', 'boolean', 'null']);
const STRICT_FORMATS = new Set('date-time time date duration email hostname ipv4 ipv6 uuid'.split(' '));
const NOT_STRICT = (
  'allOf oneOf not if then else dependentRequired dependentSchemas patternProperties unevaluatedProperties ' +
  'propertyNames minProperties maxProperties unevaluatedItems contains minContains maxContains uniqueItems default'
).split(' ');

type Schema = Record<string, unknown>;

interface Walk {
  root: Schema;
  strict: boolean;
}

/** Null when the schema is acceptable; otherwise why not. */
export function toolSchemaFault(parameters: unknown, strict: boolean): string | null {
  if (!isRecord(parameters)) return `schema must be an object, got ${typeName(parameters)}`;
  if (parameters.type !== 'object') {
    return `schema must be a JSON Schema of 'type: "object"', got 'type: "${String(parameters.type ?? 'None')}"'`;
  }
  for (const key of ['oneOf', 'anyOf', 'allOf', 'enum', 'not']) {
    if (key in parameters) return `schema must not have '${key}' at the top level`;
  }
  return (
    check(parameters, { root: parameters, strict }, [], 1) ?? (strict ? strictWholeFault(parameters) : null)
  );
}

function check(schema: unknown, walk: Walk, at: string[], depth: number): string | null {
  const context = `In context=(${at.map((part) => `'${part}'`).join(', ')})`;
  if (typeof schema === 'boolean' && !walk.strict) return null;
  if (!isRecord(schema)) return `${context}, schema must be an object, got ${typeName(schema)}`;
  if (typeof schema.$ref === 'string')
    return resolves(schema.$ref, walk.root) ? null : `${context}, unresolved reference '${schema.$ref}'`;
  const types = Array.isArray(schema.type) ? schema.type : schema.type === undefined ? [] : [schema.type];
  const unknownType = types.find((type) => typeof type !== 'string' || !TYPES.has(type));
  if (unknownType !== undefined) return `${context}, '${String(unknownType)}' is not a valid type`;
  if (types.includes('array') && schema.items === undefined && schema.prefixItems === undefined) {
    return `${context}, array schema missing items`;
  }
  if (types.includes('object') && schema.properties === undefined && (at.length === 0 || walk.strict)) {
    return `${context}, object schema missing properties`;
  }
  const properties = schema.properties ?? {};
  if (!isRecord(properties)) return `${context}, 'properties' must be an object`;
  if (schema.required !== undefined && !isStringList(schema.required))
    return `${context}, 'required' must be a list of names`;
  if (schema.enum !== undefined && (!Array.isArray(schema.enum) || schema.enum.length === 0)) {
    return `${context}, 'enum' must be a list with entries`;
  }
  const fault = walk.strict ? strictFault(schema, types, Object.keys(properties), context, depth) : null;
  if (fault) return fault;
  for (const [path, inner] of children(schema, properties)) {
    const innerFault = check(inner, walk, [...at, ...path], path[0] === '$defs' ? depth : depth + 1);
    if (innerFault) return innerFault;
  }
  return null;
}

function strictFault(
  schema: Schema,
  types: unknown[],
  names: string[],
  context: string,
  depth: number,
): string | null {
  if (depth > 11) return `${context}, schema is nested too deeply`;
  const banned = NOT_STRICT.find((key) => key in schema);
  if (banned) return `${context}, '${banned}' is not permitted`;
  if (typeof schema.format === 'string' && !STRICT_FORMATS.has(schema.format)) {
    return `${context}, '${schema.format}' is not a valid format`;
  }
  if (types.length === 0 && !('anyOf' in schema) && !('enum' in schema) && !('const' in schema)) {
    return `${context}, schema must have a 'type' key`;
  }
  if (!types.includes('object')) return null;
  if (schema.additionalProperties !== false) {
    return `${context}, 'additionalProperties' is required to be supplied and to be false`;
  }
  const required = isStringList(schema.required) ? schema.required : [];
  const missing = names.find((name) => !required.includes(name));
  if (missing !== undefined) {
    return `${context}, 'required' is required to be supplied and to be an array including every key in properties. Missing '${missing}'`;
  }
  const extra = required.find((name) => !names.includes(name));
  return extra === undefined ? null : `${context}, 'required' has the extra key '${extra}'`;
}

function children(schema: Schema, properties: Schema): [string[], unknown][] {
  const found: [string[], unknown][] = Object.entries(properties).map(([name, inner]) => [
    ['properties', name],
    inner,
  ]);
  for (const key of ['$defs', 'definitions']) {
    if (isRecord(schema[key])) {
      for (const [name, inner] of Object.entries(schema[key])) found.push([[key, name], inner]);
    }
  }
  for (const key of ['anyOf', 'oneOf', 'allOf', 'prefixItems']) {
    const list = schema[key];
    if (Array.isArray(list))
      for (const [index, inner] of list.entries()) found.push([[key, String(index)], inner]);
  }
  if (schema.items !== undefined) found.push([['items'], schema.items]);
  for (const key of ['additionalProperties', 'not', 'if', 'then', 'else', 'contains', 'propertyNames']) {
    if (isRecord(schema[key])) found.push([[key], schema[key]]);
  }
  return found;
}

function resolves(reference: string, root: Schema): boolean {
  if (reference === '#') return true;
  if (!reference.startsWith('#/')) return false;
  let at: unknown = root;
  for (const part of reference.slice(2).split('/')) {
    if (!isRecord(at)) return false;
    at = at[decodeURIComponent(part).replaceAll('~1', '/').replaceAll('~0', '~')];
  }
  return isRecord(at) || typeof at === 'boolean';
}

function isStringList(value: unknown): value is string[] {
  return Array.isArray(value) && value.every((entry) => typeof entry === 'string');
}

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** The name of a JSON type as the API's messages write it. */
export function typeName(value: unknown): string {
  if (value === null) return 'null';
  return Array.isArray(value) ? 'an array' : value === undefined ? 'nothing' : `a ${typeof value}`;
}
