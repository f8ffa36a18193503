/** One document at its lane: what is still to be sent, what is being stored, and what failed. */
import type { Timer } from '../../clock.ts';
import { EmbeddingError } from '../../providers/embedding-error.ts';
import type { EmbeddedTexts, Embedder } from '../../providers/embeddings.ts';
import { ChunkBuffer } from './chunk-buffer.ts';
import type { DocumentChunk } from './document.ts';
import type { EmbeddedBatch, EmbeddingLanes, EmbeddingSummary, EmbedOptions } from './embed.ts';
import { type Batch, type BatchLimits, bisect, makeBatch, probe, splitToFit } from './embedding-batch.ts';
import type { EmbeddingLane, LaneMember } from './embedding-lane.ts';

/** Tries of a request whose provider fails; those that it refuses for a limit are not counted. */
const MAX_FAILURES = 4;
const FIRST_DELAY_MS = 1_000;
/** Answers that wait to be stored; then no more are asked for. */
const MAX_UNSTORED = 4;
/** Single texts that are refused before any was embedded, and one after the other later: then it is not the texts. */
const REFUSED_AT_FIRST = 5;
const REFUSED_IN_A_ROW = 50;
/** So many, if they are more than this share of the others: taking such a document apart takes the key's requests from others. */
const MANY_REFUSED = 100;
const REFUSED_SHARE = 0.1;

export class DocumentEmbedding implements LaneMember {
  readonly workspaceId: string;
  readonly isBackground: boolean;
  readonly embedder: Embedder;
  readonly signal: AbortSignal;
  readonly #givesUp = new AbortController();
  readonly #lanes: EmbeddingLanes;
  readonly #lane: EmbeddingLane;
  readonly #onEmbedded: EmbedOptions['onEmbedded'];
  readonly #buffer: ChunkBuffer;
  readonly #finished = Promise.withResolvers<EmbeddingSummary>();
  /** To be sent before anything new, the first first. */
  #again: Batch[] = [];
  readonly #delayed = new Set<Timer>();
  /** Batches that the provider failed and that are tried again: until they pass nothing new is sent, for it may be down. */
  readonly #troubled = new Set<Batch>();
  #inFlight = 0;
  #unstored = 0;
  #storing: Promise<void> = Promise.resolve();
  #failure: { readonly error: unknown; readonly keepsAnswers: boolean } | null = null;
  #isOver = false;

  #embedded = 0;
  #refused = 0;
  #refusedInARow = 0;
  #lastRefusal: EmbeddingError | null = null;
  #tokens = 0;
  #cost = 0;
  #handed = { tokens: 0, costMicros: 0 };

  constructor(
    lanes: EmbeddingLanes,
    embedder: Embedder,
    chunks: Iterable<DocumentChunk> | AsyncIterable<DocumentChunk>,
    options: EmbedOptions,
  ) {
    this.#lanes = lanes;
    this.#lane = lanes.of(embedder);
    this.embedder = embedder;
    this.workspaceId = options.workspaceId;
    this.isBackground = options.isBackground ?? false;
    this.signal = options.signal;
    this.#onEmbedded = options.onEmbedded;
    this.#buffer = new ChunkBuffer(
      chunks,
      () => ({ maxItems: embedder.maxItems, maxTokens: embedder.maxTokensPerRequest }),
      { filled: () => this.#moved(), failed: (error) => this.#fail(error, true) },
    );
  }

  async run(): Promise<EmbeddingSummary> {
    const aborted = (): void => this.#fail(this.signal.reason, false);
    this.signal.addEventListener('abort', aborted, { once: true });
    try {
      this.signal.throwIfAborted();
      this.#lane.enter(this);
      this.#buffer.fill();
      return await this.#finished.promise;
    } finally {
      this.#isOver = true;
      this.#lane.leave(this);
      this.signal.removeEventListener('abort', aborted);
    }
  }

  get givesUp(): AbortSignal {
    return this.#givesUp.signal;
  }

