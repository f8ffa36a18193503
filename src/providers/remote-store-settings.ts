/** What the config of a datastore says of a store elsewhere, and the key in it. */

import { SecretError, type SecretOpener } from '../secrets.ts';
import { RemoteStoreError } from './remote-store-error.ts';

/** A datastore as stored. */
export type DatastoreRow = {
  readonly datastore_id: string;
  readonly workspace_id: string;
  readonly config: unknown;
};

/** The first of some entries that says something; null: none does. */
export function configText(config: unknown, ...names: readonly string[]): string | null {
  const given = (typeof config === 'object' && config !== null ? config : {}) as Record<string, unknown>;
  for (const name of names) {
    const value = given[name];
    if (typeof value === 'string' && value.trim() !== '' && value.length <= 4096) return value.trim();
  }
  return null;
}

/** The datastore's own key, opened. Throws RemoteStoreError `no_credentials` or `credentials_refused`. */
export async function openedKey(
  { config, datastore_id, workspace_id }: DatastoreRow,
  secrets: SecretOpener,
  service: string,
): Promise<string> {
  const sealed = configText(config, 'api_key', 'apiKey');
  if (sealed === null) {
    throw new RemoteStoreError(
      'no_credentials',
      `The datastore has no key. Store ${service}'s API key as api_key in its config.`,
    );
  }
  let key: string;
  try {
    key = await secrets.open(sealed, {
      table: 'public.datastores',
      row: datastore_id,
      column: 'config',
      workspace: workspace_id,
    });
  } catch (error) {
    if (!(error instanceof SecretError)) throw error;
    throw new RemoteStoreError(
      'no_credentials',
      `The datastore's key can't be opened: ${error.message} ${error.nextStep}`,
      { cause: error },
    );
  }
  if (/^[\x21-\x7e]{1,1000}$/.test(key)) return key;
  throw new RemoteStoreError(
    'credentials_refused',
    "The datastore's key holds characters that no key has. Store it again.",
  );
}

/** Of an address as tenants write it: whatever path it has would become part of every request. Throws RemoteStoreError. */
export function storedOrigin(host: string, scheme: string, service: string): string {
  const text = /^https?:\/\//.test(host) ? host : `${scheme}://${host}`;
  const url = URL.canParse(text) ? new URL(text) : null;
  if (url !== null && (url.username !== '' || url.password !== '')) {
    throw new RemoteStoreError(
      'blocked_address',
      "The datastore's host holds a user name or a password. Store the address alone.",
    );
  }
  if (url !== null) return url.origin;
  throw new RemoteStoreError(
    'invalid_config',
    `The datastore's host is no address. Copy it from ${service}'s console.`,
  );
}

/** As AGENTD_ALLOWED_PRIVATE_HOSTS has it. */
export function portedHost(url: URL): string {
  return `${url.hostname}:${url.port || (url.protocol === 'https:' ? 443 : 80)}`;
}
