/**
 * What keeps the database from growing for ever: who tidies what and how far he is, a log of it, how long a workspace's rows are kept, months
 * that are retired, and what remains of a workspace that is deleted.
 *
 * The rules themselves (which table, which rows) are in src/db/retention-rules.ts, the days in config/retention.json.
 */
import { type Kysely, sql } from 'kysely';
import { applyAccess } from './access.ts';
import { CLOSED_WORKSPACES, DROP_CLOSED_WORKSPACES } from './closed-workspaces.ts';
import { DROP_RETIRING, RETIRE_PARTITIONS } from './retire-partitions.ts';
import { changed, functionOf, runSql } from './run-sql.ts';
import { REPAIR_FUNCTIONS } from './usage-repair.ts';

export async function up(db: Kysely<unknown>): Promise<void> {
  await addTables(db);
  await addIndexes(db);
  await runSql(db, sql.raw(RETIRE_PARTITIONS));
  await runSql(db, sql.raw(EXPIRE_APPROVAL));
  await runSql(db, sql.raw(CLOSED_WORKSPACES));
  await applyAccess(db);
}

async function addTables(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create table agentd.maintenance_tasks (
      name             text        primary key,
      due_at           timestamptz not null default agentd.now(),
      worker_id        text,
      lease_epoch      bigint      not null default 0,
      lease_expires_at timestamptz,
      -- of the pass under way: its row of the log, and how far it has come
      pass_id          bigint,
      place            jsonb,
      failures         integer     not null default 0,
      succeeded_at     timestamptz,
      last_error       text
    );
    comment on table agentd.maintenance_tasks is 'What is tidied: when it is due, which process is at it, and how far that is.';

    create table agentd.maintenance_log (
      id          bigint      generated always as identity primary key,
      name        text        not null,
      worker_id   text        not null,
      started_at  timestamptz not null default agentd.now(),
      finished_at timestamptz,
      outcome     text        not null default 'running'
                  constraint maintenance_log_outcome_check check (outcome in ('running', 'completed', 'failed')),
      batches     integer     not null default 0,
      rows        bigint      not null default 0,
      held        bigint      not null default 0,
      bytes       bigint,
      busy_ms     bigint      not null default 0,
      error       text
    );
    create index maintenance_log_name_idx on agentd.maintenance_log (name, started_at desc);
    create index maintenance_log_started_idx on agentd.maintenance_log (started_at);
    comment on table agentd.maintenance_log is 'A pass of a task of maintenance: what it removed, how long it worked, how it ended.';
    comment on column agentd.maintenance_log.held is 'Rows that were due and somebody held: the next pass meets them again.';
    comment on column agentd.maintenance_log.bytes is 'What was given back, where it is known without counting: months and stored objects.';

    create table agentd.retention_overrides (
      workspace_id uuid        not null references public.workspaces (id) on delete cascade,
      rule         text        not null,
      keep_days    integer     constraint retention_overrides_keep_days_check check (keep_days between 1 and 36500),
      updated_at   timestamptz not null default agentd.now(),
      primary key (workspace_id, rule)
    );
    create index retention_overrides_rule_idx on agentd.retention_overrides (rule, keep_days);
    comment on table agentd.retention_overrides is
      'How long a workspace''s rows of a rule are kept, in place of config/retention.json; keep_days null: for ever.';

    create table agentd.retired_partitions (
      parent         text        primary key,
      retired_before timestamptz not null,
      updated_at     timestamptz not null default agentd.now()
    );
    comment on table agentd.retired_partitions is 'Before which time a table by month has no rows any more. Written before they go.';

    -- Without a foreign key: a workspace that is deleted leaves its objects to be removed.
    create table agentd.stored_objects (
      bucket      text        not null,
      path        text        not null,
      created_at  timestamptz not null default agentd.now(),
      orphaned_at timestamptz,
      retry_at    timestamptz,
      primary key (bucket, path)
    );
    comment on table agentd.stored_objects is
      'An object that agentd itself has put into the storage, noted before it was, or could not delete with its workspace. orphaned_at: since when no row of media_library names it.';
    comment on column agentd.stored_objects.retry_at is 'It could not be removed: when that is tried again.';

    alter table public.task_runs add column stripped_at timestamptz;
    comment on column public.task_runs.stripped_at is 'When what its calls were told and answered was removed; the run and its result are kept.';
    `,
  );
}

const INDEXES = {
  // wrapped, so that it implies no other partial index's predicate
  task_runs_unstripped_idx:
    'public.task_runs (finished_at) where ((finished_at is not null and stripped_at is null) is true)',
  media_processing_logs_created_at_idx: 'public.media_processing_logs (created_at)',
  integration_events_received_at_idx: 'public.integration_events (received_at)',
  chat_sessions_started_at_idx: 'public.chat_sessions (started_at)',
  chat_sessions_active_idx: `public.chat_sessions (started_at) where status = 'active'`,
  chat_messages_temporary_idx: `public.chat_messages (created_at) where metadata @> '{"temporary": true}'`,
  agent_messages_temporary_idx: `public.agent_messages (created_at) where metadata @> '{"temporary": true}'`,
  audit_log_at_idx: 'agentd.audit_log (at)',
  // the folder: of which workspace's or user's files it is
  stored_objects_folder_idx: `agentd.stored_objects (split_part(path, '/', 1), bucket, path)`,
  // a hash, as an application may write paths that are too long for any other index
  media_library_storage_path_idx: 'public.media_library using hash (storage_path)',
} as const;

async function addIndexes(db: Kysely<unknown>): Promise<void> {
  const statements = Object.entries(INDEXES).map(([name, on]) => `create index ${name} on ${on};`);
  await runSql(db, sql.raw(statements.join('\n')));
}

/** Denies a call on which nobody has decided for too long, as decide_tool_call would. */
const EXPIRE_APPROVAL = `
    -- Denies a call on which nobody decided, and lets its run go on when that was the last. False: it is decided, or somebody holds it.
    create function agentd.expire_approval(p_call_id uuid) returns boolean
    language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
    declare
      v_run       uuid;
      v_workspace uuid;
      v_code      text;
      v_sentence  text;
    begin
      -- the run before the call, as a person's decision does
      select r.id, r.workspace_id, r.reason_code,
             'Nobody allowed or denied this call within ' || extract(day from agentd.now() - c.created_at) || ' days, so it was not made.'
        into v_run, v_workspace, v_code, v_sentence
        from public.tool_calls c
        join public.task_runs r on r.id = c.run_id
       where c.id = p_call_id and r.status = 'waiting'
         for no key update of r skip locked;
      if not found then
        return false;
      end if;
      update public.tool_calls c
         set approved = false, decided_at = agentd.now(), decision_reason = v_sentence, status = 'denied',
             result = jsonb_build_object('content', v_sentence), error_code = 'approval_expired', error_message = v_sentence,
             finished_at = agentd.now()
       where c.id = p_call_id and c.status = 'waiting' and c.decided_at is null;
      if not found then
        return false;
      end if;
      perform agentd.audit('expire', 'tool_call', p_call_id::text, v_workspace, jsonb_build_object('run_id', v_run));
      if v_code = 'approval_required'
         and not exists (select 1 from public.tool_calls c
                          where c.run_id = v_run and c.status = 'waiting' and c.decided_at is null) then
        update public.task_runs set status = 'queued', wake_at = null, job_id = null, is_parked = false where id = v_run;
        perform agentd.wake('task-run');
      end if;
      return true;
    end
    $$;
`;

export async function down(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    ${sql.raw(DROP_CLOSED_WORKSPACES)}
    drop function agentd.expire_approval(uuid);
    ${sql.raw(DROP_RETIRING)}
    ${sql.raw(changed(functionOf(REPAIR_FUNCTIONS, 'usage_complete_since'), 'create function', 'create or replace function'))}
    ${sql.raw(
      Object.entries(INDEXES)
        .map(([name, on]) => `drop index ${on.split('.')[0]}.${name};`)
        .join('\n'),
    )}
    alter table public.task_runs drop column stripped_at;
    drop table agentd.stored_objects, agentd.retired_partitions, agentd.retention_overrides, agentd.maintenance_log, agentd.maintenance_tasks;
    `,
  );
  await applyAccess(db);
}
