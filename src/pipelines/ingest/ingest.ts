/**
 * One attempt at one document: fetch, extract, chunk, embed, store, and the new generation takes the old one's place.
 *
 * What is searchable stays searchable until the new generation is complete. Passages are stored as they are embedded, under the key of
 * what was paid for, so that an attempt that dies costs the next one only the requests that were in flight.
 */
import { createHash, randomUUID } from 'node:crypto';
import type { Logger } from 'pino';
import type { Clock, Timer } from '../../clock.ts';
import type { Queryable } from '../../db/database.ts';
import {
  bookUnstored,
  type ChunkRow,
  type ClaimedDocument,
  chunkEnds,
  completeDocument,
  type DocumentFacts,
  deleteChunksFrom,
  deleteOldChunks,
  failDocument,
  keepDocument,
  logStages,
  releaseDocument,
  retryDocument,
  type StageLog,
  storeEmbeddedChunks,
  storeKnownChunks,
} from '../../db/documents.ts';
import { patientQueries } from '../../db/retry.ts';
import { DocumentError, type DocumentErrorCode } from '../../providers/document-error.ts';
import type { Embedder } from '../../providers/embeddings.ts';
import { JobAborted } from '../../queue/errors.ts';
import type { ChunkOptions } from './chunk.ts';
import type { DocumentChunk, DocumentHints, ProcessedDocument } from './document.ts';
import { type EmbeddingLanes, embedChunks } from './embed.ts';
import { embeddingKey, vectorsAtOnce } from './embedding-key.ts';
import { cutAfter, type EarlierCut, MARK_LENGTH } from './segments.ts';

/** What a document was read from. */
export type FetchedInput = {
  readonly bytes: Uint8Array;
  readonly hints: DocumentHints;
  readonly etag: string | null;
  readonly lastModified: string | null;
};

/** What embeds a document's passages, and who is paid for it. */
export type ChosenEmbedder = { readonly provider: string; readonly embedder: Embedder };

export type IngestDeps = {
  readonly db: Queryable;
  readonly clock: Clock;
  readonly log: Logger;
  readonly leaseSeconds: number;
  /** A statement was tried again. */
  readonly onRetry: (error: Error) => void;
  /** Reads the document's input; null: it has not changed since its validators were noted. Rejects with a DocumentError. */
  readonly fetch: (document: ClaimedDocument, signal: AbortSignal) => Promise<FetchedInput | null>;
  /** Extracts and chunks, off the main thread. Rejects with a DocumentError. */
  readonly process: (
    input: FetchedInput,
    chunking: ChunkOptions,
    signal: AbortSignal,
  ) => Promise<ProcessedDocument>;
  /** Throws a DocumentError where no key can be used. */
  readonly chooseEmbedder: (document: ClaimedDocument) => ChosenEmbedder | Promise<ChosenEmbedder>;
  readonly lanes: EmbeddingLanes;
  /** Sees that the model's vectors have an index if they are many, with so many more to come. Where there is none, search is exact. */
  readonly prepareIndex: (
    embedder: Pick<Embedder, 'model' | 'dimensions'>,
    coming: number,
  ) => Promise<unknown>;
  /** The document has been read, and cut into so many passages. */
  readonly onChunked?: (chunks: number) => void;
  readonly onStage?: (stage: StageLog['step'], seconds: number) => void;
};

/** What became of an attempt. */
export type IngestOutcome =
  | { readonly kind: 'completed'; readonly chunks: number; readonly embedded: number }
  | { readonly kind: 'unchanged' }
  | { readonly kind: 'failed'; readonly code: string }
  | { readonly kind: 'again'; readonly inMs: number; readonly code: string }
  /** Handed back by a drain. */
  | { readonly kind: 'released' }
  /** Changed, archived, deleted or taken over meanwhile. */
  | { readonly kind: 'lost' };

/**
 * Changes when the same bytes would become other passages: then everything is read again when it is next asked for. A version that cuts
 * otherwise must not keep the cuts of the one before: it has to be noted with the generation then.
 */
