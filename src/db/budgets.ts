/** Monthly budgets: what calls are about to use is set aside before they are made. Settling is part of a run's checkpoint. */
import type { Queryable } from './database.ts';

/** What a call is about to use of the monthly budgets that bound its run. */
export type BudgetRequest = {
  /** The call's idempotency key: asked again, it keeps what it has. */
  readonly key: string;
  readonly run: string;
  readonly budgets: readonly string[];
  readonly turns: number;
  readonly tool_calls: number;
  readonly tokens: number;
  /** Millionths of a US dollar. */
  readonly cost_micros: number;
};

/** Why nothing was set aside. */
export type BudgetRefusal = {
  readonly key: string;
  readonly budget_id: string;
  readonly metric: 'turns' | 'tool calls' | 'tokens' | 'cost' | 'seconds';
  readonly max_amount: number;
  /** Used and set aside by now. */
  readonly used_amount: number;
  readonly asked_amount: number;
  /** Milliseconds until the budget's month ends. */
  readonly ends_in_ms: number;
};

/** Sets aside what each call asks for, whole or not at all. Answers in the order asked: null where it was set aside. */
export async function reserveBudgets(
  db: Queryable,
  requests: readonly BudgetRequest[],
): Promise<(BudgetRefusal | null)[]> {
  const rows = await db.query<BudgetRefusal>(
    { name: 'reserve_budgets', text: 'select * from agentd.reserve_budgets($1)' },
    [JSON.stringify(requests)],
  );
  const byKey = new Map(rows.map((row) => [row.key, row]));
  return requests.map((request) => byKey.get(request.key) ?? null);
}
