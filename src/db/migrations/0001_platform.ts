import { type Kysely, sql } from 'kysely';
import { runSql } from './run-sql.ts';

// The ground that every other migration stands on: schemas, roles, pgvector, the parts of Supabase's auth schema that
// applications rely on, and the words for states.
//
// On a Supabase project everything of auth exists already and is left alone. What this migration did create is written
// down in agentd.platform_objects, and only that is dropped by down().

export async function up(db: Kysely<unknown>): Promise<void> {
  await runSql(db, sql`create schema if not exists agentd;`);
  await createRegister(db);
  await createRoles(db);
  await createVector(db);
  await createAuthShim(db);
  await createHelpers(db);
  await createEnums(db);
}

async function createRegister(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create table agentd.platform_objects (
      kind       text        not null check (kind in ('schema', 'extension', 'table', 'function')),
      name       text        not null,
      created_at timestamptz not null default now(),
      primary key (kind, name)
    );
    comment on table agentd.platform_objects is
      'What the first migration had to create because the platform lacked it; down() drops these and nothing else.';
    `,
  );
}

/**
 * Roles belong to the cluster, not to the database, so two databases may be migrated at the same moment (both
 * duplicate_object and unique_violation are seen then), and down() leaves them: another database may use them.
 */
async function createRoles(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    do $$
    declare
      role_name text;
    begin
      foreach role_name in array array['anon', 'authenticated', 'service_role', 'agentd_owner', 'agentd_worker'] loop
        if not exists (select 1 from pg_catalog.pg_roles where rolname = role_name) then
          begin
            execute format('create role %I nologin', role_name);
          exception when duplicate_object or unique_violation then
            null;
          end;
        end if;
      end loop;

      -- Only a superuser (or, from PostgreSQL 16, a role that has it) may hand out BYPASSRLS. Where that is refused the
      -- policies migration gives agentd_worker a policy of its own instead.
      foreach role_name in array array['service_role', 'agentd_worker'] loop
        if exists (select 1 from pg_catalog.pg_roles where rolname = role_name and not rolbypassrls) then
          begin
            execute format('alter role %I bypassrls', role_name);
          exception when insufficient_privilege or internal_error then
            raise notice 'role % could not be given BYPASSRLS by %', role_name, current_user;
          end;
        end if;
      end loop;

      -- The migrating role must be able to act for the owner of the objects, or it could not change them later. From
      -- PostgreSQL 16 who creates a role is a member of it that may only hand it out: to act as it needs a grant more.
      if not pg_catalog.pg_has_role(
        current_user,
        'agentd_owner',
        case when current_setting('server_version_num')::int >= 160000 then 'SET' else 'MEMBER' end
      ) then
        begin
          execute format('grant agentd_owner to %I', current_user);
        exception when insufficient_privilege or internal_error then
          raise notice 'role % is no member of agentd_owner: it stays the owner of the objects', current_user;
        end;
      end if;
    end
    $$;
    `,
  );
}

