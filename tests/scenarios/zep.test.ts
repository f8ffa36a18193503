/** Passages in Zep's graphs: a real daemon, the official client, and a peer that is as strict as the documentation. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { systemClock } from '../../src/clock.ts';
import { findKnowledge, QueryEmbedder } from '../../src/pipelines/agent/query-embedding.ts';
import { RemoteSearch } from '../../src/pipelines/agent/remote-search.ts';
import { featureHashEmbedder } from '../../src/providers/feature-hash.ts';
import { openPinecones, type Pinecones } from '../../src/providers/pinecone.ts';
import { openZeps, type Zeps } from '../../src/providers/zep.ts';
import { columnSecretStore, parseKeyRing } from '../../src/secrets.ts';
import { createLogger } from '../../src/telemetry/logger.ts';
import { startZepServer, type ZepEpisode, type ZepFault, type ZepServer } from '../peers/zep-server.ts';
import { type TestDaemon, testDaemon } from '../support/daemon.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, type Platform, startTask } from '../support/platform.ts';
import { until } from '../support/runs.ts';
import { asUser } from '../support/sessions.ts';

const DIMENSIONS = 64;
const MODEL = { url: 'http://127.0.0.1:9', apiKey: 'none' };
const KEYS = { ENCRYPTION_KEY: 'ab'.repeat(32) };

let db: TestDatabase;
let peer: ZepServer;
let daemon: TestDaemon;
let zeps: Zeps;
let pinecones: Pinecones;
const secrets = columnSecretStore(parseKeyRing(KEYS));
const log: string[] = [];
const logger = createLogger({
  level: 'debug',
  destination: { write: (line: string) => void log.push(line) },
});

const env = () => ({
  AGENTD_EMBEDDING_DIMENSIONS: String(DIMENSIONS),
  AGENTD_ZEP_URL: peer.url,
  ...KEYS,
});

beforeAll(async () => {
  db = await testDatabase();
  peer = await startZepServer();
  zeps = openZeps({ url: peer.url, allowedPrivateHosts: [], clock: systemClock, secrets });
  pinecones = openPinecones({ url: null, allowedPrivateHosts: [], clock: systemClock, secrets });
});
afterAll(async () => {
  await zeps?.close();
  await pinecones?.close();
  await peer?.close();
  await db?.dispose();
});

type Tenant = Platform & { readonly datastore: string; readonly key: string };

let tenants = 0;
/** A workspace of its own with an agent, a datastore of type getzep and an account behind it. */
async function tenant(options: { config?: object } = {}): Promise<Tenant> {
  const platform = await makePlatform(db, { shared: true });
  const key = `key-${++tenants}`;
  peer.accounts.set(key, new Map());
  const datastore = await insert(db, 'public.datastores', {
    workspace_id: platform.workspaceId,
    user_id: platform.userId,
    name: 'Graph',
    type: 'getzep',
    config: JSON.stringify(options.config ?? { api_key: key }),
    similarity_threshold: 0,
  });
  await insert(db, 'public.agent_datastores', { agent_id: platform.agentId, datastore_id: datastore });
  return { ...platform, datastore, key };
}

const content = (edition: string, count = 12): string =>
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
const graphs = (t: Tenant) => [...(peer.accounts.get(t.key) ?? [])];
const all = (t: Tenant): ZepEpisode[] => graphs(t).flatMap(([, graph]) => [...graph.episodes.values()]);
const there = (t: Tenant, id: string): ZepEpisode[] =>
  all(t).filter((episode) => episode.metadata.source === id);
/** The peer holds each passage of the generation that is searched once and nothing else, each is known by its id, and the outbox is empty. */
const converged = (t: Tenant, id: string): Promise<Ledger> =>
  until(
    `source ${id} is equal in ledger and graph`,
    async () => {
      const row = await ledger(id);
      const open = await db.query('select 1 from agentd.vector_outbox where source_id = $1', [id]);
      const known = await db.query<{ episode_id: string | null }>(
        'select episode_id from agentd.graph_episodes where source_id = $1',
        [id],
      );
      const found = there(t, id);
      const ids = new Set(known.map((each) => each.episode_id));
      return row.processing_status === 'completed' &&
        open.length === 0 &&
        found.length === row.chunk_count &&
        known.length === row.chunk_count &&
        new Set(found.map((episode) => episode.metadata.chunk)).size === row.chunk_count &&
        found.every((episode) => episode.metadata.generation === row.generation && ids.has(episode.uuid))
        ? row
        : false;
    },
    30_000,
  );
