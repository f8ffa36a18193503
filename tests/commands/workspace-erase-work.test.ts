/** agentd workspace erase beside a daemon that works on the workspace: runs, stored files, vectors in Pinecone, passages in Zep. */
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Erasure } from '../../src/commands/workspace-erase.ts';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { type PineconeServer, startPineconeServer } from '../peers/pinecone-server.ts';
import { startZepServer, type ZepServer } from '../peers/zep-server.ts';
import { type TestDaemon, testDaemon } from '../support/daemon.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, makeTask, type Platform, startTask } from '../support/platform.ts';
import { until } from '../support/runs.ts';
import { agentd, json } from './support.ts';
import { everythingOf, tracesOf } from './workspace-support.ts';

const DIMENSIONS = 64;
const KEYS = { ENCRYPTION_KEY: 'ab'.repeat(32) };

let db: TestDatabase;
let model: ModelServer;
let pinecone: PineconeServer;
let zep: ZepServer;
let daemon: TestDaemon;
let folder: string;

const env = () => ({
  ...KEYS,
  AGENTD_STORAGE_URL: `file://${folder}`,
  AGENTD_EMBEDDING_DIMENSIONS: String(DIMENSIONS),
  AGENTD_PINECONE_URL: pinecone.url,
  AGENTD_ZEP_URL: zep.url,
});

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'agentd-erase-'));
  db = await testDatabase();
  model = await startModelServer();
  pinecone = await startPineconeServer();
  zep = await startZepServer();
  daemon = await testDaemon(db, model, { env: env() });
});
afterAll(async () => {
  await daemon?.stop();
  await model?.close();
  await pinecone?.close();
  await zep?.close();
  await db?.dispose();
  if (folder) rmSync(folder, { recursive: true, force: true });
});

const erase = (workspace: string, ...args: string[]) =>
  agentd(['workspace', 'erase', workspace, '--yes', '--json', ...args], { DATABASE_URL: db.url, ...env() });

type Tenant = Platform & { readonly name: string; readonly files: string[] };

/** A workspace with a store of each kind, a passage in each, and a stored file. */
async function tenant(name: string): Promise<Tenant> {
  const platform = await makePlatform(db, { shared: true });
  pinecone.indexes.set(name, { dimension: DIMENSIONS, apiKey: `key-${name}`, namespaces: new Map() });
  zep.accounts.set(`key-${name}`, new Map());
  const sources: string[] = [];
  for (const type of ['pinecone', 'getzep']) {
    const datastore = await insert(db, 'public.datastores', {
      workspace_id: platform.workspaceId,
      user_id: platform.userId,
      name: type,
      type,
      config: JSON.stringify({ api_key: `key-${name}`, ...(type === 'pinecone' ? { index: name } : {}) }),
    });
    sources.push(
      await insert(db, 'public.knowledge_sources', {
        workspace_id: platform.workspaceId,
        datastore_id: datastore,
        name: 'Manual',
        type: 'TEXT',
        content: `What ${name} knows. ${'word '.repeat(50)}`,
      }),
    );
  }
  const files = [`${platform.workspaceId}/a.txt`, `${platform.userId}/mine.txt`];
  for (const path of files) {
    const place = join(folder, 'media-library', path);
    mkdirSync(dirname(place), { recursive: true });
    writeFileSync(place, `The file of ${name}.`);
    await insert(db, 'public.media_library', {
      workspace_id: platform.workspaceId,
      user_id: platform.userId,
      file_name: 'a.txt',
      file_type: 'text/plain',
      storage_path: path,
    });
  }
  await until(
    `${name} is ingested and copied`,
    async () => {
      const open = await db.query(
        `select 1 from agentd.vector_outbox where workspace_id = $1
       union all select 1 from public.knowledge_sources where workspace_id = $1 and processing_status <> 'completed'
       -- the worker writes of a document after it is complete
       union all select 1 from pgboss.job where name = 'document-ingest' and state = 'active'`,
        [platform.workspaceId],
      );
      return open.length === 0 && vectorsOf({ ...platform, name, files }) > 0;
    },
    60_000,
  );
  return { ...platform, name, files };
}

