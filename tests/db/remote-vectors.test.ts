/** What becomes a row of the outbox, who may take it, and what a retired store keeps. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  type ClaimedStore,
  claimStores,
  dropRetiredStores,
  noteUnfinished,
  releaseStore,
  requestForgotten,
  settleUpsert,
  takeOutboxRow,
} from '../../src/db/remote-vectors.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, type Platform } from '../support/platform.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await testDatabase();
});
afterAll(() => db?.dispose());

const NOTHING = { restMs: null, reasonCode: null, reason: null };
const datastore = (p: Platform, config: object = { api_key: 'k', index: 'i' }, type = 'pinecone') =>
  insert(db, 'public.datastores', {
    workspace_id: p.workspaceId,
    user_id: p.userId,
    name: 'd',
    type,
    config: JSON.stringify(config),
  });
/** A source that an application has chunked itself. */
async function source(p: Platform, store: string | null): Promise<string> {
  const id = await insert(db, 'public.knowledge_sources', {
    workspace_id: p.workspaceId,
    datastore_id: store,
    name: 's',
    type: 'TEXT',
    content: 'c',
    processing_status: 'completed',
  });
  await insert(db, 'public.knowledge_chunks', {
    source_id: id,
    workspace_id: p.workspaceId,
    content: 'c',
    chunk_index: 0,
  });
  return id;
}
const rows = (store: string) =>
  db.query<{ source_id: string; op: string; request: number; generation: number | null; retired: boolean }>(
    `select o.source_id, o.op, o.request, o.generation, s.retired_at is not null as retired
       from agentd.vector_outbox o join agentd.vector_stores s on s.id = o.store_id
      where s.datastore_id = $1 order by o.source_id`,
    [store],
  );
const stores = (store: string) =>
  db.query<{ id: string; retired: boolean; config: unknown }>(
    'select id, retired_at is not null as retired, config from agentd.vector_stores where datastore_id = $1 order by created_at, retired_at',
    [store],
  );
/** Only the stores of the test at hand are wanted. */
const clear = () => db.query('delete from agentd.vector_stores');
const claim = async (store: string): Promise<ClaimedStore> => {
  const claimed = await claimStores(db, 'w', 100, 60);
  const found = claimed.find((each) => each.datastore_id === store);
  if (!found) throw new Error(`The store of ${store} was not claimed.`);
  return found;
};
/** As if it had been sent. */
async function send(store: string): Promise<void> {
  const claimed = await claim(store);
  for (;;) {
    const row = await takeOutboxRow(db, claimed, 60);
    if (row === null) break;
    await settleUpsert(db, claimed, row, 1);
  }
  await releaseStore(db, claimed, NOTHING);
}

test('a source has one row however often it changes, and none where nothing was committed', async () => {
  const p = await makePlatform(db);
  const store = await datastore(p);
  const id = await source(p, store);
  for (let i = 0; i < 5; i++) {
    await db.query(
      'update public.knowledge_sources set generation = generation + 1, chunk_count = 1 where id = $1',
      [id],
    );
    await insert(db, 'public.knowledge_chunks', {
      source_id: id,
      workspace_id: p.workspaceId,
      content: 'c',
      chunk_index: 0,
    });
  }
  const found = await rows(store);
  expect(found).toHaveLength(1);
  expect(found[0]).toMatchObject({ op: 'upsert', generation: 6 });
  expect(found[0]?.request).toBeGreaterThan(5);

  const other = await source(p, store);
  await clear();
  await expect(
    db.transaction(async (tx) => {
      await tx.query('delete from public.knowledge_sources where id = $1', [other]);
      throw new Error('no');
    }),
  ).rejects.toThrow('no');
  expect(await rows(store)).toEqual([]);
});

test('what has no chunks, is archived or is in no such datastore has no row', async () => {
  const p = await makePlatform(db);
  const store = await datastore(p);
  const local = await datastore(p, {}, 'pgvector');
  await source(p, null);
  await source(p, local);
  await insert(db, 'public.knowledge_sources', {
    workspace_id: p.workspaceId,
    datastore_id: store,
    name: 's',
    type: 'TEXT',
    content: 'c',
  });
  expect(await rows(store)).toEqual([]);
  expect(await stores(local)).toEqual([]);
  const id = await source(p, store);
  await db.query(`update public.knowledge_sources set processing_status = 'archived' where id = $1`, [id]);
  expect(await rows(store)).toMatchObject([{ source_id: id, op: 'delete' }]);
});

test('a change while a row is worked on is not lost with it', async () => {
  const p = await makePlatform(db);
  const store = await datastore(p);
  const id = await source(p, store);
  const claimed = await claim(store);
  const row = await takeOutboxRow(db, claimed, 60);
  expect(row).toMatchObject({ source_id: id, generation: 1, is_known: false });
  await db.query(`update public.knowledge_sources set processing_status = 'archived' where id = $1`, [id]);
  if (row) await settleUpsert(db, claimed, row, 1);
  expect(await takeOutboxRow(db, claimed, 60)).toMatchObject({
    source_id: id,
    generation: null,
    copy_generation: 1,
  });
});

