/** From one embedding model to another: by the command line, a strict embedding server and real daemons. */
import { createHash } from 'node:crypto';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { Queryable } from '../../src/db/database.ts';
import { reopenMoves } from '../../src/db/embedding-migrations.ts';
import type { MovePreview, MoveReport } from '../../src/db/embedding-reports.ts';
import { dropUnusedVectorIndexes, ensureVectorIndex, searchChunks } from '../../src/db/knowledge.ts';
import { agentd, json } from '../commands/support.ts';
import {
  type EmbeddingRequest,
  type EmbeddingServer,
  startEmbeddingServer,
  vectorOf,
} from '../peers/embedding-server.ts';
import { startDaemonProcess, type TestDaemon, testDaemon } from '../support/daemon.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, type Platform, workspaceKey } from '../support/platform.ts';
import { until } from '../support/runs.ts';

const MODEL = 'text-embedding-3-small';
const OLD = 64;
const NEW = 96;
const KILLS = 4;

let db: TestDatabase;
let server: EmbeddingServer;

beforeAll(async () => {
  db = await testDatabase();
  server = await startEmbeddingServer();
});
afterAll(async () => {
  await server?.close();
  await db?.dispose();
});
beforeEach(() => server.respond(() => ({})));

const env = { AGENTD_EMBEDDING_MODEL: MODEL, AGENTD_EMBEDDING_DIMENSIONS: String(OLD) };
const command = (args: readonly string[]) =>
  agentd(['embeddings', ...args, '--json'], {
    DATABASE_URL: db.url,
    OPENAI_API_KEY: server.apiKey,
    OPENAI_BASE_URL: server.url,
    ...env,
  });
type Answer = {
  done: boolean;
  chunks: number;
  tokens: number;
  expected_cost_micros: number | null;
  workspaces: MovePreview[];
  moves: MoveReport[];
};
const migrate = async (owner: Platform, to: string, ...more: string[]): Promise<Answer> =>
  json<Answer>(await command(['migrate', '--to', to, '--workspace', owner.workspaceId, ...more]));

/** Different texts under headings, with a table. */
const handbook = (count: number, salt: string): string =>
  [
    '# Handbook',
    '| product | price | origin |\n|---|---|---|',
    ...Array.from({ length: 4 }, (_, i) => `| coffee ${salt} ${i} | ${i} euros | Ethiopia |`),
    ...Array.from({ length: count }, (_, i) => {
      const words = createHash('sha256').update(`${salt}${i}`).digest('hex').match(/.{4}/g) ?? [];
      return `\n## Chapter ${i} of ${salt}\n\nIt says ${words.join(' ')} and goes on for a while about coffee. `.padEnd(
        1200,
        `${words.join(' ')} `,
      );
    }),
  ].join('\n');
const add = (owner: Platform, name: string, content: string): Promise<string> =>
  insert(db, 'public.knowledge_sources', { workspace_id: owner.workspaceId, name, type: 'TEXT', content });

type Source = {
  id: string;
  processing_status: string;
  embedding_model: string;
  embedding_dimensions: number;
  chunk_count: number;
  generation: number;
};
const sources = (owner: Platform): Promise<Source[]> =>
  db.query<Source>('select * from public.knowledge_sources where workspace_id = $1 order by name', [
    owner.workspaceId,
  ]);
const settled = (owner: Platform): Promise<Source[]> =>
  until('all documents are settled', async () => {
    const rows = await sources(owner);
    return rows.every((row) => ['completed', 'failed'].includes(row.processing_status)) ? rows : false;
  });
const move = async (owner: Platform): Promise<MoveReport> => {
  const [row] = await db.query<MoveReport>(
    'select * from agentd.embedding_migrations where workspace_id = $1',
    [owner.workspaceId],
  );
  if (!row) throw new Error('There is no move.');
  return row;
};
const ended = (owner: Platform, status: string): Promise<MoveReport> =>
  until(
    `the move is ${status}`,
    async () => {
      const row = await move(owner);
      if (row.status === 'failed' && status !== 'failed') throw new Error(`It failed: ${row.reason}`);
      return row.status === status ? row : false;
    },
    30_000,
  );
/** Vectors of the searched passages, by place. */
const vectors = (owner: Platform) =>
  db.query<{ name: string; chunk_index: number; model: string; md5: string }>(
    `select k.name, c.chunk_index, c.embedding_model as model, md5(c.embedding::text) as md5
       from public.knowledge_sources k join public.knowledge_chunks c on c.source_id = k.id and c.generation = k.generation
      where k.workspace_id = $1 order by 1, 2`,
    [owner.workspaceId],
  );
