/**
 * Tasks, their steps and triggers; runs and their journal.
 *
 * The journal (task_runs, task_step_runs, llm_calls, tool_calls) is the execution log and the recovery
 * journal at once. Its rules:
 *
 * - A run copies its steps and settings when it is inserted; later edits of the task do not change it.
 * - `lease_epoch` rises at every claim and is the only fence. A worker's write names the epoch that it
 *   belongs to and changes nothing when another epoch is in force.
 * - `journal_seq` rises with every checkpoint, so that a checkpoint whose answer was lost is not applied twice.
 * - A call's row exists with status started before the call is made. Its idempotency key is a function of
 *   run, step order, turn (and call index): neither an attempt nor a provider's id is in it.
 */
import { type Kysely, sql } from 'kysely';

/** The function as this migration makes it; a later one replaces it and gives it back on its way down. */
export const PREPARE_RUN = `
    create or replace function agentd.prepare_run() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    declare
      v_task  record;
    begin
      -- one statement for all that is read: an insert of a run is waited for by an application
      select t.workspace_id, t.agent_id, t.user_id, t.overlap_policy, a.status as agent_status, a.is_active as agent_active,
             jsonb_build_object(
               'task_name', t.name,
               'instructions', t.instructions,
               'selected_tools', t.selected_tools,
               'timeout_seconds', t.timeout_seconds,
               'max_retries', t.max_retries,
               'target_conversation_id', t.target_conversation_id,
               'target_channel_id', t.target_channel_id) as settings,
             coalesce((
               select jsonb_agg(jsonb_build_object(
                        'id', s.id,
                        -- by position, so that gaps in the numbering do not matter to a run
                        'order', s.position,
                        'name', s.step_name,
                        'instructions', s.instructions,
                        'include_previous_context', s.include_previous_context,
                        'max_retries', s.max_retries,
                        'timeout_seconds', s.timeout_seconds))
                 from (select i.*, row_number() over (order by i.step_order) as position
                         from public.task_steps i where i.task_id = t.id) s
             ), jsonb_build_array(jsonb_build_object(
                  'id', null, 'order', 1, 'name', t.name, 'instructions', '', 'include_previous_context', false))) as steps
        into v_task
        from public.agent_tasks t
        join public.agents a on a.id = t.agent_id
       where t.id = new.task_id;
      if not found then
        raise exception using
          errcode = 'foreign_key_violation',
          message = format('task %s does not exist', coalesce(new.task_id::text, 'null')),
          hint = 'Insert the task into agent_tasks first and give its id as task_id.';
      end if;

      new.workspace_id := coalesce(new.workspace_id, v_task.workspace_id);
      new.agent_id := coalesce(new.agent_id, v_task.agent_id);
      new.user_id := coalesce(new.user_id, v_task.user_id);
      new.is_serial := new.is_serial or (v_task.overlap_policy = 'queue' and new.trigger in ('schedule', 'catch_up'));

      -- a run that is only recorded as skipped executes nothing
      new.steps := case when new.status = 'skipped' then '[]' else coalesce(new.steps, v_task.steps) end;
      new.settings := case when new.status = 'skipped' then '{}' else coalesce(new.settings, v_task.settings) end;
      if octet_length(new.steps::text) + octet_length(new.settings::text) > 1000000 then
        new.status := 'failed';
        new.reason_code := 'task_too_large';
        new.reason := 'The instructions of the task and its steps are more than a megabyte. Shorten them, or keep the text as knowledge.';
        new.steps := '[]';
        new.settings := '{}';
        new.finished_at := agentd.now();
      end if;

      if new.status = 'queued' and new.trigger in ('schedule', 'catch_up', 'event')
         and not (v_task.agent_status = 'live' and v_task.agent_active) then
        new.status := 'skipped';
        new.reason_code := case when v_task.agent_active then 'agent_draft' else 'agent_inactive' end;
        new.reason := case when v_task.agent_active
          then 'The agent is a draft. Set its status to live to let its schedule run.'
          else 'The agent is not active. Set is_active to let its schedule run.' end;
        new.finished_at := agentd.now();
      end if;

      -- While a daemon sleeps, the run gets its job here and now, and the daemon is woken: latency is what counts.
      -- While all are awake the row itself is the request: they admit new rows in batches, which costs an
      -- application's insert nothing (a job in pg-boss was half of it).
      if new.status = 'queued' and new.job_id is null
         and exists (select 1 from agentd.sleepers s where s.queue = 'task-run')
         and agentd.workspace_room(new.workspace_id) > 0
         and not (new.is_serial and exists (
           select 1 from public.task_runs r
            where r.task_id = new.task_id and r.status in ('queued', 'running', 'waiting'))) then
        new.job_id := agentd.enqueue('task-run', jsonb_build_object('run_id', new.id), new.id::text, new.workspace_id, new.wake_at);
      end if;
      return new;
    end
    $$;`;

