/** What an agent knows, searched. */
import type { Queryable, Statement } from './database.ts';
import type { StoredCredential } from './runs.ts';

/** A passage of a source. */
export type Chunk = {
  readonly id: string;
  readonly source: string;
  readonly content: string;
  readonly page: number | null;
  readonly heading: string | null;
  /** As its datastore's metric has it; null where there was no vector to compare. */
  readonly similarity: number | null;
  /** Of nearness and words together; only its order means something. */
  readonly score: number;
  /** What a graph says that it says. */
  readonly facts?: readonly string[];
};

/** A model whose vectors passages have. */
export type VectorModel = { readonly model: string; readonly dimensions: number };

/** What another store found nearest, as places of the ledger, and which sources, in which generations, it was asked for. */
export type RemoteHits = {
  readonly sources: readonly string[];
  readonly generations: readonly number[];
  readonly hits: readonly { readonly source: string; readonly generation: number; readonly index: number }[];
};

/** Episodes that graphs found, best first, as those name them. */
export type GraphHits = readonly { readonly store: string; readonly episode: string }[];

/** A query as one model sees it. */
export type QueryVector = VectorModel & {
  readonly vector: ArrayLike<number>;
  /** Where sources' vectors were asked for elsewhere; of all others, and where too few were found, the database's are searched. */
  readonly remote?: RemoteHits;
};

/** Models beyond these, by passages, are not asked: a workspace that changes its model has two. */
const MOST_MODELS = 3;
/** Passages of a search at most. */
const MOST_CHUNKS = 20;

const searchBy = (call: string): string => `
select m.id, m.source_name as source, m.content, m.page, array_to_string(m.heading_path, ' › ') as heading, m.similarity, m.score
  from ${call}
         query_embedding => $1, match_count => $2, workspace_id => $3, agent_id => $4, query_text => $5, embedding_model => $6) m`;
const SEARCH: Statement = { name: 'search_chunks', text: searchBy('public.match_knowledge_chunks(') };
const SEARCH_REMOTE: Statement = {
  name: 'search_remote_chunks',
  text: searchBy('agentd.match_remote_chunks(remote_sources => $7, remote_generations => $8, hits => $9,'),
};

/**
 * The passages that fit a query best, by nearness and words together, from the sources that an agent may read: those of the
 * agent, of its active datastores and assigned media, and those of its workspace that belong to no agent.
 * Never crosses a workspace. Best first; empty if nothing fits.
 *
 * @param search.vectors the query, embedded by each of the models that are searched; none: by words alone
 * @param search.graph what graphs found: of no weight where the ledger has no such passage, or the agent may not read it
 * @param search.limit null: as many as its datastores say (max_results), else 5
 */
export async function searchChunks(
  db: Queryable,
  search: {
    readonly workspaceId: string;
    readonly agentId: string;
    readonly query: string;
    readonly limit: number | null;
    readonly vectors?: readonly QueryVector[];
    readonly graph?: GraphHits;
  },
): Promise<Chunk[]> {
  const graph = search.graph ?? [];
  const vectors = search.vectors?.length ? search.vectors : [null];
  const found = await Promise.all(
    vectors.map((vector) =>
      db.query<Chunk>(vector?.remote || graph.length > 0 ? SEARCH_REMOTE : SEARCH, [
        vector === null ? null : `[${Array.from(vector.vector).join(',')}]`,
        search.limit,
        search.workspaceId,
        search.agentId,
        search.query,
        vector?.model ?? null,
        ...(vector?.remote || graph.length > 0
          ? [
              vector?.remote?.sources ?? [],
              vector?.remote?.generations ?? [],
              JSON.stringify([...(vector?.remote?.hits ?? []), ...graph]),
            ]
          : []),
      ]),
    ),
  );
  // Each search knows the words and its own model's vectors: a passage counts where it counts most.
  const best = new Map<string, Chunk>();
  for (const chunk of found.flat()) {
    const other = best.get(chunk.id);
    if (!other || chunk.score > other.score) best.set(chunk.id, chunk);
  }
  const most = search.limit ?? Math.max(...found.map((chunks) => chunks.length));
  return [...best.values()].sort((a, b) => b.score - a.score).slice(0, Math.min(most, MOST_CHUNKS));
}

