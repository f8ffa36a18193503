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
    if (this.#pending.length === 0 && this.#inFlight === 0) return Promise.resolve();
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
      const batch = this.#pending.splice(0, this.#options.maxItems);
      this.#inFlight++;
      void this.#settle(batch).finally(() => {
        this.#inFlight--;
        if (this.#pending.length > 0) this.#schedule();
        else if (this.#inFlight === 0) for (const resolve of this.#idle.splice(0)) resolve();
      });
    }
  }

  /** One poisonous item must not fail the others: a batch that fails is sent again item by item. */
  async #settle(batch: Entry<I, O>[]): Promise<void> {
    try {
      const results = await this.#run(batch.map((entry) => entry.item));
      for (const [i, entry] of batch.entries()) entry.resolve(results[i] as O);
    } catch (error) {
      if (batch.length === 1) return batch[0]?.reject(error);
      for (const entry of batch) await this.#settle([entry]);
    }
  }
}