/** As above. */
export const CLOSE_RUN = `
    create or replace function agentd.close_run() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    begin
      update public.llm_calls
         set status = 'failed', error_code = new.reason_code, error_message = new.reason, finished_at = agentd.now()
       where run_id = new.id and status in ('started', 'waiting');
      update public.tool_calls
         set status = case when status = 'started' and effect = 'write' then 'unknown' else 'failed' end::public.call_status,
             error_code = new.reason_code, error_message = new.reason, finished_at = agentd.now()
       where run_id = new.id and status in ('started', 'waiting');
      update public.task_step_runs
         set status = 'failed', reason_code = new.reason_code, error_message = new.reason, finished_at = agentd.now()
       where run_id = new.id and status in ('pending', 'running');
      perform pg_notify('agentd_cancel', new.id::text);
      perform agentd.notify_run(new.id, new.workspace_id, new.task_id, new.status, new.reason_code);
      perform agentd.drop_job('task-run', new.job_id);
      perform agentd.admit_runs(new.workspace_id);
      return null;
    end
    $$;`;

/** As above. */
export const CANCEL_RUN = `
    create or replace function agentd.cancel_run(p_run_id uuid) returns boolean
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    declare
      v_workspace uuid;
    begin
      select workspace_id into v_workspace from public.task_runs where id = p_run_id;
      if v_workspace is null or not agentd.may_manage(v_workspace) then
        raise exception using
          errcode = 'insufficient_privilege',
          message = format('run %s does not exist, or you are not a manager of its workspace', p_run_id);
      end if;
      update public.task_runs
         set status = 'cancelled', reason_code = 'cancelled', reason = 'The run was cancelled by a person.'
       where id = p_run_id and status in ('queued', 'running', 'waiting');
      if found then
        insert into agentd.audit_log (actor, action, object_type, object_id, workspace_id)
        values (public.current_user_id(), 'cancel', 'run', p_run_id, v_workspace);
        return true;
      end if;
      return false;
    end
    $$;`;

/** As above. */
export const FILL_TASK = `
    create or replace function agentd.fill_task() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    begin
      if new.workspace_id is null then
        select workspace_id into new.workspace_id from public.agents where id = new.agent_id;
      end if;
      if new.user_id is null then
        new.user_id := coalesce(public.current_user_id(),
          (select user_id from public.agents where id = new.agent_id));
      end if;
      -- A run's answers and logs appear in its user's lists: nobody plants them in a stranger's.
      if (tg_op = 'INSERT' or new.user_id is distinct from old.user_id)
         and not agentd.is_service_caller()
         and not exists (select 1 from public.user_roles r
                          where r.user_id = new.user_id and r.workspace_id = new.workspace_id) then
        raise exception using
          errcode = 'insufficient_privilege',
          message = format('user %s is no member of the workspace of this task', new.user_id),
          hint = 'Leave user_id out, or name a member.';
      end if;
      return new;
    end
    $$;`;

/** As above. */
export const RESET_NEXT_RUN = `
    create or replace function agentd.reset_next_run() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp
    as $$
    begin
      if new.next_run_at is not distinct from old.next_run_at
         and (new.cron_expression is distinct from old.cron_expression
              or new.timezone is distinct from old.timezone
              or new.start_date is distinct from old.start_date
              or new.end_date is distinct from old.end_date
              or (new.status = 'active' and old.status <> 'active'))
         and new.cron_expression is not null then
        new.next_run_at := null;
      end if;
      if new.status = 'active' and old.status <> 'active' then
        new.reason_code := null;
        new.reason := null;
      end if;
      return new;
    end
    $$;`;

