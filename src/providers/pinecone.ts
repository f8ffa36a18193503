/**
 * Pinecone by its official client.
 *
 * The client brings the protocol; connections, deadlines, limits and retries are ours: it would send a key to any host, wait for ever,
 * try again at once, and forget what a refusal said.
 */
import { createHash } from 'node:crypto';
import type { Clock } from '../clock.ts';
import type { SecretOpener } from '../secrets.ts';
import { parseAllowedHosts } from './guarded-address.ts';
import type { Resolve } from './guarded-connect.ts';
import { RemoteStoreError } from './remote-store-error.ts';
import { type StoreService, storeTransport } from './remote-store-fetch.ts';
import {
  configText,
  type DatastoreRow,
  openedKey,
  portedHost,
  storedOrigin,
} from './remote-store-settings.ts';

/** Of one request, by Pinecone's documentation: 2 MB and 1,000 vectors of an upsert, 1,000 ids of a deletion. */
const UPSERT_BYTES = 1_900_000;
const UPSERT_VECTORS = 1_000;
const DELETE_IDS = 1_000;
const LIST_PAGE = 100;
/** How long the host and the dimensions of an index are believed. */
const INDEX_MS = 10 * 60_000;
const MOST_INDEXES = 1_000;

/** Pinecone as the transport sees it. */
const PINECONE: StoreService = {
  name: 'Pinecone',
  ownHost: /(?:^|\.)pinecone\.io$/,
  // each index has a host of its own
  connections: 8,
  passedHeaders: ['api-key', 'content-type', 'accept', 'x-pinecone-api-version'],
  answerHeaders: [],
  statusError(where, status, text) {
    if (status === 404) {
      return new RemoteStoreError(
        'index_not_found',
        `${where} knows no such index (404). Correct the datastore's index or host.`,
      );
    }
    if (status !== 400 || !/dimension/i.test(text)) return null;
    return new RemoteStoreError(
      'dimension_mismatch',
      `The index at ${where} has another number of dimensions than the embedding model. Make an index with those of ` +
        'knowledge_sources.embedding_dimensions and name it in the datastore’s config.',
    );
  },
};

export type StoredVector = {
  readonly id: string;
  readonly values: readonly number[];
  /** No null: Pinecone takes none. */
  readonly metadata: Readonly<Record<string, string | number>>;
};

export type VectorPage = { readonly ids: readonly string[]; readonly next: string | null };

/** An index, in the namespaces of its workspaces. All methods throw RemoteStoreError, or the signal's reason. */
export type PineconeIndex = {
  /** Null: not known before it refuses. */
  readonly dimension: number | null;
  /** In as many requests as its limits need. Overwrites what has the same id. */
  upsert(namespace: string, vectors: readonly StoredVector[]): Promise<void>;
  delete(namespace: string, ids: readonly string[]): Promise<void>;
  /** Ids that begin with a prefix, a page at a time. A namespace that is not there is empty. */
  list(namespace: string, prefix: string, token?: string | null): Promise<VectorPage>;
  /** Ids of the nearest, among those whose metadata `key` is one of the values. */
  query(
    namespace: string,
    vector: readonly number[],
    topK: number,
    among: { readonly key: string; readonly values: readonly string[] },
  ): Promise<string[]>;
};

export type PineconeOptions = {
  /** AGENTD_PINECONE_URL; null: Pinecone's own. */
  readonly url: string | null;
  readonly allowedPrivateHosts: readonly string[];
  readonly clock: Clock;
  readonly secrets: SecretOpener;
  readonly resolve?: Resolve;
};

export type Pinecones = {
  /** Opens a datastore's index with its own key. */
  open(datastore: DatastoreRow, signal: AbortSignal, timeoutMs: number): Promise<PineconeIndex>;
  close(): Promise<void>;
};

