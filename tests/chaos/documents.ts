/**
 * A second edition of a document, of two thousand passages, is embedded while its workers are killed one after the other; the first
 * edition is searched all the while.
 *
 * The daemon that has the document dies by SIGKILL when the next share of the passages is stored, with requests that the peer never
 * answers, answers that wait to be stored, and one that is being stored; another takes over.
 */
import { createHash } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import type { Database } from '../../src/db/database.ts';
import { requeueLapsedDocuments } from '../../src/db/document-repairs.ts';
import { admitDocuments } from '../../src/db/documents.ts';
import { wakeQueue } from '../../src/db/jobs.ts';
import { type EmbeddingRequest, startEmbeddingServer } from '../peers/embedding-server.ts';
import { type DaemonProcess, startDaemonProcess } from '../support/daemon.ts';
import { insert, makePlatform, type Platform } from '../support/platform.ts';
import { until } from '../support/runs.ts';
import { type Searched, searchAllTheWhile } from './document-search.ts';

/** So many numbers that a request holds 125 passages: twenty kills find requests that are over and others that are not. */
export const MODEL = { model: 'text-embedding-3-large', dimensions: 3072 } as const;
/** How long the peer takes for an answer, in milliseconds. */
const ANSWER_MS = 150;
/** Two and a half are a passage. */
const PARAGRAPHS = 5_100;
const CHUNKS = 2_000;
/** Of a request, with vectors of this size; and passages that are stored when the last worker dies. */
const A_REQUEST = 125;
const LAST_TARGET = 1_600;
const PATIENCE_MS = 240_000;

/** What was found at one kill. */
export type DocumentKill = {
  /** Passages that were stored. */
  readonly stored: number;
  /** Requests of the worker that were not answered, and those that were answered and not wholly stored. */
  readonly open: number;
  readonly answered: number;
  /** Passages in both. */
  readonly inFlight: number;
  /** Passages of answered ones that were not stored: what is paid again. */
  readonly lost: number;
};

export type DocumentKillReport = {
  readonly kills: readonly DocumentKill[];
  readonly chunks: number;
  /** Passages that the peer was paid for more than once, each time but the first counted. */
  readonly repeats: number;
  /** Passages whose repeats are not those that were in flight at a kill and not stored. */
  readonly unexplained: number;
  readonly searched: Searched;
  /** SHA-256 over the passages, offsets and vectors; of the killed document, and of one that nobody disturbed. */
  readonly hash: string;
  readonly undisturbed: string;
  readonly rejected: readonly { readonly message: string }[];
  readonly seconds: number;
};

/** An edition. The sentence about the price is what is searched for. */
const edition = (name: string, price: number, paragraphs: number): string =>
  [
    `The price of a zebrafinch is ${price} euros in the ${name} edition.`,
    ...Array.from({ length: paragraphs }, (_, i) => {
      const words = createHash('sha512').update(`${name}${i}`).digest('hex').match(/.{4}/g) ?? [];
      return `Paragraph ${i} of the ${name} edition says ${words.join(' ')}, and ends after a while with what it began with: ${words.slice(0, 6).join(' ')}.`;
    }),
  ].join('\n\n');

/** Runs it on a migrated database of its own. */
export async function killWhileEmbedding(
  db: Database,
  { kills, say }: { readonly kills: number; readonly say: (line: string) => void },
): Promise<DocumentKillReport> {
  const began = performance.now();
  const server = await startEmbeddingServer();
  const daemons: DaemonProcess[] = [];
  try {
    const start = async (): Promise<DaemonProcess> => {
      const daemon = await startDaemonProcess(db, server, {
        AGENTD_EMBEDDING_MODEL: MODEL.model,
        AGENTD_EMBEDDING_DIMENSIONS: String(MODEL.dimensions),
      });
      daemons.push(daemon);
      return daemon;
    };
    const platform = await makePlatform(db);
    await start();
    const id = await addText(db, platform, edition('first', 10, 12));
    await untilComplete(db, id, 1);

    const first = server.requests.length;
    const paid = new Map(server.paid.times);
    const searching = searchAllTheWhile(db, platform, server.requests[0]?.texts[0] ?? '');
    const content = edition('second', 20, PARAGRAPHS);
    const lostTimes = new Map<string, number>();
    const found: DocumentKill[] = [];
    const never = new Promise<void>(() => {});
    for (let kill = 0; kill < kills; kill++) {
      const from = server.requests.length;
      const before = found.at(-1)?.stored ?? 0;
      // each has stored something before it dies, and no run of luck completes the edition
      const target = Math.max(Math.ceil(((kill + 1) * LAST_TARGET) / kills), before + 1);
      let left = target - before + (kill % 3) * A_REQUEST;
      const answered: EmbeddingRequest[] = [];
      server.respond((request) => {
        if (left <= 0) return { delay: never };
        left -= request.texts.length;
        answered.push(request);
        return { delay: pause(ANSWER_MS) };
      });
      const paidBefore = server.paid.requests;
      await start();
      if (kill > 0) await takeOver(db, id);
      else await db.query('update public.knowledge_sources set content = $2 where id = $1', [id, content]);
      const worker = await until(
        `${target} passages are stored`,
        async () => ((await stored(db, id)).length >= target ? holder(db, id, daemons) : false),
        PATIENCE_MS,
      );
      await worker.kill();
      const open = server.requests.length - from - (server.paid.requests - paidBefore);
      // what is on its way to be answered is paid for, whether anybody reads it or not; a statement that was sent goes on
      await until('the peer is done', () => server.paid.requests - paidBefore === answered.length);
      await until('its sessions are gone', async () => !(await hasSessions(db, worker)), PATIENCE_MS);
      const one = countLost(await stored(db, id), server.requests.slice(from), answered, open, lostTimes);
      found.push(one);
      say(
        `kill ${kill + 1}: ${one.stored} of ${CHUNKS} passages stored; ${one.inFlight} in flight in ${one.open} requests and ${one.answered} answers, ${one.lost} of the latter not stored`,
      );
    }
    server.respond(() => ({ delay: pause(ANSWER_MS) }));
    await start();
    await takeOver(db, id);
    const chunks = await untilComplete(db, id, CHUNKS);
    const searched = await searching.stop();

    const repeated = [...server.paid.times].map(
      ([text, times]) => [text, times - (paid.get(text) ?? 0) - 1] as const,
    );
    const later = new Set(server.requests.slice(first).flatMap((request) => request.texts));
    const own = repeated.filter(([text]) => later.has(text));
    const hash = await hashOf(db, id);
    say(`${chunks} passages are complete; now those that nobody disturbs`);
    server.respond(() => ({}));
    const undisturbed = await addText(db, await makePlatform(db), content);
    await untilComplete(db, undisturbed, CHUNKS);
    return {
      kills: found,
      chunks,
      repeats: own.reduce((sum, [, times]) => sum + times, 0),
      unexplained: own.filter(([text, times]) => times !== (lostTimes.get(text) ?? 0)).length,
      searched,
      hash,
      undisturbed: await hashOf(db, undisturbed),
      rejected: server.rejected,
      seconds: (performance.now() - began) / 1000,
    };
  } finally {
    await Promise.all(daemons.map((daemon) => daemon.kill()));
    await server.close();
  }
}

