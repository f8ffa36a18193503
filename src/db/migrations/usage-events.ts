/**
 * What makes events of usage by itself: messages and conversations as they are inserted, and the price of an application's own tokens.
 *
 * Each event is written in the transaction that it accounts for, by the time of the database: whoever sets `created_at` back does not
 * move his usage into another month.
 */
import { changed } from './run-sql.ts';

/** Rows that were counted so long before a workspace's first call of increment_conversation_count are what those calls are about. */
const BEFORE_FIRST_CALL = '1 hour';
/** A transaction that did not see the first call has ended by then. */
const AFTER_FIRST_CALL = '1 day';

/** The function as it was, with the moment from which calls are what counts. */
export function countCalls(before: string): string {
  return changed(
    before,
    `      -- Beyond the limit too: what has begun is counted.`,
    `      if not exists (select 1 from agentd.conversation_calls c where c.workspace_id = p_workspace_id) then
        insert into agentd.conversation_calls (workspace_id, since) values (p_workspace_id, agentd.now()) on conflict do nothing;
        if found then
          perform agentd.void_counted_rows(10000, p_workspace_id);
        end if;
      end if;
      -- Beyond the limit too: what has begun is counted.`,
  );
}

export const EVENT_FUNCTIONS = `
    -- One event a message, of a person or an agent, in a channel or a conversation. One that the application inserts again under its id counts once;
    -- a user chooses his ids himself, and what he inserts counts each time.
    create function agentd.count_message() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    declare
      v_agent uuid;
    begin
      if tg_argv[0] = 'channel' then
        v_agent := new.sender_agent_id;
      else
        v_agent := new.agent_id;
      end if;
      perform agentd.record_usage(
        new.workspace_id, 'message', 1, 'message:' || new.id || case when agentd.is_service_caller() then '' else ':' || gen_random_uuid() end, 0, null, v_agent, null, jsonb_build_object('in', tg_argv[0]));
      return null;
    end
    $$;

    -- A session and a conversation of one id are one. Where an application calls increment_conversation_count, its calls count instead. An id that
    -- a user inserts into the same table again is another conversation: its first row there has left a key.
    create function agentd.count_conversation() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    declare
      v_key text := 'conversation:' || new.id;
    begin
      if (select w.settings ->> 'count_conversations' from public.workspaces w where w.id = new.workspace_id) = 'calls' then
        return null;
      end if;
      if not agentd.is_service_caller() then
        insert into public.usage_event_keys (workspace_id, idempotency_key, recorded_at)
        values (new.workspace_id, tg_argv[0] || '-of-' || v_key, agentd.now())
        on conflict do nothing;
        if not found then
          v_key := v_key || ':' || gen_random_uuid();
        end if;
      end if;
      perform agentd.record_usage(
        new.workspace_id, 'conversation', 1, v_key, 0, null, new.agent_id, null, jsonb_build_object('in', tg_argv[0]));
      return null;
    end
    $$;

    -- An application that does both, inserts rows and calls, has had rows counted before its first call was seen: those of the last
    -- ${BEFORE_FIRST_CALL}, and of transactions that were under way, are taken back, each once, from the counter at once. Null: of all workspaces.
    -- Returns how many.
    create function agentd.void_counted_rows(p_limit integer, p_workspace_id uuid default null) returns integer
    language sql volatile set search_path = pg_catalog, pg_temp as $$
      with counted as materialized (
        select e.workspace_id, e.idempotency_key, e.occurred_at, e.agent_id
          from agentd.conversation_calls c
          join public.usage_events e on e.workspace_id = c.workspace_id
           and e.occurred_at >= c.since - interval '${BEFORE_FIRST_CALL}' and e.occurred_at < c.since + interval '${AFTER_FIRST_CALL}'
         where c.since > agentd.now() - 2 * interval '${AFTER_FIRST_CALL}'
           and (p_workspace_id is null or c.workspace_id = p_workspace_id)
           and e.metric = 'conversation' and e.idempotency_key like 'conversation:%'
           and exists (select 1 from public.workspaces w where w.id = e.workspace_id and w.settings ->> 'count_conversations' = 'calls')
           and not exists (select 1 from public.usage_event_keys k
                            where k.workspace_id = e.workspace_id and k.idempotency_key = 'void:' || e.idempotency_key)
         limit p_limit
      ),
      voided as materialized (
        select c.workspace_id, c.occurred_at from counted c
         where agentd.record_usage(c.workspace_id, 'conversation', -1, 'void:' || c.idempotency_key, 0, c.occurred_at, c.agent_id)
      ),
      taken as (
        insert into public.workspace_usage_counters as u (workspace_id, month, metric, used)
        select v.workspace_id, b.month, 'conversations', -count(*)
          from voided v, lateral agentd.month_bounds(v.workspace_id, v.occurred_at) b
         group by 1, 2 order by 1, 2
        on conflict (workspace_id, month, metric) do update set used = u.used + excluded.used
      )
      select count(*)::integer from voided
    $$;

    -- What a model has cost, and from when. The first price that a model is given is also that of the time before.
    create function agentd.keep_price() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      insert into agentd.model_prices (provider, model, input_cost_per_1k, output_cost_per_1k, valid_from)
      values (new.provider, new.model_id, new.input_cost_per_1k, new.output_cost_per_1k,
              case when exists (select 1 from agentd.model_prices p where p.provider = new.provider and p.model = new.model_id)
                then agentd.now() else '-infinity'::timestamptz end)
      on conflict (provider, model, valid_from) do update
         set input_cost_per_1k = excluded.input_cost_per_1k, output_cost_per_1k = excluded.output_cost_per_1k;
      return null;
    end
    $$;

    -- The cost of tokens that an application records without one, by the prices of the time at which they were used. Never fails: what
    -- is no number counts as none, and a model without a price costs nothing.
    create function agentd.price_usage() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    declare
      v_prompt     numeric;
      v_completion numeric;
    begin
      if jsonb_typeof(new.dimensions -> 'prompt_tokens') = 'number' then
        v_prompt := least(greatest((new.dimensions ->> 'prompt_tokens')::numeric, 0), 1e12);
      end if;
      if jsonb_typeof(new.dimensions -> 'completion_tokens') = 'number' then
        v_completion := least(greatest((new.dimensions ->> 'completion_tokens')::numeric, 0), 1e12);
      end if;
      if v_prompt is null and v_completion is null then
        v_prompt := greatest(new.quantity, 0);
      end if;
      select least(round((coalesce(v_prompt, 0) * p.input_cost_per_1k + coalesce(v_completion, 0) * p.output_cost_per_1k) * 1000), 1e12)
        into new.cost_micros
        from agentd.model_prices p
       where p.model = new.dimensions ->> 'model'
         and (p.provider = new.dimensions ->> 'provider' or not new.dimensions ? 'provider')
         and p.valid_from <= new.occurred_at
       order by p.valid_from desc
       limit 1;
      new.cost_micros := coalesce(new.cost_micros, 0);
      return new;
    end
    $$;
`;

