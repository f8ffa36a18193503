/**
 * One turn at one store: what the outbox asks for is done, source by source, as the ledger says now.
 *
 * No transaction is open meanwhile. A turn that dies leaves its rows, and the next one does the same again: an upsert overwrites what it
 * finds, a deletion finds nothing. A copy counts as one only after everything was acknowledged.
 */
import type { Logger } from 'pino';
import type { Clock } from '../../clock.ts';
import type { Queryable } from '../../db/database.ts';
import {
  type ClaimedStore,
  noteSent,
  type OutboxRow,
  postponeRow,
  readVectors,
  releaseStore,
  settleDelete,
  settleUpsert,
  takeOutboxRow,
  vectorPlaces,
} from '../../db/remote-vectors.ts';
import type { PineconeIndex, Pinecones } from '../../providers/pinecone.ts';
import { RemoteStoreError } from '../../providers/remote-store-error.ts';
import { reconcileStore } from './reconcile-vectors.ts';
import { idPrefix, placeOf, storedVector, vectorId } from './remote-ids.ts';

export type SyncDeps = {
  readonly db: Queryable;
  readonly clock: Clock;
  readonly log: Logger;
  readonly stores: Pinecones;
};

/** A turn's length; what is under way then is ended. */
const TURN_MS = 40_000;
const REQUEST_MS = 15_000;
/** Longer than a turn, a last request and a little. */
export const LEASE_SECONDS = 75;
/** Numbers that are read and sent at once: they pass through the main thread as text. */
const NUMBERS = 50_000;
const FIRST_READ = 16;
const MOST_READ = 500;
/** Ids of an older copy that are deleted without asking for them. */
const MOST_COUNTED = 100_000;
const DELETED_AT_ONCE = 1_000;

const BACKOFF = { firstMs: 2_000, longestMs: 10 * 60_000 };
/** What only a change mends is looked at again all the same: the change may be made on the other side. */
const SLOW_BACKOFF = { firstMs: 60_000, longestMs: 3_600_000 };
const LONGEST_RETRY_AFTER_MS = 3_600_000;

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
    const index = await openStore(deps, store, signal);
    while (!isOver()) {
      const row = await takeOutboxRow(deps.db, store, LEASE_SECONDS);
      if (row === null) break;
      try {
        await syncSource(deps, store, index, row, isOver);
        done++;
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
          'a store does not take the vectors of a source',
        );
      }
    }
    if (store.is_reconcile_due && index !== null && !isOver())
      await reconcileStore(deps, store, index, isOver);
    await releaseStore(deps.db, store, { restMs: null, reasonCode: null, reason: null });
    return { done, code: null };
  } catch (error) {
    return { done, code: await afterFailure(deps, store, error, signal) };
  }
}

/** Null: the index is gone, and with it everything that was to be deleted there. */
async function openStore(
  deps: SyncDeps,
  store: ClaimedStore,
  signal: AbortSignal,
): Promise<PineconeIndex | null> {
  try {
    return await deps.stores.open(store, signal, REQUEST_MS);
  } catch (error) {
    if (store.is_retired && error instanceof RemoteStoreError && error.code === 'index_not_found')
      return null;
    throw error;
  }
}

async function syncSource(
  deps: SyncDeps,
  store: ClaimedStore,
  index: PineconeIndex | null,
  row: OutboxRow,
  isOver: () => boolean,
): Promise<void> {
  if (row.generation === null || index === null) {
    if (index !== null && !(await removeOthers(deps, store, index, row, null, isOver))) return;
    return settleDelete(deps.db, store, row);
  }
  const generation = row.generation;
  const of = { sourceId: row.source_id, generation };
  let from = row.sent_to;
  let limit = FIRST_READ;
  for (;;) {
    const rows = await readVectors(deps.db, of, from, limit);
    const vectors = rows.map((each) => storedVector(store.id, { ...row, generation }, each));
    const dimensions = vectors[0]?.values.length ?? 0;
    if (index.dimension !== null && dimensions > 0 && dimensions !== index.dimension) {
      throw new RemoteStoreError(
        'dimension_mismatch',
        `The index has ${index.dimension} dimensions, the source's vectors have ${dimensions}. Make an index of ${dimensions} and name it in ` +
          "the datastore's config.",
      );
    }
    if (vectors.length > 0) await index.upsert(row.workspace_id, vectors);
    from = (rows.at(-1)?.chunk_index ?? from - 1) + 1;
    if (rows.length < limit) break;
    limit = Math.min(MOST_READ, Math.max(FIRST_READ, Math.floor(NUMBERS / Math.max(dimensions, 1))));
    if (isOver()) return noteSent(deps.db, store, row, from);
  }
  if (row.is_known && !(await removeOthers(deps, store, index, row, generation, isOver))) {
    return noteSent(deps.db, store, row, from);
  }
  await settleUpsert(deps.db, store, row, from);
}

/** Deletes what a store has of a source beside a generation; null: all of it. False: there was no time for everything. */
async function removeOthers(
  deps: SyncDeps,
  store: ClaimedStore,
  index: PineconeIndex,
  row: OutboxRow,
  generation: number | null,
  isOver: () => boolean,
): Promise<boolean> {
  const { source_id: sourceId, workspace_id: namespace } = row;
  const kept = generation === null ? null : new Set(await vectorPlaces(deps.db, { sourceId, generation }));
  // A listing may not show yet what was sent a moment ago; what was acknowledged is known without it.
  const old = row.copy_generation;
  if (old !== null && old !== generation && (row.copy_chunks ?? 0) <= MOST_COUNTED) {
    const ids = Array.from({ length: row.copy_chunks ?? 0 }, (_, at) =>
      vectorId(store.id, { sourceId, generation: old, index: at }),
    );
    for (let from = 0; from < ids.length; from += DELETED_AT_ONCE) {
      if (from > 0 && isOver()) return false;
      await index.delete(namespace, ids.slice(from, from + DELETED_AT_ONCE));
    }
  }
  let token: string | null = null;
  do {
    const page = await index.list(namespace, idPrefix(store.id, sourceId), token);
    const others = page.ids.filter((id) => {
      const place = placeOf(store.id, id);
      return !(place !== null && place.generation === generation && kept?.has(place.index));
    });
    await index.delete(namespace, others);
    token = page.next;
    if (token !== null && isOver()) return false;
  } while (token !== null);
  return true;
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
    'a store of vectors can not be kept equal at present',
  );
  return error.code;
}

function backoffMs(
  { firstMs, longestMs }: { readonly firstMs: number; readonly longestMs: number },
  attempts: number,
): number {
  return Math.min(firstMs * 2 ** Math.min(attempts, 20), longestMs) * (0.8 + Math.random() * 0.4);
}
