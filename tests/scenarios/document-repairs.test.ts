/** What keeps documents from being stuck, paid twice or half there, whatever is lost, held or deleted meanwhile. */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { loadConfig } from '../../src/config.ts';
import { requestDueRefreshes, requeueLapsedDocuments } from '../../src/db/document-repairs.ts';
import {
  admitDocuments,
  bookUnstored,
  type ClaimedDocument,
  claimDocument,
  completeDocument,
  type DocumentFacts,
  deleteOldChunks,
  storeEmbeddedChunks,
} from '../../src/db/documents.ts';
import { type EmbeddingServer, startEmbeddingServer } from '../peers/embedding-server.ts';
import { testDaemon } from '../support/daemon.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, type Platform } from '../support/platform.ts';
import { until } from '../support/runs.ts';

let db: TestDatabase;
let platform: Platform;
beforeAll(async () => {
  db = await testDatabase();
  platform = await makePlatform(db);
});
afterAll(() => db?.dispose());
beforeEach(() => db.query('delete from public.knowledge_sources'));

const text = (values: Record<string, unknown> = {}, owner = platform): Promise<string> =>
  insert(db, 'public.knowledge_sources', {
    workspace_id: owner.workspaceId,
    name: 'text',
    type: 'TEXT',
    content: 'A text of a few words.',
    ...values,
  });
const row = async (id: string): Promise<Record<string, unknown>> => {
  const [found] = await db.query<Record<string, unknown>>(
    'select * from public.knowledge_sources where id = $1',
    [id],
  );
  return found ?? {};
};
const file = (values: Record<string, unknown> = {}): Promise<string> =>
  insert(db, 'public.media_library', {
    user_id: platform.userId,
    workspace_id: platform.workspaceId,
    file_name: 'notes.txt',
    storage_path: `${platform.userId}/notes.txt`,
    ...values,
  });
const statusOf = async (media: string): Promise<unknown> => {
  const [found] = await db.query(
    'select processing_status, reason_code from public.media_library where id = $1',
    [media],
  );
  return found;
};

/** A source that is claimed by a worker which says nothing more. */
async function claimed(values: Record<string, unknown> = {}): Promise<ClaimedDocument> {
  const id = await text(values);
  await db.query('update public.knowledge_sources set job_id = gen_random_uuid() where id = $1', [id]);
  return claim(id);
}
async function claim(id: string): Promise<ClaimedDocument> {
  const { request } = await row(id);
  const document = await claimDocument(db, { sourceId: id, request: Number(request) }, 'a worker', 30);
  if (document === null) throw new Error('It was not to be claimed.');
  return document;
}

const FACTS: DocumentFacts = {
  content_sha256: 'x',
  title: null,
  page_count: null,
  character_count: 1,
  token_count: 1,
  embedding_model: 'm',
  embedding_dimensions: 2,
  etag: null,
  last_modified: null,
  reason_code: null,
  reason: null,
};
const chunk = (index: number) => ({
  chunk_index: index,
  content: `chunk ${index}`,
  content_sha256: 'x',
  embedding_model: 'm',
  embedding_key: '\\x00',
  token_count: 1,
  page: null,
  heading_path: [],
  char_start: 0,
  char_end: 1,
  metadata: {},
  embedding: Float32Array.of(1, 2),
});
const store = (document: ClaimedDocument, batch: string, index: number): Promise<boolean> =>
  storeEmbeddedChunks(db, document, {
    generation: document.generation + 1,
    batch,
    chunks: [chunk(index)],
    tokens: 10,
    costMicros: 5,
    provider: 'p',
    model: 'm',
    leaseSeconds: 30,
  });

test('a batch whose answer was lost is booked once when it is said again, the next one too', async () => {
  const document = await claimed();
  const [first, second] = [randomUUID(), randomUUID()];
  for (const batch of [first, first, second, second]) {
    expect(await store(document, batch, batch === first ? 0 : 1)).toBe(true);
  }
  expect(await row(document.id)).toMatchObject({ embedded_tokens: 20, cost_micros: 10 });
  const [events] = await db.query(
    `select sum(quantity)::integer as tokens, sum(cost_micros)::integer as cost from public.usage_events
      where dimensions ->> 'source_id' = $1 and metric = 'embedding_tokens'`,
    [document.id],
  );
  expect(events).toEqual({ tokens: 20, cost: 10 });
});

