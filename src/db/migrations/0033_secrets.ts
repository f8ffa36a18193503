/**
 * Secrets of the Vault, and whose they are.
 *
 * An id of the Vault in a row opens for the row's workspace only, if a service gave it to that workspace, or the workspace was the first
 * to name a secret that create_vault_secret made. Without this rule whoever learns the id of another's secret has it sent to a server
 * of his own choice. It is kept when a row is written (the writer hears of it) and again when the secret is opened (nothing else counts).
 *
 * What was written before has no owner yet and does not open: who wrote it can't be known any more. A service says it again:
 * `update workspace_llm_config set vault_api_key_id = vault_api_key_id`.
 */
import { type Kysely, sql } from 'kysely';
import { CREATE_VAULT_SECRET } from './0003_models.ts';
import { applyAccess } from './access.ts';
import { runSql } from './run-sql.ts';

/** Tables with places for ids of the Vault. A dot leads into JSON. In those that do not begin with vault_ a UUID may also be a key. */
const PLACES: readonly (readonly [table: string, places: readonly string[], owner: readonly string[]])[] = [
  ['workspace_llm_config', ['vault_api_key_id', 'api_key'], ['workspace_id']],
  ['api_connections', ['api_key'], ['workspace_id']],
  ['user_integration_credentials', ['vault_access_token_id', 'vault_refresh_token_id'], ['workspace_id']],
  ['user_secrets', ['vault_id', 'vault_item_id'], ['user_id']],
  ['mcp_servers', ['vault_api_key_id'], ['config_id']],
  ['agent_mcp_connections', ['auth_secret'], ['agent_id']],
  ['datastores', ['config.api_key', 'config.apiKey'], ['workspace_id']],
];

const column = (place: string): string => place.split('.')[0] as string;

