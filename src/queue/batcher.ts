/**
 * Collects items that become one statement.
 *
 * While nothing is in flight an item goes at once (with those of the same turn of the event loop); under
 * load, items that come while a statement runs are the next one. So batches grow with the load, and an
 * idle system pays no delay. `delayMs` holds every batch back for that long, where fewer statements are
 * worth more than latency.
 */
export type BatcherOptions = {
  readonly maxItems: number;
  /** Statements in flight at once. */
  readonly maxConcurrent: number;
  readonly delayMs?: number;
  /**
   * Whether an item that failed by itself is to be tried again, and after how many milliseconds. Such an item
   * goes in a batch of its own from then on, one of them at a time, and keeps nobody waiting.
   */
  readonly again?: (error: unknown) => number | null;
};

type Entry<I, O> = {
  readonly item: I;
  readonly resolve: (result: O) => void;
  readonly reject: (error: unknown) => void;
};

export class Batcher<I, O> {
  readonly #run: (items: I[]) => Promise<O[]>;
  readonly #options: BatcherOptions;
  #pending: Entry<I, O>[] = [];
  #inFlight = 0;
  #scheduled = false;
  #timer: NodeJS.Timeout | null = null;
  #idle: (() => void)[] = [];
  /** Items that wait to be tried again, each by itself. */
  #alone: Entry<I, O>[] = [];
  #aloneInFlight = false;
  /** Items whose pause is not over. */
  #paused = 0;

  /** @param run gets at most maxItems and answers one result an item, in their order. */
  constructor(run: (items: I[]) => Promise<O[]>, options: BatcherOptions) {
    this.#run = run;
    this.#options = options;
  }

  /** Adds an item; resolves with its result. Rejects with what `run` threw for a batch of it alone. */
  add(item: I): Promise<O> {
    return new Promise((resolve, reject) => {
      this.#pending.push({ item, resolve, reject });
      this.#schedule();
    });
  }

  get size(): number {
    return this.#pending.length;
  }

  /** Sends what waits without its delay. */
  hurry(): void {
    if (this.#timer) {
      clearTimeout(this.#timer);
      this.#timer = null;
      this.#send();
    }
  }

  /** Resolves when nothing waits and nothing is in flight. */
  drained(): Promise<void> {
    this.hurry();
    if (this.#isIdle()) return Promise.resolve();
    return new Promise((resolve) => this.#idle.push(resolve));
  }

  #schedule(): void {
    if (this.#scheduled || this.#timer || this.#inFlight >= this.#options.maxConcurrent) return;
    if (this.#options.delayMs && this.#pending.length < this.#options.maxItems) {
      this.#timer = setTimeout(() => {
        this.#timer = null;
        this.#send();
      }, this.#options.delayMs);
      return;
    }
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      this.#send();
    });
  }

  #send(): void {
    while (this.#pending.length > 0 && this.#inFlight < this.#options.maxConcurrent) {
      this.#start(this.#pending.splice(0, this.#options.maxItems));
    }
  }

  #start(batch: Entry<I, O>[]): void {
    this.#inFlight++;
    void this.#settle(batch).finally(() => {
      this.#inFlight--;
      if (this.#pending.length > 0) this.#schedule();
      this.#tellIdle();
    });
  }

  /** Beside the ordinary batches, so that those are never one fewer. */
  #sendAlone(): void {
    const next = this.#aloneInFlight ? undefined : this.#alone.shift();
    if (!next) return;
    this.#aloneInFlight = true;
    void this.#settle([next]).finally(() => {
      this.#aloneInFlight = false;
      this.#sendAlone();
      this.#tellIdle();
    });
  }

  #tellIdle(): void {
    if (this.#isIdle()) for (const resolve of this.#idle.splice(0)) resolve();
  }

  #isIdle(): boolean {
    return (
      this.#pending.length + this.#inFlight + this.#alone.length + this.#paused === 0 && !this.#aloneInFlight
    );
  }

  /** One poisonous item must not fail the others: a batch that fails is sent again item by item. */
  async #settle(batch: Entry<I, O>[]): Promise<void> {
    try {
      const results = await this.#run(batch.map((entry) => entry.item));
      for (const [i, entry] of batch.entries()) entry.resolve(results[i] as O);
    } catch (error) {
      const [only] = batch;
      if (batch.length > 1) {
        // a batch that met a lock: whoever holds one must not hold up the rest one after the other
        if (this.#options.again?.(error) != null) for (const entry of batch) this.#later(entry, 0);
        else for (const entry of batch) await this.#settle([entry]);
      } else if (only) {
        const delay = this.#options.again?.(error) ?? null;
        if (delay === null) only.reject(error);
        else this.#later(only, delay);
      }
    }
  }

  #later(entry: Entry<I, O>, delay: number): void {
    this.#paused++;
    setTimeout(() => {
      this.#paused--;
      // one that only shared a batch with a locked one goes first
      if (delay === 0) this.#alone.unshift(entry);
      else this.#alone.push(entry);
      this.#sendAlone();
    }, delay);
  }
}
