/** Which datastores have graphs, what is known of their episodes, and who may write it. */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { strayEpisodes } from '../../src/db/graph-comparison.ts';
import { citableFacts, findSearchableGraphs } from '../../src/db/graph-search.ts';
import {
  askForParts,
  forgetEpisodes,
  forgetEpisodesOfGraph,
  forgetUnanswered,
  noteEpisodes,
  noteGraph,
  settleGraphDeleted,
  staleEpisodes,
  unansweredBatches,
} from '../../src/db/remote-graphs.ts';
import {
  type ClaimedStore,
  claimStores,
  findSearchableStores,
  releaseStore,
  settleUpsert,
  takeOutboxRow,
} from '../../src/db/remote-vectors.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, type Platform } from '../support/platform.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await testDatabase();
});
afterAll(() => db?.dispose());
/** Only the stores of the test at hand are wanted. */
beforeEach(() => db.query('delete from agentd.vector_stores'));

const datastore = (p: Platform, type = 'getzep', config: object = { api_key: 'k' }) =>
  insert(db, 'public.datastores', {
    workspace_id: p.workspaceId,
    user_id: p.userId,
    name: 'd',
    type,
    config: JSON.stringify(config),
  });
/** A source that an application has chunked itself. */
async function source(p: Platform, store: string, chunks = 2): Promise<string> {
  const id = await insert(db, 'public.knowledge_sources', {
    workspace_id: p.workspaceId,
    datastore_id: store,
    name: 's',
    type: 'TEXT',
    content: 'c',
    processing_status: 'completed',
  });
  for (let index = 0; index < chunks; index++) {
    await insert(db, 'public.knowledge_chunks', {
      source_id: id,
      workspace_id: p.workspaceId,
      content: `passage ${index}`,
      chunk_index: index,
    });
  }
  return id;
}
const stores = (store: string) =>
  db.query<{ id: string; kind: string; retired: boolean }>(
    `select id, kind, retired_at is not null as retired from agentd.vector_stores where datastore_id = $1
      order by retired_at is null, created_at`,
    [store],
  );
const rows = (store: string) =>
  db.query<{ source_id: string; op: string; retired: boolean }>(
    `select o.source_id, o.op, s.retired_at is not null as retired
       from agentd.vector_outbox o join agentd.vector_stores s on s.id = o.store_id
      where s.datastore_id = $1 order by o.source_id`,
    [store],
  );
const claim = async (store: string): Promise<ClaimedStore> => {
  const found = (await claimStores(db, 'w', 100, 60)).find((each) => each.datastore_id === store);
  if (!found) throw new Error(`The store of ${store} was not claimed.`);
  return found;
};
/** As if it had been sent and answered. Returns the ids. */
async function send(p: Platform, claimed: ClaimedStore): Promise<string[]> {
  const ids: string[] = [];
  await noteGraph(db, claimed, p.workspaceId);
  for (;;) {
    const row = await takeOutboxRow(db, claimed, 60);
    if (row?.generation == null) break;
    const { generation } = row;
    const parts = await askForParts(db, claimed, { ...row, generation }, randomUUID(), 0, 100);
    const found = parts.map(({ chunk_index: index, part }) => ({
      id: randomUUID(),
      place: { sourceId: row.source_id, generation, index, part },
    }));
    await noteEpisodes(db, claimed, p.workspaceId, found);
    ids.push(...found.map(({ id }) => id));
    await settleUpsert(db, claimed, row, parts.length);
  }
  return ids;
}
const NOTHING = { restMs: null, reasonCode: null, reason: null };

test('a datastore is a store of its own kind, and each kind is asked for what is its own', async () => {
  const p = await makePlatform(db);
  const zep = await datastore(p);
  const pinecone = await datastore(p, 'pinecone', { api_key: 'k', index: 'i' });
  for (const each of [zep, pinecone]) {
    await insert(db, 'public.agent_datastores', { agent_id: p.agentId, datastore_id: each });
    await source(p, each);
  }
  expect(await stores(zep)).toMatchObject([{ kind: 'getzep' }]);
  expect(await stores(pinecone)).toMatchObject([{ kind: 'pinecone' }]);
  const claimed = await claim(zep);
  expect(claimed).toMatchObject({ kind: 'getzep', config: { api_key: 'k' } });
  await send(p, claimed);
  const search = { workspaceId: p.workspaceId, agentId: p.agentId };
  expect((await findSearchableGraphs(db, search, 5)).map((each) => each.datastore_id)).toEqual([zep]);
  const vectors = await findSearchableStores(db, { ...search, model: 'm', dimensions: 3 });
  expect(vectors).toEqual([]);
  await db.query('update public.agent_datastores set is_active = false where datastore_id = $1', [zep]);
  expect(await findSearchableGraphs(db, search, 5)).toEqual([]);
});

