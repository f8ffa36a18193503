/**
 * What a listing of tools does to the rows of its connection.
 *
 * A row is written only if something of it differs. Columns that are not named here stay as they are, whoever made them.
 */

/** Names of removed tools that are remembered of one connection; with so many a new tool counts as a changed one. */
const MOST_REMOVED = 2_000;
/** Names that a row of the log lists of each kind. */
const MOST_NAMED = 200;
const LOG_DAYS = 30;

/**
 * `p_tools`: [{tool_name, function_name, tool_schema, openai_schema, schema_hash, row_hash, code, reason}], `code`
 * null where the tool can be offered. `p_facts`: {job_id, duration_ms, next_ms, server_info, listed, dropped}.
 * Returns null where the claim is no longer the caller's, else what has changed.
 */
export const STORE_MCP_LISTING = `create function agentd.store_mcp_listing(p_id uuid, p_epoch integer, p_tools jsonb, p_facts jsonb) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_now       timestamptz := agentd.now();
  v_next      timestamptz := agentd.now() + (p_facts ->> 'next_ms')::double precision * interval '1 millisecond';
  v_policy    text;
  v_old       public.mcp_tools_cache;
  v_item      record;
  v_added     text[] := '{}';
  v_removed   text[] := '{}';
  v_changed   jsonb := '[]';
  v_changes   integer := 0;
  v_noted     boolean := false;
  v_full      boolean;
  v_hash      text;
  v_parts     text[];
  v_is_other  boolean;
  v_code      text;
  v_reason    text;
  v_usable    integer;
  v_held      jsonb;
  v_first     boolean;
begin
  perform 1 from agentd.mcp_refreshes r
    where r.id = p_id and r.lease_epoch = p_epoch and r.lease_expires_at is not null for no key update;
  if not found then
    return null;
  end if;
  select c.change_policy, c.last_refreshed_at is null into v_policy, v_first
    from public.agent_mcp_connections c where c.id = p_id for no key update;
  v_full := (select count(*) >= ${MOST_REMOVED} from (
    select 1 from agentd.mcp_removed_tools t where t.connection_id = p_id limit ${MOST_REMOVED}) x);

  with gone as (
    delete from public.mcp_tools_cache t
     where t.connection_id = p_id and t.tool_name not in (select x ->> 'tool_name' from jsonb_array_elements(p_tools) x)
    returning t.tool_name, t.pinned_hash
  ),
  kept as (
    insert into agentd.mcp_removed_tools as m (connection_id, tool_name, pinned_hash, removed_at)
    select p_id, g.tool_name, g.pinned_hash, v_now from gone g where g.pinned_hash is not null and not v_full
    on conflict (connection_id, tool_name) do update set pinned_hash = excluded.pinned_hash, removed_at = excluded.removed_at
  )
  select coalesce(array_agg(g.tool_name order by g.tool_name), '{}') into v_removed from gone g;

  for v_item in
    select * from jsonb_to_recordset(p_tools) as x (
      tool_name text, function_name text, tool_schema jsonb, openai_schema jsonb,
      schema_hash text, row_hash text, code text, reason text)
  loop
    select t.* into v_old from public.mcp_tools_cache t where t.connection_id = p_id and t.tool_name = v_item.tool_name;
    if v_old.id is null then
      select m.pinned_hash into v_hash from agentd.mcp_removed_tools m
       where m.connection_id = p_id and m.tool_name = v_item.tool_name;
    else
      v_hash := v_old.pinned_hash;
    end if;
    v_is_other := v_policy <> 'accept' and v_item.code is null
      and (v_hash is distinct from v_item.schema_hash)
      and (v_hash is not null or (v_old.id is null and v_full and not v_first));
    v_code := case
      when v_item.code is not null then v_item.code
      when not v_is_other then null
      when v_old.reason_code = 'change_denied' and v_old.schema_hash = v_item.schema_hash then 'change_denied'
      else 'changed' end;
    v_reason := case
      when v_item.code is not null then v_item.reason
      when v_code = 'change_denied' then v_old.reason
      when v_code = 'changed' then
        'The server describes this tool otherwise than when it was accepted. Compare it, then call decide_tool_change().' end;
    continue when v_old.id is not null
      and (v_old.row_hash, v_old.reason_code, v_old.is_quarantined) is not distinct from (v_item.row_hash, v_code, v_code is not null)
      and (v_code is not null or v_old.pinned_hash is not distinct from v_item.schema_hash);
    if v_old.id is null then
      insert into public.mcp_tools_cache (
        connection_id, tool_name, function_name, tool_schema, openai_schema, schema_hash, row_hash,
        pinned_hash, is_quarantined, reason_code, reason, last_updated, seen_at)
      values (
        p_id, v_item.tool_name, v_item.function_name, v_item.tool_schema, v_item.openai_schema,
        v_item.schema_hash, v_item.row_hash,
        -- what can't be offered has not been accepted; what is full of names has no first sight
        case when v_code is null then v_item.schema_hash else v_hash end,
        v_code is not null, v_code, v_reason, v_now, v_now);
      delete from agentd.mcp_removed_tools m where m.connection_id = p_id and m.tool_name = v_item.tool_name;
      v_added := v_added || v_item.tool_name;
      continue;
    end if;
    update public.mcp_tools_cache t
       set function_name = v_item.function_name, tool_schema = v_item.tool_schema, openai_schema = v_item.openai_schema,
           schema_hash = v_item.schema_hash,
           row_hash = v_item.row_hash, pinned_hash = case when v_code is null then v_item.schema_hash else t.pinned_hash end,
           is_quarantined = v_code is not null, reason_code = v_code, reason = v_reason, last_updated = v_now, seen_at = v_now
     where t.id = v_old.id;
    if v_old.schema_hash is distinct from v_item.schema_hash then
      v_changes := v_changes + 1;
      select coalesce(array_agg(k order by k), '{}') into v_parts
        from (select jsonb_object_keys(v_old.tool_schema) as k union select jsonb_object_keys(v_item.tool_schema)) keys
       where v_old.tool_schema -> k is distinct from v_item.tool_schema -> k;
      if v_changes <= ${MOST_NAMED} then
        v_changed := v_changed || jsonb_build_array(jsonb_build_object(
          'tool', v_item.tool_name, 'parts', v_parts[1:20], 'from', v_old.schema_hash, 'to', v_item.schema_hash, 'outcome', coalesce(v_code, 'accepted')));
      end if;
    else
      v_noted := true;
    end if;
  end loop;

  select count(*) filter (where not t.is_quarantined),
         coalesce((select jsonb_agg(jsonb_build_object('tool', q.tool_name, 'code', q.reason_code))
                     from (select o.tool_name, o.reason_code from public.mcp_tools_cache o
                            where o.connection_id = p_id and o.is_quarantined order by o.tool_name limit ${MOST_NAMED}) q), '[]')
    into v_usable, v_held
    from public.mcp_tools_cache t where t.connection_id = p_id;

  insert into public.mcp_refresh_log (connection_id, job_id, status, tools_added, tools_changed, tools_removed, details, duration_ms, created_at)
  values (p_id, (p_facts ->> 'job_id')::uuid,
          case when cardinality(v_added) + cardinality(v_removed) + v_changes = 0 and not v_noted then 'unchanged' else 'ok' end,
          cardinality(v_added), v_changes, cardinality(v_removed),
          jsonb_strip_nulls(jsonb_build_object(
            'added', case when cardinality(v_added) > 0 then to_jsonb(v_added[1:${MOST_NAMED}]) end,
            'changed', case when v_changes > 0 then v_changed end,
            'removed', case when cardinality(v_removed) > 0 then to_jsonb(v_removed[1:${MOST_NAMED}]) end,
            'quarantined', case when v_held <> '[]' then v_held end,
            'left_out', case when (p_facts ->> 'dropped')::integer > 0 then p_facts -> 'dropped' end)),
          (p_facts ->> 'duration_ms')::integer, v_now);
  delete from public.mcp_refresh_log l where l.connection_id = p_id and l.created_at < v_now - interval '${LOG_DAYS} days';
  delete from agentd.mcp_removed_tools m where m.connection_id = p_id and m.removed_at < v_now - interval '90 days';

  update public.agent_mcp_connections c
     set last_refreshed_at = v_now, next_refresh_at = v_next, refresh_failures = 0, server_info = p_facts -> 'server_info',
         tools_listed = (p_facts ->> 'listed')::integer, tools_usable = v_usable,
         reason_code = case when (p_facts ->> 'dropped')::integer > 0 then 'too_many_tools' end,
         reason = case when (p_facts ->> 'dropped')::integer > 0 then
           'The server lists ' || (p_facts ->> 'listed') || ' tools; ' || (p_facts ->> 'dropped')
           || ' of them were left out. Connect to a server with fewer tools.' end
   where c.id = p_id;
  update agentd.mcp_refreshes r
     set job_id = null, lease_expires_at = null, lost_claims = 0, failures = 0, due_at = v_next
   where r.id = p_id;
  return jsonb_build_object('added', cardinality(v_added), 'changed', v_changes, 'removed', cardinality(v_removed),
                            'noted', v_noted, 'usable', v_usable, 'quarantined', jsonb_array_length(v_held));
end
$$;`;

