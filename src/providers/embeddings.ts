/** Texts to vectors: one interface, and the models behind OpenAI's protocol. */
import { createHash } from 'node:crypto';
import { APIUserAbortError, type OpenAI } from 'openai';
import type { EmbeddingCreateParams } from 'openai/resources/embeddings';
import { readEmbeddings } from './embedding-answer.ts';
import { EmbeddingError, type EmbeddingUsage, embeddingError } from './embedding-error.ts';
import type { KnownEmbeddingModel } from './embedding-models.ts';
import { DEFAULT_BASE_URL } from './model-endpoint.ts';
import { errorFromThrown, StatusError } from './openai-errors.ts';
import { apiRoot, type CallOptions, openAiSdk } from './openai-sdk.ts';
import { type ProviderLimits, providerLimits } from './rate-limit-headers.ts';

export type EmbeddedTexts = EmbeddingUsage & {
  /** One for each text, in the texts' order, of the embedder's dimensions; finite, none all zeros. */
  readonly vectors: Float32Array[];
  /** What the provider said about its rate limits; null when it said nothing. */
  readonly limits: ProviderLimits | null;
};

export type Embedder = {
  /** As vectors are kept under it: vectors of two models can't be compared. */
  readonly model: string;
  readonly dimensions: number;
  /** Most texts of one request. May change with what answers look like. */
  readonly maxItems: number;
  /** Most tokens of one request, all texts together. */
  readonly maxTokensPerRequest: number;
  /** Most tokens of one text; where nobody knows, what OpenAI's models take. */
  readonly maxItemTokens: number;
  /** Names base URL, key and model without telling them: what one rate limit is for. Null: there is none. */
  readonly limitKey: string | null;
  /**
   * One request, tried once. No texts make no request.
   *
   * Throws EmbeddingError, or the signal's reason if and only if it fired first.
   */
  embed(texts: readonly string[], options: { readonly signal: AbortSignal }): Promise<EmbeddedTexts>;
};

export type OpenAiEmbedderOptions = {
  readonly model: string;
  /** Of the vectors that are kept, and asked for where the model can be asked. */
  readonly dimensions: number;
  /** What is known of the model; null: nothing. */
  readonly known: KnownEmbeddingModel | null;
  /** Sent to `baseUrl` and to nowhere else. Local servers that need none take any non-empty text. */
  readonly apiKey: string;
  /** Root of an OpenAI-compatible API; null is OpenAI's own. */
  readonly baseUrl: string | null;
  /** From sending the request to the last byte of the answer, in milliseconds. */
  readonly timeoutMs?: number;
  /** Replaces the transport, for example with one that refuses private addresses. */
  readonly fetch?: typeof fetch;
};

const TIMEOUT_MS = 60_000;
/** OpenAI's limits of one request, which compatible servers copy. */
const MAX_ITEMS = 2_048;
const MAX_TOKENS = 300_000;
const MAX_ITEM_TOKENS = 8_192;
/**
 * Larger answers are not asked for, in bytes: an answer is parsed in one go, and nothing else happens in that time. Parsing takes
 * about 1 to 4 ms for 2 MB of base64, and 2 to 6 ms for 1 MB of decimal numbers.
 */
const ANSWER_BYTES = { base64: 2 * 1024 * 1024, float: 1024 * 1024 } as const;
/** Bytes that one number takes in an answer. */
const NUMBER_BYTES = { base64: 5.4, float: 22 } as const;

const MAX_CACHED = 500;
const cached = new Map<string, Embedder>();

/**
 * An embedder for any OpenAI-compatible endpoint, cached (the least recently used leave), so that what was learnt about a server
 * stays: whether it writes vectors as base64, and whether its model can be asked for dimensions. Both are asked for first and left
 * out after the 400 that says so.
 *
 * Throws EmbeddingError (`wrong_dimensions`) where the model is known and can't make so many.
 */
export function openAiEmbedder(options: OpenAiEmbedderOptions): Embedder {
  const { known, dimensions, model } = options;
  if (known && (known.isShortenable ? dimensions > known.dimensions : dimensions !== known.dimensions)) {
    throw new EmbeddingError(
      'wrong_dimensions',
      `${model} makes vectors of ${known.isShortenable ? 'at most ' : ''}${known.dimensions} dimensions, and ${dimensions} are kept. ` +
        `Set AGENTD_EMBEDDING_DIMENSIONS to ${known.dimensions}, or choose another model.`,
    );
  }
  if (options.fetch) return new OpenAiEmbedder(options);
  // hashed, so that a listing of this map is not a list of keys
  const id = sha256([
    options.baseUrl,
    options.apiKey,
    model,
    dimensions,
    options.timeoutMs ?? null,
    known?.inputPer1k ?? null,
  ]);
  const embedder = cached.get(id) ?? new OpenAiEmbedder(options);
  cached.delete(id);
  cached.set(id, embedder);
  if (cached.size > MAX_CACHED) {
    const oldest = cached.keys().next();
    if (!oldest.done) cached.delete(oldest.value);
  }
  return embedder;
}

