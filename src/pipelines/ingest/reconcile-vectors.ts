/**
 * The comparison of a store with the ledger, a bounded part at a time: first source by source, what is missing and what is too much;
 * then over all that the store lists of ours, what belongs to no source at all.
 *
 * Ids are compared, and not vectors: an id is of one generation, whose vectors never change.
 */
import type { Logger } from 'pino';
import type { Queryable } from '../../db/database.ts';
import {
  type ClaimedStore,
  copiesAfter,
  namespacesOf,
  noteReconciled,
  readVectorsAt,
  requestStrayDeletions,
  vectorPlaces,
} from '../../db/remote-vectors.ts';
import type { PineconeIndex } from '../../providers/pinecone.ts';
import { RemoteStoreError } from '../../providers/remote-store-error.ts';
import { idPrefix, placeOf, sourceOf, storedVector } from './remote-ids.ts';

/** A comparison begins anew after so long. */
const EVERY_SECONDS = 3_600;
/** What was sent less long ago is left: a listing need not show it yet. */
const SETTLED_SECONDS = 60;
const SOURCES = 50;
const REPAIRED_AT_ONCE = 32;
const DELETED_AT_ONCE = 1_000;

/** Where a comparison goes on. */
type Place = {
  /** The last source compared; null: all of them. */
  readonly source: string | null;
  /** The namespace that is listed, and from where; null: the sources come first. */
  readonly namespace: string | null;
  readonly token: string | null;
  readonly missing: number;
  readonly extra: number;
};

type Deps = { readonly db: Queryable; readonly log: Logger };

export async function reconcileStore(
  deps: Deps,
  store: ClaimedStore,
  index: PineconeIndex,
  isOver: () => boolean,
): Promise<void> {
  const found = { missing: 0, extra: 0 };
  let place = placeFrom(store.reconcile_place);
  found.missing = place.missing;
  found.extra = place.extra;
  const pause = (): Promise<void> => noteReconciled(deps.db, store, { ...place, ...found }, found, 0);

  while (place.namespace === null) {
    const sources = await copiesAfter(deps.db, store.id, place.source, SOURCES, SETTLED_SECONDS);
    for (const source of sources) {
      await compareSource(deps, store, index, source, found, isOver);
      place = { ...place, source: source.source_id };
      if (isOver()) return pause();
    }
    if (sources.length === SOURCES) continue;
    const [first] = await namespacesOf(deps.db, store.id);
    place = { ...place, namespace: first ?? store.workspace_id };
  }

  const namespaces = (await namespacesOf(deps.db, store.id)).filter(
    (name) => name >= (place.namespace ?? ''),
  );
  for (const namespace of namespaces) {
    let token = namespace === place.namespace ? place.token : null;
    do {
      const page = await listFrom(index, namespace, idPrefix(store.id), token);
      found.extra += await removeStrays(deps, store, index, namespace, page.ids);
      token = page.next;
      place = { ...place, namespace, token };
      if (isOver()) return pause();
    } while (token !== null);
  }
  await noteReconciled(deps.db, store, null, found, EVERY_SECONDS);
  if (found.missing + found.extra > 0) {
    deps.log.warn(
      { event: 'vectors_drifted', datastore_id: store.datastore_id, ...found },
      'a store differed from the ledger and was put right',
    );
  }
}

/** What there is no time for is left to the next comparison. */
async function compareSource(
  deps: Deps,
  store: ClaimedStore,
  index: PineconeIndex,
  source: { readonly source_id: string; readonly workspace_id: string; readonly generation: number },
  found: { missing: number; extra: number },
  isOver: () => boolean,
): Promise<void> {
  const of = { sourceId: source.source_id, generation: source.generation };
  const missing = new Set(await vectorPlaces(deps.db, of));
  const wanted = new Set(missing);
  const extra: string[] = [];
  let token: string | null = null;
  do {
    const page = await index.list(source.workspace_id, idPrefix(store.id, of.sourceId), token);
    for (const id of page.ids) {
      const place = placeOf(store.id, id);
      if (place?.generation === of.generation && wanted.has(place.index)) missing.delete(place.index);
      else extra.push(id);
    }
    token = page.next;
    // Beyond its turn the store is another's, who may have sent what we would take for too much.
    if (isOver()) return;
  } while (token !== null);
  const places = [...missing];
  for (let from = 0; from < places.length; from += REPAIRED_AT_ONCE) {
    if (isOver()) return;
    const rows = await readVectorsAt(deps.db, of, places.slice(from, from + REPAIRED_AT_ONCE));
    if (rows.length > 0) {
      await index.upsert(
        source.workspace_id,
        rows.map((row) => storedVector(store.id, source, row)),
      );
    }
    found.missing += rows.length;
  }
  for (let from = 0; from < extra.length; from += DELETED_AT_ONCE) {
    if (isOver()) return;
    const some = extra.slice(from, from + DELETED_AT_ONCE);
    await index.delete(source.workspace_id, some);
    found.extra += some.length;
  }
}

/** Of sources that nothing knows, or that can't be a source's. Returns how many ids. */
async function removeStrays(
  deps: Deps,
  store: ClaimedStore,
  index: PineconeIndex,
  namespace: string,
  ids: readonly string[],
): Promise<number> {
  const nobodys = ids.filter((id) => sourceOf(store.id, id) === null);
  await index.delete(namespace, nobodys);
  const sources = new Set(ids.flatMap((id) => sourceOf(store.id, id) ?? []));
  const strays =
    sources.size === 0 ? 0 : await requestStrayDeletions(deps.db, store, namespace, [...sources]);
  return nobodys.length + strays;
}

/** A token that has lapsed begins from the start: what was seen is right by now. */
async function listFrom(index: PineconeIndex, namespace: string, prefix: string, token: string | null) {
  try {
    return await index.list(namespace, prefix, token);
  } catch (error) {
    if (token === null || !(error instanceof RemoteStoreError && error.code === 'refused')) throw error;
    return index.list(namespace, prefix, null);
  }
}

function placeFrom(stored: unknown): Place {
  const given = (stored ?? {}) as Partial<Place>;
  return {
    source: given.source ?? null,
    namespace: given.namespace ?? null,
    token: given.token ?? null,
    missing: given.missing ?? 0,
    extra: given.extra ?? 0,
  };
}
