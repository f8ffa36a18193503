/**
 * A fair share: one workspace with 10,000 queued runs, and twenty with ten each, on three daemons.
 *
 * One after the other on the same database: the small ones alone, the large one alone, then both. A call of the model takes 100 ms, so that
 * places and slots are what is shared and not the processors. Waits are from the insert to the claim and rates from the ends of runs, by the
 * database's clock. How many runs of a workspace were under way at once is computed from the starts and ends of all runs.
 */
import { setTimeout as wait } from 'node:timers/promises';
import type pg from 'pg';
import { benchPath, Child } from './support/child.ts';
import { withDatabase } from './support/database.ts';
import { createPlatform } from './support/platform.ts';
import type { Result } from './support/result.ts';
import { ms, percentile, perSecond } from './support/stats.ts';

const QUEUED = Number(process.env.BENCH_RUNS ?? 10_000);
const SMALL = 20;
const EACH = 10;
const ROUNDS = 5;
const DAEMONS = 3;
const SLOTS = 32;
const CEILING = 16;
const MODEL_MS = 100;

export async function bench(): Promise<Result> {
  return withDatabase('fairness', { migrated: true }, async ({ url, pool }) => {
    const tasks = await createPlatform(pool, { workspaces: SMALL + 1, steps: 1 });
    const [large = '', ...small] = tasks;
    await pool.query('update agentd.queue_settings set workspace_ceiling = $1', [CEILING]);
    const daemons = Array.from(
      { length: DAEMONS },
      () =>
        new Child([benchPath('support/instant-daemon.ts')], {
          DATABASE_URL: url,
          OPENAI_API_KEY: 'bench-key',
          AGENTD_QUEUES: `task-run=${SLOTS}`,
          BENCH_MODEL_MS: String(MODEL_MS),
        }),
    );
    try {
      for (const daemon of daemons) await daemon.line('agentd is running');
      // the first runs of a daemon meet cold caches
      await smallOnes(pool, small);
      await pool.query('vacuum analyze');
      const alone = await smallOnes(pool, small);

      await insert(pool, large, QUEUED);
      await ended(pool, [large], QUEUED * 0.1);
      const from = await now(pool);
      await ended(pool, [large], QUEUED * 0.4);
      const middle = await now(pool);
      const beside = await smallOnes(pool, small);
      const to = await now(pool);
      await ended(pool, [large], QUEUED);

      const [rateAlone, rateBeside] = [
        await rate(pool, large, from, middle),
        await rate(pool, large, middle, to),
      ];
      const late = await displaced(pool, large);
      const most = await mostAtOnce(pool);
      const [waitAlone, waitBeside] = [percentile(alone, 0.95), percentile(beside, 0.95)];
      return {
        bench: 'fairness',
        lines: [
          {
            measured: `wait of ${SMALL} workspaces with ${EACH} runs each, beside ${QUEUED.toLocaleString('en-US')} of another`,
            agentd: `p95 ${ms(waitBeside)}, p50 ${ms(percentile(beside, 0.5))}`,
            beside: `alone: p95 ${ms(waitAlone)}, p50 ${ms(percentile(alone, 0.5))}`,
            goal: 'p95 ≤ 2 × alone',
            met: waitBeside <= 2 * waitAlone,
            note: `${(waitBeside / waitAlone).toFixed(2)} ×; ${ROUNDS} times ${SMALL * EACH} runs, ${DAEMONS} daemons of ${SLOTS} slots, ceiling ${CEILING}, ${MODEL_MS} ms a call`,
          },
          {
            measured: 'runs of the large one meanwhile',
            agentd: perSecond(rateBeside),
            beside: `alone: ${perSecond(rateAlone)}`,
            goal: '≥ 0.9 × alone',
            met: rateBeside >= 0.9 * rateAlone,
            note: `${(rateBeside / rateAlone).toFixed(2)} ×; at most ${Math.round((1000 * CEILING) / MODEL_MS)}/s are possible`,
          },
          {
            measured: 'order of the large one: most places that a run was early or late',
            agentd: String(late),
            beside: null,
            goal: `< ${CEILING}`,
            met: late < CEILING,
          },
          {
            measured: 'most runs of one workspace under way at once',
            agentd: String(most),
            beside: null,
            goal: `≤ ${CEILING}`,
            met: most <= CEILING,
          },
        ],
      };
    } finally {
      for (const daemon of daemons) await daemon.stop();
    }
  });
}

