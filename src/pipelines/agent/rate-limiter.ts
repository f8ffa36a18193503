/**
 * Places for model calls under the rate limits of their keys, shared with all daemons.
 *
 * A key of which plenty is left costs nothing: no row, no statement. When an answer says that less than half is left, or a
 * provider refuses a call for its limit, the daemon writes down what it knows of the key, and from then on each of its calls of
 * that key takes a place first (agentd.take_places). It stops a minute after plenty is left again.
 *
 * The limiter is a convenience: without its tables, or with somebody holding them, calls are made as if there were none.
 */
import type { Logger } from 'pino';
import { type Clock, sleep } from '../../clock.ts';
import type { LimitLearnt, PlaceAsked, PlaceGiven, Ticket } from '../../db/rate-limits.ts';
import type { ModelUsage } from '../../providers/models.ts';
import type { ProviderLimit, ProviderLimits } from '../../providers/rate-limit-headers.ts';
import { TokenEstimate } from './token-estimate.ts';

/** Share of a bucket below which places are taken. */
const SCARCE = 0.5;
/** Places are taken for so long after the last answer that said so. */
const SCARCE_MS = 60_000;
/** What is known of a key is written down again after this, lest its row be swept. */
const LEARN_AGAIN_MS = 10 * 60_000;
/** A provider may be wrong about how long to wait: after an hour somebody asks again. */
const LONGEST_BLOCK_MS = 3_600_000;
/** A row that somebody holds is asked for again so often, at random moments of so many milliseconds. */
const LOCKED_RETURN_MS = 500;
/** A row that this daemon never got in so long holds up no call any more. */
const LOCKED_PATIENCE_MS = 5_000;
const LOCKED_TRIES = 20;
const LOCKED_PAUSE_MS = 20;
/** A database that does not answer for so long is not waited for. */
const ANSWER_MS = 2_000;
const MAX_KEYS = 2_000;

export type RateLimiterDeps = {
  readonly clock: Clock;
  readonly log: Logger;
  readonly takePlace: (asked: PlaceAsked) => Promise<PlaceGiven>;
  readonly learn: (learnt: LimitLearnt) => Promise<void>;
};

/** A call that may need a place. */
export type CallerOfModel = {
  /** Names base URL, API key and model; see {@link limitKey}. */
  readonly key: string;
  readonly workspaceId: string;
  /** Characters of the request; asked for only where the limit matters. */
  readonly requestLength: () => number;
  /** Upper bound of the answer's tokens. */
  readonly maxTokens: number | null;
  /** From an earlier answer, perhaps another daemon's. */
  readonly ticket: Ticket | null;
  /** The provider has just refused it. */
  readonly returns: boolean;
};

/** When a call may be made, or ask again. */
export type Place = {
  readonly kind: 'place' | 'return';
  readonly waitMs: number;
  readonly ticket: Ticket;
  /** Tokens that were taken for it. */
  readonly tokens: number;
};

/** A call that has been sent; see {@link RateLimiter.sent}. */
export type SentCall = {
  answered(limits: ProviderLimits | null, usage: ModelUsage): void;
  /** The provider refused it for its limit: nobody asks for `waitMs`. Never rejects. */
  refused(limits: ProviderLimits | null, waitMs: number): Promise<void>;
  /** It failed; `refused` may follow. */
  failed(): void;
};

/** What one daemon knows of a key. */
type Known = {
  limits: ProviderLimits | null;
  /** When the provider said so; milliseconds of the clock's elapsed(). */
  saidAt: number;
  /** Whether that was told to the others. */
  told: boolean;
  scarceUntil: number;
  /** Since when no place could be asked for, because others held the row; null after one could. */
  lockedSince: number | null;
  learntAt: number;
  learning: Promise<void> | null;
  /** Tokens used less tokens estimated, not yet told. */
  used: number;
  readonly estimate: TokenEstimate;
  /** Calls under way that took no place. */
  readonly unbooked: Set<{ readonly sentAt: number }>;
};

export class RateLimiter {
  readonly #deps: RateLimiterDeps;
  readonly #keys = new Map<string, Known>();
  #isAway = false;

  constructor(deps: RateLimiterDeps) {
    this.#deps = deps;
  }

