/** agentd workspace erase and stored files: which go, which stay, and what the storage refuses. */
import { randomUUID } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { systemClock } from '../../src/clock.ts';
import type { Erasure } from '../../src/commands/workspace-erase.ts';
import type { Queryable } from '../../src/db/database.ts';
import { registerTasks, takeTask } from '../../src/db/maintenance.ts';
import { workOn } from '../../src/db/maintenance-run.ts';
import { storedObjectTask } from '../../src/db/stored-objects.ts';
import { insertUpload, noteObject, noteObjects } from '../../src/db/uploads.ts';
import { forgetAllObjects, strayObjects } from '../../src/db/workspace-files.ts';
import { ObjectRemover } from '../../src/providers/object-remover.ts';
import { openStorage } from '../../src/providers/object-storage.ts';
import { startS3Server } from '../peers/s3-server.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, type Platform } from '../support/platform.ts';
import { agentd, json } from './support.ts';
import { tracesOf } from './workspace-support.ts';

let db: TestDatabase;
let folder: string;
beforeAll(async () => {
  db = await testDatabase();
  folder = mkdtempSync(join(tmpdir(), 'agentd-erase-files-'));
});
afterAll(async () => {
  await db?.dispose();
  if (folder) rmSync(folder, { recursive: true, force: true });
});

const BUCKET = 'media-library';
const erase = (workspace: string, flags: string[] = [], env: Record<string, string> = {}) =>
  agentd(['workspace', 'erase', workspace, '--yes', '--json', ...flags], {
    DATABASE_URL: db.url,
    AGENTD_STORAGE_URL: `file://${folder}`,
    ...env,
  });
const put = (path: string): void => {
  mkdirSync(dirname(join(folder, BUCKET, path)), { recursive: true });
  writeFileSync(join(folder, BUCKET, path), path);
};
const isThere = (path: string): boolean => existsSync(join(folder, BUCKET, path));
const name = (platform: Platform, path: string, bucket = BUCKET) =>
  insert(db, 'public.media_library', {
    workspace_id: platform.workspaceId,
    user_id: platform.userId,
    file_name: 'f',
    bucket,
    storage_path: path,
    is_archived: true,
  });
const notesOf = async (workspace: string): Promise<string[]> =>
  (
    await db.query<{ path: string }>(
      `select path from agentd.stored_objects where path like $1 || '/%' order by 1`,
      [workspace],
    )
  ).map(({ path }) => path.slice(workspace.length + 1));
const note = (path: string, age: string) =>
  db.query(
    `insert into agentd.stored_objects (bucket, path, created_at) values ($1, $2, now() - $3::interval)`,
    [BUCKET, path, age],
  );
async function tidy(storage = () => openStorage(`file://${folder}`, {})): Promise<void> {
  const task = storedObjectTask(7, () => new ObjectRemover(storage()));
  await registerTasks(db, [task.name]);
  const taken = await takeTask(db, { names: [task.name], worker: 'w', leaseMs: 60_000, isForced: true });
  if (taken === null) throw new Error('taken');
  const { signal } = new AbortController();
  const { left } = await workOn({ db, clock: systemClock, leaseMs: 60_000 }, task, taken, {
    sliceMs: 60_000,
    signal,
  });
  expect(left).toMatchObject({ how: 'completed' });
}

test('an object that any row of another workspace names stays, until none does', async () => {
  const here = await makePlatform(db, { shared: true });
  const there = await makePlatform(db, { shared: true });
  const [moved, named, own] = ['moved', 'named', 'own'].map((path) => `${here.workspaceId}/${path}`) as [
    string,
    string,
    string,
  ];
  for (const path of [moved, named, own]) {
    put(path);
    await note(path, '1 day');
  }
  // one that the backend has given to a workspace of somebody else, and one that both name
  await name(there, moved);
  await name(there, named);
  await name(here, named);
  await name(here, own);
  const done = json<Erasure>(await erase(here.workspaceId));
  expect(done).toMatchObject({ is_done: true, files: { deleted: 1, kept: 2, not_deleted: 0 } });
  expect(done.files.kept_files.map(({ storage_path }) => storage_path).sort()).toEqual([moved, named]);
  expect([moved, named, own].map(isThere)).toEqual([true, true, false]);
  // the notes find them when nobody names them any more
  expect(await notesOf(here.workspaceId)).toEqual(['moved', 'named']);
  await db.query('delete from public.media_library where workspace_id = $1', [there.workspaceId]);
  await tidy();
  await db.query(`update agentd.stored_objects set orphaned_at = orphaned_at - interval '8 days'`);
  await tidy();
  expect([moved, named].map(isThere)).toEqual([false, false]);
  expect(await tracesOf(db, here.workspaceId)).toEqual(['agentd.audit_log']);
});

