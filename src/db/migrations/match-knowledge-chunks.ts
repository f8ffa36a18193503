/** The search itself, as text: public.match_knowledge_chunks. */

/** Where one way of searching gives over to the next, by measurement (bench/retrieval.ts). */
export type Limits = {
  /** Passages up to which every vector is compared. */
  readonly exactRows: number;
  /** Passages compared for each that is wanted, after the bits have sorted out the rest. */
  readonly bitCandidates: number;
  /** The index is asked where passages² > factor × wanted × indexed: it then comes across enough of them before the bits are done. */
  readonly indexFactor: number;
  readonly efSearch: number;
};

/** A datastore `d`'s way of comparing. */
export const METRIC = `case when lower(d.similarity_metric) in ('l2', 'euclidean', 'l2_distance', 'euclidean_distance') then 'l2'
                         when lower(d.similarity_metric) in ('ip', 'dot', 'dotproduct', 'dot_product', 'inner_product') then 'ip'
                         else 'cosine' end`;

/** @param home the quoted schema of pgvector */
export function matchKnowledgeChunks(home: string, limits: Limits): string {
  const distance = (metric: string, a: string, b: string): string =>
    `case ${metric} when 'l2' then ${a} operator(${home}.<->) ${b} when 'ip' then ${a} operator(${home}.<#>) ${b}
          else ${a} operator(${home}.<=>) ${b} end`;
  const similarity = (metric: string, d: string): string =>
    `case ${metric} when 'l2' then 1 / (1 + ${d}) when 'ip' then -(${d}) else 1 - (${d}) end`;
  return `
-- The passages that fit best, of one workspace, as far as the caller's policies show them.
--
-- What is near (query_embedding) and what has the words (query_text) are ranked apart and together (reciprocal ranks). A datastore's
-- similarity_metric counts for its sources, and, where the call names none, its similarity_threshold and its max_results (the
-- largest of all concerned; 5 without one). A threshold is for what is found by nearness; what has the words needs none.
-- similarity: cosine, 1 / (1 + distance) for l2, the inner product for dot; null where there is nothing to compare.
create function public.match_knowledge_chunks(
  query_embedding ${home}.vector default null, match_count integer default null, match_threshold double precision default null,
  workspace_id uuid default null, agent_id uuid default null, query_text text default null, embedding_model text default null,
  source_ids uuid[] default null)
returns table (id uuid, source_id uuid, source_name text, content text, page integer, heading_path text[],
               similarity double precision, score double precision, metadata jsonb)
language plpgsql stable set search_path = pg_catalog, pg_temp rows 10 as $function$
#variable_conflict use_column
declare
  v_workspace   uuid := match_knowledge_chunks.workspace_id;
  v_agent       uuid := match_knowledge_chunks.agent_id;
  v_sources     uuid[] := match_knowledge_chunks.source_ids;
  v_model       text := match_knowledge_chunks.embedding_model;
  v_query       ${home}.vector := match_knowledge_chunks.query_embedding;
  v_text        text := match_knowledge_chunks.query_text;
  v_count       integer;
  v_wide        integer;
  v_dims        integer := ${home}.vector_dims(query_embedding);
  v_models      text[];
  v_ids         uuid[];
  v_generations integer[];
  v_group       record;
  v_indexed     double precision;
  v_is_whole    boolean;
  v_filter      text;
  v_got         uuid[];
  v_near        double precision[];
  v_found       uuid[] := '{}';
  v_likeness    double precision[] := '{}';
  v_metrics     text[] := '{}';
  v_words       tsquery;
  v_worded      uuid[] := '{}';
  v_settings    text[];
begin
  if v_workspace is null and v_agent is not null then
    v_workspace := (select a.workspace_id from public.agents a where a.id = v_agent);
  elsif v_workspace is null and v_sources is not null then
    select case when count(distinct k.workspace_id) = 1 then min(k.workspace_id::text)::uuid end into v_workspace
      from public.knowledge_sources k where k.id = any (v_sources);
  elsif v_workspace is null then
    select case when count(*) = 1 then min(w.id::text)::uuid end into v_workspace
      from (select agentd.my_workspace_ids() as id) w;
  end if;
  if v_workspace is null then
    if v_agent is not null or v_sources is not null then
      return;
    end if;
    raise exception using errcode = '22023', message = 'It is not clear which workspace is searched.',
      hint = 'Name it: match_knowledge_chunks(…, workspace_id => …).';
  end if;

  -- what may be searched
  select array_agg(e.id), array_agg(e.generation),
         coalesce(max(e.max_results), 5),
         array_agg(distinct e.model) filter (where e.model is not null and e.dimensions = v_dims)
    into v_ids, v_generations, v_count, v_models
    from (
      select k.id, k.generation, k.embedding_model as model, k.embedding_dimensions as dimensions, d.max_results
        from public.knowledge_sources k
        left join public.datastores d on d.id = k.datastore_id
       where k.workspace_id = v_workspace and k.processing_status <> 'archived' and k.chunk_count > 0
         and (v_sources is null or k.id = any (v_sources))
         and (v_agent is null
              or (k.agent_id is null and k.datastore_id is null and k.media_id is null)
              or k.agent_id = v_agent
              or exists (select 1 from public.agent_datastores ad
                          where ad.agent_id = v_agent and ad.datastore_id = k.datastore_id and ad.is_active)
              or exists (select 1 from public.agent_media_assignments am
                          where am.agent_id = v_agent and am.media_id = k.media_id))
    ) e;
  if v_ids is null then
    return;
  end if;
  v_count := least(greatest(coalesce(match_count, v_count), 1), 200);
  v_wide := least(greatest(v_count * 4, 40), 400);

  if v_query is not null and ${home}.vector_norm(v_query) > 0 then
    if v_model is null then
      if cardinality(v_models) > 1 then
        raise exception using errcode = '22023',
          message = format('Several models have made vectors of %s dimensions here, and theirs can''t be compared.', v_dims),
          hint = 'Name the one of the query: match_knowledge_chunks(…, embedding_model => …).';
      end if;
      v_model := v_models[1];
    end if;
    v_settings := array[current_setting('enable_sort'), current_setting('jit'), coalesce(current_setting('hnsw.iterative_scan', true), 'off'),
                        coalesce(current_setting('hnsw.ef_search', true), '40'), current_setting('enable_bitmapscan')];
    perform set_config('jit', 'off', true);
    v_indexed := (select c.reltuples from pg_catalog.pg_class c
                   where c.relnamespace = 'public'::regnamespace and c.relname = agentd.vector_index_name(v_model, v_dims));
    v_is_whole := v_agent is null and v_sources is null;

    for v_group in
      select ${METRIC} as metric,
             coalesce(match_threshold, d.similarity_threshold) as threshold,
             array_agg(k.id) as ids, array_agg(k.generation) as generations, sum(k.chunk_count)::double precision as chunks
        from unnest(v_ids) s (id)
        join public.knowledge_sources k on k.id = s.id
        left join public.datastores d on d.id = k.datastore_id
       group by 1, 2
    loop
      v_got := null;
      v_filter := format('(c.workspace_id = $1) is true and pg_catalog.length(c.embedding_bits) = %s', v_dims)
                  || case when v_model is null then '' else format(' and c.embedding_model = %L', v_model) end;

      if v_indexed > 0 and v_group.chunks > ${limits.exactRows}
         and v_group.chunks * v_group.chunks > ${limits.indexFactor}::double precision * v_wide * v_indexed then
        perform set_config('enable_sort', 'off', true), set_config('hnsw.iterative_scan', 'relaxed_order', true),
                set_config('hnsw.ef_search', greatest(${limits.efSearch}, v_wide)::text, true);
        execute format($query$
          select array_agg(b.id order by b.distance, b.id), array_agg(b.distance order by b.distance, b.id)
            from (
              select n.id, ${distance('$6', 'n.embedding', '$5')} as distance
                from (
                  select c.id, c.source_id, c.generation, c.embedding from public.knowledge_chunks c
                   where c.workspace_id = $1 and %s%s
                   order by c.embedding::${home}.halfvec(%s) operator(${home}.<=>) $5::${home}.halfvec(%s)
                   limit $4 * 2) n
                join unnest($2, $3) e (source_id, generation) on e.source_id = n.source_id and e.generation = n.generation
               order by 2, 1 limit $4) b$query$,
            v_filter, case when v_is_whole and cardinality(v_group.ids) = cardinality(v_ids) then '' else ' and c.source_id = any ($2)' end,
            v_dims, v_dims)
          into v_got, v_near using v_workspace, v_group.ids, v_group.generations, v_wide, v_query, v_group.metric;
        perform set_config('enable_sort', v_settings[1], true), set_config('hnsw.iterative_scan', v_settings[3], true),
                set_config('hnsw.ef_search', v_settings[4], true);
      end if;

      -- without the index, or where it gave fewer than there are
      if coalesce(cardinality(v_got), 0) < least(v_wide, v_group.chunks) then
        -- Source by source; the planner would intersect each with all of the workspace, as a policy names it or we, and that takes
        -- longer than the search.
        perform set_config('enable_bitmapscan', 'off', true);
        execute format($query$
          select array_agg(b.id order by b.distance, b.id), array_agg(b.distance order by b.distance, b.id)
            from (
              select n.id, ${distance('$6', 'n.embedding', '$5')} as distance
                from (
                  select c.id, c.embedding
                    from unnest($2, $3) e (source_id, generation)
                   cross join lateral (
                     select c.id, c.embedding, c.embedding_bits from public.knowledge_chunks c
                      where c.source_id = e.source_id and c.generation = e.generation and %s offset 0) c
                   %s) n
               order by 2, 1 limit $4) b$query$,
            v_filter,
            case when v_group.chunks <= ${limits.exactRows} then '' else
              ' order by c.embedding_bits operator(${home}.<~>) ${home}.binary_quantize($5) limit ' || v_count * ${limits.bitCandidates} end)
          into v_got, v_near using v_workspace, v_group.ids, v_group.generations, v_wide, v_query, v_group.metric;
        perform set_config('enable_bitmapscan', v_settings[5], true);
      end if;

      if v_got is not null then
        select v_found || coalesce(array_agg(x.id), '{}'), v_likeness || coalesce(array_agg(x.likeness), '{}'),
               v_metrics || coalesce(array_agg(v_group.metric), '{}')
          into v_found, v_likeness, v_metrics
          from (select u.id, ${similarity('v_group.metric', 'u.distance')} as likeness
                  from unnest(v_got, v_near) u (id, distance)) x
         where v_group.threshold is null or x.likeness >= v_group.threshold;
      end if;
    end loop;
    perform set_config('jit', v_settings[2], true);

    if v_got is null and cardinality(v_found) = 0 and exists (
         select 1 from unnest(v_ids, v_generations) e (source_id, generation)
           join public.knowledge_chunks c on c.source_id = e.source_id and c.generation = e.generation
          where length(c.embedding_bits) <> v_dims and (v_model is null or c.embedding_model = v_model))
       and not exists (
         select 1 from unnest(v_ids, v_generations) e (source_id, generation)
           join public.knowledge_chunks c on c.source_id = e.source_id and c.generation = e.generation
          where length(c.embedding_bits) = v_dims and (v_model is null or c.embedding_model = v_model)) then
      raise exception using errcode = '22023',
        message = format('The query has %s dimensions, and the knowledge it is to be compared with has others.', v_dims),
        hint = 'Embed the query with the model and dimensions of knowledge_sources.embedding_model and embedding_dimensions.';
    end if;
  end if;

  -- any of the words: a question rarely repeats a passage
  v_words := nullif(replace(plainto_tsquery('pg_catalog.simple', left(v_text, 1000))::text, '&', '|'), '')::tsquery;
  if v_words is not null then
    -- Words that stand in very many passages say little and cost much: beside vectors, passages must then have all of them.
    if cardinality(v_found) > 0 and (
         select count(*) from (
           select 1 from public.knowledge_chunks c
            where c.content_tsv @@ v_words and c.workspace_id = v_workspace and c.source_id = any (v_ids) limit 2001) m) > 2000 then
      v_words := plainto_tsquery('pg_catalog.simple', left(v_text, 1000));
    end if;
    select coalesce(array_agg(t.id order by t.rank desc, t.source_id, t.chunk_index), '{}') into v_worded
      from (select m.id, m.source_id, m.chunk_index, ts_rank_cd(m.content_tsv, v_words, 1) as rank
              from (select c.id, c.source_id, c.generation, c.chunk_index, c.content_tsv from public.knowledge_chunks c
                     where c.content_tsv @@ v_words and c.workspace_id = v_workspace and c.source_id = any (v_ids) offset 0) m
              join unnest(v_ids, v_generations) e (source_id, generation)
                on e.source_id = m.source_id and e.generation = m.generation
             order by 4 desc, 2, 3 limit v_wide) t;
  end if;

  return query
    with near as (
      select u.id, u.likeness, row_number() over (partition by u.metric order by u.likeness desc, u.id) as place
        from unnest(v_found, v_likeness, v_metrics) u (id, likeness, metric)
    ),
    worded as (
      select u.id, u.place from unnest(v_worded) with ordinality u (id, place)
    ),
    ranked as (
      select coalesce(n.id, w.id) as id, n.likeness,
             coalesce(1.0 / (60 + n.place), 0)::double precision + coalesce(1.0 / (60 + w.place), 0)::double precision as score
        from near n full join worded w on w.id = n.id
    ),
    placed as (
      select r.id, r.likeness, r.score, c.source_id, d.max_results, ${METRIC} as metric,
             row_number() over (partition by d.id order by r.score desc, r.likeness desc nulls last, r.id) as place_in_store
        from ranked r
        join public.knowledge_chunks c on c.id = r.id
        join public.knowledge_sources k on k.id = c.source_id
        left join public.datastores d on d.id = k.datastore_id
    ),
    best as (
      select * from placed p
       where match_count is not null or p.max_results is null or p.place_in_store <= p.max_results
       order by p.score desc, p.likeness desc nulls last, p.id
       limit v_count
    )
    select c.id, c.source_id, k.name, c.content, c.page, c.heading_path,
           coalesce(b.likeness, case when length(c.embedding_bits) = v_dims and (v_model is null or c.embedding_model = v_model) then
             ${similarity('b.metric', `(${distance('b.metric', 'c.embedding', 'v_query')})`)} end),
           b.score, c.metadata
      from best b
      join public.knowledge_chunks c on c.id = b.id
      join public.knowledge_sources k on k.id = c.source_id
     order by b.score desc, b.likeness desc nulls last, b.id;
end
$function$;
`;
}
