/** Whether a provider still takes an API key: one request that changes nothing and costs nothing. */
import { GuardedCallError, type GuardedCaller } from './guarded-call.ts';
import type { OAuthProvider } from './oauth-providers.ts';

const TIMEOUT_MS = 10_000;
const MAX_ANSWER_BYTES = 2 * 1024 * 1024;

/**
 * `refused` only where the provider says 401; a key that may not do this (403) is a key all the same. `unknown`: it did not say, and
 * may be asked another time. Throws the signal's reason. No answer holds the key.
 */
export async function checkKey(
  caller: GuardedCaller,
  check: NonNullable<OAuthProvider['keyCheck']>,
  key: string,
  signal: AbortSignal,
): Promise<{ readonly verdict: 'good' | 'refused' | 'unknown'; readonly status: number | null }> {
  // a header can't hold these, and no provider's key does
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is refused
  if (/[\u0000-\u001f\u007f-\uffff]/.test(key.trim()) || key.trim() === '')
    return { verdict: 'refused', status: null };
  try {
    const { status } = await caller.call(check.url, {
      method: 'GET',
      headers: { ...check.headers, [check.header]: `${check.prefix}${key.trim()}` },
      body: null,
      signal,
      timeoutMs: TIMEOUT_MS,
      maxBytes: MAX_ANSWER_BYTES,
    });
    const isGood = (status >= 200 && status < 300) || status === 403;
    return { verdict: status === 401 ? 'refused' : isGood ? 'good' : 'unknown', status };
  } catch (error) {
    if (!(error instanceof GuardedCallError)) throw error;
    return { verdict: 'unknown', status: null };
  }
}
