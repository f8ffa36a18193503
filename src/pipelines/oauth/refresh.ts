/**
 * One refresh of a claimed credential, from the claim to its row.
 *
 * What was sent is never called off: a provider that rotates has then given out a token that nobody knows. The answer is stored over the
 * version that it was asked from, and waits for a row that somebody holds, or a database that is away. What can't be stored is kept.
 */
import {
  type ClaimedCredential,
  deferRefresh,
  releaseCredential,
  startRefresh,
} from '../../db/credentials.ts';
import { endpointFailed, endpointWorked } from '../../db/provider-states.ts';
import { secretReferences } from '../../db/secret-references.ts';
import { refreshToken, type TokenAnswer, TokenError } from '../../providers/oauth-token.ts';
import { SecretError } from '../../secrets.ts';
import {
  type Attempt,
  CREDENTIAL_LEASE_SECONDS,
  failed,
  ofSecret,
  patiently,
  type RefreshDeps,
  type RefreshOutcome,
  tokenContext,
  unusable,
} from './attempt.ts';
import { againAfter, spread } from './backoff.ts';
import { type OAuthClient, oauthClient } from './client.ts';
import { lookAtKey } from './look-at-key.ts';
import { restoreRescued, storeAnswer } from './store-answer.ts';

/** Whoever finds the way to an endpoint full looks again so soon, in milliseconds. */
const LANE_FULL_MS = 750;
/** A row that somebody holds for so long is not refreshed now, in milliseconds; its slot is another's. */
const START_PATIENCE_MS = 5_000;
const LONGEST_WAIT_MS = 3_600_000;
const LONGEST_BLOCK_MS = 300_000;
/** What a 429 without a word on when to come back asks for. */
const UNSAID_BLOCK_MS = 5_000;
/** Refresh tokens as RFC 6749 (appendix A.17) has them. Anything else is no token, and is not tried on a provider in everybody's name. */
const TOKEN = /^[\x20-\x7e]{1,16384}$/;

/**
 * Refreshes what was claimed, or says in its row why not. Rejects with the signal's reason where it fires before anything was sent (the
 * claim is given back then), and with the database's error where even the failure can't be written: the lease ends by itself.
 */
export async function refreshClaimed(
  deps: RefreshDeps,
  claim: ClaimedCredential,
  more: { readonly jobId: string | null; readonly signal: AbortSignal },
): Promise<RefreshOutcome> {
  const attempt: Attempt = { claim, jobId: more.jobId, signal: more.signal, beganAt: deps.clock.elapsed() };
  const outcome = await settled(deps, attempt);
  deps.metrics.ended(
    outcome.kind === 'failed' ? outcome.code : outcome.kind,
    claim.provider.name,
    (deps.clock.elapsed() - attempt.beganAt) / 1000,
  );
  return outcome;
}

async function settled(deps: RefreshDeps, attempt: Attempt): Promise<RefreshOutcome> {
  const { claim, signal } = attempt;
  if (signal.aborted) {
    await releaseCredential(deps.db, claim);
    return { kind: 'released' };
  }
  const secrets = secretReferences({ db: deps.db, columns: deps.secrets });
  let client: OAuthClient | string;
  let token: string;
  try {
    if (claim.rescued) return await restoreRescued(deps, attempt, claim.rescued);
    if (claim.credential_type === 'api_key') return await lookAtKey(deps, attempt, secrets);
    if (claim.refresh_token === null) {
      return failed(
        deps,
        attempt,
        unusable('no_refresh_token', 'The credential has no refresh token. Connect it again.'),
      );
    }
    client = await oauthClient(claim, { providers: deps.providers, secrets });
    token = (await secrets.open(claim.refresh_token, tokenContext(claim, 'vault_refresh_token_id'))).trim();
    // before anything is asked for, it is sure that the answer can be sealed
    await secrets.seal('', tokenContext(claim, 'vault_access_token_id'));
  } catch (error) {
    if (error instanceof SecretError) return failed(deps, attempt, ofSecret(error, claim));
    throw error;
  }
  if (typeof client === 'string')
    return misconfigured(deps, attempt, client, { httpStatus: null, isOwn: false });
  if (!TOKEN.test(token)) {
    return failed(
      deps,
      attempt,
      unusable('bad_refresh_token', 'The refresh token is none. Connect it again.'),
    );
  }
  if (claim.blocked_ms > 0 && !client.isOwn) return deferred(deps, attempt, spread(claim.blocked_ms + 250));
  const leave = await deps.lanes.enter(hostOf(client.endpoint));
  if (leave === null) return deferred(deps, attempt, spread(LANE_FULL_MS));
  try {
    return await ask(deps, attempt, client, token, leave);
  } finally {
    leave();
  }
}

const hostOf = (url: string): string => (URL.canParse(url) ? new URL(url).host : url.slice(0, 200));