test('what an upload stores after its workspace was erased is found and removed', async () => {
  const t = await makePlatform(db, { shared: true });
  const path = `${t.workspaceId}/late`;
  await note(`${t.workspaceId}/never`, '1 day');
  await noteObject(db, BUCKET, path);
  expect(json<Erasure>(await erase(t.workspaceId))).toMatchObject({ is_done: true });
  expect(await notesOf(t.workspaceId)).toEqual(['late']);
  put(path);
  const owner = { workspace_id: t.workspaceId, user_id: t.userId, name: 'w' };
  const file = { name: 'f', type: null, size: 1, bucket: BUCKET, path, agentId: null };
  await expect(insertUpload(db, owner, file)).rejects.toMatchObject({ code: '23503' });
  await tidy();
  await db.query(`update agentd.stored_objects set orphaned_at = orphaned_at - interval '8 days'`);
  await tidy();
  expect(isThere(path)).toBe(false);
  expect(await tracesOf(db, t.workspaceId)).toEqual(['agentd.audit_log']);
});

test('files that are to be left are left by maintenance as well', async () => {
  const t = await makePlatform(db, { shared: true });
  const path = `${t.workspaceId}/kept`;
  put(path);
  await note(path, '1 day');
  await name(t, path);
  await noteObject(db, BUCKET, `${t.workspaceId}/stray`);
  expect(json<Erasure>(await erase(t.workspaceId, ['--leave-files']))).toMatchObject({ is_done: true });
  expect(isThere(path)).toBe(true);
  expect(await tracesOf(db, t.workspaceId)).toEqual(['agentd.audit_log']);
});

test('a bucket that the storage refuses keeps no other file, and the erasure can be ended without it', async () => {
  await using server = await startS3Server();
  const objects = new Map<string, { bytes: Buffer; contentType: string }>();
  server.buckets.set(BUCKET, objects);
  server.forbidden.add('test');
  const s3 = {
    AGENTD_STORAGE_URL: `s3://${server.host}?scheme=http&region=${server.keys.region}`,
    AWS_ACCESS_KEY_ID: server.keys.accessKeyId,
    AWS_SECRET_ACCESS_KEY: server.keys.secretAccessKey,
  };
  const t = await makePlatform(db, { shared: true });
  // several pages, more refusals than are listed
  await db.query(
    `insert into public.media_library (workspace_id, user_id, file_name, bucket, storage_path, is_archived)
     select $1::uuid, $2, 'f', case when i % 2 = 0 then 'test' else $3 end, $1::uuid || '/' || i, true from generate_series(1, 500) i`,
    [t.workspaceId, t.userId, BUCKET],
  );
  for (let i = 1; i <= 500; i += 2)
    objects.set(`${t.workspaceId}/${i}`, { bytes: Buffer.from('x'), contentType: 'text/plain' });
  const refused = await erase(t.workspaceId, [], s3);
  expect(refused.code).toBe(1);
  expect(refused.stderr).toContain("250 stored files can't be deleted (--leave-failed leaves them)");
  const report = json<Erasure>(refused);
  expect(report).toMatchObject({ is_done: false, files: { deleted: 250, not_deleted: 250 } });
  // each by its name: rows may not say it any more
  expect(new Set(report.files.failed.map(({ storage_path }) => storage_path)).size).toBe(250);
  expect(report.files.failed[0]).toMatchObject({
    bucket: 'test',
    reason: expect.stringContaining('AccessDenied'),
  });
  expect(objects.size).toBe(0);
  const ended = await erase(t.workspaceId, ['--leave-failed'], s3);
  expect(ended.code).toBe(0);
  expect(json<Erasure>(ended)).toMatchObject({ is_done: true, files: { not_deleted: 250 } });
  expect(json<Erasure>(ended).files.failed).toHaveLength(250);
  expect(json<Erasure>(ended).notes.join(' ')).toContain('agentd.stored_objects');
  // they were to go, and maintenance sees to it when the storage lets it
  expect(await notesOf(t.workspaceId)).toHaveLength(250);
  expect(await tracesOf(db, t.workspaceId)).toEqual(['agentd.audit_log', 'agentd.stored_objects']);
  const refusedOnes = new Map(
    report.files.failed.map(({ storage_path }) => [
      storage_path,
      { bytes: Buffer.from('x'), contentType: 'text/plain' },
    ]),
  );
  server.forbidden.delete('test');
  server.buckets.set('test', refusedOnes);
  const storage = () => openStorage(s3.AGENTD_STORAGE_URL, s3);
  await tidy(storage);
  expect(refusedOnes.size).toBe(250);
  await db.query(`update agentd.stored_objects set orphaned_at = orphaned_at - interval '8 days'`);
  await tidy(storage);
  expect(refusedOnes.size).toBe(0);
  expect(await tracesOf(db, t.workspaceId)).toEqual(['agentd.audit_log']);
});