/** pgvector 0.8 is the first with iterative index scans, without which a filtered search loses rows. */
async function createVector(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    do $$
    declare
      installed text;
      home      text;
    begin
      select extversion into installed from pg_catalog.pg_extension where extname = 'vector';

      if installed is null then
        if not exists (select 1 from pg_catalog.pg_available_extensions where name = 'vector') then
          raise exception 'pgvector is not available on this server'
            using errcode = 'feature_not_supported',
                  hint = 'Install pgvector 0.8 or newer (package postgresql-NN-pgvector), then migrate again.';
        end if;
        home := case when to_regnamespace('extensions') is null then 'public' else 'extensions' end;
        begin
          execute format('create extension if not exists vector schema %I', home);
        exception when insufficient_privilege then
          raise exception '% may not create the extension vector (pgvector)', current_user
            using errcode = 'insufficient_privilege',
                  hint = 'Let an administrator run CREATE EXTENSION vector in this database, then migrate again.';
        end;
        select extversion into strict installed from pg_catalog.pg_extension where extname = 'vector';
        insert into agentd.platform_objects (kind, name) values ('extension', 'vector');
      end if;

      if (string_to_array(installed, '.')::int[])[1:2] < array[0, 8] then
        raise exception 'pgvector % is too old, agentd needs 0.8 or newer', installed
          using errcode = 'feature_not_supported',
                hint = 'Install a newer pgvector on the server and run ALTER EXTENSION vector UPDATE, then migrate again.';
      end if;
    end
    $$;
    `,
  );
}

async function createAuthShim(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    do $$
    begin
      if to_regnamespace('auth') is null then
        create schema auth;
        insert into agentd.platform_objects (kind, name) values ('schema', 'auth');
      end if;

      if to_regclass('auth.users') is null then
        create table auth.users (
          id                 uuid        primary key default gen_random_uuid(),
          email              text,
          encrypted_password text,
          raw_app_meta_data  jsonb       not null default '{}',
          raw_user_meta_data jsonb       not null default '{}',
          created_at         timestamptz not null default now(),
          updated_at         timestamptz not null default now()
        );
        create unique index users_email_lower_key on auth.users (lower(email));
        insert into agentd.platform_objects (kind, name) values ('table', 'auth.users');
      end if;

      if to_regprocedure('auth.jwt()') is null then
        create function auth.jwt() returns jsonb
        language sql stable set search_path = pg_catalog, pg_temp as $f$
          select coalesce(nullif(current_setting('request.jwt.claims', true), ''), '{}')::jsonb
        $f$;
        insert into agentd.platform_objects (kind, name) values ('function', 'auth.jwt()');
      end if;

      -- A subject that is no uuid is nobody: policies then show no rows, and no statement fails on a cast.
      if to_regprocedure('auth.uid()') is null then
        create function auth.uid() returns uuid
        language sql stable set search_path = pg_catalog, pg_temp as $f$
          select case when c.subject ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then c.subject::uuid end
            from (
              select coalesce(
                nullif(current_setting('request.jwt.claim.sub', true), ''),
                nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
              ) as subject
            ) c
        $f$;
        insert into agentd.platform_objects (kind, name) values ('function', 'auth.uid()');
      end if;

      if to_regprocedure('auth.role()') is null then
        create function auth.role() returns text
        language sql stable set search_path = pg_catalog, pg_temp as $f$
          select coalesce(
            nullif(current_setting('request.jwt.claim.role', true), ''),
            nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role'
          )
        $f$;
        insert into agentd.platform_objects (kind, name) values ('function', 'auth.role()');
      end if;

      if to_regprocedure('auth.email()') is null then
        create function auth.email() returns text
        language sql stable set search_path = pg_catalog, pg_temp as $f$
          select coalesce(
            nullif(current_setting('request.jwt.claim.email', true), ''),
            nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'email'
          )
        $f$;
        insert into agentd.platform_objects (kind, name) values ('function', 'auth.email()');
      end if;
    end
    $$;
    `,
  );
}

