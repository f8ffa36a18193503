/** Alternatives that a strict schema can offer so that it stays clear which of them was meant. */
import type { References } from './references.ts';
import { entriesOf, isSchema, listOf, type Schema } from './types.ts';

/** Follows references, and `allOf` of one, to what judges the value. Its circles have been ruled out. */
export function settled(schema: unknown, references: References | null): unknown {
  let at = schema;
  while (isSchema(at)) {
    if (typeof at.$ref === 'string') at = references?.target(at.$ref);
    else if (Array.isArray(at.allOf) && at.allOf.length === 1) at = at.allOf[0];
    else return at;
  }
  return at;
}

/**
 * The alternatives of `anyOf` or `oneOf`, and of alternatives that are unions themselves, each once.
 *
 * Each union is entered once: references that double at every level would otherwise be 2ⁿ alternatives.
 */
export function branchesOf(
  schema: Schema,
  references: References | null,
  seen = new Set<unknown>(),
): unknown[] {
  const branches: unknown[] = [];
  for (const branch of [...listOf(schema.anyOf), ...listOf(schema.oneOf)]) {
    const inner = settled(branch, references);
    if (seen.has(inner)) continue;
    seen.add(inner);
    if (isUnion(inner)) branches.push(...branchesOf(inner, references, seen));
    else branches.push(inner);
  }
  return branches;
}

export function isUnion(schema: unknown): schema is Schema {
  return isSchema(schema) && (schema.anyOf !== undefined || schema.oneOf !== undefined);
}

/** The types of the values that a schema with types, `enum` or `const` allows; null if it allows any type. */
export function typesOf(schema: unknown): ReadonlySet<string> | null {
  if (!isSchema(schema)) return null;
  if (schema.const !== undefined) return new Set([typeOf(schema.const)]);
  if (Array.isArray(schema.enum)) return new Set(schema.enum.map(typeOf));
  if (schema.type === undefined) return null;
  const types = (Array.isArray(schema.type) ? schema.type : [schema.type]) as string[];
  // every integer is a number
  return new Set(types.map((type) => (type === 'integer' ? 'number' : type)));
}

/** Whether null is allowed, or may be: a guess would take a meaning away. */
export function allowsNull(schema: unknown, references: References | null): boolean {
  const at = settled(schema, references);
  if (!isSchema(at)) return true;
  const alternatives = isUnion(at) ? branchesOf(at, references) : [at];
  return alternatives.some((each) => typesOf(each)?.has('null') ?? true);
}

/** The values that a required property must have one of; null if it may have others or be missing. */
function valuesOf(object: Schema, name: string, references: References | null): ReadonlySet<unknown> | null {
  if (!listOf(object.required).includes(name)) return null;
  const property = settled(isSchema(object.properties) ? object.properties[name] : undefined, references);
  if (!isSchema(property)) return null;
  const values =
    property.const !== undefined ? [property.const] : Array.isArray(property.enum) ? property.enum : null;
  return values?.every((value) => typeof value === 'string') ? new Set(values) : null;
}

/** The property whose value tells each of these objects from all others (`type`, `kind`); null where there is none. */
export function tellingProperty(objects: readonly Schema[], references: References | null): string | null {
  const first = objects[0];
  if (!first) return null;
  for (const [name] of entriesOf(first.properties)) {
    const seen = new Set<unknown>();
    const tells = objects.every((object) => {
      const values = valuesOf(object, name, references);
      if (values === null) return false;
      for (const value of values) {
        if (seen.has(value)) return false;
        seen.add(value);
      }
      return true;
    });
    if (tells) return name;
  }
  return null;
}

/** The alternative that an object which obeys the strict schema was made for; undefined where none is meant. */
export function meantBranch(
  branches: readonly unknown[],
  value: Schema,
  references: References | null,
): Schema | undefined {
  const objects = branches.filter(
    (branch): branch is Schema => isSchema(branch) && typesOf(branch)?.has('object') === true,
  );
  const telling = objects.length > 1 ? tellingProperty(objects, references) : null;
  if (telling !== null)
    return objects.find((object) => valuesOf(object, telling, references)?.has(value[telling]));
  // strict objects have all of their properties and no other
  const names = Object.keys(value);
  return objects.find((object) => {
    const own = Object.keys(isSchema(object.properties) ? object.properties : {});
    return own.length === names.length && own.every((name) => Object.hasOwn(value, name));
  });
}

/** Whether no two of these objects have the same set of names. */
export function differInNames(objects: readonly Schema[]): boolean {
  const sets = objects.map((object) =>
    JSON.stringify(
      entriesOf(object.properties)
        .map(([name]) => name)
        .toSorted(),
    ),
  );
  return new Set(sets).size === sets.length;
}

function typeOf(value: unknown): string {
  if (value === null) return 'null';
  return Array.isArray(value) ? 'array' : typeof value;
}
