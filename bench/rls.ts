/**
 * Row security: what a member's lists cost under it, beside the same queries as the tables' owner with the tenant's condition written by
 * hand. 500 workspaces, a million rows in each table, a member of three workspaces who asks for the newest 50.
 *
 * Both sides take turns on a connection of their own, one round trip a query, parsed and planned each time. The parameters come from
 * another workspace each time.
 */
import { createHash } from 'node:crypto';
import type pg from 'pg';
import { withDatabase } from './support/database.ts';
import type { Line, Result } from './support/result.ts';
import { median, ms } from './support/stats.ts';
import { fillTenants, WORKSPACES } from './support/tenants.ts';

const ROWS = Number(process.env.BENCH_ROWS ?? 1_000_000);
const SAMPLES = Number(process.env.BENCH_SAMPLES ?? 120);
const PER_WORKSPACE = Math.ceil(ROWS / WORKSPACES);
const GOAL = 2;

/** What a list is ordered by, and the parents by which it is asked for: column, kind of id, and how many a workspace has. */
type List = {
  readonly by: string;
  readonly parents: readonly (readonly [string, string, number, number?])[];
};
const LISTS: Readonly<Record<string, List>> = {
  chat_messages: { by: 'created_at', parents: [['channel_id', 'channel', 10]] },
  agent_messages: { by: 'created_at', parents: [['conversation_id', 'conversation', 40]] },
  knowledge_sources: { by: 'created_at', parents: [['agent_id', 'agent', 4]] },
  knowledge_chunks: { by: 'chunk_index', parents: [['source_id', 'source', 50, 20]] },
  task_runs: { by: 'created_at', parents: [['task_id', 'task', 4]] },
  task_step_runs: { by: 'created_at', parents: [['run_id', 'run', 300, 5]] },
  llm_calls: { by: 'created_at', parents: [['run_id', 'run', 300, 5]] },
  tool_calls: { by: 'created_at', parents: [['run_id', 'run', 300, 5]] },
  agent_logs: { by: '"timestamp"', parents: [['agent_id', 'agent', 4]] },
  chat_sessions: { by: 'created_at', parents: [['agent_id', 'agent', 4]] },
  leads: {
    by: 'created_at',
    parents: [
      ['agent_id', 'agent', 4],
      ['session_id', 'session', 1500],
    ],
  },
  usage_events: { by: 'occurred_at', parents: [] },
  media_library: { by: 'created_at', parents: [] },
};

type Ask = { readonly text: string; readonly values: readonly unknown[] };
type Kind = 'newest 50 of the workspace' | 'by parent, in the workspace' | 'by parent alone';
type Query = {
  readonly kind: Kind;
  readonly name: string;
  readonly member: (tenant: Tenant, i: number) => Ask;
  readonly byHand: (tenant: Tenant, i: number) => Ask;
};
type Tenant = { readonly n: number; readonly id: string; readonly owner: string };

function queries(): Query[] {
  return Object.entries(LISTS).flatMap(([table, { by, parents }]) => {
    const list = (conditions: readonly string[], values: (t: Tenant, i: number) => readonly unknown[]) => {
      const where = conditions.map((condition, i) => `${condition} = $${i + 1}`).join(' and ');
      const text = `select * from public.${table} where ${where} order by ${by} desc limit 50`;
      return (tenant: Tenant, i: number): Ask => ({ text, values: values(tenant, i) });
    };
    // The member's own files: that is what their policy shows him.
    const byHand = table === 'media_library' ? ['workspace_id', 'user_id'] : ['workspace_id'];
    const newest = {
      kind: 'newest 50 of the workspace' as const,
      name: table,
      member: list(['workspace_id'], (t) => [t.id]),
      byHand: list(byHand, (t) => [t.id, t.owner].slice(0, byHand.length)),
    };
    const children = parents.flatMap(([column, kind, count, step = 1]) => {
      const parent = (t: Tenant, i: number) =>
        uuid(`${kind}-${t.n}-${((i * 7) % Math.min(count, PER_WORKSPACE / step)) * step}`);
      const both = list([column, 'workspace_id'], (t, i) => [parent(t, i), t.id]);
      return [
        {
          kind: 'by parent, in the workspace' as const,
          name: `${table}.${column}`,
          member: both,
          byHand: both,
        },
        {
          kind: 'by parent alone' as const,
          name: `${table}.${column}`,
          member: list([column], (t, i) => [parent(t, i)]),
          byHand: both,
        },
      ];
    });
    return [newest, ...children];
  });
}