async function ask(
  deps: RefreshDeps,
  attempt: Attempt,
  client: OAuthClient,
  token: string,
  answered: () => void,
): Promise<RefreshOutcome> {
  const { claim } = attempt;
  const isOurs = await patiently(
    deps,
    () => startRefresh(deps.db, claim, CREDENTIAL_LEASE_SECONDS),
    AbortSignal.timeout(START_PATIENCE_MS),
  );
  if (!isOurs) return { kind: 'moved_on' };
  deps.signal?.('refresh_sent');
  const sentAt = deps.clock.elapsed();
  let answer: TokenAnswer;
  try {
    answer = await refreshToken(
      deps.caller,
      {
        ...client,
        refreshToken: token,
        scopes: scopesOf(claim.scopes_granted),
        ...(deps.requestMs === undefined ? {} : { timeoutMs: deps.requestMs }),
      },
      // not the job's: see above
      new AbortController().signal,
    );
  } catch (error) {
    if (!(error instanceof TokenError)) throw error;
    return refused(deps, attempt, client, error);
  } finally {
    // whoever holds the credential's row now holds up no other's request
    answered();
  }
  deps.signal?.('token_answered');
  const outcome = await storeAnswer(deps, attempt, {
    accessToken: answer.accessToken,
    refreshToken: answer.refreshToken,
    lifetimeMs: lifetimeMs(answer, client),
    scopes: answer.scopes,
    sentAt,
    rescuedId: null,
  });
  if (!client.isOwn) await endpointWorked(deps.db, claim.provider.id).catch(() => {});
  if (outcome.kind === 'refreshed') deps.signal?.('token_stored');
  return outcome;
}

function lifetimeMs(answer: TokenAnswer, client: OAuthClient): number | null {
  const seconds = answer.lifetimeSeconds ?? client.provider?.lifetimeSeconds ?? null;
  return seconds === null ? null : seconds * 1000;
}

const scopesOf = (stored: unknown): string[] =>
  Array.isArray(stored)
    ? stored.filter((scope) => typeof scope === 'string' && /^[\x21-\x7e]{1,500}$/.test(scope)).slice(0, 200)
    : [];

/** What the provider's refusal, or its silence, makes of the credential. */
async function refused(
  deps: RefreshDeps,
  attempt: Attempt,
  client: OAuthClient,
  error: TokenError,
): Promise<RefreshOutcome> {
  const { claim } = attempt;
  const http = { httpStatus: error.status };
  if (error.kind === 'grant') {
    const isLost = claim.unfinished_since !== null;
    return failed(
      deps,
      attempt,
      isLost
        ? {
            status: 'error',
            reasonCode: 'possible_lost_rotation',
            reason: `${error.message} An earlier refresh was sent whose answer was never stored, so the newest token may be lost. Connect it again.`,
            counts: true,
            againMs: null,
            unfinished: 'keep',
          }
        : {
            status: 'expired',
            reasonCode: 'reauth_required',
            reason: `${error.message} Connect it again.`,
            counts: true,
            againMs: null,
            unfinished: null,
          },
      http,
    );
  }
  if (error.kind === 'client')
    return misconfigured(deps, attempt, error.message, { ...http, isOwn: client.isOwn });
  const againMs = Math.max(
    againAfter(claim.refresh_failures),
    Math.min(error.retryAfterMs ?? 0, LONGEST_WAIT_MS),
  );
  if (error.isEndpoint && !client.isOwn) {
    const isLimit = error.status === 429;
    await endpointFailed(deps.db, claim.provider.id, {
      blockMs:
        isLimit || error.retryAfterMs !== null
          ? Math.min(error.retryAfterMs ?? UNSAID_BLOCK_MS, LONGEST_BLOCK_MS)
          : null,
      isAlarm: false,
      reasonCode: isLimit ? 'rate_limited' : 'provider_unavailable',
      reason: error.message,
    }).catch((cause: unknown) => deps.onRetry?.(cause as Error));
  }
  return failed(
    deps,
    attempt,
    {
      status: 'active',
      reasonCode: error.status === 429 ? 'rate_limited' : 'provider_unavailable',
      reason: error.message,
      counts: true,
      againMs,
      unfinished: error.isOutcomeUnknown ? 'keep' : claim.unfinished_since,
    },
    http,
  );
}

/** It is not the user's credential that is wrong: it stays active, and operators are told. */
async function misconfigured(
  deps: RefreshDeps,
  attempt: Attempt,
  reason: string,
  more: { readonly httpStatus: number | null; readonly isOwn: boolean },
): Promise<RefreshOutcome> {
  const { claim } = attempt;
  if (!more.isOwn) {
    // the credential's own row is to say it in any case
    const { isNewAlarm } = await patiently(
      deps,
      () =>
        endpointFailed(deps.db, claim.provider.id, {
          blockMs: null,
          isAlarm: true,
          reasonCode: 'provider_misconfigured',
          reason,
        }),
      AbortSignal.timeout(START_PATIENCE_MS),
    ).catch((cause: unknown) => {
      deps.onRetry?.(cause as Error);
      return { isNewAlarm: false };
    });
    deps.metrics.alarm(claim.provider.name);
    if (isNewAlarm) {
      deps.log.error(
        { event: 'provider_misconfigured', provider: claim.provider.name, reason },
        'a provider refuses the client of this platform: its credentials are not refreshed until that is mended',
      );
    }
  }
  return failed(
    deps,
    attempt,
    {
      status: 'active',
      reasonCode: 'provider_misconfigured',
      reason,
      counts: true,
      againMs: againAfter(claim.refresh_failures + 2),
      unfinished: claim.unfinished_since,
    },
    more,
  );
}

async function deferred(deps: RefreshDeps, attempt: Attempt, ms: number): Promise<RefreshOutcome> {
  await patiently(deps, () => deferRefresh(deps.db, attempt.claim, ms), AbortSignal.timeout(10_000));
  return { kind: 'deferred', ms };
}