/** The passages nearest to a text, in the vectors of so many dimensions; -1 if one was not found by nearness. */
async function search(owner: Platform, dimensions: number, k = 5): Promise<number> {
  const found = await searchChunks(db, {
    workspaceId: owner.workspaceId,
    agentId: owner.agentId,
    query: '',
    limit: k,
    vectors: [{ model: MODEL, dimensions, vector: vectorOf('coffee', dimensions) }],
  });
  return found.every((chunk) => chunk.similarity !== null) ? found.length : -1;
}
const isOf = (request: EmbeddingRequest, dimensions: number): boolean =>
  request.body.dimensions === dimensions;

describe('a move to another model', () => {
  let daemon: TestDaemon;
  beforeAll(async () => {
    daemon = await testDaemon(db, server, { env });
  });
  afterAll(() => daemon?.stop());
  afterEach(() => expect(server.rejected).toEqual([]));

  test('costs what was shown before, answers every search meanwhile, and ends as if everything had always had the new model', async () => {
    const owner = await makePlatform(db);
    await add(owner, 'a', handbook(30, 'a'));
    await add(owner, 'b', handbook(20, 'b'));
    await settled(owner);
    // the same text again, which costs nothing
    await add(owner, 'c', handbook(30, 'a'));
    await settled(owner);
    const before = await vectors(owner);
    expect(before.length).toBeGreaterThan(20);

    const preview = await migrate(owner, `${MODEL}:${NEW}`);
    expect(preview).toMatchObject({ done: false, moves: [], chunks: before.length });
    expect(preview.tokens).toBeGreaterThan(1000);
    expect(await db.query('select 1 from agentd.embedding_migrations')).toEqual([]);

    const gate = Promise.withResolvers<void>();
    server.respond((request) => (isOf(request, NEW) ? { delay: gate.promise } : {}));
    const paid = server.paid.tokens;
    const asked = server.requests.length;
    const recorded = await migrate(owner, `${MODEL}:${NEW}`, '--yes', '--detach');
    expect(recorded.moves).toMatchObject([
      { status: expect.stringMatching(/waiting|running/), tokens: preview.tokens },
    ]);
    await server.waitForRequests(asked + 1);
    expect(await search(owner, OLD)).toBe(5);
    expect(await vectors(owner)).toEqual(before);
    gate.resolve();

    let searches = 0;
    const done = await until('it is complete', async () => {
      const [source] = await sources(owner);
      const dimensions = source?.embedding_dimensions as number;
      // between the two looks it may have switched: then the other one has all
      const found = await search(owner, dimensions);
      expect(found === 5 || (await search(owner, NEW)) === 5).toBe(true);
      searches++;
      const row = await move(owner);
      return row.status === 'completed' ? row : false;
    });
    expect(searches).toBeGreaterThan(0);
    expect(await search(owner, NEW)).toBe(5);
    expect(done).toMatchObject({ reason: null, refused_chunks: 0, chunks: before.length });
    expect(done.embedded_tokens).toBe(preview.tokens);
    expect(server.paid.tokens - paid).toBe(preview.tokens);
    expect(done.cost_micros).toBe(preview.expected_cost_micros);
    const [usage] = await db.query(
      `select sum(quantity)::integer as tokens, sum(cost_micros)::integer as cost from public.usage_events
        where workspace_id = $1 and dimensions ? 'embedding_migration_id'`,
      [owner.workspaceId],
    );
    expect(usage).toEqual({ tokens: preview.tokens, cost: preview.expected_cost_micros });

    // headings and the table's header stood before the text, as they would have at the beginning
    const twin = await makePlatform(db);
    await db.query(
      `insert into agentd.embedding_migrations (workspace_id, status, model, dimensions, pinned_model, pinned_dimensions, chunks, tokens, finished_at)
       values ($1, 'completed', $2, $3, $2, $3, 0, 0, agentd.now())`,
      [twin.workspaceId, MODEL, NEW],
    );
    await add(twin, 'a', handbook(30, 'a'));
    await add(twin, 'b', handbook(20, 'b'));
    await add(twin, 'c', handbook(30, 'a'));
    await settled(twin);
    expect(await vectors(owner)).toEqual(await vectors(twin));

    await until('the old vectors are gone', async () => {
      const old = await db.query(
        `select 1 from public.knowledge_chunks c join public.knowledge_sources k on k.id = c.source_id
          where k.workspace_id = $1 and c.generation <> k.generation`,
        [owner.workspaceId],
      );
      return old.length === 0;
    });
    expect(await migrate(owner, `${MODEL}:${NEW}`)).toMatchObject({ chunks: 0, workspaces: [] });

    // what comes now has the model that was chosen, whatever the configuration says; unchanged documents stay as they are
    const items = server.paid.items;
    await db.query(
      `update public.knowledge_sources set processing_status = 'uploaded' where workspace_id = $1 and name = 'b'`,
      [owner.workspaceId],
    );
    await settled(owner);
    expect(server.paid.items).toBe(items);
    await add(owner, 'd', handbook(1, 'd'));
    expect(await settled(owner)).toMatchObject(
      Array.from({ length: 4 }, () => ({ embedding_model: MODEL, embedding_dimensions: NEW })),
    );
  });

  test('takes what comes and what changes meanwhile along, also what is still being read at the switch', async () => {
    const owner = await makePlatform(db);
    await add(owner, 'a', handbook(20, 'meanwhile'));
    const generation = (await settled(owner))[0]?.generation ?? 0;
    const [late, gate] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
    server.respond((request) => {
      if (isOf(request, NEW)) return { delay: gate.promise };
      return request.texts.some((text) => text.includes('latecomer')) ? { delay: late.promise } : {};
    });
    const asked = server.requests.length;
    await migrate(owner, `${MODEL}:${NEW}`, '--yes', '--detach');
    await server.waitForRequests(asked + 1);
    const first = await add(owner, 'b', handbook(3, 'new'));
    await db.query(
      `update public.knowledge_sources set content = content || E'\\n\\nAnother end.' where workspace_id = $1 and name = 'a'`,
      [owner.workspaceId],
    );
    const both = await until('the new and the changed one are read', async () => {
      const rows = await sources(owner);
      return rows.every((row) => row.processing_status === 'completed') &&
        (rows[0]?.generation ?? 0) > generation
        ? rows
        : false;
    });
    expect(both.map((row) => row.embedding_dimensions)).toEqual([OLD, OLD]);
    expect(first).toBe(both[1]?.id);
    await add(owner, 'c', `A latecomer. ${handbook(2, 'late')}`);
    await until(
      'the last one is being read',
      async () => (await sources(owner))[2]?.processing_status === 'processing',
    );
    gate.resolve();
    await ended(owner, 'completed');
    expect((await sources(owner)).map((row) => row.embedding_dimensions)).toEqual([NEW, NEW, null]);
    // the daemon looks for such every half minute, at a workspace ever more rarely: not now
    const lookIn = (tx: Queryable, time: string): Promise<unknown> =>
      tx.query(
        'update agentd.embedding_migrations set retry_at = agentd.now() + $2::interval where workspace_id = $1',
        [owner.workspaceId, time],
      );
    await lookIn(db, '10 minutes');
    late.resolve();
    await settled(owner);
    expect((await sources(owner)).map((row) => row.embedding_dimensions)).toEqual([NEW, NEW, OLD]);
    await db.transaction(async (tx) => {
      await lookIn(tx, '0');
      expect(await reopenMoves(tx)).toBe(1);
    });
    await until('the last one is moved', async () =>
      (await sources(owner)).every((row) => row.embedding_dimensions === NEW),
    );
    await ended(owner, 'completed');
    expect((await vectors(owner)).some((row) => row.md5 === null)).toBe(false);
    expect(await search(owner, NEW, 20)).toBe(20);
  });

  test('that is called off leaves everything as it was, and one that has switched cannot be', async () => {
    const owner = await makePlatform(db);
    await add(owner, 'a', handbook(20, 'cancelled'));
    await settled(owner);
    const before = await vectors(owner);
    const gate = Promise.withResolvers<void>();
    server.respond((request) => (isOf(request, NEW) ? { delay: gate.promise } : {}));
    const asked = server.requests.length;
    await migrate(owner, `${MODEL}:${NEW}`, '--yes', '--detach');
    await server.waitForRequests(asked + 1);
    const other = await command([
      'migrate',
      '--to',
      `${MODEL}:128`,
      '--workspace',
      owner.workspaceId,
      '--yes',
    ]);
    expect(other).toMatchObject({ code: 2, stderr: expect.stringContaining('already') });
    expect(json(await command(['cancel', '--workspace', owner.workspaceId]))).toEqual({
      cancelled: [owner.workspaceId],
    });
    gate.resolve();
    expect(await move(owner)).toMatchObject({ status: 'cancelled', pinned_model: null });
    await until('nothing of it is left', async () => {
      const rows = await db.query('select 1 from public.knowledge_chunks where workspace_id = $1', [
        owner.workspaceId,
      ]);
      return rows.length === before.length;
    });
    expect(await vectors(owner)).toEqual(before);
    await add(owner, 'b', handbook(1, 'after'));
    expect((await settled(owner)).map((row) => row.embedding_dimensions)).toEqual([OLD, OLD]);

    const again = await migrate(owner, `${MODEL}:${NEW}`, '--yes');
    expect(again.moves).toMatchObject([{ status: 'completed' }]);
    expect(json(await command(['cancel', '--workspace', owner.workspaceId]))).toEqual({ cancelled: [] });
    const audit = await db.query<{ action: string }>(
      'select action from agentd.audit_log where workspace_id = $1 order by id',
      [owner.workspaceId],
    );
    expect(audit.map((row) => row.action)).toEqual([
      'migrate_embeddings',
      'cancel_embedding_migration',
      'migrate_embeddings',
    ]);
  });

  test('of a workspace whose key is refused fails with its reason; others go on; asked again, it pays nothing twice', async () => {
    const [unlucky, lucky] = [await makePlatform(db), await makePlatform(db)];
    for (const owner of [unlucky, lucky]) await add(owner, 'a', handbook(60, owner.workspaceId));
    await Promise.all([settled(unlucky), settled(lucky)]);
    await workspaceKey(db, unlucky, server.apiKey);
    const ofUnlucky = (request: EmbeddingRequest): boolean =>
      request.texts.some((text) => text.includes(unlucky.workspaceId));
    // a refused batch is taken apart: single texts are answered, and then the key is refused
    let batches = 0;
    server.respond((request) => {
      if (!isOf(request, NEW) || !ofUnlucky(request) || request.texts.length === 1) return {};
      return batches++ === 0
        ? { status: 400, error: { message: 'The input is not acceptable.', type: 'invalid_request_error' } }
        : { status: 401, error: { message: 'no', type: 'invalid_request_error', code: 'invalid_api_key' } };
    });
    const preview = await migrate(unlucky, `${MODEL}:${NEW}`);
    const paid = server.paid.tokens;
    await migrate(unlucky, `${MODEL}:${NEW}`, '--yes', '--detach');
    await migrate(lucky, `${MODEL}:${NEW}`, '--yes', '--detach');
    await ended(lucky, 'completed');
    const luckyTokens = (await move(lucky)).embedded_tokens;
    const failed = await ended(unlucky, 'failed');
    expect(failed).toMatchObject({
      reason_code: 'credentials_refused',
      reason: expect.stringMatching(/.{20}/),
    });
    expect(failed.done_chunks).toBeGreaterThan(0);
    expect((await sources(unlucky))[0]).toMatchObject({ embedding_dimensions: OLD });
    expect(await search(unlucky, OLD)).toBe(5);
    server.respond(() => ({}));
    const outcome = await migrate(unlucky, `${MODEL}:${NEW}`, '--yes');
    expect(outcome.moves).toMatchObject([{ status: 'completed' }]);
    expect(outcome.tokens).toBeLessThan(preview.tokens);
    expect((await sources(unlucky))[0]).toMatchObject({ embedding_dimensions: NEW });
    expect(server.paid.tokens - paid).toBe(preview.tokens + luckyTokens);
  });

  test('to hashed words needs no key and costs nothing, and goes on from there', async () => {
    const owner = await makePlatform(db);
    await add(owner, 'a', handbook(10, 'hashed'));
    await settled(owner);
    const items = server.paid.items;
    for (const dimensions of [128, 48]) {
      const outcome = await migrate(owner, `feature-hash-v1:${dimensions}`, '--yes');
      expect(outcome).toMatchObject({
        expected_cost_micros: 0,
        moves: [{ status: 'completed', embedded_tokens: 0, cost_micros: 0 }],
      });
      expect(await sources(owner)).toMatchObject([
        { embedding_model: 'feature-hash-v1', embedding_dimensions: dimensions },
      ]);
    }
    expect(server.paid.items).toBe(items);
  });

  test('waits while the workspace is paused', async () => {
    const owner = await makePlatform(db);
    await add(owner, 'a', handbook(3, 'paused'));
    await settled(owner);
    await db.query(`insert into agentd.queue_controls (queue, workspace_id) values ('document-ingest', $1)`, [
      owner.workspaceId,
    ]);
    await migrate(owner, `${MODEL}:${NEW}`, '--yes', '--detach');
    const other = await makePlatform(db);
    await add(other, 'a', handbook(3, 'not paused'));
    await settled(other);
    await migrate(other, `${MODEL}:${NEW}`, '--yes');
    expect(await move(owner)).toMatchObject({ status: 'waiting', started_at: null });
    await db.query('delete from agentd.queue_controls where workspace_id = $1', [owner.workspaceId]);
    await ended(owner, 'completed');
  });

  test('leaves alone what an application has embedded itself', async () => {
    const owner = await makePlatform(db);
    const id = await insert(db, 'public.knowledge_sources', {
      workspace_id: owner.workspaceId,
      name: 'own',
      type: 'TEXT',
      processing_status: 'completed',
    });
    await insert(db, 'public.knowledge_chunks', {
      source_id: id,
      content: 'theirs',
      chunk_index: 0,
      embedding: '[1,0,0]',
      embedding_model: 'own',
    });
    expect(await migrate(owner, `${MODEL}:${NEW}`, '--yes')).toMatchObject({ workspaces: [] });
  });

  test('drops the index of the old model when nothing has it any more, and none that is wanted', async () => {
    const owner = await makePlatform(db);
    await add(owner, 'a', handbook(3, 'index'));
    await settled(owner);
    await migrate(owner, `${MODEL}:80`, '--yes');
    await migrate(owner, `${MODEL}:88`, '--yes');
    const there = async (dimensions: number): Promise<boolean> => {
      const [row] = await db.query<{ there: boolean }>(
        `select to_regclass('public.' || agentd.vector_index_name($1, $2)) is not null as there`,
        [MODEL, dimensions],
      );
      return row?.there === true;
    };
    expect(await there(80)).toBe(true);
    await until('the old vectors are gone', async () => {
      const rows = await db.query(
        'select 1 from public.knowledge_chunks where embedding_model = $1 and length(embedding_bits) = 80',
        [MODEL],
      );
      return rows.length === 0;
    });
    // what the configuration wants stays, whether it is used or not
    expect(await ensureVectorIndex(db, { model: MODEL, dimensions: OLD })).toBe(true);
    await dropUnusedVectorIndexes(db, { model: MODEL, dimensions: OLD });
    expect([await there(OLD), await there(80), await there(88)]).toEqual([true, false, true]);
  });
});

