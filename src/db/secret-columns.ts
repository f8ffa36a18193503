/** Every column that may hold a secret, and how what it holds is looked at and changed. */
import { type SecretContext, secretForm } from '../secrets.ts';
import type { Queryable } from './database.ts';

/** A place for a secret: a column, or an entry of a JSON column. */
export type SecretPlace = {
  readonly table: string;
  readonly column: string;
  /** An entry of the JSON object in the column; null: the column is the secret. */
  readonly entry: string | null;
  /** False where only applications read it: it is counted, and nothing is changed. */
  readonly isOpened: boolean;
  /** SQL of the row's workspace, over `t`. */
  readonly workspace: string;
  /** SQL of the row's key, over `t`; a uuid. */
  readonly key: string;
  /** What its value is sealed for where that is another row's column. `row` is SQL over `t`. */
  readonly sealedFor?: { readonly table: string; readonly column: string; readonly row: string };
};

function place(name: string, more: Partial<SecretPlace> = {}): SecretPlace {
  const [schema, table, column, entry] = name.split('.') as [string, string, string, string | undefined];
  return {
    table: `${schema}.${table}`,
    column,
    entry: entry ?? null,
    isOpened: true,
    workspace: 't.workspace_id',
    key: 't.id',
    ...more,
  };
}

const OF_AGENT = '(select a.workspace_id from public.agents a where a.id = t.agent_id)';
const OF_CONFIGURATION =
  '(select a.workspace_id from public.mcp_configurations c join public.agents a on a.id = c.agent_id where c.id = t.config_id)';
const retired = { sealedFor: { table: 'public.datastores', column: 'config', row: 't.datastore_id' } };

export const SECRET_PLACES: readonly SecretPlace[] = [
  place('public.workspace_llm_config.api_key'),
  place('public.workspace_llm_config.vault_api_key_id'),
  place('public.api_connections.api_key'),
  place('public.user_integration_credentials.vault_access_token_id'),
  place('public.user_integration_credentials.vault_refresh_token_id'),
  place('public.user_integration_credentials.connection_metadata.client_secret'),
  place('agentd.rescued_tokens.access_token'),
  place('agentd.rescued_tokens.refresh_token'),
  place('public.service_providers.configuration_metadata.client_secret', { workspace: 'null::uuid' }),
  place('public.mcp_servers.vault_api_key_id', { workspace: OF_CONFIGURATION }),
  place('public.agent_mcp_connections.auth_secret', { workspace: OF_AGENT }),
  place('public.datastores.config.api_key'),
  place('public.datastores.config.apiKey'),
  // what is left to be deleted in a store that is no datastore any more
  place('agentd.vector_stores.config.api_key', retired),
  place('agentd.vector_stores.config.apiKey', retired),
  place('public.agents.discord_bot_key', { isOpened: false }),
  place('public.user_secrets.vault_id', { isOpened: false, workspace: 't.user_id' }),
];

export const placeName = ({ table, column, entry }: SecretPlace): string =>
  [table, column, entry].filter((part) => part !== null).join('.');

/** A secret as stored. */
export type StoredSecret = {
  readonly id: string;
  readonly context: SecretContext;
  /** Changed only while it is still this. */
  readonly value: string;
  /** As the worker reads it. */
  readonly text: string;
  /** Whether it is the id of a secret of the Vault. */
  readonly isVault: boolean;
};

export type Form = 'v1' | 'reference' | 'plain' | 'vault';

/** How it is written. Whether it opens is another question. */
export function formOf(stored: StoredSecret): Form {
  if (stored.isVault) return 'vault';
  const form = secretForm(stored.text);
  return form === 'unknown' ? 'plain' : form;
}

const valueIn = ({ column, entry }: SecretPlace): string =>
  entry === null ? `t.${column}::text` : `t.${column} ->> '${entry}'`;

/** A UUID in a column for ids is one; in another if a service gave it to the row's workspace. */
const isVaultOf = (given: SecretPlace): string => `(
  ${valueIn(given)} ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
  and (${(given.sealedFor?.column ?? given.column).startsWith('vault_')} or exists (
    select 1 from agentd.vault_owners o where o.secret_id::text = lower(${valueIn(given)}) and o.owner_id = ${given.workspace})))`;

