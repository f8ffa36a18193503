/** What becomes of claimed credentials, each with its line in credential_refresh_log, in one statement. */
import type { CredentialClaim } from './credentials.ts';
import type { Queryable } from './database.ts';

/** One line of credential_refresh_log. */
export type RefreshLog = {
  readonly jobId: string | null;
  readonly attempt: number;
  readonly outcome:
    | 'refreshed'
    | 'not_needed'
    | 'transient_error'
    | 'reauth_required'
    | 'possible_lost_rotation'
    | 'provider_misconfigured'
    | 'credential_unusable'
    | 'token_rescued'
    | 'restored';
  readonly httpStatus: number | null;
  /** Milliseconds. */
  readonly durationMs: number;
  /** Holds no secret. */
  readonly message: string | null;
};

const logValues = (log: RefreshLog): unknown[] => [
  log.jobId,
  log.attempt,
  log.outcome,
  log.httpStatus,
  Math.round(log.durationMs),
  log.message?.slice(0, 2000) ?? null,
];

/** Locks the row where it still has the version; null: it has moved on, or is nobody's any more. */
export async function lockVersion(
  tx: Queryable,
  claim: CredentialClaim,
): Promise<{ readonly access_token: string | null; readonly refresh_token: string | null } | null> {
  const [row] = await tx.query<{ access_token: string | null; refresh_token: string | null }>(
    {
      name: 'lock_credential_version',
      text: `select c.vault_access_token_id as access_token, c.vault_refresh_token_id as refresh_token
               from public.user_integration_credentials c
              where c.id = $1 and c.token_version = $2 and c.connection_status <> 'revoked'
                for no key update`,
    },
    [claim.id, claim.token_version],
  );
  return row ?? null;
}

/** What a row is to hold, as its columns have it. */
export type StoredTokens = {
  readonly accessToken: string;
  /** Null: the old one stays. */
  readonly refreshToken: string | null;
  /** From the request's start, by that many milliseconds ago; null: nobody says how long the token lives. */
  readonly lifetimeMs: number | null;
  readonly ageMs: number;
  readonly scopes: readonly string[] | null;
  readonly rescuedId: string | null;
};

/** No token is asked for again sooner, however short a life the provider gives it. */
const SHORTEST_PAUSE = `interval '30 seconds'`;

/** Writes the answer over its version, with its line in the log. Whoever holds the lease: the newer token is the better one. Returns the new version. */
export async function storeTokens(
  tx: Queryable,
  claim: CredentialClaim,
  tokens: StoredTokens,
  log: RefreshLog,
): Promise<number | null> {
  const [row] = await tx.query<{ token_version: number }>(
    {
      name: 'store_tokens',
      text: `
with old as (
  select c.id, c.token_expires_at from public.user_integration_credentials c where c.id = $1 and c.token_version = $2
),
stored as (
  update public.user_integration_credentials c
     set vault_access_token_id = $3, vault_refresh_token_id = coalesce($4, c.vault_refresh_token_id),
         token_version = least(c.token_version, 2147483646) + 1,
         token_expires_at = t.until,
         next_refresh_at = case when t.until is not null and coalesce($4, c.vault_refresh_token_id) is not null
                                then greatest(agentd.refresh_time(t.since, t.until), agentd.now() + ${SHORTEST_PAUSE}) end,
         scopes_granted = coalesce($7::jsonb, c.scopes_granted),
         last_refreshed_at = agentd.now(), refresh_failures = 0, refresh_started_at = null, refresh_lease_token = null,
         refresh_lease_until = null, is_refresh_due = false, job_id = null, reason_code = null, reason = null, connection_status = 'active'
    from (select n.since, n.since + $5::double precision * interval '1 millisecond' as until
            from (select agentd.now() - $6::double precision * interval '1 millisecond' as since) n) t
   where c.id = $1 and c.token_version = $2 and c.connection_status <> 'revoked'
  returning c.id, c.token_version, c.token_expires_at
),
used as (
  delete from agentd.rescued_tokens r using stored where r.id = $8
),
logged as (
  insert into public.credential_refresh_log (credential_id, job_id, attempt, outcome, http_status, duration_ms, error_message,
                                             old_expires_at, new_expires_at, created_at)
  select s.id, $9, $10, $11, $12, $13, $14, old.token_expires_at, s.token_expires_at, agentd.now() from stored s, old
)
select token_version from stored`,
    },
    [
      claim.id,
      claim.token_version,
      tokens.accessToken,
      tokens.refreshToken,
      tokens.lifetimeMs,
      tokens.ageMs,
      tokens.scopes === null ? null : JSON.stringify(tokens.scopes),
      tokens.rescuedId,
      ...logValues(log),
    ],
  );
  return row?.token_version ?? null;
}

