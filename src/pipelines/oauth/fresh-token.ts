/** An access token for whoever is about to make a call: the stored one, or a fresh one. */
import { sleep } from '../../clock.ts';
import { type CredentialNow, claimCredential, credentialNow } from '../../db/credentials.ts';
import { isLockTimeout, patientQueries, retryTransient } from '../../db/retry.ts';
import { secretReferences } from '../../db/secret-references.ts';
import { SecretError } from '../../secrets.ts';
import { CREDENTIAL_LEASE_SECONDS, type RefreshDeps, tokenContext } from './attempt.ts';
import { CredentialError } from './errors.ts';
import { refreshClaimed } from './refresh.ts';

export type FreshTokenDeps = RefreshDeps & {
  /** Told of each refresh that is begun here. It goes on when nobody waits for it any more, and must not be cut off. */
  readonly onRefreshing?: (work: Promise<unknown>) => void;
};

/** How often a refresh that somebody else makes is looked at, in milliseconds. */
const LOOK_MS = 100;
/** A token that was refreshed so short a time ago and is refused is not refused for its age. */
const JUST_REFRESHED_MS = 60_000;

export type FreshToken = {
  readonly accessToken: string;
  readonly tokenType: string;
  /** Rises with every token of the credential. */
  readonly version: number;
};

/**
 * A token that is good for at least `minimumMs` more; refreshed at once if it is not. However many ask, in however many processes, one
 * refresh is made: the others wait for it, at most `waitMs`. A credential of another workspace is missing.
 *
 * @throws CredentialError `credential_missing`, `reauth_required`, `credential_revoked`, `refresh_pending`, `token_refused`, or the code of
 *   what is wrong with the credential
 */
export async function freshToken(
  deps: FreshTokenDeps,
  wanted: {
    readonly credentialId: string;
    readonly workspaceId: string;
    readonly minimumMs: number;
    readonly waitMs: number;
    readonly signal: AbortSignal;
    /** The token that the server refused with 401. */
    readonly refused?: string;
  },
): Promise<FreshToken> {
  const until = deps.clock.elapsed() + wanted.waitMs;
  const db = patientQueries(deps.db, { clock: deps.clock, signal: wanted.signal });
  for (;;) {
    wanted.signal.throwIfAborted();
    const now = await credentialNow(db, wanted);
    const usable = await usableToken(deps, wanted, checked(now));
    if ('accessToken' in usable) return usable;
    if (!usable.isHeld) {
      const claim = await claimNow(deps, wanted);
      if (claim) {
        // not under the caller's signal: what others wait for is not called off
        const refreshing = refreshClaimed(deps, claim, { jobId: null, signal: new AbortController().signal });
        // the process may end meanwhile, and then the claim does
        refreshing.catch(() => {});
        deps.onRefreshing?.(refreshing);
        const outcome = await within(deps, refreshing, until, wanted.signal).catch((cause: unknown) => {
          wanted.signal.throwIfAborted();
          // it could not even be written down: the claim ends by itself
          throw pending(deps, null, { cause });
        });
        if (outcome === null) throw pending(deps, null);
        if (outcome.kind === 'refreshed') {
          return { accessToken: outcome.accessToken, tokenType: 'Bearer', version: outcome.version };
        }
        if (outcome.kind === 'failed' && outcome.status === 'active' && outcome.againMs !== null) {
          throw pending(deps, outcome.againMs, outcome);
        }
        // everything else is in the row
        if (outcome.kind !== 'deferred') continue;
      }
    }
    if (deps.clock.elapsed() + LOOK_MS > until) throw pending(deps, null);
    await sleep(deps.clock, LOOK_MS, wanted.signal);
  }
}

/** Null: another has it, or somebody holds its row. */
function claimNow(
  deps: FreshTokenDeps,
  wanted: { readonly credentialId: string; readonly workspaceId: string; readonly signal: AbortSignal },
): ReturnType<typeof claimCredential> {
  const named = { id: wanted.credentialId, workspaceId: wanted.workspaceId, request: null };
  const claim = () => claimCredential(deps.db, named, CREDENTIAL_LEASE_SECONDS, deps.isSteady?.());
  return retryTransient(claim, { clock: deps.clock, signal: wanted.signal }).catch((error: unknown) => {
    if (isLockTimeout(error)) return null;
    throw error;
  });
}

