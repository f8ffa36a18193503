/**
 * Retention: what writers of runs and their calls wait for while old runs, with their calls, are deleted from the same tables.
 *
 * Writers come at a fixed rate and are measured from the moment at which they were to begin, so that one that is held up also counts those
 * behind it. Windows with and without retention alternate, on one database: only neighbours compare.
 */

import { type Clock, systemClock } from '../src/clock.ts';
import { openDatabase } from '../src/db/database.ts';
import { registerTasks, takeTask } from '../src/db/maintenance.ts';
import { workOn } from '../src/db/maintenance-run.ts';
import { rowTask } from '../src/db/maintenance-tasks.ts';
import { type RowRule, rowRules } from '../src/db/retention-rules.ts';
import { withDatabase } from './support/database.ts';
import { createPlatform } from './support/platform.ts';
import type { Result } from './support/result.ts';
import { median, ms, percentile, perSecond } from './support/stats.ts';

/** Old runs, each with four calls of models. */
const ROWS = Number(process.env.BENCH_ROWS ?? 400_000);
const CALLS = 4;
const SECONDS = Number(process.env.BENCH_SECONDS ?? 8);
const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 5);
/** Writes a second: a third of what the two cores manage. */
const RATE = Number(process.env.BENCH_RATE ?? 150);
const WORKSPACES = 50;

const WRITE = `
with run as (
  insert into public.task_runs (task_id) select t.id from public.agent_tasks t offset $1 limit 1 returning id, workspace_id),
done as (select * from run)
insert into public.llm_calls (workspace_id, run_id, step_order, turn, idempotency_key)
select workspace_id, id, 1, n, gen_random_uuid() from done, generate_series(1, ${CALLS}) n`;

export async function bench(): Promise<Result> {
  return withDatabase('retention', { migrated: true }, async ({ url, pool }) => {
    await createPlatform(pool, { workspaces: WORKSPACES, steps: 1 });
    await pool.query(`
      begin;
      set local session_replication_role = replica;
      insert into public.task_runs (workspace_id, agent_id, steps, settings, status, finished_at)
      select a.workspace_id, a.agent_id, '[]', '{}', 'completed', now() - interval '500 days' + n * interval '1 second'
        from (select workspace_id, agent_id, row_number() over () - 1 as i from public.agent_tasks limit ${WORKSPACES}) a
        join generate_series(1, ${ROWS}) n on n % ${WORKSPACES} = a.i;
      insert into public.llm_calls (workspace_id, run_id, step_order, turn, idempotency_key, status, response)
      select r.workspace_id, r.id, 1, n, gen_random_uuid(), 'completed', jsonb_build_object('content', repeat('x', 400))
        from public.task_runs r, generate_series(1, ${CALLS}) n;
      commit;`);
    await pool.query('vacuum analyze public.task_runs, public.llm_calls');
    const task = rowTask(rowRules.find((rule) => rule.name === 'task_runs') as RowRule, 365);
    const db = openDatabase({
      url,
      embedded: false,
      max: 2,
      limits: { lockMs: 250, statementMs: 30_000, answerMs: 40_000 },
    });
    await registerTasks(db, [task.name]);

    let gone = 0;
    /** Retention for one window. */
    const retain = async (signal: AbortSignal, clock: Clock): Promise<void> => {
      while (!signal.aborted) {
        const taken = await takeTask(db, {
          names: [task.name],
          worker: 'bench',
          leaseMs: 60_000,
          isForced: true,
        });
        if (taken === null) throw new Error('The task is taken.');
        const { left, error } = await workOn(
          {
            db,
            clock,
            leaseMs: 60_000,
            onBatch: (_, rows) => {
              gone += rows;
            },
          },
          task,
          taken,
          { sliceMs: 3_600_000, signal },
        );
        if (error !== null) throw error;
        if (left?.how === 'completed') return;
      }
    };
    const write = async (): Promise<number[]> => {
      const latencies: number[] = [];
      const under: Promise<unknown>[] = [];
      const from = performance.now();
      for (let n = 0; n < RATE * SECONDS; n++) {
        const due = from + (n * 1000) / RATE;
        const wait = due - performance.now();
        if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
        under.push(
          pool.query({ name: 'write', text: WRITE, values: [n % WORKSPACES] }).then(() => {
            latencies.push(performance.now() - due);
          }),
        );
      }
      await Promise.all(under);
      return latencies;
    };

    await write();
    const bare: number[] = [];
    const beside: number[] = [];
    const rates: number[] = [];
    for (let round = 0; round < ROUNDS; round++) {
      const run = async (isWith: boolean): Promise<void> => {
        const abort = new AbortController();
        const before = gone;
        const from = performance.now();
        const retaining = isWith ? retain(abort.signal, systemClock) : Promise.resolve();
        const p99 = percentile(await write(), 0.99);
        abort.abort();
        await retaining;
        (isWith ? beside : bare).push(p99);
        if (isWith) rates.push(((gone - before) * 1000) / (performance.now() - from));
      };
      // whoever comes second finds what the first has left
      await run(round % 2 === 1);
      await run(round % 2 === 0);
    }
    await db.close();
    const ratio = median(beside.map((value, i) => value / (bare[i] as number)));
    if (gone >= ROWS) throw new Error('There were too few rows for the last windows: raise BENCH_ROWS.');
    return {
      bench: 'retention',
      lines: [
        {
          measured: `p99 of writers while runs are deleted`,
          agentd: ms(median(beside)),
          beside: `without: ${ms(median(bare))}`,
          goal: '≤ 2 ×',
          met: ratio <= 2,
          note: `${ratio.toFixed(2)} ×; ${RATE} writes a second of a run and ${CALLS} calls; ${perSecond(median(rates))} runs deleted with ${CALLS} calls each, ${ROWS.toLocaleString('en-US')} were due; median of ${ROUNDS} pairs of ${SECONDS} s`,
        },
      ],
    };
  });
}