class OpenAiEmbedder implements Embedder {
  readonly model: string;
  readonly dimensions: number;
  readonly maxTokensPerRequest = MAX_TOKENS;
  readonly maxItemTokens: number;
  readonly limitKey: string;
  readonly #options: OpenAiEmbedderOptions;
  readonly #timeoutMs: number;
  readonly #sdk: OpenAI;
  readonly #refused = new Set<Leavable>();
  /** How answers write vectors: of others than OpenAI itself not known before the first. */
  #format: 'base64' | 'float';

  constructor(options: OpenAiEmbedderOptions) {
    this.#options = options;
    this.model = options.model;
    this.dimensions = options.dimensions;
    this.maxItemTokens = options.known?.maxItemTokens ?? MAX_ITEM_TOKENS;
    this.#timeoutMs = options.timeoutMs ?? TIMEOUT_MS;
    this.#sdk = openAiSdk({
      apiKey: options.apiKey,
      baseUrl: options.baseUrl,
      timeoutMs: this.#timeoutMs,
      fetch: options.fetch,
    });
    const root = apiRoot(options.baseUrl);
    this.#format = root === DEFAULT_BASE_URL ? 'base64' : 'float';
    this.limitKey = sha256(['embeddings', root, options.apiKey, options.model]);
    if (options.known && !options.known.isShortenable) this.#refused.add('dimensions');
  }

  get maxItems(): number {
    const bytes = this.dimensions * NUMBER_BYTES[this.#format] + 100;
    return Math.max(1, Math.min(MAX_ITEMS, Math.floor(ANSWER_BYTES[this.#format] / bytes)));
  }

  async embed(texts: readonly string[], options: { readonly signal: AbortSignal }): Promise<EmbeddedTexts> {
    const { signal } = options;
    if (texts.length === 0) {
      return { vectors: [], tokens: 0, isReported: true, costMicros: 0, limits: null };
    }
    // One controller and one timer: AbortSignal.any stays referenced by a long-lived signal until it is collected.
    const call = new AbortController();
    let timedOut = false;
    const onAbort = (): void => call.abort();
    const timer = setTimeout(() => {
      timedOut = true;
      call.abort();
    }, this.#timeoutMs);
    signal.addEventListener('abort', onAbort, { once: true });
    try {
      if (signal.aborted) throw new APIUserAbortError();
      let limits: ProviderLimits | null = null;
      const body = await this.#send(texts, call.signal, (headers) => {
        limits = providerLimits(headers, Date.now());
      });
      const { vectors, usage, format } = await readEmbeddings(body, {
        texts,
        model: this.model,
        dimensions: this.dimensions,
        inputPer1k: this.#options.known?.inputPer1k ?? null,
      });
      this.#format = format;
      return { vectors, ...usage, limits };
    } catch (error) {
      if (error instanceof EmbeddingError) throw error;
      if (signal.aborted && !timedOut) throw signal.reason;
      throw embeddingError(
        errorFromThrown(error, {
          apiKey: this.#options.apiKey,
          aborted: false,
          timedOutAfterMs: timedOut ? this.#timeoutMs : null,
        }),
        this.model,
      );
    } finally {
      clearTimeout(timer);
      signal.removeEventListener('abort', onAbort);
    }
  }

  async #send(
    texts: readonly string[],
    signal: AbortSignal,
    onHeaders: (headers: Headers) => void,
  ): Promise<unknown> {
    const leftOut = new Set(this.#refused);
    for (;;) {
      const body = this.#body(texts, leftOut);
      try {
        const answer = await this.#sdk.embeddings.create(body, {
          fetchOptions: { callSignal: signal, onHeaders } satisfies CallOptions as object,
        });
        // Only now: a 400 may quote the text, which then would have named the parameter.
        for (const parameter of leftOut) this.#refused.add(parameter);
        return answer;
      } catch (error) {
        // A refused parameter is a 400: nothing was computed or paid. Each is left out once, so this ends.
        const parameter = error instanceof StatusError ? refusedParameter(error) : null;
        if (parameter === null || leftOut.has(parameter)) throw error;
        // Of a model that is known to take it the value is meant, and asking without it would be paid for in vain.
        if (parameter === 'dimensions' && this.#options.known) throw error;
        leftOut.add(parameter);
      }
    }
  }

  #body(texts: readonly string[], leftOut: ReadonlySet<Leavable>): EmbeddingCreateParams {
    return {
      model: this.model,
      input: [...texts],
      // Decimal numbers are four times as long, and take ten times as long to parse.
      encoding_format: leftOut.has('encoding_format') ? 'float' : 'base64',
      ...(leftOut.has('dimensions') ? {} : { dimensions: this.dimensions }),
    };
  }
}

type Leavable = 'dimensions' | 'encoding_format';

/** The parameter that a 400 is about, of those that can be left out. */
function refusedParameter(error: StatusError): Leavable | null {
  if (error.httpStatus !== 400 && error.httpStatus !== 422) return null;
  const { param, message } = error.fault;
  if (param !== null && param !== 'dimensions' && param !== 'encoding_format') return null;
  const named = /encoding_format|base64/.test(message)
    ? 'encoding_format'
    : /\bdimensions\b|matryoshka/i.test(message)
      ? 'dimensions'
      : null;
  return param ?? named;
}

function sha256(parts: readonly unknown[]): string {
  return createHash('sha256').update(JSON.stringify(parts)).digest('hex');
}
