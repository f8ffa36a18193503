/** JSON that PostgreSQL takes: jsonb refuses NUL characters and unpaired surrogates, which models and tools do produce. */

const SUSPECT = /\\u0000|\\ud[89a-f]/i;

/** Serializes a value for a jsonb parameter; NUL and unpaired surrogates become U+FFFD. */
export function toJson(value: unknown): string {
  const text = JSON.stringify(value);
  return SUSPECT.test(text) ? JSON.stringify(value, (_key, inner) => clean(inner)) : text;
}

function clean(value: unknown): unknown {
  return typeof value === 'string' ? value.toWellFormed().replaceAll('\u0000', '\uFFFD') : value;
}