async function createHelpers(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    -- The one clock of all behaviour that depends on time. Tests replace its body. Unlike every other function it has no setting of its
    -- own, and its body names all in full: so it is put into the statements that ask it, where a call cost each of them 30 µs.
    create function agentd.now() returns timestamptz
    language sql stable as $$
      select pg_catalog.statement_timestamp()
    $$;

    create function agentd.set_updated_at() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp as $$
    begin
      new.updated_at := agentd.now();
      return new;
    end
    $$;

    -- Who is asking: Supabase's token, else the setting that applications without Supabase use, else nobody. Never an error.
    create function public.current_user_id() returns uuid
    language sql stable set search_path = pg_catalog, pg_temp as $$
      select coalesce(
        auth.uid(),
        case
          when current_setting('app.current_user_id', true) ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
          then current_setting('app.current_user_id', true)::uuid
        end
      )
    $$;

    -- Whether the role that sent the statement is the platform itself and not a signed-in user. Inside a definer function
    -- current_user is the function's owner, so the role is read from the setting that SET ROLE leaves behind.
    create function agentd.is_service_caller() returns boolean
    language sql stable set search_path = pg_catalog, pg_temp as $$
      select exists (
        select 1
          from pg_catalog.pg_roles r
         where r.rolname = coalesce(nullif(current_setting('role', true), 'none'), session_user::text)
           and (   r.rolsuper
                or r.rolbypassrls
                or pg_catalog.pg_has_role(r.oid, 'service_role', 'MEMBER')
                or pg_catalog.pg_has_role(r.oid, 'agentd_worker', 'MEMBER')
                or pg_catalog.pg_has_role(r.oid, 'agentd_owner', 'MEMBER'))
      )
    $$;
    `,
  );
}

/** The words of states. app_role ascends, so that `role >= min_role` compares rank. */
const enums: Readonly<Record<string, readonly string[]>> = {
  app_role: ['VIEWER', 'MANAGER', 'OWNER'],
  workspace_member_role: ['viewer', 'member', 'manager', 'owner'],
  team_connection_type: ['reports_to', 'collaborates_with', 'supports', 'custom'],
  agent_status: ['draft', 'live'],
  business_domain: ['healthcare', 'retail', 'finance', 'realestate', 'hospitality', 'other'],
  persona_tone: ['professional', 'friendly', 'casual', 'formal'],
  fallback_policy: ['apologize', 'escalate', 'retry', 'transfer'],
  provider_type: ['oauth', 'api_key', 'smtp'],
  credential_type: ['oauth', 'api_key'],
  connection_status: ['active', 'expired', 'revoked', 'error'],
  account_tool_installation_status_enum: [
    'pending',
    'provisioning',
    'active',
    'error',
    'deprovisioning',
    'deprovisioned',
  ],
  message_type: ['text', 'system', 'file', 'tool_call', 'tool_result', 'event'],
  datastore_type: ['pinecone', 'getzep', 'pgvector', 'postgres'],
  knowledge_type: ['PDF', 'URL', 'TEXT'],
  processing_status: ['uploaded', 'processing', 'completed', 'failed', 'archived'],
  processing_log_status: ['started', 'completed', 'failed', 'skipped'],
  assignment_type: ['training', 'reference', 'context', 'training_data', 'sop', 'knowledge_base'],
  task_type: ['scheduled', 'event_based'],
  task_status: ['active', 'paused', 'completed', 'failed', 'cancelled'],
  task_step_status: ['pending', 'running', 'completed', 'failed', 'skipped'],
  run_status: ['queued', 'running', 'waiting', 'completed', 'failed', 'cancelled', 'skipped'],
  run_trigger: ['schedule', 'event', 'manual', 'retry', 'catch_up'],
  call_status: ['started', 'waiting', 'completed', 'failed', 'denied', 'unknown'],
  // Document AgentCenter spells it "canceled".
  subscription_status: ['trialing', 'active', 'past_due', 'canceled', 'unpaid', 'paused'],
};

async function createEnums(db: Kysely<unknown>): Promise<void> {
  const statements = Object.entries(enums).map(
    ([name, labels]) =>
      `create type public.${name} as enum (${labels.map((label) => `'${label}'`).join(', ')});`,
  );
  await runSql(db, sql.raw(statements.join('\n')));
}

export async function down(db: Kysely<unknown>): Promise<void> {
  const types = Object.keys(enums).map((name) => `drop type public.${name};`);
  await runSql(db, sql.raw(types.join('\n')));
  await runSql(
    db,
    sql`
    drop function agentd.is_service_caller();
    drop function public.current_user_id();
    drop function agentd.set_updated_at();
    drop function agentd.now();

    do $$
    declare
      created record;
    begin
      for created in
        select kind, name
          from agentd.platform_objects
         order by array_position(array['function', 'table', 'extension', 'schema'], kind)
      loop
        -- Without CASCADE: an application's own objects that lean on one of these stop the migration, loudly.
        execute format('drop %s %s', created.kind, created.name);
      end loop;
    end
    $$;

    drop table agentd.platform_objects;
    `,
  );
  // The schema agentd stays, because the migrator keeps its own record in it.
}
