/**
 * Soak: an hour of steady work on one daemon. Does anything grow: memory, the engine's tables, dead rows?
 *
 * Ended runs and their journal are deleted after two minutes, as an operator's retention would later, so that the size of every table
 * should be level. BENCH_MINUTES makes it shorter; the first quarter is warming up and does not count.
 */
import { setTimeout as wait } from 'node:timers/promises';
import type pg from 'pg';
import { benchPath, Child, startDaemonChild } from './support/child.ts';
import { withDatabase } from './support/database.ts';
import { createPlatform } from './support/platform.ts';
import type { Result } from './support/result.ts';
import { median } from './support/stats.ts';

const MINUTES = Number(process.env.BENCH_MINUTES ?? 60);
const RUNS_A_SECOND = Number(process.env.BENCH_RATE ?? 5);
const KEEP_SECONDS = 120;
const SAMPLE_SECONDS = 10;

type Sample = {
  readonly memory: number;
  /** Bytes of each table and index of agentd, pg-boss and the journal. */
  readonly sizes: ReadonlyMap<string, number>;
  readonly dead: number;
};

export async function bench(): Promise<Result> {
  return withDatabase('soak', { migrated: true }, async ({ url, pool }) => {
    const tasks = await createPlatform(pool, { workspaces: 50, steps: 3 });
    // finished jobs go as soon as their runs do
    await pool.query('update pgboss.queue set deletion_seconds = $1', [KEEP_SECONDS]);
    await pool.query(
      `insert into public.budgets (workspace_id, max_turns) select workspace_id, 1000000 from public.agents limit 25`,
    );
    const model = new Child([benchPath('support/model-child.ts'), '100'], {});
    const { port } = await model.json<{ port: number }>();
    const daemon = await startDaemonChild(url, { OPENAI_BASE_URL: `http://127.0.0.1:${port}/v1` });
    const samples: Sample[] = [];
    let inserted = 0;
    try {
      const end = performance.now() + MINUTES * 60_000;
      let next = performance.now();
      for (let second = 0; performance.now() < end; second++) {
        await pool.query(
          `insert into public.task_runs (task_id)
           select ($1::uuid[])[1 + (random() * (cardinality($1::uuid[]) - 1))::integer] from generate_series(1, $2::integer)`,
          [tasks, RUNS_A_SECOND],
        );
        inserted += RUNS_A_SECOND;
        if (second % 5 === 0) await retain(pool);
        if (second % SAMPLE_SECONDS === 0) samples.push(await sample(pool, daemon));
        next += 1000;
        await wait(Math.max(0, next - performance.now()));
      }
      const bad = await pool.query<{ bad: number }>(
        `select count(*)::integer as bad from public.task_runs where status = 'failed'`,
      );
      if ((bad.rows[0]?.bad ?? 0) > 0) throw new Error(`${bad.rows[0]?.bad} runs failed.`);
    } finally {
      await daemon.stop();
      await model.stop();
    }
    return result(samples, inserted);
  });
}

async function retain(pool: pg.Pool): Promise<void> {
  await pool.query(`delete from public.task_runs where finished_at < now() - make_interval(secs => $1)`, [
    KEEP_SECONDS,
  ]);
  for (const [table, column] of [
    ['public.usage_events', 'recorded_at'],
    ['public.agent_logs', '"timestamp"'],
    ['agentd.job_runs', 'started_at'],
  ] as const) {
    await pool.query(`delete from ${table} where ${column} < now() - make_interval(secs => $1)`, [
      KEEP_SECONDS,
    ]);
  }
}

async function sample(pool: pg.Pool, daemon: Child): Promise<Sample> {
  const { rows } = await pool.query<{ name: string; size: string; dead: string }>(
    `select c.oid::regclass::text as name, pg_relation_size(c.oid) as size, coalesce(pg_stat_get_dead_tuples(c.oid), 0) as dead
       from pg_class c
      where c.relkind in ('r', 'i', 't')
        and (c.relnamespace in ('agentd'::regnamespace, 'pgboss'::regnamespace, 'public'::regnamespace)
             or c.relnamespace = 'pg_toast'::regnamespace)`,
  );
  return {
    memory: (await daemon.memory()).now,
    sizes: new Map(rows.map((row) => [row.name, Number(row.size)])),
    dead: rows.reduce((sum, row) => sum + Number(row.dead), 0),
  };
}

const total = (sample: Sample): number => [...sample.sizes.values()].reduce((sum, size) => sum + size, 0);

/** The relations that grew most between two sets of samples, with the medians of their sizes. */
function growth(early: readonly Sample[], late: readonly Sample[]): string {
  const names = new Set(late.flatMap((sample) => [...sample.sizes.keys()]));
  const of = (samples: readonly Sample[], name: string) => median(samples.map((s) => s.sizes.get(name) ?? 0));
  return [...names]
    .map((name) => ({ name, before: of(early, name), after: of(late, name) }))
    .toSorted((a, b) => b.after - b.before - (a.after - a.before))
    .slice(0, 5)
    .map(({ name, before, after }) => `${name} ${mb(before)} → ${mb(after)}`)
    .join(', ');
}

const mb = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(1)} MB`;

function result(samples: readonly Sample[], inserted: number): Result {
  // the first quarter fills the tables and warms the process up
  const steady = samples.slice(Math.floor(samples.length / 4));
  const early = steady.slice(0, Math.floor(steady.length / 3));
  const late = steady.slice(-Math.floor(steady.length / 3));
  const line = (name: string, of: (s: Sample) => number, show: (value: number) => string, most: number) => {
    const [before, after] = [median(early.map(of)), median(late.map(of))];
    return {
      measured: name,
      agentd: `${show(before)} → ${show(after)}`,
      beside: null,
      goal: `flat (≤ ${most} ×)`,
      met: after <= before * most,
      note: `${(after / before).toFixed(2)} ×; ${inserted.toLocaleString('en-US')} runs of three steps in ${MINUTES} minutes; medians of the first and last third after a quarter of warming up`,
    };
  };
  return {
    bench: 'soak',
    lines: [
      line(
        'daemon’s resident memory',
        (s) => s.memory,
        (v) => `${v.toFixed(0)} MB`,
        1.1,
      ),
      line('size of all tables and indexes', total, mb, 1.15),
      { measured: 'what grew most', agentd: growth(early, late), beside: null, goal: '–', met: null },
      line(
        'dead rows',
        (s) => s.dead,
        (v) => Math.round(v).toLocaleString('en-US'),
        1.3,
      ),
    ],
  };
}
