-- The roles of a Supabase project and the rights that it gives them, run as a superuser, who stands for supabase_admin.
-- After supabase/postgres: migrations/db/init-scripts/00000000000000-initial-schema.sql, migrations/db/migrations/*
-- (demote-postgres, grant_auth_roles_to_postgres, alter_api_roles_for_inherit, revoke_admin_roles_from_postgres of 2025).
--
-- On Supabase the role that migrations run as is called "postgres" and is no superuser. The test server's superuser has that
-- name, so here it is supabase_postgres. Roles belong to the server: they may be there from another database.

do $$
declare
  role_name text;
begin
  foreach role_name in array array[
    'anon', 'authenticated', 'service_role', 'authenticator', 'supabase_admin', 'supabase_auth_admin',
    'supabase_storage_admin', 'dashboard_user', 'supabase_postgres'
  ] loop
    if not exists (select 1 from pg_catalog.pg_roles where rolname = role_name) then
      begin
        execute format('create role %I', role_name);
      exception when duplicate_object or unique_violation then
        null;
      end;
    end if;
  end loop;
end
$$;

alter role anon nologin inherit;
alter role authenticated nologin inherit;
alter role service_role nologin inherit bypassrls;
alter role authenticator login noinherit password 'supabase';
alter role supabase_admin nologin superuser createdb createrole replication bypassrls;
alter role supabase_auth_admin login noinherit createrole password 'supabase';
alter role supabase_storage_admin login noinherit createrole password 'supabase';
alter role dashboard_user nologin createdb createrole replication;
alter role supabase_postgres login nosuperuser createdb createrole bypassrls inherit password 'supabase';

alter role supabase_auth_admin set search_path = 'auth';
alter role supabase_storage_admin set search_path = 'storage';
alter role supabase_postgres set search_path = "$user", public, extensions;
alter role anon set statement_timeout = '3s';
alter role authenticated set statement_timeout = '8s';

grant anon, authenticated, service_role to authenticator;
grant authenticator to supabase_storage_admin;
-- Without the membership in supabase_auth_admin and supabase_storage_admin that older projects gave it.
grant anon, authenticated, service_role to supabase_postgres with admin option;
grant pg_read_all_data, pg_signal_backend to supabase_postgres;

-- The database is its own, and with it (by pg_database_owner) schema public.
do $$
begin
  execute format('alter database %I owner to supabase_postgres', current_database());
end
$$;

create schema extensions authorization supabase_postgres;
create schema graphql_public authorization supabase_admin;
create schema realtime authorization supabase_admin;
grant usage on schema extensions, graphql_public, realtime to anon, authenticated, service_role;
grant usage on schema graphql_public, realtime to supabase_postgres;
grant all on schema extensions to dashboard_user;
grant usage on schema public to anon, authenticated, service_role;

do $$
declare
  wanted text;
begin
  foreach wanted in array array['vector', 'pgcrypto', 'uuid-ossp'] loop
    -- The embedded database has vector alone.
    if exists (select 1 from pg_catalog.pg_available_extensions where name = wanted) then
      execute format('create extension if not exists %I with schema extensions', wanted);
    end if;
  end loop;
end
$$;

-- Whatever is made in schema public is everybody's: applications rely on row security alone.
alter default privileges for role supabase_postgres in schema public
  grant all on tables to supabase_postgres, anon, authenticated, service_role;
alter default privileges for role supabase_postgres in schema public
  grant all on functions to supabase_postgres, anon, authenticated, service_role;
alter default privileges for role supabase_postgres in schema public
  grant all on sequences to supabase_postgres, anon, authenticated, service_role;
alter default privileges for role supabase_admin in schema public
  grant all on tables to supabase_postgres, anon, authenticated, service_role;
alter default privileges for role supabase_admin in schema public
  grant all on functions to supabase_postgres, anon, authenticated, service_role;
alter default privileges for role supabase_admin in schema public
  grant all on sequences to supabase_postgres, anon, authenticated, service_role;
