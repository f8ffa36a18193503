/** Limits as OpenAI enforces them: a bucket of requests and one of tokens a minute, both refilled continuously. */

export interface RateLimits {
  requestsPerMinute?: number;
  tokensPerMinute?: number;
  /** What the buckets hold at first, as a share of full; 1 when left out. */
  filled?: number;
  /**
   * What a request takes of the tokens: what it says and is answered (`used`, the default), or what it says or its max_tokens,
   * whichever is more, as OpenAI documents it (`reserved`).
   */
  counts?: 'used' | 'reserved';
}

/** What one server has let through and refused. */
export class EnforcedLimits {
  readonly #requests: Bucket | null;
  readonly #tokens: Bucket | null;
  readonly counts: 'used' | 'reserved';
  /** Let through. */
  admitted = 0;
  admittedTokens = 0;
  /** Answered with 429. */
  refused = 0;

  /** @param now milliseconds, never going back */
  constructor(limits: RateLimits, now: () => number = () => performance.now()) {
    const bucket = (perMinute: number | undefined): Bucket | null =>
      perMinute === undefined ? null : new Bucket(perMinute, limits.filled ?? 1, now);
    this.#requests = bucket(limits.requestsPerMinute);
    this.#tokens = bucket(limits.tokensPerMinute);
    this.counts = limits.counts ?? 'used';
  }

  /** Takes a request's share; null if it is let through, else milliseconds to wait. A refused request takes nothing. */
  take(tokens: number): number | null {
    const wait = Math.max(this.#requests?.missing(1) ?? 0, this.#tokens?.missing(tokens) ?? 0);
    if (wait > 0) {
      this.refused++;
      return wait;
    }
    this.#requests?.take(1);
    this.admitted++;
    this.takeTokens(tokens);
    return null;
  }

  /** Tokens that were not known before: of the answer. The bucket may be overdrawn by them. */
  takeTokens(tokens: number): void {
    this.#tokens?.take(tokens);
    this.admittedTokens += tokens;
  }

  headers(): Record<string, string> {
    return { ...headersOf('requests', this.#requests), ...headersOf('tokens', this.#tokens) };
  }
}

class Bucket {
  readonly size: number;
  #held: number;
  #at: number;
  readonly #now: () => number;

  constructor(perMinute: number, filled: number, now: () => number) {
    this.size = perMinute;
    this.#held = perMinute * filled;
    this.#now = now;
    this.#at = now();
  }

  get held(): number {
    const now = this.#now();
    this.#held = Math.min(this.size, this.#held + ((now - this.#at) / 60_000) * this.size);
    this.#at = now;
    return this.#held;
  }

  /** Milliseconds until it holds so much, as far as it ever does. */
  missing(amount: number): number {
    return Math.ceil((Math.max(0, Math.min(amount, this.size) - this.held) / this.size) * 60_000);
  }

  take(amount: number): void {
    this.#held = this.held - amount;
  }
}

function headersOf(what: string, bucket: Bucket | null): Record<string, string> {
  if (!bucket) return {};
  return {
    [`x-ratelimit-limit-${what}`]: String(bucket.size),
    [`x-ratelimit-remaining-${what}`]: String(Math.max(0, Math.floor(bucket.held))),
    [`x-ratelimit-reset-${what}`]: duration(bucket.missing(bucket.size)),
  };
}

/** As OpenAI writes it: `20ms`, `1s`, `6m0s`. */
function duration(ms: number): string {
  if (ms < 1000) return `${Math.ceil(ms)}ms`;
  const seconds = Math.round(ms) / 1000;
  const minutes = Math.floor(seconds / 60);
  const rest = Number((seconds - minutes * 60).toFixed(3));
  return minutes > 0 ? `${minutes}m${rest}s` : `${rest}s`;
}
