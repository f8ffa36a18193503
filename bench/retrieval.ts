/**
 * Retrieval: passages of workspaces of three sizes in one table and one index, found by vector alone, with and without an agent's filter,
 * beside exact search. The worst class counts.
 */
import { readFile } from 'node:fs/promises';
import type pg from 'pg';
import { withDatabase } from './support/database.ts';
import { type Class, DIMENSIONS, type Filled, fillKnowledge, MODEL, queryFor } from './support/knowledge.ts';
import type { Line, Result } from './support/result.ts';
import { median, ms, percentile } from './support/stats.ts';

const QUERIES = Number(process.env.BENCH_SAMPLES ?? 100);
const K = 10;
export const CLASSES: readonly Class[] = [
  { name: '1 × 100,000', workspaces: 1, chunks: 100_000 },
  { name: '10 × 5,000', workspaces: 10, chunks: 5_000 },
  { name: '200 × 100', workspaces: 200, chunks: 100 },
];

const MATCH = {
  name: 'match',
  text: `select id from public.match_knowledge_chunks($1::vector, ${K}, null, $2::uuid, $3::uuid, null, $4)`,
};
const EXACT = `select c.id from public.knowledge_chunks c join public.knowledge_sources k on k.id = c.source_id
          where c.workspace_id = $2 and ($3::uuid is null or k.agent_id = $3) order by c.embedding <=> $1::vector limit ${K}`;

export type Measured = {
  readonly name: string;
  readonly times: readonly number[];
  /** Milliseconds of a processor that the server took for each: what the times would be on an idle machine. */
  readonly cpu: readonly number[];
  readonly recall: number;
  readonly short: number;
};

/** Asks workspaces of a class in turn: first for what is right, then with the clock. */
export async function measure(
  pool: pg.Pool,
  filled: readonly Filled[],
  of: Class,
  withAgent: boolean,
  count = QUERIES,
): Promise<Measured> {
  const some = filled.filter((one) => one.of.name === of.name);
  const client = await pool.connect();
  try {
    const asked: { readonly values: readonly (string | null)[]; readonly right: Set<string> }[] = [];
    await client.query('set enable_indexscan = off');
    for (let n = 0; n < count; n++) {
      const { workspace, agent } = some[n % some.length] as Filled;
      const values = [await queryFor(pool, of, n), workspace, withAgent ? agent : null];
      const exact = await client.query<{ id: string }>(EXACT, values);
      asked.push({ values, right: new Set(exact.rows.map((row) => row.id)) });
    }
    await client.query('reset enable_indexscan');
    const { rows } = await client.query<{ pid: number }>('select pg_backend_pid() as pid');
    const pid = (rows[0] as { pid: number }).pid;
    const times: number[] = [];
    const cpu: number[] = [];
    let hits = 0;
    let short = 0;
    for (const [n, { values, right }] of [...asked, ...asked].entries()) {
      const before = await onCpu(pid);
      const start = performance.now();
      const got = await client.query<{ id: string }>({ ...MATCH, values: [...values, MODEL] });
      const took = performance.now() - start;
      // the first round warms
      if (n < count) continue;
      times.push(took);
      cpu.push((await onCpu(pid)) - before);
      hits += got.rows.filter((row) => right.has(row.id)).length / right.size;
      if (got.rows.length < right.size) short++;
    }
    return { name: `${of.name}${withAgent ? ', one agent' : ''}`, times, cpu, recall: hits / count, short };
  } finally {
    client.release(true);
  }
}

/** Milliseconds that a process has had a processor; NaN where the server is on another machine. */
async function onCpu(pid: number): Promise<number> {
  const text = await readFile(`/proc/${pid}/schedstat`, 'utf8').catch(() => 'NaN');
  return Number(text.split(' ')[0]) / 1e6;
}

export function bench(): Promise<Result> {
  return withDatabase('retrieval', { migrated: true }, async ({ pool }) => {
    const filled = await fillKnowledge(pool, CLASSES);
    const all: Measured[] = [];
    for (const of of CLASSES) {
      for (const withAgent of [false, true]) {
        // exact search of the largest takes a second a question
        all.push(
          await measure(pool, filled, of, withAgent, of.chunks > 50_000 ? Math.min(QUERIES, 40) : QUERIES),
        );
      }
    }
    const worst = Math.max(...all.map((one) => percentile(one.times, 0.95)));
    const recall = Math.min(...all.map((one) => one.recall));
    const short = all.reduce((sum, one) => sum + one.short, 0);
    const lines: Line[] = [
      {
        measured: 'time of a search, p95, worst class',
        agentd: ms(worst),
        beside: null,
        goal: '≤ 20 ms',
        met: worst <= 20,
        note: `${DIMENSIONS} dimensions, ${K} of ${all.map((one) => `${one.name}: p50 ${ms(median(one.times))}, p95 ${ms(percentile(one.times, 0.95))}, recall ${one.recall.toFixed(3)}`).join('; ')}`,
      },
      {
        measured: 'processor time of the server for a search, p95, worst class',
        agentd: ms(Math.max(...all.map((one) => percentile(one.cpu, 0.95)))),
        beside: null,
        goal: '–',
        met: null,
        note: all
          .map((one) => `${one.name}: p50 ${ms(median(one.cpu))}, p95 ${ms(percentile(one.cpu, 0.95))}`)
          .join('; '),
      },
      {
        measured: 'recall@10, worst class',
        agentd: recall.toFixed(3),
        beside: 'exact search',
        goal: '≥ 0.95',
        met: recall >= 0.95,
      },
      {
        measured: 'searches with fewer than 10 passages',
        agentd: String(short),
        beside: null,
        goal: '0',
        met: short === 0,
      },
    ];
    return { bench: 'retrieval', lines };
  });
}
