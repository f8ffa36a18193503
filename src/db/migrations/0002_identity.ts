import { type Kysely, sql } from 'kysely';
import { dropTables, keepUpdatedAt, runSql } from './run-sql.ts';

// Workspaces, people, roles and teams, and the rules by which a row finds its workspace and its owner.
//
// Every tenant's row has a workspace. An application written for a document without workspaces leaves the column out;
// the row then falls into its parent's workspace, or into the personal workspace that every user has.

/** The function as this migration makes it; a later one replaces it and gives it back on its way down. */
export const MY_WORKSPACE_IDS = `
    create or replace function agentd.my_workspace_ids(min_role public.app_role default 'VIEWER') returns setof uuid
    language sql stable security definer rows 8 set search_path = pg_catalog, pg_temp as $$
      select r.workspace_id
        from public.user_roles r
       where r.user_id = (select public.current_user_id())
         and r.workspace_id is not null
         and r.role >= min_role
    $$;`;

export async function up(db: Kysely<unknown>): Promise<void> {
  await createWorkspaces(db);
  await createPeople(db);
  await createRoleFunctions(db);
  await createTeams(db);
  await createOwnership(db);
  await createTriggers(db);
  await followUsers(db);
}

async function createWorkspaces(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create table public.workspaces (
      id            uuid        primary key default gen_random_uuid(),
      name          text        not null,
      slug          text        not null,
      description   text,
      owner_user_id uuid        not null references auth.users (id) on delete restrict,
      is_personal   boolean     not null default false,
      is_public     boolean     not null default false,
      settings      jsonb       not null default '{}',
      timezone      text        not null default 'UTC',
      created_at    timestamptz not null default now(),
      updated_at    timestamptz not null default now(),
      constraint workspaces_slug_key unique (slug)
    );
    comment on column public.workspaces.is_personal is
      'The workspace made for its owner, into which rows without a workspace fall. It goes when its owner is deleted.';
    comment on column public.workspaces.timezone is 'IANA name; months of usage begin at its midnight.';

    create index workspaces_owner_user_id_idx on public.workspaces (owner_user_id);
    create unique index workspaces_one_personal on public.workspaces (owner_user_id) where is_personal;

    -- A name made fit for an address: "Élan & Co" becomes "lan-co", and what is nothing then becomes "workspace".
    create function agentd.slug_of(name text) returns text
    language sql immutable set search_path = pg_catalog, pg_temp as $$
      select coalesce(nullif(trim(both '-' from left(regexp_replace(lower(name), '[^a-z0-9]+', '-', 'g'), 48)), ''), 'workspace')
    $$;

    create function agentd.fill_workspace_slug() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    declare
      wanted text := agentd.slug_of(new.name);
    begin
      -- Two workspaces of one name may be inserted at once: the second waits here, then sees the first.
      perform pg_advisory_xact_lock(hashtextextended('agentd.slug:' || wanted, 0));
      new.slug := wanted;
      while exists (select 1 from public.workspaces w where w.slug = new.slug) loop
        new.slug := wanted || '-' || left(replace(gen_random_uuid()::text, '-', ''), 8);
      end loop;
      return new;
    end
    $$;
    `,
  );
}

async function createPeople(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create table public.profiles (
      id           uuid        primary key references auth.users (id) on delete cascade,
      workspace_id uuid        references public.workspaces (id) on delete set null,
      username     text,
      full_name    text,
      first_name   text,
      last_name    text,
      avatar_url   text,
      created_at   timestamptz not null default now(),
      updated_at   timestamptz not null default now()
    );
    comment on column public.profiles.workspace_id is
      'The workspace that the user looks at now. It grants nothing: no policy reads it.';
    create index profiles_workspace_id_idx on public.profiles (workspace_id);

    create table public.user_preferences (
      user_id               uuid        primary key references auth.users (id) on delete cascade,
      theme                 text        not null default 'light',
      timezone              text        not null default 'UTC',
      notification_settings jsonb       not null default '{}',
      ui_preferences        jsonb       not null default '{}',
      created_at            timestamptz not null default now(),
      updated_at            timestamptz not null default now()
    );

    create table public.roles (
      id          uuid        primary key default gen_random_uuid(),
      name        text        not null unique,
      description text,
      created_at  timestamptz not null default now()
    );

    -- Two kinds of row: a role in a workspace (document AgentCenter), which is what authorization reads, or a named role of
    -- the whole application (Agentopia diagram), which grants nothing here.
    create table public.user_roles (
      id           uuid            primary key default gen_random_uuid(),
      user_id      uuid            not null references auth.users (id) on delete cascade,
      workspace_id uuid            references public.workspaces (id) on delete cascade,
      role         public.app_role,
      role_id      uuid            references public.roles (id) on delete cascade,
      is_mirrored  boolean         not null default false,
      created_at   timestamptz     not null default now(),
      constraint user_roles_one_kind check (
           (workspace_id is not null and role is not null and role_id is null)
        or (workspace_id is null and role is null and role_id is not null)
      ),
      constraint user_roles_user_workspace_key unique (user_id, workspace_id),
      constraint user_roles_user_role_key unique (user_id, role_id)
    );
    comment on column public.user_roles.is_mirrored is
      'Written by the trigger on workspace_members; an application that inserts the same role itself replaces it.';
    create index user_roles_workspace_id_idx on public.user_roles (workspace_id);
    create index user_roles_role_id_idx on public.user_roles (role_id);

    create table public.user_secrets (
      id            uuid        primary key default gen_random_uuid(),
      user_id       uuid        not null references auth.users (id) on delete cascade,
      vault_id      text        not null,
      vault_item_id text,
      created_at    timestamptz not null default now(),
      updated_at    timestamptz not null default now()
    );
    create index user_secrets_user_id_idx on public.user_secrets (user_id);
    `,
  );
}

