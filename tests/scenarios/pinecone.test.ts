/** Vectors in Pinecone: a real daemon, the official client, and a peer that is as strict as the documentation. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { systemClock } from '../../src/clock.ts';
import { findKnowledge, QueryEmbedder } from '../../src/pipelines/agent/query-embedding.ts';
import { RemoteSearch } from '../../src/pipelines/agent/remote-search.ts';
import { featureHashEmbedder } from '../../src/providers/feature-hash.ts';
import { openPinecones, type Pinecones } from '../../src/providers/pinecone.ts';
import { openZeps, type Zeps } from '../../src/providers/zep.ts';
import { columnSecretStore, parseKeyRing } from '../../src/secrets.ts';
import { createLogger } from '../../src/telemetry/logger.ts';
import { type PineconeServer, startPineconeServer } from '../peers/pinecone-server.ts';
import { type TestDaemon, testDaemon } from '../support/daemon.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, type Platform, startTask } from '../support/platform.ts';
import { until } from '../support/runs.ts';
import { asUser } from '../support/sessions.ts';

const DIMENSIONS = 64;
const MODEL = { url: 'http://127.0.0.1:9', apiKey: 'none' };
const KEYS = { ENCRYPTION_KEY: 'ab'.repeat(32) };

let db: TestDatabase;
let peer: PineconeServer;
let daemon: TestDaemon;
let stores: Pinecones;
let zeps: Zeps;
const secrets = columnSecretStore(parseKeyRing(KEYS));
const log: string[] = [];
const logger = createLogger({
  level: 'debug',
  destination: { write: (line: string) => void log.push(line) },
});

const env = () => ({
  AGENTD_EMBEDDING_DIMENSIONS: String(DIMENSIONS),
  AGENTD_PINECONE_URL: peer.url,
  ...KEYS,
});

beforeAll(async () => {
  db = await testDatabase();
  peer = await startPineconeServer();
  stores = openPinecones({ url: peer.url, allowedPrivateHosts: [], clock: systemClock, secrets });
  zeps = openZeps({ url: null, allowedPrivateHosts: [], clock: systemClock, secrets });
});
afterAll(async () => {
  await stores?.close();
  await zeps?.close();
  await peer?.close();
  await db?.dispose();
});

type Tenant = Platform & { readonly datastore: string; readonly index: string };

let tenants = 0;
/** A workspace of its own with an agent, a datastore of type pinecone and an index behind it. */
async function tenant(options: { dimension?: number; config?: object } = {}): Promise<Tenant> {
  const platform = await makePlatform(db, { shared: true });
  const index = `index-${++tenants}`;
  peer.indexes.set(index, {
    dimension: options.dimension ?? DIMENSIONS,
    apiKey: `key-${index}`,
    namespaces: new Map(),
  });
  const datastore = await insert(db, 'public.datastores', {
    workspace_id: platform.workspaceId,
    user_id: platform.userId,
    name: 'Elsewhere',
    type: 'pinecone',
    config: JSON.stringify(options.config ?? { api_key: `key-${index}`, index }),
    similarity_threshold: 0,
  });
  await insert(db, 'public.agent_datastores', { agent_id: platform.agentId, datastore_id: datastore });
  return { ...platform, datastore, index };
}

const content = (edition: string, count = 30): string =>
  Array.from(
    { length: count },
    (_, i) =>
      `# Part ${i}\n\nPassage ${i} of the ${edition} edition speaks of ${edition} matters, ${'word '.repeat(300)}`,
  ).join('\n\n');
const source = (t: Tenant, text: string): Promise<string> =>
  insert(db, 'public.knowledge_sources', {
    workspace_id: t.workspaceId,
    datastore_id: t.datastore,
    name: 'Manual',
    type: 'TEXT',
    content: text,
  });
type Ledger = { generation: number; chunk_count: number; processing_status: string };
const ledger = async (id: string): Promise<Ledger> => {
  const [row] = await db.query<Ledger>(
    'select generation, chunk_count, processing_status::text from public.knowledge_sources where id = $1',
    [id],
  );
  return row ?? { generation: 0, chunk_count: 0, processing_status: 'gone' };
};
const there = (t: Tenant, id: string) =>
  peer.vectors(t.index, t.workspaceId).filter((vector) => vector.metadata.source === id);
