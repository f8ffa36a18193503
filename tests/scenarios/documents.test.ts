/** From a row to searchable chunks: the whole way, with a real storage folder, a strict embedding server and a real daemon. */
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import { isDeepStrictEqual } from 'node:util';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { searchChunks } from '../../src/db/knowledge.ts';
import { chunkDocument } from '../../src/pipelines/ingest/chunk.ts';
import { cutAfter, type EarlierCut } from '../../src/pipelines/ingest/segments.ts';
import { type EmbeddingServer, startEmbeddingServer } from '../peers/embedding-server.ts';
import { type TestDaemon, testDaemon } from '../support/daemon.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, type Platform } from '../support/platform.ts';
import { until } from '../support/runs.ts';
import { asUser } from '../support/sessions.ts';

type Source = {
  processing_status: string;
  reason_code: string | null;
  reason: string | null;
  chunk_count: number;
  generation: number;
  attempts: number;
  cost_micros: number;
  embedded_tokens: number;
  retry_at: Date | null;
  page_count: number | null;
};

let db: TestDatabase;
let server: EmbeddingServer;
let platform: Platform;
let folder: string;
let daemon: TestDaemon;

const fixture = (name: string): Promise<Buffer> =>
  readFile(new URL(`../fixtures/documents/${name}`, import.meta.url));
const env = (): Record<string, string> => ({
  AGENTD_STORAGE_URL: pathToFileURL(folder).href,
  AGENTD_EMBEDDING_MODEL: 'text-embedding-3-small',
  AGENTD_EMBEDDING_DIMENSIONS: '256',
});

beforeAll(async () => {
  db = await testDatabase();
  server = await startEmbeddingServer();
  platform = await makePlatform(db);
  folder = await mkdtemp(join(tmpdir(), 'agentd-storage-'));
});
afterAll(async () => {
  await server?.close();
  await db?.dispose();
  await rm(folder, { recursive: true, force: true });
});

const source = async (id: string): Promise<Source> => {
  const [row] = await db.query<Source>('select * from public.knowledge_sources where id = $1', [id]);
  if (!row) throw new Error(`There is no source ${id}.`);
  return row;
};
const settled = (id: string): Promise<Source> =>
  until(`source ${id} is settled`, async () => {
    const row = await source(id);
    return ['completed', 'failed', 'archived'].includes(row.processing_status) ? row : false;
  });
const text = (name: string, content: string, owner: Platform = platform): Promise<string> =>
  insert(db, 'public.knowledge_sources', { workspace_id: owner.workspaceId, name, type: 'TEXT', content });

async function upload(
  name: string,
  bytes: Uint8Array,
  owner: Platform = platform,
): Promise<{ media: string; source: string }> {
  const path = `${owner.userId}/${name}`;
  await mkdir(join(folder, 'media-library', owner.userId), { recursive: true });
  await writeFile(join(folder, 'media-library', path), bytes);
  const media = await insert(db, 'public.media_library', {
    user_id: owner.userId,
    workspace_id: owner.workspaceId,
    file_name: name,
    storage_path: path,
  });
  const [row] = await db.query<{ id: string }>(
    'select id from public.knowledge_sources where media_id = $1',
    [media],
  );
  return { media, source: row?.id ?? '' };
}

/** A text of so many paragraphs, each different from the others. */
const paragraphs = (count: number, salt = ''): string =>
  Array.from({ length: count }, (_, i) => {
    const words = createHash('sha256').update(`${salt}${i}`).digest('hex').match(/.{4}/g) ?? [];
    return `Paragraph ${i} says ${words.join(' ')} and then, as every paragraph does, ends after a while with what it began with: ${words.slice(0, 6).join(' ')}.`;
  }).join('\n\n');