const PIPELINE_VERSION = '1';
const CHUNK_TOKENS = 512;
const OVERLAP_TOKENS = 64;
/** Passages that one statement looks up. */
const LOOKUP = 500;
const DELETE_AT_ONCE = 500;
/** So long what became of an attempt waits for a row that somebody holds, in milliseconds; then the reconciler finds the document. */
const LAST_WORDS_MS = 5_000;

/** Attempts that failed for passing reasons, after which the document has failed. */
export const MOST_ATTEMPTS = 8;
const FIRST_RETRY_MS = 15_000;
const LONGEST_RETRY_MS = 30 * 60_000;

/** Ingests a claimed document. Never rejects for what is wrong with the document: that is in its row. */
export async function ingestDocument(
  deps: IngestDeps,
  document: ClaimedDocument,
  jobId: string,
  signal: AbortSignal,
): Promise<IngestOutcome> {
  const stages = new Stages(deps);
  const { clock, onRetry } = deps;
  const last = new AbortController();
  const lastWords = { ...deps, db: patientQueries(deps.db, { clock, onRetry, signal: last.signal }) };
  let timer: Timer | null = null;
  try {
    return await attempt(
      { ...deps, db: patientQueries(deps.db, { clock, onRetry, signal }) },
      document,
      stages,
      signal,
    );
  } catch (error) {
    timer = clock.after(LAST_WORDS_MS, () => last.abort(new JobAborted('lease_lost')));
    return await afterFailure(lastWords, document, stages, error, signal);
  } finally {
    timer ??= clock.after(LAST_WORDS_MS, () => last.abort(new JobAborted('lease_lost')));
    await logStages(
      lastWords.db,
      { ...document, mediaId: document.media?.id ?? null },
      jobId,
      stages.all,
    ).catch((error: unknown) =>
      deps.log.warn(
        { event: 'stage_log_failed', source_id: document.id, err: error },
        'could not write what became of the stages',
      ),
    );
    timer.cancel();
  }
}

async function attempt(
  deps: IngestDeps,
  document: ClaimedDocument,
  stages: Stages,
  signal: AbortSignal,
): Promise<IngestOutcome> {
  const { db } = deps;
  const { provider, embedder } = await deps.chooseEmbedder(document);
  const isSameModel =
    document.embedding_model === embedder.model && document.embedding_dimensions === embedder.dimensions;
  const isComplete =
    isSameModel && document.chunk_count > 0 && document.chunk_count === document.stored_chunks;

  const input = await stages.run('upload', async (note) => {
    const found = await deps.fetch(
      isComplete ? document : { ...document, etag: null, last_modified: null },
      signal,
    );
    note({ bytes: found?.bytes.byteLength ?? null, not_modified: found === null });
    return found;
  });
  if (input === null) {
    const kept = await keepDocument(db, document, { etag: null, last_modified: null });
    return { kind: kept ? 'unchanged' : 'lost' };
  }
  const digest = createHash('sha256').update(PIPELINE_VERSION).update(input.bytes).digest('hex');
  if (isComplete && digest === document.content_sha256) {
    stages.skip('text_extraction', { reason: 'unchanged' });
    const kept = await keepDocument(db, document, { etag: input.etag, last_modified: input.lastModified });
    return { kind: kept ? 'unchanged' : 'lost' };
  }

  const chunking: ChunkOptions = {
    maxTokens: Math.min(CHUNK_TOKENS, embedder.maxItemTokens),
    overlapTokens: OVERLAP_TOKENS,
  };
  const processed = await stages.run('text_extraction', async (note) => {
    const cuts = isSameModel ? await earlierCuts(deps, document) : [];
    const result = await deps.process(input, { ...chunking, earlierCuts: cuts }, signal);
    note({ format: result.format, pages: result.pages, characters: result.characters });
    return result;
  });
  stages.add('chunking', processed.chunkMs, { chunks: processed.chunks.length });
  if (processed.chunks.length === 0) throw new DocumentError('empty', 'The document has no text.');
  deps.onChunked?.(processed.chunks.length);

  const generation = document.generation + 1;
  await deleteChunksFrom(db, document, generation, processed.chunks.length);
  const stored = await stages.run('embedding', async (note) => {
    const result = await embedAll(
      deps,
      document,
      generation,
      processed.chunks,
      { provider, embedder },
      signal,
    );
    note({ chunks: processed.chunks.length, ...result, model: embedder.model });
    return result;
  });
  return stages.run('indexing', async (note) => {
    const done = await completeDocument(
      db,
      document,
      generation,
      processed.chunks.length,
      factsOf(input, digest, processed, embedder, stored.refused),
    );
    if (!done) return { kind: 'lost' } as const;
    while ((await deleteOldChunks(db, document.id, DELETE_AT_ONCE)) === DELETE_AT_ONCE);
    // many small documents together may be enough for one; the document is complete, whatever becomes of it
    await prepareIndex(deps, embedder, 0);
    note({ generation });
    return { kind: 'completed', chunks: processed.chunks.length, embedded: stored.embedded } as const;
  });
}

