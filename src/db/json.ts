/** JSON that PostgreSQL takes: jsonb refuses NUL characters and unpaired surrogates, which models and tools do produce. */

// JSON.stringify writes pairs of surrogates as they are: one that is escaped is alone. The first alternative
// steps over an escaped backslash, so that the text "\u0000" (seven characters) stays as it is.
const REFUSED = /\\(\\|u0000|ud[89a-f][0-9a-f]{2})/gi;

/** Serializes a value for a jsonb parameter; NUL and unpaired surrogates become U+FFFD, in keys as well. */
export function toJson(value: unknown): string {
  return JSON.stringify(value).replace(REFUSED, (found, what: string) => (what === '\\' ? found : '\\ufffd'));
}
