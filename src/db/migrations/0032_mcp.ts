/**
 * What turns connections to MCP servers into requests for a look at their tools, and fences those who look.
 *
 * agentd.mcp_refreshes has a row for each active connection, out of reach of whoever holds the connection's own row. It is idle until
 * `due_at`, waits when something is wanted (`wanted_at`), is let in with a job (`job_id`) as the workspace's ceiling allows, and is held
 * under a lease while a daemon looks. Every claim is a new epoch: what an older one brings changes nothing. A claim takes the wish away, so
 * that one which comes while a look is under way is another.
 *
 * A tool is offered as it was when it was first seen, or last accepted (`pinned_hash`). What changes, and whether it may, is decided in
 * agentd.store_mcp_listing, in the transaction that stores it.
 */
import { type Kysely, sql } from 'kysely';
import { CREDENTIAL_HEALTH } from './0031_credentials.ts';
import { applyAccess } from './access.ts';
import { type Admission, admitFunction, roomFunction } from './admission.ts';
import { GUARD_MCP_CONNECTION } from './mcp-guard.ts';
import { DECIDE_TOOL_CHANGE, STORE_MCP_LISTING } from './mcp-listing.ts';
import { changed, runSql } from './run-sql.ts';

/** Waits for a place, as the index has it. Wrapped, so that it implies no other partial index's predicate. */
const waiting = (row: string): string => `((${row}.wanted_at is not null and ${row}.job_id is null) is true)`;
const dueAt = (row: string): string => `coalesce(${row}.wanted_at, 'infinity'::timestamptz)`;

const ADMISSION: Admission = {
  queue: 'mcp-refresh',
  table: 'agentd.mcp_refreshes',
  roomFunction: 'mcp_refresh_room',
  admitFunction: 'admit_mcp_refreshes',
  waiting,
  dueAt,
  order: 'seq',
  columns: ['id', 'workspace_id', 'lease_epoch', 'seq'],
  admitted: (row) => `${row}.job_id is not null`,
  data: `jsonb_build_object('connection_id', n.id, 'epoch', n.lease_epoch, 'workspace_id', n.workspace_id)`,
  key: `n.id || ':' || n.lease_epoch`,
};

/** Documents, credentials and connections wait in their rows. */
export const MCP_HEALTH = changed(
  CREDENTIAL_HEALTH,
  'else 0 end',
  `when d.queue = 'mcp-refresh' then (
                    select count(*) from agentd.mcp_refreshes k where ${waiting('k')})
                  else 0 end`,
);

/** Bounds of what tenants write. What is there already stays. */
const CHECKS = [
  ['agent_mcp_connections', 'agent_mcp_connections_name_size', 'length(connection_name) <= 200'],
  ['agent_mcp_connections', 'agent_mcp_connections_url_size', 'length(server_url) <= 2048'],
  ['agent_mcp_connections', 'agent_mcp_connections_secret_size', 'octet_length(auth_secret) <= 16384'],
  [
    'agent_mcp_connections',
    'agent_mcp_connections_header_check',
    `auth_header ~ '^[A-Za-z0-9!#$%&''*+.^_\`|~-]{1,100}$'`,
  ],
  ['mcp_servers', 'mcp_servers_url_size', 'length(endpoint_url) <= 2048'],
  ['mcp_servers', 'mcp_servers_name_size', 'length(name) <= 2048'],
  [
    'agent_integration_permissions',
    'agent_integration_permissions_scopes_size',
    'octet_length(allowed_scopes::text) <= 65536',
  ],
] as const;

export async function up(db: Kysely<unknown>): Promise<void> {
  await addColumns(db);
  await createRefreshes(db);
  await guardConnections(db);
  await requestRefreshes(db);
  await runSql(db, sql.raw([roomFunction(ADMISSION), admitFunction(ADMISSION), MCP_HEALTH].join('\n')));
  await runSql(db, sql.raw(STORE_MCP_LISTING));
  await runSql(db, sql.raw(DECIDE_TOOL_CHANGE));
  await runSql(
    db,
    sql`select agentd.request_mcp_refresh(c.id, 'inserted') from public.agent_mcp_connections c where c.is_active`,
  );
  await applyAccess(db);
}

