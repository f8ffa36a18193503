/** A move to another embedding model in a database that others use at the same time, and with a provider that is not always there. */
import pino from 'pino';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Clock, systemClock } from '../../../src/clock.ts';
import { openDatabase, type Queryable } from '../../../src/db/database.ts';
import {
  type ClaimedMove,
  claimMove,
  nextPassages,
  postponeMove,
  reopenMoves,
  storeNewVectors,
  switchSources,
} from '../../../src/db/embedding-migrations.ts';
import { prepareVectorIndex } from '../../../src/db/knowledge.ts';
import { EmbeddingLanes } from '../../../src/pipelines/ingest/embed.ts';
import { type MoveDeps, migrateEmbeddings } from '../../../src/pipelines/ingest/migrate-embeddings.ts';
import { EmbeddingError } from '../../../src/providers/embedding-error.ts';
import type { Embedder } from '../../../src/providers/embeddings.ts';
import { onServer, type TestDatabase, testDatabase } from '../../support/database.ts';
import { insert, makePlatform, type Platform } from '../../support/platform.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await testDatabase();
});
afterAll(() => db?.dispose());

/** A document of the old model with so many passages, complete. */
async function document(owner: Platform, passages: number, salt = ''): Promise<string> {
  const id = await insert(db, 'public.knowledge_sources', {
    workspace_id: owner.workspaceId,
    name: 's',
    type: 'TEXT',
    processing_status: 'completed',
  });
  await db.query(
    `insert into public.knowledge_chunks (workspace_id, source_id, generation, chunk_index, content, embedding, embedding_model, token_count)
     select $1, $2, 1, i, 'text ' || $4 || i, '[1,2,3,4]', 'old', 3 from generate_series(0, $3::integer - 1) i`,
    [owner.workspaceId, id, passages, salt],
  );
  await db.query(
    `update public.knowledge_sources set embedding_model = 'old', embedding_dimensions = 4, chunk_count = $2 where id = $1`,
    [id, passages],
  );
  return id;
}

/** The move of a workspace; there is no other, so that the next claim is of this one. */
async function request(owner: Platform, columns: Record<string, unknown> = {}): Promise<void> {
  await db.query('delete from agentd.embedding_migrations');
  const row = {
    workspace_id: owner.workspaceId,
    status: 'waiting',
    model: 'new',
    dimensions: 4,
    from_model: 'old',
    from_dimensions: 4,
    chunks: 1,
    tokens: 1,
    ...columns,
  };
  const names = Object.keys(row);
  await db.query(
    `insert into agentd.embedding_migrations (${names}) values (${names.map((_, i) => `$${i + 1}`)})`,
    Object.values(row),
  );
}
async function claimed(): Promise<ClaimedMove> {
  await db.query('update agentd.embedding_migrations set retry_at = null');
  const move = await claimMove(db, 'worker', 60, false);
  if (!move) throw new Error('There is no move to claim.');
  return move;
}
const row = async () =>
  (await db.query<Record<string, unknown>>('select * from agentd.embedding_migrations'))[0];
const staged = (id: string) =>
  db.query<{ content: string }>(
    'select content from public.knowledge_chunks where source_id = $1 and generation = 3 order by chunk_index',
    [id],
  );

/** How the server carries out what `work` asks for, on a table that it takes for a large one. */
async function planOf(work: (explaining: Queryable) => Promise<unknown>): Promise<string> {
  const plan: string[] = [];
  await work({
    async query(statement, values) {
      const client = await db.pool.connect();
      try {
        await client.query('begin; set local enable_seqscan = off');
        const text = typeof statement === 'string' ? statement : statement.text;
        const { rows } = await client.query(`explain ${text}`, [...(values ?? [])]);
        plan.push(...rows.map((line) => line['QUERY PLAN']));
      } finally {
        await client.query('rollback');
        client.release();
      }
      return [];
    },
  });
  return plan.join('\n');
}

/** Time goes by a hundred times as fast. */
const hasty: Clock = {
  ...systemClock,
  elapsed: () => systemClock.elapsed() * 100,
  after: (ms, fn) => systemClock.after(ms / 100, fn),
};

/** An attempt with an embedder of our own. */
function attempt(embed: (texts: readonly string[]) => void | Promise<void>, queryable: Queryable = db) {
  const embedder: Embedder = {
    model: 'new',
    dimensions: 4,
    limitKey: null,
    maxItems: 100,
    maxTokensPerRequest: 100_000,
    maxItemTokens: 8_000,
    async embed(texts) {
      await embed(texts);
      return {
        vectors: texts.map(() => Float32Array.from([4, 3, 2, 1])),
        tokens: 3 * texts.length,
        isReported: true,
        costMicros: texts.length,
        limits: null,
      };
    },
  };
  const deps: MoveDeps = {
    db: queryable,
    clock: hasty,
    log: pino({ level: 'silent' }),
    leaseSeconds: 60,
    onRetry: () => {},
    chooseEmbedder: () => ({ provider: 'test', embedder }),
    lanes: new EmbeddingLanes({ clock: hasty, limiter: null }),
    prepareIndex: async () => true,
  };
  return async () => migrateEmbeddings(deps, await claimed(), new AbortController().signal);
}

