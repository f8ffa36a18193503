import { type Kysely, sql } from 'kysely';
import { dropTables, keepUpdatedAt, runSql } from './run-sql.ts';

// Agents, who and what belongs to a workspace or a team, and what an agent may use.

/** The function as this migration makes it; a later one replaces it and gives it back on its way down. */
export const CHECK_OWNED_PARENT = `
    create or replace function agentd.check_owned_parent() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    declare
      given            jsonb := to_jsonb(new);
      caller           uuid  := public.current_user_id();
      scope_workspace  uuid  := (given ->> 'workspace_id')::uuid;
      scope_user       uuid  := (given ->> 'user_id')::uuid;
      parent_workspace uuid;
      parent_user      uuid;
    begin
      if given ->> tg_argv[0] is null then
        return new;
      end if;
      execute format('select workspace_id, user_id from public.%I where id = $1', tg_argv[1])
        into parent_workspace, parent_user
        using (given ->> tg_argv[0])::uuid;
      if parent_user is null then
        return new; -- There is no such row: the foreign key says so.
      end if;

      if given ->> 'agent_id' is not null then
        select a.workspace_id, a.user_id into scope_workspace, scope_user
          from public.agents a where a.id = (given ->> 'agent_id')::uuid;
      elsif given ->> 'user_agent_id' is not null then
        select u.user_id into scope_user from public.user_agents u where u.id = (given ->> 'user_agent_id')::uuid;
      elsif scope_user is null then
        scope_user := coalesce(caller, (select w.owner_user_id from public.workspaces w where w.id = scope_workspace));
      end if;

      if parent_workspace = scope_workspace
         or (parent_user = scope_user and coalesce(caller, parent_user) = parent_user) then
        return new;
      end if;
      raise exception '% % belongs to another owner and another workspace', tg_argv[0], given ->> tg_argv[0]
        using errcode = 'insufficient_privilege',
              hint = 'Use one in the same workspace, or one of the same owner.';
    end
    $$;`;

/** The function as this migration makes it; a later one replaces it and gives it back on its way down. */
export const MY_AGENT_IDS = `
    create or replace function agentd.my_agent_ids(min_role public.app_role default 'VIEWER') returns setof uuid
    language sql stable security definer rows 32 set search_path = pg_catalog, pg_temp as $$
      select a.id
        from public.agents a
       where a.workspace_id = any (array(select agentd.my_workspace_ids(min_role)))
    $$;`;

export async function up(db: Kysely<unknown>): Promise<void> {
  await createAgents(db);
  await createMemberships(db);
  await createMirror(db);
  await createCrossTenantChecks(db);
  await createAgentChildren(db);
  await createPermissionFunctions(db);
  await runSql(db, sql`select agentd.ensure_personal_workspace(u.id) from auth.users u;`);
}

