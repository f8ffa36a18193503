/**
 * The budgets of one run, asked before every call.
 *
 * A budget of the period `run` is held against what the run's journal has used, which only this worker writes. One of the period
 * `month` is shared with other runs: what the call may use is set aside in the database first, under the call's own key, and settled
 * with its outcome; a worker that dies in between leaves the reservation to the one that makes the call again.
 */
import type { BudgetRefusal, BudgetRequest } from '../../db/budgets.ts';
import type { ClaimedBudget, ClaimedRun } from '../../db/runs.ts';
import { RunFailure, RunMustWait } from './errors.ts';
import type { RunTotals } from './journal.ts';

/** Sets aside in the monthly budgets; null when it was. */
export type ReserveBudget = (request: BudgetRequest) => Promise<BudgetRefusal | null>;

/** What a call is about to use. Cost in millionths of a US dollar. */
export type CallNeed = RunTotals & { readonly key: string };

/** A run that waits for a budget looks again after so many milliseconds at first, and at the latest. */
const FIRST_LOOK_MS = 30_000;
const LONGEST_LOOK_MS = 3_600_000;

/** What a run counts: as people read it, in its totals, and in a budget. */
const METRICS = [
  ['turns', 'turns', 'max_turns'],
  ['tool calls', 'tool_calls', 'max_tool_calls'],
  ['tokens', 'tokens', 'max_tokens'],
  ['cost', 'cost_micros', 'max_cost_micros'],
] as const;

type Limit = {
  readonly metric: (typeof METRICS)[number][0];
  readonly key: keyof RunTotals;
  readonly max: number;
  readonly budget: ClaimedBudget;
};

export class RunBudgets {
  readonly #run: Pick<ClaimedRun, 'id' | 'budgets' | 'waited_ms'>;
  readonly #used: () => Readonly<RunTotals>;
  readonly #reserve: ReserveBudget;
  readonly #monthly: readonly string[];

  constructor(
    run: Pick<ClaimedRun, 'id' | 'budgets' | 'waited_ms'>,
    used: () => Readonly<RunTotals>,
    reserve: ReserveBudget,
  ) {
    this.#run = run;
    this.#used = used;
    this.#reserve = reserve;
    this.#monthly = run.budgets.filter((b) => b.period === 'month').map((b) => b.id);
  }

  /** Whether any budget bounds the run: without one, a call needs no estimate. */
  get any(): boolean {
    return this.#run.budgets.length > 0;
  }

  /** Whether a budget in money bounds the run: then every model must have a price. */
  get boundsCost(): boolean {
    return this.#run.budgets.some((b) => b.max_cost_micros !== null);
  }

  /** Seconds of wall time that the run's own budgets allow; null where none does. */
  get maxSeconds(): number | null {
    const limits = this.#run.budgets.flatMap((b) =>
      b.period === 'run' && b.max_seconds !== null ? [b.max_seconds] : [],
    );
    return limits.length > 0 ? Math.min(...limits) : null;
  }

  /**
   * Sets aside what calls are about to use: each one's need, in their order.
   *
   * Throws RunFailure or RunMustWait with code budget_exhausted, as the budget says; then none of the calls may be made.
   */
  async reserve(needs: readonly CallNeed[]): Promise<void> {
    if (!this.any || needs.length === 0) return;
    this.#checkRun(needs);
    if (this.#monthly.length === 0) return;
    const answers = await Promise.all(
      needs.map((need) => this.#reserve({ ...need, run: this.#run.id, budgets: this.#monthly })),
    );
    const refusal = answers.find((answer) => answer !== null);
    if (refusal) throw this.#exhausted(refusal);
  }

  #checkRun(needs: readonly CallNeed[]): void {
    const used = this.#used();
    const asked = (metric: keyof RunTotals): number => needs.reduce((sum, need) => sum + need[metric], 0);
    for (const { metric, key, max, budget } of runLimits(this.#run.budgets)) {
      const more = asked(key);
      if (more > 0 && used[key] + more > max) {
        throw this.#exhausted({
          key: '',
          budget_id: budget.id,
          metric,
          max_amount: max,
          used_amount: used[key],
          asked_amount: more,
          ends_in_ms: 0,
        });
      }
    }
  }

  /**
   * A change of the budget wakes the run, but one that was made while the run did not wait yet, or was being left, does not:
   * so it looks again by itself, at intervals that double.
   */
  #lookAgainMs(latest: number): number {
    return Math.min(Math.max(this.#run.waited_ms, FIRST_LOOK_MS), LONGEST_LOOK_MS, latest);
  }

  #exhausted(refusal: BudgetRefusal): Error {
    const budget = this.#run.budgets.find((b) => b.id === refusal.budget_id);
    const monthly = budget?.period === 'month';
    const whose = `${monthly ? 'monthly' : 'run'} budget of the ${budget?.scope ?? 'workspace'}`;
    const amounts =
      `${amount(refusal.metric, refusal.used_amount)} of ${amount(refusal.metric, refusal.max_amount)} ` +
      `are used or set aside, and the next call may need ${amount(refusal.metric, refusal.asked_amount)}`;
    const sentence = `The ${whose} is exhausted: ${amounts}. Raise it in budgets (${refusal.budget_id})`;
    // what alone is more than the whole budget would wait for ever
    const mayFit = refusal.asked_amount <= refusal.max_amount;
    if (budget?.when_exhausted === 'wait' && (mayFit || refusal.max_amount === 0)) {
      const until = monthly && mayFit ? ', or wait until the month ends' : '';
      return new RunMustWait(
        'budget_exhausted',
        `${sentence}${until}: the run then goes on.`,
        this.#lookAgainMs(monthly ? refusal.ends_in_ms : Number.POSITIVE_INFINITY),
        true,
      );
    }
    return new RunFailure('budget_exhausted', `${sentence} and retry the run.`);
  }
}

function runLimits(budgets: readonly ClaimedBudget[]): Limit[] {
  return budgets
    .filter((budget) => budget.period === 'run')
    .flatMap((budget) =>
      METRICS.flatMap(([metric, key, column]) => {
        const max = budget[column];
        return max === null ? [] : [{ metric, key, max, budget }];
      }),
    );
}

function amount(metric: BudgetRefusal['metric'], value: number): string {
  return metric === 'cost' ? `$${(value / 1e6).toFixed(6).replace(/0{1,4}$/, '')}` : `${value} ${metric}`;
}
