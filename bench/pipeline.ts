/**
 * The whole pipeline: fifty documents (PDF, DOCX, HTML, Markdown; see support/corpus.ts) from files to searchable chunks, beside LangChain.js; then
 * fifty small pages, of which what is done for each document once, and not its length, makes the time.
 *
 * agentd: the files lie in a storage folder, and their rows are inserted into media_library of ten workspaces in turns, for no workspace may
 * have more than two documents under way; the time is from the insert to the last document's completion. LangChain: one process, no
 * journal, from the first file to the last insert. Both are one process on the same machine, with the same embedding server (50 ms a request),
 * chunks of 512 tokens with 64 of overlap, 1536 dimensions, as many texts a request, eight requests in flight, and the same PostgreSQL
 * server; both have read a few documents before. They take turns.
 *
 * So few vectors have no HNSW index in agentd's database, which makes one when a model has 5,000 passages, and none in LangChain's, whose
 * documentation shows it as a further step. Another line has it: inserting into it is more work than all the rest.
 */
import { copyFile, mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { extname, join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { fileURLToPath, pathToFileURL } from 'node:url';
import type pg from 'pg';
import type { LangChainAsked, LangChainEnded } from './peers/langchain.ts';
import { benchPath, Child, startDaemonChild } from './support/child.ts';
import { corpus, smallPages } from './support/corpus.ts';
import { type BenchDatabase, withDatabase } from './support/database.ts';
import type { EmbeddingsAsked } from './support/embeddings-child.ts';
import type { Line, Result } from './support/result.ts';
import { median } from './support/stats.ts';

const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 2);
const WORKSPACES = 10;
const ANSWER_MS = 50;
const DIMENSIONS = 1536;
/** Texts that one of agentd's requests holds at most: its bound is the size of the answer. */
const BATCH = 249;
const LONGEST_MS = 600_000;

const WARM_UP = ['handbook.pdf', 'handbook-pandoc.docx', 'handbook.html', 'handbook.md'].map((name) =>
  fileURLToPath(new URL(`../tests/fixtures/documents/${name}`, import.meta.url)),
);

/** Seconds from the first to the last, processor time of the process among them, and what was stored. */
type Side = 'ours' | 'parallel' | 'serial' | 'indexed';
type Reading = { seconds: number; cpuSeconds: number; chunks: number; stages: string };

export async function bench(): Promise<Result> {
  const server = new Child([benchPath('support/embeddings-child.ts'), String(ANSWER_MS)], {});
  try {
    const { port } = await server.json<{ port: number }>();
    const url = `http://127.0.0.1:${port}/v1`;
    const read = async (work: (url: string) => Promise<Reading>): Promise<Reading> => {
      server.send('forget');
      await server.json<EmbeddingsAsked>();
      const reading = await work(url);
      server.send('say');
      const { mostTexts, mostAtOnce } = await server.json<EmbeddingsAsked>();
      if (mostTexts > BATCH || mostAtOnce > 8)
        throw new Error(`Requests of ${mostTexts} texts, ${mostAtOnce} at once, are not what is compared.`);
      return reading;
    };
    const measure = async (files: readonly string[]): Promise<Record<Side, Reading[]>> => {
      const readings: Record<Side, Reading[]> = { ours: [], parallel: [], serial: [], indexed: [] };
      const chain = (atOnce: number, index: boolean) =>
        read((at) => langChain({ files, atOnce, index, url: at }));
      for (let round = 0; round < ROUNDS; round++) {
        readings.ours.push(await read((at) => agentd(files, at)));
        readings.parallel.push(await chain(files.length, false));
        readings.serial.push(await chain(1, false));
        readings.indexed.push(await chain(files.length, true));
      }
      return readings;
    };
    const mixed = await corpus();
    const small = await smallPages();
    return {
      bench: 'pipeline',
      lines: [
        ...linesOf(`whole pipeline, ${mixed.length} documents`, mixed.length, await measure(mixed), [2, 5]),
        ...linesOf(`the same, ${small.length} small pages`, small.length, await measure(small), [null, null]),
      ],
    };
  } finally {
    await server.stop();
  }
}

/** @param goals beside LangChain in parallel, and one document after the other */
function linesOf(
  title: string,
  count: number,
  { ours, parallel, serial, indexed }: Record<Side, Reading[]>,
  goals: readonly [number | null, number | null],
): Line[] {
  const rate = (some: readonly Reading[]): number => count / median(some.map(({ seconds }) => seconds));
  const cpu = (some: readonly Reading[]): string =>
    `${median(some.map(({ cpuSeconds }) => cpuSeconds)).toFixed(1)} s`;
  const own = rate(ours);
  const line = (
    measured: string,
    name: string,
    peer: readonly Reading[],
    goal: number | null,
    note: string,
  ): Line => ({
    measured,
    agentd: `${own.toFixed(2)} documents/s`,
    beside: `${name}: ${rate(peer).toFixed(2)} documents/s`,
    goal: goal === null ? '–' : `≥ ${goal} ×`,
    met: goal === null ? null : own >= goal * rate(peer),
    note: `${(own / rate(peer)).toFixed(2)} ×; ${note}`,
  });
  return [
    line(
      `${title}, embedding server of ${ANSWER_MS} ms`,
      'LangChain.js, all documents at once',
      parallel,
      goals[0],
      `${ours[0]?.chunks} and ${parallel[0]?.chunks} chunks; median of ${ROUNDS}; its own processor time ${cpu(ours)} and ${cpu(parallel)}; agentd’s documents in ${WORKSPACES} workspaces`,
    ),
    line(
      'the same',
      'LangChain.js, one document after the other, as its documentation shows it',
      serial,
      goals[1],
      `stages of agentd’s documents, all together: ${ours[0]?.stages}`,
    ),
    line(
      'the same',
      'LangChain.js, all documents at once, with an HNSW index from the beginning',
      indexed,
      null,
      'agentd makes its index when a model has 5,000 passages, of all of them together',
    ),
  ];
}

async function langChain(
  asked: Pick<LangChainAsked, 'files' | 'atOnce' | 'index' | 'url'>,
): Promise<Reading> {
  return withDatabase('pipeline_langchain', {}, async ({ url, pool }) => {
    await pool.query('create extension vector; create extension if not exists "uuid-ossp"');
    const all: LangChainAsked = { ...asked, warmUp: WARM_UP, batchSize: BATCH, dimensions: DIMENSIONS };
    const child = new Child([benchPath('peers/langchain.ts'), JSON.stringify(all)], { DATABASE_URL: url });
    const ended = await child.json<LangChainEnded>();
    if (!ended.found) throw new Error('A stored chunk of LangChain is not found by its own text.');
    return { ...ended, stages: '' };
  });
}

async function agentd(files: readonly string[], embeddingUrl: string): Promise<Reading> {
  return withDatabase('pipeline', { migrated: true }, async (db) => {
    const folder = await mkdtemp(join(tmpdir(), 'agentd-bench-storage-'));
    const daemon = await startDaemonChild(db.url, {
      OPENAI_BASE_URL: embeddingUrl,
      AGENTD_STORAGE_URL: pathToFileURL(folder).href,
      AGENTD_EMBEDDING_DIMENSIONS: String(DIMENSIONS),
      ...(process.env.BENCH_CONCURRENCY
        ? { AGENTD_QUEUES: `document-ingest=${process.env.BENCH_CONCURRENCY}` }
        : {}),
    }).catch(async (error: unknown) => {
      await rm(folder, { recursive: true });
      throw error;
    });
    try {
      await db.pool.query(
        `insert into auth.users (email) select 'user-' || n || '@bench.test' from generate_series(1, $1::integer) n`,
        [WORKSPACES],
      );
      await upload(db, folder, WARM_UP, 'warm up');
      const before = await daemon.cpuSeconds();
      const { seconds, since } = await upload(db, folder, files, 'bench');
      const cpuSeconds = (await daemon.cpuSeconds()) - before;
      await assertFound(db.pool, since);
      return { seconds, cpuSeconds, ...(await stored(db.pool, since)) };
    } finally {
      await daemon.stop();
      await rm(folder, { recursive: true });
    }
  });
}

/** Puts files into storage, inserts their rows, and waits until all of them are complete. */
async function upload(
  { pool }: BenchDatabase,
  folder: string,
  files: readonly string[],
  label: string,
): Promise<{ seconds: number; since: Date }> {
  const { rows: owners } = await pool.query<{ id: string; workspace: string }>(
    'select owner_user_id as id, id as workspace from public.workspaces where is_personal order by owner_user_id',
  );
  const rows = await Promise.all(
    files.map(async (file, i) => {
      const owner = owners[i % owners.length] as { id: string; workspace: string };
      const path = `${owner.id}/${label} ${i}${extname(file)}`;
      await mkdir(join(folder, 'media-library', owner.id), { recursive: true });
      await copyFile(file, join(folder, 'media-library', path));
      return {
        user_id: owner.id,
        workspace_id: owner.workspace,
        file_name: `${label} ${i}${extname(file)}`,
        path,
      };
    }),
  );
  const { rows: times } = await pool.query<{ now: Date }>('select clock_timestamp() as now');
  const since = (times[0] as { now: Date }).now;
  const began = performance.now();
  await pool.query(
    `insert into public.media_library (user_id, workspace_id, file_name, storage_path)
     select x.user_id, x.workspace_id, x.file_name, x.path
       from jsonb_to_recordset($1::jsonb) x (user_id uuid, workspace_id uuid, file_name text, path text)`,
    [JSON.stringify(rows)],
  );
  while (performance.now() - began < LONGEST_MS) {
    await wait(50);
    const { rows: states } = await pool.query<{ open: number; bad: string | null }>(
      `select count(*) filter (where processing_status in ('uploaded', 'processing'))::integer as open,
              min(name || ': ' || reason) filter (where processing_status = 'failed') as bad
         from public.knowledge_sources where created_at >= $1`,
      [since],
    );
    if (states[0]?.bad) throw new Error(states[0].bad);
    if (states[0]?.open === 0) return { seconds: (performance.now() - began) / 1000, since };
  }
  throw new Error('The documents were not complete in ten minutes.');
}

/** Chunks, each with its vector, and how long the stages took in sum. */
async function stored(pool: pg.Pool, since: Date): Promise<Pick<Reading, 'chunks' | 'stages'>> {
  const { rows } = await pool.query<{ documents: number; said: number; chunks: number }>(
    `select count(*)::integer as documents, sum(k.chunk_count)::integer as said,
            (select count(*)::integer from public.knowledge_chunks c join public.knowledge_sources s on s.id = c.source_id
              where s.created_at >= $1 and c.generation = s.generation and c.embedding is not null) as chunks
       from public.knowledge_sources k where k.created_at >= $1 and k.processing_status = 'completed'`,
    [since],
  );
  const { documents = 0, said = 0, chunks = 0 } = rows[0] ?? {};
  if (documents === 0 || said !== chunks) throw new Error(`${chunks} of ${said} chunks have a vector.`);
  const { rows: stages } = await pool.query<{ step: string; seconds: number }>(
    `select processing_step as step, sum(duration_ms)::double precision / 1000 as seconds
       from public.media_processing_logs where created_at >= $1 and duration_ms is not null
      group by 1 order by 2 desc`,
    [since],
  );
  return { chunks, stages: stages.map(({ step, seconds }) => `${step} ${seconds.toFixed(1)} s`).join(', ') };
}

/** A chunk is found by its own vector, and nothing of another workspace with it. */
async function assertFound(pool: pg.Pool, since: Date): Promise<void> {
  const { rows } = await pool.query<{ id: string; found: string; strangers: number }>(
    `select c.id, (array_agg(m.id order by m.similarity desc))[1] as found,
            count(*) filter (where o.workspace_id <> c.workspace_id)::integer as strangers
       from (select c.* from public.knowledge_chunks c join public.knowledge_sources k on k.id = c.source_id
              where k.created_at >= $1 order by c.id limit 1) c
      cross join lateral public.match_knowledge_chunks(query_embedding => c.embedding, match_count => 5,
              workspace_id => c.workspace_id, embedding_model => c.embedding_model) m
       join public.knowledge_chunks o on o.id = m.id
      group by c.id`,
    [since],
  );
  if (rows[0]?.found !== rows[0]?.id || rows[0]?.strangers !== 0)
    throw new Error(`The search does not answer what is stored: ${JSON.stringify(rows)}`);
}