async function createRoleFunctions(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    -- The workspaces in which the caller has at least a role. Policies use it as = any(array(select …)), which is an index
    -- condition evaluated once a statement; a function called per row costs four orders of magnitude more.
    ${sql.raw(MY_WORKSPACE_IDS)}

    create function public.get_user_role(workspace_id uuid) returns public.app_role
    language sql stable security invoker set search_path = pg_catalog, pg_temp as $$
      select r.role
        from public.user_roles r
       where r.user_id = (select public.current_user_id())
         and r.workspace_id = get_user_role.workspace_id
    $$;

    create function public.has_role(workspace_id uuid, min_role public.app_role) returns boolean
    language sql stable security invoker set search_path = pg_catalog, pg_temp as $$
      select coalesce(public.get_user_role(has_role.workspace_id) >= has_role.min_role, false)
    $$;

    create function public.user_has_workspace_access(workspace_id uuid) returns boolean
    language sql stable security invoker set search_path = pg_catalog, pg_temp as $$
      select public.has_role(user_has_workspace_access.workspace_id, 'VIEWER')
    $$;
    `,
  );
}

async function createTeams(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create table public.teams (
      id            uuid        primary key default gen_random_uuid(),
      workspace_id  uuid        not null references public.workspaces (id) on delete cascade,
      name          text        not null,
      description   text,
      owner_user_id uuid        not null references auth.users (id) on delete restrict,
      created_at    timestamptz not null default now(),
      updated_at    timestamptz not null default now(),
      constraint teams_workspace_key unique (workspace_id, id)
    );
    create index teams_owner_user_id_idx on public.teams (owner_user_id);

    create table public.user_team_memberships (
      id        uuid        primary key default gen_random_uuid(),
      user_id   uuid        not null references auth.users (id) on delete cascade,
      team_id   uuid        not null references public.teams (id) on delete cascade,
      joined_at timestamptz not null default now()
    );
    create index user_team_memberships_user_id_idx on public.user_team_memberships (user_id);
    create index user_team_memberships_team_id_idx on public.user_team_memberships (team_id);

    create table public.team_canvas_layouts (
      id            uuid        primary key default gen_random_uuid(),
      user_id       uuid        not null references auth.users (id) on delete cascade,
      workspace_id  uuid        not null references public.workspaces (id) on delete cascade,
      positions     jsonb       not null default '{}',
      connections   jsonb       not null default '[]',
      view_settings jsonb       not null default '{}',
      created_at    timestamptz not null default now(),
      updated_at    timestamptz not null default now(),
      -- save_team_canvas_layout needs it: one layout a person and workspace.
      constraint team_canvas_layouts_user_workspace_key unique (user_id, workspace_id)
    );
    create index team_canvas_layouts_workspace_id_idx on public.team_canvas_layouts (workspace_id);

    create table public.team_connections (
      id                 uuid                        primary key default gen_random_uuid(),
      workspace_id       uuid                        not null references public.workspaces (id) on delete cascade,
      from_team_id       uuid                        not null,
      to_team_id         uuid                        not null,
      connection_type    public.team_connection_type not null,
      label              text,
      color              text,
      style              text,
      created_by_user_id uuid                        references auth.users (id) on delete set null,
      created_at         timestamptz                 not null default now(),
      -- Both ends are in one workspace: a foreign key alone would let a row point into another tenant's.
      constraint team_connections_from_team_fkey foreign key (workspace_id, from_team_id)
        references public.teams (workspace_id, id) on delete cascade,
      constraint team_connections_to_team_fkey foreign key (workspace_id, to_team_id)
        references public.teams (workspace_id, id) on delete cascade
    );
    create index team_connections_from_team_id_idx on public.team_connections (from_team_id, workspace_id);
    create index team_connections_to_team_id_idx on public.team_connections (to_team_id, workspace_id);
    create index team_connections_workspace_id_idx on public.team_connections (workspace_id);
    create index team_connections_created_by_user_id_idx on public.team_connections (created_by_user_id);

    create function public.save_team_canvas_layout(
      p_user_id       uuid,
      p_workspace_id  uuid,
      p_positions     jsonb,
      p_connections   jsonb,
      p_view_settings jsonb
    ) returns uuid
    language sql security invoker set search_path = pg_catalog, pg_temp as $$
      insert into public.team_canvas_layouts (user_id, workspace_id, positions, connections, view_settings)
      values (p_user_id, p_workspace_id, p_positions, p_connections, p_view_settings)
      on conflict (user_id, workspace_id) do update
        set positions     = excluded.positions,
            connections   = excluded.connections,
            view_settings = excluded.view_settings
      returning id
    $$;

    create function public.create_team_connection(
      p_from_team_id       uuid,
      p_to_team_id         uuid,
      p_connection_type    text,
      p_created_by_user_id uuid
    ) returns uuid
    language sql security invoker set search_path = pg_catalog, pg_temp as $$
      insert into public.team_connections (from_team_id, to_team_id, connection_type, created_by_user_id)
      values (p_from_team_id, p_to_team_id, p_connection_type::public.team_connection_type, p_created_by_user_id)
      returning id
    $$;
    `,
  );
}