/** Where the generation that is searched now was cut. */
async function earlierCuts({ db }: IngestDeps, document: ClaimedDocument): Promise<EarlierCut[]> {
  const ends = await chunkEnds(db, document, MARK_LENGTH);
  return ends.map(({ end, text }) => cutAfter(end, text));
}

/** A document is not less complete without an index. */
async function prepareIndex(deps: IngestDeps, embedder: Embedder, coming: number): Promise<void> {
  try {
    await deps.prepareIndex(embedder, coming);
  } catch (error) {
    deps.log.warn(
      { event: 'vector_index_failed', model: embedder.model, err: error },
      'could not make the index of a model’s vectors; the next document tries again',
    );
  }
}

type Embedded = { embedded: number; reused: number; refused: number; tokens: number; cost_micros: number };

async function embedAll(
  deps: IngestDeps,
  document: ClaimedDocument,
  generation: number,
  chunks: readonly DocumentChunk[],
  { provider, embedder }: ChosenEmbedder,
  signal: AbortSignal,
): Promise<Embedded> {
  const totals: Embedded = { embedded: 0, reused: 0, refused: 0, tokens: 0, cost_micros: 0 };
  const missing: DocumentChunk[] = [];
  for (let from = 0; from < chunks.length; from += LOOKUP) {
    signal.throwIfAborted();
    const some = chunks.slice(from, from + LOOKUP);
    const rows = some.map((chunk) => rowOf(chunk, embedder));
    const known = await storeKnownChunks(deps.db, document, generation, rows);
    totals.reused += known.size;
    missing.push(...some.filter((chunk) => !known.has(chunk.index)));
  }
  if (missing.length === 0) return totals;
  await prepareIndex(deps, embedder, missing.length);
  await embedChunks({ lanes: deps.lanes, embedder }, missing, {
    workspaceId: document.workspace_id,
    signal,
    onEmbedded: async (batch) => {
      let paid = { tokens: batch.tokens, costMicros: batch.costMicros };
      // a few at once: each statement holds the document's row
      const atOnce = vectorsAtOnce(embedder.dimensions);
      for (let from = 0; from < batch.chunks.length; from += atOnce) {
        const rows = batch.chunks.slice(from, from + atOnce).map(({ chunk, embedding, reason }): ChunkRow => {
          const row = rowOf(chunk, embedder);
          return embedding === null
            ? { ...row, metadata: { not_embedded: reason }, embedding: null }
            : { ...row, embedding };
        });
        const booked = { batch: randomUUID(), ...paid, provider, model: embedder.model };
        const isOwn = await storeEmbeddedChunks(deps.db, document, {
          ...booked,
          generation,
          chunks: rows,
          leaseSeconds: deps.leaseSeconds,
        });
        if (!isOwn) {
          await bookUnstored(deps.db, document, booked);
          throw new JobAborted('lease_lost');
        }
        paid = { tokens: 0, costMicros: 0 };
        const refused = rows.filter((row) => row.embedding === null).length;
        totals.embedded += rows.length - refused;
        totals.refused += refused;
      }
      totals.tokens += batch.tokens;
      totals.cost_micros += batch.costMicros;
    },
  });
  return totals;
}