/**
 * The next secrets of a place in the order of their rows, after the row `after`; null: from the first. Those that begin with `skipped` are
 * left out; null: none.
 */
export function secretsAfter(
  db: Queryable,
  given: SecretPlace,
  after: string | null,
  limit: number,
  skipped: string | null = null,
): Promise<StoredSecret[]> {
  return secretsWhere(
    db,
    given,
    `($1::uuid is null or ${given.key} > $1::uuid)
        and ($3::text is null or not starts_with(${valueIn(given)}, $3))
      order by ${given.key}
      limit $2`,
    [after, limit, skipped],
  );
}

/** The secrets of a place in some rows, as they are now. */
export function secretsIn(
  db: Queryable,
  given: SecretPlace,
  ids: readonly string[],
): Promise<StoredSecret[]> {
  return secretsWhere(db, given, `${given.key} = any ($1::uuid[])`, [ids]);
}

async function secretsWhere(
  db: Queryable,
  given: SecretPlace,
  condition: string,
  values: readonly unknown[],
): Promise<StoredSecret[]> {
  const rows = await db.query<{
    id: string;
    row: string;
    workspace: string | null;
    value: string;
    is_vault: boolean;
  }>(
    `select ${given.key}::text as id, (${given.sealedFor?.row ?? given.key})::text as row, (${given.workspace})::text as workspace,
            ${valueIn(given)} as value, ${isVaultOf(given)} as is_vault
       from ${given.table} t
      where ${valueIn(given)} <> ''
        and ${condition}`,
    values,
  );
  return rows.map(({ id, row, workspace, value, is_vault }) => ({
    id,
    value,
    text: given.entry === null ? value : value.trim(),
    isVault: is_vault,
    context: {
      table: given.sealedFor?.table ?? given.table,
      row,
      column: given.sealedFor?.column ?? given.column,
      workspace,
    },
  }));
}

/**
 * Puts new values where the old ones still are; rows that somebody holds at the moment are passed over. Returns the ids of the
 * changed rows. Of two who do it at once, each value is changed by one.
 */
export async function replaceSecrets(
  db: Queryable,
  given: SecretPlace,
  changes: readonly { readonly id: string; readonly was: string; readonly is: string }[],
): Promise<string[]> {
  const column = given.column;
  const changed =
    given.entry === null ? 'n.value' : `jsonb_set(t.${column}, '{${given.entry}}', to_jsonb(n.value))`;
  const rows = await db.query<{ id: string }>(
    `with n as (
       select x.* from unnest($1::uuid[], $2::text[], $3::text[]) as x (id, was, value)
     ), held as (
       select ${given.key} as id from ${given.table} t
        where ${given.key} = any ($1::uuid[])
        order by ${given.key}
          for no key update skip locked
     )
     update ${given.table} t set ${column} = ${changed}
       from n join held on held.id = n.id
      where ${given.key} = n.id and ${valueIn(given)} = n.was
     returning ${given.key}::text as id`,
    [changes.map(({ id }) => id), changes.map(({ was }) => was), changes.map(({ is }) => is)],
  );
  return rows.map(({ id }) => id);
}

/** How many secrets of one place are written in one way. */
export type SecretCount = { readonly form: Form; readonly kid: string | null; readonly secrets: number };

/** Counts what a place holds, without opening anything. */
export function countSecrets(db: Queryable, given: SecretPlace): Promise<SecretCount[]> {
  return db.query<SecretCount>(
    `select x.form, case when x.form = 'v1' then split_part(x.value, ':', 2) end as kid, count(*)::integer as secrets
       from (select ${valueIn(given)} as value,
                    case when ${isVaultOf(given)} then 'vault'
                         when agentd.secret_form(btrim(${valueIn(given)})) = 'unknown' then 'plain'
                         else agentd.secret_form(btrim(${valueIn(given)})) end as form
               from ${given.table} t
              where ${valueIn(given)} <> '') x
      group by 1, 2`,
  );
}
