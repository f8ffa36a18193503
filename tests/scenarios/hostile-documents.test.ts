/** What a signed-in user may not say of documents and workspaces, with SQL of his own. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, type Platform } from '../support/platform.ts';
import { asUser, denied, stateOf } from '../support/sessions.ts';

let db: TestDatabase;
let platform: Platform;
beforeAll(async () => {
  db = await testDatabase();
  platform = await makePlatform(db);
});
afterAll(() => db?.dispose());

const ENGINE =
  'processing_status, lease_epoch, request, attempts, generation, chunk_count, job_id, next_refresh_at';
const UNTOUCHED = {
  processing_status: 'uploaded',
  lease_epoch: 0,
  request: 1,
  attempts: 0,
  generation: 1,
  chunk_count: 0,
  job_id: null,
  next_refresh_at: null,
};

test('how far a document is, is the worker’s to say', async () => {
  const { rows } = await asUser(db, platform.userId, (session) =>
    session.query(
      `insert into public.knowledge_sources
         (workspace_id, name, type, content, processing_status, lease_epoch, request, attempts, generation, chunk_count, job_id, next_refresh_at)
       values ($1, 'x', 'TEXT', 'x', 'processing', 2147483647, 2147483647, -9, 7, 2000000000, gen_random_uuid(), '-infinity')
       returning ${ENGINE}`,
      [platform.workspaceId],
    ),
  );
  expect(rows).toEqual([UNTOUCHED]);
  const { rows: changed } = await asUser(db, platform.userId, (session) =>
    session.query(
      `update public.knowledge_sources set lease_epoch = 2147483647, job_id = gen_random_uuid(), generation = 9,
              processing_status = 'processing', attempts = -1, next_refresh_at = '-infinity'
        where workspace_id = $1 returning ${ENGINE}`,
      [platform.workspaceId],
    ),
  );
  expect(changed).toEqual([UNTOUCHED]);
});

test('nobody takes a workspace for somebody’s own, or gives it to a stranger', async () => {
  const stranger = await makePlatform(db);
  const give = (columns: string): Promise<string> =>
    stateOf(
      asUser(db, platform.userId, (session) =>
        session.query(`update public.workspaces set ${columns} where owner_user_id = '${platform.userId}'`),
      ),
    );
  expect(await give(`owner_user_id = '${stranger.userId}'`)).toBe(denied);
  expect(await give('is_personal = false')).toBe(denied);
});

test('a value that only takes little room in the database, and an embedding that no index takes, are refused', async () => {
  const write = (text: string, values: unknown[] = []): Promise<string> =>
    stateOf(asUser(db, platform.userId, (session) => session.query(text, values)));
  const source = await insert(db, 'public.knowledge_sources', {
    workspace_id: platform.workspaceId,
    name: 'own',
    type: 'TEXT',
    content: 'x',
  });
  const chunk = (columns: string, values: string): Promise<string> =>
    write(
      `insert into public.knowledge_chunks (source_id, content, chunk_index, ${columns}) values ($1, 'x', 0, ${values})`,
      [source],
    );
  const tooLarge = '23514';
  expect(
    await write(
      `insert into public.datastores (name, type, config) values ('x', 'pinecone', jsonb_build_object('a', repeat('x', 20000)))`,
    ),
  ).toBe(tooLarge);
  expect(await chunk('token_count', '-2147483648')).toBe(tooLarge);
  expect(await chunk('embedding_model, embedding', `'m', '[1e30,0]'`)).toBe('22003');
  expect(await chunk('embedding_model, embedding', `'m', '[65504,0]'`)).toBe('ok');
});
