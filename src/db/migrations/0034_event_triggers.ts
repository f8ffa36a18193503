/**
 * Events start tasks: messages, mentions, files, webhooks, mail, and a person's word.
 *
 * What happens is noted in the transaction that does it, as a row of agentd.task_events with the id of the application's row, and only
 * where a trigger of the workspace listens: elsewhere an insert pays for one look into an index. Whether conditions are met, cooldowns
 * over and tasks active is a daemon's work (event-firing.ts): an application's insert neither waits for the row of a task that
 * somebody edits nor fails because of a trigger.
 *
 * Beside them, what runs say is kept for the memory of their agents (memory-outbox.ts).
 */
import { type Kysely, sql } from 'kysely';
import { applyAccess } from './access.ts';
import { CONDITION_FUNCTIONS, DROP_CONDITION_FUNCTIONS } from './event-conditions.ts';
import { DROP_EVENT_DATA, EVENT_DATA } from './event-data.ts';
import { DROP_FIRING_FUNCTIONS, FIRING_FUNCTIONS } from './event-firing.ts';
import { DROP_MEMORY_TABLES, MEMORY_TABLES } from './memory-outbox.ts';
import { runSql } from './run-sql.ts';

/** Bytes of a webhook's payload, and of what is said with a manual event. */
const PAYLOAD = 262_144;
const MANUAL_DATA = 65_536;
/** Triggers of one type in a workspace: each event is compared with all of them. */
const MOST_TRIGGERS = 50;

export async function up(db: Kysely<unknown>): Promise<void> {
  await addTables(db);
  await runSql(db, sql.raw(CONDITION_FUNCTIONS + EVENT_DATA + FIRING_FUNCTIONS));
  await checkTriggers(db);
  await noteEvents(db);
  await addDoor(db);
  await runSql(db, sql.raw(MEMORY_TABLES));
  await applyAccess(db);
}

