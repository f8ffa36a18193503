/** `anyOf` and `oneOf` as the `anyOf` of a strict schema. */
import { strictOf } from './strict.ts';
import { branchesOf, differInNames, settled, tellingProperty, typesOf } from './strict-union.ts';
import { Inexact, type Walk } from './strict-walk.ts';
import { entriesOf, isSchema, listOf, type Schema } from './types.ts';

/**
 * A union as `anyOf`. It must be clear from a value which alternative was meant, for the nulls to be taken out again: of objects, one property
 * tells them apart or their names differ; there is at most one kind of array. Alternatives of `oneOf` must also exclude each other.
 */
export function union(schema: Schema, keyword: 'anyOf' | 'oneOf', walk: Walk): Schema {
  const branches = branchesOf({ [keyword]: schema[keyword] }, walk.references);
  const kinds = branches.map((branch) => {
    const types = typesOf(branch);
    if (types === null) throw new Inexact('An alternative of any type.');
    return types;
  });
  if (kinds.filter((types) => types.has('array')).length > 1) throw new Inexact('Two kinds of array.');
  const objects = branches.filter(
    (branch, at): branch is Schema => isSchema(branch) && kinds[at]?.has('object') === true,
  );
  const telling = objects.length > 1 ? tellingProperty(objects, walk.references) : null;
  if (objects.length > 1 && telling === null && !differInNames(objects))
    throw new Inexact('Objects that nothing tells apart.');
  if (keyword === 'oneOf') exclusive(schema, branches, objects.length < 2 || telling !== null, walk);
  const given = listOf(schema[keyword]);
  const [only] = given;
  if (given.length === 1) return strictOf(only, walk);
  const made = given.map((branch) => first(strictOf(branch, walk), telling));
  if (objects.length > 1) distinctFirstKeys(given, objects, telling);
  return { anyOf: made };
}

/** Throws unless no value is allowed by two of the alternatives. */
function exclusive(schema: Schema, branches: readonly unknown[], objectsAre: boolean, walk: Walk): void {
  const given = listOf(schema.oneOf).map((branch) => settled(branch, walk.references));
  // a union within may share alternatives with another
  const plain = given.length === branches.length && given.every((branch, at) => branch === branches[at]);
  if (!plain || !objectsAre) throw new Inexact('Alternatives that may not exclude each other.');
  const types = new Set<string>();
  const values = new Set<unknown>();
  const typesOfValues = new Set<string>();
  for (const branch of branches) {
    const listed = listedOf(branch);
    for (const type of typesOf(branch) ?? []) {
      const taken = listed ? types.has(type) : types.has(type) || typesOfValues.has(type);
      if (taken && type !== 'object') throw new Inexact('Alternatives that may not exclude each other.');
    }
    if (listed?.some((value) => values.has(value)))
      throw new Inexact('Alternatives that may not exclude each other.');
    for (const type of typesOf(branch) ?? []) (listed ? typesOfValues : types).add(type);
    for (const value of listed ?? []) values.add(value);
  }
}

function listedOf(branch: unknown): readonly unknown[] | null {
  if (!isSchema(branch)) return null;
  if (branch.const !== undefined) return [branch.const];
  return Array.isArray(branch.enum) ? branch.enum : null;
}

/** The API refuses objects of one `anyOf` "that share identical first keys": the telling property comes first. */
function first(made: Schema, telling: string | null): Schema {
  if (telling === null || !isSchema(made.properties) || !Object.hasOwn(made.properties, telling)) return made;
  const { [telling]: head, ...rest } = made.properties;
  const properties = { [telling]: head, ...rest };
  return { ...made, properties, required: Object.keys(properties) };
}

/** Throws where the first properties are the same and can't be put otherwise: a definition may serve elsewhere, too. */
function distinctFirstKeys(
  branches: readonly unknown[],
  objects: readonly Schema[],
  telling: string | null,
): void {
  const keys = objects.map((object) => entriesOf(object.properties)[0]?.[0]);
  const settledOnes = objects.filter((object) => !branches.includes(object));
  const told =
    telling !== null && settledOnes.every((object) => entriesOf(object.properties)[0]?.[0] === telling);
  if (!told && new Set(keys).size < keys.length)
    throw new Inexact('Alternatives with the same first property.');
}
