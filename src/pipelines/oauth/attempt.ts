/** What an attempt at a credential is made of, and how its failure is written. */
import type { Logger } from 'pino';
import type { Clock } from '../../clock.ts';
import { failRefresh, type RefreshFailed, type RefreshLog } from '../../db/credential-outcomes.ts';
import type { ClaimedCredential } from '../../db/credentials.ts';
import type { Database } from '../../db/database.ts';
import { isLockTimeout, isTransient, retryTransient } from '../../db/retry.ts';
import type { GuardedCaller } from '../../providers/guarded-call.ts';
import type { OAuthProviders } from '../../providers/oauth-providers.ts';
import type { SecretContext, SecretError, SecretStore } from '../../secrets.ts';
import type { CredentialMetrics } from '../../telemetry/credential-metrics.ts';
import { againAfter } from './backoff.ts';
import type { HostLanes } from './host-lanes.ts';

/** A claim holds so long, in seconds: a request's time limit, and time to store its answer. */
export const CREDENTIAL_LEASE_SECONDS = 60;
export type RefreshSignal = 'refresh_sent' | 'token_answered' | 'token_stored';

export type RefreshDeps = {
  readonly db: Database;
  readonly clock: Clock;
  readonly log: Logger;
  readonly secrets: SecretStore;
  readonly caller: GuardedCaller;
  readonly providers: OAuthProviders;
  readonly lanes: HostLanes;
  readonly metrics: Pick<CredentialMetrics, 'ended' | 'alarm' | 'rescued'>;
  /** Whether the database's time can be relied on, so that a lease that looks lapsed has; absent: it always can. */
  readonly isSteady?: () => boolean;
  readonly onRetry?: (error: Error) => void;
  /** For tests. */
  readonly signal?: (at: RefreshSignal) => void;
  /** Replaces the time limit of a request, for tests, in milliseconds. */
  readonly requestMs?: number;
};

/** What became of a claim. */
export type RefreshOutcome =
  | { readonly kind: 'refreshed'; readonly accessToken: string; readonly version: number }
  | { readonly kind: 'key_good' | 'moved_on' | 'released' }
  | { readonly kind: 'rescued'; readonly accessToken: string }
  | { readonly kind: 'deferred'; readonly ms: number }
  | {
      readonly kind: 'failed';
      readonly status: RefreshFailed['status'];
      readonly code: string;
      readonly reason: string;
      readonly againMs: number | null;
    };

export const tokenContext = (
  claim: Pick<ClaimedCredential, 'id' | 'workspace_id'>,
  column: 'vault_access_token_id' | 'vault_refresh_token_id',
): SecretContext => ({
  table: 'public.user_integration_credentials',
  row: claim.id,
  column,
  workspace: claim.workspace_id,
});

/** Waits for rows that somebody holds and a database that is away, as long as the signal lets it. */
export function patiently<T>(deps: RefreshDeps, work: () => Promise<T>, signal: AbortSignal): Promise<T> {
  return retryTransient(work, {
    clock: deps.clock,
    signal,
    retryIf: (error) => isTransient(error) || isLockTimeout(error),
    ...(deps.onRetry ? { onRetry: deps.onRetry } : {}),
  });
}

/** What an attempt knows of itself. */
export type Attempt = {
  readonly claim: ClaimedCredential;
  readonly jobId: string | null;
  readonly beganAt: number;
  readonly signal: AbortSignal;
};

export const logOf = (
  deps: RefreshDeps,
  { claim, jobId, beganAt }: Attempt,
  outcome: RefreshLog['outcome'],
  more: { readonly httpStatus?: number | null; readonly message?: string | null } = {},
): RefreshLog => ({
  jobId,
  attempt: Math.min(claim.refresh_failures, 1_000_000) + 1,
  outcome,
  httpStatus: more.httpStatus ?? null,
  durationMs: deps.clock.elapsed() - beganAt,
  message: more.message ?? null,
});

export const unusable = (reasonCode: string, reason: string): RefreshFailed => ({
  status: 'error',
  reasonCode,
  reason,
  counts: true,
  againMs: null,
  unfinished: 'keep',
});

/** A key ring that lacks a key, or a Vault that is away, is an operator's to mend; a damaged value is the user's to store again. */
export function ofSecret(error: SecretError, claim: ClaimedCredential): RefreshFailed {
  const reason = `${error.message} ${error.nextStep}`;
  const isOperators = ['no_key', 'unknown_key', 'vault_unavailable'].includes(error.code);
  return isOperators
    ? {
        status: 'active',
        reasonCode: error.code,
        reason,
        counts: true,
        againMs: againAfter(claim.refresh_failures),
        unfinished: 'keep',
      }
    : unusable(error.code, reason);
}

const OUTCOMES: Readonly<Record<string, RefreshLog['outcome']>> = {
  reauth_required: 'reauth_required',
  possible_lost_rotation: 'possible_lost_rotation',
  provider_misconfigured: 'provider_misconfigured',
};

/** Writes the failure. A credential that has moved on meanwhile is somebody's success. */
export async function failed(
  deps: RefreshDeps,
  attempt: Attempt,
  failure: RefreshFailed,
  more: { readonly httpStatus?: number | null } = {},
): Promise<RefreshOutcome> {
  const { claim } = attempt;
  const outcome =
    OUTCOMES[failure.reasonCode] ?? (failure.status === 'active' ? 'transient_error' : 'credential_unusable');
  const patience = AbortSignal.timeout(CREDENTIAL_LEASE_SECONDS * 1000);
  const isWritten = await patiently(
    deps,
    () =>
      failRefresh(
        deps.db,
        claim,
        failure,
        logOf(deps, attempt, outcome, { ...more, message: failure.reason }),
      ),
    patience,
  );
  if (!isWritten) return { kind: 'moved_on' };
  const { status, reasonCode: code, reason, againMs } = failure;
  const facts = { credential_id: claim.id, provider: claim.provider.name, reason_code: code, status };
  if (status === 'active') deps.log.info({ event: 'credential_refresh_failed', ...facts }, reason);
  else deps.log.warn({ event: 'credential_needs_person', ...facts }, reason);
  return { kind: 'failed', status, code, reason, againMs };
}
