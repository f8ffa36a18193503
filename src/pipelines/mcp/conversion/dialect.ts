import { type Dialect, isSchema, type Schema, Unfit } from './types.ts';

const DECLARED: readonly (readonly [RegExp, Dialect])[] = [
  [/^https?:\/\/json-schema\.org\/draft\/2020-12\/schema#?$/, '2020-12'],
  [/^https?:\/\/json-schema\.org\/draft\/2019-09\/schema#?$/, '2019-09'],
  // what draft 4 has otherwise (a boolean `exclusiveMinimum`, `id`) is refused where it stands
  [/^https?:\/\/json-schema\.org\/draft-0[467]\/schema#?$/, 'draft-07'],
  [/^https?:\/\/json-schema\.org\/schema#?$/, '2020-12'],
];

/**
 * The dialect of a tool's schema: the declared one; without one 2020-12, as MCP says, unless `listed` tells that `items` is a list somewhere,
 * which only earlier drafts know.
 */
export function dialectOf(root: Schema, listed: boolean): Dialect {
  const declared = root.$schema;
  if (declared === undefined) return listed ? 'draft-07' : '2020-12';
  const known = DECLARED.find(([url]) => typeof declared === 'string' && url.test(declared));
  if (!known)
    throw new Unfit(
      'unsupported_dialect',
      'The schema declares a $schema other than JSON Schema, draft 4 to 2020-12.',
    );
  return known[1];
}

/** Whether `items` is a list in this schema. */
export function hasListedItems(schema: Schema): boolean {
  return isSchema(schema) && Array.isArray(schema.items);
}
