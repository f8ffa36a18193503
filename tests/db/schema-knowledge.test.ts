import { afterAll, beforeAll, expect, test } from 'vitest';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import {
  asUser,
  company,
  denied,
  foreignKeyViolation,
  inserted,
  outcome,
  personalWorkspace,
  signUp,
  uniqueViolation,
  value,
} from './schema-support.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await testDatabase();
});
afterAll(() => db.dispose());

const media = (user: string, workspace: string | null = null) =>
  inserted(
    db.pool,
    `insert into public.media_library (user_id, workspace_id, file_name, storage_path) values ($1, $2, 'a.pdf', 'a.pdf')`,
    [user, workspace],
  );
const datastore = (user: string, workspace: string | null = null) =>
  inserted(
    db.pool,
    `insert into public.datastores (user_id, workspace_id, name, type) values ($1, $2, 'd', 'pgvector')`,
    [user, workspace],
  );
const source = (workspace: string, mediaId: string | null = null) =>
  inserted(
    db.pool,
    `insert into public.knowledge_sources (workspace_id, media_id, name, type, content) values ($1, $2, 's', 'TEXT', 'x')`,
    [workspace, mediaId],
  );
const chunks = (sourceId: string, count: number, generation: number | null = null) =>
  db.pool.query(
    `insert into public.knowledge_chunks (source_id, generation, chunk_index, content)
     select $1, $2::integer, i, 'chunk ' || i from generate_series(1, $3::integer) i`,
    [sourceId, generation, count],
  );
const counts = async (sourceId: string, mediaId: string) => [
  await value(db.pool, 'select chunk_count from public.knowledge_sources where id = $1', [sourceId]),
  await value(db.pool, 'select chunk_count from public.media_library where id = $1', [mediaId]),
];

test('media and datastores without a workspace or user are the caller’s, in his personal workspace', async () => {
  const user = await signUp(db.pool);
  const personal = await personalWorkspace(db.pool, user);
  const made = await asUser(db.pool, user, async (client) => [
    await value(
      client,
      `insert into public.media_library (file_name) values ('a.pdf') returning row(workspace_id, user_id, processing_status)::text`,
    ),
    await value(
      client,
      `insert into public.datastores (name, type) values ('d', 'pinecone') returning row(workspace_id, user_id)::text`,
    ),
  ]);
  expect(made).toEqual([`(${personal},${user},uploaded)`, `(${personal},${user})`]);
});

test('a source takes the workspace of its agent, else of its media, else of its datastore', async () => {
  const { workspace, owner, agent } = await company(db.pool);
  const personal = await personalWorkspace(db.pool, owner);
  const add = (columnName: string, id: string) =>
    value(
      db.pool,
      `insert into public.knowledge_sources (name, type, ${columnName}) values ('s', 'TEXT', $1) returning workspace_id`,
      [id],
    );
  expect(await add('agent_id', agent)).toBe(workspace);
  expect(await add('media_id', await media(owner))).toBe(personal);
  expect(await add('datastore_id', await datastore(owner, workspace))).toBe(workspace);
});

test('media and datastores of another owner and workspace are not reached by knowing their id', async () => {
  const { workspace, owner, agent } = await company(db.pool);
  const stranger = await signUp(db.pool);
  const [foreignMedia, foreignStore] = [await media(stranger), await datastore(stranger)];
  const attempts: [string, string][] = [
    ['insert into public.agent_datastores (agent_id, datastore_id) values ($1, $2)', foreignStore],
    ['insert into public.agent_media_assignments (agent_id, media_id) values ($1, $2)', foreignMedia],
    [
      `insert into public.knowledge_sources (agent_id, media_id, name, type) values ($1, $2, 's', 'PDF')`,
      foreignMedia,
    ],
    [
      `insert into public.knowledge_sources (agent_id, datastore_id, name, type) values ($1, $2, 's', 'PDF')`,
      foreignStore,
    ],
  ];
  for (const [text, id] of attempts) expect(await outcome(db.pool, text, [agent, id]), text).toBe(denied);
  expect(
    await outcome(
      db.pool,
      `insert into public.knowledge_sources (workspace_id, media_id, name, type) values ($1, $2, 's', 'PDF')`,
      [workspace, foreignMedia],
    ),
  ).toBe(denied);
  const own = await media(owner);
  expect(await outcome(db.pool, attempts[1]?.[0] as string, [agent, own])).toBe('ok');
  expect(await outcome(db.pool, attempts[0]?.[0] as string, [agent, await datastore(owner)])).toBe('ok');
  const elsewhere = await company(db.pool);
  expect(
    await outcome(
      db.pool,
      `insert into public.knowledge_sources (workspace_id, agent_id, name, type) values ($1, $2, 's', 'TEXT')`,
      [elsewhere.workspace, agent],
    ),
  ).toBe(foreignKeyViolation);
});

