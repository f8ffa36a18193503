import { type Kysely, sql } from 'kysely';
import { dropTables, keepUpdatedAt, runSql } from './run-sql.ts';

// Models and their prices, service providers, and the credentials with which both are reached.

export async function up(db: Kysely<unknown>): Promise<void> {
  await createSecretForm(db);
  await createModels(db);
  await createProviders(db);
  await createCredentials(db);
  await createVaultFunctions(db);
}

async function createSecretForm(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    -- What a column that should hold ciphertext really holds. No constraint refuses the other forms, since applications
    -- bring what they have; the worker reports them and seals them.
    --   v1         v1:key id:iv:tag:ciphertext, sealed by agentd and bound to its row
    --   reference  iv:tag:ciphertext in hex or base64, the form of document Agent Platform
    --   unknown    anything else: plain text, most likely
    create function agentd.secret_form(value text) returns text
    language sql immutable set search_path = pg_catalog, pg_temp as $$
      select case
        when value is null then null
        when value ~ '^v1:[^:]+:[^:]+:[^:]+:[^:]*$' then 'v1'
        when value ~* '^([0-9a-f]{24}|[0-9a-f]{32}):[0-9a-f]{32}:([0-9a-f]{2})*$' then 'reference'
        when value ~ '^([A-Za-z0-9+/]{16}|[A-Za-z0-9+/]{22}==):[A-Za-z0-9+/]{22}==:[A-Za-z0-9+/]*={0,2}$' then 'reference'
        else 'unknown'
      end
    $$;

    -- Argument: the column that holds the secret.
    create function agentd.set_secret_form() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      new.secret_form := agentd.secret_form(to_jsonb(new) ->> tg_argv[0]);
      return new;
    end
    $$;
    `,
  );
}

async function createModels(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create table public.llm_models (
      id                 uuid           primary key default gen_random_uuid(),
      provider           text           not null,
      name               text           not null,
      model_id           text           not null,
      context_window     integer,
      input_cost_per_1k  numeric(18, 8) not null default 0,
      output_cost_per_1k numeric(18, 8) not null default 0,
      is_default         boolean        not null default false,
      created_at         timestamptz    not null default now(),
      -- A negative price would pay tenants out of their own limits.
      constraint llm_models_costs_check check (input_cost_per_1k >= 0 and output_cost_per_1k >= 0)
    );
    create index llm_models_provider_model_idx on public.llm_models (provider, model_id);
    create index llm_models_default_idx on public.llm_models (created_at) where is_default;

    create table public.workspace_llm_config (
      id               uuid        primary key default gen_random_uuid(),
      workspace_id     uuid        not null references public.workspaces (id) on delete cascade,
      provider         text        not null,
      api_key          text,
      secret_form      text,
      vault_api_key_id text,
      is_active        boolean     not null default true,
      created_at       timestamptz not null default now(),
      updated_at       timestamptz not null default now()
    );
    create index workspace_llm_config_workspace_id_idx on public.workspace_llm_config (workspace_id, provider);

    create trigger fill_1_workspace_id
      before insert on public.workspace_llm_config
      for each row when (new.workspace_id is null) execute function agentd.fill_workspace_id();
    create trigger set_secret_form
      before insert or update of api_key, secret_form on public.workspace_llm_config
      for each row execute function agentd.set_secret_form('api_key');

    ${keepUpdatedAt('workspace_llm_config')}
    `,
  );
}