/** The peer holds the generation that is searched, all of it and nothing else, and the outbox is empty. */
const converged = (t: Tenant, id: string): Promise<Ledger> =>
  until(
    `source ${id} is equal in ledger and store: ${id}`,
    async () => {
      const row = await ledger(id);
      const open = await db.query(`select 1 from agentd.vector_outbox where source_id = $1`, [id]);
      const found = there(t, id);
      return row.processing_status === 'completed' &&
        open.length === 0 &&
        found.length === row.chunk_count &&
        found.every((vector) => vector.metadata.generation === row.generation)
        ? row
        : false;
    },
    30_000,
  );
const rewrite = async (id: string, text: string): Promise<void> => {
  await db.query('update public.knowledge_sources set content = $2 where id = $1', [id, text]);
};
/** What was sent long ago is searched in the store, and compared with it. */
const settle = (t: Tenant) =>
  db.query(
    `update agentd.vector_copies set synced_at = synced_at - interval '10 minutes'
      where store_id in (select id from agentd.vector_stores where datastore_id = $1)`,
    [t.datastore],
  );
const store = async (t: Tenant) => {
  const [row] = await db.query<{
    id: string;
    reason_code: string | null;
    reason: string | null;
    reconciled_at: Date | null;
    missing_vectors: number;
    extra_vectors: number;
  }>('select * from agentd.vector_stores where datastore_id = $1 and retired_at is null', [t.datastore]);
  return row;
};
/** An operator's correction: what rests is tried at once. */
const hurry = (t: Tenant) =>
  db.query('update agentd.vector_stores set rest_until = null where datastore_id = $1', [t.datastore]);

function searcher(options: { deadlineMs?: number } = {}) {
  const remote = new RemoteSearch({
    clock: systemClock,
    log: logger,
    stores: { pinecone: stores, getzep: zeps },
    ...options,
  });
  const queries = new QueryEmbedder({
    clock: systemClock,
    log: logger,
    embedderOf: () => ({ provider: 'agentd', embedder: featureHashEmbedder(DIMENSIONS) }),
    remote,
  });
  return (t: Tenant, text: string, limit = 5) =>
    findKnowledge(
      { db, queries },
      { workspaceId: t.workspaceId, agentId: t.agentId, text, limit, signal: new AbortController().signal },
    );
}
const queriesAsked = () => peer.calls.filter((call) => call.path === '/query').length;

