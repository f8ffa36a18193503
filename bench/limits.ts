/**
 * Limits: what a grant of consume_usage costs beside the bare conditional upsert that it is made around, and an event of usage beside the same row
 * without its key and its transaction.
 *
 * The bare tables have the same columns otherwise, the same indexes and settings; the bare upsert is told its period and its limit. Pairs ran one after
 * the other, by pgbench with prepared statements.
 */
import { execFile } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { findPgbench } from './insert.ts';
import { withDatabase } from './support/database.ts';
import type { Line, Result } from './support/result.ts';
import { median, perSecond } from './support/stats.ts';

const CLIENTS = 16;
const SECONDS = Number(process.env.BENCH_SECONDS ?? 3);
const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 7);
const WORKSPACES = 1_000;

const exec = promisify(execFile);

const consume = (workspaces: number, key: string): string => `\\set n random(1, ${workspaces})
select agentd.consume_usage(w.id, 'messages', 1, ${key}) from bench_workspace w where w.n = :n;
`;
const upsert = (workspaces: number): string => `\\set n random(1, ${workspaces})
insert into bench_counter as c (workspace_id, month, metric, used)
select w.id, '2026-01-01', 'messages', 1 from bench_workspace w where w.n = :n and 1 <= 1000000000
on conflict (workspace_id, month, metric) do update set used = c.used + excluded.used where c.used + excluded.used <= 1000000000
returning c.used;
`;
const event = (table: string, rows: number): string => `\\set n random(1, ${WORKSPACES})
insert into ${table} (workspace_id, metric, quantity) select w.id, 'tool_call', g from bench_workspace w, generate_series(1, ${rows}) g where w.n = :n;
`;
const RECORD = `\\set n random(1, ${WORKSPACES})
select agentd.record_usage(w.id, 'tool_call', 1, gen_random_uuid()::text) from bench_workspace w where w.n = :n;
`;

export async function bench(): Promise<Result> {
  const pgbench = await findPgbench();
  const folder = await mkdtemp(join(tmpdir(), 'agentd-bench-'));
  try {
    return await withDatabase('limits', { migrated: true }, async ({ url, pool }) => {
      await pool.query(`
        insert into auth.users (email) values ('bench@example.test');
        insert into public.workspaces (name, slug, owner_user_id)
        select 'Bench ' || n, 'bench-' || n, u.id from generate_series(1, ${WORKSPACES}) n, auth.users u;
        create table bench_workspace (n integer primary key, id uuid);
        insert into bench_workspace select row_number() over (), id from public.workspaces where slug like 'bench-%';
        insert into public.pricing_plans (name, message_limit) values ('bench', 1000000000);
        insert into public.workspace_subscriptions (workspace_id, plan_id, status)
        select w.id, p.id, 'active' from bench_workspace w, public.pricing_plans p;
        select agentd.consume_usage(id, 'messages', 1, null) from bench_workspace;
        -- as a worker would have by now: counters keep their limits
        select agentd.fold_usage(array(select id from bench_workspace));
        create table bench_counter (like public.workspace_usage_counters including all) with (fillfactor = 50);
        alter table bench_counter add foreign key (workspace_id) references public.workspaces (id);
        insert into bench_counter select id, '2026-01-01', 'messages', 1 from bench_workspace;
        create table bench_event (like public.usage_events including defaults including constraints) partition by range (recorded_at);
        alter table bench_event drop column idempotency_key, drop column xid;
        alter table bench_event add primary key (id, recorded_at);
        create index on bench_event (workspace_id, occurred_at);
        create table bench_event_1 partition of bench_event for values from (minvalue) to (maxvalue)`);
      await pool.query('vacuum analyze');
      const run = async (script: string): Promise<number> => {
        const file = join(folder, 'script.sql');
        await writeFile(file, script);
        await pool.query('vacuum public.workspace_usage_counters, bench_counter');
        await pool.query('checkpoint');
        const settings = ['-n', '-M', 'prepared', '-c', `${CLIENTS}`, '-j', '2', '-T', `${SECONDS}`];
        const { stdout } = await exec(pgbench, [...settings, '-f', file, url]);
        return Number(/tps = ([\d.]+)/.exec(stdout)?.[1]);
      };
      const pair = async (
        measured: string,
        script: string,
        bare: string,
        goal: number | null,
      ): Promise<Line> => {
        const rates: number[] = [];
        const floors: number[] = [];
        for (let round = 0; round < ROUNDS; round++) {
          floors.push(await run(bare));
          rates.push(await run(script));
        }
        const ratio = median(rates.map((rate, i) => rate / (floors[i] as number)));
        return {
          measured,
          agentd: perSecond(median(rates)),
          beside: `bare: ${perSecond(median(floors))}`,
          goal: goal === null ? '–' : `≥ ${goal} ×`,
          met: goal === null ? null : ratio >= goal,
          note: `${ratio.toFixed(2)} ×; ${CLIENTS} clients, pgbench for ${SECONDS} s; median of ${ROUNDS} pairs`,
        };
      };
      const key = 'gen_random_uuid()::text';
      const lines = [
        await pair('consume_usage, one hot workspace', consume(1, 'null'), upsert(1), 0.8),
        await pair(
          `consume_usage over ${WORKSPACES} workspaces`,
          consume(WORKSPACES, 'null'),
          upsert(WORKSPACES),
          0.8,
        ),
        await pair(
          'the same, each under a key of its own',
          consume(WORKSPACES, key),
          upsert(WORKSPACES),
          null,
        ),
        await pair('an event of usage', event('public.usage_events', 1), event('bench_event', 1), 0.6),
        await pair(
          'a hundred events in a statement',
          event('public.usage_events', 100),
          event('bench_event', 100),
          0.6,
        ),
        await pair('record_usage, an event under a key', RECORD, event('bench_event', 1), null),
      ];
      // until the worker has folded what is on its way
      await pool.query('select agentd.renew_limits(id) from bench_workspace');
      lines.splice(
        2,
        0,
        await pair(
          'the same while something of each is on its way',
          consume(WORKSPACES, 'null'),
          upsert(WORKSPACES),
          null,
        ),
      );
      return { bench: 'limits', lines };
    });
  } finally {
    await rm(folder, { recursive: true });
  }
}