async function createAgents(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create table public.personas (
      id                uuid                   primary key default gen_random_uuid(),
      workspace_id      uuid                   not null references public.workspaces (id) on delete cascade,
      name              text                   not null,
      tone              public.persona_tone    not null default 'professional',
      greeting          text,
      fallback_message  text,
      escalation_policy public.fallback_policy not null default 'apologize',
      created_at        timestamptz            not null default now(),
      updated_at        timestamptz            not null default now(),
      constraint personas_workspace_key unique (workspace_id, id)
    );

    -- One table for the agents of all the documents: instructions is also system_instructions (Agentopia diagram) and
    -- system_prompt (Agent Platform), is_active is "active", user_id is creator_id (AgentExpress).
    create table public.agents (
      id                     uuid                   primary key default gen_random_uuid(),
      external_id            text                   unique,
      workspace_id           uuid                   not null references public.workspaces (id) on delete cascade,
      user_id                uuid                   not null references auth.users (id) on delete cascade on update cascade,
      name                   text                   not null,
      description            text,
      type                   text                   not null default 'general',
      domain                 public.business_domain not null default 'other',
      status                 public.agent_status    not null default 'live',
      is_active              boolean                not null default true,
      is_public              boolean                not null default false,
      instructions           text                   default '',
      assistant_instructions text,
      persona_id             uuid,
      goals                  text[]                 not null default '{}',
      channels               text[]                 not null default '{}',
      capabilities           jsonb                  not null default '{}',
      avatar_url             text,
      llm_model_id           uuid                   references public.llm_models (id) on delete set null,
      model                  text                   not null default 'gpt-3.5-turbo',
      temperature            numeric                not null default 0.7,
      max_tokens             integer                default 1000,
      context_window_size    integer                not null default 4000,
      discord_channel        text,
      discord_user_id        text,
      discord_bot_key        text,
      discord_bot_token_id   text,
      secret_form            text,
      created_at             timestamptz            not null default now(),
      updated_at             timestamptz            not null default now(),
      -- a worker holds the agents of many tenants in memory
      constraint agents_instructions_size check (
        octet_length(instructions) <= 300000 and octet_length(assistant_instructions) <= 300000),
      constraint agents_workspace_key unique (workspace_id, id),
      constraint agents_persona_fkey foreign key (workspace_id, persona_id)
        references public.personas (workspace_id, id) on delete set null (persona_id)
    );
    comment on column public.agents.model is 'The model where llm_model_id is null.';
    comment on column public.agents.status is
      'A draft agent''s scheduled and event tasks do not run; their runs are recorded as skipped.';

    create index idx_agents_user_id on public.agents (user_id);
    create index idx_agents_workspace on public.agents (workspace_id);
    create index idx_agents_status on public.agents (status);
    create index agents_name_idx on public.agents (name);
    create index agents_persona_id_idx on public.agents (persona_id, workspace_id);
    create index agents_llm_model_id_idx on public.agents (llm_model_id);
    create index agents_public_idx on public.agents (id) where is_public;

    -- The agents of the workspaces in which the caller has at least a role; for policies, as my_workspace_ids is.
    ${sql.raw(MY_AGENT_IDS)}

    -- A MANAGER may change an agent, but only the workspace's OWNER may give it to someone else, and only to a member.
    create function agentd.guard_agent_owner() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if agentd.is_service_caller() then
        return new;
      end if;
      if not exists (select 1 from agentd.my_workspace_ids('OWNER') as mine (id) where mine.id = new.workspace_id) then
        raise exception 'only an owner of the workspace may make another user the owner of agent %', new.id
          using errcode = 'insufficient_privilege';
      end if;
      if not exists (
        select 1 from public.user_roles r where r.user_id = new.user_id and r.workspace_id = new.workspace_id
      ) then
        raise exception 'user % is no member of the workspace of agent %', new.user_id, new.id
          using errcode = 'insufficient_privilege';
      end if;
      return new;
    end
    $$;

    create trigger fill_1_workspace_id
      before insert on public.personas
      for each row when (new.workspace_id is null) execute function agentd.fill_workspace_id();

    create trigger fill_1_workspace_id
      before insert on public.agents
      for each row when (new.workspace_id is null) execute function agentd.fill_workspace_id();
    create trigger fill_2_user_id
      before insert on public.agents
      for each row when (new.user_id is null) execute function agentd.fill_user_id();
    create trigger set_secret_form
      before insert or update of discord_bot_key, secret_form on public.agents
      for each row execute function agentd.set_secret_form('discord_bot_key');
    create trigger guard_agent_owner
      before update of user_id on public.agents
      for each row when (new.user_id is distinct from old.user_id) execute function agentd.guard_agent_owner();

    ${keepUpdatedAt('personas', 'agents')}
    `,
  );
}

async function createMemberships(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create table public.workspace_members (
      id           uuid                         primary key default gen_random_uuid(),
      workspace_id uuid                         not null references public.workspaces (id) on delete cascade,
      user_id      uuid                         references auth.users (id) on delete cascade,
      agent_id     uuid,
      team_id      uuid,
      role         public.workspace_member_role not null default 'member',
      is_automatic boolean                      not null default false,
      joined_at    timestamptz                  not null default now(),
      constraint workspace_members_one_kind check (num_nonnulls(user_id, agent_id, team_id) = 1),
      -- Roles are derived from it: two rows for one person would be two answers.
      constraint workspace_members_user_key unique (workspace_id, user_id),
      constraint workspace_members_agent_fkey foreign key (workspace_id, agent_id)
        references public.agents (workspace_id, id) on delete cascade,
      constraint workspace_members_team_fkey foreign key (workspace_id, team_id)
        references public.teams (workspace_id, id) on delete cascade
    );
    comment on column public.workspace_members.is_automatic is
      'Written by a trigger; an application that inserts the same membership itself replaces it.';
    create index idx_workspace_members_composite on public.workspace_members (workspace_id, user_id, agent_id);
    create index workspace_members_user_id_idx on public.workspace_members (user_id);
    create index workspace_members_agent_id_idx on public.workspace_members (agent_id, workspace_id);
    create index workspace_members_team_id_idx on public.workspace_members (team_id, workspace_id);

    create trigger fill_1_workspace_id
      before insert on public.workspace_members
      for each row when (new.workspace_id is null)
      execute function agentd.fill_workspace_id('agent_id', 'agents', 'team_id', 'teams');

    create table public.team_members (
      id                    uuid        primary key default gen_random_uuid(),
      workspace_id          uuid        not null references public.workspaces (id) on delete cascade,
      team_id               uuid        not null,
      agent_id              uuid        not null,
      team_role             text        not null default 'member',
      team_role_description text,
      reports_to_agent_id   uuid,
      reports_to_user       boolean     not null default false,
      joined_at             timestamptz not null default now(),
      created_at            timestamptz not null default now(),
      constraint team_members_team_fkey foreign key (workspace_id, team_id)
        references public.teams (workspace_id, id) on delete cascade,
      constraint team_members_agent_fkey foreign key (workspace_id, agent_id)
        references public.agents (workspace_id, id) on delete cascade,
      constraint team_members_reports_to_agent_fkey foreign key (workspace_id, reports_to_agent_id)
        references public.agents (workspace_id, id) on delete set null (reports_to_agent_id)
    );
    create index team_members_workspace_id_idx on public.team_members (workspace_id);
    create index team_members_team_id_idx on public.team_members (team_id, workspace_id);
    create index team_members_agent_id_idx on public.team_members (agent_id, workspace_id);
    create index team_members_reports_to_agent_id_idx on public.team_members (reports_to_agent_id, workspace_id);

    create trigger fill_1_workspace_id
      before insert on public.team_members
      for each row when (new.workspace_id is null)
      execute function agentd.fill_workspace_id('team_id', 'teams', 'agent_id', 'agents');
    `,
  );
}

