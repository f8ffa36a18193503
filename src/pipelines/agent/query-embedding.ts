/** A query as vectors, so that knowledge is found by meaning; a provider that is slow or away costs a moment, and then words must do. */
import { createHash } from 'node:crypto';
import type { Logger } from 'pino';
import type { Clock } from '../../clock.ts';
import type { Queryable } from '../../db/database.ts';
import { citableFacts } from '../../db/graph-search.ts';
import {
  type Chunk,
  findVectorModels,
  type QueryVector,
  searchChunks,
  type VectorModel,
} from '../../db/knowledge.ts';
import type { StoredCredential } from '../../db/runs.ts';
import { DocumentError } from '../../providers/document-error.ts';
import { EmbeddingError } from '../../providers/embedding-error.ts';
import type { Embedder } from '../../providers/embeddings.ts';
import type { FoundInGraphs, RemoteSearch } from './remote-search.ts';

/** What an embedding cost, to be booked with what it was made for. */
export type PaidEmbedding = {
  readonly provider: string;
  readonly model: string;
  readonly tokens: number;
  /** Millionths of a US dollar. */
  readonly costMicros: number;
};

export type KnowledgeQuery = {
  readonly workspaceId: string;
  readonly agentId: string;
  readonly text: string;
  /** Null: as many as the datastores say. */
  readonly limit: number | null;
  readonly signal: AbortSignal;
};

export type FoundKnowledge = {
  readonly chunks: readonly Chunk[];
  readonly paid: readonly PaidEmbedding[];
  /** Why it was searched by words alone; null where it was not, or where there is nothing but words. */
  readonly note: string | null;
};

type ChosenForQuery = { readonly provider: string; readonly embedder: Embedder };

export type QueryEmbedderDeps = {
  readonly clock: Clock;
  readonly log: Logger;
  /** Embeds for a workspace with its key, else the environment's, as `model` says. Throws DocumentError where no key can be used. */
  readonly embedderOf: (
    owner: { readonly workspace_id: string; readonly credentials: readonly StoredCredential[] },
    model: VectorModel,
  ) => ChosenForQuery | Promise<ChosenForQuery>;
  /** How long a search waits for its vectors, in milliseconds. */
  readonly deadlineMs?: number;
  /** Asks the stores that vectors and passages are copied to. */
  readonly remote?: RemoteSearch;
  /** Queries that are remembered; 1,000 of 1,536 dimensions are 6 MB. */
  readonly cached?: number;
};

const DEADLINE_MS = 2_000;
const CACHED = 1_000;
/** After a failure a workspace's searches use words alone for so long: none of them waits for what is known to be away. */
const REST_MS = 10_000;

/** Embeds queries, and remembers those of each workspace: no tenant learns by the time it takes what another has asked. */
export class QueryEmbedder {
  readonly #deps: QueryEmbedderDeps;
  readonly #known = new Map<string, Float32Array>();
  readonly #resting = new Map<string, { readonly until: number; readonly note: string }>();

  constructor(deps: QueryEmbedderDeps) {
    this.#deps = deps;
  }

  /**
   * The query's vectors, one for each model that can be asked in time. `paid` has what was spent, also where the answer can't be used.
   * Throws the signal's reason if that fired; nothing else but what the database throws.
   */
  async embed(
    db: Queryable,
    query: Omit<KnowledgeQuery, 'limit'>,
  ): Promise<{ vectors: QueryVector[]; paid: PaidEmbedding[]; note: string | null }> {
    const { models, credentials } = await findVectorModels(db, query.workspaceId, query.agentId);
    return this.embedFor({ workspace_id: query.workspaceId, credentials }, models, query.text, query.signal);
  }

  /** The same for models that are known. */
  async embedFor(
    owner: { readonly workspace_id: string; readonly credentials: readonly StoredCredential[] },
    models: readonly VectorModel[],
    text: string,
    signal: AbortSignal,
  ): Promise<{ vectors: QueryVector[]; paid: PaidEmbedding[]; note: string | null }> {
    const vectors: QueryVector[] = [];
    const paid: PaidEmbedding[] = [];
    let note: string | null = null;
    await Promise.all(
      models.map(async (model) => {
        const failed = await this.#embedOne(owner, model, { text, signal }, vectors, paid);
        note ??= failed;
      }),
    );
    return { vectors, paid, note };
  }

  /** The vectors with what other stores found near them. */
  async ask(
    db: Queryable,
    query: KnowledgeQuery,
    vectors: readonly QueryVector[],
  ): Promise<readonly QueryVector[]> {
    const { remote } = this.#deps;
    if (!remote) return vectors;
    return Promise.all(
      vectors.map(async (vector) => {
        const hits = await remote.find(db, { ...query, vector });
        return hits === null ? vector : { ...vector, remote: hits };
      }),
    );
  }