async function addColumns(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    alter table public.agent_mcp_connections
      add column auth_type     text    not null default 'none' check (auth_type in ('none', 'bearer', 'header', 'oauth')),
      add column auth_header   text,
      add column auth_secret   text,
      add column credential_id uuid    references public.user_integration_credentials (id) on delete set null,
      -- what its server said of itself: name, version, protocol, transport
      add column server_info   jsonb,
      -- of the last listing; null before the first
      add column tools_listed  integer,
      add column tools_usable  integer;
    comment on column public.agent_mcp_connections.auth_header is 'The header that carries auth_secret where auth_type is header.';
    comment on column public.agent_mcp_connections.credential_id is 'Whose access token is sent where auth_type is oauth; of the same workspace.';
    comment on column public.agent_mcp_connections.reason is 'Why the last look at its tools failed, and what to do about it. The tools seen before stay.';
    create index agent_mcp_connections_credential_id_idx on public.agent_mcp_connections (credential_id) where credential_id is not null;
    -- agentd.mcp_refreshes has what is due
    drop index public.agent_mcp_connections_refresh_due_idx;
    alter table public.agent_mcp_connections
      drop constraint agent_mcp_connections_change_policy_check,
      add constraint agent_mcp_connections_change_policy_check check (change_policy in ('accept', 'quarantine', 'ask'));

    alter table public.mcp_tools_cache
      alter column openai_schema drop not null,
      -- what the model calls; null where the tool can't be offered
      add column function_name text,
      add column pinned_hash   text,
      -- of everything that a listing says of the row
      add column row_hash      text,
      add column seen_at       timestamptz,
      -- swapped within one listing
      add constraint mcp_tools_cache_connection_function_key unique (connection_id, function_name) deferrable initially deferred;
    comment on column public.mcp_tools_cache.tool_schema is 'The tool as its server described it.';
    comment on column public.mcp_tools_cache.openai_schema is 'The function as chat completions take it.';
    comment on column public.mcp_tools_cache.pinned_hash is 'The schema_hash that was seen first, or accepted last.';
    create index mcp_tools_cache_quarantined_idx on public.mcp_tools_cache (connection_id) where is_quarantined;
    ${sql.raw(
      CHECKS.map(
        ([table, name, rule]) =>
          `alter table public.${table} add constraint ${name} check (${rule}) not valid;`,
      ).join('\n    '),
    )}
    `,
  );
}

async function createRefreshes(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create table agentd.mcp_refreshes (
      -- the connection's
      id               uuid        primary key references public.agent_mcp_connections (id) on delete cascade,
      workspace_id     uuid        not null,
      seq              bigint      generated always as identity,
      why              text        not null,
      -- since when somebody waits for a look; null: nobody does
      wanted_at        timestamptz,
      -- when the next look is due by time; infinity while the connection is off
      due_at           timestamptz not null default 'infinity',
      job_id           uuid,
      worker_id        text,
      lease_epoch      integer     not null default 0,
      lease_expires_at timestamptz,
      -- claims in a row that ended with their worker
      lost_claims      integer     not null default 0,
      failures         integer     not null default 0,
      started_at       timestamptz
    );
    create index mcp_refreshes_waiting_idx on agentd.mcp_refreshes
      (workspace_id, (${sql.raw(dueAt('mcp_refreshes').replaceAll('mcp_refreshes.', ''))}), seq)
      where ${sql.raw(waiting('mcp_refreshes').replaceAll('mcp_refreshes.', ''))};
    create index mcp_refreshes_due_idx on agentd.mcp_refreshes (due_at) where wanted_at is null and job_id is null;
    create index mcp_refreshes_admitted_idx on agentd.mcp_refreshes (workspace_id) where job_id is not null;
    create index mcp_refreshes_leased_idx on agentd.mcp_refreshes (lease_expires_at) where lease_expires_at is not null;

    -- Tools that are gone, so that one which comes back changed is known to have changed.
    create table agentd.mcp_removed_tools (
      connection_id uuid        not null references public.agent_mcp_connections (id) on delete cascade,
      tool_name     text        not null,
      pinned_hash   text        not null,
      removed_at    timestamptz not null,
      primary key (connection_id, tool_name)
    );
    `,
  );
}