/** Inserts the small ones' runs several times and waits for them. Returns their waits in ms. */
async function smallOnes(pool: pg.Pool, tasks: readonly string[]): Promise<number[]> {
  const waits: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    const from = await now(pool);
    await Promise.all(tasks.map((task) => insert(pool, task, EACH)));
    for (let open = true; open; ) {
      await wait(100);
      const { rows } = await pool.query<{ wait: number | null; ended: boolean }>(
        `select extract(epoch from started_at - created_at)::double precision * 1000 as wait, finished_at is not null as ended
           from public.task_runs where task_id = any ($1::uuid[]) and created_at >= $2::timestamptz`,
        [tasks, from],
      );
      open = rows.some((row) => !row.ended);
      if (!open) waits.push(...rows.map((row) => row.wait ?? Number.NaN));
    }
    // a burst after a pause, as tenants come
    await wait(1500);
  }
  return waits;
}

function insert(pool: pg.Pool, task: string, count: number): Promise<unknown> {
  return pool.query('insert into public.task_runs (task_id) select $1 from generate_series(1, $2::integer)', [
    task,
    count,
  ]);
}

async function now(pool: pg.Pool): Promise<string> {
  const { rows } = await pool.query<{ now: string }>('select clock_timestamp()::text as now');
  return rows[0]?.now ?? '';
}

async function ended(pool: pg.Pool, tasks: readonly string[], count: number): Promise<void> {
  for (;;) {
    await wait(200);
    const { rows } = await pool.query<{ done: number; bad: number }>(
      `select count(*) filter (where finished_at is not null)::integer as done,
              count(*) filter (where finished_at is not null and status <> 'completed')::integer as bad
         from public.task_runs where task_id = any ($1::uuid[])`,
      [tasks],
    );
    if ((rows[0]?.bad ?? 0) > 0) throw new Error(`${rows[0]?.bad} runs did not complete.`);
    if ((rows[0]?.done ?? 0) >= count) return;
  }
}

async function rate(pool: pg.Pool, task: string, from: string, to: string): Promise<number> {
  const { rows } = await pool.query<{ rate: number }>(
    `select count(*) / extract(epoch from $3::timestamptz - $2::timestamptz)::double precision as rate
       from public.task_runs where task_id = $1 and finished_at > $2::timestamptz and finished_at <= $3::timestamptz`,
    [task, from, to],
  );
  return rows[0]?.rate ?? Number.NaN;
}

async function displaced(pool: pg.Pool, task: string): Promise<number> {
  const { rows } = await pool.query<{ most: number }>(
    `select max(abs(started - asked))::integer as most
       from (select row_number() over (order by started_at, seq) as started, row_number() over (order by seq) as asked
               from public.task_runs where task_id = $1) r`,
    [task],
  );
  return rows[0]?.most ?? Number.NaN;
}

/** Ends count before starts of the same moment: a place is given on in the transaction that leaves it. */
async function mostAtOnce(pool: pg.Pool): Promise<number> {
  const { rows } = await pool.query<{ most: number }>(
    `select max(under_way)::integer as most
       from (select sum(change) over (partition by workspace_id order by at, change) as under_way
               from (select workspace_id, started_at as at, 1 as change from public.task_runs
                     union all
                     select workspace_id, finished_at, -1 from public.task_runs) c) u`,
  );
  return rows[0]?.most ?? Number.NaN;
}