  get isReady(): boolean {
    if (this.#failure || this.#isOver || this.#unstored >= MAX_UNSTORED) return false;
    // what a crash would pay again: where storing is what takes the time, answers that wait for it count as requests
    if (this.#unstored > 0 && this.#unstored + this.#inFlight >= this.#lanes.maxInFlight) return false;
    return this.#again.length > 0 || (this.#troubled.size === 0 && this.#buffer.isReady);
  }

  take(limits: BatchLimits): Batch {
    this.#inFlight++;
    const again = this.#again.shift();
    if (!again) return makeBatch(this.#buffer.take(limits));
    const [batch, rest] = splitToFit(again, limits);
    if (rest) this.#again.unshift(rest);
    if (this.#troubled.delete(again)) this.#troubled.add(batch);
    return batch;
  }

  done(batch: Batch, answer: EmbeddedTexts): void {
    this.#inFlight--;
    this.#troubled.delete(batch);
    this.#embedded += batch.chunks.length;
    this.#refusedInARow = 0;
    if (batch.group && --batch.group.left === 0) this.#lane.learnSize(batch.group);
    this.#pay(answer);
    this.#hand(
      batch.chunks.map((chunk, i) => ({
        chunk,
        embedding: answer.vectors[batch.places[i] as number] as Float32Array,
        reason: null,
      })),
    );
    this.#moved();
  }

  putBack(batch: Batch): void {
    this.#inFlight--;
    this.#again.unshift(batch);
    this.#moved();
  }

  failed(batch: Batch, error: unknown): void {
    this.#inFlight--;
    if (!(error instanceof EmbeddingError)) this.#fail(error, !this.signal.aborted);
    else if (error !== this.#givesUp.signal.reason) {
      if (error.usage) this.#pay(error.usage);
      if (!this.#failure) this.#judge(batch, error);
    }
    this.#moved();
  }

  #judge(batch: Batch, error: EmbeddingError): void {
    this.#troubled.delete(batch);
    if (batch.group) batch.group.left = Number.POSITIVE_INFINITY;
    batch.failures++;
    batch.failedAt ??= this.#lanes.deps.clock.elapsed();
    const wasAnswered = error.usage !== null;
    // An answer that can't be used was paid for: the same is not asked for again.
    const tries = batch.isolates || wasAnswered ? 1 : MAX_FAILURES;
    if (error.isTransient && batch.failures < tries) this.#tryLater(batch, error);
    else if (!error.mayBeOneText) this.#fail(error, true);
    else if (batch.texts.length === 1) this.#judgeOne(batch, error);
    else {
      const isFirst = this.#embedded === 0 && !batch.isolates;
      this.#again.unshift(...(isFirst ? probe(batch, REFUSED_AT_FIRST) : bisect(batch, error.isTooLong)));
    }
  }

  /** Whether a single text is the reason, or the provider. */
  #judgeOne(batch: Batch, error: EmbeddingError): void {
    // A provider that fails may fail for any text: it is this one if others passed meanwhile, so those go first, once.
    const mayBeProvider = error.isTransient && this.#lane.succeededAt <= (batch.failedAt as number);
    if (mayBeProvider && batch.failures === 1) {
      this.#again.push(batch);
      return;
    }
    this.#refused += batch.chunks.length;
    this.#refusedInARow++;
    this.#lastRefusal = error;
    const bound = this.#embedded === 0 ? REFUSED_AT_FIRST : REFUSED_IN_A_ROW;
    const tooMany =
      this.#refusedInARow >= bound ||
      (this.#refused >= MANY_REFUSED && this.#refused > this.#embedded * REFUSED_SHARE);
    if (mayBeProvider || (tooMany && this.#hasMore)) this.#fail(error, true);
    else this.#hand(batch.chunks.map((chunk) => ({ chunk, embedding: null, reason: error.message })));
  }

  #tryLater(batch: Batch, error: EmbeddingError): void {
    const { clock, random = Math.random } = this.#lanes.deps;
    const backoff = FIRST_DELAY_MS * 2 ** (batch.failures - 1) * (0.5 + random() / 2);
    const delay = Math.max(backoff, error.retryAfterMs ?? 0);
    if (delay > this.#lanes.patienceMs) {
      this.#fail(error, true);
      return;
    }
    this.#troubled.add(batch);
    const timer = clock.after(delay, () => {
      this.#delayed.delete(timer);
      this.#again.push(batch);
      this.#moved();
    });
    this.#delayed.add(timer);
  }

  #pay(usage: { readonly tokens: number; readonly costMicros: number }): void {
    this.#tokens += usage.tokens;
    this.#cost += usage.costMicros;
  }

  /** Gives chunks to be stored, after those before them, with what was paid and not yet told. */
  #hand(chunks: EmbeddedBatch['chunks']): void {
    const tokens = this.#tokens - this.#handed.tokens;
    const costMicros = Math.round(this.#cost) - this.#handed.costMicros;
    this.#handed = { tokens: this.#tokens, costMicros: Math.round(this.#cost) };
    this.#unstored++;
    this.#storing = this.#storing.then(async () => {
      try {
        if (this.#failure?.keepsAnswers !== false) await this.#onEmbedded({ chunks, tokens, costMicros });
      } catch (error) {
        this.#fail(error, false);
      }
      this.#unstored--;
      this.#moved();
    });
  }

  /** The first failure counts. @param keepsAnswers whether what still comes is stored: it is paid for */
  #fail(error: unknown, keepsAnswers: boolean): void {
    if (this.#isOver) return;
    // An abort or a failed store overrules: nothing more can be stored.
    if (!this.#failure || (this.#failure.keepsAnswers && !keepsAnswers)) {
      this.#failure = { error, keepsAnswers };
    }
    this.#again = [];
    for (const timer of this.#delayed) timer.cancel();
    this.#delayed.clear();
    this.#buffer.close();
    this.#givesUp.abort(error);
    this.#moved();
  }

  get #hasMore(): boolean {
    return (
      this.#again.length > 0 || this.#inFlight > 0 || this.#delayed.size > 0 || !this.#buffer.isExhausted
    );
  }

  /** Something has changed: it may be over, or there may be something to send. */
  #moved(): void {
    if (this.#isOver) return;
    const isIdle = this.#inFlight === 0 && this.#unstored === 0;
    if (this.#failure) {
      if (!isIdle) return;
      this.#isOver = true;
      this.#finished.reject(this.#failure.error);
    } else if (isIdle && !this.#hasMore) {
      this.#isOver = true;
      if (this.#embedded === 0 && this.#lastRefusal) this.#finished.reject(this.#lastRefusal);
      else {
        this.#finished.resolve({
          embedded: this.#embedded,
          refused: this.#refused,
          tokens: this.#tokens,
          costMicros: Math.round(this.#cost),
        });
      }
    } else if (this.isReady) this.#lane.wake();
  }
}