describe('a daemon', () => {
  beforeAll(async () => {
    daemon = await testDaemon(db, server, { env: env() });
  });
  afterAll(() => daemon?.stop());
  beforeEach(() => server.respond(() => ({})));
  afterEach(() => expect(server.rejected).toEqual([]));

  test('makes a text searchable, with what it cost in its row and every stage in the log', async () => {
    const id = await text(
      'terms',
      '# Refunds\n\nA refund takes five working days.\n\n# Shipping\n\nWe ship on Mondays.',
    );
    const row = await settled(id);
    expect(row).toMatchObject({ processing_status: 'completed', reason_code: null, attempts: 0 });
    expect(row.chunk_count).toBeGreaterThan(0);
    expect(row.embedded_tokens).toBeGreaterThan(0);
    expect(row.cost_micros).toBeGreaterThanOrEqual(0);
    const found = await searchChunks(db, {
      workspaceId: platform.workspaceId,
      agentId: platform.agentId,
      query: 'refund days',
      limit: 3,
    });
    expect(found[0]?.content).toContain('five working days');
    // the stages are written down once the document is searchable
    const stages = await until('the stages are logged', async () => {
      const logged = await db.query<{ processing_step: string; status: string }>(
        'select processing_step, status from public.media_processing_logs where source_id = $1',
        [id],
      );
      return logged.length > 0 && logged;
    });
    expect(stages.map((s) => `${s.processing_step} ${s.status}`).sort()).toEqual([
      'chunking completed',
      'embedding completed',
      'indexing completed',
      'text_extraction completed',
      'upload completed',
    ]);
    const usage = await db.query<{ metric: string; quantity: number }>(
      `select metric, sum(quantity)::integer as quantity from public.usage_events
        where dimensions ->> 'source_id' = $1 group by metric order by metric`,
      [id],
    );
    expect(usage).toEqual([
      { metric: 'embedding_tokens', quantity: row.embedded_tokens },
      { metric: 'stored_chunks', quantity: row.chunk_count },
    ]);
  });

  test.each(['handbook.pdf', 'handbook-libreoffice.docx', 'handbook.epub', 'handbook.html', 'japanese.pdf'])(
    'reads an uploaded %s through its media row alone',
    async (name) => {
      const { media, source: id } = await upload(name, await fixture(name));
      const row = await settled(id);
      expect(row).toMatchObject({ processing_status: 'completed', reason_code: null });
      const [file] = await db.query(
        'select processing_status, chunk_count, reason from public.media_library where id = $1',
        [media],
      );
      expect(file).toEqual({ processing_status: 'completed', chunk_count: row.chunk_count, reason: null });
      if (name.endsWith('.pdf')) {
        expect(row.page_count).toBeGreaterThan(0);
        const pages = await db.query<{ page: number | null }>(
          'select distinct page from public.knowledge_chunks where source_id = $1',
          [id],
        );
        expect(pages.every((p) => p.page !== null)).toBe(true);
      }
    },
  );

  test('says why a file cannot be read, and goes on with the others', async () => {
    const bad = await Promise.all([
      upload('scan.pdf', await fixture('scan.pdf')),
      upload('encrypted.pdf', await fixture('encrypted.pdf')),
      upload('garbage.pdf', Buffer.from('%PDF-1.7 nothing of the kind')),
      upload('empty.txt', Buffer.alloc(0)),
    ]);
    const missing = await insert(db, 'public.media_library', {
      user_id: platform.userId,
      workspace_id: platform.workspaceId,
      file_name: 'gone.pdf',
      storage_path: `${platform.userId}/gone.pdf`,
    });
    const good = await text('good', paragraphs(3, 'good'));
    const codes = await Promise.all(bad.map(async (b) => (await settled(b.source)).reason_code));
    expect(codes).toEqual(['needs_ocr', 'password', 'corrupt', 'empty']);
    expect(await settled(good)).toMatchObject({ processing_status: 'completed' });
    const gone = await until('the missing file is found missing', async () => {
      const [row] = await db.query<{ reason_code: string; reason: string }>(
        'select reason_code, reason from public.media_library where id = $1 and reason_code is not null',
        [missing],
      );
      return row ?? false;
    });
    expect(gone.reason_code).toBe('not_found');
    expect(gone.reason.length).toBeGreaterThan(20);
  });

  test('pays nothing for what has not changed, and little for what has', async () => {
    const before = paragraphs(400, 'manual');
    const id = await text('manual', before);
    const first = await settled(id);
    expect(first.chunk_count).toBeGreaterThan(30);
    const items = server.paid.items;

    await db.query(`update public.knowledge_sources set processing_status = 'uploaded' where id = $1`, [id]);
    const again = await settled(id);
    expect(again).toMatchObject({ processing_status: 'completed', generation: first.generation });
    expect(server.paid.items).toBe(items);

    const changed = before.replace(
      'Paragraph 20 says',
      'Paragraph 20, which is new in this edition, now says',
    );
    await db.query('update public.knowledge_sources set content = $2 where id = $1', [id, changed]);
    const after = await until('the new edition is searched', async () => {
      const row = await source(id);
      return row.processing_status === 'completed' && row.generation > first.generation ? row : false;
    });
    expect(server.paid.items - items).toBeLessThanOrEqual(3);
    await until('the old edition is gone', async () => {
      const old = await db.query(
        'select 1 from public.knowledge_chunks where source_id = $1 and generation <> $2',
        [id, after.generation],
      );
      return old.length === 0;
    });
    const twin = await text('the same again', changed);
    await settled(twin);
    expect(server.paid.items - items).toBeLessThanOrEqual(3);
  });

  test('a changed text is cut where it was cut before, whatever applications wrote into its passages', async () => {
    const content = paragraphs(300, 'cuts');
    const changed = content.replace('Paragraph 20 says', 'Paragraph 20 now says');
    const limits = { maxTokens: 512, overlapTokens: 64 };
    const endsOf = (whole: string, earlierCuts: readonly EarlierCut[] = []): number[] =>
      chunkDocument(
        { format: 'text', title: null, text: whole, markup: 'plain', pageStarts: null },
        { ...limits, earlierCuts },
      ).map(({ end }) => end);
    const id = await text('cuts', content);
    await settled(id);
    const ends = async (): Promise<number[]> =>
      (
        await db.query<{ end: number }>(
          `select c.char_end as "end" from public.knowledge_chunks c join public.knowledge_sources k on k.id = c.source_id
            where k.id = $1 and c.generation = k.generation order by c.chunk_index`,
          [id],
        )
      ).map(({ end }) => end);
    expect(await ends()).toEqual(endsOf(content));
    const edit = async (next: string): Promise<void> => {
      const { generation } = await source(id);
      await db.query('update public.knowledge_sources set content = $2 where id = $1', [id, next]);
      await until('the new edition is searched', async () => {
        const row = await source(id);
        return row.processing_status === 'completed' && row.generation > generation;
      });
    };

    // the one cut that is left is where a new document is not cut
    const cuts = [...content.matchAll(/\n\nParagraph 1\d\d says/g)].map(({ index }) =>
      cutAfter(index, content.slice(0, index)),
    );
    const only = cuts.find((cut) => !isDeepStrictEqual(endsOf(changed, [cut]), endsOf(changed)));
    if (!only) throw new Error('No cut would make a difference.');
    await db.query(
      `update public.knowledge_chunks set char_end = case chunk_index when 3 then $2::integer end, content = case chunk_index when 3 then $3 else content end
        where source_id = $1`,
      [id, only.end, content.slice(only.end - 200, only.end)],
    );
    await edit(changed);
    expect(await ends()).toEqual(endsOf(changed, [only]));

    await db.query(
      `update public.knowledge_chunks set content = case chunk_index % 3 when 0 then '' when 1 then repeat('a', 100000) else content end,
              char_end = case chunk_index % 4 when 0 then -1 when 1 then null when 2 then 2147483647 else 7 end
        where source_id = $1`,
      [id],
    );
    await edit(content);
    expect(await ends()).toEqual(endsOf(content));
  });

  test('a passage that the provider refuses is found by its words, the others by all', async () => {
    const poison = 'zqxjkvpoison';
    server.respond((request) =>
      request.texts.some((t) => t.includes(poison))
        ? { status: 400, error: { message: 'The input is not acceptable.', type: 'invalid_request_error' } }
        : {},
    );
    const id = await text('poisoned', `${paragraphs(30, 'a')}\n\n${poison}\n\n${paragraphs(30, 'b')}`);
    const row = await settled(id);
    expect(row).toMatchObject({ processing_status: 'completed', reason_code: 'embedding_refused' });
    const bare = await db.query<{ content: string }>(
      'select content from public.knowledge_chunks where source_id = $1 and embedding is null',
      [id],
    );
    expect(bare.length).toBeGreaterThan(0);
    for (const chunk of bare) expect(chunk.content).toContain(poison);
  });

  test('waits in its row when the provider is down, and holds no place meanwhile', async () => {
    server.respond((request) =>
      request.texts.some((t) => t.includes('unlucky'))
        ? { status: 401, error: { message: 'no', type: 'invalid_request_error', code: 'invalid_api_key' } }
        : {},
    );
    const id = await text('unlucky', 'An unlucky text.');
    const row = await settled(id);
    expect(row).toMatchObject({ processing_status: 'failed', reason_code: 'credentials_refused' });
    server.respond(() => ({}));
    await db.query(`update public.knowledge_sources set processing_status = 'uploaded' where id = $1`, [id]);
    expect(await settled(id)).toMatchObject({ processing_status: 'completed', reason_code: null });
  });

  test('an archived file loses its chunks, a deleted one everything', async () => {
    const { media, source: id } = await upload('notes.txt', Buffer.from(paragraphs(10, 'archived')));
    await settled(id);
    await db.query('update public.media_library set is_archived = true where id = $1', [media]);
    await until('its chunks are gone', async () => {
      const rows = await db.query('select 1 from public.knowledge_chunks where source_id = $1', [id]);
      return rows.length === 0;
    });
    await db.query('update public.media_library set is_archived = false where id = $1', [media]);
    expect(await settled(id)).toMatchObject({ processing_status: 'completed' });
    await db.query('delete from public.media_library where id = $1', [media]);
    expect(await db.query('select 1 from public.knowledge_chunks where source_id = $1', [id])).toEqual([]);
  });

  test('one tenant’s many uploads delay nobody', async () => {
    const other = await makePlatform(db);
    server.respond((request) =>
      request.texts.some((t) => t.includes('greedy')) ? { delay: pause(100) } : {},
    );
    await db.query(
      `insert into public.knowledge_sources (workspace_id, name, type, content)
       select $1, 'greedy ' || n, 'TEXT', 'A greedy text of number ' || n from generate_series(1, 200) n`,
      [other.workspaceId],
    );
    // the daemon has four slots, of which one workspace may have two
    const id = await text('patient', 'A patient text.');
    await settled(id);
    const [greedy] = await db.query<{ done: number }>(
      `select count(*)::integer as done from public.knowledge_sources
        where workspace_id = $1 and processing_status = 'completed'`,
      [other.workspaceId],
    );
    expect(greedy?.done).toBeLessThan(100);
    await db.query('delete from public.knowledge_sources where workspace_id = $1', [other.workspaceId]);
  }, 60_000);

  test('leaves alone what an application has chunked itself', async () => {
    const { promise, resolve } = Promise.withResolvers<void>();
    server.respond((request) =>
      request.texts.some((t) => t.includes('own words')) ? { delay: promise } : {},
    );
    const id = await text('own chunks', 'Their own words.');
    await until('it is being read', async () => (await source(id)).processing_status === 'processing');
    await insert(db, 'public.knowledge_chunks', {
      source_id: id,
      content: 'A chunk of the application.',
      chunk_index: 0,
    });
    expect(await source(id)).toMatchObject({ processing_status: 'completed', chunk_count: 1 });
    resolve();
    await until('the attempt is over', async () => {
      const rows = await db.query(
        `select 1 from agentd.job_runs j join public.media_processing_logs l on l.job_id = j.job_id where l.source_id = $1`,
        [id],
      );
      return rows.length > 0;
    });
    expect(await db.query('select content from public.knowledge_chunks where source_id = $1', [id])).toEqual([
      { content: 'A chunk of the application.' },
    ]);
  });

  test('nobody who is signed in reads another’s file by naming its path', async () => {
    const stranger = await makePlatform(db);
    await expect(
      asUser(db, stranger.userId, (session) =>
        session.query(
          `insert into public.media_library (user_id, workspace_id, file_name, storage_path) values ($1, $2, 'x', $3)`,
          [stranger.userId, stranger.workspaceId, `${platform.userId}/handbook.pdf`],
        ),
      ),
    ).rejects.toThrow(/storage_path must begin with the folder/);
  });
});

test('a small document that waits for its embeddings leaves the only slot to others', async () => {
  const { promise: held, resolve: release } = Promise.withResolvers<void>();
  server.respond(({ texts }) => (texts.some((t) => t.includes('slow')) ? { delay: held } : {}));
  const only = await testDaemon(db, server, { env: { ...env(), AGENTD_QUEUES: 'document-ingest=1' } });
  try {
    const slow = await text('slow', 'A slow text.');
    await until(
      'its embeddings are waited for',
      async () => (await source(slow)).processing_status === 'processing',
    );
    const quick = await text('quick', 'A quick text.');
    expect(await settled(quick)).toMatchObject({ processing_status: 'completed' });
    expect(await source(slow)).toMatchObject({ processing_status: 'processing' });
    release();
    expect(await settled(slow)).toMatchObject({ processing_status: 'completed' });
  } finally {
    release();
    await only.stop();
    server.respond(() => ({}));
  }
});
