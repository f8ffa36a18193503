/**
 * Usage: what summing up events costs beside the bare statement that groups the same rows, and how far the sums are behind a steady stream.
 *
 * The roll-up is what a daemon does: both steps, both levels, the counters, the state. The floor is one INSERT … SELECT … GROUP BY into an empty table of the
 * first level, in the same database and minutes. The lag is end to end: from the commit of an event in a workspace of its own to the moment in
 * which another session reads it in workspace_usage.
 */
import { setTimeout as wait } from 'node:timers/promises';
import type pg from 'pg';
import { systemClock } from '../src/clock.ts';
import { type Database, openDatabase } from '../src/db/database.ts';
import { usageDrift } from '../src/db/usage.ts';
import { rollUp, usageRollup } from '../src/services/usage-rollup.ts';
import { silentLogger } from '../src/telemetry/logger.ts';
import { createMetrics } from '../src/telemetry/metrics.ts';
import { withDatabase } from './support/database.ts';
import type { Line, Result } from './support/result.ts';
import { median, ms, percentile, perSecond } from './support/stats.ts';

const EVENTS = Number(process.env.BENCH_EVENTS ?? 500_000);
const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 3);
const SECONDS = Number(process.env.BENCH_SECONDS ?? 60);
const WORKSPACES = 1_000;
const RATE = 10_000;
const WRITERS = 8;
const BATCH = 50;

export async function bench(): Promise<Result> {
  return {
    bench: 'usage',
    lines: [...(await backlog(200)), ...(await backlog(WORKSPACES)), await stream()],
  };
}

async function backlog(workspaces: number): Promise<Line[]> {
  return withDatabase('usage', { migrated: true }, async ({ url, pool }) => {
    const db = openDatabase({ url, embedded: false, max: 4 });
    try {
      await makeWorkspaces(pool, workspaces);
      await pool.query(
        'create table public.floor (workspace_id uuid, bucket timestamptz, metric text, events bigint, quantity bigint, cost_micros bigint)',
      );
      const floors: number[] = [];
      const rollups: number[] = [];
      const ratios: number[] = [];
      let groups = 0;
      const open = await pool.connect();
      for (let round = 0; round < 2 * ROUNDS; round++) {
        // half of them while a transaction is open that has written an event
        if (round === ROUNDS) {
          await open.query('begin');
          await open.query(
            `insert into public.usage_events (workspace_id, metric) select id, 'message' from public.workspaces where slug = 'bench-1'`,
          );
        }
        // a round's events are in hours of their own, so that its sums are rows of their own
        await pool.query(
          `insert into public.usage_events (workspace_id, metric, quantity, cost_micros, occurred_at)
           select w.ids[1 + n % $2], (array['tokens', 'tool_call', 'message', 'task_run', 'embedding_tokens'])[1 + (n / 7) % 5], n % 100, n % 10,
                  date_trunc('hour', now()) - make_interval(hours => $3::integer, secs => n % 3600)
             from generate_series(1, $1::integer) n, (select array_agg(id) as ids from public.workspaces where slug like 'bench-%') w`,
          [EVENTS, workspaces, 2 * round + 1],
        );
        await pool.query('vacuum analyze public.usage_events');
        const [first] = (
          await pool.query<{ xid: string }>('select max(xid)::text as xid from public.usage_events')
        ).rows;
        await pool.query('truncate public.floor');
        const floor = await timed(() =>
          pool.query(
            `insert into public.floor
             select workspace_id, date_bin('15 minutes', occurred_at, '2000-01-01Z'), metric, count(*), sum(quantity)::bigint, sum(cost_micros)::bigint
               from public.usage_events where xid = $1::text::xid8 group by 1, 2, 3`,
            [first?.xid],
          ),
        );
        groups = (await pool.query('select 1 from public.floor')).rowCount ?? 0;
        const rolled = await timed(() => pass(db));
        if (round < ROUNDS) floors.push(floor);
        rollups.push(rolled);
        ratios.push(rolled / floor);
      }
      await open.query('commit');
      open.release();
      await pass(db);
      const drift = await usageDrift(db, null);
      if (drift.length > 0) throw new Error(`${drift.length} sums differ from the events.`);
      const during = rollups.splice(ROUNDS);
      const ratio = median(ratios.slice(0, ROUNDS));
      const slower = median(during) / median(rollups);
      const rate = EVENTS / (median(rollups) / 1000);
      const measured = `roll-up of ${EVENTS.toLocaleString('en-US')} events, two levels, ${workspaces.toLocaleString('en-US')} workspaces`;
      const alone: Line = {
        measured,
        agentd: `${ms(median(rollups))}, ${perSecond(rate)}`,
        beside: `bare INSERT … SELECT … GROUP BY: ${ms(median(floors))}`,
        goal: '≤ 2 × the floor, ≥ 500,000/s',
        met: ratio <= 2 && rate >= 500_000,
        note: `${ratio.toFixed(2)} ×; ${workspaces.toLocaleString('en-US')} workspaces, ${groups.toLocaleString('en-US')} sums; median of ${ROUNDS} rounds`,
      };
      return [
        alone,
        {
          measured: `the same while another transaction is open`,
          agentd: ms(median(during)),
          beside: `without it: ${ms(median(rollups))}`,
          goal: '≤ 1.5 ×',
          met: slower <= 1.5,
          note: `${slower.toFixed(2)} ×; it has written an event, and up to ${(EVENTS * ROUNDS).toLocaleString('en-US')} events came since; median of ${ROUNDS} rounds`,
        },
      ];
    } finally {
      await db.close();
    }
  });
}

