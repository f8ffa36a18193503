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
import {
  isLockTimeout,
  isStatementTimeout,
  isTransient,
  patientQueries,
  retryTransient,
} from '../../db/retry.ts';
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
  readonly chooseEmbedder: (move: ClaimedMove) => ChosenEmbedder | Promise<ChosenEmbedder>;
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
/** Attempts in a row that ended with their worker or unexpectedly, without a passage that was stored, after which the move has failed. */
const MOST_ATTEMPTS = 8;
/** The same of failures that pass by themselves, of a provider that is away: with the pauses between them, about a day. */
const MOST_FAILURES = 150;
const FIRST_RETRY_MS = 5_000;
const LONGEST_RETRY_MS = 10 * 60_000;
/** What is being ingested at the switch is looked at again after so long. */
const BUSY_MS = 2_000;
const PAUSED_MS = 5_000;
/** So long what was paid for waits for a source that somebody holds; then it is left out, and the workspace lets others pass. */
const LOCKED_MS = 5_000;
/** How often a statement is said that takes longer than the database lets it. */
const MOST_TIMEOUTS = 3;
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
    return await attempt({ ...deps, db: boundedQueries(deps, signal) }, move, signal);
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

/** Waits for a database that is away as long as it takes, but not for a row that somebody holds on to, nor for what takes too long. */
function boundedQueries({ db, clock, onRetry }: MoveDeps, signal: AbortSignal): Queryable {
  return {
    query: (statement, values) => {
      const began = clock.elapsed();
      let timeouts = 0;
      const retryIf = (error: unknown): boolean => {
        if (isStatementTimeout(error)) return ++timeouts < MOST_TIMEOUTS;
        if (isLockTimeout(error)) return clock.elapsed() - began < LOCKED_MS;
        return isTransient(error);
      };
      return retryTransient(() => db.query(statement, values), { clock, onRetry, signal, retryIf });
    },
  };
}

async function attempt(deps: MoveDeps, move: ClaimedMove, signal: AbortSignal): Promise<MoveOutcome> {
  const chosen = await deps.chooseEmbedder(move);
  const round = new Round(deps, move, chosen, signal);
  for (;;) {
    const { seen, ended, isLocked } = await round.run();
    if (ended === 'paused') {
      await postponeMove(deps.db, move, { inMs: PAUSED_MS, counts: null, reasonCode: null, reason: null });
      return { kind: 'paused' };
    }
    if (ended === 'turn') {
      await postponeMove(deps.db, move, { inMs: 0, counts: null, reasonCode: null, reason: null });
      return { kind: 'goes_on' };
    }
    if (isLocked) return waitForRow(deps, move);
    // what came meanwhile, and the same text a second time
    if (seen > 0) continue;
    const switched = await switchSources(deps.db, move);
    if (switched === null) return { kind: 'lost' };
    if (switched.left + switched.busy === 0) {
      return { kind: (await completeMove(deps.db, move)) ? 'completed' : 'lost' };
    }
    if (switched.moved > 0) continue;
    await postponeMove(deps.db, move, { inMs: BUSY_MS, counts: null, reasonCode: null, reason: null });
    return { kind: 'goes_on' };
  }
}

async function waitForRow(deps: MoveDeps, move: ClaimedMove): Promise<MoveOutcome> {
  const kept = await postponeMove(deps.db, move, {
    inMs: LOCKED_MS,
    counts: null,
    reasonCode: 'row_locked',
    reason: 'Transactions that stay open hold documents of the workspace. It goes on when they have ended.',
  });
  return kept ? { kind: 'again', code: 'row_locked' } : { kind: 'lost' };
}

type RoundResult = {
  seen: number;
  ended: 'end' | 'turn' | 'paused';
  /** Somebody holds a source: its passages were left out. */
  isLocked: boolean;
};

type Passage = OldPassage & { readonly text: string; readonly key: string };

type Paid = { readonly tokens: number; readonly costMicros: number };

