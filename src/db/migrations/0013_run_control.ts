/**
 * What puts runs into people's hands: approvals, retries, failure policies, tasks that pause themselves, the audit log.
 *
 * A run that waits for a decision has calls with status waiting. They are journaled in the same checkpoint that lets the run wait,
 * so nobody can decide on a call of a run that is still being executed; `decide_tool_call` locks the run before it decides.
 */
import { type Kysely, sql } from 'kysely';
import { CANCEL_RUN, CLOSE_RUN, PREPARE_RUN, RESET_NEXT_RUN } from './0008_tasks.ts';
import { applyAccess } from './access.ts';
import { changed } from './run-sql.ts';

export async function up(db: Kysely<unknown>): Promise<void> {
  await addColumns(db);
  await audit(db);
  await changeRuns(db);
  await addDoors(db);
  await applyAccess(db);
}

async function addColumns(db: Kysely<unknown>): Promise<void> {
  await sql`
    -- Which calls a person must allow first: none, those of tools that write, or all but reads. The stricter of agent and task counts.
    alter table public.agents
      add column approval_policy text not null default 'none' check (approval_policy in ('none', 'writes', 'all'));

    alter table public.agent_tasks
      add column approval_policy text not null default 'none' check (approval_policy in ('none', 'writes', 'all')),
      -- scheduled runs in a row that fail before the task is paused; null: never
      add column pause_after_failures integer default 5 check (pause_after_failures >= 1),
      -- failures before this moment do not count: the task was resumed
      add column failures_since timestamptz;

    -- what the last failed attempt does: stop the run, skip the step (as if it had not been there), or go on with the failure noted
    alter table public.task_steps
      add column on_failure text not null default 'stop' check (on_failure in ('stop', 'skip', 'continue'));

    alter table public.task_runs
      -- since when the run waits for a person or a budget; that time does not count against timeout_seconds
      add column paused_at timestamptz,
      add column waited_ms bigint not null default 0,
      -- time that workers spent on the run
      add column active_ms bigint not null default 0,
      -- W3C trace context of the application's own span, of which the run is to be a child
      add column traceparent text check (length(traceparent) <= 200);

    -- what was not sent with the call because the conversation outgrew the agent's window
    alter table public.llm_calls add column left_out jsonb;

    alter table public.tool_calls
      -- null until a person has decided
      add column approved boolean,
      add column decision_reason text;
    create index tool_calls_undecided_idx on public.tool_calls (workspace_id, created_at) where status = 'waiting';
  `.execute(db);
}

async function audit(db: Kysely<unknown>): Promise<void> {
  await sql`
    -- Records what a person or an operator did. The command line names the person at the terminal in agentd.operator.
    create function agentd.audit(
      p_action text, p_object_type text, p_object_id text, p_workspace_id uuid, p_details jsonb default '{}'
    ) returns void
    language sql volatile security definer set search_path = pg_catalog, pg_temp
    as $$
      insert into agentd.audit_log (actor, action, object_type, object_id, workspace_id, details)
      values (public.current_user_id(), p_action, p_object_type, p_object_id, p_workspace_id,
              coalesce(p_details, '{}')
                || case when nullif(current_setting('agentd.operator', true), '') is null then '{}'::jsonb
                        else jsonb_build_object('operator', current_setting('agentd.operator', true)) end)
    $$;

    -- A status that agentd sets has a reason; one that a person sets has none.
    create function agentd.audit_task() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    begin
      perform agentd.audit(
        case new.status when 'paused' then 'pause' when 'active' then 'resume' else new.status::text end,
        'task', new.id::text, new.workspace_id, jsonb_build_object('from', old.status));
      return null;
    end
    $$;
    create trigger audit_task after update of status on public.agent_tasks
      for each row when (old.status <> new.status and new.reason_code is null)
      execute function agentd.audit_task();

    ${sql.raw(
      changed(
        RESET_NEXT_RUN,
        'new.reason := null;\n      end if;',
        `new.reason := null;
        new.failures_since := agentd.now();
      elsif new.status <> old.status and (new.reason_code, new.reason) is not distinct from (old.reason_code, old.reason) then
        -- a person's pause: agentd's reason for an earlier state would be a lie
        new.reason_code := null;
        new.reason := null;
      end if;`,
      ),
    )}
  `.execute(db);
}

