/** Chunks, and an embedder for a server, for tests of the embedding stage. */
import { afterAll, afterEach, beforeEach, expect } from 'vitest';
import type { Clock } from '../../../src/clock.ts';
import type { DocumentChunk } from '../../../src/pipelines/ingest/document.ts';
import {
  type EmbeddedBatch,
  EmbeddingLanes,
  type EmbeddingLanesOptions,
  embedChunks,
} from '../../../src/pipelines/ingest/embed.ts';
import type { LaneDeps } from '../../../src/pipelines/ingest/embedding-lane.ts';
import { loadEmbeddingCatalog } from '../../../src/providers/embedding-models.ts';
import { type Embedder, openAiEmbedder } from '../../../src/providers/embeddings.ts';
import { tokensOf } from '../../peers/embedding-rules.ts';
import {
  type EmbeddingServer,
  type EmbeddingServerOptions,
  type ScriptedEmbedding,
  startEmbeddingServer,
  vectorOf,
} from '../../peers/embedding-server.ts';
import { handClock } from '../../support/hand-clock.ts';

const MODEL = 'text-embedding-3-small';
export const DIMENSIONS = 16;
const known = loadEmbeddingCatalog().model(MODEL);

export function serverEmbedder(
  server: EmbeddingServer,
  changes: { maxItems?: number; timeoutMs?: number } = {},
): Embedder {
  const { maxItems, ...rest } = changes;
  const one = openAiEmbedder({
    model: MODEL,
    dimensions: DIMENSIONS,
    known,
    apiKey: server.apiKey,
    baseUrl: server.url,
    timeoutMs: 30_000,
    ...rest,
  });
  return maxItems === undefined
    ? one
    : {
        ...one,
        model: one.model,
        dimensions: DIMENSIONS,
        maxItems,
        limitKey: one.limitKey,
        embed: (texts, options) => one.embed(texts, options),
      };
}

export function chunk(index: number, embedText: string): DocumentChunk {
  return {
    index,
    start: 0,
    end: embedText.length,
    content: embedText,
    page: null,
    headingPath: [],
    embedText,
    tokens: tokensOf(embedText),
  };
}

/** Different chunks of about so many words, one token each. */
export function chunks(count: number, words = 5, name = 'chunk'): DocumentChunk[] {
  return Array.from({ length: count }, (_, i) => chunk(i, `${name} ${i}${' word'.repeat(words)}`));
}

export type Run = {
  readonly batches: EmbeddedBatch[];
  /** Chunk index → vector, or null where it was refused. */
  readonly vectors: Map<number, Float32Array | null>;
  readonly reasons: Map<number, string>;
  readonly finished: ReturnType<typeof embedChunks>;
  readonly stop: AbortController;
};

export function lanesOf(
  clock: Clock,
  options: EmbeddingLanesOptions & Partial<LaneDeps> = {},
): EmbeddingLanes {
  const { limiter = null, random = () => 0.5, onRequest, ...rest } = options;
  return new EmbeddingLanes({ clock, limiter, random, ...(onRequest ? { onRequest } : {}) }, rest);
}

/** Starts a document; what it hands over is kept. */
export function start(
  deps: { lanes: EmbeddingLanes; embedder: Embedder },
  given: Parameters<typeof embedChunks>[1],
  options: {
    workspaceId?: string;
    isBackground?: boolean;
    onEmbedded?: (batch: EmbeddedBatch) => Promise<void>;
  } = {},
): Run {
  const run = {
    batches: [] as EmbeddedBatch[],
    vectors: new Map<number, Float32Array | null>(),
    reasons: new Map<number, string>(),
    stop: new AbortController(),
  };
  const finished = embedChunks(deps, given, {
    workspaceId: options.workspaceId ?? 'workspace',
    isBackground: options.isBackground ?? false,
    signal: run.stop.signal,
    onEmbedded: async (batch) => {
      await options.onEmbedded?.(batch);
      run.batches.push(batch);
      for (const { chunk, embedding, reason } of batch.chunks) {
        if (run.vectors.has(chunk.index)) throw new Error(`chunk ${chunk.index} was handed over twice`);
        run.vectors.set(chunk.index, embedding);
        if (reason !== null) run.reasons.set(chunk.index, reason);
      }
    },
  });
  // looked at by the test, sooner or later
  finished.catch(() => {});
  return { ...run, finished };
}

/** The vector that the server makes of a chunk. */
export function rightVector(one: DocumentChunk): number[] {
  return vectorOf(one.embedText, DIMENSIONS);
}

/** So many turns of the event loop: long enough for other requests to come. */
export async function turns(count: number): Promise<void> {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve));
}

export type ReadyOptions = Parameters<typeof lanesOf>[1] & { maxItems?: number; timeoutMs?: number };

/** A server and a clock for each test of a file. What the server refuses by its rules fails the test. */
export function embeddingWorld() {
  const clock = handClock();
  let server: EmbeddingServer;
  const serve = async (options: EmbeddingServerOptions = {}): Promise<void> => {
    await server?.close();
    server = await startEmbeddingServer(options);
  };
  beforeEach(() => serve());
  afterEach(() => {
    expect(server.rejected).toEqual([]);
  });
  afterAll(() => server.close());
  return {
    clock,
    serve,
    get server() {
      return server;
    },

    ready({ maxItems, timeoutMs, ...rest }: ReadyOptions = {}) {
      return {
        lanes: lanesOf(clock, rest),
        embedder: serverEmbedder(server, {
          ...(maxItems === undefined ? {} : { maxItems }),
          ...(timeoutMs === undefined ? {} : { timeoutMs }),
        }),
      };
    },

    /** The server refuses requests that hold a bad text. */
    refuses(
      bad: (text: string) => boolean,
      script: ScriptedEmbedding = { status: 400, error: { message: 'no' } },
    ): void {
      server.respond(({ texts }) => (texts.some(bad) ? script : {}));
    },

    /** Moves the clock until the promise has settled: for what waits for pauses that it sets itself. */
    async passUntil(settled: Promise<unknown>, stepMs = 250): Promise<void> {
      let isOver = false;
      const over = (): void => {
        isOver = true;
      };
      settled.then(over, over);
      while (!isOver) {
        await clock.settled();
        if (server.open === 0) await clock.advance(stepMs);
      }
    },
  };
}
