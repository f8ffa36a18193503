/**
 * What runs have said, on its way to memories: datastores of type getzep whose config says {"use": "memory"}.
 *
 * A row is made in the transaction in which a run completes, with ids alone; what was said is read from the run when it is sent. So a
 * run that did not commit is not remembered, and one that did is, unless the store can't be reached for a day.
 */
export const MEMORY_TABLES = `
    create table agentd.memory_outbox (
      run_id       uuid        primary key,
      workspace_id uuid        not null,
      datastore_id uuid        not null,
      -- raised by each claim: a request that was sent may have been carried out
      attempts     integer     not null default 0,
      due_at       timestamptz not null default agentd.now(),
      reason_code  text,
      reason       text,
      created_at   timestamptz not null default agentd.now()
    );
    create index memory_outbox_due_idx on agentd.memory_outbox (datastore_id, due_at);
    comment on table agentd.memory_outbox is 'Runs whose request and answer have yet to reach the memory of their agent.';

    -- The memory of a run's agent, if it has one: the oldest store that is connected. thread names the talk: the conversation or channel
    -- that the run belongs to, else its task.
    create function agentd.memory_of(p_run public.task_runs)
    returns table (datastore_id uuid, workspace_id uuid, config jsonb, thread text)
    language sql stable security definer set search_path = pg_catalog, pg_temp as $$
      select d.id, d.workspace_id, d.config,
             coalesce('conversation:' || nullif(p_run.settings ->> 'target_conversation_id', ''),
                      'channel:' || coalesce(nullif(p_run.input #>> '{event,data,channel_id}', ''), nullif(p_run.settings ->> 'target_channel_id', '')),
                      'task:' || p_run.task_id)
        from public.agent_datastores l
        join public.datastores d on d.id = l.datastore_id
       where l.agent_id = p_run.agent_id and l.is_active and d.type = 'getzep' and d.config ->> 'use' = 'memory'
         and p_run.user_id is not null and p_run.task_id is not null
         and (d.workspace_id = p_run.workspace_id
              or exists (select 1 from public.user_roles r where r.user_id = d.user_id and r.workspace_id = p_run.workspace_id))
       order by d.created_at, d.id
       limit 1
    $$;

    create function agentd.note_memory() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      -- most agents have none, and a function in SQL is planned at each call: ten times as dear as this
      if not exists (
        select 1 from public.agent_datastores l
          join public.datastores d on d.id = l.datastore_id
         where l.agent_id = new.agent_id and l.is_active and d.type = 'getzep' and d.config ->> 'use' = 'memory') then
        return null;
      end if;
      insert into agentd.memory_outbox (run_id, workspace_id, datastore_id)
      select new.id, new.workspace_id, m.datastore_id from agentd.memory_of(new) m
      on conflict do nothing;
      return null;
    end
    $$;
    create trigger note_memory after update of status on public.task_runs
      for each row when (new.status = 'completed' and old.status <> 'completed') execute function agentd.note_memory();
`;

export const DROP_MEMORY_TABLES = `
    drop trigger note_memory on public.task_runs;
    drop function agentd.note_memory();
    drop function agentd.memory_of(public.task_runs);
    drop table agentd.memory_outbox;
`;