/** The answer of `work`, or null when `until` comes first. Rejects with the signal's reason. */
async function within<T>(
  deps: FreshTokenDeps,
  work: Promise<T>,
  until: number,
  signal: AbortSignal,
): Promise<T | null> {
  const done = new AbortController();
  const patience = sleep(
    deps.clock,
    Math.max(until - deps.clock.elapsed(), 0),
    AbortSignal.any([signal, done.signal]),
  );
  try {
    return await Promise.race([work, patience.then(() => null)]);
  } finally {
    patience.catch(() => {});
    done.abort();
  }
}

/** The credential, where it can be used. */
function checked(now: CredentialNow | null): CredentialNow {
  if (now === null) {
    throw new CredentialError('credential_missing', 'There is no such credential in this workspace.', {
      nextStep: 'Connect the account again and name its credential.',
    });
  }
  if (now.connection_status === 'revoked') {
    throw new CredentialError('credential_revoked', 'The credential was revoked.', {
      nextStep: 'Connect the account again.',
    });
  }
  if (now.connection_status !== 'active') {
    throw new CredentialError(
      now.reason_code ?? 'reauth_required',
      now.reason ?? 'The credential has expired.',
      { nextStep: 'Connect the account again.' },
    );
  }
  return now;
}

async function usableToken(
  deps: FreshTokenDeps,
  wanted: Parameters<typeof freshToken>[1],
  now: CredentialNow,
): Promise<FreshToken | { readonly isHeld: boolean }> {
  // in the first half of its life a token is as fresh as its provider makes them
  const isYoung = (now.expires_in_ms ?? 0) > Math.max(now.refreshed_ms_ago ?? Number.POSITIVE_INFINITY, 0);
  const isOld = now.expires_in_ms !== null && now.expires_in_ms < wanted.minimumMs && !isYoung;
  const canRefresh = now.credential_type === 'oauth' && now.refresh_token !== null;
  let token: string | null = null;
  if (now.access_token !== null) {
    try {
      const secrets = secretReferences({ db: deps.db, columns: deps.secrets });
      const context = tokenContext(
        { id: wanted.credentialId, workspace_id: wanted.workspaceId },
        'vault_access_token_id',
      );
      token = await secrets.open(now.access_token, context);
    } catch (error) {
      if (!(error instanceof SecretError)) throw error;
      throw new CredentialError(error.code, error.message, { nextStep: error.nextStep, cause: error });
    }
  }
  const isRefused = token !== null && wanted.refused === token;
  if (
    isRefused &&
    (!canRefresh || (now.refreshed_ms_ago !== null && now.refreshed_ms_ago < JUST_REFRESHED_MS))
  ) {
    throw new CredentialError('token_refused', 'The server refuses the token, though it is fresh.', {
      nextStep: 'Check what the connected account may do there, or connect it again.',
    });
  }
  if (token !== null && !isRefused && !isOld)
    return { accessToken: token, tokenType: 'Bearer', version: now.token_version };
  if (!canRefresh) {
    throw new CredentialError('reauth_required', 'The token has expired and there is no refresh token.', {
      nextStep: 'Connect the account again.',
    });
  }
  // one that failed a moment ago is not asked for again by everybody who needs it
  if (now.refresh_failures > 0 && (now.again_in_ms ?? 0) > 0) {
    throw pending(deps, now.again_in_ms, { code: now.reason_code, reason: now.reason });
  }
  return { isHeld: now.is_held };
}

function pending(
  deps: FreshTokenDeps,
  againMs: number | null,
  why: { readonly code?: string | null; readonly reason?: string | null; readonly cause?: unknown } = {},
): CredentialError {
  return new CredentialError(why.code ?? 'refresh_pending', why.reason ?? 'The token is being refreshed.', {
    cause: why.cause,
    nextStep: 'It is tried again by itself.',
    transient: true,
    retryAt: againMs === null ? null : new Date(deps.clock.now() + againMs),
  });
}