async function createOwnership(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    -- The owner of rows that nobody signed in wrote: made when first needed.
    create function agentd.system_user_id() returns uuid
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    declare
      system_id constant uuid := '00000000-0000-4000-8000-0000000a6e7d';
    begin
      if not exists (select 1 from auth.users u where u.id = system_id) then
        insert into auth.users (id, email, raw_app_meta_data, raw_user_meta_data)
        values (system_id, 'system@agentd.invalid', '{"agentd": "system"}', '{}')
        on conflict do nothing;
      end if;
      return system_id;
    end
    $$;

    -- The user's own workspace, made if there is none. Safe to call at once from many sessions.
    create function agentd.ensure_personal_workspace(p_user_id uuid) returns uuid
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    declare
      found_id uuid;
    begin
      select w.id into found_id from public.workspaces w where w.owner_user_id = p_user_id and w.is_personal;
      if found_id is null then
        insert into public.workspaces (name, slug, owner_user_id, is_personal)
        values ('Personal', 'personal-' || p_user_id, p_user_id, true)
        on conflict (owner_user_id) where is_personal do nothing
        returning id into found_id;
      end if;
      if found_id is null then
        select w.id into found_id from public.workspaces w where w.owner_user_id = p_user_id and w.is_personal;
      end if;
      return found_id;
    end
    $$;

    -- BEFORE INSERT, when workspace_id was left out. Arguments are pairs "column, parent table": the first parent that the
    -- row names and that exists decides, else the personal workspace of the row's user, of the caller, of the system.
    create function agentd.fill_workspace_id() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    declare
      given     jsonb := to_jsonb(new);
      parent_id uuid;
    begin
      for i in 0 .. tg_nargs - 2 by 2 loop
        parent_id := (given ->> tg_argv[i])::uuid;
        if parent_id is not null then
          execute format('select workspace_id from public.%I where id = $1', tg_argv[i + 1])
            into new.workspace_id
            using parent_id;
          if new.workspace_id is not null then
            return new;
          end if;
        end if;
      end loop;

      new.workspace_id := agentd.ensure_personal_workspace(coalesce(
        (given ->> 'user_id')::uuid,
        (given ->> 'owner_user_id')::uuid,
        (given ->> 'created_by_user_id')::uuid,
        public.current_user_id(),
        agentd.system_user_id()
      ));
      return new;
    end
    $$;

    -- Whose row it is when the insert does not say: the caller's, else the workspace owner's, else the system's.
    create function agentd.default_user_id(p_workspace_id uuid) returns uuid
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      return coalesce(
        public.current_user_id(),
        (select w.owner_user_id from public.workspaces w where w.id = p_workspace_id),
        agentd.system_user_id()
      );
    end
    $$;

    create function agentd.fill_user_id() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      new.user_id := agentd.default_user_id((to_jsonb(new) ->> 'workspace_id')::uuid);
      return new;
    end
    $$;

    create function agentd.fill_owner_user_id() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      new.owner_user_id := agentd.default_user_id((to_jsonb(new) ->> 'workspace_id')::uuid);
      return new;
    end
    $$;
    `,
  );
}

// BEFORE triggers of one table fire in the order of their names: fill_1_… finds the workspace that fill_2_… reads.
async function createTriggers(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create trigger fill_1_slug
      before insert on public.workspaces
      for each row when (new.slug is null) execute function agentd.fill_workspace_slug();
    create trigger fill_2_owner_user_id
      before insert on public.workspaces
      for each row when (new.owner_user_id is null) execute function agentd.fill_owner_user_id();

    create trigger fill_1_workspace_id
      before insert on public.teams
      for each row when (new.workspace_id is null) execute function agentd.fill_workspace_id();
    create trigger fill_2_owner_user_id
      before insert on public.teams
      for each row when (new.owner_user_id is null) execute function agentd.fill_owner_user_id();

    create trigger fill_1_workspace_id
      before insert on public.team_connections
      for each row when (new.workspace_id is null)
      execute function agentd.fill_workspace_id('from_team_id', 'teams', 'to_team_id', 'teams');

    create trigger fill_1_workspace_id
      before insert on public.team_canvas_layouts
      for each row when (new.workspace_id is null) execute function agentd.fill_workspace_id();
    create trigger fill_2_user_id
      before insert on public.team_canvas_layouts
      for each row when (new.user_id is null) execute function agentd.fill_user_id();

    create trigger fill_2_user_id
      before insert on public.user_preferences
      for each row when (new.user_id is null) execute function agentd.fill_user_id();
    create trigger fill_2_user_id
      before insert on public.user_secrets
      for each row when (new.user_id is null) execute function agentd.fill_user_id();

    ${keepUpdatedAt('workspaces', 'profiles', 'user_preferences', 'user_secrets', 'teams', 'team_canvas_layouts')}
    `,
  );
}

