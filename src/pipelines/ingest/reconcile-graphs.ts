/**
 * The comparison of a store's graphs with the ledger, a bounded part at a time: first whether what is known is there, then over all that
 * a graph lists, what is there and known of nobody: the same passage twice, or one of a request that arrived late.
 */
import type { Logger } from 'pino';
import type { Queryable } from '../../db/database.ts';
import { knownEpisodesAfter, noteMissingEpisodes, strayEpisodes } from '../../db/graph-comparison.ts';
import { forgetEpisodesOfGraph, graphsOf } from '../../db/remote-graphs.ts';
import { type ClaimedStore, noteReconciled, requestForgotten } from '../../db/remote-vectors.ts';
import { RemoteStoreError } from '../../providers/remote-store-error.ts';
import { EPISODES_OF_PAGE, type EpisodePage, type ZepGraph } from '../../providers/zep.ts';
import { episodePlaceOf, isLabelOf } from './remote-ids.ts';

/** A comparison begins anew after so long. */
const EVERY_SECONDS = 3_600;
/** What was sent less long ago need not be listed yet. */
const SETTLED_SECONDS = 60;

/** Where a comparison goes on. */
type Place = {
  /** The workspace whose graph is compared; null: the first. */
  readonly workspace: string | null;
  /** The last known episode that was looked for. */
  readonly known: string | null;
  /** All known ones were looked for: the listing is gone through, from `token`. */
  readonly isListing: boolean;
  readonly token: string | null;
  /** All graphs are compared: the datastore's sources are gone through for such as nobody asked for, after `forgotten`. */
  readonly isCompared: boolean;
  readonly forgotten: string | null;
  readonly missing: number;
  readonly extra: number;
};

type Deps = { readonly db: Queryable; readonly log: Logger };

export async function reconcileGraphs(
  deps: Deps,
  store: ClaimedStore,
  open: (workspaceId: string) => Promise<ZepGraph>,
  isOver: () => boolean,
): Promise<void> {
  let place = placeFrom(store.reconcile_place);
  const found = { missing: place.missing, extra: place.extra };
  const pause = (): Promise<void> => noteReconciled(deps.db, store, { ...place, ...found }, found, 0);

  for (const workspace of place.isCompared ? [] : await graphsOf(deps.db, store.id)) {
    if (place.workspace !== null && workspace < place.workspace) continue;
    if (workspace !== place.workspace)
      place = { ...place, workspace, known: null, isListing: false, token: null };
    const graph = await open(workspace);

    while (!place.isListing) {
      if (isOver()) return pause();
      const ids = await knownEpisodesAfter(
        deps.db,
        store.id,
        workspace,
        place.known,
        EPISODES_OF_PAGE,
        SETTLED_SECONDS,
      );
      if (ids.length > 0) found.missing += await findMissing(deps, store, graph, workspace, ids);
      const last = ids.at(-1);
      place = last === undefined ? { ...place, isListing: true } : { ...place, known: last };
    }
    do {
      if (isOver()) return pause();
      const page = await listFrom(graph, place.token);
      // beyond its turn the store is another's, to whom a stray may be known
      if (!(await removeStrays(deps, store, graph, workspace, page, found, isOver))) return pause();
      place = { ...place, token: page.next };
    } while (place.token !== null);
  }
  place = { ...place, isCompared: true };
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

/** Of what should be there; a graph that is gone has nothing. Returns how many were missing. */
async function findMissing(
  deps: Deps,
  store: ClaimedStore,
  graph: ZepGraph,
  workspace: string,
  ids: readonly string[],
): Promise<number> {
  let present: Set<string>;
  try {
    present = await graph.present(ids);
  } catch (error) {
    if (!(error instanceof RemoteStoreError && error.code === 'graph_not_found')) throw error;
    return forgetEpisodesOfGraph(deps.db, store, workspace);
  }
  const missing = ids.filter((id) => !present.has(id));
  if (missing.length > 0) await noteMissingEpisodes(deps.db, store, workspace, missing);
  return missing.length;
}

/** What is not labelled as this store's is left alone. False: there was no time for everything. */
async function removeStrays(
  deps: Deps,
  store: ClaimedStore,
  graph: ZepGraph,
  workspace: string,
  page: EpisodePage,
  found: { extra: number },
  isOver: () => boolean,
): Promise<boolean> {
  const ours = page.episodes
    .filter(({ label }) => isLabelOf(store.id, label))
    .map(({ id, label }) => ({ id, place: episodePlaceOf(store.id, label) }));
  if (ours.length === 0) return true;
  const strays = await strayEpisodes(deps.db, store, workspace, ours);
  for (const id of strays) {
    if (isOver()) return false;
    await graph.delete(id);
    found.extra++;
  }
  return true;
}

/** A token that has lapsed begins from the start: what was seen is right by now. */
async function listFrom(graph: ZepGraph, token: string | null): Promise<EpisodePage> {
  try {
    return await graph.list(token);
  } catch (error) {
    if (token === null || !(error instanceof RemoteStoreError && error.code === 'refused')) throw error;
    return graph.list(null);
  }
}

function placeFrom(stored: unknown): Place {
  const given = (stored ?? {}) as Partial<Place>;
  return {
    workspace: given.workspace ?? null,
    known: given.known ?? null,
    isListing: given.isListing ?? false,
    token: given.token ?? null,
    isCompared: given.isCompared ?? false,
    forgotten: given.forgotten ?? null,
    missing: given.missing ?? 0,
    extra: given.extra ?? 0,
  };
}
