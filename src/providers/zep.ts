/**
 * Zep's graphs by its official client.
 *
 * The client brings the protocol; connections, deadlines, limits and retries are ours. A graph is named by workspace and store: what a
 * datastore's config says of that means nothing.
 */
import type { Zep, ZepClient } from '@getzep/zep-cloud';
import type { Clock } from '../clock.ts';
import type { SecretOpener } from '../secrets.ts';
import { parseAllowedHosts } from './guarded-address.ts';
import type { Resolve } from './guarded-connect.ts';
import { RemoteStoreError } from './remote-store-error.ts';
import { storeTransport } from './remote-store-fetch.ts';
import {
  configText,
  type DatastoreRow,
  openedKey,
  portedHost,
  storedOrigin,
} from './remote-store-settings.ts';
import { readable, ZEP, zepFetcher } from './zep-fetch.ts';
import { forgetUsers, type ZepMemory, zepMemory } from './zep-memory.ts';

/** Episodes of one request, by Zep's documentation; of a page, by its client's. */
export const EPISODES_AT_ONCE = 20;
export const EPISODES_OF_PAGE = 50;
/** Of an episode and of a query, by its documentation. */
const EPISODE_CHARACTERS = 10_000;
const QUERY_CHARACTERS = 400;
const FOUND_EPISODES = 50;
const FOUND_FACTS = 20;
const FACT_CHARACTERS = 1_000;
const API = '/api/v2';

export type NewEpisode = {
  readonly text: string;
  /** Returned with the episode: which it is of ours. */
  readonly label: string;
  /** At most ten. */
  readonly metadata: Readonly<Record<string, string | number>>;
};

/** `id`: a UUID that Zep has made. `label` is empty where it has none. */
export type ListedEpisode = { readonly id: string; readonly label: string };

export type EpisodePage = { readonly episodes: readonly ListedEpisode[]; readonly next: string | null };

/** A fact, and the episodes from which Zep has it. */
export type FoundFact = { readonly fact: string; readonly episodes: readonly string[] };

export type GraphFound = {
  /** Ids of episodes, best first. */
  readonly episodes: readonly string[];
  /** Facts that hold, best first. */
  readonly facts: readonly FoundFact[];
};

/** One graph. All methods throw RemoteStoreError, or the signal's reason. */
export type ZepGraph = {
  exists(): Promise<boolean>;
  /** Makes the graph; one that is there already stays as it is. */
  make(): Promise<void>;
  /** Deletes all of it; what is not there is deleted. */
  drop(): Promise<void>;
  /** At most EPISODES_AT_ONCE. Not idempotent: what is added twice is there twice. What the answer leaves out may be there or not. */
  add(episodes: readonly NewEpisode[]): Promise<ListedEpisode[]>;
  /** What is not there is deleted. */
  delete(id: string): Promise<void>;
  /** A page of all episodes, or of those with a value in their metadata. A graph that is not there is empty. */
  list(token: string | null, where?: { readonly key: string; readonly value: string }): Promise<EpisodePage>;
  /** Which of at most EPISODES_OF_PAGE ids are there. Throws `graph_not_found` where the graph is not. */
  present(ids: readonly string[]): Promise<Set<string>>;
  search(query: string): Promise<GraphFound>;
};

export type ZepOptions = {
  /** AGENTD_ZEP_URL; null: Zep's own. */
  readonly url: string | null;
  readonly allowedPrivateHosts: readonly string[];
  readonly clock: Clock;
  readonly secrets: SecretOpener;
  readonly resolve?: Resolve;
};

export type Zeps = {
  /** A workspace's graph in a store, with the datastore's own key. Each request has `timeoutMs`. Nothing is asked before the first call. */
  open(
    store: DatastoreRow & { readonly id: string },
    workspaceId: string,
    signal: AbortSignal,
    timeoutMs: number,
  ): Promise<ZepGraph>;
  /** Loads the client: at its first use some hundred milliseconds of a processor, which are no store's fault. */
  load(): Promise<unknown>;
  /** A talk in a store that is a memory. Each request has `timeoutMs`. */
  openMemory(
    store: DatastoreRow,
    talk: { readonly userId: string; readonly threadId: string },
    signal: AbortSignal,
    timeoutMs: number,
  ): Promise<ZepMemory>;
  /** Deletes what a store remembers of a workspace's people. Returns of how many. Each request has `timeoutMs`. */
  forgetMemories(
    store: DatastoreRow,
    workspaceId: string,
    signal: AbortSignal,
    timeoutMs: number,
  ): Promise<number>;
  close(): Promise<void>;
};

/** One for a process. */
export function openZeps(options: ZepOptions): Zeps {
  const own = options.url === null ? [] : [portedHost(new URL(options.url))];
  const allowed = parseAllowedHosts([...options.allowedPrivateHosts, ...own]);
  const transport = storeTransport({ ...options, service: ZEP, allowed });
  const standard = (options.url ?? 'https://api.getzep.com').replace(/\/+$/, '');

  // at the first use: most installations have no such datastore
  const load = () => import('@getzep/zep-cloud');
  const clientOf = async (
    store: DatastoreRow,
    signal: AbortSignal,
    timeoutMs: number,
  ): Promise<ZepClient> => {
    const apiKey = await openedKey(store, options.secrets, ZEP.name);
    const host = configText(store.config, 'host', 'base_url', 'baseUrl');
    const origin = host === null ? standard : storedOrigin(host, 'https', ZEP.name);
    const { ZepClient } = await load();
    return new ZepClient({
      apiKey,
      baseUrl: `${origin}${API}`,
      fetcher: zepFetcher(transport.fetchWithin(signal, timeoutMs)),
    });
  };

  return {
    load,
    async open(store, workspaceId, signal, timeoutMs) {
      const client = await clientOf(store, signal, timeoutMs);
      return zepGraph(client, `agentd-${workspaceId}-${store.id}`, signal);
    },
    async openMemory(store, talk, signal, timeoutMs) {
      return zepMemory(await clientOf(store, signal, timeoutMs), talk, signal);
    },
    async forgetMemories(store, workspaceId, signal, timeoutMs) {
      return forgetUsers(await clientOf(store, signal, timeoutMs), `agentd-${workspaceId}-`, signal);
    },
    close: () => transport.close(),
  };
}

