/** What does not fit into one turn at an index of vectors goes on in the next, and holds up nothing else. */
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { systemClock } from '../../../src/clock.ts';
import { claimStores } from '../../../src/db/remote-vectors.ts';
import { type SyncOutcome, syncStore } from '../../../src/pipelines/ingest/sync-vectors.ts';
import { openPinecones, type Pinecones } from '../../../src/providers/pinecone.ts';
import { openZeps, type Zeps } from '../../../src/providers/zep.ts';
import { columnSecretStore, parseKeyRing } from '../../../src/secrets.ts';
import { createLogger } from '../../../src/telemetry/logger.ts';
import { type PineconeServer, startPineconeServer } from '../../peers/pinecone-server.ts';
import { onServer, type TestDatabase, testDatabase } from '../../support/database.ts';
import { handClock } from '../../support/hand-clock.ts';
import { insert, makePlatform, type Platform } from '../../support/platform.ts';

/** Ten pages of a listing. */
const CHUNKS = 1_000;
/** A turn of 40 s sees four pages. */
const PAGE_MS = 10_000;

let db: TestDatabase;
let peer: PineconeServer;
let pinecone: Pinecones;
let getzep: Zeps;
const clock = handClock();
const log = createLogger({ level: 'silent' });

beforeAll(async () => {
  db = await testDatabase();
  peer = await startPineconeServer();
  const secrets = columnSecretStore(parseKeyRing({}));
  pinecone = openPinecones({ url: peer.url, allowedPrivateHosts: [], clock: systemClock, secrets });
  getzep = openZeps({ url: null, allowedPrivateHosts: [], clock: systemClock, secrets });
  peer.onAnswered = (call) => {
    if (call.path === '/vectors/list') void clock.advance(PAGE_MS);
  };
});
afterAll(async () => {
  await pinecone?.close();
  await getzep?.close();
  await peer?.close();
  await db?.dispose();
});
/** Only the store of the test at hand is wanted. */
beforeEach(() => db.query('delete from agentd.vector_stores'));

type Place = Platform & { readonly datastore: string; readonly index: string };
async function place(index: string): Promise<Place> {
  const p = await makePlatform(db);
  peer.indexes.set(index, { dimension: 4, apiKey: `key-${index}`, namespaces: new Map() });
  const datastore = await insert(db, 'public.datastores', {
    workspace_id: p.workspaceId,
    user_id: p.userId,
    name: 'd',
    type: 'pinecone',
    config: JSON.stringify({ api_key: `key-${index}`, index }),
  });
  return { ...p, datastore, index };
}
/** Chunks that an application writes itself. */
const chunks = (on: Pick<TestDatabase, 'query'>, p: Place, id: string, generation: number, count: number) =>
  on.query(
    `insert into public.knowledge_chunks (workspace_id, source_id, generation, chunk_index, content, embedding, embedding_model)
     select $1, $2, $3, i, 'c', ('[' || i + 1 || ',2,3,4]')::vector, 'm' from generate_series(0, $4::integer - 1) i`,
    [p.workspaceId, id, generation, count],
  );
async function source(p: Place, count: number): Promise<string> {
  const id = await insert(db, 'public.knowledge_sources', {
    workspace_id: p.workspaceId,
    datastore_id: p.datastore,
    name: 's',
    type: 'TEXT',
    processing_status: 'completed',
  });
  await chunks(db, p, id, 1, count);
  return id;
}
/** Of which generation what is there of a source is, and how much of it. */
const there = (p: Place, id: string) => {
  const found = peer.vectors(p.index, p.workspaceId).filter((vector) => vector.metadata.source === id);
  return { count: found.length, generations: [...new Set(found.map(({ metadata }) => metadata.generation))] };
};
async function turn(): Promise<SyncOutcome> {
  const [claimed] = await claimStores(db, 'w', 1, 75);
  if (!claimed) throw new Error('There is nothing to do.');
  return syncStore({ db, clock, log, stores: { pinecone, getzep } }, claimed, new AbortController().signal);
}
const waiting = async (): Promise<string[]> =>
  (await db.query<{ source_id: string }>('select source_id from agentd.vector_outbox')).map(
    (row) => row.source_id,
  );
