/**
 * A turn at the graphs of a store. Zep names what it is given itself, and nothing may be added twice: what is asked for is written down
 * before the request and gets its id by the answer. Where none came, the graph is asked what it has of that request.
 *
 * New passages are added before those of an older generation are deleted.
 */
import { randomUUID } from 'node:crypto';
import {
  askForParts,
  countEpisodes,
  forgetEpisodes,
  forgetEpisodesOfGraph,
  forgetRefused,
  forgetSource,
  forgetUnanswered,
  noteEpisodes,
  noteGraph,
  noteRefused,
  type PartRow,
  settleGraphDeleted,
  staleEpisodes,
  unansweredBatches,
} from '../../db/remote-graphs.ts';
import { type ClaimedStore, type OutboxRow, settleDelete, settleUpsert } from '../../db/remote-vectors.ts';
import { RemoteStoreError } from '../../providers/remote-store-error.ts';
import { EPISODES_AT_ONCE, type ListedEpisode, type NewEpisode, type ZepGraph } from '../../providers/zep.ts';
import { reconcileGraphs } from './reconcile-graphs.ts';
import { episodeLabel, episodePlaceOf } from './remote-ids.ts';
import type { OpenTurn, SyncDeps } from './sync-vectors.ts';

/** Deletions under way at once: there is one request for each episode. */
const DELETIONS = 4;
const STALE_AT_ONCE = 100;
/** A request that seemed lost has arrived by then, if it ever does. */
const COMPARE_SECONDS = 120;
/** Pages that one request's episodes are looked for on, should the graph not keep to what it is asked for. */
const MOST_PAGES = 20;
/** So many refused and none taken: it is not the passages that are wrong. */
const REFUSED_AT_FIRST = 5;

type Turn = {
  readonly deps: SyncDeps;
  readonly store: ClaimedStore;
  readonly isOver: () => boolean;
  /** A workspace's graph, wherever it is there or not. */
  readonly open: (workspaceId: string) => Promise<ZepGraph>;
  /** Workspaces whose graph is there, as far as this turn has seen. */
  readonly made: Set<string>;
};

export const graphTurn: OpenTurn = async (deps, store, { signal, requestMs, isOver }) => {
  const graphs = new Map<string, Promise<ZepGraph>>();
  const open = (workspaceId: string): Promise<ZepGraph> => {
    const opened = graphs.get(workspaceId) ?? deps.stores.getzep.open(store, workspaceId, signal, requestMs);
    graphs.set(workspaceId, opened);
    return opened;
  };
  const turn: Turn = { deps, store, isOver, open, made: new Set() };
  // a config that is wrong is wrong for all sources
  await open(store.workspace_id);
  return {
    syncSource: (row) => syncSource(turn, row),
    reconcile: () => reconcileGraphs(deps, store, open, isOver),
  };
};

async function syncSource(turn: Turn, row: OutboxRow): Promise<boolean> {
  const { deps, store } = turn;
  const graph = await turn.open(row.workspace_id);
  if (row.is_store_retired) {
    await graph.drop();
    await settleGraphDeleted(deps.db, store, row.workspace_id);
    return true;
  }
  const { generation } = row;
  if (generation !== null && !(await makeGraph(turn, graph, row.workspace_id))) return false;
  for (const batch of await unansweredBatches(deps.db, store.id, row)) {
    await findBatch(turn, graph, row, batch);
    if (turn.isOver()) return false;
  }
  if (generation === null) {
    if (!(await removeStale(turn, graph, row, null))) return false;
    await forgetSource(deps.db, store, row);
    await settleDelete(deps.db, store, row);
    return true;
  }
  await forgetRefused(deps.db, store, row);
  if (!(await addMissing(turn, graph, { ...row, generation }))) return false;
  if (!(await removeStale(turn, graph, row, generation))) return false;
  const { chunks, refused } = await countEpisodes(deps.db, store.id, { ...row, generation });
  if (refused > 0) {
    throw new RemoteStoreError(
      'refused',
      `Zep refuses ${refused} of the source's passages; the others are there. The database's own search finds them all. Report it if ` +
        'nothing about their text explains it.',
    );
  }
  await settleUpsert(deps.db, store, row, chunks);
  return true;
}

/** A graph that is new has nothing of what it once had. False: the claim is lost, and the graph may not be made any more. */
async function makeGraph(
  { deps: { db }, store, made }: Turn,
  graph: ZepGraph,
  workspaceId: string,
): Promise<boolean> {
  if (made.has(workspaceId)) return true;
  const isThere = await graph.exists();
  if (!(await noteGraph(db, store, workspaceId))) return false;
  if (!isThere) {
    await forgetEpisodesOfGraph(db, store, workspaceId);
    await graph.make();
  }
  made.add(workspaceId);
  return true;
}

