/**
 * One turn at one store: what the outbox asks for is done, source by source, as the ledger says now.
 *
 * No transaction is open meanwhile. A turn that dies leaves its rows, and the next one does the rest. A copy counts as one only after
 * everything was acknowledged. What a turn does at a store is in sync-index.ts (vectors) and sync-graph.ts (passages).
 */
import type { Logger } from 'pino';
import type { Clock } from '../../clock.ts';
import type { Queryable } from '../../db/database.ts';
import {
  type ClaimedStore,
  noteUnfinished,
  type OutboxRow,
  postponeRow,
  releaseStore,
  takeOutboxRow,
} from '../../db/remote-vectors.ts';
import type { Pinecones } from '../../providers/pinecone.ts';
import { RemoteStoreError } from '../../providers/remote-store-error.ts';
import type { Zeps } from '../../providers/zep.ts';
import { graphTurn } from './sync-graph.ts';
import { indexTurn } from './sync-index.ts';

export type SyncDeps = {
  readonly db: Queryable;
  readonly clock: Clock;
  readonly log: Logger;
  readonly stores: { readonly pinecone: Pinecones; readonly getzep: Zeps };
};

/** A turn at a store that has been opened: what differs from kind to kind. Both return early when `isOver` says so, with the rest still to do. */
export type StoreTurn = {
  /** Makes a source be there as its row says, and settles the row. False: there is more to do, which another turn does. */
  syncSource(row: OutboxRow): Promise<boolean>;
  /** Compares store and ledger, from where that was left. */
  reconcile(): Promise<void>;
};

/** What opens a turn. */
export type OpenTurn = (
  deps: SyncDeps,
  store: ClaimedStore,
  turn: { readonly signal: AbortSignal; readonly requestMs: number; readonly isOver: () => boolean },
) => Promise<StoreTurn>;

const TURNS: Readonly<Record<ClaimedStore['kind'], OpenTurn>> = { pinecone: indexTurn, getzep: graphTurn };

/** A turn's length; what is under way then is ended. */
const TURN_MS = 40_000;
const REQUEST_MS = 15_000;
/** Longer than a turn, a last request and a little. */
export const LEASE_SECONDS = 75;

const BACKOFF = { firstMs: 2_000, longestMs: 10 * 60_000 };
/** What only a change mends is looked at again all the same: the change may be made on the other side. */
const SLOW_BACKOFF = { firstMs: 60_000, longestMs: 3_600_000 };
const LONGEST_RETRY_AFTER_MS = 3_600_000;
/** A pause that is longer counts as over: a clock was wrong when it began (db/remote-vectors.ts). */
const LONGEST_PAUSE_MS = 3_600_000;

/** What became of a turn. */
export type SyncOutcome = { readonly done: number; readonly code: string | null };

/** Works on a claimed store and gives it back. Never rejects for what is wrong with the store: that is in its row. */
export async function syncStore(
  deps: SyncDeps,
  store: ClaimedStore,
  signal: AbortSignal,
): Promise<SyncOutcome> {
  const until = deps.clock.elapsed() + TURN_MS;
  const isOver = (): boolean => signal.aborted || deps.clock.elapsed() >= until;
  let done = 0;
  try {
    const turn = await TURNS[store.kind](deps, store, { signal, requestMs: REQUEST_MS, isOver });
    while (!isOver()) {
      const row = await takeOutboxRow(deps.db, store, LEASE_SECONDS);
      if (row === null) break;
      try {
        if (await turn.syncSource(row)) done++;
        else await noteUnfinished(deps.db, store, row);
      } catch (error) {
        if (!(error instanceof RemoteStoreError && error.isOfSource)) throw error;
        await postponeRow(deps.db, store, row, {
          inMs: backoffMs(SLOW_BACKOFF, row.attempts),
          reasonCode: error.code,
          reason: error.message,
        });
        deps.log.warn(
          {
            event: 'vectors_refused',
            datastore_id: store.datastore_id,
            source_id: row.source_id,
            code: error.code,
          },
          'a store does not take what a source has',
        );
      }
    }
    if (store.is_reconcile_due && !isOver()) await turn.reconcile();
    await releaseStore(deps.db, store, { restMs: null, reasonCode: null, reason: null });
    return { done, code: null };
  } catch (error) {
    return { done, code: await afterFailure(deps, store, error, signal) };
  }
}

async function afterFailure(
  deps: SyncDeps,
  store: ClaimedStore,
  error: unknown,
  signal: AbortSignal,
): Promise<string | null> {
  if (signal.aborted) {
    await releaseStore(deps.db, store, { restMs: null, reasonCode: null, reason: null });
    return null;
  }
  if (!(error instanceof RemoteStoreError)) {
    await releaseStore(deps.db, store, {
      restMs: backoffMs(BACKOFF, store.attempts),
      reasonCode: 'internal_error',
      reason: "An unexpected failure, which the worker's log tells (service_failed). It is tried again.",
    });
    throw error;
  }
  const backoff = backoffMs(error.isTransient ? BACKOFF : SLOW_BACKOFF, store.attempts);
  const asked = Math.min(error.retryAfterMs ?? 0, LONGEST_RETRY_AFTER_MS);
  await releaseStore(deps.db, store, {
    restMs: Math.max(backoff, asked),
    reasonCode: error.code,
    reason: error.message,
  });
  deps.log.warn(
    {
      event: 'vector_store_failed',
      datastore_id: store.datastore_id,
      code: error.code,
      attempts: store.attempts + 1,
    },
    'a store can not be kept equal at present',
  );
  return error.code;
}

function backoffMs(
  { firstMs, longestMs }: { readonly firstMs: number; readonly longestMs: number },
  attempts: number,
): number {
  const backoff = Math.min(firstMs * 2 ** Math.min(attempts, 20), longestMs);
  return Math.min(backoff * (0.8 + Math.random() * 0.4), LONGEST_PAUSE_MS);
}
