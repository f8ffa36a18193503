/**
 * What time brings to limits: a subscription that is past its end, a trial or days of grace that are over, and usage that has come near a limit by the
 * roll-up. Every node looks once a minute; what one has done the others find done. Periods begin by themselves, whoever looks.
 */
import type { Database } from '../db/database.ts';
import { isLockTimeout } from '../db/retry.ts';
import {
  followEndedPlans,
  forgetMemberCalls,
  pairMemberCalls,
  warnOfUsage,
  workspacesWithCalls,
} from '../db/usage-limits.ts';
import { periodic, type Service, type ServiceDeps } from './periodic.ts';
import { type WalkDeps, WorkspaceWalk } from './workspace-walk.ts';

const EVERY_MS = 60_000;
/** Of one statement. */
const AT_ONCE = 200;
/** Calls of one workspace that a look pairs: who makes many has his turn again when all others have had theirs. */
const CALLS = 100;
/** Calls that a statement forgets, and statements of a look. */
const FORGOTTEN = 5_000;
const FORGETTING = 10;

export type UsageLimitDeps = ServiceDeps & { readonly db: Database };

/** The look as a service. */
export function usageLimits(deps: UsageLimitDeps): Service {
  const pairing = callPairing(deps);
  return periodic('usage_limits', deps, async () => {
    await followLimits(deps, pairing);
    return EVERY_MS * (0.9 + Math.random() * 0.2);
  });
}

/** Members' calls that counted conversations whose rows count too: the rows are taken back. */
export function callPairing(deps: WalkDeps): WorkspaceWalk {
  return new WorkspaceWalk(deps, {
    find: workspacesWithCalls,
    each: (db, id) => pairMemberCalls(db, id, CALLS),
    onSlow: (slow) =>
      deps.log.warn(
        { event: 'usage_not_paired', ...slow },
        'the calls of members of a workspace could not be paired with its rows: again later',
      ),
  });
}

/** One look. What somebody holds is left for the next one. */
export async function followLimits(
  deps: WalkDeps,
  pairing = callPairing(deps),
): Promise<{ plans: number; warnings: number }> {
  const { db, log } = deps;
  const plans = await all(AT_ONCE, () => followEndedPlans(db, AT_ONCE));
  if (plans > 0)
    log.info({ event: 'usage_plans_followed', workspaces: plans }, 'subscriptions have come to their end');
  let forgetting = FORGETTING;
  await all(FORGOTTEN, () => (forgetting-- > 0 ? forgetMemberCalls(db, FORGOTTEN) : Promise.resolve(0)));
  await pairing.pass();
  const warnings = await all(AT_ONCE, () => warnOfUsage(db, AT_ONCE));
  if (warnings > 0)
    log.info({ event: 'usage_warned', warnings }, 'workspaces have come near the limit of their plan');
  return { plans, warnings };
}

/** Asks again while it brings as many as were asked for, or more: a counter may bring two warnings. */
async function all(atOnce: number, some: () => Promise<number>): Promise<number> {
  let sum = 0;
  try {
    for (let count = atOnce; count >= atOnce; sum += count) count = await some();
  } catch (error) {
    if (!isLockTimeout(error)) throw error;
  }
  return sum;
}
