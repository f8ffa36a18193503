/**
 * Workspaces with passages whose vectors lie as those of texts do: in topics and their parts, close to a space of a hundred
 * dimensions within 1536. Made in the database, as sums of vectors from a few thousand.
 */
import type pg from 'pg';
import { seeded } from './stats.ts';

export const DIMENSIONS = 1536;
export const MODEL = 'bench-embedding';
const LATENT = 100;
const TOPICS = 300;
const PARTS = 5;
const NOISES = 1500;
const PASSAGES = 50;

/** A class of workspaces: how many there are, and how many passages each has. */
export type Class = { readonly name: string; readonly workspaces: number; readonly chunks: number };
export type Filled = { readonly of: Class; readonly workspace: string; readonly agent: string };

/** Fills the database and makes the model's index. Needs a superuser; returns the workspaces, each with an agent that has a tenth. */
export async function fillKnowledge(pool: pg.Pool, classes: readonly Class[]): Promise<Filled[]> {
  const client = await pool.connect();
  try {
    await client.query(
      `set session_replication_role = replica; set synchronous_commit = off; select setseed(0.42)`,
    );
    await fillParts(client);
    const filled: Filled[] = [];
    for (const one of classes) {
      for (let i = 0; i < one.workspaces; i++) filled.push(await fillWorkspace(client, one));
    }
    await client.query(`set session_replication_role = origin; set maintenance_work_mem = '1500MB'`);
    await client.query('vacuum analyze public.knowledge_chunks');
    await client.query('analyze public.knowledge_sources');
    const { rows } = await client.query<{ statement: string }>(
      'select agentd.vector_index_definition($1, $2, false) as statement',
      [MODEL, DIMENSIONS],
    );
    await client.query((rows[0] as { statement: string }).statement);
    await client.query('analyze public.knowledge_chunks');
    return filled;
  } finally {
    client.release(true);
  }
}

async function fillParts(client: pg.PoolClient): Promise<void> {
  const random = seeded(7);
  const gauss = (): number => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  const basis = Array.from({ length: LATENT }, () => Float32Array.from({ length: DIMENSIONS }, gauss));
  const vector = (scale: number): string => {
    const sum = new Float32Array(DIMENSIONS);
    for (const [i, axis] of basis.entries()) {
      const weight = (gauss() * scale) / Math.sqrt(1 + i / 10);
      for (let d = 0; d < DIMENSIONS; d++) sum[d] = (sum[d] as number) + weight * (axis[d] as number);
    }
    // a tenth of each is in no direction that others share
    return `[${Array.from(sum, (x) => (x + gauss() * scale * 0.3).toFixed(3)).join(',')}]`;
  };
  await client.query(
    `create unlogged table public.bench_part (kind text, n integer, v vector, primary key (kind, n))`,
  );
  for (const [kind, count, scale] of [
    ['topic', TOPICS, 1],
    ['part', TOPICS * PARTS, 0.7],
    ['noise', NOISES, 0.5],
    ['query', 500, 0.5],
  ] as const) {
    for (let from = 0; from < count; from += 250) {
      const some = Array.from({ length: Math.min(250, count - from) }, () => vector(scale));
      await client.query(
        `insert into public.bench_part select $1, $2::integer + x.n - 1, x.v::vector from unnest($3::text[]) with ordinality x (v, n)`,
        [kind, from, some],
      );
    }
  }
  await client.query('analyze public.bench_part');
}

async function fillWorkspace(client: pg.PoolClient, of: Class): Promise<Filled> {
  const { rows } = await client.query<{ workspace: string; agent: string }>(
    'select gen_random_uuid() as workspace, gen_random_uuid() as agent',
  );
  const { workspace, agent } = rows[0] as { workspace: string; agent: string };
  // a tenth of the sources are the agent's; the others are another's
  await client.query(
    `insert into public.knowledge_sources (workspace_id, agent_id, name, type, processing_status, chunk_count, embedding_model,
       embedding_dimensions)
     select $1, case when n % 10 = 0 then $2::uuid else $1 end, 'source ' || n, 'TEXT', 'completed', $3, $4, $5
       from generate_series(0, $6::integer - 1) n`,
    [workspace, agent, PASSAGES, MODEL, DIMENSIONS, of.chunks / PASSAGES],
  );
  await client.query(
    `insert into public.knowledge_chunks (workspace_id, source_id, generation, chunk_index, content, embedding_model, embedding)
     select k.workspace_id, k.id, 1, i.n, i.words, $2,
            l2_normalize(t.v + p.v + (select b.v from public.bench_part b where b.kind = 'noise' and b.n = i.noise)
                             + (select b.v from public.bench_part b where b.kind = 'noise' and b.n = i.other))
       from (select k.*, floor(random() * least($3::integer, ${TOPICS}))::integer * greatest(${TOPICS} / $3::integer, 1) as topic
               from public.knowledge_sources k where k.workspace_id = $1 offset 0) k
      cross join lateral (
        select n, floor(random() * ${NOISES})::integer as noise, floor(random() * ${NOISES})::integer as other,
               'topic' || k.topic || ' ' || repeat(md5(n::text || k.id) || ' and the ', 15) as words,
               floor(random() * ${PARTS})::integer as part
          from generate_series(1, ${PASSAGES}) n offset 0) i
       join public.bench_part t on t.kind = 'topic' and t.n = k.topic
       join public.bench_part p on p.kind = 'part' and p.n = k.topic * ${PARTS} + i.part`,
    [workspace, MODEL, Math.max(5, Math.round(of.chunks / 100))],
  );
  return { of, workspace, agent };
}

/** A question near what a workspace has: of one of its topics, otherwise unlike any passage. As text. */
export async function queryFor(pool: pg.Pool, of: Class, n: number): Promise<string> {
  const topics = Math.min(Math.max(5, Math.round(of.chunks / 100)), TOPICS);
  const topic = (n % topics) * Math.max(Math.floor(TOPICS / Math.max(5, Math.round(of.chunks / 100))), 1);
  const { rows } = await pool.query<{ v: string }>(
    `select l2_normalize(t.v + p.v + q.v + o.v)::text as v
       from public.bench_part t, public.bench_part p, public.bench_part q, public.bench_part o
      where t.kind = 'topic' and t.n = $1 and p.kind = 'part' and p.n = $1 * ${PARTS} + $2
        and q.kind = 'query' and q.n = $3 and o.kind = 'query' and o.n = $4`,
    [topic, n % PARTS, (n * 7) % 500, (n * 13 + 1) % 500],
  );
  return (rows[0] as { v: string }).v;
}
