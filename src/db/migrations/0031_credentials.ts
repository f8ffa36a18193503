/**
 * OAuth credentials on their way to a fresh token, and keys of APIs that are looked at once a day.
 *
 * The row is the request: it becomes due by time (next_refresh_at), or because a person asks, and waits without a job until a daemon lets
 * it in. Every claim has a lease token, every stored token a version: an answer is written only over the version that it was asked from,
 * whoever holds the lease by then, and one that can't be written is kept (agentd.rescued_tokens), never dropped.
 */
import { type Kysely, sql } from 'kysely';
import { DOCUMENT_HEALTH } from './0021_ingestion.ts';
import { applyAccess } from './access.ts';
import { type Admission, admitFunction, roomFunction } from './admission.ts';
import { changed, runSql } from './run-sql.ts';

const waiting = (row: string): string => `((${row}.is_refresh_due and ${row}.job_id is null) is true)`;
const dueAt = (row: string): string => `coalesce(${row}.next_refresh_at, '-infinity'::timestamptz)`;
const sleeping = (row: string): string =>
  `((${row}.next_refresh_at is not null and ${row}.connection_status = 'active' and not ${row}.is_refresh_due) is true)`;
const TABLE = 'user_integration_credentials';
const bare = (text: string): string => text.replaceAll(`${TABLE}.`, '');

const ADMISSION: Admission = {
  queue: 'credential-refresh',
  table: 'public.user_integration_credentials',
  roomFunction: 'credential_room',
  admitFunction: 'admit_credentials',
  waiting,
  dueAt,
  order: 'id',
  columns: ['id', 'workspace_id', 'refresh_request'],
  admitted: (row) => `${row}.job_id is not null`,
  data: `jsonb_build_object('credential_id', n.id, 'request', n.refresh_request, 'workspace_id', n.workspace_id)`,
  key: `n.id || ':' || n.refresh_request`,
};

/** Documents and credentials wait in their rows. */
export const CREDENTIAL_HEALTH = changed(
  DOCUMENT_HEALTH,
  'else 0 end',
  `when d.queue = 'credential-refresh' then (
                    select count(*) from public.user_integration_credentials k where ${waiting('k')})
                  else 0 end`,
);

/** What of a credential only the worker and the platform may say, and how it is in a new one. */
const ENGINE = {
  token_version: '1',
  last_refreshed_at: 'null',
  next_refresh_at: 'null',
  refresh_failures: '0',
  refresh_started_at: 'null',
  refresh_lease_token: 'null',
  refresh_lease_until: 'null',
  refresh_request: '0',
  is_refresh_due: 'false',
  job_id: 'null',
  reason_code: 'null',
  reason: 'null',
} as const;

/** Bounds of what users write and a daemon reads, in bytes as text; the widest answer of a token endpoint fits. What is there stays. */
const SIZES = {
  connection_name: 4_096,
  connection_metadata: 65_536,
  scopes_granted: 1_048_576,
  vault_access_token_id: 524_288,
  vault_refresh_token_id: 524_288,
} as const;

export async function up(db: Kysely<unknown>): Promise<void> {
  await addColumns(db);
  await guardCredentials(db);
  await requestRefreshes(db);
  await runSql(
    db,
    sql.raw([roomFunction(ADMISSION), admitFunction(ADMISSION), CREDENTIAL_HEALTH].join('\n')),
  );
  await watchCredentials(db);
  await applyAccess(db);
}

