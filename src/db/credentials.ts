/**
 * Credentials on their way to a fresh token: claimed, sent, put off; credential-outcomes.ts has how that ends.
 *
 * What is stored names the version that it was asked from, everything else the lease. One that has moved on changes nothing and says so.
 */
import type { Queryable } from './database.ts';

export type ConnectionStatus = 'active' | 'expired' | 'revoked' | 'error';

/** Everything that an attempt needs to know, read when it is claimed. */
export type ClaimedCredential = {
  readonly id: string;
  readonly workspace_id: string;
  readonly credential_type: 'oauth' | 'api_key';
  readonly lease: string;
  readonly token_version: number;
  readonly refresh_failures: number;
  /** A refresh that was sent and whose answer nobody has stored: its token may be lost. */
  readonly unfinished_since: Date | null;
  /** As the columns have them. */
  readonly access_token: string | null;
  readonly refresh_token: string | null;
  readonly token_expires_at: Date | null;
  readonly scopes_granted: unknown;
  readonly connection_metadata: unknown;
  readonly provider: {
    readonly id: string;
    readonly name: string;
    readonly token_endpoint: string | null;
    readonly configuration_metadata: unknown;
  };
  /** The provider's endpoint is not to be asked for so long, in milliseconds. */
  readonly blocked_ms: number;
  /** A token that came for this version and could not be stored. */
  readonly rescued: {
    readonly id: string;
    readonly access_token: string;
    readonly refresh_token: string | null;
    readonly expires_in_ms: number | null;
  } | null;
};

/** What names a claim. */
export type CredentialClaim = Pick<ClaimedCredential, 'id' | 'lease' | 'token_version'>;

/**
 * Claims a credential for one refresh; null where another has it, the request is an older one, or it is not active.
 *
 * @param wanted.request the job's; null: whoever needs a token now
 * @param mayTakeOver whether a lease that looks lapsed has, also where a refresh was sent under it: right after the database was away its
 *   holder may be about to store the answer
 */
export async function claimCredential(
  db: Queryable,
  wanted: { readonly id: string; readonly workspaceId: string; readonly request: number | null },
  leaseSeconds: number,
  mayTakeOver = true,
): Promise<ClaimedCredential | null> {
  const [row] = await db.query<ClaimedCredential>(
    {
      name: 'claim_credential',
      text: `
with claimed as (
  update public.user_integration_credentials c
     set refresh_lease_token = gen_random_uuid(), refresh_lease_until = agentd.now() + make_interval(secs => $4)
   where c.id = $1 and c.workspace_id = $2 and c.connection_status = 'active'
     and ($3::integer is null or (c.refresh_request = $3 and c.is_refresh_due and c.job_id is not null))
     -- one that lies far ahead is of a clock that was wrong
     and (c.refresh_lease_until is null or c.refresh_lease_until <= agentd.now() or c.refresh_lease_until > agentd.now() + interval '10 minutes')
     and ($5 or c.refresh_lease_until is null or c.refresh_started_at is null)
  returning c.*
)
select c.id, c.workspace_id, c.credential_type, c.refresh_lease_token as lease, c.token_version, c.refresh_failures,
       c.refresh_started_at as unfinished_since, c.vault_access_token_id as access_token, c.vault_refresh_token_id as refresh_token,
       c.token_expires_at, c.scopes_granted, c.connection_metadata,
       jsonb_build_object('id', s.id, 'name', s.name, 'token_endpoint', s.token_endpoint,
                          'configuration_metadata', s.configuration_metadata) as provider,
       -- nobody blocks for longer: that was a clock that was wrong
       case when p.blocked_until between agentd.now() and agentd.now() + interval '10 minutes'
            then extract(epoch from p.blocked_until - agentd.now()) * 1000 else 0 end::float8 as blocked_ms,
       (select jsonb_build_object('id', r.id, 'access_token', r.access_token, 'refresh_token', r.refresh_token,
                                  'expires_in_ms', extract(epoch from r.expires_at - agentd.now()) * 1000)
          from agentd.rescued_tokens r
         where r.credential_id = c.id and r.from_version = c.token_version
         order by r.created_at desc limit 1) as rescued
  from claimed c
  join public.service_providers s on s.id = c.service_provider_id
  left join agentd.provider_states p on p.service_provider_id = s.id`,
    },
    [wanted.id, wanted.workspaceId, wanted.request, leaseSeconds, mayTakeOver],
  );
  return row ?? null;
}