/** What a query must be embedded with to be compared with what an agent knows, and the workspace's keys to do so. */
export async function findVectorModels(
  db: Queryable,
  workspaceId: string,
  agentId: string,
): Promise<{ readonly models: readonly VectorModel[]; readonly credentials: readonly StoredCredential[] }> {
  const [row] = await db.query<{ models: VectorModel[]; credentials: StoredCredential[] }>(
    {
      name: 'find_vector_models',
      text: `
select coalesce((
         select jsonb_agg(jsonb_build_object('model', m.model, 'dimensions', m.dimensions) order by m.chunks desc)
           from (
             select k.embedding_model as model, k.embedding_dimensions as dimensions, sum(k.chunk_count) as chunks
               from public.knowledge_sources k
              where k.workspace_id = $1 and k.processing_status <> 'archived' and k.chunk_count > 0
                and k.embedding_model is not null and k.embedding_dimensions > 0
                and ((k.agent_id is null and k.datastore_id is null and k.media_id is null)
                     or k.agent_id = $2
                     or exists (select 1 from public.agent_datastores d
                                 where d.agent_id = $2 and d.datastore_id = k.datastore_id and d.is_active)
                     or exists (select 1 from public.agent_media_assignments m
                                 where m.agent_id = $2 and m.media_id = k.media_id))
              group by 1, 2
              order by 3 desc
              limit ${MOST_MODELS}) m), '[]') as models,
       coalesce((
         select jsonb_agg(jsonb_build_object('id', w.id, 'provider', w.provider, 'secret', w.api_key,
                                             'vault_id', w.vault_api_key_id) order by w.created_at)
           from public.workspace_llm_config w
          where w.workspace_id = $1 and w.is_active), '[]') as credentials`,
    },
    [workspaceId, agentId],
  );
  return row ?? { models: [], credentials: [] };
}

/**
 * Makes the index of a model's vectors where there is none, before its first passages are stored. False: not now, somebody holds the
 * table; the search is exact until the next document asks again.
 */
export async function ensureVectorIndex(db: Queryable, { model, dimensions }: VectorModel): Promise<boolean> {
  const [row] = await db.query<{ there: boolean }>(
    { name: 'ensure_vector_index', text: 'select agentd.ensure_vector_index($1, $2) as there' },
    [model, dimensions],
  );
  return row?.there ?? false;
}

/**
 * Passages of a model from which its vectors have an index. Of so few an exact search takes some milliseconds, while inserting into the
 * graph takes PostgreSQL five for each passage, six times as long as making it of all of them at once: it was two thirds of all
 * that ingesting fifty documents cost. Making it holds the table's writers for as many seconds as there are thousands.
 */
const INDEXED_FROM = 5_000;

/**
 * Makes the index of a model's vectors where there is none and there are enough of them, with those that are to come. False: not
 * now, and the search is exact until the next document asks again.
 *
 * @param coming passages that are about to be stored
 */
export async function prepareVectorIndex(
  db: Queryable,
  { model, dimensions }: VectorModel,
  coming: number,
): Promise<boolean> {
  const [row] = await db.query<{ there: boolean }>(
    {
      name: 'prepare_vector_index',
      text: `
select case
         when exists (select 1 from pg_catalog.pg_class c
                       where c.relnamespace = 'public'::regnamespace and c.relname = agentd.vector_index_name($1, $2)) then true
         when $3 + (select coalesce(sum(k.chunk_count), 0) from public.knowledge_sources k
                     where k.embedding_model = $1 and k.embedding_dimensions = $2
                       and (k.embedding_model is not null) is true) < $4 then false
         else agentd.ensure_vector_index($1, $2)
       end as there`,
    },
    [model, dimensions, coming, INDEXED_FROM],
  );
  return row?.there ?? false;
}

/**
 * Drops the indexes of models that no passage has any more, one after the other. Returns how many; one whose table somebody holds stays.
 *
 * @param keep a model that is about to be used; null: none
 */
export async function dropUnusedVectorIndexes(
  db: Queryable,
  keep: VectorModel | null = null,
): Promise<number> {
  for (let dropped = 0; ; dropped++) {
    const [row] = await db.query<{ dropped: number }>(
      {
        name: 'drop_unused_vector_indexes',
        text: 'select agentd.drop_unused_vector_indexes($1, $2) as dropped',
      },
      [keep?.model ?? null, keep?.dimensions ?? null],
    );
    if (!row?.dropped) return dropped;
  }
}
