/** What is elsewhere as well, asked there: a store that is slow or away costs a moment, and then the ledger's own must do. */
import type { Logger } from 'pino';
import type { Clock } from '../../clock.ts';
import type { Queryable } from '../../db/database.ts';
import { findSearchableGraphs, type SearchableGraph } from '../../db/graph-search.ts';
import type { QueryVector, RemoteHits } from '../../db/knowledge.ts';
import { findSearchableStores, type SearchableStore } from '../../db/remote-vectors.ts';
import type { Pinecones } from '../../providers/pinecone.ts';
import { RemoteStoreError } from '../../providers/remote-store-error.ts';
import type { FoundFact, GraphFound, Zeps } from '../../providers/zep.ts';
import { placeOf, versionOf } from '../ingest/remote-ids.ts';

/** How long a search waits for its stores, in milliseconds. */
const DEADLINE_MS = 2_000;
/** After a failure a store is not asked for so long: no search waits for what is known to be away. */
const REST_MS = 10_000;
const MOST_RESTING = 1_000;
const DEFAULT_RESULTS = 5;
/** Stores that one search asks. */
const MOST_STORES = 4;
/** Episodes of graphs that one search takes into account. */
const MOST_HITS = 200;

export type RemoteSearchDeps = {
  readonly clock: Clock;
  readonly log: Logger;
  readonly stores: { readonly pinecone: Pinecones; readonly getzep: Zeps };
  readonly deadlineMs?: number;
};

/** Asks stores for what agents look for. */
export class RemoteSearch {
  readonly #deps: RemoteSearchDeps;
  readonly #resting = new Map<string, number>();

  constructor(deps: RemoteSearchDeps) {
    this.#deps = deps;
  }

  /**
   * What the stores found, and of which sources they were asked; null: of none. What they say is a proposal, to be looked up in the ledger.
   * Throws what the database throws, or the signal's reason.
   */
  async find(
    db: Queryable,
    query: {
      readonly workspaceId: string;
      readonly agentId: string;
      readonly limit: number | null;
      readonly vector: QueryVector;
      readonly signal: AbortSignal;
    },
  ): Promise<RemoteHits | null> {
    const { workspaceId, agentId, vector } = query;
    const { model, dimensions } = vector;
    const all = await findSearchableStores(db, { workspaceId, agentId, model, dimensions });
    const stores = all.filter((store) => !this.#rests(store));
    const count = query.limit ?? Math.max(DEFAULT_RESULTS, ...stores.map((store) => store.max_results));
    // as many as the ledger's own search takes into account
    const topK = Math.min(Math.max(count * 4, 40), 400);
    const asked = await Promise.all(
      stores.slice(0, MOST_STORES).map((store) => this.#ask(store, query, topK)),
    );
    const answered = asked.filter((each) => each !== null);
    if (answered.length === 0) return null;
    return {
      sources: answered.flatMap((each) => each.sources),
      generations: answered.flatMap((each) => each.generations),
      hits: answered.flatMap((each) => each.hits),
    };
  }

  /**
   * What graphs found, best first; null: none was asked, or none answered. What they say is a proposal.
   * Throws what the database throws, or the signal's reason.
   */
  async findInGraphs(
    db: Queryable,
    query: {
      readonly workspaceId: string;
      readonly agentId: string;
      readonly text: string;
      readonly signal: AbortSignal;
    },
  ): Promise<FoundInGraphs | null> {
    const { workspaceId, text } = query;
    const graphs = (await findSearchableGraphs(db, query, MOST_STORES)).filter(
      (graph) => !this.#rests(graph),
    );
    const found = await Promise.all(
      graphs.map((store) =>
        this.#within(store, query.signal, async (signal) => {
          const graph = await this.#deps.stores.getzep.open(store, workspaceId, signal, DEADLINE_MS);
          return { store: store.id, ...(await graph.search(text)) };
        }),
      ),
    );
    const answered = found.filter((each) => each !== null);
    return answered.length === 0 ? null : together(answered);
  }

  async #ask(
    store: SearchableStore,
    query: { readonly workspaceId: string; readonly vector: QueryVector; readonly signal: AbortSignal },
    topK: number,
  ): Promise<RemoteHits | null> {
    const { sources, generations } = store;
    return this.#within(store, query.signal, async (signal) => {
      const index = await this.#deps.stores.pinecone.open(store, signal, DEADLINE_MS);
      const ids = await index.query(query.workspaceId, Array.from(query.vector.vector), topK, {
        key: 'version',
        values: sources.map((source, at) => versionOf(source, generations[at] ?? 0)),
      });
      const places = ids.slice(0, topK).flatMap((id) => placeOf(store.id, id) ?? []);
      return {
        sources,
        generations,
        hits: places.map(({ sourceId, generation, index: at }) => ({
          source: sourceId,
          generation,
          index: at,
        })),
      };
    });
  }

  #rests({ id }: { readonly id: string }): boolean {
    return (this.#resting.get(id) ?? 0) > this.#deps.clock.elapsed();
  }

  /** Null: the store did not answer in time, or not as it should. It is then left alone for a while. */
  async #within<T>(
    store: SearchableStore | SearchableGraph,
    signal: AbortSignal,
    work: (signal: AbortSignal) => Promise<T>,
  ): Promise<T | null> {
    const { clock } = this.#deps;
    const deadline = new AbortController();
    const timer = clock.after(this.#deps.deadlineMs ?? DEADLINE_MS, () =>
      deadline.abort(new Error('deadline')),
    );
    try {
      return await work(AbortSignal.any([signal, deadline.signal]));
    } catch (error) {
      signal.throwIfAborted();
      const isLate = deadline.signal.aborted;
      if (!isLate && !(error instanceof RemoteStoreError)) throw error;
      const code = error instanceof RemoteStoreError ? error.code : 'timeout';
      this.#resting.delete(store.id);
      this.#resting.set(store.id, clock.elapsed() + REST_MS);
      if (this.#resting.size > MOST_RESTING)
        this.#resting.delete(this.#resting.keys().next().value as string);
      this.#deps.log.warn(
        { event: 'remote_search_failed', datastore_id: store.datastore_id, code },
        'a store could not be asked: the database alone is searched',
      );
      return null;
    } finally {
      timer.cancel();
    }
  }
}

/** What graphs found: episodes, and facts with the episodes that they are from. */
export type FoundInGraphs = {
  readonly hits: readonly { readonly store: string; readonly episode: string }[];
  readonly facts: readonly (FoundFact & { readonly store: string })[];
};

/** In turn from each graph; what a fact is from comes after what was found itself at the same place. */
function together(found: readonly (GraphFound & { readonly store: string })[]): FoundInGraphs {
  const hits = new Map<string, { store: string; episode: string }>();
  const longest = Math.max(...found.map(({ episodes, facts }) => Math.max(episodes.length, facts.length)));
  for (let at = 0; at < longest; at++) {
    for (const { store, episodes, facts } of found) {
      const own = episodes[at];
      for (const episode of [...(own === undefined ? [] : [own]), ...(facts[at]?.episodes ?? [])]) {
        if (hits.size < MOST_HITS)
          hits.set(`${store}/${episode}`, hits.get(`${store}/${episode}`) ?? { store, episode });
      }
    }
  }
  return {
    hits: [...hits.values()],
    facts: found.flatMap(({ store, facts }) => facts.map((fact) => ({ ...fact, store }))),
  };
}
