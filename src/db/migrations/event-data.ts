/** What happened, as conditions and models see it: an event's data, read from its row when it is looked at, and bounded. */

/** Characters of a text, of a name; bytes of what is jsonb. */
const TEXT = 20_000;
const NAME = 1_000;
const JSON_BYTES = 65_536;
/** Places in a message where a name is looked for. */
const MENTIONS = 50;
/** Agents of a workspace among which longer names are looked for, and such names. Measured without: 20,000 agents, 3 s for one trigger. */
const NAMED_AGENTS = 1_000;
const LONGER_NAMES = 100;

/** An event's data, in the order of the CASE that reads them. */
export const EVENT_DATA = `
    -- Whether a message names an agent: by its id (in metadata.mentions), or as @name in the text, in any case, with its spaces, or
    -- with - or _ in their place, or without them. Where a longer name of another agent begins there, it is the other's.
    create function agentd.mentions_agent(
      p_content text, p_metadata jsonb, p_workspace_id uuid, p_agent_id uuid, p_name text
    ) returns boolean
    language plpgsql stable set search_path = pg_catalog, pg_temp as $$
    declare
      v_content text := lower(left(p_content, ${TEXT}));
      v_name    text := lower(btrim(p_name));
      v_form    text;
      v_from    integer;
      v_at      integer;
      v_looks   integer := 0;
      v_longer  text[];
    begin
      if jsonb_typeof(p_metadata -> 'mentions') = 'array'
         and ((p_metadata -> 'mentions') @> to_jsonb(array[p_agent_id::text])
              or (p_metadata -> 'mentions') @> jsonb_build_array(jsonb_build_object('agent_id', p_agent_id))
              or (p_metadata -> 'mentions') @> jsonb_build_array(jsonb_build_object('id', p_agent_id))) then
        return true;
      end if;
      if v_name = '' or length(v_name) > 200 or strpos(v_content, '@') = 0 then
        return false;
      end if;
      foreach v_form in array array[v_name, replace(v_name, ' ', '-'), replace(v_name, ' ', '_'), replace(v_name, ' ', '')] loop
        v_from := 1;
        loop
          v_at := strpos(substr(v_content, v_from), '@' || v_form);
          exit when v_at = 0 or v_looks >= ${MENTIONS};
          v_looks := v_looks + 1;
          v_at := v_from + v_at - 1;
          v_from := v_at + 1;
          -- neither an e-mail address nor the beginning of a longer word
          continue when v_at > 1 and substr(v_content, v_at - 1, 1) ~ '[[:alnum:]_.@-]';
          continue when substr(v_content, v_at + 1 + length(v_form), 1) ~ '[[:alnum:]_]';
          -- once for a message, however often the name stands in it
          v_longer := coalesce(v_longer, array(
            select lower(btrim(o.name))
              from (select a.id, a.name, a.is_active from public.agents a
                     where a.workspace_id = p_workspace_id order by a.id limit ${NAMED_AGENTS}) o
             where o.id <> p_agent_id and o.is_active and octet_length(o.name) <= 1600
               and length(btrim(o.name)) > length(v_name) and starts_with(lower(btrim(o.name)), v_name)
             limit ${LONGER_NAMES}));
          if not exists (
            select 1 from unnest(v_longer) as longer (name)
             where starts_with(substr(v_content, v_at + 1, 400), longer.name)) then
            return true;
          end if;
        end loop;
      end loop;
      return false;
    end
    $$;

    -- Json that is not larger than an event may carry; else null.
    create function agentd.bounded_json(p_value jsonb) returns jsonb
    language sql immutable set search_path = pg_catalog, pg_temp as $$
      select case when octet_length(p_value::text) <= ${JSON_BYTES} then p_value end
    $$;

    -- What an event is about. types is null where the row is gone: then nothing happened. agent_id: only that agent hears of it.
    -- sender_agent_id and run_id: who caused it.
    create function agentd.event_facts(
      p_event agentd.task_events, out types text[], out data jsonb, out agent_id uuid, out sender_agent_id uuid, out run_id uuid
    )
    language plpgsql stable set search_path = pg_catalog, pg_temp as $$
    begin
      if p_event.kind = 'message' then
        select array['workspace_message', 'agent_mentioned'], m.sender_agent_id,
               coalesce(m.run_id, case when m.sender_agent_id is not null then agentd.uuid_of(m.metadata ->> 'run_id') end),
               jsonb_build_object(
                 'message_id', m.id, 'channel_id', m.channel_id, 'channel', left(c.name, ${NAME}),
                 'sender_user_id', m.sender_user_id, 'sender_agent_id', m.sender_agent_id, 'message_type', m.message_type,
                 'content', left(m.content, ${TEXT}), 'metadata', agentd.bounded_json(m.metadata), 'created_at', m.created_at)
          into types, sender_agent_id, run_id, data
          from public.chat_messages m
          left join public.chat_channels c on c.id = m.channel_id
         where m.id = p_event.subject_id and m.workspace_id = p_event.workspace_id;
      elsif p_event.kind = 'file' then
        select array['file_uploaded'],
               jsonb_build_object(
                 'media_id', m.id, 'file_name', left(m.file_name, ${NAME}), 'display_name', left(m.display_name, ${NAME}),
                 'file_type', left(m.file_type, ${NAME}), 'file_size', m.file_size, 'category', left(m.category, ${NAME}),
                 'description', left(m.description, ${TEXT}), 'tags', agentd.bounded_json(to_jsonb(m.tags)),
                 'user_id', m.user_id, 'chunk_count', m.chunk_count, 'created_at', m.created_at)
          into types, data
          from public.media_library m
         where m.id = p_event.subject_id and m.workspace_id = p_event.workspace_id and not m.is_archived;
      elsif p_event.kind = 'integration' then
        select case when i.event_type = 'email_received' then array['email_received'] else array['integration_webhook'] end, i.agent_id,
               jsonb_build_object(
                 'event_id', i.id, 'source', i.source, 'event_type', i.event_type, 'external_id', i.external_id,
                 'agent_id', i.agent_id, 'payload', i.payload, 'received_at', i.received_at)
          into types, agent_id, data
          from public.integration_events i
         where i.id = p_event.subject_id and i.workspace_id = p_event.workspace_id;
      elsif p_event.kind = 'manual' then
        types := array['manual'];
        data := coalesce(p_event.data, '{}');
      end if;
    end
    $$;
`;

export const DROP_EVENT_DATA = `
    drop function agentd.event_facts(agentd.task_events);
    drop function agentd.bounded_json(jsonb);
    drop function agentd.mentions_agent(text, jsonb, uuid, uuid, text);
`;