test('a store has one worker at a time, and one that was taken over changes nothing', async () => {
  await clear();
  const p = await makePlatform(db);
  const store = await datastore(p);
  await source(p, store);
  const [a, b] = await Promise.all([claimStores(db, 'a', 5, 60), claimStores(db, 'b', 5, 60)]);
  expect([...a, ...b].map((each) => each.datastore_id)).toEqual([store]);
  const [first] = [...a, ...b];
  if (!first) throw new Error('nobody claimed it');
  const row = await takeOutboxRow(db, first, 60);
  await db.query(`update agentd.vector_stores set leased_until = agentd.now() - interval '1 second'`);
  const second = await claim(store);
  expect(second.lease_epoch).toBe(first.lease_epoch + 1);
  expect(await takeOutboxRow(db, first, 60)).toBeNull();
  if (row) await settleUpsert(db, first, row, 1);
  await releaseStore(db, first, { restMs: 1e6, reasonCode: 'timeout', reason: 'late' });
  expect(await rows(store)).toHaveLength(1);
  expect(await takeOutboxRow(db, second, 60)).not.toBeNull();
});

test('a workspace takes two slots at most, whatever number of stores it has', async () => {
  await clear();
  const greedy = await makePlatform(db);
  for (let i = 0; i < 6; i++) await source(greedy, await datastore(greedy));
  const other = await makePlatform(db);
  const theirs = await datastore(other);
  await source(other, theirs);
  const claimed = await claimStores(db, 'w', 8, 60);
  expect(claimed).toHaveLength(3);
  expect(claimed.filter((each) => each.workspace_id === greedy.workspaceId)).toHaveLength(2);
  expect(await claimStores(db, 'w', 8, 60)).toEqual([]);
});

test('another key keeps the store, another index retires it with the config that it had', async () => {
  await clear();
  const p = await makePlatform(db);
  const store = await datastore(p);
  const id = await source(p, store);
  await send(store);
  expect(await rows(store)).toEqual([]);
  await db.query('update public.datastores set config = $2 where id = $1', [
    store,
    '{"api_key":"other","index":"i"}',
  ]);
  expect(await stores(store)).toMatchObject([{ retired: false, config: null }]);
  await db.query('update public.datastores set config = $2 where id = $1', [
    store,
    '{"api_key":"other","index":"j"}',
  ]);
  expect(await stores(store)).toMatchObject([
    { retired: true, config: { api_key: 'other', index: 'i' } },
    { retired: false, config: null },
  ]);
  expect((await rows(store)).sort((a, b) => Number(a.retired) - Number(b.retired))).toMatchObject([
    { source_id: id, op: 'upsert', retired: false },
    { source_id: id, op: 'delete', retired: true },
  ]);
  // what was never taken was never sent: pointing elsewhere again and again piles up nothing
  for (const index of ['k', 'l', 'm']) {
    await db.query('update public.datastores set config = $2 where id = $1', [
      store,
      `{"api_key":"other","index":"${index}"}`,
    ]);
  }
  expect(await stores(store)).toHaveLength(2);
  expect(await rows(store)).toHaveLength(2);
});

test('a deleted workspace leaves its deletions and the key for them, and nothing once they are done or a week old', async () => {
  await clear();
  const p = await makePlatform(db, { shared: true });
  const store = await datastore(p);
  const id = await source(p, store);
  await send(store);
  await db.query('delete from public.workspaces where id = $1', [p.workspaceId]);
  expect(await stores(store)).toMatchObject([{ retired: true, config: { api_key: 'k', index: 'i' } }]);
  expect(await rows(store)).toMatchObject([{ source_id: id, op: 'delete', retired: true }]);
  expect(await dropRetiredStores(db)).toEqual([]);
  expect(await stores(store)).toHaveLength(1);
  await db.query(`update agentd.vector_stores set retired_at = retired_at - interval '8 days'`);
  expect(await dropRetiredStores(db)).toMatchObject([{ datastore_id: store }]);
  expect(await stores(store)).toEqual([]);
  expect(await rows(store)).toEqual([]);
});

test('stores that rest or are at work keep no other from being compared, however many they are', async () => {
  await clear();
  await db.query(
    `insert into agentd.vector_stores (datastore_id, workspace_id, reconcile_at, rest_until)
     select gen_random_uuid(), gen_random_uuid(), agentd.now() - interval '2 days', agentd.now() + interval '30 minutes'
       from generate_series(1, 201)`,
  );
  const busy = await makePlatform(db);
  await db.query(
    `insert into agentd.vector_stores (datastore_id, workspace_id, reconcile_at, leased_until)
     select gen_random_uuid(), $1, agentd.now() - interval '2 days', case when i <= 2 then agentd.now() + interval '1 minute' end
       from generate_series(1, 210) i`,
    [busy.workspaceId],
  );
  const p = await makePlatform(db);
  const store = await datastore(p);
  await db.query(
    `update agentd.vector_stores set reconcile_at = agentd.now() - interval '1 day' where datastore_id = $1`,
    [store],
  );
  const claimed = await claimStores(db, 'w', 8, 60);
  expect(claimed).toMatchObject([{ datastore_id: store, is_reconcile_due: true }]);
});