export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    create table public.agent_tasks (
      id                       uuid primary key default gen_random_uuid(),
      workspace_id             uuid not null references public.workspaces (id) on delete cascade,
      user_id                  uuid not null references auth.users (id) on delete cascade,
      agent_id                 uuid not null,
      name                     text not null,
      description              text,
      task_type                public.task_type not null default 'scheduled',
      status                   public.task_status not null default 'active',
      -- why agentd paused, completed or failed the task; null while it is as the user left it
      reason_code              text,
      reason                   text,
      instructions             text not null default '' check (octet_length(instructions) <= 1000000),
      is_multi_step            boolean not null default false,
      step_count               integer not null default 1,
      -- names of the tools that the task may use; an empty array means the agent's usual ones
      selected_tools           jsonb not null default '[]',
      cron_expression          text,
      timezone                 text not null default 'UTC',
      next_run_at              timestamptz,
      last_run_at              timestamptz,
      start_date               date,
      end_date                 date,
      max_executions           integer,
      total_executions         integer not null default 0,
      overlap_policy           text not null default 'skip' check (overlap_policy in ('skip', 'queue', 'allow')),
      misfire_policy           text not null default 'run_once' check (misfire_policy in ('run_once', 'skip', 'run_all')),
      -- wall time of a run, in seconds
      timeout_seconds          integer not null default 900 check (timeout_seconds > 0),
      -- retries of a step after its first attempt
      max_retries              integer not null default 3 check (max_retries >= 0),
      target_conversation_id   uuid,
      target_channel_id        uuid,
      created_at               timestamptz not null default now(),
      updated_at               timestamptz not null default now(),
      unique (workspace_id, id),
      foreign key (workspace_id, agent_id)
        references public.agents (workspace_id, id) on delete cascade,
      foreign key (workspace_id, target_conversation_id)
        references public.conversations (workspace_id, id) on delete set null (target_conversation_id),
      foreign key (workspace_id, target_channel_id)
        references public.chat_channels (workspace_id, id) on delete set null (target_channel_id)
    );

    create index agent_tasks_user_id_idx on public.agent_tasks (user_id);
    create index agent_tasks_agent_idx on public.agent_tasks (workspace_id, agent_id);
    create index agent_tasks_conversation_idx on public.agent_tasks (workspace_id, target_conversation_id);
    create index agent_tasks_channel_idx on public.agent_tasks (workspace_id, target_channel_id);
    create index idx_agent_tasks_next_run_at on public.agent_tasks (next_run_at) where status = 'active';
    -- tasks whose first occurrence has yet to be computed
    create index agent_tasks_unplanned_idx on public.agent_tasks (created_at)
      where status = 'active' and task_type = 'scheduled' and next_run_at is null and cron_expression is not null;

    create table public.task_steps (
      id                       uuid primary key default gen_random_uuid(),
      task_id                  uuid not null references public.agent_tasks (id) on delete cascade,
      step_order               integer not null check (step_order >= 1),
      step_name                text not null,
      instructions             text not null default '' check (octet_length(instructions) <= 1000000),
      include_previous_context boolean not null default false,
      -- null: the task's
      max_retries              integer check (max_retries >= 0),
      timeout_seconds          integer check (timeout_seconds > 0),
      -- the last run's result; a run never reads it
      status                   public.task_step_status not null default 'pending',
      execution_result         jsonb,
      execution_started_at     timestamptz,
      execution_completed_at   timestamptz,
      execution_duration_ms    integer,
      error_message            text,
      retry_count              integer not null default 0,
      created_at               timestamptz not null default now(),
      updated_at               timestamptz not null default now(),
      -- deferred, so that steps can be renumbered in one statement or in several
      unique (task_id, step_order) deferrable initially deferred
    );

    create table public.agent_task_event_triggers (
      id                uuid primary key default gen_random_uuid(),
      workspace_id      uuid not null,
      task_id           uuid not null,
      trigger_type      text not null check (trigger_type in ('email_received', 'integration_webhook', 'time_based',
                          'manual', 'agent_mentioned', 'file_uploaded', 'workspace_message')),
      name              text,
      config            jsonb not null default '{}',
      conditions        jsonb not null default '{}',
      cooldown_seconds  integer not null default 0 check (cooldown_seconds >= 0),
      trigger_count     integer not null default 0,
      last_triggered_at timestamptz,
      is_active         boolean not null default true,
      created_at        timestamptz not null default now(),
      updated_at        timestamptz not null default now(),
      foreign key (workspace_id, task_id) references public.agent_tasks (workspace_id, id) on delete cascade
    );

    create index agent_task_event_triggers_task_idx on public.agent_task_event_triggers (workspace_id, task_id);
    create index agent_task_event_triggers_active_idx
      on public.agent_task_event_triggers (workspace_id, trigger_type) where is_active;

    create table public.task_runs (
      id                uuid primary key default gen_random_uuid(),
      -- the order in which runs are let in: rows of one transaction have the same created_at
      seq               bigint generated always as identity,
      workspace_id      uuid not null references public.workspaces (id) on delete cascade,
      -- null once the task or agent is deleted: the run and its journal stay
      task_id           uuid,
      agent_id          uuid,
      user_id           uuid references auth.users (id) on delete set null,
      retry_of_run_id   uuid references public.task_runs (id) on delete set null,
      trigger           public.run_trigger not null default 'manual',
      scheduled_for     timestamptz,
      status            public.run_status not null default 'queued',
      reason_code       text,
      reason            text,
      -- what this run executes, copied at its creation: [{id, order, name, instructions, include_previous_context, …}]
      steps             jsonb not null,
      settings          jsonb not null,
      -- must wait until earlier runs of its task have ended (overlap_policy queue)
      is_serial         boolean not null default false,
      -- a worker holds the inputs of many tenants in memory
      input             jsonb not null default '{}' check (octet_length(input::text) <= 1000000),
      output            jsonb,
      current_step      integer not null default 0,
      -- pg-boss's job; null while the run waits in its workspace's waiting room
      job_id            uuid,
      -- seen by a daemon and left waiting: there was no room
      is_parked         boolean not null default false,
      lease_epoch       integer not null default 0,
      journal_seq       integer not null default 0,
      worker_id         text,
      lease_expires_at  timestamptz,
      -- claims since the last checkpoint: a run that keeps killing its worker is given up
      claims_without_progress integer not null default 0,
      wake_at           timestamptz,
      turns             integer not null default 0,
      tool_calls        integer not null default 0,
      prompt_tokens     bigint not null default 0,
      completion_tokens bigint not null default 0,
      cost_micros       bigint not null default 0,
      created_at        timestamptz not null default now(),
      started_at        timestamptz,
      finished_at       timestamptz,
      unique (task_id, scheduled_for),
      foreign key (workspace_id, task_id)
        references public.agent_tasks (workspace_id, id) on delete set null (task_id),
      foreign key (workspace_id, agent_id)
        references public.agents (workspace_id, id) on delete set null (agent_id)
    ) with (fillfactor = 70);

    create index task_runs_workspace_idx on public.task_runs (workspace_id, created_at);
    create index task_runs_task_idx on public.task_runs (workspace_id, task_id);
    create index task_runs_agent_idx on public.task_runs (workspace_id, agent_id);
    create index task_runs_user_idx on public.task_runs (user_id);
    create index task_runs_retry_of_idx on public.task_runs (retry_of_run_id) where retry_of_run_id is not null;
    -- the waiting room: oldest first within a workspace
    create index task_runs_waiting_room_idx on public.task_runs (workspace_id, seq)
      where status = 'queued' and job_id is null;
    -- new runs that no daemon has looked at
    create index task_runs_arrivals_idx on public.task_runs (seq)
      where status = 'queued' and job_id is null and not is_parked;
    -- admitted and unfinished: what counts against a workspace's ceiling
    create index task_runs_admitted_idx on public.task_runs (workspace_id)
      where status in ('queued', 'running') and job_id is not null;
    -- Running runs are few. Their leases are not in the index, so that renewing one is a heap-only update.
    create index task_runs_running_idx on public.task_runs (id) where status = 'running';
    -- runs to wake
    create index task_runs_wake_idx on public.task_runs (wake_at) where status = 'waiting' and wake_at is not null;
    create index task_runs_live_by_task_idx on public.task_runs (task_id)
      where status in ('queued', 'running', 'waiting');

    create table public.task_step_runs (
      id                uuid primary key default gen_random_uuid(),
      workspace_id      uuid not null,
      run_id            uuid not null references public.task_runs (id) on delete cascade,
      -- the template that was copied; it may be gone
      step_id           uuid,
      step_order        integer not null,
      step_name         text not null,
      -- rises only when an attempt of the step failed
      attempt           integer not null default 1,
      status            public.task_step_status not null default 'pending',
      -- the messages and tools that the step began with, and what was left out of them
      context           jsonb,
      result            jsonb,
      reason_code       text,
      error_message     text,
      started_at        timestamptz,
      finished_at       timestamptz,
      duration_ms       integer,
      created_at        timestamptz not null default now(),
      unique (run_id, step_order)
    );

    create table public.llm_calls (
      id                uuid primary key default gen_random_uuid(),
      workspace_id      uuid not null,
      agent_id          uuid,
      run_id            uuid not null references public.task_runs (id) on delete cascade,
      step_order        integer not null,
      turn              integer not null,
      idempotency_key   text not null unique,
      provider          text,
      model             text,
      llm_model_id      uuid,
      -- whose key paid: agent, workspace or environment
      credential_source text,
      status            public.call_status not null default 'started',
      attempt           integer not null default 1,
      -- tries that the provider failed; rate limits do not count
      failures          integer not null default 0,
      response          jsonb,
      finish_reason     text,
      prompt_tokens     integer not null default 0,
      completion_tokens integer not null default 0,
      cached_tokens     integer not null default 0,
      cost_micros       bigint not null default 0,
      latency_ms        integer,
      error_code        text,
      error_message     text,
      created_at        timestamptz not null default now(),
      finished_at       timestamptz
    ) with (fillfactor = 70);

    create index llm_calls_run_idx on public.llm_calls (run_id, step_order, turn);
    create index llm_calls_workspace_idx on public.llm_calls (workspace_id, created_at);

    create table public.tool_calls (
      id                uuid primary key default gen_random_uuid(),
      workspace_id      uuid not null,
      agent_id          uuid,
      run_id            uuid not null references public.task_runs (id) on delete cascade,
      step_order        integer not null,
      turn              integer not null,
      call_index        integer not null,
      idempotency_key   text not null unique,
      -- the id by which the model refers to the call
      provider_call_id  text not null,
      tool_name         text not null,
      source            text not null,
      -- read, idempotent or write: what recovery may repeat
      effect            text not null check (effect in ('read', 'idempotent', 'write')),
      connection_id     uuid,
      credential_id     uuid,
      arguments         jsonb not null default '{}',
      result            jsonb,
      status            public.call_status not null default 'started',
      error_code        text,
      error_message     text,
      duration_ms       integer,
      decided_by        uuid,
      decided_at        timestamptz,
      created_at        timestamptz not null default now(),
      finished_at       timestamptz
    ) with (fillfactor = 70);

    create index tool_calls_run_idx on public.tool_calls (run_id, step_order, turn, call_index);
    create index tool_calls_workspace_idx on public.tool_calls (workspace_id, created_at);
  `.execute(db);

  await sql`
    -- The workspace, owner and agent that an insert leaves out.
    ${sql.raw(FILL_TASK)}
    create trigger fill_task before insert or update of user_id on public.agent_tasks
      for each row execute function agentd.fill_task();
    create trigger set_updated_at before update on public.agent_tasks
      for each row execute function agentd.set_updated_at();
    create trigger set_updated_at before update on public.task_steps
      for each row execute function agentd.set_updated_at();
    create trigger set_updated_at before update on public.agent_task_event_triggers
      for each row execute function agentd.set_updated_at();

    -- An edited schedule, or a resumed task, starts from now: null is what the scheduler computes anew.
    -- An application that sets next_run_at in the same statement is taken at its word.
    ${sql.raw(RESET_NEXT_RUN)}
    create trigger reset_next_run before update on public.agent_tasks
      for each row execute function agentd.reset_next_run();

    -- Wakes the scheduler when a task's next time is new, earlier, or to be computed.
    create function agentd.wake_scheduler() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    begin
      if new.status = 'active' and new.task_type = 'scheduled'
         and (new.cron_expression is not null or new.next_run_at is not null) then
        perform pg_notify('agentd_schedule', '');
      end if;
      return null;
    end
    $$;
    create trigger wake_scheduler_insert after insert on public.agent_tasks
      for each row execute function agentd.wake_scheduler();
    -- not when the scheduler itself moves next_run_at onwards
    create trigger wake_scheduler_update after update on public.agent_tasks
      for each row
      when (new.status = 'active'
            and ((new.next_run_at is null and old.next_run_at is not null)
                 or new.next_run_at < old.next_run_at
                 or (new.next_run_at is not null and old.next_run_at is null and new.cron_expression is null)
                 or old.status <> 'active'))
      execute function agentd.wake_scheduler();

    create function agentd.count_steps() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    declare
      v_task uuid;
    begin
      for v_task in
        select distinct task_id from changed order by task_id
      loop
        update public.agent_tasks t
           set step_count = greatest(n.steps, 1), is_multi_step = n.steps > 1
          from (select count(*)::integer as steps from public.task_steps where task_id = v_task) n
         where t.id = v_task
           and (t.step_count, t.is_multi_step) is distinct from (greatest(n.steps, 1), n.steps > 1);
      end loop;
      return null;
    end
    $$;
    create trigger count_steps_insert after insert on public.task_steps
      referencing new table as changed for each statement execute function agentd.count_steps();
    create trigger count_steps_delete after delete on public.task_steps
      referencing old table as changed for each statement execute function agentd.count_steps();

    create function agentd.fill_event_trigger() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    begin
      if new.workspace_id is null then
        select workspace_id into new.workspace_id from public.agent_tasks where id = new.task_id;
      end if;
      return new;
    end
    $$;
    create trigger fill_event_trigger before insert on public.agent_task_event_triggers
      for each row execute function agentd.fill_event_trigger();
  `.execute(db);

  await sql`
    -- The key of a call: equal for every attempt at the same place of the same run.
    create function agentd.call_key(run_id uuid, step_order integer, turn integer, call_index integer default null)
    returns text
    language sql immutable set search_path = pg_catalog, pg_temp
    as $$
      select encode(sha256(convert_to(concat_ws(':', run_id, step_order, turn, call_index), 'UTF8')), 'hex')
    $$;

    -- May the caller act on runs and tasks of a workspace? Services may; a signed-in user must be a MANAGER of it.
    create function agentd.may_manage(workspace_id uuid) returns boolean
    language sql stable security definer set search_path = pg_catalog, pg_temp
    as $$
      select agentd.is_service_caller()
          or exists (select 1 from agentd.my_workspace_ids('MANAGER') as w (id) where w.id = may_manage.workspace_id)
    $$;

    -- Everything that an insert of a run leaves out comes from its task. The steps are copied here.
    -- Runs of an agent that is a draft or inactive are recorded as skipped unless a person asked for them.
    ${sql.raw(PREPARE_RUN)}
    create trigger prepare_run before insert on public.task_runs
      for each row execute function agentd.prepare_run();

    -- A run that is cancelled, by anyone and by any statement, whose job is dead, or whose task or agent was deleted, ends here:
    -- its epoch rises, so that a worker on it can write nothing more.
    create function agentd.end_run() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    begin
      if new.status in ('queued', 'running', 'waiting') then
        new.status := 'cancelled';
        if new.agent_id is null then
          new.reason_code := 'agent_deleted';
          new.reason := 'The agent was deleted before the run ended.';
        else
          new.reason_code := 'task_deleted';
          new.reason := 'The task was deleted before the run ended.';
        end if;
      end if;
      if new.status = 'cancelled' then
        new.reason_code := coalesce(new.reason_code, 'cancelled');
        new.reason := coalesce(new.reason, 'The run was cancelled.');
      end if;
      new.lease_epoch := old.lease_epoch + 1;
      new.lease_expires_at := null;
      new.wake_at := null;
      new.finished_at := agentd.now();
      return new;
    end
    $$;
    create trigger end_run before update on public.task_runs
      for each row
      when (old.status in ('queued', 'running', 'waiting')
            and (new.status = 'cancelled'
                 or (new.status = 'failed' and new.reason_code = 'job_failed')
                 or (old.task_id is not null and new.task_id is null)
                 or (old.agent_id is not null and new.agent_id is null)))
      execute function agentd.end_run();

    -- What follows when a run ends other than by its worker: open calls and steps are closed, the worker is told,
    -- the next run is let in.
    ${sql.raw(CLOSE_RUN)}
    create trigger close_run after update on public.task_runs
      for each row
      when ((new.status = 'cancelled' and old.status <> 'cancelled')
            or (new.status = 'failed' and old.status <> 'failed' and new.reason_code = 'job_failed'))
      execute function agentd.close_run();

    -- The notification that applications follow: LISTEN agentd_runs.
    create function agentd.notify_run(
      run_id uuid, workspace_id uuid, task_id uuid, status public.run_status, reason_code text
    ) returns void
    language plpgsql volatile set search_path = pg_catalog, pg_temp
    as $$
    begin
      perform pg_notify('agentd_runs', json_build_object(
        'run_id', run_id, 'workspace_id', workspace_id, 'task_id', task_id,
        'status', status, 'reason_code', reason_code)::text);
    end
    $$;
  `.execute(db);

  await sql`
    -- Inserts a step at its place; the steps from there on move down by one. Returns the step's id.
    create function public.create_task_step(
      p_task_id uuid, p_step_order integer, p_step_name text, p_instructions text
    ) returns uuid
    language plpgsql set search_path = pg_catalog, pg_temp
    as $$
    declare
      v_id uuid;
    begin
      update public.task_steps set step_order = step_order + 1
       where task_id = p_task_id and step_order >= p_step_order;
      insert into public.task_steps (task_id, step_order, step_name, instructions)
      values (p_task_id, p_step_order, p_step_name, p_instructions)
      returning id into v_id;
      return v_id;
    end
    $$;

    -- Changes what is given; null leaves a column as it is. Returns whether the step exists.
    create function public.update_task_step(
      p_step_id uuid,
      p_step_name text default null,
      p_instructions text default null,
      p_include_previous_context boolean default null
    ) returns boolean
    language plpgsql set search_path = pg_catalog, pg_temp
    as $$
    begin
      update public.task_steps
         set step_name = coalesce(p_step_name, step_name),
             instructions = coalesce(p_instructions, instructions),
             include_previous_context = coalesce(p_include_previous_context, include_previous_context)
       where id = p_step_id;
      return found;
    end
    $$;

    -- Deletes a step; later ones move up. Returns whether the step existed.
    create function public.delete_task_step(p_step_id uuid) returns boolean
    language plpgsql set search_path = pg_catalog, pg_temp
    as $$
    declare
      v_task  uuid;
      v_order integer;
    begin
      delete from public.task_steps where id = p_step_id returning task_id, step_order into v_task, v_order;
      if v_task is null then
        return false;
      end if;
      update public.task_steps set step_order = step_order - 1 where task_id = v_task and step_order > v_order;
      return true;
    end
    $$;

    create function agentd.run_task(p_task_id uuid, p_input jsonb) returns uuid
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    declare
      v_workspace uuid;
      v_run       uuid;
    begin
      select workspace_id into v_workspace from public.agent_tasks where id = p_task_id;
      if v_workspace is null or not agentd.may_manage(v_workspace) then
        raise exception using
          errcode = 'insufficient_privilege',
          message = format('task %s does not exist, or you are not a manager of its workspace', p_task_id);
      end if;
      insert into public.task_runs (task_id, workspace_id, trigger, input, user_id)
      values (p_task_id, v_workspace, 'manual', coalesce(p_input, '{}'), public.current_user_id())
      returning id into v_run;
      return v_run;
    end
    $$;

    ${sql.raw(CANCEL_RUN)}

    -- Starts a run of a task at once, as a person's request: neither overlap nor schedule hold it back.
    create function public.run_task(task_id uuid, input jsonb default '{}') returns uuid
    language sql set search_path = pg_catalog, pg_temp
    as $$ select agentd.run_task(task_id, input) $$;

    -- Ends a run that has not ended. Returns false if it had. A model or tool call in flight is aborted.
    create function public.cancel_run(run_id uuid) returns boolean
    language sql set search_path = pg_catalog, pg_temp
    as $$ select agentd.cancel_run(run_id) $$;
  `.execute(db);
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await sql`
    drop function public.cancel_run(uuid);
    drop function public.run_task(uuid, jsonb);
    drop function agentd.cancel_run(uuid);
    drop function agentd.run_task(uuid, jsonb);
    drop function public.delete_task_step(uuid);
    drop function public.update_task_step(uuid, text, text, boolean);
    drop function public.create_task_step(uuid, integer, text, text);
    drop table public.tool_calls;
    drop table public.llm_calls;
    drop table public.task_step_runs;
    drop table public.task_runs;
    drop table public.agent_task_event_triggers;
    drop table public.task_steps;
    drop table public.agent_tasks;
    drop function agentd.notify_run(uuid, uuid, uuid, public.run_status, text);
    drop function agentd.close_run();
    drop function agentd.end_run();
    drop function agentd.prepare_run();
    drop function agentd.may_manage(uuid);
    drop function agentd.call_key(uuid, integer, integer, integer);
    drop function agentd.fill_event_trigger();
    drop function agentd.count_steps();
    drop function agentd.wake_scheduler();
    drop function agentd.reset_next_run();
    drop function agentd.fill_task();
  `.execute(db);
}