const rewrite = async (id: string, text: string): Promise<void> => {
  await db.query('update public.knowledge_sources set content = $2 where id = $1', [id, text]);
};
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
/** What was added long ago is compared now. */
const compare = async (t: Tenant): Promise<void> => {
  await db.query(
    `update agentd.graph_episodes set asked_at = asked_at - interval '10 minutes'
      where store_id in (select id from agentd.vector_stores where datastore_id = $1)`,
    [t.datastore],
  );
  await db.query(
    'update agentd.vector_stores set reconcile_at = agentd.now(), reconciled_at = null where datastore_id = $1',
    [t.datastore],
  );
  await until('it was compared', async () => (await store(t))?.reconciled_at, 30_000);
};
const isOf = (t: Tenant, call: { readonly key: string | null }): boolean => call.key === t.key;
const isAdd = (call: { readonly path: string }): boolean =>
  call.path === '/graph-batch' || call.path === '/graph';
const queriesAsked = () => peer.calls.filter((call) => call.path === '/graph/search').length;

function searcher(options: { deadlineMs?: number } = {}) {
  const remote = new RemoteSearch({
    clock: systemClock,
    log: logger,
    stores: { pinecone: pinecones, getzep: zeps },
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

describe('with a daemon', () => {
  beforeAll(async () => {
    daemon = await testDaemon(db, MODEL, { env: env() });
  });
  afterAll(() => daemon?.stop());
  beforeEach(() => {
    peer.fault = () => null;
    peer.dislikes = () => false;
    peer.isHeld = false;
    peer.calls.length = 0;
  });
  afterEach(() => expect(peer.rejected.splice(0)).toEqual([]));

  test('every passage of a source gets there once, in a graph of its workspace and store, with where it is from', async () => {
    const t = await tenant();
    const id = await source(t, content('first', 30));
    const row = await converged(t, id);
    expect(row.chunk_count).toBeGreaterThan(20);
    const chunks = await db.query<{ chunk_index: number; content: string }>(
      'select chunk_index, content from public.knowledge_chunks where source_id = $1 order by 1',
      [id],
    );
    const episodes = there(t, id).sort((a, b) => Number(a.metadata.chunk) - Number(b.metadata.chunk));
    expect(episodes.map((e) => e.content.split('\n\n').slice(1).join('\n\n'))).toEqual(
      chunks.map((c) => c.content),
    );
    expect(episodes[0]?.content).toMatch(/^Manual\n\n/);
    const { id: storeId } = (await store(t)) ?? { id: '' };
    expect(graphs(t).map(([name]) => name)).toEqual([`agentd-${t.workspaceId}-${storeId}`]);
    expect(episodes[0]).toMatchObject({
      source_description: `agentd#${storeId}#${id}#${row.generation}#0#0`,
      metadata: { source: id, document: 'Manual', chunk: 0, generation: row.generation },
    });
  });

  test('a passage that is longer than an episode goes in parts, and what is empty does not', async () => {
    const t = await tenant();
    const id = await source(t, 'What the application has chunked itself.');
    await converged(t, id);
    const { generation } = await ledger(id);
    const long = 'Sätze 😀 '.repeat(2_800);
    const chunk = (index: number, text: string) =>
      insert(db, 'public.knowledge_chunks', {
        source_id: id,
        workspace_id: t.workspaceId,
        generation,
        chunk_index: index,
        content: text,
        page: 3,
        heading_path: ['Part one', 'Terms'],
      });
    await chunk(5, long);
    await chunk(6, '   ');
    const parts = await until('it is there', () => {
      const found = there(t, id).filter((e) => e.metadata.chunk === 5);
      return found.length === 3 && found;
    });
    const inOrder = parts.sort((a, b) => (a.source_description < b.source_description ? -1 : 1));
    expect(inOrder.map((e) => e.content.replace('Manual › Part one › Terms\n\n', '')).join('')).toBe(long);
    expect(parts[0]?.metadata).toMatchObject({ page: 3, heading: 'Part one › Terms' });
    await until(
      'it is done',
      async () =>
        (await db.query('select 1 from agentd.vector_outbox where source_id = $1', [id])).length === 0,
    );
    expect(there(t, id).filter((e) => e.metadata.chunk === 6)).toEqual([]);
    // a passage that the application takes out again goes
    await db.query('delete from public.knowledge_chunks where source_id = $1 and chunk_index = 5', [id]);
    await until('it is gone', () => there(t, id).every((e) => e.metadata.chunk !== 5));
  });

  test('of a new edition everything is there before anything of the old one goes, and no search finds both', async () => {
    const t = await tenant();
    const id = await source(t, content('olden'));
    const before = await converged(t, id);
    let added = 0;
    const early: string[] = [];
    peer.fault = (call) => {
      if (!isOf(t, call)) return null;
      if (isAdd(call)) added += Array.isArray(call.body?.episodes) ? call.body.episodes.length : 1;
      if (call.method === 'DELETE' && added < 14) early.push(call.path);
      return null;
    };
    const search = searcher();
    const editions: string[][] = [];
    let looking = true;
    const looks = (async () => {
      while (looking) {
        const { chunks } = await search(t, 'passage of the edition', 20);
        editions.push([...new Set(chunks.map((c) => /the (\w+) edition/.exec(c.content)?.[1] ?? '?'))]);
      }
    })();
    await rewrite(id, content('newest', 14));
    await until('the new edition is there', async () => (await ledger(id)).generation > before.generation);
    const after = await converged(t, id);
    looking = false;
    await looks;
    expect(after.chunk_count).toBeGreaterThanOrEqual(14);
    expect(early).toEqual([]);
    expect(editions.filter((found) => found.length !== 1)).toEqual([]);
    expect((await search(t, 'passage of the edition', 20)).chunks[0]?.content).toContain('newest');
  });

  test('what is archived, deleted or taken out of the datastore leaves the graph', async () => {
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
    await until(
      'nothing is known of them',
      async () =>
        (
          await db.query('select 1 from agentd.graph_episodes where source_id = any ($1)', [
            [archived, deleted, moved],
          ])
        ).length === 0,
    );
    await db.query('update public.knowledge_sources set datastore_id = $2 where id = $1', [
      moved,
      t.datastore,
    ]);
    await converged(t, moved);
  });

  test.each([
    ['a datastore', 'delete from public.datastores where id = $1', 'datastore'],
    ['a workspace, whose key goes with it,', 'delete from public.workspaces where id = $1', 'workspaceId'],
    [
      'a datastore that becomes another kind',
      `update public.datastores set type = 'pgvector' where id = $1`,
      'datastore',
    ],
  ] as const)(
    'of %s that is deleted the graph goes whole, with what Zep made of it, and the key is forgotten',
    async (_, statement, what) => {
      const t = await tenant();
      const [id, emptied] = await Promise.all([
        source(t, content('short-lived', 3)),
        source(t, content('x', 1)),
      ]);
      await converged(t, id);
      await converged(t, emptied);
      await db.query('delete from public.knowledge_sources where id = any ($1)', [
        what === 'workspaceId' ? [id, emptied] : [emptied],
      ]);
      await until('it is empty', () => there(t, emptied).length === 0);
      if (what === 'workspaceId') await until('it is empty', () => all(t).length === 0);
      expect(graphs(t)).toHaveLength(1);
      await db.query(statement, [t[what]]);
      await until('its graph is gone', () => graphs(t).length === 0);
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

  test('a datastore that is pointed elsewhere takes its passages along', async () => {
    const t = await tenant();
    const id = await source(t, content('wandering', 3));
    await converged(t, id);
    const [[old = ''] = []] = graphs(t);
    // the same account: the new graph is another than the one that goes
    await db.query('update public.datastores set config = $2 where id = $1', [
      t.datastore,
      JSON.stringify({ api_key: t.key, note: 'moved' }),
    ]);
    await until('the old graph is gone', () => graphs(t).length === 1 && graphs(t)[0]?.[0] !== old);
    await converged(t, id);
  });

  test('a source that nobody asked for gets there with the comparison', async () => {
    const t = await tenant();
    const id = await source(t, content('forgotten', 3));
    await db.query('update public.knowledge_sources set datastore_id = null where id = $1', [id]);
    await until('it is complete', async () => (await ledger(id)).processing_status === 'completed');
    await until('it is nowhere', async () => {
      const open = await db.query('select 1 from agentd.vector_outbox where source_id = $1', [id]);
      return open.length === 0 && there(t, id).length === 0;
    });
    await db.transaction(async (tx) => {
      await tx.query(`set local session_replication_role = 'replica'`);
      await tx.query('update public.knowledge_sources set datastore_id = $2 where id = $1', [
        id,
        t.datastore,
      ]);
    });
    await compare(t);
    await converged(t, id);
  });

  test('requests that are lost, answers that are lost, and a store that is away for a while: it converges, nothing twice', async () => {
    const t = await tenant();
    const faults: ZepFault[] = [
      { kind: 'lose' },
      { kind: 'status', status: 500 },
      { kind: 'lose_answer' },
      { kind: 'status', status: 429, retryAfter: 1 },
      { kind: 'lose_answer' },
      { kind: 'lose' },
    ];
    let met = 0;
    peer.fault = (call) => (isOf(t, call) && isAdd(call) ? (faults[met++] ?? null) : null);
    const id = await source(t, content('troubled', 50));
    await until(
      'every fault has been met',
      async () => {
        await hurry(t);
        return met > faults.length;
      },
      45_000,
    );
    await hurry(t);
    await converged(t, id);
    await until('it says so', async () => (await store(t))?.reason_code === null);
    // what was found again was not sent again: 20 + 20 + the rest, each heard once
    const sent = peer.calls.filter((call) => isOf(t, call) && isAdd(call)).length;
    expect(sent).toBe(faults.length + 1);
  }, 90_000);

  test('a request that arrives after it was given up makes passages that are there twice, until the comparison', async () => {
    const t = await tenant();
    let n = 0;
    peer.fault = (call) => (isOf(t, call) && isAdd(call) && n++ === 0 ? { kind: 'late' } : null);
    const id = await source(t, content('belated', 6));
    await until('it rests', async () => (await store(t))?.reason_code === 'unreachable');
    await hurry(t);
    const { chunk_count: count } = await converged(t, id);
    const [soon] = await db.query<{ seconds: number }>(
      'select extract(epoch from reconcile_at - agentd.now())::float8 as seconds from agentd.vector_stores where datastore_id = $1',
      [t.datastore],
    );
    expect(soon?.seconds).toBeLessThanOrEqual(120);
    peer.arrive();
    expect(there(t, id)).toHaveLength(2 * count);
    await compare(t);
    await converged(t, id);
    expect(await store(t)).toMatchObject({ missing_vectors: 0, extra_vectors: count });
  });

  test('drift is found and put right: what is missing, what is too much, what is nobody’s', async () => {
    const t = await tenant();
    const [a, b] = await Promise.all([source(t, content('sound')), source(t, content('other', 5))]);
    await converged(t, a);
    await converged(t, b);
    const { id: storeId } = (await store(t)) ?? { id: '' };
    const space = graphs(t)[0]?.[1].episodes ?? new Map<string, ZepEpisode>();
    const [first, second, third] = there(t, a);
    space.delete(first?.uuid ?? '');
    space.delete(second?.uuid ?? '');
    const plant = (n: number, label: string): void => {
      const uuid = `00000000-0000-4000-8000-00000000000${n}`;
      if (third) space.set(uuid, { ...third, uuid, source_description: label, metadata: {} });
    };
    plant(1, third?.source_description ?? '');
    plant(2, `agentd#${storeId}#${a}#999#0#0`);
    plant(3, `agentd#${storeId}#nonsense`);
    plant(4, 'an application’s own');
    plant(5, `agentd#00000000-0000-4000-8000-00000000000a#${a}#1#0#0`);
    await compare(t);
    await converged(t, a);
    await converged(t, b);
    expect(await store(t)).toMatchObject({ missing_vectors: 2, extra_vectors: 3 });
    expect([...space.keys()].filter((id) => id.startsWith('00000000-')).map((id) => id.at(-1))).toEqual([
      '4',
      '5',
    ]);
    expect(daemon.log.some((line) => line.includes('vectors_drifted'))).toBe(true);
  });

  test('a graph that somebody deleted is made again, with everything in it', async () => {
    const t = await tenant();
    const [a, b] = await Promise.all([source(t, content('alpha', 3)), source(t, content('beta', 3))]);
    await converged(t, a);
    await converged(t, b);
    peer.accounts.get(t.key)?.clear();
    await compare(t);
    await converged(t, a);
    await converged(t, b);
    // and where it is noticed by a new source
    peer.accounts.get(t.key)?.clear();
    const c = await source(t, content('gamma', 3));
    for (const id of [c, a, b]) await converged(t, id);
  });

  test('one passage that Zep does not want holds up no other, and is said where it is', async () => {
    const t = await tenant();
    peer.dislikes = (text) => text.includes('Passage 4 of');
    const id = await source(t, content('partly', 24));
    const row = await until('the reason is there', async () => {
      const [found] = await db.query<{ reason_code: string; reason: string }>(
        'select reason_code, reason from agentd.vector_outbox where source_id = $1 and reason_code is not null',
        [id],
      );
      return found ?? false;
    });
    expect(row.reason_code).toBe('refused');
    expect(row.reason).toContain('refuses 1 of');
    expect(there(t, id)).toHaveLength((await ledger(id)).chunk_count - 1);
    const other = await source(t, content('whole', 2));
    await converged(t, other);
    peer.dislikes = () => false;
    await db.query('update agentd.vector_outbox set retry_at = agentd.now() where source_id = $1', [id]);
    await converged(t, id);
  });

  test.each([
    ['credentials_refused', { api_key: 'nobodys' }],
    ['no_credentials', {}],
    ['no_credentials', { api_key: 'v1:gone:AAAAAAAAAAAAAAAA:AAAAAAAAAAAAAAAAAAAAAA:AAAA' }],
  ])('%s is said where it is, with what to do, and another’s store goes on', async (code, config) => {
    const t = await tenant({ config });
    const other = await tenant();
    const id = await source(t, content('stuck', 2));
    await converged(other, await source(other, content('free', 2)));
    const row = await until('the reason is there', async () => {
      const found = await store(t);
      return found?.reason_code ? found : false;
    });
    expect(row.reason_code).toBe(code);
    expect(row.reason).toMatch(/Store|Make|Put|Correct/);
    expect(JSON.stringify(row)).not.toContain('nobodys');
    expect(await ledger(id)).toMatchObject({ processing_status: 'completed' });
    await db.query('update public.datastores set config = $2 where id = $1', [
      t.datastore,
      JSON.stringify({ api_key: t.key }),
    ]);
    await converged(t, id);
  });

  test('Retry-After is honoured', async () => {
    const t = await tenant();
    peer.fault = (call) => (isOf(t, call) ? { kind: 'status', status: 429, retryAfter: 600 } : null);
    await source(t, content('patient', 2));
    await until('it rests', async () => (await store(t))?.reason_code === 'rate_limited');
    const [row] = await db.query<{ seconds: number }>(
      'select extract(epoch from rest_until - agentd.now())::float8 as seconds from agentd.vector_stores where datastore_id = $1',
      [t.datastore],
    );
    expect(row?.seconds).toBeGreaterThan(500);
    expect(row?.seconds).toBeLessThanOrEqual(600);
  });

  test('a store that hangs holds up no other', async () => {
    const stuck = await Promise.all([tenant(), tenant(), tenant()]);
    const keys = new Set<string | null>(stuck.map((t) => t.key));
    peer.fault = (call) => (keys.has(call.key) ? { kind: 'hang' } : null);
    for (const t of stuck) await source(t, content('hanging', 2));
    await until('they hang', () => peer.calls.some((call) => keys.has(call.key)));
    const t = await tenant();
    await converged(t, await source(t, content('swift', 2)));
  });

  test('a sealed key opens for its own datastore, and for its deletion', async () => {
    const t = await tenant();
    const sealed = secrets.seal(t.key, {
      table: 'public.datastores',
      row: t.datastore,
      column: 'config',
      workspace: t.workspaceId,
    });
    await db.query('update public.datastores set config = $2 where id = $1', [
      t.datastore,
      JSON.stringify({ api_key: sealed }),
    ]);
    await converged(t, await source(t, content('sealed', 2)));
    await db.query('delete from public.workspaces where id = $1', [t.workspaceId]);
    await until('its graph is gone', () => graphs(t).length === 0);
    // copied into another's datastore it opens nothing
    const thief = await tenant({ config: { api_key: sealed } });
    await source(thief, content('stolen', 2));
    await until('it does not open', async () => (await store(thief))?.reason_code === 'no_credentials');
  });

  test('what the graph finds counts, as far as the ledger has it and the agent may read it', async () => {
    const t = await tenant();
    const id = await source(t, content('searched'));
    const row = await converged(t, id);
    const search = searcher();
    const plain = (await search(t, 'zebra', 5)).chunks;
    expect(queriesAsked()).toBe(2);
    // no word of it in any passage: the graph knows it by a fact
    const chosen = there(t, id).find((e) => e.metadata.chunk === row.chunk_count - 1);
    const other = await tenant();
    const foreign = await source(other, content('foreign', 3));
    await converged(other, foreign);
    const state = graphs(t)[0]?.[1];
    const fact = (n: number, episodes: string[]) => ({
      uuid: `${n}`,
      fact: 'The zebra is striped',
      episodes,
    });
    state?.edges.push(
      fact(1, [chosen?.uuid ?? '']),
      fact(
        2,
        there(other, foreign).map((e) => e.uuid),
      ),
      fact(3, ['00000000-0000-4000-8000-000000000001']),
    );
    const found = (await search(t, 'zebra', 5)).chunks;
    expect(found[0]?.content).toContain(`Passage ${row.chunk_count - 1} of the searched`);
    expect(found.every((chunk) => chunk.content.includes('searched edition'))).toBe(true);
    expect(plain[0]?.score).toBeLessThan(found[0]?.score ?? 0);
    expect(found[0]?.facts).toEqual(['The zebra is striped']);
    expect(found.slice(1).flatMap((chunk) => chunk.facts ?? [])).toEqual([]);
    // one that is from a passage of his and from another's is not said
    state?.edges.splice(0);
    state?.edges.push(fact(4, [chosen?.uuid ?? '', there(other, foreign)[0]?.uuid ?? '']));
    const mixed = (await search(t, 'zebra', 5)).chunks;
    expect(mixed[0]?.id).toBe(found[0]?.id);
    expect(mixed.flatMap((chunk) => chunk.facts ?? [])).toEqual([]);

    // the datastore's threshold counts for it
    await db.query('update public.datastores set similarity_threshold = 0.99 where id = $1', [t.datastore]);
    expect((await search(t, 'zebra', 5)).chunks).toEqual([]);
    await db.query('update public.datastores set similarity_threshold = 0 where id = $1', [t.datastore]);

    // what is not processed yet is not found there, and found all the same
    peer.isHeld = true;
    const late = await source(t, 'The giraffe is tall.');
    await converged(t, late);
    expect((await search(t, 'giraffe', 5)).chunks[0]?.content).toContain('giraffe');

    await db.query('update public.agent_datastores set is_active = false where datastore_id = $1', [
      t.datastore,
    ]);
    peer.calls.length = 0;
    expect((await search(t, 'zebra', 5)).chunks).toEqual([]);
    expect(queriesAsked()).toBe(0);
  });

  test('without a vector the graph is asked all the same', async () => {
    const t = await tenant();
    const id = await source(t, content('wordless', 4));
    await converged(t, id);
    const chosen = there(t, id).find((e) => e.metadata.chunk === 2);
    graphs(t)[0]?.[1].edges.push({ uuid: '1', fact: 'The zebra is striped', episodes: [chosen?.uuid ?? ''] });
    const queries = new QueryEmbedder({
      clock: systemClock,
      log: logger,
      embedderOf: () => {
        throw new Error('no provider');
      },
      remote: new RemoteSearch({
        clock: systemClock,
        log: logger,
        stores: { pinecone: pinecones, getzep: zeps },
      }),
    });
    const { chunks } = await findKnowledge(
      { db, queries },
      {
        workspaceId: t.workspaceId,
        agentId: t.agentId,
        text: 'zebra',
        limit: 5,
        signal: new AbortController().signal,
      },
    );
    expect(chunks.map((chunk) => /Passage (\d+)/.exec(chunk.content)?.[1])).toEqual(['2']);
  });

  test('a graph that is slow or away costs a moment, and the database alone answers', async () => {
    const t = await tenant();
    await converged(t, await source(t, content('steady')));
    for (const fault of [{ kind: 'hang' }, { kind: 'lose' }, { kind: 'status', status: 503 }] as const) {
      const search = searcher({ deadlineMs: 1_000 });
      peer.fault = (call) => (call.path === '/graph/search' ? fault : null);
      const asked = queriesAsked();
      const { chunks } = await search(t, 'passage of the edition');
      expect(chunks).toHaveLength(5);
      expect(chunks.every((chunk) => chunk.similarity !== null)).toBe(true);
      expect(queriesAsked()).toBe(asked + 2);
      // it rests: the next one does not wait
      await search(t, 'passage of the edition');
      expect(queriesAsked()).toBe(asked + 2);
    }
    expect(log.filter((line) => line.includes('remote_search_failed')).length).toBeGreaterThanOrEqual(3);
  });

  test('a run of the daemon asks the graph of its own workspace, with its own key', async () => {
    const t = await tenant();
    await converged(t, await source(t, content('running')));
    const { id: storeId } = (await store(t)) ?? { id: '' };
    await startTask(db, t, 'passage 7 of the edition');
    const call = await until('the graph is asked', () =>
      peer.calls.find(({ path }) => path === '/graph/search'),
    );
    expect(call).toMatchObject({ key: t.key, body: { graph_id: `agentd-${t.workspaceId}-${storeId}` } });
  });

  describe('a hostile tenant', () => {
    test.each([
      'http://169.254.169.254',
      'https://127.0.0.1:5432',
      'localhost:5432',
      'https://[::1]',
      'https://api.getzep.com.evil.example',
      'https://evil.example/.getzep.com',
      'http://api.getzep.com',
      'https://user:password@api.getzep.com',
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

    test('chooses no graph, though he shares the account', async () => {
      const victim = await tenant();
      await converged(victim, await source(victim, content('victim', 2)));
      const [[theirs = ''] = []] = graphs(victim);
      const t = await tenant({ config: { api_key: victim.key, graph_id: theirs, graphId: theirs } });
      const id = await source(t, content('thief', 2));
      await converged({ ...t, key: victim.key }, id);
      expect(graphs(victim)).toHaveLength(2);
      expect(
        [...(peer.accounts.get(victim.key)?.get(theirs)?.episodes.values() ?? [])].some(
          (episode) => episode.metadata.source === id,
        ),
      ).toBe(false);
      await db.query('delete from public.datastores where id = $1', [t.datastore]);
      await until('his is gone', () => graphs(victim).length === 1);
      expect(graphs(victim)[0]?.[0]).toBe(theirs);
    });

    test('reads nothing of the graphs', async () => {
      const t = await tenant();
      for (const table of ['agentd.zep_graphs', 'agentd.graph_episodes', 'agentd.vector_stores']) {
        await expect(
          asUser(db, t.userId, (session) => session.query(`select * from ${table}`)),
        ).rejects.toThrow(/permission denied/);
      }
    });
  });
});

test('two daemons share the work, and each source is equal in the end', async () => {
  peer.fault = () => null;
  const everyone = await Promise.all(Array.from({ length: 3 }, () => tenant()));
  const ids = await Promise.all(
    everyone.flatMap((t) => [1, 2].map(async (n) => [t, await source(t, content(`pair-${n}`, 6))] as const)),
  );
  await using _one = await testDaemon(db, MODEL, { env: env() });
  await using _two = await testDaemon(db, MODEL, { env: env() });
  for (const [t, id] of ids) await converged(t, id);
  await Promise.all(ids.map(([, id], n) => rewrite(id, content(`second-${n}`, 6))));
  for (const [t, id] of ids) {
    await until('the second edition', async () => (await ledger(id)).generation === 3);
    await converged(t, id);
  }
  expect(peer.rejected).toEqual([]);
}, 90_000);

test('a daemon that stops in the middle leaves the rest to the next, and what was under way is there once', async () => {
  const t = await tenant();
  let adds = 0;
  peer.fault = (call) => {
    if (!isOf(t, call) || !isAdd(call)) return null;
    adds++;
    // carried out, and the daemon never hears of it
    if (adds === 2) return { kind: 'lose_answer' };
    return adds === 3 ? { kind: 'hang' } : null;
  };
  const id = await source(t, content('interrupted', 70));
  {
    await using _first = await testDaemon(db, MODEL, { env: env() });
    await until('its second answer was lost', () => adds >= 2);
  }
  {
    await hurry(t);
    await using _second = await testDaemon(db, MODEL, { env: env() });
    await until('another request hangs', () => adds >= 3);
  }
  await hurry(t);
  await using _third = await testDaemon(db, MODEL, { env: env() });
  await converged(t, id);
  expect(peer.rejected).toEqual([]);
}, 90_000);
