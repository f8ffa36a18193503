/**
 * Spans on their way to the collector.
 *
 * What is in nobody's way: the queue is bounded, one request is under way at a time, and a request that brings no answer is cut.
 * The SDK's own batch processor sends what is left at a stop all at once, waits for it up to thirty seconds, and tells nobody what it dropped.
 */
import type { Logger } from './logger.ts';

/** Spans kept at most, about 1 kB each. */
const MAX_SPANS = 4_096;
/** Spans of one request at most. */
const BATCH = 512;
/** A span waits this long for others, in milliseconds. */
const DELAY_MS = 1_000;
/** The pause after a request that failed, in milliseconds, and the tries after which its spans are given up. */
const RETRY_MS = 5_000;
const MAX_TRIES = 3;
/** One request takes this long at most, in milliseconds: with the time for new ones at a stop, it stays below two seconds. */
export const SEND_LIMIT_MS = 1_500;
const STOP_SENDING_MS = 400;
/** A collector that is away is mentioned this often, in milliseconds. */
const SAY_AGAIN_MS = 10 * 60_000;

/** What became of spans, for the metrics. */
export type SpanOutcome = 'sent' | 'dropped';

export type SpanQueueOptions<S> = {
  /** Sends spans; rejects if they did not arrive. Settles within SEND_LIMIT_MS. */
  readonly send: (spans: readonly S[]) => Promise<void>;
  readonly log: Logger;
  readonly onOutcome: (outcome: SpanOutcome, spans: number) => void;
  /** For tests; the times above when left out. */
  readonly delayMs?: number;
  readonly retryMs?: number;
};

export class SpanQueue<S> {
  readonly #options: SpanQueueOptions<S>;
  readonly #queue: S[] = [];
  #sending: Promise<void> | null = null;
  #timer: NodeJS.Timeout | null = null;
  #tries = 0;
  #stopped = false;
  #dropped = 0;
  #saidAt: number | null = null;

  constructor(options: SpanQueueOptions<S>) {
    this.#options = options;
  }

  /** Never blocks, never throws; drops the span if the queue is full. */
  add(span: S): void {
    if (this.#stopped || this.#queue.length >= MAX_SPANS) {
      this.#drop(1);
      return;
    }
    this.#queue.push(span);
    // After a failure the pause is kept, however many spans come meanwhile.
    if (this.#queue.length === BATCH && this.#tries === 0) this.#schedule(0);
    else if (this.#timer === null && this.#sending === null)
      this.#schedule(this.#options.delayMs ?? DELAY_MS);
  }

  /** Sends what is left, as far as that goes within two seconds. */
  async stop(): Promise<void> {
    if (this.#stopped) return;
    this.#stopped = true;
    if (this.#timer) clearTimeout(this.#timer);
    const until = performance.now() + STOP_SENDING_MS;
    await this.#sending;
    while (this.#queue.length > 0 && this.#tries === 0 && performance.now() < until) await this.#sendBatch();
    this.#drop(this.#queue.length);
    this.#queue.length = 0;
  }

  #schedule(ms: number): void {
    if (this.#timer) clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#timer = null;
      this.#sending ??= this.#sendAll().finally(() => {
        this.#sending = null;
        if (this.#stopped || this.#queue.length === 0 || this.#timer) return;
        const failed = this.#tries > 0;
        this.#schedule(failed ? (this.#options.retryMs ?? RETRY_MS) : (this.#options.delayMs ?? DELAY_MS));
      });
    }, ms);
    this.#timer.unref();
  }

  /** All that is there now, or as much as arrives. */
  async #sendAll(): Promise<void> {
    do await this.#sendBatch();
    while (!this.#stopped && this.#tries === 0 && this.#queue.length >= BATCH);
  }

  async #sendBatch(): Promise<void> {
    const batch = this.#queue.slice(0, BATCH);
    try {
      await this.#options.send(batch);
      this.#queue.splice(0, batch.length);
      this.#tries = 0;
      this.#options.onOutcome('sent', batch.length);
    } catch (error) {
      this.#tries += 1;
      if (this.#tries >= MAX_TRIES) {
        this.#queue.splice(0, batch.length);
        this.#drop(batch.length);
        // still failing: nobody is in a hurry
        this.#tries = 1;
      }
      this.#complain(error);
    }
  }

  #drop(spans: number): void {
    if (spans === 0) return;
    this.#dropped += spans;
    this.#options.onOutcome('dropped', spans);
  }

  #complain(error: unknown): void {
    const now = performance.now();
    if (this.#saidAt !== null && now - this.#saidAt < SAY_AGAIN_MS) return;
    this.#saidAt = now;
    const { log } = this.#options;
    log.warn(
      { event: 'traces_not_sent', waiting: this.#queue.length, dropped: this.#dropped, err: error },
      'the collector did not take spans; work goes on without them',
    );
  }
}
