/** Graphs that may be asked for what an agent looks for, and which of their facts can be cited. */
import type { Queryable } from './database.ts';
import { IS_RESTED } from './remote-vectors.ts';

/** Whether the agent $2 may read a source `k` of a datastore. */
const MAY_READ = `(k.agent_id = $2
             or exists (select 1 from public.agent_datastores a
                         where a.agent_id = $2 and a.datastore_id = k.datastore_id and a.is_active)
             or exists (select 1 from public.agent_media_assignments a where a.agent_id = $2 and a.media_id = k.media_id))`;

/** A graph that can be asked for what an agent may search. */
export type SearchableGraph = {
  readonly id: string;
  readonly datastore_id: string;
  readonly workspace_id: string;
  readonly config: unknown;
};

/** Graphs that have the generation which is searched of something that an agent may read. */
export function findSearchableGraphs(
  db: Queryable,
  search: { readonly workspaceId: string; readonly agentId: string },
  limit: number,
): Promise<SearchableGraph[]> {
  return db.query<SearchableGraph>(
    {
      name: 'find_searchable_graphs',
      text: `
select s.id, s.datastore_id, s.workspace_id, d.config
  from agentd.zep_graphs g
  join agentd.vector_stores s on s.id = g.store_id and s.kind = 'getzep' and s.retired_at is null
  join public.datastores d on d.id = s.datastore_id
 where g.workspace_id = $1 and ${IS_RESTED}
   and exists (
     select 1 from agentd.vector_copies c
       join public.knowledge_sources k on k.id = c.source_id and k.generation = c.generation and k.workspace_id = c.workspace_id
      where c.store_id = s.id and c.workspace_id = $1 and k.processing_status <> 'archived' and k.chunk_count > 0
        and ${MAY_READ})
 order by s.id
 limit $3`,
    },
    [search.workspaceId, search.agentId, limit],
  );
}

/** A fact as a graph has it, with all episodes that it is from. */
export type GraphFact = {
  readonly store: string;
  readonly fact: string;
  readonly episodes: readonly string[];
};

/** Episodes of a fact; one that is from more is nobody's in particular. */
const MOST_EPISODES = 100;
const FACTS_OF_CHUNK = 3;

/**
 * Facts by the passages that they are from, in their order, a few for each. A fact that is also from elsewhere is left out: from a
 * passage that the agent may not read, that is no longer searched, or that the ledger does not have.
 */
export async function citableFacts(
  db: Queryable,
  search: { readonly workspaceId: string; readonly agentId: string },
  facts: readonly GraphFact[],
  chunkIds: readonly string[],
): Promise<ReadonlyMap<string, readonly string[]>> {
  const given = facts.flatMap(({ store, episodes }, fact) =>
    episodes.length > MOST_EPISODES ? [] : episodes.map((episode) => ({ fact, store, episode })),
  );
  const cited = new Map<string, string[]>();
  if (given.length === 0 || chunkIds.length === 0) return cited;
  const rows = await db.query<{ fact: number; chunk_id: string }>(
    {
      name: 'citable_graph_facts',
      text: `
with places as (
  select f.fact, k.id as source_id, e.generation, e.chunk_index
    from jsonb_to_recordset($3::jsonb) as f (fact integer, store uuid, episode uuid)
    left join agentd.graph_episodes e on e.store_id = f.store and e.episode_id = f.episode and e.workspace_id = $1
    left join public.knowledge_sources k
      on k.id = e.source_id and k.generation = e.generation and k.workspace_id = $1 and k.processing_status <> 'archived'
     and ${MAY_READ}
),
whole as (
  select p.fact from places p group by p.fact having bool_and(p.source_id is not null)
)
select distinct p.fact, c.id as chunk_id
  from places p
  join whole w on w.fact = p.fact
  join public.knowledge_chunks c on c.source_id = p.source_id and c.generation = p.generation and c.chunk_index = p.chunk_index
 where c.id = any ($4::uuid[])
 order by p.fact`,
    },
    [search.workspaceId, search.agentId, JSON.stringify(given), chunkIds],
  );
  for (const { fact, chunk_id: chunk } of rows) {
    const text = facts[fact]?.fact;
    const some = cited.get(chunk) ?? [];
    if (text !== undefined && some.length < FACTS_OF_CHUNK) cited.set(chunk, [...some, text]);
  }
  return cited;
}
