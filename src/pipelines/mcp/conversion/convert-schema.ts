/** One tool's schema as a function's parameters. */
import { withDefinitions } from './definitions.ts';
import { dialectOf } from './dialect.ts';
import { looseOf } from './loose.ts';
import { References } from './references.ts';
import { type Root, rootOf, WRAPPER } from './root.ts';
import { strictOf } from './strict.ts';
import { fitsStrict } from './strict-size.ts';
import { branchesOf, isUnion, typesOf } from './strict-union.ts';
import { Inexact, type Walk } from './strict-walk.ts';
import { checkSize, survey } from './survey.ts';
import { type Dialect, isSchema, type Schema, Unfit } from './types.ts';

/** A tool's schema that has been looked at: everything that the conversion and its way back need to know. */
export type Surveyed = {
  readonly schema: Schema;
  readonly dialect: Dialect;
  readonly references: References | null;
  readonly root: Root;
};

/** Looks at a tool's schema; throws `Unfit` where it can't be offered. A missing one is a tool without arguments. */
export function surveyed(inputSchema: unknown): Surveyed {
  const schema = inputSchema === undefined || inputSchema === null ? {} : inputSchema;
  if (!isSchema(schema)) throw new Unfit('invalid_schema', 'The schema of a tool is an object.');
  checkSize(schema);
  const found = survey(schema);
  const dialect = dialectOf(schema, found.listedItems);
  if (found.listedItems && dialect === '2020-12')
    throw new Unfit('invalid_schema', 'The schema declares 2020-12, where items is no list.');
  if (found.references && found.innerIds)
    throw new Unfit('unsupported_reference', 'The schema has references, and an $id below its root.');
  const references = found.references ? new References(schema) : null;
  return { schema, dialect, references, root: rootOf(schema, references) };
}

/** Parameters as strict ones where those say the same, otherwise as they are with a clean top. */
export function parametersOf(tool: Surveyed): { parameters: Schema; strict: boolean } {
  const { references, root } = tool;
  try {
    const parameters = withDefinitions(references, (walk) => strictRoot(root, walk), strictOf);
    if (fitsStrict(parameters)) return { parameters, strict: true };
  } catch (error) {
    if (!(error instanceof Inexact)) throw error;
  }
  return {
    parameters: withDefinitions(references, (walk) => looseRoot(root, walk), looseOf),
    strict: false,
  };
}

function strictRoot({ schema, wrapped }: Root, walk: Walk): Schema {
  if (!wrapped) return strictOf({ ...asObject(schema), description: undefined, title: undefined }, walk);
  const inner = strictOf(ofObjects(schema, walk), walk);
  return {
    type: 'object',
    properties: { [WRAPPER]: inner },
    required: [WRAPPER],
    additionalProperties: false,
  };
}

/** Arguments are an object in any case: where each alternative says so, too, the type beside them says nothing. */
function ofObjects(schema: Schema, walk: Walk): Schema {
  const alternatives = isUnion(schema) ? branchesOf(schema, walk.references) : [schema];
  const only = alternatives.every((each) => {
    const types = typesOf(each);
    return types?.size === 1 && types.has('object');
  });
  if (!only) throw new Inexact('An alternative that is not an object.');
  const { type, ...rest } = schema;
  return isUnion(schema) ? rest : schema;
}

/** A tool that declares no parameters has none; one that says that others are allowed is left as it is. */
function asObject(schema: Schema): Schema {
  if (schema.properties === undefined && schema.additionalProperties === undefined)
    return { ...schema, type: 'object', properties: {}, additionalProperties: false };
  return isSchema(schema.properties) &&
    Object.keys(schema.properties).length === 0 &&
    schema.additionalProperties === undefined
    ? { ...schema, type: 'object', additionalProperties: false }
    : { ...schema, type: 'object' };
}

function looseRoot({ schema, wrapped }: Root, walk: Walk): Schema {
  const inner: Schema = { ...looseOf(schema, walk), type: 'object' };
  if (!wrapped) return { ...inner, properties: inner.properties ?? {} };
  return {
    type: 'object',
    properties: { [WRAPPER]: inner },
    required: [WRAPPER],
    additionalProperties: false,
  };
}
