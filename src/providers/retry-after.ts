/** The waits that a provider may ask for; anything longer is a broken clock or a broken server. */
const MAX_WAIT_MS = 7 * 24 * 3600_000;

/**
 * Milliseconds that the answer's headers ask to wait, or null when they say nothing readable.
 *
 * Read in this order: `retry-after-ms`; `retry-after` in seconds or as an HTTP date (against the answer's own `date`
 * where it has one, so that a wrong clock here does not matter); `x-ratelimit-reset-*` of a limit with nothing remaining,
 * as OpenAI (`6m0s`) and Groq (`7.66s`) write it.
 *
 * @param now milliseconds since the epoch
 */
export function retryAfterMs(headers: { get(name: string): string | null }, now: number): number | null {
  const milliseconds = headers.get('retry-after-ms');
  if (milliseconds !== null && isNumber(milliseconds)) return bounded(Number(milliseconds));
  const after = headers.get('retry-after');
  if (after !== null) {
    if (isNumber(after)) return bounded(Number(after) * 1000);
    const at = Date.parse(after);
    if (!Number.isNaN(at)) {
      const answered = Date.parse(headers.get('date') ?? '');
      return bounded(at - (Number.isNaN(answered) ? now : answered));
    }
  }
  let longest: number | null = null;
  for (const limit of ['requests', 'tokens']) {
    if (headers.get(`x-ratelimit-remaining-${limit}`) !== '0') continue;
    const wait = parseDuration(headers.get(`x-ratelimit-reset-${limit}`) ?? '');
    if (wait !== null) longest = Math.max(longest ?? 0, wait);
  }
  return longest === null ? null : bounded(longest);
}

function isNumber(text: string): boolean {
  return /^\s*[+-]?\d+(\.\d+)?\s*$/.test(text);
}

function bounded(ms: number): number {
  return Math.min(Math.max(0, Math.ceil(ms)), MAX_WAIT_MS);
}

const UNIT_MS: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: 3600_000, d: 24 * 3600_000 };

/** Milliseconds of a duration such as `6m0s` or `20ms`; null when the text is none. */
export function parseDuration(text: string): number | null {
  if (!/^(\d+(\.\d+)?(ms|s|m|h|d))+$/.test(text)) return null;
  let total = 0;
  for (const [, amount, unit] of text.matchAll(/(\d+(?:\.\d+)?)(ms|[smhd])/g)) {
    total += Number(amount) * (UNIT_MS[unit ?? ''] ?? 0);
  }
  return total;
}
