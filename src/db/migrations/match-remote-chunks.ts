/** public.match_knowledge_chunks for vectors that another store has found: the same search, where some sources' candidates are given. */
import { type Limits, matchKnowledgeChunks } from './match-knowledge-chunks.ts';
import { changed } from './run-sql.ts';

/**
 * The store only proposes: its hits are places of the ledger (source, generation, chunk index), and what is not there, or not of the
 * generation that is searched, of the workspace and the agent, is not found. Nearness is computed from the ledger's own vectors, and a
 * store that proposes fewer than there are is not believed: the ledger's vectors are then searched.
 *
 * @param home the quoted schema of pgvector
 */
export function matchRemoteChunks(home: string, limits: Limits): string {
  const body = matchKnowledgeChunks(home, limits);
  const edits: readonly (readonly [string | RegExp, string])[] = [
    [
      /-- The passages that fit best[\s\S]*?create function public\.match_knowledge_chunks\(/,
      `-- As public.match_knowledge_chunks, for sources whose vectors a store has as well: hits are what it found of them, in that generation.
create function agentd.match_remote_chunks(
  remote_sources uuid[], remote_generations integer[], hits jsonb,`,
    ],
    [
      /match_knowledge_chunks\.(?=workspace_id|agent_id|source_ids|embedding_model|query_embedding|query_text)/g,
      '',
    ],
    ['  v_is_whole    boolean;\n', '  v_is_whole    boolean;\n  v_remote      uuid[];\n'],
    [
      'v_is_whole := v_agent is null and v_sources is null;',
      `v_is_whole := v_agent is null and v_sources is null;
    v_remote := array(
      select e.id from unnest(v_ids, v_generations) e (id, generation)
        join unnest(remote_sources, remote_generations) r (id, generation) on r.id = e.id and r.generation = e.generation);`,
    ],
    [
      'sum(k.chunk_count)::double precision as chunks\n',
      'sum(k.chunk_count)::double precision as chunks,\n             k.id = any (v_remote) as is_remote\n',
    ],
    ['group by 1, 2\n    loop', 'group by 1, 2, 6\n    loop'],
    [
      'if v_indexed > 0 and v_group.chunks >',
      `if v_group.is_remote then
        execute format($query$
          select array_agg(b.id order by b.distance, b.id), array_agg(b.distance order by b.distance, b.id)
            from (
              select c.id, case $6 when 'l2' then c.embedding operator(${home}.<->) $5 when 'ip' then c.embedding operator(${home}.<#>) $5
                                   else c.embedding operator(${home}.<=>) $5 end as distance
                from (select distinct h.source, h.generation, h.index
                        from jsonb_to_recordset($7) as h (source uuid, generation integer, index integer)) h
                join unnest($2, $3) e (source_id, generation) on e.source_id = h.source and e.generation = h.generation
                join public.knowledge_chunks c
                  on c.source_id = e.source_id and c.generation = e.generation and c.chunk_index = h.index
               where %s
               order by 2, 1 limit $4) b$query$, v_filter)
          into v_got, v_near using v_workspace, v_group.ids, v_group.generations, v_wide, v_query, v_group.metric, hits;
      elsif v_indexed > 0 and v_group.chunks >`,
    ],
  ];
  const text = edits.reduce((all, [part, by]) => changed(all, part, by), body);
  // what is left of the name would be another parameter's
  return changed(
    text,
    /v_workspace {3}uuid := [\s\S]*?v_text {8}text := query_text;/,
    `v_workspace   uuid := match_remote_chunks.workspace_id;
  v_agent       uuid := match_remote_chunks.agent_id;
  v_sources     uuid[] := match_remote_chunks.source_ids;
  v_model       text := match_remote_chunks.embedding_model;
  v_query       ${home}.vector := match_remote_chunks.query_embedding;
  v_text        text := match_remote_chunks.query_text;`,
  );
}