async function addTables(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create table agentd.task_events (
      id           bigint      generated always as identity primary key,
      workspace_id uuid        not null,
      kind         text        not null check (kind in ('message', 'file', 'integration', 'manual')),
      -- the row that it is about; of a manual one its own id
      subject_id   uuid        not null,
      trigger_id   uuid,
      data         jsonb,
      occurred_at  timestamptz not null default agentd.now(),
      due_at       timestamptz not null default agentd.now(),
      attempts     integer     not null default 0
    );
    create index task_events_due_idx on agentd.task_events (workspace_id, due_at, id);
    comment on table agentd.task_events is 'What happened and has yet to be compared with the triggers of its workspace.';

    insert into agentd.locks (name) values ('task-events') on conflict do nothing;

    -- runs of a task by events within a minute; not where a tenant could set it back
    create table agentd.task_event_bursts (
      task_id uuid        primary key references public.agent_tasks (id) on delete cascade,
      minute  timestamptz not null,
      runs    integer     not null
    );

    alter table public.agent_task_event_triggers
      add column suppressed_count       integer not null default 0,
      add column last_suppressed_at     timestamptz,
      add column last_suppressed_code   text,
      add column last_suppressed_reason text;
    comment on column public.agent_task_event_triggers.suppressed_count is
      'Events that met the conditions and started nothing: cooldown, dates, depth or burst. The last one with its reason.';

    alter table public.task_runs add column event_key text;
    comment on column public.task_runs.event_key is 'The event that started it: an event starts a task once.';
    create unique index task_runs_event_key_idx on public.task_runs (task_id, event_key) where event_key is not null;

    create table public.integration_events (
      id           uuid        primary key default gen_random_uuid(),
      workspace_id uuid        not null references public.workspaces (id) on delete cascade,
      -- null: every agent of the workspace may hear of it
      agent_id     uuid,
      source       text        not null check (length(source) between 1 and 200),
      event_type   text        not null check (length(event_type) between 1 and 200),
      -- the sender's own id: what he sends twice is there once
      external_id  text        check (length(external_id) <= 500),
      payload      jsonb       not null default '{}' check (octet_length(payload::text) <= ${sql.raw(String(PAYLOAD))}),
      received_at  timestamptz not null default now(),
      constraint integration_events_agent_fkey foreign key (workspace_id, agent_id)
        references public.agents (workspace_id, id) on delete cascade,
      constraint integration_events_once unique (workspace_id, source, external_id)
    );
    create index integration_events_received_idx on public.integration_events (workspace_id, received_at);
    create index integration_events_agent_idx on public.integration_events (agent_id, workspace_id);
    create trigger fill_1_workspace_id
      before insert on public.integration_events
      for each row when (new.workspace_id is null) execute function agentd.fill_workspace_id('agent_id', 'agents');
    `,
  );
}

async function checkTriggers(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    -- What can't work is said when it is written, not when the event comes.
    create function agentd.check_event_trigger() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    declare
      v_error text;
      v_hint  text := 'See "Events" in the documentation of the SQL interface.';
      v_task  record;
    begin
      v_error := agentd.condition_error(new.conditions);
      if v_error is null and jsonb_typeof(new.config) <> 'object' then
        v_error := 'config is an object';
      elsif v_error is null and octet_length(new.config::text) > 16384 then
        v_error := 'config is longer than 16384 bytes';
      elsif v_error is null and new.config ? 'max_depth' and new.config ->> 'max_depth' !~ '^([0-9]|10)$' then
        v_error := 'config.max_depth is a number from 0 to 10';
      elsif v_error is null and new.config ? 'max_per_minute' and new.config ->> 'max_per_minute' !~ '^([1-9][0-9]?|[1-5][0-9]{2}|600)$' then
        v_error := 'config.max_per_minute is a number from 1 to 600';
      elsif v_error is null and (coalesce(jsonb_typeof(new.config -> 'allow_own'), 'boolean') <> 'boolean'
                                 or coalesce(jsonb_typeof(new.config -> 'reply_in_channel'), 'boolean') <> 'boolean') then
        v_error := 'config.allow_own and config.reply_in_channel are true or false';
      end if;
      select t.task_type, t.cron_expression, t.next_run_at, t.start_date into v_task from public.agent_tasks t where t.id = new.task_id;
      if v_error is null and found then
        if new.trigger_type = 'time_based' then
          if v_task.task_type <> 'scheduled' or (v_task.cron_expression is null and v_task.next_run_at is null) then
            v_error := 'a trigger has no time of its own: the schedule is the task''s';
            v_hint := 'Set the task''s task_type to scheduled, and its cron_expression and timezone (or next_run_at for one date).';
          end if;
        elsif new.trigger_type <> 'manual' and v_task.task_type <> 'event_based' then
          v_error := format('events of type %s start tasks of the type event_based, and this one is %s', new.trigger_type, v_task.task_type);
          v_hint := 'Set the task''s task_type to event_based first.';
        end if;
      end if;
      if v_error is null and new.is_active and (
           select count(*) from (
             select 1 from public.agent_task_event_triggers e
              where e.workspace_id = new.workspace_id and e.trigger_type = new.trigger_type and e.is_active and e.id <> new.id
              limit ${sql.raw(String(MOST_TRIGGERS))}) n) >= ${sql.raw(String(MOST_TRIGGERS))} then
        v_error := 'the workspace has ${sql.raw(String(MOST_TRIGGERS))} active triggers of this type already';
        v_hint := 'Say with conditions in fewer triggers what each of them is for.';
      end if;
      if v_error is not null then
        raise exception using errcode = 'check_violation', message = v_error, hint = v_hint;
      end if;
      return new;
    end
    $$;
    create trigger zz_check_event_trigger_insert before insert on public.agent_task_event_triggers
      for each row execute function agentd.check_event_trigger();
    create trigger zz_check_event_trigger_update before update of trigger_type, task_id, config, conditions, is_active
      on public.agent_task_event_triggers
      for each row when ((new.trigger_type, new.task_id, new.config, new.conditions, new.is_active)
                         is distinct from (old.trigger_type, old.task_id, old.config, old.conditions, old.is_active))
      execute function agentd.check_event_trigger();
    `,
  );
}