function rowOf(chunk: DocumentChunk, embedder: Embedder): Omit<ChunkRow, 'embedding'> {
  return {
    chunk_index: chunk.index,
    content: chunk.content,
    content_sha256: createHash('sha256').update(chunk.content).digest('hex'),
    embedding_model: embedder.model,
    embedding_key: embeddingKey(embedder, chunk.embedText),
    token_count: chunk.tokens,
    page: chunk.page,
    heading_path: chunk.headingPath,
    char_start: chunk.start,
    char_end: chunk.end,
    embed_prefix: chunk.embedText.slice(0, chunk.embedText.length - chunk.content.length),
    metadata: {},
  };
}

function factsOf(
  input: FetchedInput,
  digest: string,
  processed: ProcessedDocument,
  embedder: Embedder,
  refused: number,
): DocumentFacts {
  return {
    content_sha256: digest,
    title: processed.title,
    page_count: processed.pages,
    character_count: processed.characters,
    token_count: processed.chunks.reduce((sum, chunk) => sum + chunk.tokens, 0),
    embedding_model: embedder.model,
    embedding_dimensions: embedder.dimensions,
    etag: input.etag,
    last_modified: input.lastModified,
    reason_code: refused > 0 ? 'embedding_refused' : null,
    reason:
      refused > 0
        ? `${refused} of ${processed.chunks.length} passages could not be embedded and are found by their words alone; knowledge_chunks.metadata says why.`
        : null,
  };
}

async function afterFailure(
  deps: IngestDeps,
  document: ClaimedDocument,
  stages: Stages,
  error: unknown,
  signal: AbortSignal,
): Promise<IngestOutcome> {
  const aborted = error instanceof JobAborted ? error : signal.aborted ? signal.reason : null;
  if (aborted instanceof JobAborted) {
    if (aborted.code !== 'drain') return { kind: 'lost' };
    await releaseDocument(deps.db, document);
    return { kind: 'released' };
  }
  const known = error instanceof DocumentError ? error : null;
  const code: DocumentErrorCode | 'internal_error' = known?.code ?? 'internal_error';
  const message = known?.message ?? `An unexpected failure: ${(error as Error)?.message ?? String(error)}`;
  if (known === null) {
    deps.log.error(
      { event: 'document_failed', source_id: document.id, err: error },
      'a document failed unexpectedly',
    );
  }
  const isTransient = known?.isTransient ?? true;
  const spends = code !== 'rate_limited';
  if (isTransient && (!spends || document.attempts < MOST_ATTEMPTS)) {
    const backoff = Math.min(FIRST_RETRY_MS * 2 ** (document.attempts - 1), LONGEST_RETRY_MS);
    const inMs = Math.max(known?.retryAfterMs ?? 0, backoff) * (1 + Math.random() * 0.2);
    const kept = await retryDocument(deps.db, document, { inMs, spends, reasonCode: code, reason: message });
    return kept ? { kind: 'again', inMs, code } : { kind: 'lost' };
  }
  stages.add('indexing', null, { reason_code: code }, 'failed');
  const failed = await failDocument(deps.db, document, code, message);
  return failed ? { kind: 'failed', code } : { kind: 'lost' };
}

/** What became of each stage, for the log. */
class Stages {
  readonly all: StageLog[] = [];
  readonly #deps: IngestDeps;

  constructor(deps: IngestDeps) {
    this.#deps = deps;
  }

  add(
    step: StageLog['step'],
    durationMs: number | null,
    details: Record<string, unknown>,
    status: StageLog['status'] = 'completed',
  ): void {
    this.all.push({ step, status, durationMs, details });
    if (durationMs !== null) this.#deps.onStage?.(step, durationMs / 1000);
  }

  skip(step: StageLog['step'], details: Record<string, unknown>): void {
    this.add(step, null, details, 'skipped');
  }

  async run<T>(
    step: StageLog['step'],
    work: (note: (details: Record<string, unknown>) => void) => Promise<T>,
  ): Promise<T> {
    const began = this.#deps.clock.elapsed();
    let details: Record<string, unknown> = {};
    const took = (): number => this.#deps.clock.elapsed() - began;
    try {
      const result = await work((noted) => {
        details = noted;
      });
      this.add(step, took(), details);
      return result;
    } catch (error) {
      const code =
        error instanceof DocumentError ? error.code : ((error as { code?: unknown })?.code ?? null);
      this.add(step, took(), { ...details, reason_code: code }, 'failed');
      throw error;
    }
  }
}