/** One for a process. Nothing is asked of the outside before the first use. */
export function openPinecones(options: PineconeOptions): Pinecones {
  const own = options.url === null ? [] : [portedHost(new URL(options.url))];
  const allowed = parseAllowedHosts([...options.allowedPrivateHosts, ...own]);
  const transport = storeTransport({ ...options, service: PINECONE, allowed });
  const known = new Map<
    string,
    { readonly until: number; readonly host: string; readonly dimension: number | null }
  >();

  return {
    async open(datastore, signal, timeoutMs) {
      const settings = await settingsOf(datastore, options.secrets);
      // loaded at the first use: most installations have no such datastore
      const { Pinecone } = await import('@pinecone-database/pinecone');
      const place = createHash('sha256')
        .update(JSON.stringify([datastore.datastore_id, settings]))
        .digest('base64');
      let failure: unknown = null;
      const fetchApi = transport.fetchWithin(signal, timeoutMs, (error) => {
        failure = error;
      });
      /** The client wraps what the transport threw; that is what says what happened. */
      const told = async <T>(work: () => Promise<T>): Promise<T> => {
        failure = null;
        try {
          return await work();
        } catch (error) {
          signal.throwIfAborted();
          // made anew, an index of the same name has another host
          if (!(failure instanceof RemoteStoreError && failure.code === 'rate_limited')) known.delete(place);
          if (failure !== null) throw failure;
          throw new RemoteStoreError('store_error', "The store's answer can't be read. It is tried again.", {
            transient: true,
            cause: error,
          });
        }
      };
      const client = new Pinecone({
        apiKey: settings.apiKey,
        controllerHostUrl: options.url ?? 'https://api.pinecone.io',
        // the client's type of fetch is that of browsers
        fetchApi: fetchApi as unknown as typeof fetch,
        maxRetries: 0,
      });
      let found = known.get(place);
      if (!found || found.until < options.clock.elapsed()) {
        found = { until: options.clock.elapsed() + INDEX_MS, host: settings.host ?? '', dimension: null };
        if (settings.host === null) {
          const about = await told(() => client.describeIndex(settings.index ?? ''));
          found = { ...found, host: about.host ?? '', dimension: dimensionOf(about) };
        }
        known.delete(place);
        known.set(place, found);
        if (known.size > MOST_INDEXES) known.delete(known.keys().next().value as string);
      }
      const { host, dimension } = found;
      const scheme = options.url?.startsWith('http:') && settings.host === null ? 'http' : 'https';
      const url = storedOrigin(host, scheme, PINECONE.name);
      const at = (namespace: string) => client.index({ host: url, namespace });
      /** A namespace comes into being with its first vector: before that there is nothing in it. */
      const orNothing = async <T>(work: () => Promise<T>, nothing: T): Promise<T> => {
        try {
          return await told(work);
        } catch (error) {
          if (error instanceof RemoteStoreError && error.code === 'index_not_found') return nothing;
          throw error;
        }
      };
      return {
        dimension,
        async upsert(namespace, vectors) {
          for (const records of batches(vectors)) {
            await told(() => at(namespace).upsert({ records: records as never }));
          }
        },
        async delete(namespace, ids) {
          for (let from = 0; from < ids.length; from += DELETE_IDS) {
            const some = ids.slice(from, from + DELETE_IDS);
            await orNothing(() => at(namespace).deleteMany({ ids: some }), undefined);
          }
        },
        async list(namespace, prefix, token) {
          const page = await orNothing(
            () =>
              at(namespace).listPaginated({
                prefix,
                limit: LIST_PAGE,
                ...(token ? { paginationToken: token } : {}),
              }),
            {},
          );
          return {
            ids: (page.vectors ?? []).flatMap(({ id }) => (typeof id === 'string' ? [id] : [])),
            next: page.pagination?.next || null,
          };
        },
        async query(namespace, vector, topK, among) {
          const answer = await orNothing(
            () =>
              at(namespace).query({
                vector: [...vector],
                topK,
                includeMetadata: false,
                includeValues: false,
                filter: { [among.key]: { $in: [...among.values] } },
              }),
            { matches: [], namespace },
          );
          return answer.matches.flatMap(({ id }) => (typeof id === 'string' ? [id] : []));
        },
      };
    },
    close: () => transport.close(),
  };
}

/** Parts that fit into a request each. */
function* batches(vectors: readonly StoredVector[]): Generator<readonly StoredVector[]> {
  // no number takes more than 25 bytes, and metadata is ours: to measure it means to write it all twice
  const most = vectors.reduce((sum, vector) => sum + vector.values.length * 25 + 9_000, 0);
  if (vectors.length > 0 && vectors.length <= UPSERT_VECTORS && most <= UPSERT_BYTES) {
    yield vectors;
    return;
  }
  let batch: StoredVector[] = [];
  let bytes = 0;
  for (const vector of vectors) {
    const own = Buffer.byteLength(JSON.stringify(vector)) + 1;
    if (batch.length > 0 && (bytes + own > UPSERT_BYTES || batch.length === UPSERT_VECTORS)) {
      yield batch;
      batch = [];
      bytes = 0;
    }
    batch.push(vector);
    bytes += own;
  }
  if (batch.length > 0) yield batch;
}

type Settings = { readonly apiKey: string; readonly index: string | null; readonly host: string | null };

/**
 * What a config says: `api_key` with `index` or `host`, in the spellings that applications have. Whatever else it holds means nothing,
 * a namespace least of all: those are the workspaces'.
 */
async function settingsOf(datastore: DatastoreRow, secrets: SecretOpener): Promise<Settings> {
  const apiKey = await openedKey(datastore, secrets, PINECONE.name);
  const host = configText(datastore.config, 'host', 'index_host', 'indexHost');
  const index = configText(datastore.config, 'index', 'index_name', 'indexName');
  if (host === null && (index === null || !/^[a-z0-9][a-z0-9-]{0,99}$/i.test(index))) {
    throw new RemoteStoreError(
      'invalid_config',
      'The datastore does not say which index it is. Store its name as index, or its address as host, in the config.',
    );
  }
  return { apiKey, index, host };
}

/** Null where the client can't say it of an index of this kind. */
function dimensionOf(about: { readonly dimension?: number | undefined }): number | null {
  try {
    return about.dimension ?? null;
  } catch {
    return null;
  }
}