test('what a clock that was ahead has written waits no longer than anything does', async () => {
  await clear();
  const p = await makePlatform(db);
  const store = await datastore(p);
  const id = await source(p, store);
  expect(await db.query('select retry_at from agentd.vector_outbox where source_id = $1', [id])).toEqual([
    { retry_at: null },
  ]);
  const put = (table: string, column: string, ahead: string | null) =>
    db.query(`update agentd.${table} set ${column} = agentd.now() + $1::interval`, [ahead]);
  /** Whether the store is claimed, and its row taken, with a moment as far ahead as said. */
  const isDue = async (table: string, column: string, ahead: string): Promise<boolean> => {
    await put(table, column, ahead);
    const [claimed] = await claimStores(db, 'w', 8, 60);
    const row = claimed ? await takeOutboxRow(db, claimed, 60) : null;
    if (claimed) await releaseStore(db, claimed, NOTHING);
    if (!row) await put(table, column, null);
    expect(claimed === undefined).toBe(row === null);
    return row !== null;
  };
  for (const [table, column, most, more] of [
    ['vector_stores', 'leased_until', '9 minutes', '11 minutes'],
    ['vector_stores', 'rest_until', '59 minutes', '61 minutes'],
    ['vector_outbox', 'retry_at', '59 minutes', '61 minutes'],
  ] as const) {
    expect([column, await isDue(table, column, most)]).toEqual([column, false]);
    expect([column, await isDue(table, column, more)]).toEqual([column, true]);
    await put(table, column, null);
  }
});

test('a source that needs more turns waits behind those that came during its last one', async () => {
  await clear();
  const p = await makePlatform(db);
  const store = await datastore(p);
  const long = await source(p, store);
  const claimed = await claim(store);
  const row = await takeOutboxRow(db, claimed, 60);
  const short = await source(p, store);
  if (row) await noteUnfinished(db, claimed, row);
  expect((await takeOutboxRow(db, claimed, 60))?.source_id).toBe(short);
  // also where its worker died over it
  expect((await takeOutboxRow(db, claimed, 60))?.source_id).toBe(long);
  expect((await takeOutboxRow(db, claimed, 60))?.source_id).toBe(short);
});

test('a source that nobody asked for is asked for once, and those that are there or on their way are not', async () => {
  await clear();
  const p = await makePlatform(db);
  const store = await datastore(p);
  const [lost = '', sent = '', archived = ''] = [
    await source(p, store),
    await source(p, store),
    await source(p, store),
  ];
  await db.query(`update public.knowledge_sources set processing_status = 'archived' where id = $1`, [
    archived,
  ]);
  await db.query('delete from agentd.vector_outbox where source_id = any ($1)', [[lost, archived]]);
  const claimed = await claim(store);
  const row = await takeOutboxRow(db, claimed, 60);
  if (row) await settleUpsert(db, claimed, row, 1);
  expect(row?.source_id).toBe(sent);
  const waits = await source(p, store);
  expect(await requestForgotten(db, claimed, null)).toEqual({ last: null, chunks: 1 });
  expect((await rows(store)).map((each) => each.source_id).sort()).toEqual([lost, waits].sort());
  expect(await requestForgotten(db, claimed, null)).toEqual({ last: null, chunks: 0 });
  expect(await requestForgotten(db, { ...claimed, lease_epoch: 0 }, null)).toEqual({ last: null, chunks: 0 });
});

test.skipIf(!onServer)(
  'server-only: rows that a tenant’s open transaction holds hold up no other store',
  async () => {
    await clear();
    const p = await makePlatform(db);
    const store = await datastore(p);
    const id = await source(p, store);
    const other = await makePlatform(db);
    const theirs = await datastore(other);
    await source(other, theirs);
    await db.transaction(async (tx) => {
      await tx.query('update public.datastores set config = $2 where id = $1', [
        store,
        '{"api_key":"x","index":"i"}',
      ]);
      await tx.query(`update public.knowledge_sources set processing_status = 'archived' where id = $1`, [
        id,
      ]);
      await db.query(`set lock_timeout = '250ms'`);
      const claimed = await claimStores(db, 'w', 8, 60);
      expect(claimed.map((each) => each.datastore_id)).toEqual([theirs]);
      const [free] = claimed;
      expect(free && (await takeOutboxRow(db, free, 60))).not.toBeNull();
    });
  },
);
