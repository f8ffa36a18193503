/**
 * The comparison of a store with the ledger, a bounded part at a time: first source by source, what is missing and what is too much;
 * then over all that the store lists of ours, what belongs to no source at all.
 *
 * Ids are compared, and not vectors: an id is of one generation, whose vectors never change.
 */
import { deflateRawSync, inflateRawSync } from 'node:zlib';
import type { Logger } from 'pino';
import type { Queryable } from '../../db/database.ts';
import {
  type ClaimedStore,
  copiesAfter,
  namespacesOf,
  noteReconciled,
  readVectorsAt,
  requestForgotten,
  requestStrayDeletions,
  vectorPlaces,
} from '../../db/remote-vectors.ts';
import type { PineconeIndex, VectorPage } from '../../providers/pinecone.ts';
import { RemoteStoreError } from '../../providers/remote-store-error.ts';
import { idPrefix, placeOf, sourceOf, storedVector } from './remote-ids.ts';

/** A comparison begins anew after so long. */
const EVERY_SECONDS = 3_600;
/** What was sent less long ago is left: a listing need not show it yet. */
const SETTLED_SECONDS = 60;
const SOURCES = 50;
const REPAIRED_AT_ONCE = 32;

/** Where a comparison goes on. */
type Place = {
  /** The last source compared; null: all of them. */
  readonly source: string | null;
  /** The one after it, which is compared in part. */
  readonly part: SourcePart | null;
  /** The namespace that is listed, and from where; null: the sources come first. */
  readonly namespace: string | null;
  readonly token: string | null;
  /** All is listed: the datastore's sources are gone through for such as nobody asked for, after `forgotten`. */
  readonly isListed: boolean;
  readonly forgotten: string | null;
  readonly missing: number;
  readonly extra: number;
};

/** A source that does not fit into one turn. */
type SourcePart = {
  readonly source: string;
  readonly generation: number;
  /** Of the listing; null: it begins, or is through. */
  readonly token: string | null;
  readonly isListed: boolean;
  /** How many vectors it is to have, and which of them were not there yet: bits in their order, deflated. */
  readonly count: number;
  readonly missing: string;
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
      const part = await compareSource(deps, store, index, source, place.part, found, isOver);
      place = part === null ? { ...place, source: source.source_id, part: null } : { ...place, part };
      if (part !== null || isOver()) return pause();
    }
    if (sources.length === SOURCES) continue;
    const [first] = await namespacesOf(deps.db, store.id);
    place = { ...place, part: null, namespace: first ?? store.workspace_id };
  }

  const namespaces = place.isListed
    ? []
    : (await namespacesOf(deps.db, store.id)).filter((name) => name >= (place.namespace ?? ''));
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
  place = { ...place, isListed: true };
  do {
    const { last, chunks } = await requestForgotten(deps.db, store, place.forgotten);
    found.missing += chunks;
    place = { ...place, forgotten: last };
    if (last !== null && isOver()) return pause();
  } while (place.forgotten !== null);
  await noteReconciled(deps.db, store, null, found, EVERY_SECONDS);
  if (found.missing + found.extra > 0) {
    deps.log.warn(
      { event: 'vectors_drifted', datastore_id: store.datastore_id, ...found },
      'a store differed from the ledger and was put right',
    );
  }
}

/** Null: it was compared and put right. Where there was no time for all of it, where to go on. */
async function compareSource(
  deps: Deps,
  store: ClaimedStore,
  index: PineconeIndex,
  source: { readonly source_id: string; readonly workspace_id: string; readonly generation: number },
  begun: SourcePart | null,
  found: { missing: number; extra: number },
  isOver: () => boolean,
): Promise<SourcePart | null> {
  const of = { sourceId: source.source_id, generation: source.generation };
  const all = await vectorPlaces(deps.db, of);
  const wanted = new Set(all);
  const left =
    begun?.source === of.sourceId && begun.generation === of.generation && begun.count === all.length
      ? begun
      : null;
  const missing = new Set(left === null ? all : unpacked(all, left.missing));
  let token = left?.token ?? null;
  let isListed = left?.isListed ?? false;
  const rest = (): SourcePart => {
    const packed = { count: all.length, missing: packedPlaces(all, missing) };
    return { source: of.sourceId, generation: of.generation, token, isListed, ...packed };
  };
  while (!isListed) {
    const page = await listFrom(index, source.workspace_id, idPrefix(store.id, of.sourceId), token);
    // Beyond its turn the store is another's, who may have sent what we would take for too much.
    if (isOver()) return rest();
    const extra: string[] = [];
    for (const id of page.ids) {
      const place = placeOf(store.id, id);
      if (place?.generation === of.generation && wanted.has(place.index)) missing.delete(place.index);
      else extra.push(id);
    }
    await index.delete(source.workspace_id, extra);
    found.extra += extra.length;
    token = page.next;
    isListed = token === null;
  }
  const places = [...missing];
  for (let from = 0; from < places.length; from += REPAIRED_AT_ONCE) {
    if (isOver()) return rest();
    const some = places.slice(from, from + REPAIRED_AT_ONCE);
    const rows = await readVectorsAt(deps.db, of, some);
    if (rows.length > 0) {
      await index.upsert(
        source.workspace_id,
        rows.map((row) => storedVector(store.id, source, row)),
      );
    }
    for (const at of some) missing.delete(at);
    found.missing += rows.length;
  }
  return null;
}

/** Which of the places are among `some`: a bit each. */
function packedPlaces(all: readonly number[], some: ReadonlySet<number>): string {
  const bits = Buffer.alloc(Math.ceil(all.length / 8));
  for (const [i, at] of all.entries()) if (some.has(at)) bits[i >> 3] = (bits[i >> 3] ?? 0) | (1 << (i & 7));
  return deflateRawSync(bits).toString('base64');
}

function unpacked(all: readonly number[], packed: string): number[] {
  const bits = inflateRawSync(Buffer.from(packed, 'base64'));
  return all.filter((_, i) => ((bits[i >> 3] ?? 0) & (1 << (i & 7))) !== 0);
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
export async function listFrom(
  index: PineconeIndex,
  namespace: string,
  prefix: string,
  token: string | null,
): Promise<VectorPage> {
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
    part: given.part ?? null,
    namespace: given.namespace ?? null,
    token: given.token ?? null,
    isListed: given.isListed ?? false,
    forgotten: given.forgotten ?? null,
    missing: given.missing ?? 0,
    extra: given.extra ?? 0,
  };
}