/** A person's word on a tool that its server describes otherwise than before. */
export const DECIDE_TOOL_CHANGE = `create function agentd.decide_tool_change(p_tool uuid, p_accept boolean, p_reason text) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_workspace  uuid;
  v_connection uuid;
  v_name       text;
  v_from       text;
  v_to         text;
begin
  select a.workspace_id, t.connection_id into v_workspace, v_connection
    from public.mcp_tools_cache t
    join public.agent_mcp_connections c on c.id = t.connection_id
    join public.agents a on a.id = c.agent_id
   where t.id = p_tool;
  if v_workspace is null or not agentd.may_manage(v_workspace) then
    raise exception using
      errcode = 'insufficient_privilege',
      message = format('tool %s does not exist, or you are not a manager of its workspace', p_tool);
  end if;
  if p_accept is null then
    raise exception using errcode = 'null_value_not_allowed', message = 'accept must be true or false';
  end if;
  if length(p_reason) > 2000 then
    raise exception using errcode = 'string_data_right_truncation', message = 'the reason is longer than 2,000 characters';
  end if;
  select t.tool_name, t.pinned_hash, t.schema_hash into v_name, v_from, v_to
    from public.mcp_tools_cache t
   where t.id = p_tool and t.is_quarantined and t.reason_code in ('changed', 'change_denied') for no key update;
  if not found then
    return false;
  end if;
  update public.mcp_tools_cache t
     set pinned_hash    = case when p_accept then t.schema_hash else t.pinned_hash end,
         is_quarantined = not p_accept,
         reason_code    = case when p_accept then null else 'change_denied' end,
         reason         = case when p_accept then null else
           'A person refused the tool as it is now.' || coalesce(' Reason: ' || nullif(btrim(p_reason), ''), '') end,
         last_updated   = agentd.now()
   where t.id = p_tool;
  update public.agent_mcp_connections c
     set tools_usable = (select count(*) from public.mcp_tools_cache t where t.connection_id = c.id and not t.is_quarantined)
   where c.id = v_connection;
  perform agentd.audit(case when p_accept then 'accept_change' else 'refuse_change' end, 'mcp_tool', p_tool::text, v_workspace,
                       jsonb_build_object('connection_id', v_connection, 'tool', v_name, 'from', v_from, 'to', v_to, 'reason', p_reason));
  return true;
end
$$;

-- Accepts or refuses a tool that its server describes otherwise than before. Returns false where nothing waits for that.
create function public.decide_tool_change(tool_cache_id uuid, accept boolean, reason text default null) returns boolean
language sql set search_path = pg_catalog, pg_temp
as $$ select agentd.decide_tool_change(tool_cache_id, accept, reason) $$;`;
