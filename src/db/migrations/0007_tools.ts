import { type Kysely, sql } from 'kysely';
import { dropTables, keepUpdatedAt, runSql } from './run-sql.ts';

// The tools that agents call: MCP servers and connections, what their servers offer, and what became of every refresh.

export async function up(db: Kysely<unknown>): Promise<void> {
  await createMcp(db);
  await createCatalog(db);
  await createLogs(db);
}

async function createMcp(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create table public.mcp_configurations (
      id         uuid        primary key default gen_random_uuid(),
      agent_id   uuid        not null references public.agents (id) on delete cascade,
      is_enabled boolean     not null default true,
      created_at timestamptz not null default now(),
      updated_at timestamptz not null default now()
    );
    create index mcp_configurations_agent_id_idx on public.mcp_configurations (agent_id);

    create table public.mcp_servers (
      id               uuid        primary key default gen_random_uuid(),
      config_id        uuid        not null references public.mcp_configurations (id) on delete cascade,
      name             text        not null,
      endpoint_url     text        not null,
      vault_api_key_id uuid,
      timeout_ms       integer     not null default 30000,
      max_retries      integer     not null default 3,
      retry_backoff_ms integer     not null default 1000,
      priority         integer     not null default 0,
      is_active        boolean     not null default true,
      capabilities     jsonb       not null default '{}',
      created_at       timestamptz not null default now(),
      updated_at       timestamptz not null default now()
    );
    comment on column public.mcp_servers.priority is 'Servers are asked in descending order of it.';
    create index mcp_servers_config_id_idx on public.mcp_servers (config_id);

    create table public.agent_mcp_connections (
      id                uuid        primary key default gen_random_uuid(),
      agent_id          uuid        not null references public.agents (id) on delete cascade,
      mcp_server_id     uuid        references public.mcp_servers (id) on delete cascade,
      connection_name   text        not null,
      server_url        text        not null,
      is_active         boolean     not null default true,
      -- What happens to a tool that changed: it is accepted, or quarantined until someone accepts it.
      change_policy     text        not null default 'accept' check (change_policy in ('accept', 'quarantine')),
      reason_code       text,
      reason            text,
      refresh_failures  integer     not null default 0,
      last_refreshed_at timestamptz,
      next_refresh_at   timestamptz,
      created_at        timestamptz not null default now(),
      updated_at        timestamptz not null default now()
    );
    comment on column public.agent_mcp_connections.mcp_server_id is
      'The server whose timeout, retries, backoff and priority are honoured; null means the defaults.';
    create index agent_mcp_connections_agent_id_idx on public.agent_mcp_connections (agent_id);
    create index agent_mcp_connections_mcp_server_id_idx on public.agent_mcp_connections (mcp_server_id);
    create index agent_mcp_connections_refresh_due_idx on public.agent_mcp_connections (next_refresh_at nulls first)
      where is_active;

    -- A server is configured for one agent, with that agent's key: another agent's connection may not point at it.
    create function agentd.check_mcp_server() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if exists (
        select 1
          from public.mcp_servers s
          join public.mcp_configurations c on c.id = s.config_id
         where s.id = new.mcp_server_id
           and c.agent_id <> new.agent_id
      ) then
        raise exception 'MCP server % is configured for another agent', new.mcp_server_id
          using errcode = 'insufficient_privilege';
      end if;
      return new;
    end
    $$;

    create trigger zz_check_server
      before insert or update of mcp_server_id, agent_id on public.agent_mcp_connections
      for each row when (new.mcp_server_id is not null) execute function agentd.check_mcp_server();

    -- A new address is another server: what was learned of the old one is due for refresh at once.
    create function agentd.refresh_changed_connection() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp as $$
    begin
      new.next_refresh_at := null;
      new.refresh_failures := 0;
      return new;
    end
    $$;

    create trigger refresh_changed_connection
      before update of server_url, is_active on public.agent_mcp_connections
      for each row
      when (new.server_url is distinct from old.server_url or (new.is_active and not old.is_active))
      execute function agentd.refresh_changed_connection();

    create table public.mcp_tools_cache (
      id             uuid        primary key default gen_random_uuid(),
      connection_id  uuid        not null references public.agent_mcp_connections (id) on delete cascade,
      tool_name      text        not null,
      tool_schema    jsonb       not null,
      openai_schema  jsonb       not null,
      schema_hash    text,
      is_quarantined boolean     not null default false,
      reason_code    text,
      reason         text,
      last_updated   timestamptz not null default now(),
      created_at     timestamptz not null default now(),
      -- A call names a tool: two rows of one name would be two different tools.
      constraint mcp_tools_cache_connection_tool_key unique (connection_id, tool_name)
    );
    comment on column public.mcp_tools_cache.schema_hash is
      'Of the whole tool as its server described it; compared again when the tool is called.';

    ${keepUpdatedAt('mcp_configurations', 'mcp_servers', 'agent_mcp_connections')}
    `,
  );
}

async function createCatalog(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create table public.tool_catalog (
      id                    uuid        primary key default gen_random_uuid(),
      name                  text        not null,
      display_name          text        not null,
      description           text,
      category              text,
      docker_image          text,
      default_config        jsonb       not null default '{}',
      resource_requirements jsonb       not null default '{}',
      is_active             boolean     not null default true,
      created_at            timestamptz not null default now(),
      updated_at            timestamptz not null default now()
    );
    create index tool_catalog_name_idx on public.tool_catalog (name);

    create table public.account_tool_environments (
      id                uuid                                         primary key default gen_random_uuid(),
      user_id           uuid                                         not null references auth.users (id) on delete cascade,
      environment_name  text                                         not null default 'default',
      do_droplet_id     bigint,
      do_droplet_name   text,
      region_slug       text                                         not null default 'nyc3',
      size_slug         text                                         not null default 's-1vcpu-1gb',
      image_slug        text                                         not null default 'ubuntu-22-04-x64',
      status_on_toolbox public.account_tool_installation_status_enum not null default 'pending',
      created_at        timestamptz                                  not null default now(),
      updated_at        timestamptz                                  not null default now()
    );
    create index account_tool_environments_user_id_idx on public.account_tool_environments (user_id);

    create trigger fill_2_user_id
      before insert on public.account_tool_environments
      for each row when (new.user_id is null) execute function agentd.fill_user_id();

    ${keepUpdatedAt('tool_catalog', 'account_tool_environments')}
    `,
  );
}

