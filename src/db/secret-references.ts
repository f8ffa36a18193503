/** Opens and stores secrets by what a column holds: a sealed value, the reference form, plain text, or the id of a secret in the Vault. */
import {
  type SecretContext,
  SecretError,
  type SecretErrorCode,
  type SecretOpener,
  type SecretStore,
} from '../secrets.ts';
import type { Queryable } from './database.ts';

export interface SecretReferences extends SecretOpener {
  /**
   * The plain text. One query where the Vault has it, none else; nothing is kept.
   *
   * @throws SecretError as {@link SecretStore.open}; `vault_foreign`, `vault_missing`, `vault_unavailable` for the Vault's
   */
  open(stored: string, context: SecretContext): Promise<string>;
  /** What the column is to hold. @throws SecretError `no_key` */
  seal(value: string, context: SecretContext): Promise<string>;
  /**
   * What the column is to hold afterwards: a secret of the Vault is changed there, with `db`'s transaction, and its id stays;
   * everything else is sealed anew.
   *
   * @throws SecretError `no_key`, or as `open` where the Vault has it
   */
  replace(stored: string, value: string, context: SecretContext): Promise<string>;
}

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

/**
 * `reference`: the column is for ids of the Vault and a UUID in it is nothing else. `maybe`: some providers' keys are UUIDs too, so it
 * is one of the Vault only where a service gave it to the row's workspace.
 */
export function vaultReference(
  stored: string,
  context: Pick<SecretContext, 'column'>,
): 'reference' | 'maybe' | null {
  if (!UUID.test(stored)) return null;
  return context.column.startsWith('vault_') ? 'reference' : 'maybe';
}

type State = 'done' | 'foreign' | 'missing' | 'unreadable' | 'no_vault' | 'no_rights';

export function secretReferences(deps: { db: Queryable; columns: SecretStore }): SecretReferences {
  const { columns, db } = deps;
  return {
    async open(stored, context) {
      const kind = vaultReference(stored, context);
      if (kind === null) return columns.open(stored, context);
      const [row] = await db.query<{ state: State; secret: string | null }>(
        'select state, secret from agentd.open_vault_secret($1, $2)',
        [stored, context.workspace],
      );
      if (row?.state === 'done' && row.secret !== null) return row.secret;
      if (kind === 'maybe' && row?.state === 'foreign') return columns.open(stored, context);
      throw vaultError(row?.state ?? 'missing', context);
    },
    async seal(value, context) {
      return columns.seal(value, context);
    },
    async replace(stored, value, context) {
      const kind = vaultReference(stored, context);
      if (kind === null) return columns.seal(value, context);
      const [row] = await db.query<{ state: State }>(
        'select agentd.replace_vault_secret($1, $2, $3) as state',
        [stored, context.workspace, value],
      );
      if (row?.state === 'done') return stored;
      if (kind === 'maybe' && row?.state === 'foreign') return columns.seal(value, context);
      throw vaultError(row?.state ?? 'missing', context);
    },
  };
}

/** Of a state that agentd.open_vault_secret answers. */
export function vaultErrorCode(state: string): SecretErrorCode {
  if (state === 'foreign') return 'vault_foreign';
  return state === 'missing' ? 'vault_missing' : 'vault_unavailable';
}

function vaultError(state: State, context: SecretContext): SecretError {
  const where = `${context.table}.${context.column} of row ${context.row}`;
  const [message, nextStep] = SAYINGS[state === 'done' ? 'missing' : state];
  return new SecretError(vaultErrorCode(state), message.replace('WHERE', where), nextStep);
}

const SAYINGS: Readonly<Record<Exclude<State, 'done'>, readonly [message: string, nextStep: string]>> = {
  foreign: [
    'The secret that WHERE names was given to no row of this workspace by a service.',
    'Let a service (service_role) write the id into the row, or store the key itself.',
  ],
  no_vault: [
    'WHERE names a secret of a Vault that this database does not have.',
    'Store the key itself in the column for it, or install the Vault.',
  ],
  no_rights: [
    'agentd may not open the Vault that WHERE names a secret of.',
    'Grant the owner of agentd.open_vault_secret the use of schema vault, as docs/operating.md has it.',
  ],
  unreadable: [
    'The Vault does not open the secret that WHERE names.',
    'Its root key may have changed: restore it, or store the secret again.',
  ],
  missing: ['The secret that WHERE names is not in the Vault.', 'Store it again and write its new id.'],
};