test('finding what has no new vector takes a look for each passage, not for each pair of them', async () => {
  const owner = await makePlatform(db);
  const id = await document(owner, 1);
  const many = 12_000;
  await db.query(
    `insert into public.knowledge_chunks (workspace_id, source_id, generation, chunk_index, content, embedding_model, embedding_key)
     select $1, $2, g, i, 'text ' || i, case g when 3 then 'new' else 'old' end, '\\x00'
       from generate_series(0, $3::integer - 1) i cross join (values (1), (3)) v (g)
     on conflict do nothing`,
    [owner.workspaceId, id, many],
  );
  await db.query('update public.knowledge_sources set chunk_count = $2 where id = $1', [id, many]);
  await request(owner);
  const move = await claimed();
  const began = performance.now();
  expect((await nextPassages(db, move, null, 200)).passages).toEqual([]);
  // as a join it took 22 s for 20,000, where the server did not know how many there are
  expect(performance.now() - began).toBeLessThan(5_000);
  const plan = await planOf((explaining) => nextPassages(explaining, move, null, 200));
  expect(plan).toContain('SubPlan');
  expect(plan).not.toMatch(/Anti|Semi/);
});

test('a statement that takes too long is not said again for ever: the move waits, with the reason', async () => {
  const owner = await makePlatform(db);
  await document(owner, 3);
  await request(owner);
  let said = 0;
  const slow: Queryable = {
    query: (statement, values) => {
      const name = typeof statement === 'string' ? '' : statement.name;
      if (name !== 'next_passages_to_move') return db.query(statement, values);
      said++;
      return Promise.reject(
        Object.assign(new Error('canceling statement due to statement timeout'), { code: '57014' }),
      );
    },
  };
  expect(await attempt(() => {}, slow)()).toEqual({ kind: 'again', code: 'statement_timeout' });
  expect(said).toBe(3);
  expect(await row()).toMatchObject({ status: 'waiting', reason_code: 'statement_timeout', failures: 1 });
});

test('a passage that was corrected during a move keeps its correction, and gets the vector of it', async () => {
  const owner = await makePlatform(db);
  const id = await document(owner, 2);
  await request(owner);
  const move = await claimed();
  const { passages } = await nextPassages(db, move, null, 10);
  const items = passages.map(({ id: passage, text }) => ({
    id: passage,
    text,
    embedding_key: '\\x00',
    embedding: '[4,3,2,1]',
    metadata: {},
  }));
  const batch = { tokens: 0, costMicros: 0, provider: 'test', leaseSeconds: 60, skipsLocked: false };
  const store = () => storeNewVectors(db, move, { ...batch, batch: null, items });
  const correct = (text: string) =>
    db.query(
      'update public.knowledge_chunks set content = $2 where source_id = $1 and generation = 1 and chunk_index = 0',
      [id, text],
    );
  // before the answer came: the vector is not that of the text
  await correct('corrected once');
  await store();
  expect(await staged(id)).toEqual([{ content: 'text 1' }]);
  await correct('text 0');
  await store();
  expect(await staged(id)).toHaveLength(2);
  // and afterwards
  await correct('corrected twice');
  expect(await switchSources(db, move)).toMatchObject({ moved: 0, left: 1 });
  await postponeMove(db, move, { inMs: 0, counts: null, reasonCode: null, reason: null });
  const asked: string[] = [];
  expect(await attempt((texts) => void asked.push(...texts))()).toEqual({ kind: 'completed' });
  expect(asked).toEqual(['corrected twice']);
  expect(await staged(id)).toEqual([{ content: 'corrected twice' }, { content: 'text 1' }]);
});

test('a provider that is away for hours fails no move; one that is never there does', async () => {
  const owner = await makePlatform(db);
  await document(owner, 3);
  await request(owner);
  const away = attempt(() => {
    throw new EmbeddingError('provider_error', '503 from the provider', { transient: true });
  });
  for (let i = 0; i < 12; i++) expect(await away()).toEqual({ kind: 'again', code: 'provider_error' });
  expect(await row()).toMatchObject({ status: 'waiting', attempts: 0, failures: 12 });
  await db.query('update agentd.embedding_migrations set failures = 150');
  expect(await away()).toEqual({ kind: 'failed', code: 'provider_error' });
});

