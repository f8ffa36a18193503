/** Credentials as operators see them: never a token. */
import type { ConnectionStatus } from './credentials.ts';
import type { Queryable } from './database.ts';

/** A credential in the list of an operator. */
export type CredentialRow = {
  readonly id: string;
  readonly workspace_id: string;
  readonly workspace_name: string;
  readonly provider: string;
  readonly connection_name: string;
  readonly credential_type: 'oauth' | 'api_key';
  readonly connection_status: ConnectionStatus;
  readonly token_expires_at: Date | null;
  readonly next_refresh_at: Date | null;
  readonly last_refreshed_at: Date | null;
  readonly refresh_failures: number;
  readonly reason_code: string | null;
  readonly reason: string | null;
};

/** Credentials, those that need a person first. */
export function listCredentials(
  db: Queryable,
  wanted: { readonly workspaceId: string | null; readonly isFailing: boolean; readonly limit: number },
): Promise<CredentialRow[]> {
  return db.query<CredentialRow>(
    `select c.id, c.workspace_id, w.name as workspace_name, s.name as provider, c.connection_name, c.credential_type, c.connection_status,
            c.token_expires_at, c.next_refresh_at, c.last_refreshed_at, c.refresh_failures, c.reason_code, c.reason
       from public.user_integration_credentials c
       join public.workspaces w on w.id = c.workspace_id
       join public.service_providers s on s.id = c.service_provider_id
      where ($1::uuid is null or c.workspace_id = $1)
        and (not $2 or c.id in (select f.credential_id from agentd.failing_credentials f))
      order by c.connection_status not in ('error', 'expired'), c.refresh_failures = 0, c.next_refresh_at nulls last, c.id
      limit $3`,
    [wanted.workspaceId, wanted.isFailing, wanted.limit],
  );
}

/** A provider that refuses this platform's client, or does not answer. */
export type ProviderAlarm = {
  readonly provider: string;
  readonly is_misconfigured: boolean;
  readonly alarm_since: Date | null;
  readonly failures: number;
  readonly blocked_until: Date | null;
  readonly reason: string | null;
};

export function providerAlarms(db: Queryable, limit: number): Promise<ProviderAlarm[]> {
  return db.query<ProviderAlarm>(
    `select provider, is_misconfigured, alarm_since, failures, blocked_until, reason from agentd.provider_alarms
      order by is_misconfigured desc, updated_at desc limit $1`,
    [limit],
  );
}

/** Asks for a refresh now, and writes down who did. False: it is revoked, or has nothing to be refreshed with. In the operator's transaction. */
export async function askForRefresh(tx: Queryable, id: string): Promise<boolean> {
  const [row] = await tx.query<{ asked: boolean }>(
    `select agentd.request_credential_refresh(c.id) as asked from public.user_integration_credentials c where c.id = $1`,
    [id],
  );
  if (row?.asked !== true) return false;
  await tx.query(
    `select agentd.audit('refresh', 'credential', c.id::text, c.workspace_id) from public.user_integration_credentials c where c.id = $1`,
    [id],
  );
  return true;
}

/** Ends a credential: its tokens are forgotten, what is under way is not stored. False: it was revoked before. In the operator's transaction. */
export async function revokeCredential(tx: Queryable, id: string, reason: string | null): Promise<boolean> {
  const rows = await tx.query(
    `with revoked as (
       update public.user_integration_credentials c
          set connection_status = 'revoked', vault_access_token_id = null, vault_refresh_token_id = null, token_expires_at = null
        where c.id = $1 and c.connection_status <> 'revoked'
       returning c.id, c.workspace_id
     ),
     forgotten as (
       delete from agentd.rescued_tokens r using revoked where r.credential_id = revoked.id
     ),
     logged as (
       insert into public.credential_refresh_log (credential_id, outcome, error_message, created_at)
       select r.id, 'revoked', $2, agentd.now() from revoked r
     )
     select agentd.audit('revoke', 'credential', r.id::text, r.workspace_id,
                         jsonb_strip_nulls(jsonb_build_object('reason', $2::text))) from revoked r`,
    [id, reason],
  );
  return rows.length > 0;
}

/** Credentials by what is wrong with them, as agentd.failing_credentials has them. */
export type CredentialsFailing = {
  readonly provider: string;
  readonly status: string;
  readonly credentials: number;
};

/** Most rows that a scrape counts. */
const MOST_COUNTED = 10_000;

/** Credentials that need a person or are late, counted by provider. */
export function credentialsFailing(db: Queryable): Promise<CredentialsFailing[]> {
  return db.query<CredentialsFailing>(
    `select f.provider, f.connection_status::text as status, count(*)::integer as credentials
       from (select provider, connection_status from agentd.failing_credentials limit ${MOST_COUNTED}) f
      group by 1, 2 order by 1, 2`,
  );
}

/** Names of providers that refuse this platform's client. */
export async function misconfiguredProviders(db: Queryable): Promise<string[]> {
  const rows = await db.query<{ provider: string }>(
    'select provider from agentd.provider_alarms where is_misconfigured order by provider limit 100',
  );
  return rows.map((row) => row.provider);
}
