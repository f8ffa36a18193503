/**
 * The limit of tokens that a run's workspace has by its plan, asked before every model call.
 *
 * It is not set aside as a budget is: a workspace passes it by what its calls under way, and those of the last second, come to. Who needs a bound that no
 * call passes makes a budget.
 */
import type { ClaimedRun } from '../../db/runs.ts';
import type { ReachedLimit } from '../../db/usage-limits.ts';
import { RunFailure, RunMustWait } from './errors.ts';

/** Whether a workspace is at its limit; null: not. */
export type AskLimit = (workspaceId: string) => Promise<ReachedLimit | null>;

/** A run that waits looks again after so many milliseconds at first, and at the latest: a larger plan wakes it at once. */
const FIRST_LOOK_MS = 30_000;
const LONGEST_LOOK_MS = 3_600_000;

export class RunLimit {
  readonly #run: Pick<ClaimedRun, 'workspace_id' | 'has_token_limit' | 'waited_ms'>;
  readonly #ask: AskLimit;

  constructor(run: Pick<ClaimedRun, 'workspace_id' | 'has_token_limit' | 'waited_ms'>, ask: AskLimit) {
    this.#run = run;
    this.#ask = ask;
  }

  /** Whether there was a limit when the run was claimed. Without one, nothing is asked. */
  get any(): boolean {
    return this.#run.has_token_limit;
  }

  /** Throws RunMustWait or RunFailure with code usage_limit_reached, as the workspace's policy says. */
  async check(): Promise<void> {
    if (!this.any) return;
    const reached = await this.#ask(this.#run.workspace_id);
    if (!reached) return;
    const sentence = `The workspace has used ${reached.used_amount} of the ${reached.max_amount} tokens that its plan gives for this period.`;
    if (reached.policy === 'wait') {
      throw new RunMustWait(
        'usage_limit_reached',
        `${sentence} The run goes on when the next period begins, or with a larger plan.`,
        Math.min(Math.max(this.#run.waited_ms, FIRST_LOOK_MS), LONGEST_LOOK_MS, reached.ends_in_ms),
        true,
      );
    }
    throw new RunFailure(
      'usage_limit_reached',
      `${sentence} Retry the run in the next period, or with a larger plan.`,
    );
  }
}
