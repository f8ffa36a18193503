/** What the headers of a provider's answer say about its rate limits. */
import { parseDuration } from './retry-after.ts';

/** One limit of a key and a model: a bucket of `limit` that refills steadily. */
export type ProviderLimit = {
  /** What the bucket holds when it is full. */
  readonly limit: number;
  /** What was left when the provider looked at the request. */
  readonly left: number;
  readonly perSecond: number;
};

/** Null where the provider names no such limit. */
export type ProviderLimits = {
  readonly requests: ProviderLimit | null;
  readonly tokens: ProviderLimit | null;
};

type Headers = { get(name: string): string | null };

const MINUTE = 60;
const DAY = 86_400;
/** Between the two by their ratio. */
const MINUTE_OR_DAY = Math.sqrt(MINUTE * DAY);
/** Anything beyond is no limit, or no number that means something. */
const LARGEST = 1e12;

/**
 * Reads `x-ratelimit-{limit,remaining,reset}-{requests,tokens}` (OpenAI, Groq, and most that are compatible) or
 * `anthropic-ratelimit-{requests,tokens}-{limit,remaining,reset}`. Null when they say nothing readable.
 *
 * No header names the period. The reset is when the bucket is full again, so the period is limit × reset / (limit −
 * remaining); rounded resets make that inexact, and it is taken for a minute or a day, whichever is nearer (by day: Groq's
 * requests, OpenAI's lowest tiers). Where nothing is missing it can't be told, and is taken for a minute.
 *
 * @param now milliseconds since the epoch, for resets that are dates and answers without a date of their own
 */
export function providerLimits(headers: Headers, now: number): ProviderLimits | null {
  const requests = readLimit(headers, 'requests', now);
  const tokens = readLimit(headers, 'tokens', now);
  return requests === null && tokens === null ? null : { requests, tokens };
}

function readLimit(headers: Headers, what: 'requests' | 'tokens', now: number): ProviderLimit | null {
  const read = (part: string): string | null =>
    headers.get(`x-ratelimit-${part}-${what}`) ?? headers.get(`anthropic-ratelimit-${what}-${part}`);
  const limit = count(read('limit'));
  const remaining = count(read('remaining'));
  if (limit === null || remaining === null || limit < 1) return null;
  const left = Math.min(remaining, limit);
  const reset = resetSeconds(read('reset'), headers, now);
  const period = reset === null || left >= limit ? MINUTE : (limit * reset) / (limit - left);
  return { limit, left, perSecond: limit / (period < MINUTE_OR_DAY ? MINUTE : DAY) };
}

/** Seconds until the bucket is full, from "6m0s", "20ms", seconds, or a date. */
function resetSeconds(text: string | null, headers: Headers, now: number): number | null {
  if (text === null) return null;
  const said = text.trim();
  if (/^\d+(\.\d+)?$/.test(said)) return Number(said);
  const duration = parseDuration(said);
  if (duration !== null) return duration / 1000;
  const at = Date.parse(said);
  if (Number.isNaN(at)) return null;
  const answered = Date.parse(headers.get('date') ?? '');
  return Math.max(0, at - (Number.isNaN(answered) ? now : answered)) / 1000;
}

function count(text: string | null): number | null {
  if (text === null || !/^\s*\d+(\.\d+)?\s*$/.test(text)) return null;
  const value = Number(text);
  return value <= LARGEST ? value : null;
}