export const EVENT_TRIGGERS = `
    create trigger count_message after insert on public.chat_messages
      for each row execute function agentd.count_message('channel');
    create trigger count_message after insert on public.agent_messages
      for each row execute function agentd.count_message('conversation');
    create trigger count_conversation after insert on public.conversations
      for each row execute function agentd.count_conversation('conversation');
    create trigger count_conversation after insert on public.chat_sessions
      for each row execute function agentd.count_conversation('session');
    create trigger keep_price_insert after insert on public.llm_models
      for each row execute function agentd.keep_price();
    create trigger keep_price_update after update of provider, model_id, input_cost_per_1k, output_cost_per_1k on public.llm_models
      for each row when ((new.provider, new.model_id, new.input_cost_per_1k, new.output_cost_per_1k)
                         is distinct from (old.provider, old.model_id, old.input_cost_per_1k, old.output_cost_per_1k))
      execute function agentd.keep_price();
    -- the worker's own events know what they have cost
    create trigger price_usage before insert on public.usage_events
      for each row when (new.metric = 'tokens' and new.cost_micros = 0 and new.run_id is null and new.dimensions ? 'model')
      execute function agentd.price_usage();
`;

export const DROP_EVENTS = `
    drop trigger price_usage on public.usage_events;
    drop trigger keep_price_update on public.llm_models;
    drop trigger keep_price_insert on public.llm_models;
    drop trigger count_conversation on public.chat_sessions;
    drop trigger count_conversation on public.conversations;
    drop trigger count_message on public.agent_messages;
    drop trigger count_message on public.chat_messages;
    drop function agentd.price_usage();
    drop function agentd.keep_price();
    drop function agentd.void_counted_rows(integer, uuid);
    drop function agentd.count_conversation();
    drop function agentd.count_message();
`;
