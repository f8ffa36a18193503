/** agentd.match_remote_chunks for what a graph has found as well: one more list that is ranked together with nearness and words. */
import { type Limits, METRIC } from './match-knowledge-chunks.ts';
import { matchRemoteChunks } from './match-remote-chunks.ts';
import { changed } from './run-sql.ts';

/**
 * A graph finds by facts and by its own nearness: its order says what no vector of the ledger does, and so counts beside them. The
 * ledger says which passage an episode is, and whether it may be found: of the generation that is searched, of the workspace and the
 * agent, and, where there is a vector to compare, as like as the datastore's threshold asks.
 *
 * @param home the quoted schema of pgvector
 */
export function matchGraphChunks(home: string, limits: Limits): string {
  const distance = `case x.metric when 'l2' then c.embedding operator(${home}.<->) v_query when 'ip' then c.embedding operator(${home}.<#>) v_query
                                else c.embedding operator(${home}.<=>) v_query end`;
  const edits: readonly (readonly [string | RegExp, string])[] = [
    [
      '-- As public.match_knowledge_chunks, for sources whose vectors a store has as well: hits are what it found of them, in that generation.\ncreate function',
      `-- As public.match_knowledge_chunks, with what other stores found. hits: of remote_sources the places of vectors, in that generation; of
-- graphs (store, episode) episodes, best first.
create or replace function`,
    ],
    [
      "  v_worded      uuid[] := '{}';\n",
      "  v_worded      uuid[] := '{}';\n  v_graphed     uuid[] := '{}';\n",
    ],
    [
      '  return query\n    with near as (',
      `  select coalesce(array_agg(f.id order by f.place, f.id), '{}') into v_graphed
    from (
      select c.id, min(h.place) as place
        from rows from (jsonb_to_recordset(hits) as (store uuid, episode uuid)) with ordinality h (store, episode, place)
        join agentd.graph_episodes g on g.store_id = h.store and g.episode_id = h.episode and g.workspace_id = v_workspace
        join unnest(v_ids, v_generations) e (source_id, generation) on e.source_id = g.source_id and e.generation = g.generation
        join public.knowledge_chunks c
          on c.source_id = g.source_id and c.generation = g.generation and c.chunk_index = g.chunk_index and c.workspace_id = v_workspace
        join public.knowledge_sources k on k.id = c.source_id
        left join public.datastores d on d.id = k.datastore_id
       cross join lateral (
         select ${METRIC} as metric, coalesce(match_threshold, d.similarity_threshold) as threshold) x
       where x.threshold is null or v_query is null or ${home}.vector_norm(v_query) = 0
          or case when length(c.embedding_bits) = v_dims and (v_model is null or c.embedding_model = v_model)
               then case x.metric when 'l2' then 1 / (1 + (${distance})) when 'ip' then -(${distance}) else 1 - (${distance}) end >= x.threshold
               else true end
       group by c.id) f;

  return query
    with near as (`,
    ],
    [
      '    ranked as (\n      select coalesce(n.id, w.id) as id,',
      `    graphed as (
      select u.id, u.place from unnest(v_graphed) with ordinality u (id, place)
    ),
    ranked as (
      select coalesce(n.id, w.id, g.id) as id,`,
    ],
    [
      'coalesce(1.0 / (60 + w.place), 0)::double precision as score\n        from near n full join worded w on w.id = n.id\n',
      `coalesce(1.0 / (60 + w.place), 0)::double precision
               + coalesce(1.0 / (60 + g.place), 0)::double precision as score
        from near n
        full join worded w on w.id = n.id
        full join graphed g on g.id = coalesce(n.id, w.id)
`,
    ],
  ];
  return edits.reduce((all, [part, by]) => changed(all, part, by), matchRemoteChunks(home, limits));
}
