/** The work: runs that an application asks for, in portions, and tasks that are due every few seconds. */
import { randomUUID } from 'node:crypto';
import { systemClock } from '../../src/clock.ts';
import type { Database, Queryable } from '../../src/db/database.ts';
import { retryTransient } from '../../src/db/retry.ts';
import { insert, makePlatform, makeTask } from '../support/platform.ts';
import { EFFECTS, STEPS } from './script.ts';
import type { Dice } from './windows.ts';

export type Load = {
  /** Runs that the database has confirmed. */
  readonly asked: ReadonlySet<string>;
  readonly tasks: readonly string[];
  /** Tasks with a schedule, and their period in seconds. */
  readonly scheduled: readonly string[];
  readonly periodSeconds: number;
  /** Inserts runs until so many wait. */
  fill(waiting: number): Promise<void>;
  /** No more occurrences. */
  endSchedules(): Promise<void>;
};

export type LoadOptions = {
  readonly workspaces: number;
  readonly scheduledTasks: number;
  readonly periodSeconds: number;
  readonly random: Dice;
};

/** Asks again while the database is away: an application's insert, with an id of its own, can be repeated. */
export function patiently<T>(work: () => Promise<T>): Promise<T> {
  return retryTransient(work, { clock: systemClock });
}

export async function makeLoad(db: Database, options: LoadOptions): Promise<Load> {
  const { random } = options;
  const tasks: string[] = [];
  const budgets = await hasBudgets(db);
  const scheduled: string[] = [];
  for (let i = 0; i < options.workspaces; i++) {
    const platform = await makePlatform(db);
    const channel = await insert(db, 'public.chat_channels', {
      workspace_id: platform.workspaceId,
      name: 'results',
    });
    // bounds that nothing reaches: what is counted is what is looked at
    if (budgets) {
      await insert(db, 'public.budgets', {
        workspace_id: platform.workspaceId,
        agent_id: i % 2 === 0 ? null : platform.agentId,
        max_turns: 1_000_000,
        max_tool_calls: 1_000_000,
        max_tokens: 1_000_000_000,
        max_cost_micros: 1_000_000_000,
      });
    }
    const columns = {
      target_channel_id: channel,
      overlap_policy: 'allow',
      selected_tools: JSON.stringify([...Object.keys(EFFECTS), 'send_message']),
    };
    const steps = STEPS.map((instructions) => ({ instructions }));
    tasks.push(await makeTask(db, platform, columns, steps));
    for (let n = i; n < options.scheduledTasks; n += options.workspaces) {
      const cron = { cron_expression: `*/${options.periodSeconds} * * * * *`, misfire_policy: 'run_all' };
      scheduled.push(await makeTask(db, platform, { ...columns, ...cron }, steps));
    }
  }
  const asked = new Set<string>();
  return {
    asked,
    tasks,
    scheduled,
    periodSeconds: options.periodSeconds,
    async fill(waiting) {
      const missing = waiting - (await countRuns(db, ['queued']));
      if (missing <= 0) return;
      const rows = Array.from({ length: missing }, () => ({
        id: randomUUID(),
        task: tasks[random.int(0, tasks.length - 1)],
      }));
      await db.query(
        `insert into public.task_runs (id, task_id)
           select id, task from jsonb_to_recordset($1::jsonb) as x (id uuid, task uuid) on conflict (id) do nothing`,
        [JSON.stringify(rows)],
      );
      for (const { id } of rows) asked.add(id);
    },
    async endSchedules() {
      await db.query(`update public.agent_tasks set status = 'paused' where id = any ($1::uuid[])`, [
        scheduled,
      ]);
    },
  };
}

/** Whether the schema has monthly budgets. */
export async function hasBudgets(db: Queryable): Promise<boolean> {
  const [row] = await db.query<{ exists: boolean }>(
    `select to_regclass('agentd.budget_reservations') is not null as exists`,
  );
  return row?.exists ?? false;
}

export async function countRuns(db: Queryable, states: readonly string[]): Promise<number> {
  const [row] = await db.query<{ n: number }>(
    'select count(*) as n from public.task_runs where status = any ($1::public.run_status[])',
    [states],
  );
  return row?.n ?? 0;
}

export async function countAll(db: Queryable): Promise<number> {
  const [row] = await db.query<{ n: number }>('select count(*) as n from public.task_runs');
  return row?.n ?? 0;
}
