/**
 * What time brings to limits: a subscription that is past its end, a trial or days of grace that are over, and usage that has come near a limit by the
 * roll-up. Every node looks once a minute; what one has done the others find done. Periods begin by themselves, whoever looks.
 */
import type { Database } from '../db/database.ts';
import { isLockTimeout } from '../db/retry.ts';
import { followEndedPlans, pairMemberCalls, warnOfUsage } from '../db/usage-limits.ts';
import { periodic, type Service, type ServiceDeps } from './periodic.ts';

const EVERY_MS = 60_000;
/** Of one statement. */
const AT_ONCE = 200;

export type UsageLimitDeps = ServiceDeps & { readonly db: Database };

/** The look as a service. */
export function usageLimits(deps: UsageLimitDeps): Service {
  return periodic('usage_limits', deps, async () => {
    await followLimits(deps);
    return EVERY_MS * (0.9 + Math.random() * 0.2);
  });
}

/** One look. What somebody holds is left for the next one. */
export async function followLimits({
  db,
  log,
}: Pick<UsageLimitDeps, 'db' | 'log'>): Promise<{ plans: number; warnings: number }> {
  const plans = await all(() => followEndedPlans(db, AT_ONCE));
  if (plans > 0)
    log.info({ event: 'usage_plans_followed', workspaces: plans }, 'subscriptions have come to their end');
  await pairMemberCalls(db, AT_ONCE);
  const warnings = await all(() => warnOfUsage(db, AT_ONCE));
  if (warnings > 0)
    log.info({ event: 'usage_warned', warnings }, 'workspaces have come near the limit of their plan');
  return { plans, warnings };
}

async function all(some: () => Promise<number>): Promise<number> {
  let sum = 0;
  try {
    for (let count = AT_ONCE; count === AT_ONCE; sum += count) count = await some();
  } catch (error) {
    if (!isLockTimeout(error)) throw error;
  }
  return sum;
}