const vectorsOf = (t: Tenant): number => pinecone.vectors(t.name, t.workspaceId).length;
const graphsOf = (t: Tenant): number => zep.accounts.get(`key-${t.name}`)?.size ?? 0;
const isThere = (path: string): boolean => existsSync(join(folder, 'media-library', path));

test('running work is ended, files, vectors and graphs are deleted, and the neighbour keeps all of his', async () => {
  const here = await tenant('here');
  const there = await tenant('there');
  // the same file, in another workspace of the same person
  const second = await insert(db, 'public.workspaces', { name: 'Second', owner_user_id: here.userId });
  const shared = here.files[1] ?? '';
  await insert(db, 'public.media_library', {
    workspace_id: second,
    user_id: here.userId,
    file_name: 'b',
    storage_path: shared,
    is_archived: true,
  });
  model.respond(() => ({ hang: true }));
  // an upload whose row is gone
  const stray = `${here.workspaceId}/stray.txt`;
  writeFileSync(join(folder, 'media-library', stray), 'nobody names it');
  await db.query(
    `insert into agentd.stored_objects (bucket, path, created_at) values ('media-library', $1, now() - interval '1 day')`,
    [stray],
  );
  const runs = [await startTask(db, here, 'one'), await startTask(db, here, 'two')];
  await until('the daemon works on both', async () => model.requests.length >= 2);
  expect([vectorsOf(here) > 0, graphsOf(here)]).toEqual([true, 1]);
  const other = await everythingOf(db, there.workspaceId);

  const outcome = await erase(here.workspaceId);
  const done = json<Erasure>(outcome);
  expect(done).toMatchObject({ is_done: true, cancelled_runs: runs.length, left_stores: [], left_rows: [] });
  expect(done.files).toMatchObject({
    deleted: 2,
    kept: 1,
    kept_files: [{ storage_path: shared }],
    failed: [],
  });
  expect([vectorsOf(here), graphsOf(here)]).toEqual([0, 0]);
  expect([...(pinecone.indexes.get('here')?.namespaces.get(here.workspaceId)?.keys() ?? [])]).toEqual([]);
  expect([...here.files, stray].map(isThere)).toEqual([false, true, false]);
  // a daemon notes its last job afterwards; what it notes goes by itself, or with another run
  await until(
    'no job is in hand',
    async () => (await db.query(`select 1 from pgboss.job where state = 'active'`)).length === 0,
  );
  expect((await erase(here.workspaceId)).code).toBe(0);
  expect(await tracesOf(db, here.workspaceId)).toEqual(['agentd.audit_log']);

  // the daemon lets go of it without a failure of its own
  const failures = daemon.log.filter((line) =>
    /"event":"(service_failed|job_failed|job_retry)"|"level":"?(error|fatal|50|60)/.test(line),
  );
  expect(failures).toEqual([]);

  expect([vectorsOf(there) > 0, graphsOf(there)]).toEqual([true, 1]);
  expect(there.files.map(isThere)).toEqual([true, true]);
  const after = await everythingOf(db, there.workspaceId);
  // the daemon goes on with his stores, and sums up what he had used
  const goesOn =
    /^(agentd\.(vector_stores|usage_\w+)|public\.(profiles|usage_quarter_hours|workspace_usage|workspace_usage_counters))$/;
  for (const [table, rows] of other)
    if (!goesOn.test(table)) expect([table, after.get(table)]).toEqual([table, rows]);
  model.respond(() => ({ content: 'still at work' }));
  const run = await startTask(db, there, 'three');
  await until(
    'the neighbour’s run completes',
    async () =>
      (await db.query(`select 1 from public.task_runs where id = $1 and status = 'completed'`, [run]))
        .length > 0,
  );
});