async function addColumns(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    alter table public.user_integration_credentials
      add column is_refresh_due  boolean not null default false,
      -- rises with every request to refresh
      add column refresh_request integer not null default 0,
      add column job_id          uuid,
      add column reason          text;
    drop index public.user_integration_credentials_refresh_due_idx;
    create index user_integration_credentials_refresh_due_idx on public.user_integration_credentials (next_refresh_at)
      where ${sql.raw(bare(sleeping(TABLE)))};
    create index user_integration_credentials_waiting_idx on public.user_integration_credentials
      (workspace_id, (${sql.raw(bare(dueAt(TABLE)))}), id)
      where ${sql.raw(bare(waiting(TABLE)))};
    create index user_integration_credentials_admitted_idx on public.user_integration_credentials (workspace_id)
      where job_id is not null;
    ${sql.raw(
      Object.entries(SIZES)
        .map(
          ([column, most]) =>
            `alter table public.${TABLE} add constraint ${TABLE}_${column}_size check (octet_length(${column}::text) <= ${most}) not valid;`,
        )
        .join('\n    '),
    )}
    create index user_integration_credentials_failing_idx on public.user_integration_credentials (connection_status, id)
      where connection_status in ('expired', 'error');

    alter table public.credential_refresh_log
      drop constraint credential_refresh_log_outcome_check,
      add constraint credential_refresh_log_outcome_check check (outcome in (
        'refreshed', 'not_needed', 'transient_error', 'reauth_required', 'revoked', 'possible_lost_rotation', 'provider_misconfigured',
        'credential_unusable', 'token_rescued', 'restored'));

    -- Tokens that came and could not be written into their row. Sealed as the row's own would be. One of the version that the row still
    -- has is taken up by the next claim; the others are for an operator.
    create table agentd.rescued_tokens (
      id            uuid        primary key default gen_random_uuid(),
      credential_id uuid        not null references public.user_integration_credentials (id) on delete cascade,
      workspace_id  uuid        not null references public.workspaces (id) on delete cascade,
      -- the version that the refresh started from
      from_version  integer     not null,
      access_token  text        not null,
      refresh_token text,
      expires_at    timestamptz,
      created_at    timestamptz not null default agentd.now()
    );
    create index rescued_tokens_workspace_id_idx on agentd.rescued_tokens (workspace_id);
    create index rescued_tokens_credential_id_idx on agentd.rescued_tokens (credential_id);

    -- How a provider's token endpoint is, for all daemons: who asks while it is blocked is put off without a request.
    create table agentd.provider_states (
      service_provider_id uuid        primary key references public.service_providers (id) on delete cascade,
      -- in a row, of whatever credential
      failures            integer     not null default 0,
      blocked_until       timestamptz,
      -- since when the provider refuses our client; null: it does not
      alarm_since         timestamptz,
      reason_code         text,
      reason              text,
      updated_at          timestamptz not null default agentd.now()
    );
    `,
  );
}

async function guardCredentials(db: Kysely<unknown>): Promise<void> {
  const assigned = (value: (column: string) => string): string =>
    Object.keys(ENGINE)
      .map((column) => `new.${column} := ${value(column)};`)
      .join('\n        ');
  await runSql(
    db,
    sql`
    -- When a token is to be refreshed: 15 minutes or a fifth of its life before its end, whichever is less, and up to a tenth of that
    -- sooner, so that tokens of one moment do not come all at once.
    create function agentd.refresh_time(p_from timestamptz, p_until timestamptz) returns timestamptz
    language sql volatile set search_path = pg_catalog, pg_temp as $$
      select p_until - least(interval '15 minutes', (p_until - p_from) * 0.2) * (1 + random() * 0.1)
    $$;

    -- When a credential as an application wrote it is due for the first time. Bounded, because it is a tenant's word. A key is looked at soon,
    -- but not again within a day.
    create function agentd.first_refresh(c public.user_integration_credentials) returns timestamptz
    language sql volatile set search_path = pg_catalog, pg_temp as $$
      select case
        when c.connection_status <> 'active' then null
        when c.credential_type = 'api_key' and c.vault_access_token_id is not null then
          greatest(agentd.now() + random() * interval '10 seconds', c.last_refreshed_at + interval '1 day')
        when c.credential_type = 'oauth' and c.vault_refresh_token_id is not null and c.token_expires_at is not null then
          agentd.refresh_time(agentd.now(),
            least(greatest(c.token_expires_at, agentd.now()), agentd.now() + interval '10 years'))
      end
    $$;

    -- How far a refresh is, is the worker's to say.
    create function agentd.guard_credential() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if agentd.is_service_caller() then
        return new;
      end if;
      if tg_op = 'INSERT' then
        ${sql.raw(assigned((column) => ENGINE[column as keyof typeof ENGINE]))}
      else
        ${sql.raw(assigned((column) => `old.${column}`))}
      end if;
      return new;
    end
    $$;
    create trigger a_guard_credential before insert or update on public.user_integration_credentials
      for each row when (not agentd.is_own_statement()) execute function agentd.guard_credential();

    -- A token that an application writes is refreshed in its time, and what was wrong with the old one is forgotten. What the worker
    -- writes has its version. A value that is only sealed anew is no new token: who does so says agentd.resealing.
    create function agentd.credential_written() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if tg_op = 'UPDATE' then
        if (new.vault_access_token_id, new.vault_refresh_token_id, new.token_expires_at, new.credential_type, new.service_provider_id)
             is not distinct from
           (old.vault_access_token_id, old.vault_refresh_token_id, old.token_expires_at, old.credential_type, old.service_provider_id)
           or (coalesce(current_setting('agentd.resealing', true), '') = 'on' and agentd.is_service_caller()) then
          if new.connection_status <> 'active' then
            new.next_refresh_at := null;
            new.is_refresh_due := false;
            new.job_id := null;
            new.refresh_lease_token := null;
            new.refresh_lease_until := null;
          elsif old.connection_status <> 'active' then
            -- somebody wants it tried again
            new.reason_code := null;
            new.reason := null;
            new.refresh_failures := 0;
            new.next_refresh_at := agentd.first_refresh(new);
          end if;
          return new;
        end if;
        new.token_version := least(old.token_version, 2147483646) + 1;
        if new.connection_status = old.connection_status and new.connection_status in ('expired', 'error') then
          new.connection_status := 'active';
        end if;
      end if;
      new.refresh_failures := 0;
      new.refresh_started_at := null;
      new.refresh_lease_token := null;
      new.refresh_lease_until := null;
      new.is_refresh_due := false;
      new.job_id := null;
      new.reason_code := null;
      new.reason := null;
      new.next_refresh_at := agentd.first_refresh(new);
      return new;
    end
    $$;
    create trigger credential_written_insert before insert on public.user_integration_credentials
      for each row execute function agentd.credential_written();
    create trigger credential_written_update before update on public.user_integration_credentials
      for each row when (new.token_version = old.token_version) execute function agentd.credential_written();

    -- Credentials that were there before are due in their time as well.
    update public.user_integration_credentials c set next_refresh_at = agentd.first_refresh(c) where c.next_refresh_at is null;
    `,
  );
}

async function requestRefreshes(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    -- Marks what has become due, whoever's it is: which of these come first is admission's to say. Returns how many.
    create function agentd.request_due_credentials(p_limit integer) returns integer
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
    declare
      v_count integer;
    begin
      with due as (
        select c.id from public.user_integration_credentials c
         where ${sql.raw(sleeping('c'))} and c.next_refresh_at <= agentd.now()
         order by c.next_refresh_at
         limit p_limit
           for no key update skip locked)
      update public.user_integration_credentials c
         set is_refresh_due = true, refresh_request = least(c.refresh_request, 2147483646) + 1, job_id = null
        from due where c.id = due.id;
      get diagnostics v_count = row_count;
      return v_count;
    end
    $$;

    -- Asks for one now, as an operator does; one that had stopped is tried again. False: there is none, or it is revoked.
    create function agentd.request_credential_refresh(p_credential_id uuid) returns boolean
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
    begin
      update public.user_integration_credentials c set connection_status = 'active'
       where c.id = p_credential_id and c.connection_status in ('expired', 'error');
      update public.user_integration_credentials c
         set is_refresh_due = true, refresh_request = least(c.refresh_request, 2147483646) + 1, job_id = null,
             next_refresh_at = agentd.now()
       where c.id = p_credential_id and c.connection_status = 'active'
         and case c.credential_type when 'oauth' then c.vault_refresh_token_id else c.vault_access_token_id end is not null;
      if found then
        perform agentd.wake('credential-refresh');
      end if;
      return found;
    end
    $$;

    -- A credential that is due before the daemons would look again.
    create function agentd.wake_credential_refresh() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if new.next_refresh_at < agentd.now() + interval '30 seconds' then
        perform agentd.wake('credential-refresh');
      end if;
      return null;
    end
    $$;
    create trigger wake_credential_refresh_insert after insert on public.user_integration_credentials
      for each row when (new.next_refresh_at is not null) execute function agentd.wake_credential_refresh();
    create trigger wake_credential_refresh_update after update on public.user_integration_credentials
      for each row when (new.next_refresh_at is not null and new.next_refresh_at is distinct from old.next_refresh_at
                         and not new.is_refresh_due)
      execute function agentd.wake_credential_refresh();
    `,
  );
}