  /** What graphs found, which need no vector; null: nothing. */
  async askGraphs(db: Queryable, query: KnowledgeQuery): Promise<FoundInGraphs | null> {
    return (await this.#deps.remote?.findInGraphs(db, query)) ?? null;
  }

  async #embedOne(
    owner: { readonly workspace_id: string; readonly credentials: readonly StoredCredential[] },
    model: VectorModel,
    { text, signal }: Pick<KnowledgeQuery, 'text' | 'signal'>,
    vectors: QueryVector[],
    paid: PaidEmbedding[],
  ): Promise<string | null> {
    const key = sha256([owner.workspace_id, model.model, model.dimensions, text]);
    const known = this.#known.get(key);
    if (known) {
      remember(this.#known, key, known, this.#deps.cached ?? CACHED);
      vectors.push({ ...model, vector: known });
      return null;
    }
    const place = sha256([owner.workspace_id, model.model, model.dimensions]);
    const rest = this.#resting.get(place);
    if (rest && rest.until > this.#deps.clock.elapsed()) return rest.note;
    const { clock } = this.#deps;
    const deadline = new AbortController();
    const timer = clock.after(this.#deps.deadlineMs ?? DEADLINE_MS, () =>
      deadline.abort(new Error('deadline')),
    );
    let provider = 'none';
    try {
      signal.throwIfAborted();
      const chosen = await this.#deps.embedderOf(owner, model);
      provider = chosen.provider;
      const either = AbortSignal.any([signal, deadline.signal]);
      const answer = await chosen.embedder.embed([text], { signal: either });
      book(paid, provider, model, answer);
      const [vector] = answer.vectors;
      if (!vector || vector.length !== model.dimensions)
        return this.#fails(place, model, 'wrong_dimensions', 'its answer has other dimensions');
      remember(this.#known, key, vector, this.#deps.cached ?? CACHED);
      vectors.push({ ...model, vector });
      return null;
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      if (deadline.signal.aborted) return this.#fails(place, model, 'timeout', 'it did not answer in time');
      if (error instanceof EmbeddingError && error.usage) book(paid, provider, model, error.usage);
      const code = error instanceof DocumentError ? error.code : 'unexpected';
      return this.#fails(place, model, code, code.replaceAll('_', ' '), error);
    } finally {
      timer.cancel();
    }
  }

  #fails(place: string, model: VectorModel, code: string, why: string, error?: unknown): string {
    const note = `the embedding model ${model.model} could not be asked (${why})`;
    remember(this.#resting, place, { until: this.#deps.clock.elapsed() + REST_MS, note }, CACHED);
    this.#deps.log.warn(
      {
        event: 'query_not_embedded',
        model: model.model,
        code,
        ...(code === 'unexpected' ? { err: error } : {}),
      },
      'a search is made by words alone',
    );
    return note;
  }
}

/** Searches what an agent knows, by meaning too where an embedder is given. Throws what the database throws, or the signal's reason. */
export async function findKnowledge(
  deps: { readonly db: Queryable; readonly queries?: QueryEmbedder },
  query: KnowledgeQuery,
  onPaid: (paid: readonly PaidEmbedding[]) => void = () => {},
): Promise<FoundKnowledge> {
  const { queries } = deps;
  // side by side: neither needs the other
  const [{ paid, note, vectors }, graph] = await Promise.all([
    embedQuery(deps.db, queries, query, onPaid),
    queries?.askGraphs(deps.db, query),
  ]);
  const chunks = await searchChunks(deps.db, {
    workspaceId: query.workspaceId,
    agentId: query.agentId,
    query: query.text,
    limit: query.limit,
    vectors,
    graph: graph?.hits ?? [],
  });
  if (!graph || graph.facts.length === 0) return { chunks, paid, note };
  const ids = chunks.map((chunk) => chunk.id);
  const cited = await citableFacts(deps.db, query, graph.facts, ids);
  return {
    chunks: chunks.map((chunk) => {
      const facts = cited.get(chunk.id);
      return facts ? { ...chunk, facts } : chunk;
    }),
    paid,
    note,
  };
}

async function embedQuery(
  db: Queryable,
  queries: QueryEmbedder | undefined,
  query: KnowledgeQuery,
  onPaid: (paid: readonly PaidEmbedding[]) => void,
): Promise<{
  readonly vectors: readonly QueryVector[];
  readonly paid: readonly PaidEmbedding[];
  readonly note: string | null;
}> {
  if (!queries) return { vectors: [], paid: [], note: null };
  const embedded = await queries.embed(db, query);
  onPaid(embedded.paid);
  return { ...embedded, vectors: await queries.ask(db, query, embedded.vectors) };
}

function book(
  paid: PaidEmbedding[],
  provider: string,
  { model }: VectorModel,
  { tokens, costMicros }: { readonly tokens: number; readonly costMicros: number },
): void {
  paid.push({ provider, model, tokens, costMicros: Math.round(costMicros) });
}

/** The newest entry; the least recently used leaves. */
function remember<T>(map: Map<string, T>, key: string, value: T, limit: number): void {
  map.delete(key);
  map.set(key, value);
  if (map.size <= limit) return;
  const oldest = map.keys().next();
  if (!oldest.done) map.delete(oldest.value);
}

function sha256(parts: readonly unknown[]): string {
  return createHash('sha256').update(JSON.stringify(parts)).digest('base64');
}
