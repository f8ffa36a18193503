/** What a model said to a function, as the tool wants it. */
import type { Surveyed } from './convert-schema.ts';
import type { References } from './references.ts';
import { WRAPPER } from './root.ts';
import { branchesOf, isUnion, meantBranch, settled } from './strict-union.ts';
import { entriesOf, isSchema, listOf, type Schema } from './types.ts';

/**
 * Takes the arguments out of their wrapper, and the nulls out that stand for an absent property.
 *
 * Only a strict function has such nulls, and only where the tool's schema has an optional property that must not be null: a null that means
 * something is never touched. What does not have the function's shape is left as it is, for the check to name.
 */
export function mappedBack(tool: Surveyed, strict: boolean, given: unknown): unknown {
  const { root, references } = tool;
  const inner =
    root.wrapped && isSchema(given) && Object.hasOwn(given, WRAPPER) && Object.keys(given).length === 1
      ? given[WRAPPER]
      : given;
  return strict ? withoutNulls(inner, root.schema, references) : inner;
}

function withoutNulls(value: unknown, schema: unknown, references: References | null): unknown {
  if (typeof value !== 'object' || value === null) return value;
  const at = settled(schema, references);
  if (!isSchema(at)) return value;
  if (Array.isArray(value)) {
    const items = arrayOf(at, references)?.items;
    return items === undefined ? value : value.map((item) => withoutNulls(item, items, references));
  }
  const object = isUnion(at) ? meantBranch(branchesOf(at, references), value as Schema, references) : at;
  if (!object) return value;
  const { properties } = object;
  const required = listOf(object.required);
  return Object.fromEntries(
    entriesOf(value)
      .filter(([name, inner]) => inner !== null || required.includes(name) || !declares(properties, name))
      .map(([name, inner]) => [
        name,
        declares(properties, name) ? withoutNulls(inner, properties[name], references) : inner,
      ]),
  );
}

function declares(properties: unknown, name: string): properties is Schema {
  return isSchema(properties) && Object.hasOwn(properties, name);
}

/** The schema itself, or its one alternative that is an array. */
function arrayOf(schema: Schema, references: References | null): Schema | undefined {
  if (!isUnion(schema)) return schema;
  return branchesOf(schema, references).find(
    (branch): branch is Schema => isSchema(branch) && [branch.type].flat().includes('array'),
  );
}
