/**
 * Calls of increment_conversation_count by signed-in users, where rows count too.
 *
 * A call counts one, and takes one row of about the same time back: an application whose users insert the row and call is counted once, in
 * either order. No number of calls makes the count less than there are rows.
 */

/** A call and a row that are further apart are two conversations. */
const APART = '1 hour';

export const MEMBER_CALLS = `
    -- Takes one counted row back for each of up to p_limit calls that have none yet (of one call: p_call_id), from the counter at once. What
    -- somebody holds is left for later. Returns how many.
    create function agentd.pair_member_calls(p_limit integer, p_call_id bigint default null) returns integer
    language plpgsql volatile set search_path = pg_catalog, pg_temp set lock_timeout = '50ms' as $$
    declare
      v_call   record;
      v_row    record;
      v_held   uuid[] := '{}';
      v_paired integer := 0;
    begin
      for v_call in
        select c.id, c.workspace_id, c.called_at
          from agentd.member_calls c
         where c.row_key is null and (p_call_id is null or c.id = p_call_id) and c.called_at > agentd.now() - 2 * interval '${APART}'
         order by c.looked_at, c.id limit p_limit for update skip locked
      loop
        -- Outside the block: what is taken back with it would be looked at first again.
        update agentd.member_calls c set looked_at = clock_timestamp() where c.id = v_call.id;
        continue when v_call.workspace_id = any (v_held);
        begin
          select e.idempotency_key, e.occurred_at, e.agent_id into v_row
            from public.usage_events e
           where e.workspace_id = v_call.workspace_id
             and e.occurred_at between v_call.called_at - interval '${APART}' and v_call.called_at + interval '${APART}'
             and e.metric = 'conversation' and e.idempotency_key like 'conversation:%'
             and not exists (select 1 from public.usage_event_keys k
                              where k.workspace_id = e.workspace_id and k.idempotency_key = 'void:' || e.idempotency_key)
           order by e.occurred_at desc limit 1;
          if found and agentd.record_usage(v_call.workspace_id, 'conversation', -1, 'void:' || v_row.idempotency_key, 0, v_row.occurred_at, v_row.agent_id) then
            perform agentd.add_to_counter(v_call.workspace_id, v_row.occurred_at, 'conversations', -1);
            update agentd.member_calls c set row_key = v_row.idempotency_key where c.id = v_call.id;
            v_paired := v_paired + 1;
          end if;
        exception when lock_not_available then
          v_held := v_held || v_call.workspace_id;
        end;
      end loop;
      return v_paired;
    end
    $$;
`;

/** What a member's call does beside counting. */
export const NOTE_MEMBER_CALL = `      else
        with noted as (
          insert into agentd.member_calls (workspace_id)
          select w.id from public.workspaces w
           where w.id = p_workspace_id and w.settings ->> 'count_conversations' is distinct from 'calls'
          returning id
        )
        select n.id into v_call_id from noted n;
        if v_call_id is not null then
          perform agentd.pair_member_calls(1, v_call_id);
        end if;
      end if;
`;

export const DROP_MEMBER_CALLS = `
    drop function agentd.pair_member_calls(integer, bigint);
    drop table agentd.member_calls;
`;