export async function bench(): Promise<Result> {
  return withDatabase('rls', { migrated: true }, async ({ pool }) => {
    const started = performance.now();
    await fillTenants(pool, ROWS);
    const filled = Math.round((performance.now() - started) / 1000);
    const { rows: tenants } = await pool.query<Tenant>('select n, id, owner from bench_tenants order by n');
    const [member, owner] = [await pool.connect(), await pool.connect()];
    try {
      await owner.query('set role agentd_owner');
      const measure = async (chosen: readonly Query[]): Promise<Compared[]> => {
        const lines: Compared[] = [];
        for (const query of chosen) {
          const measured = await compare(member, owner, tenants, query);
          if (process.env.BENCH_VERBOSE) {
            console.log(query.kind, query.name, JSON.stringify(measured));
            if (measured.ratio > GOAL) await explain(member, owner, tenants[7] as Tenant, query);
          }
          lines.push({ query, ...measured });
        }
        return lines;
      };
      const all = queries();
      const kinds = [...new Set(all.map((query) => query.kind))];
      const lines: Line[] = [];
      for (const kind of kinds)
        lines.push(summary(kind, await measure(all.filter((query) => query.kind === kind)), filled));
      // What is right for solid-state disks, and how many servers are set.
      for (const client of [member, owner]) await client.query('set random_page_cost = 1.1');
      const newest = await measure(all.filter((query) => query.kind === kinds[0]));
      lines.push(summary(`${kinds[0]}, random_page_cost 1.1`, newest, filled));
      return { bench: 'rls', lines };
    } finally {
      // Not for the next user of the pool.
      member.release(true);
      owner.release(true);
    }
  });
}

type Compared = Measured & { readonly query: Query };
type Measured = { readonly member: number; readonly owner: number; readonly ratio: number };

async function compare(
  member: pg.PoolClient,
  owner: pg.PoolClient,
  tenants: readonly Tenant[],
  query: Query,
): Promise<Measured> {
  const times: { member: number; owner: number }[] = [];
  for (let i = 0; i < SAMPLES + 10; i++) {
    const tenant = tenants[(i * 37) % WORKSPACES] as Tenant;
    await member.query(
      `reset role; select set_config('request.jwt.claims', '{"sub":"${tenant.owner}","role":"authenticated"}', false); set role authenticated`,
    );
    // The first to ask brings the pages: each side in turn.
    const first = i % 2 === 0;
    const a = first ? await time(member, query.member(tenant, i)) : null;
    const b = await time(owner, query.byHand(tenant, i));
    const c = a ?? (await time(member, query.member(tenant, i)));
    if (c.rows !== b.rows)
      throw new Error(`${query.name}: ${c.rows} rows under row security, ${b.rows} by hand.`);
    if (c.rows === 0) throw new Error(`${query.name}: no rows.`);
    if (i >= 10) times.push({ member: c.ms, owner: b.ms });
  }
  await member.query('reset role');
  const [under, byHand] = [median(times.map((t) => t.member)), median(times.map((t) => t.owner))];
  return { member: under, owner: byHand, ratio: under / byHand };
}

async function time(client: pg.PoolClient, { text, values }: Ask): Promise<{ ms: number; rows: number }> {
  const begin = performance.now();
  const { rowCount } = await client.query(text, [...values]);
  return { ms: performance.now() - begin, rows: rowCount ?? 0 };
}

async function explain(
  member: pg.PoolClient,
  owner: pg.PoolClient,
  tenant: Tenant,
  query: Query,
): Promise<void> {
  await member.query(
    `reset role; select set_config('request.jwt.claims', '{"sub":"${tenant.owner}","role":"authenticated"}', false); set role authenticated`,
  );
  for (const [client, ask] of [
    [member, query.member(tenant, 3)],
    [owner, query.byHand(tenant, 3)],
  ] as const) {
    const { rows } = await client.query<{ 'QUERY PLAN': string }>(`explain (analyze, buffers) ${ask.text}`, [
      ...ask.values,
    ]);
    console.log(rows.map((row) => `    ${row['QUERY PLAN']}`).join('\n'));
  }
  await member.query('reset role');
}

function summary(kind: string, lines: readonly Compared[], filled: number): Line {
  const worst = lines.reduce((a, b) => (b.ratio > a.ratio ? b : a));
  return {
    measured: `a member’s lists, ${kind}: ${lines.length} queries`,
    agentd: `p50 ${ms(median(lines.map((line) => line.member)))}`,
    beside: `as owner, condition by hand: p50 ${ms(median(lines.map((line) => line.owner)))}`,
    goal: `each ≤ ${GOAL} ×`,
    met: worst.ratio <= GOAL,
    note: `median ${median(lines.map((line) => line.ratio)).toFixed(2)} ×, worst ${worst.ratio.toFixed(2)} × (${worst.query.name}: ${ms(worst.member)} and ${ms(worst.owner)}); ${ROWS.toLocaleString('en-US')} rows a table, ${WORKSPACES} workspaces, medians of ${SAMPLES}; filled in ${filled} s`,
  };
}

/** As the filling makes it: an MD5 in the form of a uuid. */
function uuid(text: string): string {
  const hex = createHash('md5').update(text).digest('hex');
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}