test('from kind to kind the old store goes and the new one begins, though the config stays', async () => {
  const p = await makePlatform(db);
  const store = await datastore(p, 'pinecone', { api_key: 'k', index: 'i' });
  const id = await source(p, store);
  const first = await claim(store);
  const row = await takeOutboxRow(db, first, 60);
  if (row) await settleUpsert(db, first, row, 2);
  await releaseStore(db, first, NOTHING);
  await db.query(`update public.datastores set type = 'getzep' where id = $1`, [store]);
  expect(await stores(store)).toMatchObject([
    { kind: 'pinecone', retired: true },
    { kind: 'getzep', retired: false },
  ]);
  expect((await rows(store)).map(({ op, retired }) => `${op} ${retired}`).sort()).toEqual([
    'delete true',
    'upsert false',
  ]);
  expect(id).toBeTruthy();
});

test('a graph goes though nothing is in it any more, and also where its store was retired during a turn', async () => {
  const p = await makePlatform(db);
  const store = await datastore(p);
  const id = await source(p, store);
  const claimed = await claim(store);
  await send(p, claimed);
  await db.query('delete from public.knowledge_sources where id = $1', [id]);
  const row = await takeOutboxRow(db, claimed, 60);
  expect(row).toMatchObject({ source_id: id, generation: null, is_store_retired: false });
  await db.query('delete from agentd.vector_outbox');
  await db.query('delete from agentd.vector_copies');
  await db.query('delete from public.datastores where id = $1', [store]);
  expect(await rows(store)).toMatchObject([{ op: 'delete', retired: true }]);
  expect(await takeOutboxRow(db, claimed, 60)).toMatchObject({
    workspace_id: p.workspaceId,
    is_store_retired: true,
  });
  await settleGraphDeleted(db, claimed, p.workspaceId);
  expect(await rows(store)).toEqual([]);
  expect(await db.query('select 1 from agentd.graph_episodes')).toEqual([]);
  expect(await db.query('select 1 from agentd.zep_graphs')).toEqual([]);
});

test('a passage is asked for once; what was not answered is known, and asked for again when it is taken back', async () => {
  const p = await makePlatform(db);
  const store = await datastore(p);
  await source(p, store, 3);
  const claimed = await claim(store);
  const row = await takeOutboxRow(db, claimed, 60);
  if (row?.generation == null) throw new Error('no row');
  const of = { ...row, generation: row.generation };
  const batch = randomUUID();
  expect((await askForParts(db, claimed, of, batch, 0, 2)).map((part) => part.content)).toEqual([
    'passage 0',
    'passage 1',
  ]);
  expect(await askForParts(db, claimed, of, randomUUID(), 0, 2)).toMatchObject([{ content: 'passage 2' }]);
  expect(await askForParts(db, claimed, of, randomUUID(), 0, 2)).toEqual([]);
  const place = (index: number) => ({
    sourceId: row.source_id,
    generation: of.generation,
    index,
    part: 0,
  });
  const [a, b, c] = [randomUUID(), randomUUID(), randomUUID()] as const;
  // the same passage twice: one of them is one too many
  const taken = await noteEpisodes(db, claimed, p.workspaceId, [
    { id: a, place: place(0) },
    { id: b, place: place(0) },
  ]);
  expect(taken.size).toBe(1);
  const [other] = [a, b].filter((id) => !taken.has(id));
  const listed = [a, b, c].map((id, at) => ({ id, place: place(at === 2 ? 1 : 0) }));
  // that of a passage which is still waited for is none
  expect(await strayEpisodes(db, claimed, p.workspaceId, listed)).toEqual([other]);
  expect(await unansweredBatches(db, claimed.id, row)).toHaveLength(2);
  expect(await forgetUnanswered(db, claimed, row, batch, 120)).toBe(true);
  expect(await askForParts(db, claimed, of, randomUUID(), 0, 5)).toMatchObject([{ content: 'passage 1' }]);
});

