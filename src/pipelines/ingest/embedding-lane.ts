/**
 * All requests for embeddings of one key and model in this process.
 *
 * Several are in flight: how many grows while the provider keeps up (twice as many a round trip until it first complains, one more
 * a round trip after) and is halved when it refuses one for its limit. Where the limits are scarce, each takes its place under them
 * first, shared with all daemons; one at a time waits for its place, so that whoever comes next waits for no more than that.
 */
import { type Clock, sleep } from '../../clock.ts';
import type { Ticket } from '../../db/rate-limits.ts';
import { EmbeddingError } from '../../providers/embedding-error.ts';
import type { EmbeddedTexts, Embedder } from '../../providers/embeddings.ts';
import type { ProviderLimits } from '../../providers/rate-limit-headers.ts';
import type { Place, RateLimiter, SentCall } from '../agent/rate-limiter.ts';
import { BYTES_PER_TOKEN } from '../agent/text.ts';
import type { Batch, BatchLimits, Group } from './embedding-batch.ts';
import { Turns } from './embedding-turns.ts';

/** A document, as the lane sees it. */
export type LaneMember = {
  readonly workspaceId: string;
  /** Its requests are sent when no other member has one. */
  readonly isBackground: boolean;
  readonly embedder: Embedder;
  /** Ends its requests. */
  readonly signal: AbortSignal;
  /** It sends no more: what waits for its turn need not. */
  readonly givesUp: AbortSignal;
  /** Whether it has a request to send. */
  readonly isReady: boolean;
  /** What is sent next; asked for only when it is ready. One of the other three follows. */
  take(limits: BatchLimits): Batch;
  done(batch: Batch, answer: EmbeddedTexts): void;
  /** Not sent, or refused for a limit: nothing happened to it. */
  putBack(batch: Batch): void;
  failed(batch: Batch, error: unknown): void;
};

/** How one request went, for metrics. */
export type EmbeddingRequestOutcome = {
  readonly model: string;
  /** `completed`, the error's code, or `aborted`. */
  readonly outcome: string;
  readonly seconds: number;
  readonly items: number;
  readonly tokens: number;
  readonly costMicros: number;
};

export type LaneDeps = {
  readonly clock: Clock;
  /** Null: no limits are shared with other daemons. */
  readonly limiter: RateLimiter | null;
  readonly random?: () => number;
  readonly onRequest?: (outcome: EmbeddingRequestOutcome) => void;
  /** A request was sent, or is over. */
  readonly onInFlight?: (change: 1 | -1) => void;
};

export type LaneOptions = {
  /** Most requests in flight. */
  readonly maxInFlight: number;
  /** Longest wait for a limit that documents keep their slot for, in milliseconds. */
  readonly patienceMs: number;
};

const FIRST_IN_FLIGHT = 2;
/** A limited key sends about so many requests a minute: small enough to take turns, large enough to be few. */
const REQUESTS_A_MINUTE = 12;
/** And no more than this share of the requests that it is allowed. */
const SHARE_OF_REQUESTS = 2 / 3;
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 60_000;

export class EmbeddingLane {
  readonly #key: string | null;
  readonly #deps: LaneDeps;
  readonly #options: LaneOptions;
  readonly #members = new Turns<LaneMember>();
  #inFlight = 0;
  #window = FIRST_IN_FLIGHT;
  #hasComplained = false;
  /** Requests that were sent before say nothing new. */
  #shrunkAt = Number.NEGATIVE_INFINITY;
  #refusals = 0;
  #blockedUntil = Number.NEGATIVE_INFINITY;
  #limits: ProviderLimits | null = null;
  /** What requests may hold as far as refusals have shown. */
  #learnt: BatchLimits = { maxItems: Number.POSITIVE_INFINITY, maxTokens: Number.POSITIVE_INFINITY };
  #isPumping = false;
  /** When the provider last answered a request with vectors; elapsed(). */
  #succeededAt = Number.NEGATIVE_INFINITY;