async function changeRuns(db: Kysely<unknown>): Promise<void> {
  let prepared = changed(
    PREPARE_RUN,
    `'max_retries', t.max_retries,`,
    `'max_retries', t.max_retries,
               'approval_policy', t.approval_policy,`,
  );
  prepared = changed(
    prepared,
    `'timeout_seconds', s.timeout_seconds))`,
    `'timeout_seconds', s.timeout_seconds,
                        'on_failure', s.on_failure))`,
  );
  prepared = changed(
    prepared,
    /if new\.status = 'queued' and new\.job_id is null\n[\s\S]*?end if;\n/,
    `if new.status = 'queued' and new.job_id is null then
        select e.job_id, e.is_parked into new.job_id, new.is_parked
          from agentd.enter_run(new.id, new.workspace_id, new.task_id, new.is_serial, new.wake_at) e;
      end if;
`,
  );
  // An application's transaction may stay open: it lets nobody in itself, but shows the next run to the daemons.
  const closed = changed(
    CLOSE_RUN,
    'perform agentd.admit_runs(new.workspace_id);',
    `-- a run without a place leaves none
      if old.job_id is not null or old.status = 'running' then
        perform agentd.unpark_runs(new.workspace_id, 1);
      end if;
      if new.status = 'cancelled' then
        perform agentd.audit('cancel', 'run', new.id::text, new.workspace_id,
                             jsonb_build_object('from', old.status, 'reason_code', new.reason_code));
      end if;`,
  );
  const cancel = changed(CANCEL_RUN, /if found then[\s\S]*?end if;\n\s*return false;/, 'return found;');
  await sql`${sql.raw([prepared, closed, cancel].join('\n'))}`.execute(db);

  await sql`
    -- Pauses scheduled tasks whose last runs all failed, so that they stop costing money until somebody has looked. A task
    -- that somebody is editing is left out: its next failure comes here again.
    create function agentd.pause_failing_tasks(p_task_ids uuid[]) returns integer
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
    as $$
    declare
      v_paused integer;
    begin
      if p_task_ids is null then
        return 0;
      end if;
      with target as (
        select t.id, t.pause_after_failures, t.failures_since
          from public.agent_tasks t
         where t.id = any (p_task_ids) and t.status = 'active' and t.cron_expression is not null
           and t.pause_after_failures is not null
         order by t.id
           for no key update skip locked
      ),
      failing as (
        select g.id, g.pause_after_failures as failures, last.reason_code, last.reason
          from target g
         cross join lateral (
           select count(*) filter (where l.status = 'failed') as failed,
                  (array_agg(l.reason_code order by l.scheduled_for desc))[1] as reason_code,
                  (array_agg(l.reason order by l.scheduled_for desc))[1] as reason
             from (
               select r.status, r.reason_code, r.reason, r.scheduled_for
                 from public.task_runs r
                where r.task_id = g.id and r.scheduled_for is not null and r.status in ('completed', 'failed')
                  and r.finished_at > coalesce(g.failures_since, '-infinity')
                order by r.scheduled_for desc
                limit g.pause_after_failures) l
         ) last
         where last.failed = g.pause_after_failures
      )
      update public.agent_tasks t
         set status = 'paused', reason_code = 'repeated_failures',
             reason = format('%s scheduled runs in a row failed, the last one with %s: %s Mend the cause, then set status to active.',
                             f.failures, coalesce(f.reason_code, 'no code'), coalesce(f.reason, 'no reason was given.'))
        from failing f
       where t.id = f.id;
      get diagnostics v_paused = row_count;
      return v_paused;
    end
    $$;
  `.execute(db);
}