describe.skipIf(!onServer)('server-only: a worker that is killed in the middle of a move', () => {
  test('the next one goes on where it ended, and pays again only for what was in flight', async () => {
    const owner = await makePlatform(db);
    // answers of a wide model are long, so that requests are many
    const wide = { ...env, AGENTD_EMBEDDING_DIMENSIONS: '1024' };
    {
      await using _first = await testDaemon(db, server, { env });
      await add(owner, 'a', handbook(250, 'killed'));
      await add(owner, 'b', handbook(120, 'killed too'));
      await until(
        'both are read',
        async () => (await sources(owner)).every((row) => row.processing_status === 'completed'),
        60_000,
      );
    }
    const before = (await vectors(owner)).length;
    const preview = await migrate(owner, `${MODEL}:1024`, '--yes', '--detach');
    const start = server.paid.items;
    const startTokens = server.paid.tokens;
    const texts = server.requests.length;
    const doneChunks = async (): Promise<number> => Number((await move(owner)).done_chunks);
    for (let kill = 0; kill < KILLS; kill++) {
      // one request is answered, the others never are
      server.respond((_, index) => (index === 0 ? {} : { delay: new Promise<void>(() => {}) }));
      const done = await doneChunks();
      await using worker = await startDaemonProcess(db, server, wide);
      await until('an answer is stored', async () => (await doneChunks()) > done, 60_000);
      await worker.kill();
      expect(await search(owner, OLD)).toBe(5);
      await db.query(
        `update agentd.embedding_migrations set lease_expires_at = agentd.now() - interval '1 second' where workspace_id = $1`,
        [owner.workspaceId],
      );
    }
    expect(await doneChunks()).toBeLessThan(before);
    server.respond(() => ({}));
    await using _last = await testDaemon(db, server, { env, leaseSeconds: 15 });
    const row = await until(
      'it is complete',
      async () => {
        const now = await move(owner);
        return now.status === 'completed' ? now : false;
      },
      60_000,
    );
    const largest = Math.max(...server.requests.slice(texts).map((request) => request.texts.length));
    expect(server.paid.items - start).toBeGreaterThanOrEqual(before);
    expect(server.paid.items - start).toBeLessThanOrEqual(before + KILLS * largest);
    // what is booked is what was paid for and answered: of an answer that was being stored, a part may be paid for again
    expect(Number(row.embedded_tokens)).toBeGreaterThanOrEqual(preview.tokens);
    expect(Number(row.embedded_tokens)).toBeLessThanOrEqual(server.paid.tokens - startTokens);
    expect(await vectors(owner)).toHaveLength(before);
    expect(await search(owner, 1024)).toBe(5);
  }, 240_000);
});
