/**
 * Secrets out of what is logged or printed.
 *
 * By the name of the field, at any depth: a list of paths would have to know every object that is ever logged, and
 * the one that it forgot is the one that leaks.
 */

const MASK = '[masked]';
const MAX_DEPTH = 8;

/** Names as they end, without case and separators: `api_key`, `x-api-key`, `zepApiKey` are one. */
const SECRET_NAME =
  /(apikeys?|authorization|passw(or)?d|passphrase|secrets?|tokens?|privatekeys?|encryptionkeys?|signingkeys?|cookies?|clientassertion)$/;

/** A user's password inside a connection string or another URL. */
const URL_PASSWORD = /([a-z][a-z0-9+.-]*:\/\/[^\s:/@]*):[^\s/@]+@/gi;

/** A secret among the parameters of a URL, such as `?password=` of a connection string. */
const URL_PARAMETER = /([?&][\w.-]*(?:key|token|secret|signature|passw(?:or)?d)=)[^&\s"'<>]+/gi;

/** A bearer credential inside a text, such as an error that quotes a request's headers. */
const BEARER = /\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}/gi;

/** Whether a field of this name holds a secret. */
export function isSecretName(name: string): boolean {
  return SECRET_NAME.test(name.replace(/[-_.\s]/g, '').toLowerCase());
}

/** A text without the passwords and secret parameters of URLs and without bearer credentials. */
export function maskText(text: string): string {
  return text.replace(URL_PASSWORD, '$1:***@').replace(URL_PARAMETER, '$1***').replace(BEARER, '$1 ***');
}

/**
 * A copy of `value` in which secret fields are masked and texts are cleaned.
 *
 * Numbers and booleans stay whatever their name: `prompt_tokens` is a count. Errors are left to the error serializer,
 * cycles and anything deeper than eight levels become a word.
 */
export function redact(value: unknown): unknown {
  return walk(value, 0, new Set());
}

function walk(value: unknown, depth: number, above: Set<object>): unknown {
  if (typeof value === 'string') return maskText(value);
  if (typeof value !== 'object' || value === null) return value;
  if (value instanceof Error || value instanceof Date || value instanceof Uint8Array) return value;
  if (above.has(value)) return '[circular]';
  if (depth >= MAX_DEPTH) return '[deep]';
  above.add(value);
  try {
    if (Array.isArray(value)) return value.map((item) => walk(item, depth + 1, above));
    const copy: Record<string, unknown> = {};
    for (const [name, item] of Object.entries(value)) {
      const hides =
        isSecretName(name) && (typeof item === 'string' || (typeof item === 'object' && item !== null));
      copy[name] = hides ? MASK : walk(item, depth + 1, above);
    }
    return copy;
  } finally {
    above.delete(value);
  }
}
