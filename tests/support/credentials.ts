/** Providers and credentials of tests. */
import { randomBytes } from 'node:crypto';
import type { Queryable } from '../../src/db/database.ts';
import { columnSecretStore, parseKeyRing } from '../../src/secrets.ts';
import { CLIENT } from '../peers/oauth-provider.ts';
import { insert } from './platform.ts';
import { until } from './runs.ts';

export const ENCRYPTION_KEY = randomBytes(32).toString('hex');

/** The environment of a daemon that may ask the given peers on loopback. */
export const credentialEnv = (...ports: number[]): Record<string, string> => ({
  ENCRYPTION_KEY,
  AGENTD_ALLOWED_PRIVATE_HOSTS: ports.map((port) => `127.0.0.1:${port}`).join(','),
});

export type Credential = {
  id: string;
  connection_status: string;
  reason_code: string | null;
  reason: string | null;
  token_version: number;
  refresh_failures: number;
  vault_access_token_id: string | null;
  vault_refresh_token_id: string | null;
  token_expires_at: Date | null;
  next_refresh_at: Date | null;
  refresh_started_at: Date | null;
  refresh_request: number;
  is_refresh_due: boolean;
  job_id: string | null;
};

let providers = 0;

/** A row of service_providers. */
export function makeProvider(
  db: Queryable,
  tokenEndpoint: string | null,
  more: { name?: string; type?: string; configuration?: object } = {},
): Promise<string> {
  const name = more.name ?? `provider-of-tests-${++providers}`;
  return insert(db, 'public.service_providers', {
    name,
    display_name: name,
    provider_type: more.type ?? 'oauth',
    token_endpoint: tokenEndpoint,
    configuration_metadata: more.configuration ?? { client_id: CLIENT.id, client_secret: CLIENT.secret },
  });
}

/** A row of user_integration_credentials, due at once unless it says otherwise. */
export function makeCredential(
  db: Queryable,
  owner: { readonly userId: string; readonly workspaceId: string },
  providerId: string,
  columns: Readonly<Record<string, unknown>> = {},
): Promise<string> {
  return insert(db, 'public.user_integration_credentials', {
    user_id: owner.userId,
    workspace_id: owner.workspaceId,
    service_provider_id: providerId,
    credential_type: 'oauth',
    vault_access_token_id: 'old-access-token',
    vault_refresh_token_id: 'old-refresh-token',
    token_expires_at: new Date(0),
    ...columns,
  });
}

export async function credential(db: Queryable, id: string): Promise<Credential> {
  const [row] = await db.query<Credential>(
    'select * from public.user_integration_credentials where id = $1',
    [id],
  );
  if (!row) throw new Error(`There is no credential ${id}.`);
  return row;
}

/** Waits until the credential is as wanted. */
export const credentialThat = (
  db: Queryable,
  id: string,
  what: string,
  is: (row: Credential) => boolean,
): Promise<Credential> =>
  until(`credential ${id} ${what}`, async () => {
    const row = await credential(db, id);
    return is(row) ? row : false;
  });

/** The plain tokens of a credential. */
export async function openTokens(db: Queryable, id: string): Promise<{ access: string; refresh: string }> {
  const [row] = await db.query<Credential & { workspace_id: string }>(
    'select * from public.user_integration_credentials where id = $1',
    [id],
  );
  const store = columnSecretStore(parseKeyRing({ ENCRYPTION_KEY }));
  const open = (column: 'vault_access_token_id' | 'vault_refresh_token_id'): string =>
    store.open(row?.[column] ?? '', {
      table: 'public.user_integration_credentials',
      row: id,
      column,
      workspace: row?.workspace_id ?? '',
    });
  return { access: open('vault_access_token_id'), refresh: open('vault_refresh_token_id') };
}

/** Outcomes in the log of a credential, the oldest first. */
export async function outcomes(db: Queryable, id: string): Promise<string[]> {
  const rows = await db.query<{ outcome: string }>(
    'select outcome from public.credential_refresh_log where credential_id = $1 order by created_at, id',
    [id],
  );
  return rows.map((row) => row.outcome);
}