async function addDoors(db: Kysely<unknown>): Promise<void> {
  await sql`
    create function agentd.retry_run(p_run_id uuid) returns uuid
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    declare
      v_run public.task_runs;
      v_new uuid;
    begin
      select * into v_run from public.task_runs where id = p_run_id;
      if v_run.id is null or not agentd.may_manage(v_run.workspace_id) then
        raise exception using
          errcode = 'insufficient_privilege',
          message = format('run %s does not exist, or you are not a manager of its workspace', p_run_id);
      end if;
      if v_run.status in ('queued', 'running', 'waiting') then
        raise exception using
          errcode = 'object_not_in_prerequisite_state',
          message = format('run %s has not ended: it is %s', p_run_id, v_run.status),
          hint = 'Wait for its end, or cancel it first.';
      end if;
      if v_run.task_id is null then
        raise exception using
          errcode = 'object_not_in_prerequisite_state',
          message = format('the task of run %s was deleted', p_run_id),
          hint = 'Make a new task and run that.';
      end if;
      -- a double click is not paid for twice
      perform pg_advisory_xact_lock(hashtextextended('agentd.retry:' || p_run_id, 0));
      select r.id into v_new from public.task_runs r
       where r.retry_of_run_id = p_run_id and r.status in ('queued', 'running', 'waiting') limit 1;
      if v_new is not null then
        raise exception using
          errcode = 'object_not_in_prerequisite_state',
          message = format('run %s is being retried already by run %s', p_run_id, v_new),
          hint = 'Wait for its end, or cancel it first.';
      end if;
      insert into public.task_runs (task_id, workspace_id, trigger, retry_of_run_id, input, user_id)
      values (v_run.task_id, v_run.workspace_id, 'retry', v_run.id, v_run.input,
              coalesce(public.current_user_id(), v_run.user_id))
      returning id into v_new;
      perform agentd.audit('retry', 'run', p_run_id::text, v_run.workspace_id, jsonb_build_object('new_run_id', v_new));
      return v_new;
    end
    $$;

    create function agentd.decide_tool_call(p_call_id uuid, p_approve boolean, p_reason text) returns boolean
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    declare
      v_workspace uuid;
      v_run       uuid;
      v_status    public.run_status;
      v_code      text;
      v_sentence  text;
    begin
      select c.workspace_id, c.run_id into v_workspace, v_run from public.tool_calls c where c.id = p_call_id;
      if v_workspace is null or not agentd.may_manage(v_workspace) then
        raise exception using
          errcode = 'insufficient_privilege',
          message = format('tool call %s does not exist, or you are not a manager of its workspace', p_call_id);
      end if;
      if p_approve is null then
        raise exception using errcode = 'null_value_not_allowed', message = 'approve must be true or false';
      end if;
      if length(p_reason) > 2000 then
        raise exception using errcode = 'string_data_right_truncation', message = 'the reason is longer than 2,000 characters';
      end if;
      -- a run that is being executed is not touched: its worker renews its lease there
      select r.status, r.reason_code into v_status, v_code
        from public.task_runs r where r.id = v_run and r.status = 'waiting' for no key update;
      v_sentence := 'A person denied this call.' || coalesce(' Reason: ' || nullif(btrim(p_reason), ''), '');
      update public.tool_calls c
         set approved = p_approve, decided_by = public.current_user_id(), decided_at = agentd.now(), decision_reason = p_reason,
             status        = case when p_approve then c.status else 'denied' end,
             result        = case when p_approve then c.result else jsonb_build_object('content', v_sentence) end,
             error_code    = case when p_approve then null else 'denied' end,
             error_message = case when p_approve then null else v_sentence end,
             finished_at   = case when p_approve then null else agentd.now() end
       where c.id = p_call_id and c.status = 'waiting' and c.decided_at is null and v_status = 'waiting';
      if not found then
        return false;
      end if;
      perform agentd.audit(case when p_approve then 'approve' else 'deny' end, 'tool_call', p_call_id::text, v_workspace,
                           jsonb_build_object('run_id', v_run, 'reason', p_reason));
      if v_code = 'approval_required'
         and not exists (select 1 from public.tool_calls c
                          where c.run_id = v_run and c.status = 'waiting' and c.decided_at is null) then
        -- all is decided: the run comes back through the waiting room
        update public.task_runs set status = 'queued', wake_at = null, job_id = null, is_parked = false where id = v_run;
        perform agentd.wake('task-run');
      end if;
      return true;
    end
    $$;

    -- Starts a run that has ended once more, as a new run of the task as it is now, with the same input. Returns the new run's id.
    create function public.retry_run(run_id uuid) returns uuid
    language sql set search_path = pg_catalog, pg_temp
    as $$ select agentd.retry_run(run_id) $$;

    -- Allows or denies a tool call that waits for it. Returns false if it no longer does. The run goes on when all its calls are decided.
    create function public.decide_tool_call(call_id uuid, approve boolean, reason text default null) returns boolean
    language sql set search_path = pg_catalog, pg_temp
    as $$ select agentd.decide_tool_call(call_id, approve, reason) $$;
  `.execute(db);
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await sql`
    drop function public.decide_tool_call(uuid, boolean, text);
    drop function public.retry_run(uuid);
    drop function agentd.decide_tool_call(uuid, boolean, text);
    drop function agentd.retry_run(uuid);
    drop function agentd.pause_failing_tasks(uuid[]);
    ${sql.raw([PREPARE_RUN, CLOSE_RUN, CANCEL_RUN, RESET_NEXT_RUN].join('\n'))}
    drop trigger audit_task on public.agent_tasks;
    drop function agentd.audit_task();
    drop function agentd.audit(text, text, text, uuid, jsonb);
    drop index public.tool_calls_undecided_idx;
    alter table public.tool_calls drop column approved, drop column decision_reason;
    alter table public.llm_calls drop column left_out;
    alter table public.task_runs drop column paused_at, drop column waited_ms, drop column active_ms, drop column traceparent;
    alter table public.task_steps drop column on_failure;
    alter table public.agent_tasks drop column approval_policy, drop column pause_after_failures, drop column failures_since;
    alter table public.agents drop column approval_policy;
  `.execute(db);
}
