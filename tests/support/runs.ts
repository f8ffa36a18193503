/** Runs as tests look at them, and the waits for what happens to them. */
import { setTimeout as pause } from 'node:timers/promises';
import pg from 'pg';
import type { Database, Queryable } from '../../src/db/database.ts';
import { requeueLapsedRuns } from '../../src/db/reconcile.ts';

export type Run = {
  readonly id: string;
  readonly status: string;
  readonly reason_code: string | null;
  readonly reason: string | null;
  readonly output: { readonly text: string } | null;
  readonly lease_epoch: number;
  readonly journal_seq: number;
  readonly turns: number;
  readonly tool_calls: number;
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly cost_micros: number;
  readonly wake_at: Date | null;
  readonly job_id: string | null;
  readonly worker_id: string | null;
  readonly finished_at: Date | null;
};

export type StepRun = {
  readonly step_order: number;
  readonly attempt: number;
  readonly status: string;
  readonly result: { readonly text: string } | null;
  readonly reason_code: string | null;
  readonly error_message: string | null;
  readonly context: { readonly left_out: readonly string[] } | null;
};

export type ModelCall = {
  readonly step_order: number;
  readonly turn: number;
  readonly idempotency_key: string;
  readonly status: string;
  readonly attempt: number;
  readonly credential_source: string | null;
  readonly prompt_tokens: number;
  readonly cost_micros: number;
  readonly error_code: string | null;
};

export type ToolCall = {
  readonly tool_name: string;
  readonly status: string;
  readonly effect: string;
  readonly idempotency_key: string;
  readonly error_code: string | null;
  readonly result: { readonly content: string } | null;
};

const ENDED = ['completed', 'failed', 'cancelled', 'skipped'];
const DEADLINE_MS = 20_000;

/** One run's row, or null. */
export async function findRun(db: Queryable, id: string): Promise<Run | null> {
  const [row] = await db.query<Run>('select * from public.task_runs where id = $1', [id]);
  return row ?? null;
}

export function stepRuns(db: Queryable, id: string): Promise<StepRun[]> {
  return db.query<StepRun>('select * from public.task_step_runs where run_id = $1 order by step_order', [id]);
}

export function modelCalls(db: Queryable, id: string): Promise<ModelCall[]> {
  return db.query<ModelCall>('select * from public.llm_calls where run_id = $1 order by step_order, turn', [
    id,
  ]);
}

export function toolCalls(db: Queryable, id: string): Promise<ToolCall[]> {
  return db.query<ToolCall>(
    'select * from public.tool_calls where run_id = $1 order by step_order, turn, call_index',
    [id],
  );
}

/** Outcomes of the attempts of a run's job, oldest first. */
export async function jobOutcomes(db: Queryable, id: string): Promise<string[]> {
  const rows = await db.query<{ outcome: string }>(
    `select j.outcome from agentd.job_runs j join public.task_runs r on r.job_id = j.job_id
      where r.id = $1 order by j.id`,
    [id],
  );
  return rows.map((row) => row.outcome);
}

/** Rows of a run's journal that say it is still under way; none for a run that has ended. */
export async function openRows(db: Queryable, id: string): Promise<string[]> {
  const rows = await db.query<{ what: string }>(
    `select 'step ' || step_order || ' ' || status as what from public.task_step_runs
      where run_id = $1 and status in ('pending', 'running')
     union all
     select 'model call ' || step_order || '.' || turn || ' ' || status from public.llm_calls
      where run_id = $1 and status in ('started', 'waiting')
     union all
     select 'tool call ' || tool_name || ' ' || status from public.tool_calls
      where run_id = $1 and status in ('started', 'waiting')`,
    [id],
  );
  return rows.map((row) => row.what);
}

/**
 * Resolves with the run as soon as it is in one of the states (by default: has ended).
 *
 * On a server it waits for the notification that applications follow; states that are not announced, and
 * the embedded database, are looked at every few milliseconds. Rejects after 20 s with the run as it is.
 */
export async function waitForRun(db: Database, id: string, states: readonly string[] = ENDED): Promise<Run> {
  const announced = states.every((state) => ENDED.includes(state));
  const everyMs = announced && !db.embedded ? 1_000 : 20;
  const listener = announced && !db.embedded ? await listen(db, 'agentd_runs') : null;
  try {
    const deadline = performance.now() + DEADLINE_MS;
    for (;;) {
      const heard = listener?.next();
      const run = await findRun(db, id);
      if (run && states.includes(run.status)) return run;
      if (performance.now() > deadline) {
        throw new Error(`Run ${id} is not ${states.join(' or ')} but ${JSON.stringify(run)}`);
      }
      await Promise.race([heard, pause(everyMs)].filter((wait) => wait !== undefined));
    }
  } finally {
    await listener?.close();
  }
}

/** Resolves with what `look` gives once that is not null, false or undefined; rejects after 20 s. */
export async function until<T>(
  what: string,
  look: () => T | Promise<T>,
  deadlineMs = DEADLINE_MS,
): Promise<Exclude<T, null | undefined | false>> {
  const deadline = performance.now() + deadlineMs;
  for (;;) {
    const found = await look();
    if (found !== null && found !== undefined && found !== false) {
      return found as Exclude<T, null | undefined | false>;
    }
    if (performance.now() > deadline) throw new Error(`It did not come true in time: ${what}`);
    await pause(20);
  }
}

export type Listening = {
  /** Payloads so far. */
  readonly payloads: string[];
  /** Resolves at the next notification. */
  next(): Promise<void>;
  close(): Promise<void>;
};

/** Listens on a channel with a connection of its own, as an application would. */
export async function listen(db: Database, channel: string): Promise<Listening> {
  const client = new pg.Client({ connectionString: db.url });
  const payloads: string[] = [];
  let wake: () => void = () => {};
  client.on('error', () => wake());
  client.on('notification', (message) => {
    payloads.push(message.payload ?? '');
    wake();
  });
  await client.connect();
  await client.query(`listen ${channel}`);
  return {
    payloads,
    next: () =>
      new Promise((resolve) => {
        wake = resolve;
      }),
    close: () => client.end(),
  };
}

/**
 * Lets the lease of a running run lapse and gives the run back, as the reconciler does when a worker has been
 * silent for too long. One transaction, so that no renewal comes between.
 */
export async function loseLease(db: Database, id: string): Promise<void> {
  await db.transaction(async (tx) => {
    await tx.query(
      `update public.task_runs set lease_expires_at = agentd.now() - interval '1 second' where id = $1 and status = 'running'`,
      [id],
    );
    await requeueLapsedRuns(tx);
  });
}

/** Tables other than `except` in which a text, or one of several, occurs anywhere. */
export async function tablesWith(
  db: Queryable,
  text: string | readonly string[],
  except: readonly string[] = [],
): Promise<string[]> {
  const tables = await db.query<{ name: string }>(
    `select format('%I.%I', schemaname, tablename) as name from pg_tables
      where schemaname in ('public', 'agentd', 'auth', 'pgboss')`,
  );
  const found: string[] = [];
  for (const { name } of tables) {
    if (except.includes(name)) continue;
    const rows = await db.query(
      `select 1 from ${name} t where exists (select 1 from unnest($1::text[]) as one where strpos(t::text, one) > 0) limit 1`,
      [typeof text === 'string' ? [text] : text],
    );
    if (rows.length > 0) found.push(name);
  }
  return found;
}