/** Turns until nothing waits; more than `most` are too many. */
async function finish(most: number): Promise<void> {
  for (let turns = 0; (await waiting()).length > 0; turns++) {
    expect(turns).toBeLessThan(most);
    await turn();
  }
}
const compared = async () => {
  const [row] = await db.query<{ at: Date | null; missing_vectors: number; extra_vectors: number }>(
    'select reconciled_at as at, missing_vectors, extra_vectors from agentd.vector_stores where retired_at is null',
  );
  return row;
};
const settle = async (): Promise<void> => {
  await db.query(`update agentd.vector_copies set synced_at = synced_at - interval '10 minutes'`);
  await db.query('update agentd.vector_stores set reconcile_at = agentd.now()');
};

test('a source whose listing does not fit into a turn gets done, and another has its turn in between', async () => {
  const p = await place('long-listing');
  const big = await source(p, CHUNKS);
  await finish(1);
  await chunks(db, p, big, 2, CHUNKS);
  await db.query('update public.knowledge_sources set generation = 2 where id = $1', [big]);
  // both generations are there for a while: what was counted is deleted without a listing
  const small = await source(p, 3);
  expect(await turn()).toEqual({ done: 0, code: null });
  expect(await waiting()).toHaveLength(2);
  expect(await turn()).toEqual({ done: 1, code: null });
  expect(await waiting()).toEqual([big]);
  expect(there(p, small).count).toBe(3);
  await finish(3);
  expect(there(p, big)).toEqual({ count: CHUNKS, generations: [2] });

  // a change begins from the front
  await db.query('update agentd.vector_copies set generation = 1 where source_id = $1', [big]);
  await db.query('delete from public.knowledge_sources where id = $1', [big]);
  await db.query(`update agentd.vector_stores set reconcile_at = agentd.now() + interval '1 hour'`);
  expect(await turn()).toEqual({ done: 0, code: null });
  await db.query(`select agentd.request_vectors($1, $2, $3, 'delete', null)`, [
    p.datastore,
    big,
    p.workspaceId,
  ]);
  expect(await db.query('select removal_place from agentd.vector_outbox')).toEqual([{ removal_place: null }]);
  await finish(3);
  expect(there(p, big).count).toBe(0);
});

test('a source that is too long to compare in one turn is put right all the same', async () => {
  const p = await place('long-comparison');
  const big = await source(p, CHUNKS);
  await finish(1);
  const [store] = await db.query<{ id: string }>('select id from agentd.vector_stores');
  const space = peer.indexes.get(p.index)?.namespaces.get(p.workspaceId) ?? new Map();
  for (const at of [0, 500, 999]) expect(space.delete(`${store?.id}#${big}#1#${at}`)).toBe(true);
  for (const id of [`${store?.id}#${big}#0#5`, `${store?.id}#${big}#7#5`]) {
    space.set(id, { id, values: [1, 1, 1, 1], metadata: { source: big, generation: 0 } });
  }
  await settle();
  for (let turns = 0; (await compared())?.at === null; turns++) {
    expect(turns).toBeLessThan(8);
    await turn();
  }
  expect(await compared()).toMatchObject({ missing_vectors: 3, extra_vectors: 2 });
  expect(there(p, big)).toEqual({ count: CHUNKS, generations: [1] });
});

test.skipIf(!onServer)(
  'server-only: a source that is completed while its datastore is pointed elsewhere gets there with the comparison',
  async () => {
    const p = await place('before');
    const other = await place('after');
    const id = await insert(db, 'public.knowledge_sources', {
      workspace_id: p.workspaceId,
      datastore_id: p.datastore,
      name: 's',
      type: 'TEXT',
      processing_status: 'completed',
    });
    // a store that was in use is retired, and not only forgotten
    await source(p, 3);
    await db.query('delete from agentd.vector_stores where datastore_id = $1', [other.datastore]);
    await turn();
    await db.transaction(async (tx) => {
      await chunks(tx, p, id, 1, 3);
      await db.query('update public.datastores set config = $2 where id = $1', [
        p.datastore,
        JSON.stringify({ api_key: 'key-after', index: 'after' }),
      ]);
    });
    await finish(5);
    expect(there({ ...p, index: 'after' }, id).count).toBe(0);
    await settle();
    await turn();
    await finish(2);
    expect(there({ ...p, index: 'after' }, id).count).toBe(3);
    expect(there(p, id).count).toBe(0);
  },
);