test('a pause or a lease that a server with a wrong clock has written does not last', async () => {
  const owner = await makePlatform(db);
  await document(owner, 1);
  await request(owner);
  const put = (columns: string) => db.query(`update agentd.embedding_migrations set ${columns}`);
  await put(`retry_at = agentd.now() + interval '10 minutes'`);
  expect(await claimMove(db, 'worker', 60, true)).toBeNull();
  await put(`retry_at = agentd.now() + interval '1 day'`);
  expect(await claimMove(db, 'worker', 60, true)).not.toBeNull();
  expect(await claimMove(db, 'worker', 60, true)).toBeNull();
  await put(`lease_expires_at = agentd.now() + interval '1 day'`);
  expect(await claimMove(db, 'worker', 60, false)).toBeNull();
  const again = await claimMove(db, 'worker', 60, true);
  expect(again).not.toBeNull();
  await postponeMove(db, again as ClaimedMove, { inMs: 0, counts: null, reasonCode: null, reason: null });
  expect(await row()).toMatchObject({ status: 'waiting', retry_at: null });
});

test('a workspace whose move is complete is looked at ever more rarely', async () => {
  const owner = await makePlatform(db);
  const id = await document(owner, 1);
  await db.query(`update public.knowledge_sources set embedding_model = 'new' where id = $1`, [id]);
  await request(owner, { status: 'completed', pinned_model: 'new', pinned_dimensions: 4 });
  await db.query(
    `update agentd.embedding_migrations set retry_at = agentd.now(), finished_at = agentd.now() - interval '10 minutes'`,
  );
  expect(await reopenMoves(db)).toBe(0);
  const [next] = await db.query<{ minutes: number }>(
    'select extract(epoch from retry_at - agentd.now())::float / 60 as minutes from agentd.embedding_migrations',
  );
  expect(next?.minutes).toBeGreaterThan(9);
  expect(next?.minutes).toBeLessThan(11);
  await db.query(`update public.knowledge_sources set embedding_model = 'old' where id = $1`, [id]);
  expect(await reopenMoves(db)).toBe(0);
  await db.query('update agentd.embedding_migrations set retry_at = agentd.now()');
  expect(await reopenMoves(db)).toBe(1);
  expect(await row()).toMatchObject({ status: 'waiting', retry_at: null, finished_at: null });
  await db.query(
    `update agentd.embedding_migrations set status = 'completed', retry_at = agentd.now(), finished_at = agentd.now() - interval '2 days'`,
  );
  await db.query(`update public.knowledge_sources set embedding_model = 'new' where id = $1`, [id]);
  expect(await reopenMoves(db)).toBe(0);
  expect(await row()).toMatchObject({ status: 'completed', retry_at: null });
});

test('counting the passages of a model reads an index alone', async () => {
  const plan = await planOf((explaining) =>
    prepareVectorIndex(explaining, { model: 'rare', dimensions: 64 }, 10),
  );
  expect(plan).toContain('knowledge_sources_model_idx');
});

test.skipIf(!onServer)(
  'server-only: a document that a transaction holds on to keeps neither the others nor the daemon waiting',
  async () => {
    const owner = await makePlatform(db);
    const [held, free] = [await document(owner, 3, 'held '), await document(owner, 3, 'free ')];
    await request(owner);
    const client = await db.pool.connect();
    const asked: string[] = [];
    // as a daemon's
    const limits = { lockMs: 250, statementMs: 30_000, answerMs: 40_000 };
    const impatient = openDatabase({ url: db.url, embedded: false, limits });
    try {
      await client.query('begin');
      const hold = (id: string) =>
        client.query('select 1 from public.knowledge_sources where id = $1 for update', [id]);
      await hold(held);
      // one is held before anything was paid for, the other while it is
      const first = attempt(async (texts) => {
        asked.push(...texts);
        await hold(free);
      }, impatient);
      expect(await first()).toEqual({ kind: 'again', code: 'row_locked' });
      expect([...new Set(asked)].sort()).toEqual(['text free 0', 'text free 1', 'text free 2']);
      expect([...(await staged(held)), ...(await staged(free))]).toEqual([]);
      expect(await row()).toMatchObject({ status: 'waiting', reason_code: 'row_locked', attempts: 0 });
      // what was paid for is booked all the same, once
      expect(await row()).toMatchObject({ embedded_tokens: expect.anything(), worker_id: 'worker' });
      expect(Number((await row())?.embedded_tokens)).toBe(9);
      await client.query('rollback');
      await client.query('begin');
      await hold(held);
      const second = attempt(() => {}, impatient);
      expect(await second()).toEqual({ kind: 'again', code: 'row_locked' });
      expect([await staged(held), await staged(free)].map((rows) => rows.length)).toEqual([0, 3]);
    } finally {
      await client.query('rollback');
      client.release();
      await impatient.close();
    }
    expect(await attempt(() => {})()).toEqual({ kind: 'completed' });
    expect([await staged(held), await staged(free)].map((rows) => rows.length)).toEqual([3, 3]);
  },
);
