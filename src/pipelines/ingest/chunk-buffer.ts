/** The next chunks of a document: as many as one request may hold, however many there are. */
import type { DocumentChunk } from './document.ts';
import { type BatchLimits, fitting } from './embedding-batch.ts';

export type BufferEvents = {
  /** There is enough for a request, or nothing more to come. */
  readonly filled: () => void;
  /** The chunks' iterator threw. */
  readonly failed: (error: unknown) => void;
};

export class ChunkBuffer {
  readonly #iterator: Iterator<DocumentChunk> | AsyncIterator<DocumentChunk>;
  readonly #isAsync: boolean;
  readonly #limits: () => BatchLimits;
  readonly #events: BufferEvents;
  #chunks: DocumentChunk[] = [];
  #tokens = 0;
  #hasEnded = false;
  #isFilling = false;

  constructor(
    chunks: Iterable<DocumentChunk> | AsyncIterable<DocumentChunk>,
    limits: () => BatchLimits,
    events: BufferEvents,
  ) {
    this.#isAsync = Symbol.asyncIterator in chunks;
    this.#iterator =
      Symbol.asyncIterator in chunks ? chunks[Symbol.asyncIterator]() : chunks[Symbol.iterator]();
    this.#limits = limits;
    this.#events = events;
  }

  /** A full request, or the last one: by the limits that held when it was filled, for what was full is to be sent though they grew. */
  get isReady(): boolean {
    return this.#chunks.length > 0 && (this.#hasEnded || !this.#isFilling);
  }

  get isExhausted(): boolean {
    return this.#hasEnded && this.#chunks.length === 0;
  }

  /** Reads until it is full. Synchronous unless the iterator is not. */
  fill(): void {
    if (!this.#isFilling) void this.#fill();
  }

  take(limits: BatchLimits): DocumentChunk[] {
    const taken = this.#chunks.splice(0, fitting(this.#chunks, limits));
    for (const chunk of taken) this.#tokens -= chunk.tokens;
    this.fill();
    return taken;
  }

  /** Nothing more is wanted. */
  close(): void {
    if (!this.#hasEnded) void Promise.resolve(this.#iterator.return?.()).catch(() => {});
    this.#hasEnded = true;
    this.#chunks = [];
    this.#tokens = 0;
  }

  get #isFull(): boolean {
    const { maxItems, maxTokens } = this.#limits();
    return this.#chunks.length >= maxItems || this.#tokens >= maxTokens;
  }

  async #fill(): Promise<void> {
    this.#isFilling = true;
    try {
      while (!this.#hasEnded && !this.#isFull) {
        const next = this.#iterator.next();
        const { done, value } = this.#isAsync ? await next : (next as IteratorResult<DocumentChunk>);
        if (this.#hasEnded) break;
        if (done) this.#hasEnded = true;
        else {
          this.#chunks.push(value);
          this.#tokens += value.tokens;
        }
      }
    } catch (error) {
      this.#hasEnded = true;
      this.#events.failed(error);
    }
    this.#isFilling = false;
    this.#events.filled();
  }
}