function zepGraph(client: ZepClient, graphId: string, signal: AbortSignal): ZepGraph {
  const { graph } = client;
  const told = <T>(work: () => Promise<T>): Promise<T> => readable(signal, work);
  const orNothing = async <T>(work: () => Promise<T>, nothing: T): Promise<T> => {
    try {
      return await told(work);
    } catch (error) {
      if (error instanceof RemoteStoreError && error.code === 'graph_not_found') return nothing;
      throw error;
    }
  };
  const exists = (): Promise<boolean> =>
    orNothing(async () => (await graph.get(graphId)) !== undefined, false);
  const page = async (request: Zep.GraphEpisodeListRequest): Promise<EpisodePage> => {
    const answer = await graph.episode
      .listByGraphId(graphId, { limit: EPISODES_OF_PAGE, orderBy: 'uuid', direction: 'asc', ...request })
      .withRawResponse();
    return {
      episodes: episodesOf(answer.data),
      next: answer.rawResponse.headers.get('zep-next-cursor') || null,
    };
  };

  return {
    exists,
    async make() {
      try {
        await told(() => graph.create({ graphId }));
      } catch (error) {
        // made a moment ago, and its answer lost
        if (error instanceof RemoteStoreError && error.code === 'refused' && (await exists())) return;
        throw error;
      }
    },
    drop: () => orNothing(async () => void (await graph.delete(graphId)), undefined),
    async add(episodes) {
      const data = episodes.map(({ text, label, metadata }) => ({
        type: 'text' as const,
        data: cut(text, EPISODE_CHARACTERS),
        sourceDescription: label,
        metadata,
      }));
      const [first] = data;
      if (first === undefined) return [];
      // Several in one request: what an account may send is counted in requests a minute.
      return told(async () =>
        episodesOf(
          data.length === 1
            ? [await graph.add({ graphId, ...first })]
            : await graph.addBatch({ graphId, episodes: data }),
        ),
      );
    },
    delete: (id) => orNothing(async () => void (await graph.episode.delete(id)), undefined),
    list: (token, where) =>
      orNothing(
        () =>
          page({
            ...(token === null ? {} : { cursor: token }),
            ...(where === undefined
              ? {}
              : {
                  episodeMetadataFilters: {
                    type: 'and',
                    filters: [
                      { propertyName: where.key, comparisonOperator: '=', propertyValue: where.value },
                    ],
                  },
                }),
          }),
        { episodes: [], next: null },
      ),
    async present(ids) {
      const { episodes } = await told(() => page({ mentionedNodeUuids: [...ids] }));
      return new Set(episodes.map(({ id }) => id));
    },
    async search(text) {
      const query = cut(text, QUERY_CHARACTERS).trim();
      if (query === '') return { episodes: [], facts: [] };
      const [episodes, edges] = await told(() =>
        Promise.all([
          graph.search({ graphId, query, scope: 'episodes', limit: FOUND_EPISODES }),
          graph.search({ graphId, query, scope: 'edges', limit: FOUND_FACTS }),
        ]),
      );
      return {
        episodes: episodesOf(episodes.episodes).map(({ id }) => id),
        facts: (Array.isArray(edges.edges) ? edges.edges : []).slice(0, FOUND_FACTS).flatMap(factOf),
      };
    },
  };
}

function episodesOf(given: readonly Zep.Episode[] | undefined): ListedEpisode[] {
  return (Array.isArray(given) ? given : []).flatMap((episode: Partial<Zep.Episode> | null) =>
    isUuid(episode?.uuid)
      ? [{ id: episode.uuid.toLowerCase(), label: String(episode.sourceDescription ?? '') }]
      : [],
  );
}

/** What is no longer true is no fact. */
function factOf(edge: Partial<Zep.EntityEdge> | null): FoundFact[] {
  if (typeof edge?.fact !== 'string' || edge.fact.trim() === '' || edge.expiredAt || edge.invalidAt)
    return [];
  const episodes: unknown = edge.episodes;
  if (!Array.isArray(episodes) || !episodes.every(isUuid)) return [];
  // one line: what is said in it is data, and looks like nothing else
  const fact = cut(edge.fact.trim().replace(/\s+/g, ' '), FACT_CHARACTERS);
  return [{ fact, episodes: episodes.map((id) => id.toLowerCase()) }];
}

function isUuid(given: unknown): given is string {
  return typeof given === 'string' && /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(given);
}

/** The first characters, as Zep counts them, and no half of a pair. */
function cut(text: string, characters: number): string {
  return text.length <= characters ? text : Array.from(text).slice(0, characters).join('');
}