describe('with a daemon', () => {
  beforeAll(async () => {
    daemon = await testDaemon(db, MODEL, { env: env() });
  });
  afterAll(() => daemon?.stop());
  beforeEach(() => {
    peer.fault = () => null;
    peer.onAnswered = () => {};
    peer.calls.length = 0;
  });
  afterEach(() => expect(peer.rejected.splice(0)).toEqual([]));

  test('every chunk of a source gets there, in its workspace’s namespace, with where it is from', async () => {
    const t = await tenant();
    const id = await source(t, content('first'));
    const row = await converged(t, id);
    expect(row.chunk_count).toBeGreaterThan(10);
    const chunks = await db.query<{ chunk_index: number; embedding: string }>(
      'select chunk_index, embedding::text from public.knowledge_chunks where source_id = $1 order by 1',
      [id],
    );
    const vectors = there(t, id).sort((a, b) => Number(a.metadata.chunk) - Number(b.metadata.chunk));
    expect(vectors.map((v) => v.values)).toEqual(chunks.map((c) => JSON.parse(c.embedding)));
    expect(vectors[0]?.metadata).toMatchObject({
      workspace: t.workspaceId,
      source: id,
      document: 'Manual',
      chunk: 0,
      generation: row.generation,
    });
    expect([...(peer.indexes.get(t.index)?.namespaces.keys() ?? [])]).toEqual([t.workspaceId]);
  });

  test('so do chunks that an application writes itself, with their pages and headings', async () => {
    const t = await tenant();
    const id = await source(t, 'What the application has chunked itself.');
    await converged(t, id);
    const { generation } = await ledger(id);
    const values = Array.from({ length: DIMENSIONS }, (_, i) => i / 8 - 1);
    await insert(db, 'public.knowledge_chunks', {
      source_id: id,
      workspace_id: t.workspaceId,
      generation,
      chunk_index: 5,
      content: 'Their own words.',
      page: 3,
      heading_path: ['Part one', 'Terms'],
      embedding: JSON.stringify(values),
    });
    // a vector of zeros is nowhere, and is found by its words alone
    await insert(db, 'public.knowledge_chunks', {
      source_id: id,
      workspace_id: t.workspaceId,
      generation,
      chunk_index: 6,
      content: 'Nowhere.',
      embedding: JSON.stringify(values.map(() => 0)),
    });
    const found = await until('it is there', () => there(t, id).find((v) => v.metadata.chunk === 5));
    expect(found.values).toEqual(values);
    expect(found.metadata).toMatchObject({ page: 3, heading: 'Part one › Terms', generation });
    expect(there(t, id)).toHaveLength(2);
  });

  test('a new edition takes the old one’s place, and no search in between finds both', async () => {
    const t = await tenant();
    const search = searcher();
    const id = await source(t, content('olden'));
    const before = await converged(t, id);
    await settle(t);
    const editions: string[][] = [];
    const look = async (): Promise<void> => {
      const { chunks } = await search(t, 'passage of the edition', 20);
      editions.push([...new Set(chunks.map((chunk) => /the (\w+) edition/.exec(chunk.content)?.[1] ?? '?'))]);
    };
    await look();
    expect(editions[0]).toEqual(['olden']);
    expect(queriesAsked()).toBe(1);
    let looking = true;
    const looks = (async () => {
      while (looking) {
        await look();
        // as if the store had shown everything at once: the hardest case
        await settle(t);
      }
    })();
    await rewrite(id, content('newest'));
    await until('the new edition is there', async () => (await ledger(id)).generation > before.generation);
    const after = await converged(t, id);
    await settle(t);
    await look();
    looking = false;
    await looks;
    expect(after.generation).toBeGreaterThan(before.generation);
    expect(editions.length).toBeGreaterThan(5);
    expect(editions.filter((found) => found.length !== 1)).toEqual([]);
    expect(editions.at(-1)).toEqual(['newest']);
    expect(there(t, id).every((v) => v.metadata.generation === after.generation)).toBe(true);
  });

  test('what is archived, deleted or taken out of the datastore leaves the store', async () => {
    const t = await tenant();
    const ids = await Promise.all(['one', 'two', 'three', 'four'].map((word) => source(t, content(word, 3))));
    for (const id of ids) await converged(t, id);
    const [archived = '', deleted = '', moved = '', kept = ''] = ids;
    await db.query(`update public.knowledge_sources set processing_status = 'archived' where id = $1`, [
      archived,
    ]);
    await db.query('delete from public.knowledge_sources where id = $1', [deleted]);
    await db.query('update public.knowledge_sources set datastore_id = null where id = $1', [moved]);
    await until('they are gone', () => [archived, deleted, moved].every((id) => there(t, id).length === 0));
    expect(there(t, kept).length).toBeGreaterThan(0);
    await db.query('update public.knowledge_sources set datastore_id = $2 where id = $1', [
      moved,
      t.datastore,
    ]);
    await converged(t, moved);
  });

  test.each([
    ['a datastore', 'delete from public.datastores where id = $1', 'datastore'],
    ['a workspace, whose key goes with it,', 'delete from public.workspaces where id = $1', 'workspaceId'],
    ['an agent with its sources', 'delete from public.agents where id = $1', 'agentId'],
  ] as const)(
    'of %s that is deleted nothing stays, here or there',
    async (_, statement, what) => {
      const t = await tenant();
      const id = await source(t, content('short-lived', 3));
      await db.query('update public.knowledge_sources set agent_id = $2 where id = $1', [id, t.agentId]);
      await converged(t, id);
      await db.query(statement, [t[what]]);
      await until('its vectors are gone', () => peer.vectors(t.index, t.workspaceId).length === 0);
      if (what === 'agentId') return;
      await until(
        'its key is forgotten',
        async () =>
          (await db.query('select 1 from agentd.vector_stores where datastore_id = $1', [t.datastore]))
            .length === 0,
        60_000,
      );
    },
    90_000,
  );

  test('a datastore that is pointed elsewhere takes its vectors along', async () => {
    const t = await tenant();
    const other = await tenant();
    const id = await source(t, content('wandering', 3));
    await converged(t, id);
    await db.query('update public.datastores set config = $2 where id = $1', [
      t.datastore,
      JSON.stringify({ api_key: `key-${other.index}`, index: other.index }),
    ]);
    await until('the old index is empty', () => there(t, id).length === 0);
    await converged({ ...other, workspaceId: t.workspaceId }, id);
  });

  test('requests that are lost, answers that are lost, and a store that is away for a while: it converges', async () => {
    const t = await tenant();
    let n = 0;
    const faults = [
      { kind: 'lose' },
      { kind: 'status', status: 500 },
      { kind: 'lose_answer' },
      { kind: 'status', status: 429, retryAfter: 1 },
    ] as const;
    peer.fault = (call) => (call.key === `key-${t.index}` ? (faults[n++] ?? null) : null);
    const id = await source(t, content('troubled'));
    await until(
      'every fault has been met',
      async () => {
        await hurry(t);
        return n > faults.length;
      },
      30_000,
    );
    await hurry(t);
    await converged(t, id);
    await until('it says so', async () => (await store(t))?.reason_code === null);
  }, 60_000);

  test('Retry-After is honoured', async () => {
    const t = await tenant();
    peer.fault = (call) =>
      call.key === `key-${t.index}` ? { kind: 'status', status: 429, retryAfter: 600 } : null;
    await source(t, content('patient', 2));
    await until('it rests', async () => (await store(t))?.reason_code === 'rate_limited');
    const [row] = await db.query<{ seconds: number }>(
      `select extract(epoch from rest_until - agentd.now())::float8 as seconds from agentd.vector_stores where datastore_id = $1`,
      [t.datastore],
    );
    expect(row?.seconds).toBeGreaterThan(500);
    expect(row?.seconds).toBeLessThanOrEqual(600);
  });

  test.each([
    ['credentials_refused', { api_key: 'nobodys', index: 'x' }, {}],
    ['no_credentials', { index: 'x' }, {}],
    ['no_credentials', { api_key: 'v1:gone:AAAAAAAAAAAAAAAA:AAAAAAAAAAAAAAAAAAAAAA:AAAA', index: 'x' }, {}],
    ['invalid_config', { api_key: 'k' }, {}],
    ['dimension_mismatch', null, { dimension: 8 }],
  ])(
    '%s is said where it is, with what to do, and another’s store goes on',
    async (code, config, options) => {
      const t = await tenant({ ...options, ...(config ? { config } : {}) });
      const other = await tenant();
      const id = await source(t, content('stuck', 2));
      const good = await source(other, content('free', 2));
      await converged(other, good);
      const row = await until('the reason is there', async () => {
        const [found] = await db.query<{ reason_code: string; reason: string }>(
          `select coalesce(o.reason_code, s.reason_code) as reason_code, coalesce(o.reason, s.reason) as reason
           from agentd.vector_outbox o join agentd.vector_stores s on s.id = o.store_id
          where o.source_id = $1 and coalesce(o.reason_code, s.reason_code) is not null`,
          [id],
        );
        return found ?? false;
      });
      expect(row.reason_code).toBe(code);
      expect(row.reason).toMatch(/Store|Make|Put|Correct/);
      expect(JSON.stringify(row)).not.toContain('nobodys');
      expect(await ledger(id)).toMatchObject({ processing_status: 'completed' });
      if (code !== 'credentials_refused') return;
      await db.query('update public.datastores set config = $2 where id = $1', [
        t.datastore,
        JSON.stringify({ api_key: `key-${t.index}`, index: t.index }),
      ]);
      await converged(t, id);
    },
  );

  test('a store that hangs holds up no other', async () => {
    const stuck = await Promise.all([tenant(), tenant(), tenant()]);
    const keys = new Set(stuck.map((t) => `key-${t.index}`));
    peer.fault = (call) => (keys.has(call.key ?? '') ? { kind: 'hang' } : null);
    for (const t of stuck) await source(t, content('hanging', 2));
    await until('they hang', () => peer.calls.some((call) => keys.has(call.key ?? '')));
    const t = await tenant();
    await converged(t, await source(t, content('swift', 2)));
  });

  test('drift is found and put right: what is missing, what is too much, what is nobody’s', async () => {
    const t = await tenant();
    const [a, b] = await Promise.all([source(t, content('sound')), source(t, content('other', 5))]);
    await converged(t, a);
    await converged(t, b);
    const { id: storeId } = (await store(t)) ?? { id: '' };
    const space = peer.indexes.get(t.index)?.namespaces.get(t.workspaceId) ?? new Map();
    const [first, second] = there(t, a);
    space.delete(first?.id);
    space.delete(second?.id);
    const plant = (id: string) => space.set(id, { id, values: Array(DIMENSIONS).fill(1), metadata: {} });
    const stray = '01234567-89ab-4cde-8f01-23456789abcd';
    plant(`${storeId}#${a}#1#7`);
    plant(`${storeId}#${a}#999#0`);
    plant(`${storeId}#${stray}#1#0`);
    plant(`${storeId}#nonsense`);
    plant('somebody-elses');
    await settle(t);
    await db.query('update agentd.vector_stores set reconcile_at = agentd.now() where id = $1', [storeId]);
    await until('it was compared', async () => (await store(t))?.reconciled_at);
    await converged(t, a);
    await until('the strays are gone', () => ![...space.keys()].some((id) => id.includes(stray)));
    expect([...space.keys()].filter((id) => id.includes('nonsense'))).toEqual([]);
    expect(space.has('somebody-elses')).toBe(true);
    expect(await store(t)).toMatchObject({ missing_vectors: 2, extra_vectors: 4 });
    expect(daemon.log.some((line) => line.includes('vectors_drifted'))).toBe(true);
  });

  test('upserts that were acknowledged and forgotten come back with the comparison', async () => {
    const t = await tenant();
    let forgotten = 0;
    peer.fault = (call) =>
      call.key === `key-${t.index}` && call.path === '/vectors/upsert' && forgotten++ === 0
        ? { kind: 'forget' }
        : null;
    const id = await source(t, content('forgotten', 40));
    await until('it is taken for done', async () => {
      const rows = await db.query('select 1 from agentd.vector_copies where source_id = $1', [id]);
      return rows.length > 0;
    });
    expect(there(t, id).length).toBeLessThan((await ledger(id)).chunk_count);
    await settle(t);
    await db.query('update agentd.vector_stores set reconcile_at = agentd.now() where datastore_id = $1', [
      t.datastore,
    ]);
    await converged(t, id);
  });

  test('a sealed key opens for its own datastore, and for its deletion', async () => {
    const t = await tenant();
    const sealed = secrets.seal(`key-${t.index}`, {
      table: 'public.datastores',
      row: t.datastore,
      column: 'config',
      workspace: t.workspaceId,
    });
    await db.query('update public.datastores set config = $2 where id = $1', [
      t.datastore,
      JSON.stringify({ api_key: sealed, index: t.index }),
    ]);
    const id = await source(t, content('sealed', 2));
    await converged(t, id);
    await db.query('delete from public.workspaces where id = $1', [t.workspaceId]);
    await until('its vectors are gone', () => peer.vectors(t.index, t.workspaceId).length === 0);

    // copied into another's datastore it opens nothing
    const thief = await tenant({ config: { api_key: sealed, index: t.index } });
    await source(thief, content('stolen', 2));
    await until('it does not open', async () => (await store(thief))?.reason_code === 'no_credentials');
  });

  test('a search asks the store, and believes the ledger', async () => {
    const t = await tenant();
    const search = searcher();
    const id = await source(t, content('searched'));
    await converged(t, id);
    await settle(t);
    const own = (
      await findKnowledge(
        {
          db,
          queries: new QueryEmbedder({
            clock: systemClock,
            log: logger,
            embedderOf: () => ({ provider: 'agentd', embedder: featureHashEmbedder(DIMENSIONS) }),
          }),
        },
        {
          workspaceId: t.workspaceId,
          agentId: t.agentId,
          text: 'passage 7',
          limit: 5,
          signal: new AbortController().signal,
        },
      )
    ).chunks;
    const found = (await search(t, 'passage 7')).chunks;
    expect(queriesAsked()).toBe(1);
    expect(found.map(({ id: chunk, score }) => [chunk, score])).toEqual(
      own.map(({ id: chunk, score }) => [chunk, score]),
    );
    // What a store makes up is not found: another's chunk, one that is not there, what is no id.
    const other = await tenant();
    const foreign = await source(other, content('foreign', 3));
    const row = await converged(other, foreign);
    const { id: storeId } = (await store(t)) ?? { id: '' };
    const space = peer.indexes.get(t.index)?.namespaces.get(t.workspaceId) ?? new Map();
    const [any] = there(t, id);
    for (const planted of [
      `${storeId}#${foreign}#${row.generation}#0`,
      `${storeId}#${id}#1#99999`,
      'x',
      `${storeId}#a#b#c`,
    ]) {
      space.set(planted, { id: planted, values: any?.values ?? [], metadata: any?.metadata ?? {} });
    }
    const again = (await search(t, 'passage 7', 20)).chunks;
    expect(again.length).toBe(20);
    expect(again.every((chunk) => chunk.content.includes('searched edition'))).toBe(true);
  });

  test('a store that is slow or away costs a moment, and the database’s own vectors answer', async () => {
    const t = await tenant();
    const id = await source(t, content('steady'));
    await converged(t, id);
    await settle(t);
    for (const fault of [{ kind: 'hang' }, { kind: 'lose' }, { kind: 'status', status: 503 }] as const) {
      const search = searcher({ deadlineMs: 1_000 });
      peer.fault = (call) => (call.path === '/query' ? fault : null);
      const asked = queriesAsked();
      const { chunks } = await search(t, 'passage of the edition');
      expect(chunks).toHaveLength(5);
      expect(chunks.every((chunk) => chunk.similarity !== null)).toBe(true);
      expect(queriesAsked()).toBe(asked + 1);
      // it rests: the next one does not wait
      await search(t, 'passage of the edition');
      expect(queriesAsked()).toBe(asked + 1);
    }
    expect(log.filter((line) => line.includes('remote_search_failed')).length).toBeGreaterThanOrEqual(3);
  });

  test('a run of the daemon searches its knowledge there', async () => {
    const t = await tenant();
    await converged(t, await source(t, content('running')));
    await settle(t);
    await startTask(db, t, 'passage 7 of the edition');
    const call = await until('the store is asked', () => peer.calls.find(({ path }) => path === '/query'));
    expect(call).toMatchObject({ key: `key-${t.index}`, namespace: t.workspaceId });
  });

  test('an agent without the datastore finds nothing of it', async () => {
    const t = await tenant();
    await converged(t, await source(t, content('secret')));
    await settle(t);
    await db.query('update public.agent_datastores set is_active = false where datastore_id = $1', [
      t.datastore,
    ]);
    expect((await searcher()(t, 'passage of the edition')).chunks).toEqual([]);
    expect(queriesAsked()).toBe(0);
  });

  test('two datastores in one index do not touch each other’s vectors', async () => {
    const t = await tenant();
    const twin = await insert(db, 'public.datastores', {
      workspace_id: t.workspaceId,
      user_id: t.userId,
      name: 'Twin',
      type: 'pinecone',
      config: JSON.stringify({ api_key: `key-${t.index}`, index: t.index }),
    });
    const id = await source(t, content('shared', 3));
    const other = await source({ ...t, datastore: twin }, content('twin', 3));
    await converged(t, id);
    await converged(t, other);
    await db.query('delete from public.datastores where id = $1', [twin]);
    await until('the twin’s are gone', () => there(t, other).length === 0);
    await converged(t, id);
  });

  describe('a hostile tenant', () => {
    test.each([
      'http://169.254.169.254',
      'https://127.0.0.1:5432',
      'localhost:5432',
      'https://[::1]',
      'metadata.google.internal',
      'https://pinecone.io.evil.example',
      'https://evil.example/.pinecone.io',
      'http://index.svc.pinecone.io',
      'https://user:password@index.svc.pinecone.io',
    ])('does not send the worker to %s', async (host) => {
      const t = await tenant({ config: { api_key: 'k', host } });
      await source(t, content('probe', 1));
      const row = await until('it is refused', async () => {
        const found = await store(t);
        return found?.reason_code ? found : false;
      });
      expect(row.reason_code).toBe('blocked_address');
      expect(row.reason?.length).toBeGreaterThan(20);
    });

    test('chooses no namespace', async () => {
      const victim = await tenant();
      const t = await tenant();
      await db.query('update public.datastores set config = config || $2 where id = $1', [
        t.datastore,
        JSON.stringify({ namespace: victim.workspaceId }),
      ]);
      await converged(t, await source(t, content('planted', 2)));
      const spaces = [...(peer.indexes.get(t.index)?.namespaces.keys() ?? [])];
      expect(spaces).toEqual([t.workspaceId]);
    });

    test('has his requests made with his own key alone', async () => {
      const victim = await tenant();
      await converged(victim, await source(victim, content('victim', 2)));
      peer.calls.length = 0;
      const t = await tenant({ config: { api_key: 'wrong', index: victim.index } });
      await source(t, content('thief', 2));
      await until('he is refused', async () => (await store(t))?.reason_code === 'credentials_refused');
      expect(new Set(peer.calls.map((call) => call.key))).toEqual(new Set(['wrong']));
    });

    test('reads nothing of the outbox, and calls none of its functions', async () => {
      const t = await tenant();
      for (const statement of [
        'select * from agentd.vector_stores',
        'select * from agentd.vector_outbox',
        'select * from agentd.vector_copies',
        `select agentd.retire_store('${t.datastore}', '{}')`,
        `select agentd.request_all_vectors('${t.datastore}')`,
      ]) {
        await expect(asUser(db, t.userId, (session) => session.query(statement))).rejects.toThrow(
          /permission denied/,
        );
      }
    });
  });
});