test('what a store does not let go is said, and goes when it does, without anybody’s asking', async () => {
  const t = await tenant('stubborn');
  pinecone.fault = () => ({ kind: 'status', status: 503 });
  const done = json<Erasure>(await erase(t.workspaceId, '--wait', '1'));
  expect(done).toMatchObject({ is_done: true, left_stores: [{ kind: 'pinecone', sources: 1 }] });
  expect(done.notes.join('\n')).toContain('run the command again');
  expect(await db.query('select 1 from public.workspaces where id = $1', [t.workspaceId])).toEqual([]);
  expect(vectorsOf(t)).toBeGreaterThan(0);
  pinecone.fault = () => null;
  await db.query('update agentd.vector_stores set rest_until = null where workspace_id = $1', [
    t.workspaceId,
  ]);
  await until('its vectors are gone', () => vectorsOf(t) === 0);
  await until(
    'and so is what said so',
    async () =>
      (await db.query('select 1 from agentd.vector_stores where workspace_id = $1', [t.workspaceId]))
        .length === 0,
  );
  expect(json<Erasure>(await erase(t.workspaceId))).toMatchObject({ is_done: true, left_stores: [] });
  expect(await tracesOf(db, t.workspaceId)).toEqual(['agentd.audit_log']);
});

test('files that the storage does not let go keep the workspace, until it does or they are to be left', async () => {
  const t = await makePlatform(db, { shared: true });
  const path = `${t.workspaceId}/folder`;
  // no root may read it: a file stands where the bucket’s folder should be
  writeFileSync(join(folder, 'bucket'), '');
  await insert(db, 'public.media_library', {
    workspace_id: t.workspaceId,
    user_id: t.userId,
    file_name: 'f',
    bucket: 'bucket',
    storage_path: path,
    is_archived: true,
  });
  const outcome = await agentd(['workspace', 'erase', t.workspaceId, '--yes', '--json'], {
    DATABASE_URL: db.url,
    ...env(),
    AGENTD_STORAGE_URL: 's3://127.0.0.1:9?scheme=http',
  });
  expect(outcome.code).toBe(1);
  expect(json<Erasure>(outcome)).toMatchObject({
    is_done: false,
    files: { failed: [{ storage_path: path }] },
  });
  expect(
    await db.query('select 1 from public.media_library where workspace_id = $1', [t.workspaceId]),
  ).toHaveLength(1);
  const left = json<Erasure>(await erase(t.workspaceId, '--leave-files'));
  expect(left).toMatchObject({ is_done: true, files: { deleted: 0, kept: 1 } });
  expect(await tracesOf(db, t.workspaceId)).toEqual(['agentd.audit_log']);
});

test('what agents remember of people is forgotten, and of this workspace’s alone', async () => {
  const makers = await Promise.all(['remembers', 'keeps'].map(() => makePlatform(db, { shared: true })));
  zep.accounts.set('shared-account', new Map());
  model.respond(() => ({ content: 'Noted.' }));
  for (const platform of makers) {
    const datastore = await insert(db, 'public.datastores', {
      workspace_id: platform.workspaceId,
      user_id: platform.userId,
      name: 'memory',
      type: 'getzep',
      config: JSON.stringify({ use: 'memory', api_key: 'shared-account' }),
    });
    await insert(db, 'public.agent_datastores', { agent_id: platform.agentId, datastore_id: datastore });
    const task = await makeTask(db, platform);
    await insert(db, 'public.task_runs', {
      task_id: task,
      user_id: platform.userId,
      input: '{"message":"I am Ada."}',
    });
  }
  const users = (platform?: Platform): string[] =>
    [...(zep.talks.get('shared-account')?.users ?? [])].filter((id) =>
      id.includes(platform?.workspaceId ?? '?'),
    );
  const [here, there] = makers;
  await until('both are remembered', () => users(here).length === 1 && users(there).length === 1);
  zep.fault = (call) => (call.path.startsWith('/users') ? { kind: 'status', status: 401 } : null);
  const refused = await erase(here?.workspaceId ?? '');
  expect(refused.code).toBe(1);
  expect(json<Erasure>(refused)).toMatchObject({
    is_done: false,
    left_rows: [{ table: 'public.datastores' }],
  });
  zep.fault = () => null;
  expect(json<Erasure>(await erase(here?.workspaceId ?? ''))).toMatchObject({
    is_done: true,
    forgotten_people: 1,
  });
  expect([users(here).length, users(there).length]).toEqual([0, 1]);
  expect(
    [...(zep.talks.get('shared-account')?.threads.keys() ?? [])].filter((id) =>
      id.includes(here?.workspaceId ?? '?'),
    ),
  ).toEqual([]);
});