async function watchCredentials(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    -- Credentials that need a person, or have not been refreshed in time.
    create view agentd.failing_credentials as
      select c.id as credential_id, c.workspace_id, c.user_id, s.name as provider, c.connection_name, c.connection_status,
             coalesce(c.reason_code, 'overdue') as reason_code, c.reason, c.refresh_failures, c.token_expires_at, c.next_refresh_at,
             c.connection_status <> 'active' as needs_person
        from public.user_integration_credentials c
        join public.service_providers s on s.id = c.service_provider_id
       where c.connection_status in ('expired', 'error')
          -- each as an index has it: this is asked at every scrape
          or (${sql.raw(waiting('c'))} and (c.refresh_failures > 0 or c.token_expires_at < agentd.now()))
          or (c.job_id is not null and (c.refresh_failures > 0 or c.token_expires_at < agentd.now()));

    -- Providers that refuse this platform's client, or do not answer.
    create view agentd.provider_alarms as
      select p.service_provider_id, s.name as provider, p.alarm_since is not null as is_misconfigured, p.alarm_since, p.failures,
             p.blocked_until, p.reason_code, p.reason, p.updated_at
        from agentd.provider_states p
        join public.service_providers s on s.id = p.service_provider_id
       where p.alarm_since is not null or p.failures >= 3;
    `,
  );
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    drop view agentd.provider_alarms;
    drop view agentd.failing_credentials;
    ${sql.raw(DOCUMENT_HEALTH)}
    drop function agentd.admit_credentials(integer);
    drop function agentd.credential_room(uuid);
    drop trigger wake_credential_refresh_update on public.user_integration_credentials;
    drop trigger wake_credential_refresh_insert on public.user_integration_credentials;
    drop trigger credential_written_update on public.user_integration_credentials;
    drop trigger credential_written_insert on public.user_integration_credentials;
    drop trigger a_guard_credential on public.user_integration_credentials;
    drop function agentd.wake_credential_refresh();
    drop function agentd.request_credential_refresh(uuid);
    drop function agentd.request_due_credentials(integer);
    drop function agentd.credential_written();
    drop function agentd.guard_credential();
    drop function agentd.first_refresh(public.user_integration_credentials);
    drop function agentd.refresh_time(timestamptz, timestamptz);
    drop table agentd.provider_states;
    drop table agentd.rescued_tokens;
    delete from public.credential_refresh_log where outcome in (
      'possible_lost_rotation', 'provider_misconfigured', 'credential_unusable', 'token_rescued', 'restored');
    alter table public.credential_refresh_log
      drop constraint credential_refresh_log_outcome_check,
      add constraint credential_refresh_log_outcome_check check (outcome in (
        'refreshed', 'not_needed', 'transient_error', 'reauth_required', 'revoked'));
    drop index public.user_integration_credentials_failing_idx;
    drop index public.user_integration_credentials_admitted_idx;
    drop index public.user_integration_credentials_waiting_idx;
    drop index public.user_integration_credentials_refresh_due_idx;
    create index user_integration_credentials_refresh_due_idx on public.user_integration_credentials (next_refresh_at)
      where connection_status = 'active';
    alter table public.user_integration_credentials
      ${sql.raw(
        Object.keys(SIZES)
          .map((column) => `drop constraint ${TABLE}_${column}_size,`)
          .join(' '),
      )}
      drop column reason, drop column job_id, drop column refresh_request, drop column is_refresh_due;
    `,
  );
}
