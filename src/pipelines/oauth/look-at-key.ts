/** An API key is looked at once a day, where its provider has a cheap way to: a refused one is flagged and never deleted. */
import { keepKey } from '../../db/credential-outcomes.ts';
import { checkKey } from '../../providers/key-check.ts';
import type { SecretOpener } from '../../secrets.ts';
import {
  type Attempt,
  failed,
  logOf,
  patiently,
  type RefreshDeps,
  type RefreshOutcome,
  tokenContext,
  unusable,
} from './attempt.ts';
import { spread } from './backoff.ts';

const DAY_MS = 86_400_000;

/** @throws SecretError where the key can't be opened */
export async function lookAtKey(
  deps: RefreshDeps,
  attempt: Attempt,
  secrets: SecretOpener,
): Promise<RefreshOutcome> {
  const { claim, signal } = attempt;
  const check = deps.providers.provider(claim.provider.name)?.keyCheck ?? null;
  const keep = (againMs: number | null, log: Parameters<typeof keepKey>[3]): Promise<void> =>
    patiently(deps, () => keepKey(deps.db, claim, againMs, log), AbortSignal.timeout(30_000));
  if (check === null || claim.access_token === null) {
    await keep(null, null);
    return { kind: 'key_good' };
  }
  const key = await secrets.open(claim.access_token, tokenContext(claim, 'vault_access_token_id'));
  const { verdict, status } = await checkKey(deps.caller, check, key, signal);
  if (verdict === 'refused') {
    const reason = `${claim.provider.name} refuses this key${status === null ? ': it is none' : ` (${status})`}. Store a new one.`;
    return failed(deps, attempt, unusable('key_refused', reason), { httpStatus: status });
  }
  const message = verdict === 'unknown' ? 'The provider did not say whether it takes the key.' : null;
  // a little more than a day, never less
  await keep(
    DAY_MS + spread(DAY_MS / 24),
    logOf(deps, attempt, verdict === 'good' ? 'not_needed' : 'transient_error', {
      httpStatus: status,
      message,
    }),
  );
  return { kind: 'key_good' };
}
