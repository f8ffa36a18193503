/**
 * One attempt at a workspace's move to another embedding model: its passages are embedded anew, from their stored text, beside the old
 * vectors, which are searched until all of the new ones are there.
 *
 * Vectors are stored as they come, under the key of what was paid for, so that an attempt that dies costs the next one only the requests
 * that were in flight. An attempt ends after so many passages, so that workspaces take turns.
 */
import { randomUUID } from 'node:crypto';
import type { Logger } from 'pino';
import type { Clock } from '../../clock.ts';
import type { Queryable } from '../../db/database.ts';
import {
  type ClaimedMove,
  completeMove,
  failMove,
  hasVectors,
  type NewVector,
  nextPassages,
  type OldPassage,
  postponeMove,
  storeKnownVectors,
  storeNewVectors,
  switchSources,
} from '../../db/embedding-migrations.ts';
import { patientQueries } from '../../db/retry.ts';
import { DocumentError } from '../../providers/document-error.ts';
import type { Embedder } from '../../providers/embeddings.ts';
import { JobAborted } from '../../queue/errors.ts';
import type { DocumentChunk } from './document.ts';
import { type EmbeddingLanes, embedChunks } from './embed.ts';
import { embeddingKey, vectorLiteral, vectorsAtOnce } from './embedding-key.ts';
import type { ChosenEmbedder } from './ingest.ts';

export type MoveDeps = {
  readonly db: Queryable;
  readonly clock: Clock;
  readonly log: Logger;
  readonly leaseSeconds: number;
  /** A statement was tried again. */
  readonly onRetry: (error: Error) => void;
  /** The embedder of the workspace's new model. Throws a DocumentError where no key can be used. */
  readonly chooseEmbedder: (move: ClaimedMove) => ChosenEmbedder;
  readonly lanes: EmbeddingLanes;
  /** Sees that the model's vectors have an index before the first of them is stored. Where there is none, search is slower. */
  readonly prepareIndex: (embedder: Pick<Embedder, 'model' | 'dimensions'>) => Promise<unknown>;
  readonly onMoved?: (passages: number) => void;
  /** Passages of one attempt; 20,000 when left out. */
  readonly turn?: number;
};

/** What became of an attempt. */
export type MoveOutcome =
  | { readonly kind: 'completed' }
  /** Its turn is over, or what is being ingested is waited for. */
  | { readonly kind: 'goes_on' }
  | { readonly kind: 'paused' }
  | { readonly kind: 'again'; readonly code: string }
  | { readonly kind: 'failed'; readonly code: string }
  /** Handed back by a drain. */
  | { readonly kind: 'released' }
  /** Cancelled, or taken over. */
  | { readonly kind: 'lost' };

const TURN = 20_000;
const PAGE = 200;
/** Attempts in a row without a passage that was stored, after which the move has failed. */
const MOST_ATTEMPTS = 8;
const FIRST_RETRY_MS = 5_000;
const LONGEST_RETRY_MS = 10 * 60_000;
/** What is being ingested at the switch is looked at again after so long. */
const BUSY_MS = 2_000;
const PAUSED_MS = 5_000;
/** So long what became of an attempt waits for a row that somebody holds. */
const LAST_WORDS_MS = 5_000;

/** Carries on a claimed move. Never rejects for what is wrong with it: that is in its row. */
export async function migrateEmbeddings(
  deps: MoveDeps,
  move: ClaimedMove,
  signal: AbortSignal,
): Promise<MoveOutcome> {
  const { clock, onRetry } = deps;
  try {
    if (move.attempts > MOST_ATTEMPTS) {
      throw new DocumentError(
        'worker_crashed',
        `Its worker ended ${MOST_ATTEMPTS} times in a row without getting further. agentd embeddings migrate begins again where it ended.`,
      );
    }
    return await attempt({ ...deps, db: patientQueries(deps.db, { clock, onRetry, signal }) }, move, signal);
  } catch (error) {
    const last = new AbortController();
    const timer = clock.after(LAST_WORDS_MS, () => last.abort(new JobAborted('lease_lost')));
    const db = patientQueries(deps.db, { clock, onRetry, signal: last.signal });
    try {
      return await afterFailure({ ...deps, db }, move, error, signal);
    } catch (second) {
      deps.log.warn(
        { event: 'embedding_migration_unsettled', workspace_id: move.workspace_id, err: second },
        'what became of a move to another embedding model could not be written; its lease lapses and it goes on',
      );
      return { kind: 'lost' };
    } finally {
      timer.cancel();
    }
  }
}