test('what was paid for a document that changed meanwhile is booked, once, and not what was stored', async () => {
  const document = await claimed();
  const paid = { tokens: 7, costMicros: 3, provider: 'p', model: 'm' };
  const [stored, lost] = [randomUUID(), randomUUID()];
  await store(document, stored, 0);
  await db.query(`update public.knowledge_sources set content = 'Another text.' where id = $1`, [
    document.id,
  ]);
  expect(await store(document, lost, 1)).toBe(false);
  for (const batch of [stored, lost, lost]) await bookUnstored(db, document, { batch, ...paid });
  expect(await row(document.id)).toMatchObject({ embedded_tokens: 17, cost_micros: 8 });
  await db.query('delete from public.knowledge_sources where id = $1', [document.id]);
  await bookUnstored(db, document, { batch: randomUUID(), ...paid });
  const [events] = await db.query(
    `select sum(quantity)::integer as tokens, sum(cost_micros)::integer as cost from public.usage_events
      where dimensions ->> 'source_id' = $1 and metric = 'embedding_tokens'`,
    [document.id],
  );
  expect(events).toEqual({ tokens: 24, cost: 11 });
});

test('a completion whose answer was lost is a completion when it is said again, and one generation', async () => {
  const document = await claimed();
  await store(document, randomUUID(), 0);
  for (let said = 0; said < 2; said++)
    expect(await completeDocument(db, document, document.generation + 1, 1, FACTS)).toBe(true);
  expect(await row(document.id)).toMatchObject({ generation: 2, stored_chunks: 1, chunk_count: 1 });
  const events = await db.query(
    `select 1 from public.usage_events where dimensions ->> 'source_id' = $1 and metric = 'stored_chunks'`,
    [document.id],
  );
  expect(events).toHaveLength(1);
});

test('claims that end with their worker spend no attempt; after five the document has failed, until it is asked for anew', async () => {
  const { id } = await claimed();
  for (let lost = 1; ; lost++) {
    await db.query(
      `update public.knowledge_sources set lease_expires_at = agentd.now() - interval '1 second' where id = $1`,
      [id],
    );
    expect(await requeueLapsedDocuments(db)).toBe(1);
    const now = await row(id);
    expect(now).toMatchObject({ attempts: 0, lost_claims: lost });
    if (now.processing_status === 'failed') {
      expect(now).toMatchObject({ reason_code: 'worker_crashed', lost_claims: 5 });
      break;
    }
    await db.query('update public.knowledge_sources set job_id = gen_random_uuid() where id = $1', [id]);
    await claim(id);
  }
  await db.query(`update public.knowledge_sources set processing_status = 'uploaded' where id = $1`, [id]);
  expect(await row(id)).toMatchObject({ lost_claims: 0, attempts: 0, processing_status: 'uploaded' });
});

test('one tenant’s due refreshes do not stand before another’s', async () => {
  const greedy = await makePlatform(db);
  const due = `agentd.now() - interval '1 day'`;
  await db.query(
    `insert into public.knowledge_sources (workspace_id, name, type, content, processing_status, next_refresh_at)
     select $1, 'n' || n, 'TEXT', 'x', 'completed', ${due} from generate_series(1, 300) n`,
    [greedy.workspaceId],
  );
  const id = await text();
  await db.query(
    `update public.knowledge_sources set processing_status = 'completed', next_refresh_at = agentd.now(), attempts = 1 where id = $1`,
    [id],
  );
  const look = await requestDueRefreshes(db, null);
  expect(look.last).toBeNull();
  expect(look.repaired).toBeLessThan(300);
  expect(await row(id)).toMatchObject({ processing_status: 'uploaded', request: 2 });
  // what is archived is not considered, however long it has been due
  await db.query(
    `update public.knowledge_sources set processing_status = 'archived', next_refresh_at = ${due} where workspace_id = $1`,
    [greedy.workspaceId],
  );
  expect(await requestDueRefreshes(db, null)).toEqual({ repaired: 0, last: null });
});

test('workspaces in which nothing is due yet hide no other', async () => {
  await db.query(
    `with owner as (
       insert into public.workspaces (name, slug, owner_user_id)
       select 'w' || n, 'retry-' || n, $1 from generate_series(1, 400) n returning id)
     insert into public.knowledge_sources (workspace_id, name, type, content, retry_at)
     select id, 'later', 'TEXT', 'x', agentd.now() + interval '1 hour' from owner`,
    [platform.userId],
  );
  // the look begins at a random workspace: it has to come round from wherever that is
  for (let look = 0; look < 5; look++) {
    const id = await text();
    expect(await admitDocuments(db, 4)).toBe(1);
    expect((await row(id)).job_id).not.toBeNull();
    await db.query('delete from public.knowledge_sources where id = $1', [id]);
  }
});