test('a claim that was taken over writes nothing down', async () => {
  const p = await makePlatform(db);
  const store = await datastore(p);
  const id = await source(p, store);
  const old = await claim(store);
  const [known = ''] = await send(p, old);
  await db.query(`update agentd.vector_stores set leased_until = agentd.now() - interval '1 second'`);
  await db.query('update agentd.vector_stores set reconcile_at = agentd.now()');
  await claim(store);
  const of = { source_id: id, workspace_id: p.workspaceId, generation: 1 };
  await forgetEpisodes(db, old, [known]);
  await settleGraphDeleted(db, old, p.workspaceId);
  expect(await forgetEpisodesOfGraph(db, old, p.workspaceId)).toBe(0);
  expect(await noteGraph(db, old, p.workspaceId)).toBe(false);
  expect(await strayEpisodes(db, old, p.workspaceId, [{ id: randomUUID(), place: null }])).toEqual([]);
  await db.query('delete from agentd.graph_episodes where episode_id = $1', [known]);
  expect(await askForParts(db, old, of, randomUUID(), 0, 5)).toEqual([]);
  expect(await db.query('select 1 from agentd.graph_episodes')).toHaveLength(1);
  expect(await db.query('select 1 from agentd.zep_graphs')).toHaveLength(1);
});

test('stale is what is of another generation or of a passage that is gone, and all of a source that goes', async () => {
  const p = await makePlatform(db);
  const store = await datastore(p);
  const id = await source(p, store, 3);
  const claimed = await claim(store);
  const ids = await send(p, claimed);
  const of = { source_id: id, workspace_id: p.workspaceId };
  expect(await staleEpisodes(db, claimed.id, of, 1, 9)).toEqual([]);
  expect((await staleEpisodes(db, claimed.id, of, 2, 9)).sort()).toEqual([...ids].sort());
  expect(await staleEpisodes(db, claimed.id, of, null, 9)).toHaveLength(3);
  await db.query('delete from public.knowledge_chunks where source_id = $1 and chunk_index = 1', [id]);
  expect(await staleEpisodes(db, claimed.id, of, 1, 9)).toEqual([ids[1]]);
});

test('a fact is cited where all that it is from may be read, and only there', async () => {
  const p = await makePlatform(db);
  const store = await datastore(p);
  const own = await source(p, store);
  const others = await source(p, store);
  await db.query('update public.knowledge_sources set agent_id = $2 where id = $1', [own, p.agentId]);
  const claimed = await claim(store);
  await send(p, claimed);
  const known = await db.query<{ source_id: string; chunk_index: number; episode_id: string; chunk: string }>(
    `select e.source_id, e.chunk_index, e.episode_id, c.id as chunk
       from agentd.graph_episodes e
       join public.knowledge_chunks c on c.source_id = e.source_id and c.chunk_index = e.chunk_index`,
  );
  const at = (id: string, index: number) => {
    const found = known.find((each) => each.source_id === id && each.chunk_index === index);
    if (!found) throw new Error('no such passage');
    return found;
  };
  const [a, b, theirs] = [at(own, 0), at(own, 1), at(others, 0)];
  const fact = (text: string, ...episodes: string[]) => ({ store: claimed.id, fact: text, episodes });
  const facts = [
    fact('of one', a.episode_id),
    fact('of two', a.episode_id, b.episode_id),
    fact('of another’s', theirs.episode_id),
    fact('of both', a.episode_id, theirs.episode_id),
    fact('of nobody', a.episode_id, randomUUID()),
    fact('of nothing'),
  ];
  const search = { workspaceId: p.workspaceId, agentId: p.agentId };
  const every = known.map(({ chunk }) => chunk);
  expect([...(await citableFacts(db, search, facts, every))].sort()).toEqual(
    [
      [a.chunk, ['of one', 'of two']],
      [b.chunk, ['of two']],
    ].sort(),
  );
  expect(await citableFacts(db, search, facts, [theirs.chunk])).toEqual(new Map());
  const elsewhere = await makePlatform(db, { shared: true });
  const foreign = { workspaceId: elsewhere.workspaceId, agentId: p.agentId };
  expect(await citableFacts(db, foreign, facts, every)).toEqual(new Map());
});