async function attempt(deps: MoveDeps, move: ClaimedMove, signal: AbortSignal): Promise<MoveOutcome> {
  const chosen = deps.chooseEmbedder(move);
  const round = new Round(deps, move, chosen, signal);
  for (;;) {
    const { seen, ended } = await round.run();
    if (ended === 'paused') {
      await postponeMove(deps.db, move, { inMs: PAUSED_MS, spends: false, reasonCode: null, reason: null });
      return { kind: 'paused' };
    }
    if (ended === 'turn') {
      await postponeMove(deps.db, move, { inMs: 0, spends: false, reasonCode: null, reason: null });
      return { kind: 'goes_on' };
    }
    // what came meanwhile, and the same text a second time
    if (seen > 0) continue;
    const switched = await switchSources(deps.db, move);
    if (switched === null) return { kind: 'lost' };
    if (switched.left + switched.busy === 0) {
      return { kind: (await completeMove(deps.db, move)) ? 'completed' : 'lost' };
    }
    if (switched.moved > 0) continue;
    await postponeMove(deps.db, move, { inMs: BUSY_MS, spends: false, reasonCode: null, reason: null });
    return { kind: 'goes_on' };
  }
}

type Passage = OldPassage & { readonly text: string; readonly key: string };

/** Goes through all passages without a new vector, once. */
class Round {
  readonly #deps: MoveDeps;
  readonly #move: ClaimedMove;
  readonly #chosen: ChosenEmbedder;
  readonly #signal: AbortSignal;
  /** Passages that are left to this attempt. */
  #left: number;
  #isIndexed = false;

  constructor(deps: MoveDeps, move: ClaimedMove, chosen: ChosenEmbedder, signal: AbortSignal) {
    this.#deps = deps;
    this.#move = move;
    this.#chosen = chosen;
    this.#signal = signal;
    this.#left = deps.turn ?? TURN;
  }