test('a file whose source is deleted on its way says so, and is read when it is asked for or is another', async () => {
  const media = await file();
  const sources = (): Promise<{ id: string; is_automatic: boolean }[]> =>
    db.query('select id, is_automatic from public.knowledge_sources where media_id = $1', [media]);
  await db.query('delete from public.knowledge_sources where media_id = $1', [media]);
  expect(await statusOf(media)).toEqual({ processing_status: 'failed', reason_code: 'source_deleted' });
  await db.query(`update public.media_library set processing_status = 'uploaded' where id = $1`, [media]);
  expect(await sources()).toHaveLength(1);
  await db.query(`update public.knowledge_sources set processing_status = 'completed' where media_id = $1`, [
    media,
  ]);
  await db.query('delete from public.knowledge_sources where media_id = $1', [media]);
  expect(await statusOf(media)).toMatchObject({ processing_status: 'completed' });
  await db.query(`update public.media_library set storage_path = storage_path || '2' where id = $1`, [media]);
  expect(await statusOf(media)).toMatchObject({ processing_status: 'uploaded' });
  expect(await sources()).toHaveLength(1);
});

test('an application’s own source takes the automatic one’s place, and only if it comes to be', async () => {
  const media = await file();
  const insertOwn = (id: string): Promise<unknown> =>
    db.query(
      `insert into public.knowledge_sources (id, workspace_id, media_id, name, type)
       values ($1, $2, $3, 'own', 'TEXT') on conflict (id) do nothing`,
      [id, platform.workspaceId, media],
    );
  const taken = await text();
  const sources = (): Promise<{ is_automatic: boolean }[]> =>
    db.query('select is_automatic from public.knowledge_sources where media_id = $1', [media]);
  await insertOwn(taken);
  expect(await sources()).toEqual([{ is_automatic: true }]);
  await insertOwn(randomUUID());
  expect(await sources()).toEqual([{ is_automatic: false }]);
  expect(await statusOf(media)).toMatchObject({ processing_status: 'uploaded', reason_code: null });
});

describe('a daemon', () => {
  let server: EmbeddingServer;
  beforeAll(async () => {
    server = await startEmbeddingServer();
  });
  afterAll(() => server?.close());
  const env = {
    AGENTD_EMBEDDING_MODEL: 'text-embedding-3-small',
    AGENTD_EMBEDDING_DIMENSIONS: '256',
    AGENTD_QUEUES: 'document-ingest=1',
  };
  const completed = (id: string): Promise<Record<string, unknown>> =>
    until(`source ${id} is complete`, async () => {
      const now = await row(id);
      return now.processing_status === 'completed' ? now : false;
    });
  const paragraphs = Array.from({ length: 200 }, (_, i) => `Paragraph ${i} has its own ${i * 7919} words.`);

  test('reads a source again whose chunks were deleted meanwhile, though its text is the same', async () => {
    await using _daemon = await testDaemon(db, server, { env });
    const id = await text({ content: paragraphs.join('\n\n') });
    const before = await completed(id);
    expect(before.chunk_count).toBeGreaterThan(3);
    await db.query('delete from public.knowledge_chunks where source_id = $1 and chunk_index % 2 = 0', [id]);
    await db.query(`update public.knowledge_sources set processing_status = 'uploaded' where id = $1`, [id]);
    const after = await completed(id);
    expect(after).toMatchObject({ chunk_count: before.chunk_count, generation: 3 });
  });

  test.skipIf(!onServer)(
    'server-only: gives up a document that somebody holds when its lease is over, and its slot is another’s',
    async () => {
      expect(loadConfig({ ...env, DATABASE_URL: db.url }).queues['document-ingest']?.concurrency).toBe(1);
      const other = await makePlatform(db);
      const answer = Promise.withResolvers<void>();
      server.respond((request) =>
        request.texts.some((t) => t.includes('held')) ? { delay: answer.promise } : {},
      );
      await using _daemon = await testDaemon(db, server, { env, leaseSeconds: 3 });
      const held = await text({ content: 'A text that is held.' });
      await until('it is being read', async () => (await row(held)).processing_status === 'processing');
      const tenant = await db.pool.connect();
      try {
        await tenant.query('begin');
        await tenant.query('select 1 from public.knowledge_sources where id = $1 for update', [held]);
        answer.resolve();
        const free = await text({ content: 'Another tenant’s.' }, other);
        await completed(free);
        expect(await row(held)).toMatchObject({ processing_status: 'processing' });
        // nor does the housekeeping wait for it
        expect(await deleteOldChunks(db, held, 10)).toBe(0);
      } finally {
        await tenant.query('rollback');
        tenant.release();
      }
      expect(await completed(held)).toMatchObject({ attempts: 0, lost_claims: 0 });
    },
    60_000,
  );
});