const addText = (db: Database, owner: Platform, content: string): Promise<string> =>
  insert(db, 'public.knowledge_sources', {
    workspace_id: owner.workspaceId,
    name: 'prices',
    type: 'TEXT',
    content,
  });

/** Resolves with the number of passages. */
function untilComplete(db: Database, id: string, atLeast: number): Promise<number> {
  return until(
    `${id} is complete`,
    async () => {
      const [row] = await db.query<{ processing_status: string; chunk_count: number; reason: string | null }>(
        'select processing_status, chunk_count, reason from public.knowledge_sources where id = $1',
        [id],
      );
      if (row?.processing_status === 'failed') throw new Error(`It has failed: ${row.reason}`);
      return row?.processing_status === 'completed' && row.chunk_count >= atLeast ? row.chunk_count : false;
    },
    PATIENCE_MS,
  );
}

/** Keys of the passages of the edition that is being written. */
async function stored(db: Database, id: string): Promise<string[]> {
  const rows = await db.query<{ key: string }>(
    `select encode(c.embedding_key, 'hex') as key from public.knowledge_sources k
       join public.knowledge_chunks c on c.source_id = k.id and c.generation > k.generation and c.embedding is not null
      where k.id = $1`,
    [id],
  );
  return rows.map((row) => row.key);
}

const keyOf = (text: string): string =>
  createHash('sha256')
    .update(JSON.stringify([MODEL.model, MODEL.dimensions, text]))
    .digest('hex');

/** The daemon that works on the document; false: nobody does now. */
async function holder(
  db: Database,
  id: string,
  daemons: readonly DaemonProcess[],
): Promise<DaemonProcess | false> {
  const [row] = await db.query<{ pid: number }>(
    `select w.pid from public.knowledge_sources k join agentd.workers w on w.id = k.worker_id
      where k.id = $1 and k.processing_status = 'processing'`,
    [id],
  );
  return daemons.find(({ child }) => child.pid === row?.pid && child.signalCode === null) ?? false;
}

async function hasSessions(db: Database, { child }: DaemonProcess): Promise<boolean> {
  const rows = await db.query(
    `select 1 from pg_stat_activity a join agentd.workers w on strpos(a.application_name, w.id) > 0
      where w.pid = $1 and a.datname = current_database()`,
    [child.pid],
  );
  return rows.length > 0;
}

function countLost(
  keys: readonly string[],
  requests: readonly EmbeddingRequest[],
  answered: readonly EmbeddingRequest[],
  open: number,
  lostTimes: Map<string, number>,
): DocumentKill {
  const there = new Set(keys);
  const paid = new Set(answered);
  let [unfinished, inFlight, again] = [0, 0, 0];
  for (const request of requests) {
    const missing = request.texts.filter((text) => !there.has(keyOf(text)));
    if (missing.length === 0) continue;
    unfinished++;
    inFlight += request.texts.length;
    if (!paid.has(request)) continue;
    for (const text of missing) lostTimes.set(text, (lostTimes.get(text) ?? 0) + 1);
    again += missing.length;
  }
  return { stored: there.size, open, answered: unfinished - open, inFlight, lost: again };
}

/** Time passes until the dead worker's lease has lapsed, and the reconciler of the other daemon looks. */
async function takeOver(db: Database, id: string): Promise<void> {
  await db.query(
    `update public.knowledge_sources set lease_expires_at = agentd.now() - interval '1 second'
      where id = $1 and processing_status = 'processing'`,
    [id],
  );
  await requeueLapsedDocuments(db);
  await admitDocuments(db, 10);
  await wakeQueue(db, 'document-ingest');
}

async function hashOf(db: Database, id: string): Promise<string> {
  const rows = await db.query(
    `select c.chunk_index, c.content, c.content_sha256, c.char_start, c.char_end, c.token_count, c.page, c.heading_path,
            c.embedding_model, encode(c.embedding_key, 'hex') as key, md5(c.embedding::text) as embedding, c.metadata
       from public.knowledge_sources k join public.knowledge_chunks c on c.source_id = k.id
      where k.id = $1 order by c.generation, c.chunk_index`,
    [id],
  );
  return createHash('sha256').update(JSON.stringify(rows)).digest('hex');
}