async function stream(): Promise<Line> {
  return withDatabase('usage_lag', { migrated: true }, async ({ url, pool }) => {
    const db = openDatabase({ url, embedded: false, max: 4 });
    const service = usageRollup({ db, clock: systemClock, log: silentLogger(), metrics: createMetrics() });
    try {
      const ids = await makeWorkspaces(pool, WORKSPACES + 1);
      const probe = ids.pop() as string;
      service.start();
      await wait(1_000);
      const from = performance.now();
      const until = from + SECONDS * 1000;
      let written = 0;
      const writers = Array.from({ length: WRITERS }, async (_, writer) => {
        const every = (BATCH * WRITERS * 1000) / RATE;
        for (let n = 0; ; n++) {
          const due = from + n * every + (every * writer) / WRITERS;
          if (due >= until) return;
          await wait(Math.max(0, due - performance.now()));
          const chosen = Array.from({ length: BATCH }, () => ids[Math.floor(Math.random() * ids.length)]);
          await pool.query(
            `insert into public.usage_events (workspace_id, metric, quantity) select i, 'tokens', 10 from unnest($1::uuid[]) i`,
            [chosen],
          );
          written += BATCH;
        }
      });
      const committed: number[] = [];
      const prober = (async () => {
        while (performance.now() < until) {
          await pool.query(`insert into public.usage_events (workspace_id, metric) values ($1, 'message')`, [
            probe,
          ]);
          committed.push(performance.now());
          await wait(50);
        }
      })();
      const lags: number[] = [];
      const reader = (async () => {
        const deadline = until + 60_000;
        while (performance.now() < until || lags.length < committed.length) {
          const { rows } = await pool.query<{ messages: number }>(
            'select messages from public.workspace_usage where workspace_id = $1',
            [probe],
          );
          const now = performance.now();
          while (lags.length < (rows[0]?.messages ?? 0)) lags.push(now - (committed[lags.length] ?? now));
          if (now > deadline) throw new Error('The sums did not catch up within a minute.');
          await wait(10);
        }
      })();
      await Promise.all([...writers, prober]);
      const took = (performance.now() - from) / 1000;
      await reader;
      await service.stop();
      await pass(db);
      const [sum] = (
        await pool.query<{ n: number }>(
          `select sum(events)::float8 as n from public.usage_quarter_hours where metric = 'tokens'`,
        )
      ).rows;
      if (sum?.n !== written) throw new Error(`${sum?.n} of ${written} events are in the sums.`);
      const p99 = percentile(lags, 0.99);
      return {
        measured: `lag at ${RATE.toLocaleString('en-US')} events a second for ${SECONDS} s`,
        agentd: `p50 ${ms(median(lags))}, p99 ${ms(p99)}`,
        beside: null,
        goal: 'p99 < 1 s',
        met: p99 < 1000 && written / took >= 0.98 * RATE,
        note: `${perSecond(written / took)} were written, in batches of ${BATCH} by ${WRITERS} clients; ${lags.length.toLocaleString('en-US')} probes`,
      };
    } finally {
      await service.stop();
      await db.close();
    }
  });
}

/** One pass, as a daemon's service makes it. */
export const pass = (db: Database) =>
  rollUp({ db, clock: systemClock, log: silentLogger(), metrics: createMetrics() });

/** Milliseconds that it took. */
export async function timed(work: () => Promise<unknown>): Promise<number> {
  const from = performance.now();
  await work();
  return performance.now() - from;
}

/** Workspaces of one user. Returns their ids. */
export async function makeWorkspaces(pool: pg.Pool, count: number): Promise<string[]> {
  const { rows: users } = await pool.query<{ id: string }>(
    `insert into auth.users (email) values ('bench@example.test') returning id`,
  );
  const { rows } = await pool.query<{ id: string }>(
    `insert into public.workspaces (name, slug, owner_user_id)
     select 'Bench ' || n, 'bench-' || n, $2 from generate_series(1, $1::integer) n returning id`,
    [count, users[0]?.id],
  );
  return rows.map((row) => row.id);
}
