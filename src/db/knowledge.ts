/** What an agent knows, searched. */
import type { Queryable } from './database.ts';

/** A passage of a source. */
export type Chunk = {
  readonly id: string;
  readonly source: string;
  readonly content: string;
  readonly page: number | null;
  readonly heading: string | null;
  /** Text rank; only its order means something. */
  readonly rank: number;
};

/**
 * The passages that fit a query best, by text rank, from the sources that an agent may read: those of the
 * agent, of its active datastores and assigned media, and those of its workspace that belong to no agent.
 * Never crosses a workspace. Best first; empty if nothing fits.
 */
export async function searchChunks(
  db: Queryable,
  search: { workspaceId: string; agentId: string; query: string; limit: number },
): Promise<Chunk[]> {
  return db.query<Chunk>(
    {
      name: 'search_chunks',
      text: `
with query as (
  -- any of the words: a question rarely repeats a passage
  select nullif(replace(plainto_tsquery('simple', $3)::text, '&', '|'), '')::tsquery as words
),
source as (
  select k.id, k.name, k.generation
    from public.knowledge_sources k
   where k.workspace_id = $1
     and ((k.agent_id is null and k.datastore_id is null and k.media_id is null)
          or k.agent_id = $2
          or exists (select 1 from public.agent_datastores d
                      where d.agent_id = $2 and d.datastore_id = k.datastore_id and d.is_active)
          or exists (select 1 from public.agent_media_assignments m
                      where m.agent_id = $2 and m.media_id = k.media_id))
)
select c.id, s.name as source, c.content, c.page, array_to_string(c.heading_path, ' › ') as heading,
       ts_rank_cd(c.content_tsv, q.words, 1) as rank
  from query q
  join public.knowledge_chunks c on c.content_tsv @@ q.words
  join source s on s.id = c.source_id and s.generation = c.generation
 where c.workspace_id = $1
 order by rank desc, c.source_id, c.chunk_index
 limit $4`,
    },
    [search.workspaceId, search.agentId, search.query, search.limit],
  );
}