  async run(): Promise<{ readonly seen: number; readonly ended: 'end' | 'turn' | 'paused' }> {
    const { db } = this.#deps;
    const underWay = new Map<DocumentChunk, Passage>();
    const asked = new Set<string>();
    const result: { seen: number; ended: 'end' | 'turn' | 'paused' } = { seen: 0, ended: 'end' };
    const passages = this.#passages(underWay, asked, result);
    try {
      await embedChunks({ lanes: this.#deps.lanes, embedder: this.#chosen.embedder }, passages, {
        workspaceId: this.#move.workspace_id,
        isBackground: true,
        signal: this.#signal,
        onEmbedded: async (batch) => {
          let paid = { tokens: batch.tokens, costMicros: batch.costMicros };
          const atOnce = vectorsAtOnce(this.#move.dimensions);
          for (let from = 0; from < batch.chunks.length; from += atOnce) {
            const items = batch.chunks.slice(from, from + atOnce).map(({ chunk, embedding, reason }) => {
              const passage = underWay.get(chunk) as Passage;
              underWay.delete(chunk);
              return newVector(passage, embedding, reason);
            });
            await this.#store(items, paid);
            paid = { tokens: 0, costMicros: 0 };
          }
        },
      });
    } catch (error) {
      // Where each of the last few passages is refused, and the others were not, the move is as complete as it can be.
      const isRefusal = error instanceof DocumentError && error.code === 'embedding_refused';
      if (!isRefusal || result.ended !== 'end' || !(await this.#isAllStaged(db))) throw error;
    }
    return result;
  }

  /** Nothing is left, and not all of it was refused. */
  async #isAllStaged(db: Queryable): Promise<boolean> {
    const { passages } = await nextPassages(db, this.#move, null, 1);
    return passages.length === 0 && (await hasVectors(db, this.#move));
  }

  async *#passages(
    underWay: Map<DocumentChunk, Passage>,
    asked: Set<string>,
    result: { seen: number; ended: 'end' | 'turn' | 'paused' },
  ): AsyncGenerator<DocumentChunk> {
    let after: OldPassage | null = null;
    for (;;) {
      this.#signal.throwIfAborted();
      const page: Awaited<ReturnType<typeof nextPassages>> = await nextPassages(
        this.#deps.db,
        this.#move,
        after,
        PAGE,
      );
      if (page.isPaused) {
        result.ended = 'paused';
        return;
      }
      after = page.passages.at(-1) ?? null;
      if (after === null) return;
      result.seen += page.passages.length;
      for (const passage of await this.#unknown(page.passages)) {
        // the same text twice: the second is found once the first is stored, in the next round
        if (asked.has(passage.key)) continue;
        asked.add(passage.key);
        const chunk = chunkOf(passage);
        underWay.set(chunk, passage);
        yield chunk;
      }
      this.#left -= page.passages.length;
      if (this.#left <= 0) {
        result.ended = 'turn';
        return;
      }
    }
  }

  /** Stores what has been paid for before, and what is no text of ours; returns the others. */
  async #unknown(passages: readonly OldPassage[]): Promise<Passage[]> {
    const { embedder } = this.#chosen;
    if (!this.#isIndexed) await this.#deps.prepareIndex(embedder);
    this.#isIndexed = true;
    const ours = passages.flatMap((passage): Passage[] =>
      passage.text === null
        ? []
        : [{ ...passage, text: passage.text, key: embeddingKey(embedder, passage.text) }],
    );
    const foreign = passages.filter((passage) => passage.text === null);
    if (foreign.length > 0) {
      await this.#store(
        foreign.map((passage) => ({
          id: passage.id,
          embedding_key: embeddingKey(embedder, passage.id),
          embedding: null,
          metadata: { not_embedded: 'The passage is longer than any that is embedded.' },
        })),
        null,
      );
    }
    const known = await storeKnownVectors(
      this.#deps.db,
      this.#move,
      ours.map(({ id, key }) => ({ id, embedding_key: key })),
    );
    if (known === null) throw new JobAborted('lease_lost');
    this.#deps.onMoved?.(known.size);
    return ours.filter(({ id }) => !known.has(id));
  }

  async #store(
    items: readonly NewVector[],
    paid: { readonly tokens: number; readonly costMicros: number } | null,
  ): Promise<void> {
    const isOwn = await storeNewVectors(this.#deps.db, this.#move, {
      batch: paid === null ? null : randomUUID(),
      items,
      tokens: paid?.tokens ?? 0,
      costMicros: paid?.costMicros ?? 0,
      provider: this.#chosen.provider,
      leaseSeconds: this.#deps.leaseSeconds,
    });
    if (!isOwn) throw new JobAborted('lease_lost');
    this.#deps.onMoved?.(items.length);
  }
}

function newVector(passage: Passage, embedding: Float32Array | null, reason: string | null): NewVector {
  return {
    id: passage.id,
    embedding_key: passage.key,
    embedding: embedding === null ? null : vectorLiteral(embedding),
    metadata: embedding === null ? { not_embedded: reason } : {},
  };
}

function chunkOf(passage: Passage): DocumentChunk {
  return {
    index: passage.chunk_index,
    start: 0,
    end: passage.text.length,
    content: passage.text,
    page: null,
    headingPath: [],
    embedText: passage.text,
    tokens: passage.tokens,
  };
}

async function afterFailure(
  deps: MoveDeps,
  move: ClaimedMove,
  error: unknown,
  signal: AbortSignal,
): Promise<MoveOutcome> {
  const aborted = error instanceof JobAborted ? error : signal.aborted ? signal.reason : null;
  if (aborted instanceof JobAborted) {
    if (aborted.code !== 'drain') return { kind: 'lost' };
    await postponeMove(deps.db, move, { inMs: 0, spends: false, reasonCode: null, reason: null });
    return { kind: 'released' };
  }
  const known = error instanceof DocumentError ? error : null;
  const code = known?.code ?? 'internal_error';
  const message = known?.message ?? `An unexpected failure: ${(error as Error)?.message ?? String(error)}`;
  if (known === null) {
    deps.log.error(
      { event: 'embedding_migration_failed', workspace_id: move.workspace_id, err: error },
      'a move to another embedding model failed unexpectedly',
    );
  }
  const spends = code !== 'rate_limited';
  if ((known?.isTransient ?? true) && (!spends || move.attempts < MOST_ATTEMPTS)) {
    const backoff = Math.min(FIRST_RETRY_MS * 2 ** (move.attempts - 1), LONGEST_RETRY_MS);
    const inMs = Math.max(known?.retryAfterMs ?? 0, backoff) * (1 + Math.random() * 0.2);
    const kept = await postponeMove(deps.db, move, { inMs, spends, reasonCode: code, reason: message });
    return kept ? { kind: 'again', code } : { kind: 'lost' };
  }
  return (await failMove(deps.db, move, code, message)) ? { kind: 'failed', code } : { kind: 'lost' };
}
