/** From a provider's answer to the credential's row, or to where it can be found again. */
import { randomUUID } from 'node:crypto';
import { lockVersion, rescueTokens, storeTokens } from '../../db/credential-outcomes.ts';
import type { ClaimedCredential } from '../../db/credentials.ts';
import { isLockTimeout, isTransient, retryTransient } from '../../db/retry.ts';
import { secretReferences } from '../../db/secret-references.ts';
import type { SecretContext } from '../../secrets.ts';
import {
  type Attempt,
  logOf,
  patiently,
  type RefreshDeps,
  type RefreshOutcome,
  tokenContext,
} from './attempt.ts';

/** A row that somebody holds for so long is not waited for: the token is kept elsewhere. */
const ROW_PATIENCE_MS = 30_000;
/** Nor is what holds it up there; a database that is away is waited for much longer, since nobody else has the token. */
const KEEP_PATIENCE_MS = 300_000;
const AWAY_PATIENCE_MS = 6 * 3_600_000;

export type Answer = {
  readonly accessToken: string;
  readonly refreshToken: string | null;
  readonly lifetimeMs: number | null;
  readonly scopes: readonly string[] | null;
  /** When the request was sent, by the clock's elapsed(). */
  readonly sentAt: number;
  readonly rescuedId: string | null;
};

/** Stores an answer over its version; where the row has moved on, or can't be written, keeps it. */
export async function storeAnswer(
  deps: RefreshDeps,
  attempt: Attempt,
  answer: Answer,
): Promise<RefreshOutcome> {
  const { claim } = attempt;
  let why: string;
  try {
    const version = await patiently(
      deps,
      () => write(deps, attempt, answer),
      AbortSignal.timeout(ROW_PATIENCE_MS),
    );
    if (version !== null) {
      deps.log.info(
        { event: 'credential_refreshed', credential_id: claim.id, provider: claim.provider.name },
        'a credential has a fresh token',
      );
      return { kind: 'refreshed', accessToken: answer.accessToken, version };
    }
    why = 'The credential had a newer token, or was revoked, when the answer came.';
  } catch (error) {
    why = `The token could not be written: ${error instanceof Error ? error.name : 'unknown'}.`;
    deps.log.error(
      { event: 'token_store_failed', credential_id: claim.id, err: error },
      'a new token could not be written into its row',
    );
  }
  // it is still where it was
  if (answer.rescuedId !== null) return { kind: 'moved_on' };
  return keep(deps, attempt, answer, why);
}

async function write(deps: RefreshDeps, attempt: Attempt, answer: Answer): Promise<number | null> {
  const { claim } = attempt;
  return deps.db.transaction(async (tx) => {
    const stored = await lockVersion(tx, claim);
    if (stored === null) return null;
    const secrets = secretReferences({ db: tx, columns: deps.secrets });
    const put = (old: string | null, value: string, context: SecretContext): Promise<string> =>
      old === null ? secrets.seal(value, context) : secrets.replace(old, value, context);
    return storeTokens(
      tx,
      claim,
      {
        accessToken: await put(
          stored.access_token,
          answer.accessToken,
          tokenContext(claim, 'vault_access_token_id'),
        ),
        refreshToken:
          answer.refreshToken === null
            ? null
            : await put(
                stored.refresh_token,
                answer.refreshToken,
                tokenContext(claim, 'vault_refresh_token_id'),
              ),
        lifetimeMs: answer.lifetimeMs,
        ageMs: Math.max(deps.clock.elapsed() - answer.sentAt, 0),
        scopes: answer.scopes,
        rescuedId: answer.rescuedId,
      },
      logOf(deps, attempt, answer.rescuedId === null ? 'refreshed' : 'restored'),
    );
  });
}

const rescueContext = (
  claim: ClaimedCredential,
  id: string,
  column: 'access_token' | 'refresh_token',
): SecretContext => ({ table: 'agentd.rescued_tokens', row: id, column, workspace: claim.workspace_id });

async function keep(
  deps: RefreshDeps,
  attempt: Attempt,
  answer: Answer,
  why: string,
): Promise<RefreshOutcome> {
  const { claim } = attempt;
  const id = randomUUID();
  const until = deps.clock.elapsed() + KEEP_PATIENCE_MS;
  const isKept = await retryTransient(
    () =>
      rescueTokens(
        deps.db,
        claim,
        {
          id,
          accessToken: deps.secrets.seal(answer.accessToken, rescueContext(claim, id, 'access_token')),
          refreshToken:
            answer.refreshToken === null
              ? null
              : deps.secrets.seal(answer.refreshToken, rescueContext(claim, id, 'refresh_token')),
          lifetimeMs: answer.lifetimeMs,
          ageMs: Math.max(deps.clock.elapsed() - answer.sentAt, 0),
        },
        logOf(deps, attempt, 'token_rescued', { message: why }),
      ),
    {
      clock: deps.clock,
      signal: AbortSignal.timeout(AWAY_PATIENCE_MS),
      retryIf: (error) => isTransient(error) || (isLockTimeout(error) && deps.clock.elapsed() < until),
      ...(deps.onRetry ? { onRetry: deps.onRetry } : {}),
    },
  );
  if (!isKept) return { kind: 'moved_on' };
  deps.metrics.rescued();
  deps.log.warn({ event: 'token_rescued', credential_id: claim.id, provider: claim.provider.name }, why);
  return { kind: 'rescued', accessToken: answer.accessToken };
}

/** A token that came for this version and was kept is the credential's next one: no request is made. @throws SecretError */
export async function restoreRescued(
  deps: RefreshDeps,
  attempt: Attempt,
  rescued: NonNullable<ClaimedCredential['rescued']>,
): Promise<RefreshOutcome> {
  const { claim } = attempt;
  const open = (value: string, column: 'access_token' | 'refresh_token'): string =>
    deps.secrets.open(value, rescueContext(claim, rescued.id, column));
  return storeAnswer(deps, attempt, {
    accessToken: open(rescued.access_token, 'access_token'),
    refreshToken: rescued.refresh_token === null ? null : open(rescued.refresh_token, 'refresh_token'),
    lifetimeMs: rescued.expires_in_ms,
    scopes: null,
    sentAt: deps.clock.elapsed(),
    rescuedId: rescued.id,
  });
}
