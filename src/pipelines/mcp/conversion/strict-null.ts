import type { Schema } from './types.ts';

const SCALARS: ReadonlySet<unknown> = new Set(['string', 'number', 'integer', 'boolean']);

/** A strict schema that also allows null. It must not have done so before. */
export function nullable(schema: Schema): Schema {
  if (SCALARS.has(schema.type)) {
    const types = { ...schema, type: [schema.type, 'null'] };
    return Array.isArray(schema.enum) ? { ...types, enum: [...schema.enum, null] } : types;
  }
  if (Array.isArray(schema.anyOf)) return { ...schema, anyOf: [...schema.anyOf, { type: 'null' }] };
  const { description, ...rest } = schema;
  const made = { anyOf: [rest, { type: 'null' }] };
  return description === undefined ? made : { ...made, description };
}