async function noteEvents(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    -- Notes the new rows of workspaces in which a trigger listens. Arguments: the kind, and types of triggers. Whatever goes wrong with
    -- it, the application's insert goes on.
    create function agentd.note_events() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    declare
      v_listening uuid[];
    begin
      v_listening := array(
        select w.workspace_id
          from (select distinct n.workspace_id from new_rows n) w
         where exists (
           select 1 from public.agent_task_event_triggers e
            where e.workspace_id = w.workspace_id and e.is_active and e.trigger_type in (tg_argv[1], tg_argv[2])));
      if v_listening = '{}' then
        return null;
      end if;
      begin
        insert into agentd.task_events (workspace_id, kind, subject_id)
        select n.workspace_id, tg_argv[0], n.id from new_rows n where n.workspace_id = any (v_listening);
        perform agentd.wake('task-events');
      exception when others then
        raise warning 'an event was not noted: %', sqlerrm;
      end;
      return null;
    end
    $$;

    create trigger note_events after insert on public.chat_messages
      referencing new table as new_rows
      for each statement execute function agentd.note_events('message', 'workspace_message', 'agent_mentioned');
    create trigger note_events after insert on public.integration_events
      referencing new table as new_rows
      for each statement execute function agentd.note_events('integration', 'integration_webhook', 'email_received');

    -- A file is an event when it can be searched. For each row: few are processed at once.
    create function agentd.note_file() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if not exists (select 1 from public.agent_task_event_triggers e
                      where e.workspace_id = new.workspace_id and e.is_active and e.trigger_type = 'file_uploaded') then
        return null;
      end if;
      begin
        insert into agentd.task_events (workspace_id, kind, subject_id) values (new.workspace_id, 'file', new.id);
        perform agentd.wake('task-events');
      exception when others then
        raise warning 'an event was not noted: %', sqlerrm;
      end;
      return null;
    end
    $$;
    create trigger note_new_file after insert on public.media_library
      for each row when (new.processing_status = 'completed') execute function agentd.note_file();
    create trigger note_processed_file after update of processing_status on public.media_library
      for each row when (new.processing_status = 'completed' and old.processing_status <> 'completed') execute function agentd.note_file();
    `,
  );
}

/** A person's event. */
async function addDoor(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create function agentd.fire_task_trigger(p_trigger_id uuid, p_data jsonb) returns uuid
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    declare
      v_trigger record;
      v_id      uuid := gen_random_uuid();
    begin
      select e.workspace_id, e.trigger_type, e.is_active, t.status into v_trigger
        from public.agent_task_event_triggers e join public.agent_tasks t on t.id = e.task_id
       where e.id = p_trigger_id;
      if v_trigger.workspace_id is null or not agentd.may_manage(v_trigger.workspace_id) then
        raise exception using
          errcode = 'insufficient_privilege',
          message = format('trigger %s does not exist, or you are not a manager of its workspace', p_trigger_id);
      end if;
      if v_trigger.trigger_type <> 'manual' or not v_trigger.is_active or v_trigger.status <> 'active' then
        raise exception using
          errcode = 'object_not_in_prerequisite_state',
          message = format('trigger %s can''t be fired: it is of type %s, %s, and its task is %s', p_trigger_id, v_trigger.trigger_type,
                           case when v_trigger.is_active then 'active' else 'not active' end, v_trigger.status),
          hint = 'Triggers of the type manual are fired, while they and their task are active. run_task starts any task.';
      end if;
      if jsonb_typeof(coalesce(p_data, '{}')) <> 'object' or octet_length(p_data::text) > ${sql.raw(String(MANUAL_DATA))} then
        raise exception using errcode = 'check_violation', message = 'data is an object of at most ${sql.raw(String(MANUAL_DATA))} bytes';
      end if;
      insert into agentd.task_events (workspace_id, kind, subject_id, trigger_id, data)
      values (v_trigger.workspace_id, 'manual', v_id, p_trigger_id, coalesce(p_data, '{}'));
      perform agentd.wake('task-events');
      return v_id;
    end
    $$;

    -- Says that the event of a manual trigger has happened. Conditions, cooldown and limits hold as for any event. Returns the event's
    -- id: the run, if there is one, has event_key 'manual:' and that id.
    create function public.fire_task_trigger(trigger_id uuid, data jsonb default '{}') returns uuid
    language sql set search_path = pg_catalog, pg_temp
    as $$ select agentd.fire_task_trigger(trigger_id, data) $$;
    `,
  );
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    ${sql.raw(DROP_MEMORY_TABLES)}
    drop function public.fire_task_trigger(uuid, jsonb);
    drop function agentd.fire_task_trigger(uuid, jsonb);
    drop trigger note_processed_file on public.media_library;
    drop trigger note_new_file on public.media_library;
    drop function agentd.note_file();
    drop trigger note_events on public.chat_messages;
    drop table public.integration_events;
    drop function agentd.note_events();
    drop trigger zz_check_event_trigger_update on public.agent_task_event_triggers;
    drop trigger zz_check_event_trigger_insert on public.agent_task_event_triggers;
    drop function agentd.check_event_trigger();
    ${sql.raw(DROP_FIRING_FUNCTIONS + DROP_EVENT_DATA + DROP_CONDITION_FUNCTIONS)}
    alter table public.task_runs drop column event_key;
    alter table public.agent_task_event_triggers
      drop column last_suppressed_reason, drop column last_suppressed_code, drop column last_suppressed_at, drop column suppressed_count;
    drop table agentd.task_event_bursts, agentd.task_events;
    delete from agentd.locks where name = 'task-events';
    `,
  );
}