/** What follows a sign-up; 0018 replaces it. */
export const onUserCreated = `create function agentd.on_user_created() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      begin
        perform agentd.ensure_personal_workspace(new.id);
      exception when others then
        begin
          insert into agentd.signup_failures (user_id, error_code, error_message) values (new.id, sqlstate, sqlerrm);
        exception when others then
          raise warning 'agentd: no personal workspace for user %: %', new.id, sqlerrm;
        end;
      end;
      return null;
    end
    $$;`;

async function followUsers(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create table agentd.signup_failures (
      id            bigint      generated always as identity primary key,
      user_id       uuid        not null,
      error_code    text        not null,
      error_message text        not null,
      created_at    timestamptz not null default now()
    );
    comment on table agentd.signup_failures is
      'Users for whom no personal workspace could be made at sign-up. It is made when first needed; doctor reports these.';

    -- Sign-up never fails because of agentd: whatever goes wrong is written down and the user is created all the same.
    ${sql.raw(onUserCreated)}

    -- A workspace restricts the deletion of its owner, so that a shared one is handed over first; a personal one goes along.
    create function agentd.on_user_deleted() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      delete from public.workspaces w where w.owner_user_id = old.id and w.is_personal;
      return old;
    end
    $$;

    -- The names sort after those that applications give to their own triggers on this table, which thus go first.
    do $$
    begin
      create trigger zz_agentd_user_created
        after insert on auth.users
        for each row execute function agentd.on_user_created();
      create trigger zz_agentd_user_deleted
        before delete on auth.users
        for each row execute function agentd.on_user_deleted();
    exception when insufficient_privilege then
      raise warning 'agentd: % may not put triggers on auth.users; personal workspaces are made when first needed', current_user;
    end
    $$;
    `,
  );
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    -- CASCADE takes their triggers on auth.users along, which by name only the owner of that table might drop.
    drop function agentd.on_user_deleted() cascade;
    drop function agentd.on_user_created() cascade;
    drop table agentd.signup_failures;

    drop function public.create_team_connection(uuid, uuid, text, uuid);
    drop function public.save_team_canvas_layout(uuid, uuid, jsonb, jsonb, jsonb);
    drop function public.user_has_workspace_access(uuid);
    drop function public.has_role(uuid, public.app_role);
    drop function public.get_user_role(uuid);
    drop function agentd.my_workspace_ids(public.app_role);

    ${dropTables(
      'team_connections',
      'team_canvas_layouts',
      'user_team_memberships',
      'teams',
      'user_secrets',
      'user_roles',
      'roles',
      'user_preferences',
      'profiles',
      'workspaces',
    )}

    drop function agentd.fill_owner_user_id();
    drop function agentd.fill_user_id();
    drop function agentd.default_user_id(uuid);
    drop function agentd.fill_workspace_id();
    drop function agentd.ensure_personal_workspace(uuid);
    drop function agentd.system_user_id();
    drop function agentd.fill_workspace_slug();
    drop function agentd.slug_of(text);
    `,
  );
}