  /** @param key as {@link Embedder.limitKey} */
  constructor(key: string | null, deps: LaneDeps, options: LaneOptions) {
    this.#key = key;
    this.#deps = deps;
    this.#options = options;
  }

  get isIdle(): boolean {
    return this.#members.size === 0 && this.#inFlight === 0;
  }

  /** Requests in flight at once, at most. */
  get width(): number {
    return Math.min(this.#options.maxInFlight, Math.floor(this.#window));
  }

  get succeededAt(): number {
    return this.#succeededAt;
  }

  enter(member: LaneMember): void {
    this.#members.add(member);
    this.wake();
  }

  leave(member: LaneMember): void {
    this.#members.remove(member);
  }

  /**
   * A request was refused, and all of it passed in pieces of this size: the server takes less at once than others of its protocol,
   * and is not asked for more again.
   */
  learnSize({ items, tokens, isTooLong }: Group): void {
    const { maxItems, maxTokens } = this.#learnt;
    // Where it is not said what there was too much of, it is the number of texts: servers bound that first.
    this.#learnt = isTooLong
      ? { maxItems, maxTokens: Math.min(maxTokens, tokens) }
      : { maxItems: Math.min(maxItems, items), maxTokens };
  }

  /** Somebody may be ready. */
  wake(): void {
    if (this.#isPumping) return;
    this.#isPumping = true;
    // in a turn of its own, so that what wakes it is finished first
    queueMicrotask(() => void this.#pump());
  }

  async #pump(): Promise<void> {
    while (this.#inFlight < this.width) {
      const member =
        this.#members.next((one) => one.isReady && !one.isBackground) ??
        this.#members.next((one) => one.isReady);
      if (!member) break;
      const batch = member.take(this.#requestLimits(member.embedder));
      this.#inFlight++;
      try {
        const place = await this.#admit(member, batch);
        void this.#send(member, batch, place);
      } catch (error) {
        this.#inFlight--;
        member.failed(batch, error);
      }
    }
    this.#isPumping = false;
  }

  /** Waits until the request may be sent. Throws EmbeddingError `rate_limited` where that takes too long, or the signal's reason. */
  async #admit(member: LaneMember, batch: Batch): Promise<Place | null> {
    const { clock, limiter } = this.#deps;
    let ticket: Ticket | null = null;
    for (;;) {
      member.givesUp.throwIfAborted();
      const blockedMs = this.#blockedUntil - clock.elapsed();
      if (blockedMs > 0) {
        await this.#wait(blockedMs, member.givesUp);
        continue;
      }
      const asked: Promise<Place | null> | null | undefined =
        this.#key === null
          ? null
          : limiter?.place({
              key: this.#key,
              workspaceId: member.workspaceId,
              requestLength: () => batch.tokens * BYTES_PER_TOKEN,
              maxTokens: 0,
              ticket,
              returns: batch.returns && ticket === null,
            });
      const place: Place | null = asked ? await asked : null;
      member.givesUp.throwIfAborted();
      if (place === null) return null;
      ticket = place.ticket;
      if (place.waitMs > 0) await this.#wait(place.waitMs, member.givesUp);
      if (place.kind === 'place') return place;
    }
  }

  async #wait(ms: number, signal: AbortSignal): Promise<void> {
    if (ms > this.#options.patienceMs) {
      throw new EmbeddingError(
        'rate_limited',
        `The rate limit of the embedding model is used up. The document goes on in ${Math.ceil(ms / 1000)} s.`,
        { transient: true, retryAfterMs: Math.ceil(ms) },
      );
    }
    await sleep(this.#deps.clock, ms, signal);
  }

  async #send(member: LaneMember, batch: Batch, place: Place | null): Promise<void> {
    const { clock, limiter } = this.#deps;
    const sentAt = clock.elapsed();
    const sent =
      this.#key === null ? undefined : limiter?.sent(this.#key, place, () => batch.tokens * BYTES_PER_TOKEN);
    this.#deps.onInFlight?.(1);
    try {
      const answer = await member.embedder.embed(batch.texts, { signal: member.signal }).finally(() => {
        this.#deps.onInFlight?.(-1);
      });
      sent?.answered(answer.limits, {
        promptTokens: answer.tokens,
        completionTokens: 0,
        cachedTokens: 0,
        reported: answer.isReported,
      });
      this.#succeeded(answer);
      this.#observe(member, batch, sentAt, 'completed', answer);
      member.done(batch, answer);
    } catch (error) {
      sent?.failed();
      const known = error instanceof EmbeddingError ? error : null;
      this.#observe(member, batch, sentAt, known?.code ?? 'aborted', known?.usage ?? null);
      if (known?.limits) this.#limits = known.limits;
      if (known?.isOverloaded) this.#shrink(sentAt);
      if (known?.code !== 'rate_limited') member.failed(batch, error);
      else {
        await this.#refused(known, sentAt, sent);
        batch.returns = true;
        member.putBack(batch);
      }
    } finally {
      this.#inFlight--;
      this.wake();
    }
  }

  #observe(
    member: LaneMember,
    batch: Batch,
    sentAt: number,
    outcome: string,
    usage: { readonly tokens: number; readonly costMicros: number } | null,
  ): void {
    this.#deps.onRequest?.({
      model: member.embedder.model,
      outcome,
      seconds: (this.#deps.clock.elapsed() - sentAt) / 1000,
      items: batch.texts.length,
      tokens: usage?.tokens ?? 0,
      costMicros: usage?.costMicros ?? 0,
    });
  }

  #succeeded(answer: EmbeddedTexts): void {
    this.#succeededAt = this.#deps.clock.elapsed();
    this.#refusals = 0;
    if (answer.limits) this.#limits = answer.limits;
    // Only where more would have been sent: else nothing is known about more.
    if (this.#inFlight < this.width) return;
    this.#window += this.#hasComplained ? 1 / this.#window : 1;
    this.#window = Math.min(this.#window, this.#options.maxInFlight);
  }

  /** Those in flight together complain together, of one thing. */
  #shrink(sentAt: number): boolean {
    if (sentAt <= this.#shrunkAt) return false;
    this.#shrunkAt = this.#deps.clock.elapsed();
    this.#hasComplained = true;
    this.#window = Math.max(1, this.#window / 2);
    return true;
  }

  async #refused(error: EmbeddingError, sentAt: number, sent: SentCall | undefined): Promise<void> {
    const { clock, random = Math.random } = this.#deps;
    // counted once for all that were in flight
    if (sentAt >= this.#blockedUntil) this.#refusals++;
    const floor = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** Math.min(this.#refusals - 1, 20));
    const pause =
      error.retryAfterMs === null
        ? floor * (1 + random())
        : // A provider that keeps refusing after the pause that it named is not asked at that pace for ever.
          Math.max(error.retryAfterMs, this.#refusals > 3 ? floor / 4 : 0);
    this.#blockedUntil = Math.max(this.#blockedUntil, clock.elapsed() + pause);
    await sent?.refused(error.limits, pause);
  }

  /** What one request may hold: less than the provider takes where that would use up its limit in few. */
  #requestLimits(embedder: Embedder): BatchLimits {
    const maxItems = Math.min(embedder.maxItems, this.#learnt.maxItems);
    const most = Math.min(embedder.maxTokensPerRequest, this.#learnt.maxTokens);
    const tokens = this.#limits?.tokens;
    if (!tokens) return { maxItems, maxTokens: most };
    const requests = this.#limits?.requests;
    const wanted = Math.max(
      (tokens.perSecond * 60) / REQUESTS_A_MINUTE,
      requests ? tokens.perSecond / (requests.perSecond * SHARE_OF_REQUESTS) : 0,
    );
    return {
      maxItems,
      maxTokens: Math.max(1, Math.floor(Math.min(most, wanted, tokens.limit / 2))),
    };
  }
}