async function createLogs(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create table public.mcp_refresh_log (
      id            uuid        primary key default gen_random_uuid(),
      connection_id uuid        not null references public.agent_mcp_connections (id) on delete cascade,
      job_id        uuid,
      status        text        not null check (status in ('ok', 'unchanged', 'error', 'timeout')),
      tools_added   integer     not null default 0,
      tools_changed integer     not null default 0,
      tools_removed integer     not null default 0,
      details       jsonb       not null default '{}',
      duration_ms   integer,
      error_message text,
      created_at    timestamptz not null default now()
    );
    create index mcp_refresh_log_connection_id_idx on public.mcp_refresh_log (connection_id, created_at);
    create index mcp_refresh_log_created_at_idx on public.mcp_refresh_log (created_at);

    create table public.credential_refresh_log (
      id             uuid        primary key default gen_random_uuid(),
      credential_id  uuid        not null references public.user_integration_credentials (id) on delete cascade,
      job_id         uuid,
      attempt        integer     not null default 1,
      outcome        text        not null
                     check (outcome in ('refreshed', 'not_needed', 'transient_error', 'reauth_required', 'revoked')),
      http_status    integer,
      old_expires_at timestamptz,
      new_expires_at timestamptz,
      duration_ms    integer,
      error_message  text,
      created_at     timestamptz not null default now()
    );
    create index credential_refresh_log_credential_id_idx on public.credential_refresh_log (credential_id, created_at);
    create index credential_refresh_log_created_at_idx on public.credential_refresh_log (created_at);
    `,
  );
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    ${dropTables(
      'credential_refresh_log',
      'mcp_refresh_log',
      'account_tool_environments',
      'tool_catalog',
      'mcp_tools_cache',
      'agent_mcp_connections',
      'mcp_servers',
      'mcp_configurations',
    )}
    drop function agentd.refresh_changed_connection();
    drop function agentd.check_mcp_server();
    `,
  );
}
