/** The search itself, as text: public.search_messages. */

/**
 * The newest messages that a search looks through, each compared: what somebody has written over years costs no more than that. At 1,536
 * dimensions one takes about 23 µs of the server's time. An index of vectors (HNSW, 5,000 of them) would cost each message 2,400 µs more
 * when it is written, and could not be asked for the conversations of one agent and one user.
 */
const LOOKED_AT = 10_000;
/** Characters of a message whose words count. */
const READ = 8_000;

/** @param home the quoted schema of pgvector */
export function searchMessages(home: string): string {
  return `
-- The messages that fit best, of one workspace, as far as the caller's policies show them: of conversations and of channels.
--
-- With for_agent only what that agent may look up, on behalf of for_user (null: of nobody): its own conversations that have no user or
-- that one; public channels that lie in no room; and channels of rooms that the agent is a member of, itself or by a team, if for_user
-- is one too. What is marked as deleted, hidden or temporary is not found.
--
-- What is near (query_embedding) and what has any of the words (query_text) are ranked apart and together (reciprocal ranks), among the
-- newest ${LOOKED_AT} messages that may be seen. similarity is the cosine, null where there is nothing to compare.
create function public.search_messages(
  query_embedding ${home}.vector default null, query_text text default null, match_count integer default null,
  workspace_id uuid default null, in_conversation uuid default null, in_channel uuid default null, for_agent uuid default null,
  for_user uuid default null, embedding_model text default null)
returns table (id uuid, kind text, conversation_id uuid, channel_id uuid, title text, role text, user_id uuid, agent_id uuid,
               content text, created_at timestamptz, similarity double precision, score double precision)
language plpgsql stable set search_path = pg_catalog, pg_temp set jit = off rows 10 as $function$
#variable_conflict use_column
declare
  v_workspace    uuid := search_messages.workspace_id;
  v_conversation uuid := search_messages.in_conversation;
  v_channel      uuid := search_messages.in_channel;
  v_agent        uuid := search_messages.for_agent;
  v_user         uuid := search_messages.for_user;
  v_model        text := search_messages.embedding_model;
  v_query        ${home}.vector := search_messages.query_embedding;
  v_dims         integer := ${home}.vector_dims(query_embedding);
  v_count        integer := least(greatest(coalesce(match_count, 10), 1), 200);
  v_wide         integer := least(greatest(v_count * 4, 40), 400);
  v_text         text := left(search_messages.query_text, 1000);
  v_words        tsquery;
  v_parts        text[];
begin
  if v_workspace is null then
    v_workspace := coalesce(
      (select c.workspace_id from public.conversations c where c.id = v_conversation),
      (select c.workspace_id from public.chat_channels c where c.id = v_channel),
      (select a.workspace_id from public.agents a where a.id = v_agent));
    if v_workspace is null and v_conversation is null and v_channel is null and v_agent is null then
      select case when count(*) = 1 then min(w.id::text)::uuid end into v_workspace
        from (select agentd.my_workspace_ids() as id) w;
      if v_workspace is null then
        raise exception using errcode = '22023', message = 'It is not clear which workspace is searched.',
          hint = 'Name it: search_messages(…, workspace_id => …).';
      end if;
    end if;
  end if;
  if v_workspace is null
     or (v_agent is not null and not exists (
           select 1 from public.agents a where a.id = v_agent and a.workspace_id = v_workspace)) then
    return;
  end if;
  if v_query is not null and ${home}.vector_norm(v_query) = 0 then
    v_query := null;
  end if;
  v_words := nullif(replace(plainto_tsquery('pg_catalog.simple', v_text)::text, '&', '|'), '')::tsquery;
  -- a look whether a word can be in a text at all costs a tenth of parsing it
  v_parts := array(
    select '%' || replace(replace(replace(l.word, '\\', '\\\\'), '%', '\\%'), '_', '\\_') || '%'
      from unnest(tsvector_to_array(to_tsvector('pg_catalog.simple', v_text))) l (word));

  return query
    with conversation as materialized (
      select c.id, c.title from public.conversations c
       where c.workspace_id = v_workspace and v_channel is null and (v_conversation is null or c.id = v_conversation)
         and (v_agent is null or (c.agent_id = v_agent and (c.user_id is null or c.user_id = v_user)))
    ),
    channel as materialized (
      select c.id, c.name as title from public.chat_channels c
       where c.workspace_id = v_workspace and v_conversation is null and (v_channel is null or c.id = v_channel)
         and (v_agent is null
              or (c.room_id is null and c.is_public)
              or (exists (
                    select 1 from public.chat_room_members r
                     where r.room_id = c.room_id and r.workspace_id = v_workspace
                       and (r.agent_id = v_agent
                            or r.team_id in (select t.team_id from public.team_members t where t.agent_id = v_agent)))
                  and (v_user is null
                       or exists (select 1 from public.chat_rooms o where o.id = c.room_id and o.owner_user_id = v_user)
                       or exists (
                            select 1 from public.chat_room_members r
                             where r.room_id = c.room_id and r.workspace_id = v_workspace
                               and (r.user_id = v_user
                                    or r.team_id in (select t.team_id from public.user_team_memberships t where t.user_id = v_user))))))
    ),
    said as materialized (
      select s.* from (
        select m.id, 'conversation' as kind, m.conversation_id as place, c.title, m.role, m.user_id, m.agent_id, m.content, m.created_at,
               m.embedding, m.embedding_model as model, m.embedding_dimensions as dims
          from public.agent_messages m join conversation c on c.id = m.conversation_id
         where m.workspace_id = v_workspace and not agentd.is_hidden_message(m.metadata)
        union all
        select m.id, 'channel', m.channel_id, c.title,
               case when m.sender_user_id is not null then 'user' when m.sender_agent_id is not null then 'assistant' else m.message_type::text end,
               m.sender_user_id, m.sender_agent_id, m.content, m.created_at, m.embedding, m.embedding_model, m.embedding_dimensions
          from public.chat_messages m join channel c on c.id = m.channel_id
         where m.workspace_id = v_workspace and not agentd.is_hidden_message(m.metadata)) s
       order by s.created_at desc, s.id limit ${LOOKED_AT}
    ),
    near as (
      select n.id, n.kind, n.likeness, row_number() over (order by n.likeness desc, n.id) as rank
        from (
          -- the case keeps vectors of other lengths from being compared, in whatever order conditions are looked at
          select s.id, s.kind,
                 case when coalesce(s.dims, ${home}.vector_dims(s.embedding)) = v_dims then
                   1 - (s.embedding operator(${home}.<=>) v_query) end as likeness
            from said s
           where v_query is not null and s.embedding is not null and (v_model is null or s.model = v_model)) n
       where n.likeness is not null and n.likeness <> 'NaN'
       order by n.likeness desc, n.id limit v_wide
    ),
    worded as (
      select w.id, w.kind, row_number() over (order by w.weight desc, w.created_at desc, w.id) as rank
        from (
          select t.id, t.kind, t.created_at, ts_rank_cd(t.words, v_words, 1) as weight
            from (
              select s.id, s.kind, s.created_at, to_tsvector('pg_catalog.simple', left(s.content, ${READ})) as words
                from said s
               where v_words is not null and lower(left(s.content, ${READ})) like any (v_parts) offset 0) t
           where t.words @@ v_words
           order by 4 desc, t.created_at desc, t.id limit v_wide) w
    ),
    best as (
      select coalesce(n.id, w.id) as id, coalesce(n.kind, w.kind) as kind, n.likeness,
             coalesce(1.0 / (60 + n.rank), 0)::double precision + coalesce(1.0 / (60 + w.rank), 0)::double precision as score
        from near n full join worded w on w.id = n.id and w.kind = n.kind
       order by 4 desc, 3 desc nulls last, 1
       limit v_count
    )
    select s.id, s.kind, case when s.kind = 'conversation' then s.place end, case when s.kind = 'channel' then s.place end, s.title, s.role,
           s.user_id, s.agent_id, s.content, s.created_at,
           coalesce(b.likeness, case
             when v_query is not null and (v_model is null or s.model = v_model) and coalesce(s.dims, ${home}.vector_dims(s.embedding)) = v_dims
             then 1 - (s.embedding operator(${home}.<=>) v_query) end),
           b.score
      from best b join said s on s.id = b.id and s.kind = b.kind
     order by b.score desc, b.likeness desc nulls last, s.created_at desc, s.id;
end
$function$;
`;
}