// Document Agentopia writes workspace_members, document AgentCenter writes user_roles; authorization reads user_roles alone.
// Each is mirrored into the other. A mirror writes only what differs, which is what ends the recursion.
async function createMirror(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create function agentd.app_role_of(role public.workspace_member_role) returns public.app_role
    language sql immutable set search_path = pg_catalog, pg_temp as $$
      select (case role when 'owner' then 'OWNER' when 'manager' then 'MANAGER' else 'VIEWER' end)::public.app_role
    $$;

    create function agentd.mirror_member() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if current_setting('agentd.replacing', true) = 'on' then
        return null;
      end if;
      if tg_op <> 'INSERT' and old.user_id is not null
         and (tg_op = 'DELETE' or (old.user_id, old.workspace_id) is distinct from (new.user_id, new.workspace_id)) then
        delete from public.user_roles r where r.user_id = old.user_id and r.workspace_id = old.workspace_id;
      end if;
      if tg_op <> 'DELETE' and new.user_id is not null then
        insert into public.user_roles as r (user_id, workspace_id, role, is_mirrored)
        values (new.user_id, new.workspace_id, agentd.app_role_of(new.role), true)
        on conflict (user_id, workspace_id) do update
          set role = excluded.role
          where r.role is distinct from excluded.role;
      end if;
      return null;
    end
    $$;

    create function agentd.mirror_role() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if current_setting('agentd.replacing', true) = 'on' then
        return null;
      end if;
      if tg_op <> 'INSERT' and old.workspace_id is not null
         and (tg_op = 'DELETE' or (old.user_id, old.workspace_id) is distinct from (new.user_id, new.workspace_id)) then
        delete from public.workspace_members m where m.user_id = old.user_id and m.workspace_id = old.workspace_id;
      end if;
      if tg_op <> 'DELETE' and new.workspace_id is not null then
        insert into public.workspace_members as m (workspace_id, user_id, role, is_automatic)
        values (new.workspace_id, new.user_id, lower(new.role::text)::public.workspace_member_role, true)
        on conflict (workspace_id, user_id) do update
          set role = excluded.role
          where agentd.app_role_of(m.role) is distinct from new.role;
      end if;
      return null;
    end
    $$;

    -- An application that makes a workspace goes on to insert its owner's membership or role, as its document shows. That
    -- insert must succeed and return its row, so it takes the place of the row that a trigger was quicker to write.
    create function agentd.replace_automatic_member() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      perform set_config('agentd.replacing', 'on', true);
      delete from public.workspace_members m
       where m.workspace_id = new.workspace_id and m.user_id = new.user_id and m.is_automatic;
      perform set_config('agentd.replacing', 'off', true);
      return new;
    end
    $$;

    create function agentd.replace_mirrored_role() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      perform set_config('agentd.replacing', 'on', true);
      delete from public.user_roles r
       where r.workspace_id = new.workspace_id and r.user_id = new.user_id and r.is_mirrored;
      perform set_config('agentd.replacing', 'off', true);
      return new;
    end
    $$;

    create function agentd.add_owner_member() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      insert into public.workspace_members (workspace_id, user_id, role, is_automatic)
      values (new.id, new.owner_user_id, 'owner', true)
      on conflict (workspace_id, user_id) do update set role = 'owner';
      return null;
    end
    $$;

    create trigger replace_automatic_member
      before insert on public.workspace_members
      for each row when (new.user_id is not null and not new.is_automatic)
      execute function agentd.replace_automatic_member();
    create trigger mirror_member
      after insert or update or delete on public.workspace_members
      for each row execute function agentd.mirror_member();

    create trigger replace_mirrored_role
      before insert on public.user_roles
      for each row when (new.workspace_id is not null and not new.is_mirrored)
      execute function agentd.replace_mirrored_role();
    create trigger mirror_role
      after insert or update or delete on public.user_roles
      for each row execute function agentd.mirror_role();

    create trigger add_owner_member
      after insert or update of owner_user_id on public.workspaces
      for each row execute function agentd.add_owner_member();
    `,
  );
}

// A foreign key is checked without row security: whoever knows an id could point at another tenant's row.
async function createCrossTenantChecks(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    -- For a row that names something owned by a user (datastore, media, credential, api connection). Arguments: the column
    -- and its table. Allowed is what lies in the row's workspace, or what belongs to the owner of the row's agent (or of its
    -- user_agent), unless someone else is the one who asks.
    ${sql.raw(CHECK_OWNED_PARENT)}

    -- For a row in the workspace of someone who uses an agent: the agent is of that workspace, or public.
    create function agentd.check_agent_of_workspace() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if exists (
        select 1 from public.agents a where a.id = new.agent_id and a.workspace_id <> new.workspace_id and not a.is_public
      ) then
        raise exception 'agent % is neither public nor of workspace %', new.agent_id, new.workspace_id
          using errcode = 'insufficient_privilege';
      end if;
      return new;
    end
    $$;

    -- For user_agents: the user may use agents of the workspaces he is in, and public ones.
    create function agentd.check_agent_of_user() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if exists (
        select 1
          from public.agents a
         where a.id = new.agent_id
           and not a.is_public
           and a.user_id <> new.user_id
           and not exists (
             select 1 from public.user_roles r where r.user_id = new.user_id and r.workspace_id = a.workspace_id
           )
      ) then
        raise exception 'agent % is neither public nor in a workspace of user %', new.agent_id, new.user_id
          using errcode = 'insufficient_privilege';
      end if;
      return new;
    end
    $$;
    `,
  );
}