/** How long another holds the credential that a job is for, in milliseconds; null: the job is nobody's business any more. */
export async function credentialHeldFor(
  db: Queryable,
  asked: { readonly id: string; readonly request: number },
): Promise<number | null> {
  const [row] = await db.query<{ ms: number | null }>(
    {
      name: 'credential_held_for',
      text: `select least(greatest(extract(epoch from c.refresh_lease_until - agentd.now()) * 1000, 200), 30000)::float8 as ms
               from public.user_integration_credentials c
              where c.id = $1 and c.refresh_request = $2 and c.is_refresh_due and c.connection_status = 'active'
                and c.refresh_lease_until is not null`,
    },
    [asked.id, asked.request],
  );
  return row?.ms ?? null;
}

/** The refresh is about to be sent. False: the claim is gone, and nothing may be sent. Extends the lease. */
export async function startRefresh(
  db: Queryable,
  claim: CredentialClaim,
  leaseSeconds: number,
): Promise<boolean> {
  const rows = await db.query(
    {
      name: 'start_refresh',
      text: `
update public.user_integration_credentials c
   set refresh_started_at = coalesce(c.refresh_started_at, agentd.now()),
       refresh_lease_until = agentd.now() + make_interval(secs => $4)
 where c.id = $1 and c.refresh_lease_token = $2 and c.token_version = $3 and c.connection_status = 'active'
   and c.refresh_lease_until > agentd.now()
returning 1`,
    },
    [claim.id, claim.lease, claim.token_version, leaseSeconds],
  );
  return rows.length > 0;
}

/** Puts a credential off without an attempt, as when its provider is not to be asked now. It holds no place of its workspace meanwhile. */
export async function deferRefresh(db: Queryable, claim: CredentialClaim, ms: number): Promise<void> {
  await db.query(
    {
      name: 'defer_refresh',
      text: `
update public.user_integration_credentials c
   set is_refresh_due = true, job_id = null, next_refresh_at = agentd.now() + $3::double precision * interval '1 millisecond',
       refresh_lease_token = null, refresh_lease_until = null
 where c.id = $1 and c.refresh_lease_token = $2 and c.connection_status = 'active'`,
    },
    [claim.id, claim.lease, ms],
  );
}

/** Gives a claim back as it was found: a drained worker's, whose job goes to another. Nothing was sent. */
export async function releaseCredential(db: Queryable, claim: CredentialClaim): Promise<void> {
  await db.query(
    {
      name: 'release_credential',
      text: `update public.user_integration_credentials c set refresh_lease_token = null, refresh_lease_until = null
              where c.id = $1 and c.refresh_lease_token = $2`,
    },
    [claim.id, claim.lease],
  );
}

/** Lets waiting credentials in, at most so many. Returns how many have a job now. */
export async function admitCredentials(db: Queryable, limit: number): Promise<number> {
  const [row] = await db.query<{ admitted: number }>(
    { name: 'admit_credentials', text: 'select agentd.admit_credentials($1) as admitted' },
    [limit],
  );
  return row?.admitted ?? 0;
}

/** A credential as whoever needs its token sees it. */
export type CredentialNow = {
  readonly credential_type: 'oauth' | 'api_key';
  readonly connection_status: ConnectionStatus;
  readonly reason_code: string | null;
  readonly reason: string | null;
  readonly token_version: number;
  readonly access_token: string | null;
  readonly refresh_token: string | null;
  /** Milliseconds; null: nobody says. */
  readonly expires_in_ms: number | null;
  readonly refreshed_ms_ago: number | null;
  readonly again_in_ms: number | null;
  readonly refresh_failures: number;
  readonly is_held: boolean;
};

/** A time that a user may have written: nothing can be taken from infinity. */
const bounded = (time: string): string =>
  `case when ${time} is not null then least(greatest(${time}, agentd.now() - interval '10 years'), agentd.now() + interval '10 years') end`;

/** Reads a credential of a workspace; null: there is none there. */
export async function credentialNow(
  db: Queryable,
  wanted: { readonly credentialId: string; readonly workspaceId: string },
): Promise<CredentialNow | null> {
  const [row] = await db.query<CredentialNow>(
    {
      name: 'credential_now',
      text: `
select c.credential_type, c.connection_status, c.reason_code, c.reason, c.token_version, c.vault_access_token_id as access_token,
       c.vault_refresh_token_id as refresh_token, c.refresh_failures,
       (extract(epoch from ${bounded('c.token_expires_at')} - agentd.now()) * 1000)::float8 as expires_in_ms,
       (extract(epoch from agentd.now() - ${bounded('c.last_refreshed_at')}) * 1000)::float8 as refreshed_ms_ago,
       (extract(epoch from ${bounded('c.next_refresh_at')} - agentd.now()) * 1000)::float8 as again_in_ms,
       -- as the claim has it
       coalesce(c.refresh_lease_until > agentd.now() and c.refresh_lease_until <= agentd.now() + interval '10 minutes', false) as is_held
  from public.user_integration_credentials c
 where c.id = $1 and c.workspace_id = $2`,
    },
    [wanted.credentialId, wanted.workspaceId],
  );
  return row ?? null;
}