/** Keeps a token that could not be written into its row. False: its credential is gone or was revoked, and so is its use. */
export async function rescueTokens(
  db: Queryable,
  claim: CredentialClaim,
  kept: {
    readonly id: string;
    readonly accessToken: string;
    readonly refreshToken: string | null;
    readonly lifetimeMs: number | null;
    readonly ageMs: number;
  },
  log: RefreshLog,
): Promise<boolean> {
  const rows = await db.query(
    {
      name: 'rescue_tokens',
      text: `
with kept as (
  insert into agentd.rescued_tokens (id, credential_id, workspace_id, from_version, access_token, refresh_token, expires_at)
  select $3, c.id, c.workspace_id, $2, $4, $5,
         agentd.now() + ($6::double precision - $7::double precision) * interval '1 millisecond'
    from public.user_integration_credentials c where c.id = $1 and c.connection_status <> 'revoked'
  on conflict do nothing
  returning credential_id
)
insert into public.credential_refresh_log (credential_id, job_id, attempt, outcome, http_status, duration_ms, error_message, created_at)
select k.credential_id, $8, $9, $10, $11, $12, $13, agentd.now() from kept k
returning 1`,
    },
    [
      claim.id,
      claim.token_version,
      kept.id,
      kept.accessToken,
      kept.refreshToken,
      kept.lifetimeMs,
      kept.ageMs,
      ...logValues(log),
    ],
  );
  return rows.length > 0;
}

/** What becomes of a credential whose refresh brought nothing. */
export type RefreshFailed = {
  readonly status: 'active' | 'expired' | 'error';
  readonly reasonCode: string;
  readonly reason: string;
  /** Whether it counts for the backoff. */
  readonly counts: boolean;
  /** Until it is tried again, in milliseconds; null: not before somebody changes it. */
  readonly againMs: number | null;
  /** What refresh_started_at is to be: whether this attempt, or one before it, may have been carried out. */
  readonly unfinished: 'keep' | Date | null;
};

/** Writes why, and when it is tried again, with its line in the log. False: the credential has moved on, which is a success of somebody's. */
export async function failRefresh(
  db: Queryable,
  claim: CredentialClaim,
  failed: RefreshFailed,
  log: RefreshLog,
): Promise<boolean> {
  const rows = await db.query(
    {
      name: 'fail_refresh',
      text: `
with failed as (
  update public.user_integration_credentials c
     set connection_status = $4::public.connection_status, reason_code = $5, reason = $6,
         refresh_failures = least(c.refresh_failures, 1000000) + $7::integer,
         next_refresh_at = agentd.now() + $8::double precision * interval '1 millisecond',
         is_refresh_due = $8::double precision is not null, job_id = null,
         refresh_started_at = case when $9::boolean then c.refresh_started_at else $10::timestamptz end,
         refresh_lease_token = null, refresh_lease_until = null,
         last_refreshed_at = case when c.credential_type = 'api_key' then agentd.now() else c.last_refreshed_at end
   where c.id = $1 and c.refresh_lease_token = $2 and c.token_version = $3 and c.connection_status = 'active'
  returning c.id, c.token_expires_at
)
insert into public.credential_refresh_log (credential_id, job_id, attempt, outcome, http_status, duration_ms, error_message,
                                           old_expires_at, created_at)
select f.id, $11, $12, $13, $14, $15, $16, f.token_expires_at, agentd.now() from failed f
returning 1`,
    },
    [
      claim.id,
      claim.lease,
      claim.token_version,
      failed.status,
      failed.reasonCode,
      failed.reason.slice(0, 2000),
      failed.counts ? 1 : 0,
      failed.againMs,
      failed.unfinished === 'keep',
      failed.unfinished === 'keep' ? null : failed.unfinished,
      ...logValues(log),
    ],
  );
  return rows.length > 0;
}

/** A key was looked at and is good, or can't be looked at: then it is not asked for again (`againMs` null). */
export async function keepKey(
  db: Queryable,
  claim: CredentialClaim,
  againMs: number | null,
  log: RefreshLog | null,
): Promise<void> {
  await db.query(
    {
      name: 'keep_key',
      text: `
with kept as (
  update public.user_integration_credentials c
     set last_refreshed_at = agentd.now(), refresh_failures = 0, refresh_lease_token = null, refresh_lease_until = null,
         is_refresh_due = false, job_id = null, reason_code = null, reason = null,
         next_refresh_at = agentd.now() + $3::double precision * interval '1 millisecond'
   where c.id = $1 and c.refresh_lease_token = $2
  returning c.id
)
insert into public.credential_refresh_log (credential_id, job_id, attempt, outcome, http_status, duration_ms, error_message, created_at)
select k.id, $4, $5, $6, $7, $8, $9, agentd.now() from kept k where $6::text is not null`,
    },
    [claim.id, claim.lease, againMs, ...(log === null ? [null, 1, null, null, null, null] : logValues(log))],
  );
}