async function createAgentChildren(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create table public.user_agents (
      id         uuid        primary key default gen_random_uuid(),
      user_id    uuid        not null references auth.users (id) on delete cascade,
      agent_id   uuid        not null references public.agents (id) on delete cascade,
      settings   jsonb       not null default '{}',
      is_active  boolean     not null default true,
      created_at timestamptz not null default now(),
      updated_at timestamptz not null default now()
    );
    create index user_agents_user_id_idx on public.user_agents (user_id);
    create index user_agents_agent_id_idx on public.user_agents (agent_id);

    create trigger fill_2_user_id
      before insert on public.user_agents
      for each row when (new.user_id is null) execute function agentd.fill_user_id();
    create trigger zz_check_agent
      before insert or update of agent_id, user_id on public.user_agents
      for each row execute function agentd.check_agent_of_user();

    create table public.integrations (
      id            uuid        primary key default gen_random_uuid(),
      user_agent_id uuid        not null references public.user_agents (id) on delete cascade,
      type          text        not null,
      credentials   jsonb       not null default '{}',
      credential_id uuid        references public.user_integration_credentials (id) on delete set null,
      settings      jsonb       not null default '{}',
      created_at    timestamptz not null default now(),
      updated_at    timestamptz not null default now()
    );
    create index integrations_user_agent_id_idx on public.integrations (user_agent_id);
    create index integrations_type_idx on public.integrations (type);
    create index integrations_credential_id_idx on public.integrations (credential_id);

    create trigger zz_check_credential
      before insert or update of credential_id, user_agent_id on public.integrations
      for each row execute function agentd.check_owned_parent('credential_id', 'user_integration_credentials');

    create table public.agent_api_connections (
      id                uuid        primary key default gen_random_uuid(),
      external_id       text        unique,
      agent_id          uuid        not null references public.agents (id) on delete cascade on update cascade,
      api_connection_id uuid        not null references public.api_connections (id) on delete cascade on update cascade,
      created_at        timestamptz not null default now(),
      updated_at        timestamptz not null default now()
    );
    create index agent_api_connections_agent_id_idx on public.agent_api_connections (agent_id);
    create index agent_api_connections_api_connection_id_idx on public.agent_api_connections (api_connection_id);
    create unique index agent_api_connections_unique_connection_idx
      on public.agent_api_connections (agent_id, api_connection_id);

    create trigger zz_check_api_connection
      before insert or update of api_connection_id, agent_id on public.agent_api_connections
      for each row execute function agentd.check_owned_parent('api_connection_id', 'api_connections');

    create table public.agent_integration_permissions (
      id               uuid        primary key default gen_random_uuid(),
      agent_id         uuid        not null references public.agents (id) on delete cascade,
      connection_id    uuid        not null references public.user_integration_credentials (id) on delete cascade,
      allowed_scopes   jsonb       not null default '[]',
      permission_level text        not null default 'custom',
      is_active        boolean     not null default true,
      created_at       timestamptz not null default now(),
      updated_at       timestamptz not null default now(),
      -- A permission revoked in one row must not live on in another.
      constraint agent_integration_permissions_agent_connection_key unique (agent_id, connection_id)
    );
    create index idx_agent_permissions_composite on public.agent_integration_permissions (agent_id, is_active);
    create index agent_integration_permissions_connection_id_idx on public.agent_integration_permissions (connection_id);

    create trigger zz_check_credential
      before insert or update of connection_id, agent_id on public.agent_integration_permissions
      for each row execute function agentd.check_owned_parent('connection_id', 'user_integration_credentials');

    create table public.agent_discord_connections (
      id                    uuid        primary key default gen_random_uuid(),
      agent_id              uuid        not null references public.agents (id) on delete cascade,
      guild_id              text        not null,
      channel_id            text,
      is_enabled            boolean     not null default false,
      discord_app_id        text,
      discord_public_key    text,
      inactivity_timeout_ms integer     not null default 10800000,
      worker_status         text        not null default 'inactive',
      created_at            timestamptz not null default now(),
      updated_at            timestamptz not null default now()
    );
    create index agent_discord_connections_agent_id_idx on public.agent_discord_connections (agent_id);

    create table public.channel_configs (
      id           uuid        primary key default gen_random_uuid(),
      workspace_id uuid        not null references public.workspaces (id) on delete cascade,
      agent_id     uuid        not null,
      channel      text        not null,
      config       jsonb       not null default '{}',
      enabled      boolean     not null default true,
      created_at   timestamptz not null default now(),
      updated_at   timestamptz not null default now(),
      constraint channel_configs_agent_fkey foreign key (workspace_id, agent_id)
        references public.agents (workspace_id, id) on delete cascade
    );
    create index channel_configs_workspace_id_idx on public.channel_configs (workspace_id);
    create index channel_configs_agent_id_idx on public.channel_configs (agent_id, workspace_id);

    create trigger fill_1_workspace_id
      before insert on public.channel_configs
      for each row when (new.workspace_id is null) execute function agentd.fill_workspace_id('agent_id', 'agents');

    create table public.agent_web_widget_config (
      id              uuid        primary key default gen_random_uuid(),
      agent_id        uuid        not null references public.agents (id) on delete cascade,
      primary_color   text,
      position        text        not null default 'bottom-right',
      welcome_message text,
      allowed_domains text[]      not null default '{}',
      created_at      timestamptz not null default now(),
      updated_at      timestamptz not null default now()
    );
    create index agent_web_widget_config_agent_id_idx on public.agent_web_widget_config (agent_id);

    ${keepUpdatedAt(
      'user_agents',
      'integrations',
      'agent_api_connections',
      'agent_integration_permissions',
      'agent_discord_connections',
      'channel_configs',
      'agent_web_widget_config',
    )}
    `,
  );
}

async function createPermissionFunctions(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create function public.grant_agent_integration_permission(
      p_agent_id         uuid,
      p_connection_id    uuid,
      p_allowed_scopes   text[],
      p_permission_level text default 'custom'
    ) returns uuid
    language sql security invoker set search_path = pg_catalog, pg_temp as $$
      insert into public.agent_integration_permissions (agent_id, connection_id, allowed_scopes, permission_level)
      values (p_agent_id, p_connection_id, to_jsonb(coalesce(p_allowed_scopes, '{}')), coalesce(p_permission_level, 'custom'))
      on conflict (agent_id, connection_id) do update
        set allowed_scopes   = excluded.allowed_scopes,
            permission_level = excluded.permission_level,
            is_active        = true
      returning id
    $$;

    -- False when there is no such permission, or none that the caller may change.
    create function public.revoke_agent_integration_permission(p_permission_id uuid) returns boolean
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
    begin
      update public.agent_integration_permissions p set is_active = false where p.id = p_permission_id;
      return found;
    end
    $$;

    create function public.get_agent_integration_permissions(p_agent_id uuid)
    returns table (
      permission_id    uuid,
      connection_id    uuid,
      provider_name    text,
      connection_name  text,
      allowed_scopes   jsonb,
      permission_level text,
      is_active        boolean
    )
    language sql stable security invoker set search_path = pg_catalog, pg_temp as $$
      select p.id, p.connection_id, s.name, c.connection_name, p.allowed_scopes, p.permission_level, p.is_active
        from public.agent_integration_permissions p
        left join public.user_integration_credentials c on c.id = p.connection_id
        left join public.service_providers s on s.id = c.service_provider_id
       where p.agent_id = p_agent_id
       order by p.created_at, p.id
    $$;
    `,
  );
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    drop function public.get_agent_integration_permissions(uuid);
    drop function public.revoke_agent_integration_permission(uuid);
    drop function public.grant_agent_integration_permission(uuid, uuid, text[], text);

    ${dropTables(
      'agent_web_widget_config',
      'channel_configs',
      'agent_discord_connections',
      'agent_integration_permissions',
      'agent_api_connections',
      'integrations',
      'user_agents',
    )}

    drop trigger add_owner_member on public.workspaces;
    drop trigger mirror_role on public.user_roles;
    drop trigger replace_mirrored_role on public.user_roles;

    ${dropTables('team_members', 'workspace_members')}
    drop function agentd.my_agent_ids(public.app_role);
    ${dropTables('agents', 'personas')}

    drop function agentd.check_agent_of_user();
    drop function agentd.check_agent_of_workspace();
    drop function agentd.check_owned_parent();
    drop function agentd.add_owner_member();
    drop function agentd.replace_mirrored_role();
    drop function agentd.replace_automatic_member();
    drop function agentd.mirror_role();
    drop function agentd.mirror_member();
    drop function agentd.app_role_of(public.workspace_member_role);
    drop function agentd.guard_agent_owner();
    `,
  );
}