test('assigned_agents_count is the number of agents, however often and by whatever statement they are assigned', async () => {
  const { workspace, owner, agent } = await company(db.pool);
  const second = await inserted(
    db.pool,
    `insert into public.agents (workspace_id, user_id, name) values ($1, $2, 'b')`,
    [workspace, owner],
  );
  const [mediaId, other] = [await media(owner), await media(owner)];
  const count = (id: string) =>
    value(db.pool, 'select assigned_agents_count from public.media_library where id = $1', [id]);
  await db.pool.query(
    `insert into public.agent_media_assignments (agent_id, media_id, assignment_type)
     values ($1, $3, 'training'), ($1, $3, 'sop'), ($2, $3, 'reference')`,
    [agent, second, mediaId],
  );
  expect(await count(mediaId)).toBe(2);
  await db.pool.query('update public.agent_media_assignments set media_id = $1 where agent_id = $2', [
    other,
    second,
  ]);
  expect([await count(mediaId), await count(other)]).toEqual([1, 1]);
  await db.pool.query('delete from public.agents where id = $1', [second]);
  await db.pool.query('delete from public.agent_media_assignments where media_id = $1', [mediaId]);
  expect([await count(mediaId), await count(other)]).toEqual([0, 0]);
});

test('chunk counts of a source and its media count the generation that is searched', async () => {
  const { workspace, owner } = await company(db.pool);
  const mediaId = await media(owner, workspace);
  const first = await source(workspace, mediaId);
  await chunks(first, 3);
  expect(await counts(first, mediaId)).toEqual([3, 3]);
  await chunks(first, 5, 2);
  expect(await counts(first, mediaId)).toEqual([3, 3]);
  await db.pool.query('update public.knowledge_sources set generation = 2 where id = $1', [first]);
  expect(await counts(first, mediaId)).toEqual([5, 5]);
  await db.pool.query('delete from public.knowledge_chunks where source_id = $1 and generation = 1', [first]);
  expect(await counts(first, mediaId)).toEqual([5, 5]);

  const second = await source(workspace, mediaId);
  await chunks(second, 2);
  expect(await counts(second, mediaId)).toEqual([2, 7]);
  await db.pool.query('delete from public.knowledge_sources where id = $1', [first]);
  expect(await counts(second, mediaId)).toEqual([2, 2]);
  await db.pool.query('delete from public.knowledge_sources where id = $1', [second]);
  expect(await value(db.pool, 'select chunk_count from public.media_library where id = $1', [mediaId])).toBe(
    0,
  );
});

test('a chunk takes workspace and generation from its source, and has its place once a generation', async () => {
  const { workspace } = await company(db.pool);
  const elsewhere = await company(db.pool);
  const id = await source(workspace);
  await db.pool.query('update public.knowledge_sources set generation = 7 where id = $1', [id]);
  const add = `insert into public.knowledge_chunks (source_id, chunk_index, content) values ($1, 0, 'The quick fox')`;
  const row = await db.pool.query(
    `${add} returning workspace_id, generation, content_tsv @@ 'fox'::tsquery as found`,
    [id],
  );
  expect(row.rows[0]).toEqual({ workspace_id: workspace, generation: 7, found: true });
  expect(await outcome(db.pool, add, [id])).toBe(uniqueViolation);
  expect(
    await outcome(
      db.pool,
      `insert into public.knowledge_chunks (workspace_id, source_id, generation, chunk_index, content) values ($1, $2, 7, 1, 'x')`,
      [elsewhere.workspace, id],
    ),
  ).toBe(foreignKeyViolation);
});

test('vectors of two models and sizes live side by side', async () => {
  const { workspace } = await company(db.pool);
  const id = await source(workspace);
  await chunks(id, 2);
  await db.pool.query(
    `update public.knowledge_chunks
        set embedding = (case chunk_index when 1 then '[1,0,0]' else '[1,0]' end)::vector,
            embedding_model = 'model-' || chunk_index
      where source_id = $1`,
    [id],
  );
  expect(
    await value(
      db.pool,
      `select embedding <=> '[1,0,0]' from public.knowledge_chunks where source_id = $1 and embedding_model = 'model-1'`,
      [id],
    ),
  ).toBe(0);
});
