/**
 * What a provider's failure means for the work that met it.
 *
 * The caller decides by `kind` alone; `code` and `nextStep` are for the row that a person reads. No message here
 * carries a key, a header or a request body: the functions that build these errors mask what a provider echoes.
 */

import type { ProviderLimits } from './rate-limit-headers.ts';

/**
 * - `retry`: the same request may succeed later (5xx, time-out, broken connection, an answer that cannot be read).
 * - `rate_limited`: as `retry`, but the provider named a limit; wait `retryAfterMs` and count no failure.
 * - `permanent`: the same request fails for ever; somebody must change the agent, the model or the task.
 * - `credential`: the key, its rights or its balance; stop and say which credential.
 * - `context_overflow`: the conversation is too long for the model; compact it and ask again.
 * - `aborted`: the caller's own signal fired; nothing is known about the provider.
 */
export type ProviderErrorKind =
  | 'retry'
  | 'rate_limited'
  | 'permanent'
  | 'credential'
  | 'context_overflow'
  | 'aborted';

/** Stable reason codes, stored in rows and used as metric labels: the list is closed so that labels stay few. */
export type ProviderErrorCode =
  | 'invalid_api_key'
  | 'permission_denied'
  | 'insufficient_quota'
  | 'model_not_found'
  | 'not_found'
  | 'context_length_exceeded'
  | 'rate_limit'
  | 'server_error'
  | 'overloaded'
  | 'timeout'
  | 'connection'
  | 'bad_response'
  | 'content_filter'
  | 'invalid_request'
  | 'redirect'
  | 'aborted';

export interface ProviderErrorDetails {
  kind: ProviderErrorKind;
  code: ProviderErrorCode;
  /** What happened, in one sentence, already masked. */
  message: string;
  /** HTTP status, or null when no HTTP answer arrived. */
  status?: number | null;
  /** Milliseconds that the provider asked to wait, or null when it said nothing. */
  retryAfterMs?: number | null;
  /** What the answer's headers said about rate limits. */
  limits?: ProviderLimits | null;
  /** What a person can do about it; the code's own advice when left out. */
  nextStep?: string;
}

const ADVICE: Record<ProviderErrorCode, string> = {
  invalid_api_key: 'Replace the API key of this provider, then retry the run.',
  permission_denied: 'Give the API key access to this model or project, then retry the run.',
  insufficient_quota: 'Add credit or raise the limit at the provider, then retry the run.',
  model_not_found: 'Choose a model that this provider and key can use.',
  not_found: 'Check the base URL of the provider: it answers, but has no chat completions there.',
  context_length_exceeded: 'Shorten the conversation or choose a model with a larger context window.',
  rate_limit: 'Nothing: the run goes on when the limit allows it.',
  server_error: 'Nothing: the call is made again. If it lasts, look at the provider’s status page.',
  overloaded: 'Nothing: the call is made again. If it lasts, add a fallback model.',
  timeout: 'Nothing: the call is made again. If it lasts, raise the time limit or choose a faster model.',
  connection: 'Check that the provider’s base URL can be reached from the worker.',
  bad_response: 'Nothing: the call is made again. If it lasts, check that the base URL is OpenAI-compatible.',
  content_filter: 'Change the instructions or the input: the provider refuses to process them.',
  invalid_request: 'Correct the agent’s settings or its tools as the message says.',
  redirect: 'Set the base URL to the address that the provider redirects to.',
  aborted: 'Nothing: the caller stopped the call.',
};

/** A failed call to a provider. Immutable; safe to log and to store: it holds no secret and no `cause`. */
export class ProviderError extends Error {
  override readonly name = 'ProviderError';
  readonly kind: ProviderErrorKind;
  readonly code: ProviderErrorCode;
  /** HTTP status, or null when no HTTP answer arrived. */
  readonly status: number | null;
  /** Milliseconds to wait as the provider asked, never negative; null when it said nothing. */
  readonly retryAfterMs: number | null;
  /** What the provider said about its rate limits; null when it said nothing. */
  readonly limits: ProviderLimits | null;
  /** One sentence for the person who reads the row. */
  readonly nextStep: string;

  // No `cause`: the SDK's errors carry response bodies and headers, in which providers echo parts of the key.
  constructor(details: ProviderErrorDetails) {
    super(details.message);
    this.kind = details.kind;
    this.code = details.code;
    this.status = details.status ?? null;
    this.retryAfterMs = details.retryAfterMs ?? null;
    this.limits = details.limits ?? null;
    this.nextStep = details.nextStep ?? ADVICE[details.code];
  }
}

/** Whether a value thrown by a provider is one of ours (works across realms and bundles, unlike `instanceof`). */
export function isProviderError(error: unknown): error is ProviderError {
  return error instanceof Error && error.name === 'ProviderError' && 'kind' in error;
}
