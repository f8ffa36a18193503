/**
 * Memory: resident set of a daemon on PostgreSQL, idle and with 100 runs in flight, and of the daemon's sockets to a model
 * that takes two seconds to answer. The highest value seen is reported, not the average.
 */
import { setTimeout as wait } from 'node:timers/promises';
import { benchPath, Child, startDaemonChild } from './support/child.ts';
import { withDatabase } from './support/database.ts';
import { createPlatform } from './support/platform.ts';
import type { Result } from './support/result.ts';

const IN_FLIGHT = 100;
const IDLE_SECONDS = Number(process.env.BENCH_SECONDS ?? 20);
const MODEL_MS = 2000;

export async function bench(): Promise<Result> {
  return withDatabase('memory', { migrated: true }, async ({ url, pool }) => {
    const tasks = await createPlatform(pool, { workspaces: 20, steps: 3 });
    const model = new Child([benchPath('support/model-child.ts'), String(MODEL_MS)], {});
    const { port } = await model.json<{ port: number }>();
    const daemon = await startDaemonChild(url, {
      OPENAI_BASE_URL: `http://127.0.0.1:${port}/v1`,
      AGENTD_QUEUES: `task-run=${IN_FLIGHT}`,
    });
    try {
      let idle = 0;
      for (let i = 0; i < IDLE_SECONDS; i++) {
        await wait(1000);
        idle = Math.max(idle, (await daemon.memory()).now);
      }
      // three batches one after the other: 100 are in flight all the time
      await pool.query(
        `insert into public.task_runs (task_id)
         select ($1::uuid[])[1 + n % cardinality($1::uuid[])] from generate_series(1, $2::integer) n`,
        [tasks, 3 * IN_FLIGHT],
      );
      let busy = 0;
      let inFlight = 0;
      for (;;) {
        await wait(250);
        busy = Math.max(busy, (await daemon.memory()).now);
        const { rows } = await pool.query<{ running: number; open: number; bad: number }>(
          `select count(*) filter (where status = 'running')::integer as running,
                  count(*) filter (where finished_at is null)::integer as open,
                  count(*) filter (where finished_at is not null and status <> 'completed')::integer as bad
             from public.task_runs`,
        );
        const [row] = rows;
        if (row && row.bad > 0) throw new Error(`${row.bad} runs did not complete.`);
        inFlight = Math.max(inFlight, row?.running ?? 0);
        if (row?.open === 0) break;
      }
      if (inFlight < IN_FLIGHT) throw new Error(`Only ${inFlight} runs were in flight.`);
      return {
        bench: 'memory',
        lines: [
          {
            measured: 'idle daemon, resident',
            agentd: `${idle.toFixed(0)} MB`,
            beside: null,
            goal: '≤ 150 MB',
            met: idle <= 150,
            note: `highest of ${IDLE_SECONDS} s`,
          },
          {
            measured: `${inFlight} runs in flight, resident`,
            agentd: `${busy.toFixed(0)} MB`,
            beside: null,
            goal: '≤ 300 MB',
            met: busy <= 300,
            note: `${3 * IN_FLIGHT} runs of three steps, ${MODEL_MS / 1000} s a model call, over HTTP`,
          },
        ],
      };
    } finally {
      await daemon.stop();
      await model.stop();
    }
  });
}