test('two daemons share the work, and each source is equal in the end', async () => {
  peer.fault = () => null;
  const all = await Promise.all(Array.from({ length: 4 }, () => tenant()));
  const ids = await Promise.all(
    all.flatMap((t) => [1, 2, 3].map(async (n) => [t, await source(t, content(`pair-${n}`, 8))] as const)),
  );
  await using _one = await testDaemon(db, MODEL, { env: env() });
  await using _two = await testDaemon(db, MODEL, { env: env() });
  for (const [t, id] of ids) await converged(t, id);
  await Promise.all(ids.map(([, id], n) => rewrite(id, content(`second-${n}`, 8))));
  for (const [t, id] of ids) {
    await until('the second edition', async () => (await ledger(id)).generation === 3);
    await converged(t, id);
  }
  expect(peer.rejected).toEqual([]);
}, 90_000);

test('a daemon that stops in the middle leaves the rest to the next', async () => {
  const t = await tenant();
  let sent = 0;
  peer.fault = (call) =>
    call.key === `key-${t.index}` && call.path === '/vectors/upsert' && ++sent === 2
      ? { kind: 'hang' }
      : null;
  const id = await source(t, content('interrupted', 120));
  {
    await using _first = await testDaemon(db, MODEL, { env: env() });
    await until('the second request hangs', () => sent >= 2);
  }
  expect(there(t, id).length).toBeGreaterThan(0);
  await using _second = await testDaemon(db, MODEL, { env: env() });
  await converged(t, id);
}, 60_000);