test('all files that stay are listed for programs, and the first hundred for people', async () => {
  const t = await makePlatform(db, { shared: true });
  // in no folder of the workspace or of its user
  await db.query(
    `insert into public.media_library (workspace_id, user_id, file_name, bucket, storage_path, is_archived)
     select $1::uuid, $2, 'f', $3, 'elsewhere/' || i, true from generate_series(1, 150) i`,
    [t.workspaceId, t.userId, BUCKET],
  );
  const preview = await agentd(['workspace', 'erase', t.workspaceId, '--json'], { DATABASE_URL: db.url });
  expect(json<{ files: Erasure['files'] }>(preview).files.kept_files).toHaveLength(150);
  const told = await agentd(['workspace', 'erase', t.workspaceId], { DATABASE_URL: db.url });
  expect(told.stdout.match(/^ {2}stays: /gm)).toHaveLength(100);
  const done = json<Erasure>(await erase(t.workspaceId));
  expect(done).toMatchObject({ is_done: true, files: { kept: 150 } });
  expect(done.files.kept_files).toHaveLength(150);
});

test('a place that no index holds is no object’s, and is noted nowhere', async () => {
  const long = Array.from({ length: 400 }, () => randomUUID()).join('/');
  await noteObjects(db, [
    { bucket: BUCKET, storage_path: `long/${long}` },
    { bucket: BUCKET, storage_path: 'long/not' },
  ]);
  expect(await notesOf('long')).toEqual(['not']);
});

test('the notes of one workspace are found by its folder', async () => {
  const t = await makePlatform(db, { shared: true });
  await db.query(
    `insert into agentd.stored_objects (bucket, path) select $1, gen_random_uuid() || '/' || i from generate_series(1, 5000) i`,
    [BUCKET],
  );
  await note(`${t.workspaceId}/one`, '1 day');
  await db.query('analyze agentd.stored_objects');
  const plans: string[] = [];
  const explaining: Queryable = {
    ...db,
    query: async (text: string, values?: unknown[]) => {
      const rows = await db.query<Record<string, string>>(`explain ${text}`, values);
      plans.push(rows.map((row) => Object.values(row)[0]).join('\n'));
      return [];
    },
  };
  await strayObjects(explaining, t.workspaceId, null, 200);
  await forgetAllObjects(explaining, t.workspaceId);
  expect(plans).toHaveLength(2);
  for (const plan of plans) expect(plan).toContain('stored_objects_folder_idx');
  await db.query('delete from agentd.stored_objects');
});