async function createProviders(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create table public.service_providers (
      id                     uuid                 primary key default gen_random_uuid(),
      -- Unique: the worker finds a provider's quirks by its name.
      name                   text                 not null unique,
      display_name           text                 not null,
      provider_type          public.provider_type not null,
      authorization_endpoint text,
      token_endpoint         text,
      scopes_supported       jsonb                not null default '[]',
      configuration_metadata jsonb                not null default '{}',
      is_active              boolean              not null default true,
      created_at             timestamptz          not null default now(),
      updated_at             timestamptz          not null default now()
    );

    create table public.integration_capabilities (
      id             uuid        primary key default gen_random_uuid(),
      integration_id uuid        not null references public.service_providers (id) on delete cascade,
      capability_key text        not null,
      display_label  text        not null,
      display_order  integer     not null default 0,
      created_at     timestamptz not null default now(),
      updated_at     timestamptz not null default now()
    );
    create index integration_capabilities_integration_id_idx
      on public.integration_capabilities (integration_id, display_order);
    create index integration_capabilities_capability_key_idx on public.integration_capabilities (capability_key);

    ${keepUpdatedAt('service_providers', 'integration_capabilities')}
    `,
  );
}

async function createCredentials(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    create table public.user_integration_credentials (
      id                      uuid                     primary key default gen_random_uuid(),
      workspace_id            uuid                     not null references public.workspaces (id) on delete cascade,
      user_id                 uuid                     not null references auth.users (id) on delete cascade,
      service_provider_id     uuid                     not null references public.service_providers (id) on delete restrict,
      credential_type         public.credential_type   not null,
      vault_access_token_id   text,
      vault_refresh_token_id  text,
      -- Document Agentopia deprecates these two: always null.
      encrypted_access_token  text,
      encrypted_refresh_token text,
      connection_name         text                     not null default 'default',
      connection_status       public.connection_status not null default 'active',
      reason_code             text,
      connection_metadata     jsonb                    not null default '{}',
      scopes_granted          jsonb                    not null default '[]',
      token_expires_at        timestamptz,
      token_version           integer                  not null default 1,
      last_refreshed_at       timestamptz,
      next_refresh_at         timestamptz,
      refresh_failures        integer                  not null default 0,
      refresh_started_at      timestamptz,
      refresh_lease_token     uuid,
      refresh_lease_until     timestamptz,
      created_at              timestamptz              not null default now(),
      updated_at              timestamptz              not null default now(),
      constraint user_integration_credentials_access_token_check check (encrypted_access_token is null),
      constraint user_integration_credentials_refresh_token_check check (encrypted_refresh_token is null)
    );
    comment on column public.user_integration_credentials.token_version is
      'Rises with every stored token. A refresh stores its answer only over the version that it started from.';
    comment on column public.user_integration_credentials.refresh_started_at is
      'Set before a refresh is sent, cleared when its answer is stored: a rotated token may be lost in between.';

    create index idx_user_integration_credentials_user_id on public.user_integration_credentials (user_id);
    create index user_integration_credentials_workspace_id_idx on public.user_integration_credentials (workspace_id);
    create index user_integration_credentials_service_provider_id_idx
      on public.user_integration_credentials (service_provider_id);
    create index user_integration_credentials_refresh_due_idx
      on public.user_integration_credentials (next_refresh_at)
      where connection_status = 'active';

    create trigger fill_1_workspace_id
      before insert on public.user_integration_credentials
      for each row when (new.workspace_id is null) execute function agentd.fill_workspace_id();
    create trigger fill_2_user_id
      before insert on public.user_integration_credentials
      for each row when (new.user_id is null) execute function agentd.fill_user_id();

    create table public.api_connections (
      id           uuid        primary key default gen_random_uuid(),
      external_id  text        unique,
      workspace_id uuid        not null references public.workspaces (id) on delete cascade,
      user_id      uuid        not null references auth.users (id) on delete cascade on update cascade,
      name         text        not null,
      service      text        not null,
      api_key      text        not null,
      secret_form  text,
      metadata     jsonb,
      created_at   timestamptz not null default now(),
      updated_at   timestamptz not null default now()
    );
    create index api_connections_user_id_idx on public.api_connections (user_id);
    create index api_connections_service_idx on public.api_connections (service);
    create index api_connections_workspace_id_idx on public.api_connections (workspace_id);

    create trigger fill_1_workspace_id
      before insert on public.api_connections
      for each row when (new.workspace_id is null) execute function agentd.fill_workspace_id();
    create trigger fill_2_user_id
      before insert on public.api_connections
      for each row when (new.user_id is null) execute function agentd.fill_user_id();
    create trigger set_secret_form
      before insert or update of api_key, secret_form on public.api_connections
      for each row execute function agentd.set_secret_form('api_key');

    ${keepUpdatedAt('user_integration_credentials', 'api_connections')}
    `,
  );
}

/** As a later migration's `down` gives it back. */
export const CREATE_VAULT_SECRET = `
    create function public.create_vault_secret(p_secret text, p_name text, p_description text) returns text
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
    declare
      secret_id text;
    begin
      if to_regprocedure('vault.create_secret(text,text,text)') is null
         and to_regprocedure('vault.create_secret(text,text,text,uuid)') is null then
        raise exception 'this database has no Vault'
          using errcode = 'feature_not_supported',
                hint = 'Store the secret in its column and let the worker seal it: agentd secrets seal.';
      end if;
      execute 'select vault.create_secret($1, $2, $3)::text' into secret_id using p_secret, p_name, p_description;
      return secret_id;
    end
    $$;`;

// Document Agentopia names these two. They are for service_role alone. The Vault is looked up when they are called, so that
// it may be installed later; without it a secret is sealed by the worker, and the key never enters the database.
async function createVaultFunctions(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    ${sql.raw(CREATE_VAULT_SECRET)}

    -- Null when there is no such secret.
    create function public.vault_decrypt(vault_id text) returns text
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
    declare
      opened text;
    begin
      if to_regclass('vault.decrypted_secrets') is null then
        raise exception 'this database has no Vault'
          using errcode = 'feature_not_supported',
                hint = 'Secrets are sealed by the worker here, and only the worker opens them.';
      end if;
      execute 'select s.decrypted_secret from vault.decrypted_secrets s where s.id::text = $1' into opened using vault_id;
      return opened;
    end
    $$;
    `,
  );
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    drop function public.vault_decrypt(text);
    drop function public.create_vault_secret(text, text, text);
    ${dropTables(
      'api_connections',
      'user_integration_credentials',
      'integration_capabilities',
      'service_providers',
      'workspace_llm_config',
      'llm_models',
    )}
    drop function agentd.set_secret_form();
    drop function agentd.secret_form(text);
    `,
  );
}
