/** Bounds of what a server can make us work on, and what OpenAI documents for strict schemas. */

/** Characters of all names, strings and values of one tool's schema: 128 Ki are about 40,000 tokens, more than a prompt should spend. */
export const MAX_SCHEMA_CHARACTERS = 131_072;
/** Values of all kinds in one tool's schema. */
export const MAX_SCHEMA_NODES = 20_000;
/** Levels of JSON in one tool's schema: three or so for each level of the arguments. */
export const MAX_SCHEMA_DEPTH = 64;

/** The function's own description: the API refuses more. */
export const MAX_DESCRIPTION = 1_024;
/** The description of one parameter. */
export const MAX_PARAMETER_DESCRIPTION = 1_000;
/** A default that is worth telling the model. */
export const MAX_DEFAULT = 200;

export const MAX_NAME = 64;

/** Arguments that a model may give: characters as JSON, and levels. */
export const MAX_ARGUMENT_CHARACTERS = 1_048_576;
export const MAX_ARGUMENT_DEPTH = 128;
/** Time to compile a schema and to check arguments, together. Most take less than 5 ms. */
export const CHECK_MILLISECONDS = 250;

/**
 * https://platform.openai.com/docs/guides/structured-outputs#supported-schemas: 5,000 properties, 10 levels, 120,000 characters of property
 * names, definition names, enum and const values, 1,000 enum values, and 15,000 characters in one enum of more than 250 strings.
 */
export const STRICT = {
  properties: 5_000,
  levels: 10,
  characters: 120_000,
  enumValues: 1_000,
  largeEnum: 250,
  largeEnumCharacters: 15_000,
} as const;