/** Behind the last passage of any source. */
const LAST_INDEX = 2 ** 31 - 1;

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

  async run(): Promise<Readonly<RoundResult>> {
    const { db } = this.#deps;
    const underWay = new Map<DocumentChunk, Passage>();
    const asked = new Set<string>();
    const result: RoundResult = { seen: 0, ended: 'end', isLocked: false };
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
            if (!(await this.#storePaid(items, paid))) result.isLocked = true;
            paid = { tokens: 0, costMicros: 0 };
          }
        },
      });
    } catch (error) {
      // Where each of the last few passages is refused, and the others were not, the move is as complete as it can be.
      const isRefusal = error instanceof DocumentError && error.code === 'embedding_refused';
      if (!isRefusal || result.ended !== 'end') throw error;
      if (!result.isLocked && !(await this.#isAllStaged(db))) throw error;
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
    result: RoundResult,
  ): AsyncGenerator<DocumentChunk> {
    let after: Pick<OldPassage, 'source_id' | 'chunk_index'> | null = null;
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
      const last = page.passages.at(-1);
      if (last === undefined) return;
      const { unknown, locked } = await this.#unknown(page.passages);
      const free = page.passages.filter((passage) => !locked.has(passage.source_id)).length;
      if (locked.size > 0) result.isLocked = true;
      after = locked.has(last.source_id) ? { source_id: last.source_id, chunk_index: LAST_INDEX } : last;
      result.seen += free;
      for (const passage of unknown) {
        // the same text twice: the second is found once the first is stored, in the next round
        if (asked.has(passage.key)) continue;
        asked.add(passage.key);
        const chunk = chunkOf(passage);
        underWay.set(chunk, passage);
        yield chunk;
      }
      this.#left -= free;
      if (this.#left <= 0) {
        result.ended = 'turn';
        return;
      }
    }
  }

  /** Stores what has been paid for before, and what is no text of ours; returns the others, without those of sources that somebody holds. */
  async #unknown(
    passages: readonly OldPassage[],
  ): Promise<{ readonly unknown: Passage[]; readonly locked: ReadonlySet<string> }> {
    const { embedder } = this.#chosen;
    if (!this.#isIndexed) await this.#deps.prepareIndex(embedder);
    this.#isIndexed = true;
    // what is no text of ours has no vector: nothing is found by its id
    const items = passages.map(({ id, text }) => ({
      id,
      text,
      embedding_key: embeddingKey(embedder, text ?? id),
    }));
    const stored = await storeKnownVectors(this.#deps.db, this.#move, items);
    if (stored === null) throw new JobAborted('lease_lost');
    const { known, locked } = stored;
    this.#deps.onMoved?.(known.size);
    const open = passages.filter((passage) => !known.has(passage.id) && !locked.has(passage.source_id));
    const foreign = open.filter((passage) => passage.text === null);
    if (foreign.length > 0) {
      await this.#store(
        foreign.map((passage) => ({
          id: passage.id,
          text: null,
          embedding_key: embeddingKey(embedder, passage.id),
          embedding: null,
          metadata: { not_embedded: 'The passage is longer than any that is embedded.' },
        })),
        null,
        true,
      );
    }
    const unknown = open.flatMap((passage): Passage[] =>
      passage.text === null
        ? []
        : [{ ...passage, text: passage.text, key: embeddingKey(embedder, passage.text) }],
    );
    return { unknown, locked };
  }

  /** Waits some seconds for sources that somebody holds. False: their passages were left out in the end. */
  async #storePaid(items: readonly NewVector[], paid: Paid): Promise<boolean> {
    const batch = randomUUID();
    try {
      await this.#store(items, { ...paid, batch }, false);
      return true;
    } catch (error) {
      if (!isLockTimeout(error)) throw error;
      await this.#store(items, { ...paid, batch }, true);
      return false;
    }
  }

  async #store(
    items: readonly NewVector[],
    paid: (Paid & { readonly batch: string }) | null,
    skipsLocked: boolean,
  ): Promise<void> {
    const isOwn = await storeNewVectors(this.#deps.db, this.#move, {
      batch: paid?.batch ?? null,
      items,
      tokens: paid?.tokens ?? 0,
      costMicros: paid?.costMicros ?? 0,
      provider: this.#chosen.provider,
      leaseSeconds: this.#deps.leaseSeconds,
      skipsLocked,
    });
    if (!isOwn) throw new JobAborted('lease_lost');
    this.#deps.onMoved?.(items.length);
  }
}

function newVector(passage: Passage, embedding: Float32Array | null, reason: string | null): NewVector {
  return {
    id: passage.id,
    text: passage.text,
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
    await postponeMove(deps.db, move, { inMs: 0, counts: null, reasonCode: null, reason: null });
    return { kind: 'released' };
  }
  if (isLockTimeout(error)) return waitForRow(deps, move);
  const known = error instanceof DocumentError ? error : null;
  const isSlow = isStatementTimeout(error);
  const code = known?.code ?? (isSlow ? 'statement_timeout' : 'internal_error');
  const message =
    known?.message ??
    (isSlow
      ? `A statement takes longer than the database lets it: it is busy, or the workspace has too many passages to be moved at once.`
      : `An unexpected failure: ${(error as Error)?.message ?? String(error)}`);
  if (known === null) {
    deps.log.error(
      { event: 'embedding_migration_failed', workspace_id: move.workspace_id, err: error },
      'a move to another embedding model failed unexpectedly',
    );
  }
  const passes = isSlow || known?.isTransient === true;
  const goesOn = passes
    ? code === 'rate_limited' || move.failures < MOST_FAILURES
    : known === null && move.attempts < MOST_ATTEMPTS;
  if (goesOn) {
    const before = passes ? move.failures : move.attempts - 1;
    const backoff = Math.min(FIRST_RETRY_MS * 2 ** Math.min(before, 10), LONGEST_RETRY_MS);
    const pause = Math.max(known?.retryAfterMs ?? 0, backoff) * (1 + Math.random() * 0.2);
    const kept = await postponeMove(deps.db, move, {
      inMs: pause,
      counts: passes ? 'failure' : 'attempt',
      reasonCode: code,
      reason: message,
    });
    return kept ? { kind: 'again', code } : { kind: 'lost' };
  }
  return (await failMove(deps.db, move, code, message)) ? { kind: 'failed', code } : { kind: 'lost' };
}
