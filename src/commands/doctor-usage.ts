/** What `agentd doctor` says of the roll-up of usage: that it goes on, and that its sums are true. */
import type { Queryable } from '../db/database.ts';
import { usageRollupState } from '../db/usage-reports.ts';
import { type Check, check } from './doctor-checks.ts';
import { count, seconds } from './format.ts';

/** So long, in seconds, nothing may have been summed up while workers live; they write every ten that they have looked. */
const SILENT_SECONDS = 120;

export async function checkUsage(db: Queryable): Promise<Check> {
  const name = 'usage';
  const state = await usageRollupState(db);
  if (state.is_restored) {
    return check(
      name,
      'fail',
      'The database was restored from another server: usage is not summed up.',
      'Run: agentd usage rebuild',
    );
  }
  if (state.open_drifts > 0) {
    return check(
      name,
      'warn',
      `${count(state.open_drifts)} sums differed from their events: see agentd.usage_drifts.`,
      'Run: agentd usage reconcile --repair',
    );
  }
  if (state.workers > 0 && state.seconds_since !== null && state.seconds_since > SILENT_SECONDS) {
    return check(
      name,
      'warn',
      `Workers live, and nothing was summed up for ${seconds(state.seconds_since)}.`,
      'Look at their log for usage_rollup.',
    );
  }
  const since = state.seconds_since === null ? 'never yet' : `${seconds(state.seconds_since)} ago`;
  return check(
    name,
    'ok',
    `${count(state.events_rolled)} events summed up, ${since}; ${count(state.waiting_workspaces)} workspaces on their way.`,
  );
}
