/** Files that agentd stored: removed when no row has named them for the time of grace, and no others. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { systemClock } from '../../src/clock.ts';
import { registerTasks, takeTask } from '../../src/db/maintenance.ts';
import { workOn } from '../../src/db/maintenance-run.ts';
import { type ObjectRemover, storedObjectTask } from '../../src/db/stored-objects.ts';
import { noteObject } from '../../src/db/uploads.ts';
import { openStorage } from '../../src/providers/object-storage.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform } from '../support/platform.ts';

let db: TestDatabase;
let folder: string;
beforeAll(async () => {
  db = await testDatabase();
  folder = await mkdtemp(join(tmpdir(), 'agentd-objects-'));
});
afterAll(async () => {
  await db?.dispose();
  await rm(folder, { recursive: true, force: true });
});

const open = () => openStorage(pathToFileURL(folder).href, {});
const signal = new AbortController().signal;
const BUCKET = 'media-library';

async function pass(remover: () => ObjectRemover = open) {
  const task = storedObjectTask(7, remover);
  await registerTasks(db, [task.name]);
  const taken = await takeTask(db, { names: [task.name], worker: 'w', leaseMs: 60_000, isForced: true });
  if (taken === null) throw new Error('taken');
  return workOn({ db, clock: systemClock, leaseMs: 60_000 }, task, taken, { sliceMs: 60_000, signal });
}
const age = (days: number) =>
  db.query(`update agentd.stored_objects set orphaned_at = orphaned_at - make_interval(days => $1)`, [days]);

test('an object goes when no row has named it for a week; one that is named, and an application’s own, stay', async () => {
  const at = await makePlatform(db);
  const storage = open();
  const put = async (path: string, isOurs: boolean): Promise<void> => {
    if (isOurs) await noteObject(db, BUCKET, path);
    await storage.write(BUCKET, path, Buffer.from(path), { contentType: null, signal });
  };
  const named = (path: string) =>
    insert(db, 'public.media_library', {
      workspace_id: at.workspaceId,
      user_id: at.userId,
      file_name: 'f',
      bucket: BUCKET,
      storage_path: path,
    });
  await put('a/named', true);
  await put('a/orphan', true);
  await put('a/comes-back', true);
  await put('a/foreign', false);
  // noted, and the upload never happened
  await noteObject(db, BUCKET, 'a/nothing');
  for (let i = 0; i < 60; i++) await put(`many/${i}`, true);
  await named('a/named');
  const there = async (): Promise<string[]> => {
    const found: string[] = [];
    for (const path of ['a/named', 'a/orphan', 'a/comes-back', 'a/foreign', 'many/0', 'many/59'])
      if (await storage.exists(BUCKET, path, { signal })) found.push(path);
    return found;
  };
  const all = await there();
  expect((await pass()).row).toMatchObject({ rows: 0, outcome: 'completed' });
  await age(6);
  expect((await pass()).row).toMatchObject({ rows: 0 });
  await named('a/comes-back');
  await age(2);
  expect(await storedObjectTask(7, open).preview(db)).toMatchObject({ rows: 62 });
  expect(await there()).toEqual(all);
  // a storage that is away fails the pass, and nothing is forgotten
  const away = () => ({
    remove: () => Promise.reject(new Error('The storage is away.')),
    close: () => Promise.resolve(),
  });
  expect((await pass(away)).left).toMatchObject({ how: 'failed', error: 'The storage is away.' });
  expect((await pass()).row).toMatchObject({ rows: 62, outcome: 'completed' });
  expect(await there()).toEqual(['a/named', 'a/comes-back', 'a/foreign']);
  expect(await db.query('select path, orphaned_at from agentd.stored_objects order by path')).toEqual([
    { path: 'a/comes-back', orphaned_at: null },
    { path: 'a/named', orphaned_at: null },
  ]);
  await storage.close();
});