  /** A call's place; null, at once, where nothing is scarce. Resolves with null where the limits can't be asked. Never rejects. */
  place(call: CallerOfModel): Promise<Place | null> | null {
    const known = this.#keys.get(call.key);
    if (!call.ticket && (!known || known.scarceUntil <= this.#deps.clock.elapsed())) return null;
    return this.#take(call, known ?? this.#add(call.key));
  }

  /** A call is about to be sent; one of the answer's methods is to be called when it is over. */
  sent(key: string, place: Place | null, requestLength: () => number): SentCall {
    const state = this.#keys.get(key) ?? this.#add(key);
    // the last to be forgotten
    this.#keys.delete(key);
    this.#keys.set(key, state);
    const call = { sentAt: this.#deps.clock.elapsed() };
    if (!place) state.unbooked.add(call);
    const over = (): void => {
      state.unbooked.delete(call);
    };
    return {
      answered: (limits, usage) => {
        over();
        if (usage.reported && state.scarceUntil > this.#deps.clock.elapsed()) {
          state.estimate.learn(requestLength(), usage);
          if (place) state.used += usage.promptTokens + usage.completionTokens - place.tokens;
        }
        this.#said(key, state, limits, call.sentAt);
      },
      refused: async (limits, waitMs) => {
        over();
        const blockedMs = Math.min(waitMs, LONGEST_BLOCK_MS);
        state.scarceUntil = this.#deps.clock.elapsed() + Math.max(SCARCE_MS, blockedMs);
        if (limits) {
          state.limits = limits;
          state.saidAt = call.sentAt;
        }
        // Its place is not given back: what providers refuse they may have counted, and a little slack is what ends the refusals.
        await this.#learn(key, state, blockedMs);
      },
      failed: over,
    };
  }

  #said(key: string, state: Known, limits: ProviderLimits | null, sentAt: number): void {
    if (!limits || sentAt < state.saidAt) return;
    const changed =
      limits.requests?.perSecond !== state.limits?.requests?.perSecond ||
      limits.tokens?.perSecond !== state.limits?.tokens?.perSecond;
    state.limits = limits;
    state.saidAt = sentAt;
    state.told = false;
    if (!isScarce(limits)) return;
    const now = this.#deps.clock.elapsed();
    const begins = state.scarceUntil <= now;
    state.scarceUntil = Math.max(state.scarceUntil, now + SCARCE_MS);
    if (begins || changed || now - state.learntAt > LEARN_AGAIN_MS) void this.#learn(key, state, null);
  }

  /** Writes down what is known of a key; later places wait for it. */
  #learn(key: string, state: Known, blockedMs: number | null): Promise<void> {
    const now = this.#deps.clock.elapsed();
    state.learntAt = now;
    // Those are booked that were sent before what the provider said: it counted them.
    const unbooked = [...state.unbooked].filter((call) => call.sentAt > state.saidAt).length;
    state.unbooked.clear();
    state.told = true;
    const learning = this.#guard(
      this.#deps.learn({
        key,
        requests: state.limits?.requests ?? null,
        tokens: state.limits?.tokens ?? null,
        ageMs: Math.max(0, now - state.saidAt),
        unbooked: { requests: unbooked, tokens: unbooked * state.estimate.of(0, null) },
        blockedMs,
      }),
    ).then(() => {
      if (state.learning === learning) state.learning = null;
    });
    state.learning = learning;
    return learning;
  }

  async #take(call: CallerOfModel, state: Known): Promise<Place | null> {
    await state.learning;
    const tokens = state.estimate.of(call.requestLength(), call.maxTokens);
    for (let tries = 1; ; tries++) {
      const asked: PlaceAsked = {
        key: call.key,
        workspace: call.workspaceId,
        tokens,
        ticket: call.ticket,
        returns: call.returns,
        used: state.used,
        requests_left: state.told ? null : (state.limits?.requests?.left ?? null),
        tokens_left: state.told ? null : (state.limits?.tokens?.left ?? null),
        age_ms: Math.max(0, this.#deps.clock.elapsed() - state.saidAt),
      };
      const wasTold = state.told;
      state.used = 0;
      state.told = true;
      const given = await this.#guard(this.#deps.takePlace(asked));
      if (given?.kind === 'place' || given?.kind === 'return') {
        state.lockedSince = null;
        return { ...given, tokens };
      }
      // not written down: it goes with the next
      state.used += asked.used;
      state.told &&= wasTold;
      if (given === null) return null;
      if (given.kind === 'unknown') {
        // swept, or the database is a new one
        if (state.limits) await this.#learn(call.key, state, null);
        return null;
      }
      if (tries >= LOCKED_TRIES) {
        const now = this.#deps.clock.elapsed();
        state.lockedSince ??= now;
        // Not the other daemons, who hold it for a moment each: somebody does not let go.
        if (now - state.lockedSince > LOCKED_PATIENCE_MS) return null;
        // Many daemons are at this key: it is scarce, so the call comes back and does not go without a place.
        const waitMs = LOCKED_RETURN_MS * (1 + Math.random());
        const at = new Date(this.#deps.clock.now() + waitMs).toISOString();
        return { kind: 'return', waitMs, ticket: { at, kind: 'return' }, tokens };
      }
      await sleep(this.#deps.clock, Math.random() * LOCKED_PAUSE_MS);
    }
  }

  /** What the database answers; null, and one line in the log, where it does not. */
  async #guard<T>(asked: Promise<T>): Promise<T | null> {
    const late = Promise.withResolvers<never>();
    const patience = this.#deps.clock.after(ANSWER_MS, () =>
      late.reject(new Error(`no answer within ${ANSWER_MS} ms`)),
    );
    try {
      const answer = await Promise.race([asked, late.promise]);
      this.#isAway = false;
      return answer;
    } catch (error) {
      if (!this.#isAway) {
        this.#isAway = true;
        this.#deps.log.warn(
          { event: 'rate_limits_away', err: error },
          'the shared rate limits can’t be asked: calls go on without them',
        );
      }
      return null;
    } finally {
      patience.cancel();
    }
  }

  #add(key: string): Known {
    const oldest = this.#keys.size >= MAX_KEYS ? this.#keys.keys().next().value : undefined;
    if (oldest !== undefined) this.#keys.delete(oldest);
    const known: Known = {
      limits: null,
      saidAt: Number.NEGATIVE_INFINITY,
      told: true,
      scarceUntil: Number.NEGATIVE_INFINITY,
      lockedSince: null,
      learntAt: Number.NEGATIVE_INFINITY,
      learning: null,
      used: 0,
      estimate: new TokenEstimate(),
      unbooked: new Set(),
    };
    this.#keys.set(key, known);
    return known;
  }
}

function isScarce(limits: ProviderLimits): boolean {
  const below = (limit: ProviderLimit | null): boolean => limit !== null && limit.left < limit.limit * SCARCE;
  return below(limits.requests) || below(limits.tokens);
}