async function guardConnections(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    ${sql.raw(GUARD_MCP_CONNECTION)}
    create trigger a_guard_connection before insert or update on public.agent_mcp_connections
      for each row when (not agentd.is_own_statement()) execute function agentd.guard_mcp_connection();
    create trigger a_guard_server before update of endpoint_url, config_id on public.mcp_servers
      for each row when (old.vault_api_key_id is not null and not agentd.is_own_statement()) execute function agentd.guard_mcp_server();

    -- A credential is used in its own workspace alone.
    create function agentd.check_mcp_credential() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if not exists (
        select 1
          from public.user_integration_credentials k
          join public.agents a on a.workspace_id = k.workspace_id
         where k.id = new.credential_id and a.id = new.agent_id
      ) then
        raise exception 'credential % is not one of the workspace of agent %', new.credential_id, new.agent_id
          using errcode = 'insufficient_privilege';
      end if;
      return new;
    end
    $$;
    create trigger zz_check_credential
      before insert or update of credential_id, agent_id on public.agent_mcp_connections
      for each row when (new.credential_id is not null) execute function agentd.check_mcp_credential();
    `,
  );
}

async function requestRefreshes(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    -- Wants a look at a connection's tools, and wakes a daemon. What a server or a model can cause ('tool_call', 'list_changed') neither
    -- comes more often than every ten seconds nor before the end of a backoff. False: there is no such active connection.
    create function agentd.request_mcp_refresh(p_connection_id uuid, p_reason text) returns boolean
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
    declare
      v_automatic boolean := p_reason in ('tool_call', 'list_changed');
    begin
      insert into agentd.mcp_refreshes as r (id, workspace_id, why, wanted_at)
      select c.id, a.workspace_id, left(p_reason, 50), agentd.now()
        from public.agent_mcp_connections c
        join public.agents a on a.id = c.agent_id
       where c.id = p_connection_id and c.is_active
      on conflict (id) do update
        set workspace_id = excluded.workspace_id,
            why       = excluded.why,
            failures  = case when v_automatic then r.failures else 0 end,
            wanted_at = case
                          when v_automatic and r.failures > 0 then r.wanted_at
                          when v_automatic then least(coalesce(r.wanted_at, 'infinity'),
                            greatest(excluded.wanted_at, coalesce(r.started_at, '-infinity') + interval '10 seconds'))
                          else least(coalesce(r.wanted_at, 'infinity'), excluded.wanted_at) end;
      if not found then
        return false;
      end if;
      perform agentd.wake('mcp-refresh');
      return true;
    end
    $$;

    create function agentd.follow_mcp_connection() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if not new.is_active then
        -- who is looking stores nothing any more
        update agentd.mcp_refreshes r
           set wanted_at = null, due_at = 'infinity', job_id = null, lease_expires_at = null, lease_epoch = r.lease_epoch + 1
         where r.id = new.id;
        return null;
      end if;
      if tg_op = 'UPDATE' and coalesce(current_setting('agentd.resealing', true), '') = 'on' and agentd.is_service_caller() then
        -- the same secret, sealed anew
        return null;
      end if;
      if tg_op = 'UPDATE' and (new.server_url, new.mcp_server_id, new.agent_id) is distinct from (old.server_url, old.mcp_server_id, old.agent_id) then
        -- what another server answers, or answered to somebody else, is not this one's
        update agentd.mcp_refreshes r
           set job_id = null, lease_expires_at = null, lease_epoch = r.lease_epoch + 1
         where r.id = new.id;
      end if;
      perform agentd.request_mcp_refresh(new.id, case when tg_op = 'INSERT' then 'inserted' else 'changed' end);
      return null;
    end
    $$;
    create trigger follow_mcp_connection_insert after insert on public.agent_mcp_connections
      for each row when (new.is_active) execute function agentd.follow_mcp_connection();
    create trigger follow_mcp_connection_update after update on public.agent_mcp_connections
      for each row when (
        (new.server_url, new.mcp_server_id, new.agent_id, new.is_active, new.auth_type, new.auth_header, new.auth_secret, new.credential_id, new.change_policy)
        is distinct from
        (old.server_url, old.mcp_server_id, old.agent_id, old.is_active, old.auth_type, old.auth_header, old.auth_secret, old.credential_id, old.change_policy))
      execute function agentd.follow_mcp_connection();

    create function agentd.follow_mcp_server() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      perform agentd.request_mcp_refresh(c.id, 'changed')
         from public.agent_mcp_connections c where c.mcp_server_id = new.id and c.is_active;
      return null;
    end
    $$;
    create trigger follow_mcp_server after update of endpoint_url, is_active, vault_api_key_id on public.mcp_servers
      for each row when ((new.endpoint_url, new.is_active, new.vault_api_key_id)
                         is distinct from (old.endpoint_url, old.is_active, old.vault_api_key_id))
      execute function agentd.follow_mcp_server();

    -- A person has signed in again: what failed for want of it need not wait.
    create function agentd.follow_mcp_credential() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      perform agentd.request_mcp_refresh(c.id, 'credential')
         from public.agent_mcp_connections c where c.credential_id = new.id and c.is_active and c.reason_code is not null;
      return null;
    end
    $$;
    create trigger follow_mcp_credential after update of connection_status on public.user_integration_credentials
      for each row when (new.connection_status = 'active' and old.connection_status <> 'active')
      execute function agentd.follow_mcp_credential();

    create function agentd.refresh_mcp_connection(p_connection_id uuid) returns boolean
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
    declare
      v_workspace uuid;
    begin
      select a.workspace_id into v_workspace
        from public.agent_mcp_connections c join public.agents a on a.id = c.agent_id where c.id = p_connection_id;
      if v_workspace is null or not agentd.may_manage(v_workspace) then
        raise exception using
          errcode = 'insufficient_privilege',
          message = format('MCP connection %s does not exist, or you are not a manager of its workspace', p_connection_id);
      end if;
      return agentd.request_mcp_refresh(p_connection_id, 'asked');
    end
    $$;

    -- Looks at a connection's tools now instead of when it is due. Returns false where the connection is off.
    create function public.refresh_mcp_connection(connection_id uuid) returns boolean
    language sql set search_path = pg_catalog, pg_temp
    as $$ select agentd.refresh_mcp_connection(connection_id) $$;
    `,
  );
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    ${sql.raw(CREDENTIAL_HEALTH)}
    drop function public.decide_tool_change(uuid, boolean, text);
    drop function agentd.decide_tool_change(uuid, boolean, text);
    drop function agentd.store_mcp_listing(uuid, integer, jsonb, jsonb);
    drop function agentd.admit_mcp_refreshes(integer);
    drop function agentd.mcp_refresh_room(uuid);
    drop function public.refresh_mcp_connection(uuid);
    drop function agentd.refresh_mcp_connection(uuid);
    drop trigger follow_mcp_credential on public.user_integration_credentials;
    drop trigger follow_mcp_server on public.mcp_servers;
    drop trigger follow_mcp_connection_update on public.agent_mcp_connections;
    drop trigger follow_mcp_connection_insert on public.agent_mcp_connections;
    drop trigger zz_check_credential on public.agent_mcp_connections;
    drop trigger a_guard_connection on public.agent_mcp_connections;
    drop function agentd.follow_mcp_credential();
    drop function agentd.follow_mcp_server();
    drop function agentd.follow_mcp_connection();
    drop function agentd.request_mcp_refresh(uuid, text);
    drop function agentd.check_mcp_credential();
    drop trigger a_guard_server on public.mcp_servers;
    drop function agentd.guard_mcp_server();
    drop function agentd.guard_mcp_connection();
    drop function agentd.url_origin(text);
    drop table agentd.mcp_removed_tools, agentd.mcp_refreshes;
    ${sql.raw(CHECKS.map(([table, name]) => `alter table public.${table} drop constraint ${name};`).join('\n    '))}
    drop index public.mcp_tools_cache_quarantined_idx;
    update public.mcp_tools_cache set openai_schema = '{}' where openai_schema is null;
    alter table public.mcp_tools_cache
      drop constraint mcp_tools_cache_connection_function_key,
      drop column function_name, drop column pinned_hash, drop column row_hash,
      drop column seen_at,
      alter column openai_schema set not null;
    comment on column public.mcp_tools_cache.tool_schema is null;
    comment on column public.mcp_tools_cache.openai_schema is null;
    update public.agent_mcp_connections set change_policy = 'quarantine' where change_policy = 'ask';
    drop index public.agent_mcp_connections_credential_id_idx;
    alter table public.agent_mcp_connections
      drop constraint agent_mcp_connections_change_policy_check,
      add constraint agent_mcp_connections_change_policy_check check (change_policy in ('accept', 'quarantine')),
      drop column auth_type, drop column auth_header, drop column auth_secret, drop column credential_id, drop column server_info,
      drop column tools_listed, drop column tools_usable;
    comment on column public.agent_mcp_connections.reason is null;
    create index agent_mcp_connections_refresh_due_idx on public.agent_mcp_connections (next_refresh_at nulls first)
      where is_active;
    `,
  );
}