/** What became of a request whose answer did not come. */
async function findBatch(
  { deps: { db }, store }: Turn,
  graph: ZepGraph,
  row: OutboxRow,
  batch: string,
): Promise<void> {
  let token: string | null = null;
  try {
    for (let pages = 0; pages < MOST_PAGES; pages++) {
      const page = await graph.list(token, { key: 'batch', value: batch });
      await note(db, store, row, page.episodes);
      token = page.next;
      if (token === null) break;
    }
  } catch (error) {
    // can't be asked this way: the comparison, which lists everything, finds what is there twice
    if (!(error instanceof RemoteStoreError && error.code === 'refused')) throw error;
  }
  await forgetUnanswered(db, store, row, batch, COMPARE_SECONDS);
}

function note(
  db: SyncDeps['db'],
  store: ClaimedStore,
  row: Pick<OutboxRow, 'workspace_id'>,
  episodes: readonly ListedEpisode[],
): Promise<Set<string>> {
  const found = episodes.flatMap(({ id, label }) => {
    const place = episodePlaceOf(store.id, label);
    return place === null ? [] : [{ id, place }];
  });
  return noteEpisodes(db, store, row.workspace_id, found);
}

/** False: there was no time for everything. */
async function addMissing(
  turn: Turn,
  graph: ZepGraph,
  row: OutboxRow & { readonly generation: number },
): Promise<boolean> {
  const { deps, store } = turn;
  let from = 0;
  for (;;) {
    const batch = randomUUID();
    const parts = await askForParts(deps.db, store, row, batch, from, EPISODES_AT_ONCE);
    const last = parts.at(-1);
    if (last === undefined) return true;
    from = last.chunk_index;
    await addParts(turn, graph, row, batch, parts);
    if (turn.isOver()) return false;
  }
}

/** All of them in one request, or, where that is refused, one after the other, so that the one which is wrong stands alone. */
async function addParts(
  { deps: { db }, store, isOver }: Turn,
  graph: ZepGraph,
  row: OutboxRow & { readonly generation: number },
  batch: string,
  parts: readonly PartRow[],
): Promise<void> {
  const add = async (some: readonly PartRow[]): Promise<void> => {
    const added = await graph.add(some.map((part) => episodeOf(store.id, row, batch, part)));
    const noted = await note(db, store, row, added);
    if (noted.size === some.length) return;
    throw new RemoteStoreError(
      'store_error',
      'Zep did not say which passages it has taken. They are looked for, and sent again where they are not there.',
      { transient: true },
    );
  };
  try {
    return await add(parts);
  } catch (error) {
    if (!(error instanceof RemoteStoreError && error.code === 'refused')) throw error;
  }
  let taken = 0;
  let refused = 0;
  for (const part of parts) {
    if (isOver()) return;
    try {
      await add([part]);
      taken++;
    } catch (error) {
      if (!(error instanceof RemoteStoreError && error.code === 'refused')) throw error;
      await noteRefused(db, store, row, batch, part);
      if (++refused >= REFUSED_AT_FIRST && taken === 0) throw error;
    }
  }
}

function episodeOf(
  storeId: string,
  row: OutboxRow & { readonly generation: number },
  batch: string,
  part: PartRow,
): NewEpisode {
  const place = {
    sourceId: row.source_id,
    generation: row.generation,
    index: part.chunk_index,
    part: part.part,
  };
  return {
    // where it stands belongs to what it says
    text: [part.title, part.heading].filter(Boolean).join(' › ').concat('\n\n', part.content),
    label: episodeLabel(storeId, place),
    metadata: {
      batch,
      source: row.source_id,
      document: part.title,
      chunk: part.chunk_index,
      generation: row.generation,
      ...(part.page === null ? {} : { page: part.page }),
      ...(part.heading === '' ? {} : { heading: part.heading }),
    },
  };
}

/** Deletes what a graph has of a source beside a generation; null: all of it. False: there was no time for everything. */
async function removeStale(
  { deps: { db }, store, isOver }: Turn,
  graph: ZepGraph,
  row: OutboxRow,
  generation: number | null,
): Promise<boolean> {
  for (;;) {
    const ids = await staleEpisodes(db, store.id, row, generation, STALE_AT_ONCE);
    if (ids.length === 0) return true;
    for (let from = 0; from < ids.length; from += DELETIONS) {
      if (isOver()) return false;
      const some = ids.slice(from, from + DELETIONS);
      await Promise.all(some.map((id) => graph.delete(id)));
      await forgetEpisodes(db, store, some);
    }
  }
}