export async function up(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    -- An owner is a workspace, or the user of a user_secrets row. A row stays when its owner goes: what was somebody's never becomes
    -- claimable again. It names the secret by id and holds nothing of it.
    create table agentd.vault_owners (
      secret_id  uuid        not null,
      -- all zeros while create_vault_secret has made it and nobody has named it
      owner_id   uuid        not null default '00000000-0000-0000-0000-000000000000',
      created_at timestamptz not null default now(),
      primary key (secret_id, owner_id)
    );
    create index vault_owners_owner_id_idx on agentd.vault_owners (owner_id);

    create function agentd.note_vault_secret(p_secret_id uuid) returns void
    language sql security definer set search_path = pg_catalog, pg_temp as $$
      insert into agentd.vault_owners (secret_id) values (p_secret_id) on conflict do nothing
    $$;

    create function agentd.has_vault() returns boolean
    language sql stable set search_path = pg_catalog, pg_temp as $$
      select exists (
        select 1 from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where n.nspname = 'vault' and c.relname = 'secrets')
    $$;

    -- Null where the Vault can't be asked.
    create function agentd.is_in_vault(p_secret_id uuid) returns boolean
    language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
    declare
      v_found boolean;
    begin
      if not agentd.has_vault() then
        return null;
      end if;
      execute 'select exists (select 1 from vault.secrets s where s.id = $1)' into v_found using p_secret_id;
      return v_found;
    exception when insufficient_privilege then
      return null;
    end
    $$;

    -- Arguments: the places of ids. After the row is final: what a trigger of somebody's put there counts as well.
    create function agentd.guard_vault_ids() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    declare
      v_row       jsonb   := to_jsonb(new);
      v_old       jsonb   := case when tg_op = 'UPDATE' then to_jsonb(old) end;
      v_service   boolean := agentd.is_service_caller();
      v_owner     uuid;
      v_place     text;
      v_text      text;
      v_secret    uuid;
      v_is_new    boolean;
    begin
      v_owner := coalesce(
        (v_row ->> 'workspace_id')::uuid,
        (select a.workspace_id
           from public.agents a
          where a.id = coalesce(
                  (v_row ->> 'agent_id')::uuid,
                  (select c.agent_id from public.mcp_configurations c where c.id = (v_row ->> 'config_id')::uuid))),
        (v_row ->> 'user_id')::uuid);
      -- nobody's row: what it names does not open
      if v_owner is null then
        return null;
      end if;
      foreach v_place in array tg_argv loop
        v_text := v_row #>> string_to_array(v_place, '.');
        if v_text is null or v_text !~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then
          continue;
        end if;
        v_secret := v_text::uuid;
        v_is_new := tg_op = 'INSERT' or v_text is distinct from v_old #>> string_to_array(v_place, '.');
        if exists (select 1 from agentd.vault_owners o where o.secret_id = v_secret and o.owner_id = v_owner) then
          continue;
        end if;
        if v_service then
          -- Elsewhere it may be a key, and is one unless the Vault has it. What stood there before is whoever's word it was: a service
          -- that changes something beside it has not given it.
          if v_place like 'vault\\_%' or (v_is_new and agentd.is_in_vault(v_secret)) then
            delete from agentd.vault_owners o
             where o.secret_id = v_secret and o.owner_id = '00000000-0000-0000-0000-000000000000';
            insert into agentd.vault_owners (secret_id, owner_id) values (v_secret, v_owner) on conflict do nothing;
          end if;
          continue;
        end if;
        -- Two who name it at once: the second waits here for the first, and finds it taken.
        update agentd.vault_owners o
           set owner_id = v_owner
         where o.secret_id = v_secret and o.owner_id = '00000000-0000-0000-0000-000000000000';
        if found then
          continue;
        end if;
        if exists (
          select 1 from agentd.vault_owners o where o.secret_id = v_secret and o.owner_id = public.current_user_id()
        ) then
          insert into agentd.vault_owners (secret_id, owner_id) values (v_secret, v_owner) on conflict do nothing;
          continue;
        end if;
        if exists (select 1 from agentd.vault_owners o where o.secret_id = v_secret)
           or (v_is_new and case when v_place like 'vault\\_%' then agentd.has_vault()
                                 else coalesce(agentd.is_in_vault(v_secret), false) end) then
          raise exception 'the secret that %.% names is not yours', tg_table_name, split_part(v_place, '.', 1)
            using errcode = 'insufficient_privilege',
                  hint = 'Have a service make it with create_vault_secret, or write the row.';
        end if;
      end loop;
      return null;
    end
    $$;

    -- The plain text for the worker, if the secret is the workspace's. State: done, foreign, missing, unreadable, no_vault, no_rights.
    create function agentd.open_vault_secret(p_secret_id uuid, p_workspace_id uuid, out state text, out secret text)
    language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if not exists (
        select 1 from agentd.vault_owners o where o.secret_id = p_secret_id and o.owner_id = p_workspace_id
      ) then
        state := 'foreign';
        return;
      end if;
      if not agentd.has_vault() then
        state := 'no_vault';
        return;
      end if;
      execute 'select s.decrypted_secret from vault.decrypted_secrets s where s.id = $1' into secret using p_secret_id;
      state := case when secret is null then 'missing' else 'done' end;
    exception
      when insufficient_privilege then
        state := 'no_rights';
      -- with another root key, or by a damaged row
      when data_exception or internal_error then
        state := 'unreadable';
    end
    $$;

    -- Changes a secret in place, for whom it opens. update_secret says nothing about an id that is not there, so it is looked at again.
    create function agentd.replace_vault_secret(p_secret_id uuid, p_workspace_id uuid, p_secret text) returns text
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
    declare
      v_is_new boolean;
    begin
      if not exists (
        select 1 from agentd.vault_owners o where o.secret_id = p_secret_id and o.owner_id = p_workspace_id
      ) then
        return 'foreign';
      end if;
      if not agentd.has_vault() then
        return 'no_vault';
      end if;
      execute 'select vault.update_secret($1, $2)' using p_secret_id, p_secret;
      execute 'select s.decrypted_secret = $2 from vault.decrypted_secrets s where s.id = $1'
        into v_is_new using p_secret_id, p_secret;
      return case when v_is_new is null then 'missing' when v_is_new then 'done' else 'unreadable' end;
    exception
      when insufficient_privilege then
        return 'no_rights';
      when data_exception or internal_error then
        return 'unreadable';
    end
    $$;

    create or replace function public.create_vault_secret(p_secret text, p_name text, p_description text) returns text
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
      perform agentd.note_vault_secret(secret_id::uuid);
      return secret_id;
    end
    $$;
    `,
  );
  for (const [table, places, owner] of await placesIn(db)) {
    const columns = [...new Set([...places.map(column), ...owner])].join(', ');
    await runSql(
      db,
      sql.raw(`
    create trigger zz_guard_vault_ids
      after insert or update of ${columns} on public.${table}
      for each row execute function agentd.guard_vault_ids(${places.map((place) => `'${place}'`).join(', ')});`),
    );
  }
  await applyAccess(db);
}

/** Those of PLACES whose columns are there. */
async function placesIn(db: Kysely<unknown>): Promise<typeof PLACES> {
  const { rows } = await sql<{ name: string }>`
    select c.relname || '.' || a.attname as name
      from pg_catalog.pg_class c
      join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
     where c.relnamespace = 'public'::regnamespace`.execute(db);
  const there = new Set(rows.map(({ name }) => name));
  return PLACES.filter(([table, places]) => places.every((place) => there.has(`${table}.${column(place)}`)));
}

export async function down(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    ${sql.raw(PLACES.map(([table]) => `drop trigger if exists zz_guard_vault_ids on public.${table};`).join('\n    '))}
    drop function agentd.guard_vault_ids();
    ${sql.raw(CREATE_VAULT_SECRET.replace('create function', 'create or replace function'))}
    drop function agentd.replace_vault_secret(uuid, uuid, text);
    drop function agentd.open_vault_secret(uuid, uuid);
    drop function agentd.is_in_vault(uuid);
    drop function agentd.has_vault();
    drop function agentd.note_vault_secret(uuid);
    drop table agentd.vault_owners;
    `,
  );
}
