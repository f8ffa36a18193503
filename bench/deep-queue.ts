/**
 * A deep queue: what a million queued runs in a thousand workspaces, and a million finished jobs in pg-boss, cost the work
 * itself.
 *
 * The same daemon, model and workspaces with 10,000 queued runs and without finished jobs is the measure. In both, the rows are there
 * before the daemon starts; the rate is that of the runs that end after a warm-up, by the database's clock, while the depth stays.
 * While the deep one works, the views that operators watch are asked once each.
 */
import { setTimeout as wait } from 'node:timers/promises';
import type pg from 'pg';
import { benchPath, Child } from './support/child.ts';
import { withDatabase } from './support/database.ts';
import { fillFinishedJobs, fillQueuedRuns } from './support/fill.ts';
import { createPlatform } from './support/platform.ts';
import type { Result } from './support/result.ts';
import { median, ms, perSecond } from './support/stats.ts';

const WORKSPACES = 1000;
const DEEP = Number(process.env.BENCH_DEPTH ?? 1_000_000);
const SHALLOW = 10_000;
const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 2);
/** Runs that end before the measurement begins, and those that it is made of. */
const WARM_UP = 2000;
const MEASURED = 5000;
const CONCURRENCY = '100';

export async function bench(): Promise<Result> {
  const shallow: number[] = [];
  const deep: number[] = [];
  let views: View[] = [];
  // alternating, so that a slow minute of the machine meets both
  for (let round = 0; round < ROUNDS; round++) {
    shallow.push((await rate(SHALLOW, 0)).perSecond);
    const result = await rate(DEEP, DEEP);
    deep.push(result.perSecond);
    views = result.views;
  }
  const ratio = median(deep.map((each, i) => each / (shallow[i] as number)));
  const slowest = views.toSorted((a, b) => b.took - a.took);
  return {
    bench: 'deep-queue',
    lines: [
      {
        measured: `one-step runs, ${DEEP.toLocaleString('en-US')} queued, as many finished jobs`,
        agentd: perSecond(median(deep)),
        beside: `${SHALLOW.toLocaleString('en-US')} queued, no finished jobs: ${perSecond(median(shallow))}`,
        goal: '≥ 0.8 ×',
        met: ratio >= 0.8,
        note: `${ratio.toFixed(2)} ×; ${WORKSPACES} workspaces, ${MEASURED} runs after ${WARM_UP}, AGENTD_QUEUES=task-run=${CONCURRENCY}; median of ${ROUNDS} pairs`,
      },
      {
        measured: 'views that operators watch, while it works',
        agentd: slowest.map((view) => `${view.name} ${ms(view.took)}`).join(', '),
        beside: null,
        goal: '–',
        met: null,
      },
    ],
  };
}

type View = { readonly name: string; readonly took: number };

async function rate(queued: number, finished: number): Promise<{ perSecond: number; views: View[] }> {
  return withDatabase('deep', { migrated: true }, async ({ url, pool }) => {
    await createPlatform(pool, { workspaces: WORKSPACES, steps: 1 });
    await fillQueuedRuns(pool, queued / WORKSPACES);
    if (finished > 0) await fillFinishedJobs(pool, finished);
    await pool.query('vacuum analyze public.task_runs');
    await pool.query('vacuum analyze pgboss.job');
    await settled(pool);
    const daemon = new Child([benchPath('support/instant-daemon.ts')], {
      DATABASE_URL: url,
      OPENAI_API_KEY: 'bench-key',
      AGENTD_QUEUES: `task-run=${CONCURRENCY}`,
    });
    try {
      await daemon.line('agentd is running');
      await ended(pool, WARM_UP + MEASURED);
      const perSecond = await measured(pool);
      return { perSecond, views: finished > 0 ? await watch(pool) : [] };
    } finally {
      await daemon.stop();
    }
  });
}

/** Autovacuum has seen to what was filled, and the disk has it: that work is the filling's, not the queue's. */
async function settled(pool: pg.Pool): Promise<void> {
  await pool.query('checkpoint');
  for (let looks = 0, quiet = 0; looks < 120 && quiet < 5; looks++) {
    const { rows } = await pool.query(
      `select 1 from pg_stat_activity where backend_type = 'autovacuum worker'`,
    );
    quiet = rows.length === 0 ? quiet + 1 : 0;
    await wait(1000);
  }
  await pool.query('checkpoint');
}

async function ended(pool: pg.Pool, count: number): Promise<void> {
  for (;;) {
    await wait(200);
    const { rows } = await pool.query<{ done: number; bad: number }>(
      `select count(*)::integer as done, count(*) filter (where status <> 'completed')::integer as bad
         from public.task_runs where finished_at is not null`,
    );
    if ((rows[0]?.bad ?? 0) > 0) throw new Error(`${rows[0]?.bad} runs did not complete.`);
    if ((rows[0]?.done ?? 0) >= count) return;
  }
}

async function measured(pool: pg.Pool): Promise<number> {
  const { rows } = await pool.query<{ per_second: number }>(
    `select count(*) / extract(epoch from max(finished_at) - min(finished_at))::double precision as per_second
       from (select finished_at from public.task_runs where finished_at is not null
              order by finished_at offset $1 limit $2) r`,
    [WARM_UP, MEASURED],
  );
  return rows[0]?.per_second ?? Number.NaN;
}

async function watch(pool: pg.Pool): Promise<View[]> {
  const views: View[] = [];
  for (const name of ['queue_health', 'workspace_activity', 'stuck_work', 'recent_failures', 'late_tasks']) {
    const began = performance.now();
    await pool.query(`select * from agentd.${name}`);
    views.push({ name, took: performance.now() - began });
  }
  return views;
}
