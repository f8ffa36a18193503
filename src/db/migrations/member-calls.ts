/**
 * Calls of increment_conversation_count by signed-in users, where rows count too.
 *
 * A call counts one, and takes one row of about the same time back: an application whose users insert the row and call is counted once, in
 * either order. No number of calls makes the count less than there are rows.
 */

/** A call and a row that are further apart are two conversations. */
const APART = '1 hour';
/** Then no row comes any more that a call could take back: it is forgotten. */
const KEPT = '2 hours';

/** An event `e` that counts a row. */
const IS_ROW = `e.metric = 'conversation' and e.idempotency_key like 'conversation:%'`;

export const MEMBER_CALLS = `
    -- Of conversations alone: an event of anything else costs nothing, and no number of messages is in the way.
    create index usage_events_conversations_idx on public.usage_events (workspace_id, occurred_at) where ${IS_ROW.replaceAll('e.', '')};

    -- Takes one counted row back for each of up to p_limit calls of a workspace that have none yet (of one call: p_call_id), from the counter at once.
    -- Where somebody holds that, the rest is left for later. Returns how many. The last call takes the last row within its hour, and so on backwards:
    -- each row is looked at once, however many calls there are.
    create function agentd.pair_member_calls(p_workspace_id uuid, p_limit integer, p_call_id bigint default null) returns integer
    language plpgsql volatile set search_path = pg_catalog, pg_temp set lock_timeout = '50ms' as $$
    declare
      v_call   record;
      v_row    record;
      v_until  timestamptz := 'infinity';
      v_paired integer := 0;
    begin
      for v_call in
        with picked as materialized (
          select c.id, c.called_at
            from agentd.member_calls c
           where c.workspace_id = p_workspace_id and c.row_key is null and (p_call_id is null or c.id = p_call_id)
             and c.called_at > agentd.now() - interval '${KEPT}'
           order by c.looked_at, c.id limit p_limit for update skip locked
        ),
        looked as (
          update agentd.member_calls c set looked_at = clock_timestamp() from picked p where c.id = p.id
        )
        select p.id, p.called_at from picked p order by p.called_at desc, p.id desc
      loop
        begin
          select e.idempotency_key, e.occurred_at, e.agent_id into v_row
            from public.usage_events e
           where e.workspace_id = p_workspace_id
             and e.occurred_at between v_call.called_at - interval '${APART}' and least(v_call.called_at + interval '${APART}', v_until)
             and ${IS_ROW}
             and not exists (select 1 from public.usage_event_keys k
                              where k.workspace_id = e.workspace_id and k.idempotency_key = 'void:' || e.idempotency_key)
           order by e.occurred_at desc limit 1;
          if not found then
            v_until := least(v_until, v_call.called_at - interval '${APART}');
            continue;
          end if;
          v_until := v_row.occurred_at;
          if agentd.record_usage(p_workspace_id, 'conversation', -1, 'void:' || v_row.idempotency_key, 0, v_row.occurred_at, v_row.agent_id) then
            perform agentd.add_to_counter(p_workspace_id, v_row.occurred_at, 'conversations', -1);
            update agentd.member_calls c set row_key = v_row.idempotency_key where c.id = v_call.id;
            v_paired := v_paired + 1;
          end if;
        exception when lock_not_available then
          return v_paired;
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
          perform agentd.pair_member_calls(p_workspace_id, 1, v_call_id);
        end if;
      end if;
`;

export const DROP_MEMBER_CALLS = `
    drop function agentd.pair_member_calls(uuid, integer, bigint);
    drop index public.usage_events_conversations_idx;
    drop table agentd.member_calls;
`;
