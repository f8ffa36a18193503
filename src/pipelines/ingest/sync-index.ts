/**
 * A turn at an index of vectors. The same may be done twice: an upsert overwrites what it finds, a deletion finds nothing.
 */
import {
  type ClaimedStore,
  noteSent,
  type OutboxRow,
  readVectors,
  settleDelete,
  settleUpsert,
  vectorPlaces,
} from '../../db/remote-vectors.ts';
import type { PineconeIndex } from '../../providers/pinecone.ts';
import { RemoteStoreError } from '../../providers/remote-store-error.ts';
import { listFrom, reconcileStore } from './reconcile-vectors.ts';
import { idPrefix, placeOf, storedVector, vectorId } from './remote-ids.ts';
import type { OpenTurn, SyncDeps } from './sync-vectors.ts';

/** Numbers that are read and sent at once: they pass through the main thread as text. */
const NUMBERS = 50_000;
const FIRST_READ = 16;
const MOST_READ = 500;
/** Ids of an older copy that are deleted without asking for them. */
const MOST_COUNTED = 100_000;
const DELETED_AT_ONCE = 1_000;

export const indexTurn: OpenTurn = async (deps, store, { signal, requestMs, isOver }) => {
  const index = await openStore(deps, store, signal, requestMs);
  return {
    syncSource: (row) => syncSource(deps, store, index, row, isOver),
    async reconcile() {
      if (index !== null) await reconcileStore(deps, store, index, isOver);
    },
  };
};

/** Null: the index is gone, and with it everything that was to be deleted there. */
async function openStore(
  deps: SyncDeps,
  store: ClaimedStore,
  signal: AbortSignal,
  requestMs: number,
): Promise<PineconeIndex | null> {
  try {
    return await deps.stores.pinecone.open(store, signal, requestMs);
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
): Promise<boolean> {
  const pause = async (sentTo: number, place: RemovalPlace | null): Promise<false> => {
    await noteSent(deps.db, store, row, sentTo, place);
    return false;
  };
  if (row.generation === null || index === null) {
    const place = index === null ? null : await removeOthers(deps, store, index, row, null, isOver);
    if (place !== null) return pause(0, place);
    await settleDelete(deps.db, store, row);
    return true;
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
    if (isOver()) return pause(from, null);
  }
  const place = row.is_known ? await removeOthers(deps, store, index, row, generation, isOver) : null;
  if (place !== null) return pause(from, place);
  await settleUpsert(deps.db, store, row, from);
  return true;
}

/** Where a removal goes on. */
type RemovalPlace = {
  /** Ids of the older copy that are deleted. */
  readonly counted: number;
  /** Of the listing; null: it begins. */
  readonly token: string | null;
};

/** Deletes what a store has of a source beside a generation; null: all of it. Returns where to go on where the time was too short. */
async function removeOthers(
  deps: SyncDeps,
  store: ClaimedStore,
  index: PineconeIndex,
  row: OutboxRow,
  generation: number | null,
  isOver: () => boolean,
): Promise<RemovalPlace | null> {
  const { counted = 0, token: left = null } = (row.removal_place ?? {}) as Partial<RemovalPlace>;
  const { source_id: sourceId, workspace_id: namespace } = row;
  const kept = generation === null ? null : new Set(await vectorPlaces(deps.db, { sourceId, generation }));
  // A listing may not show yet what was sent a moment ago; what was acknowledged is known without it.
  const old = row.copy_generation;
  if (old !== null && old !== generation && left === null && (row.copy_chunks ?? 0) <= MOST_COUNTED) {
    const ids = Array.from({ length: row.copy_chunks ?? 0 }, (_, at) =>
      vectorId(store.id, { sourceId, generation: old, index: at }),
    );
    for (let from = counted; from < ids.length; from += DELETED_AT_ONCE) {
      if (from > counted && isOver()) return { counted: from, token: null };
      await index.delete(namespace, ids.slice(from, from + DELETED_AT_ONCE));
    }
  }
  let token = left;
  do {
    const page = await listFrom(index, namespace, idPrefix(store.id, sourceId), token);
    const others = page.ids.filter((id) => {
      const place = placeOf(store.id, id);
      return !(place !== null && place.generation === generation && kept?.has(place.index));
    });
    await index.delete(namespace, others);
    token = page.next;
    if (token !== null && isOver()) return { counted: row.copy_chunks ?? 0, token };
  } while (token !== null);
  return null;
}
