/** Files that agentd stored: removed when no row has named them for the time of grace, and no others. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Clock, systemClock } from '../../src/clock.ts';
import { registerTasks, takeTask } from '../../src/db/maintenance.ts';
import { workOn } from '../../src/db/maintenance-run.ts';
import { storedObjectTask } from '../../src/db/stored-objects.ts';
import { noteObject } from '../../src/db/uploads.ts';
import { DocumentError } from '../../src/providers/document-error.ts';
import type { PastFailures } from '../../src/providers/failing-buckets.ts';
import { ObjectRemover } from '../../src/providers/object-remover.ts';
import { type ObjectStorage, openStorage } from '../../src/providers/object-storage.ts';
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
const LEASE_MS = 60_000;

type Storage = Pick<ObjectStorage, 'remove' | 'exists' | 'close'>;
/** A storage that answers what it is asked for, but for removals. */
const removing = (remove: Storage['remove'], exists = (_bucket: string) => true): Storage => ({
  remove,
  close: () => Promise.resolve(),
  exists: async (bucket) => {
    if (!exists(bucket)) throw new Error('The storage is away.');
    return true;
  },
});
const away = (): Storage =>
  removing(
    () => Promise.reject(new Error('The storage is away.')),
    () => false,
  );

async function pass(storage: () => Storage = open, clock: Clock = systemClock) {
  const task = storedObjectTask(7, (past) => new ObjectRemover(storage(), past as PastFailures | null));
  await registerTasks(db, [task.name]);
  const taken = await takeTask(db, { names: [task.name], worker: 'w', leaseMs: LEASE_MS, isForced: true });
  if (taken === null) throw new Error('taken');
  return workOn({ db, clock, leaseMs: LEASE_MS }, task, taken, { sliceMs: 60_000, signal });
}
const age = (days: number) =>
  db.query(
    `update agentd.stored_objects set orphaned_at = orphaned_at - make_interval(days => $1), retry_at = retry_at - make_interval(days => $1)`,
    [days],
  );
/** Objects that lost their rows longer ago than the days of grace. */
const orphans = (paths: readonly string[], bucket = BUCKET) =>
  db.query(
    `insert into agentd.stored_objects (bucket, path, orphaned_at) select $1, p.path, agentd.now() - interval '8 days' from unnest($2::text[]) p (path)`,
    [bucket, paths],
  );
const notes = async (): Promise<string[]> =>
  (await db.query<{ path: string }>('select path from agentd.stored_objects order by path')).map(
    ({ path }) => path,
  );

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
  expect(await storedObjectTask(7, () => new ObjectRemover(open())).preview(db)).toMatchObject({ rows: 62 });
  expect(await there()).toEqual(all);
  // a storage that is away fails the pass, and nothing is forgotten
  expect((await pass(away)).left).toMatchObject({
    how: 'failed',
    error: 'storage_error: The storage is away.',
  });
  await age(1);
  expect((await pass()).row).toMatchObject({ rows: 62, outcome: 'completed' });
  expect(await there()).toEqual(['a/named', 'a/comes-back', 'a/foreign']);
  expect(await db.query('select path, orphaned_at from agentd.stored_objects order by path')).toEqual([
    { path: 'a/comes-back', orphaned_at: null },
    { path: 'a/named', orphaned_at: null },
  ]);
  await storage.close();
});

test('an object that can’t be removed keeps none of the others, and is tried again the next day', async () => {
  await db.query('delete from agentd.stored_objects');
  // what can be no object's path, one that is refused, and ones that go
  await orphans(['a\tb.txt', 'locked', 'm/1', 'm/2']);
  const asked: string[] = [];
  const refusing = (): Storage =>
    removing(async (bucket, path, options) => {
      asked.push(path);
      if (path === 'locked') throw new Error('This one is under legal hold.');
      await open().remove(bucket, path, options);
    });
  expect((await pass(refusing)).row).toMatchObject({ rows: 3, held: 1, outcome: 'completed' });
  expect(await notes()).toEqual(['locked']);
  // not before the next day: a pass that comes sooner does not begin with it
  expect((await pass(refusing)).row).toMatchObject({ rows: 0, held: 0 });
  await age(1);
  // nothing but failures is a storage that fails, and the next pass goes on with the others all the same
  await orphans(['n/1']);
  await db.query(`update agentd.stored_objects set retry_at = null where path = 'locked'`);
  expect((await pass(away)).left).toMatchObject({
    how: 'failed',
    error: 'storage_error: The storage is away.',
  });
  await orphans(['o/1']);
  expect((await pass(refusing)).row).toMatchObject({ rows: 1, outcome: 'completed' });
  expect(await notes()).toEqual(['locked', 'n/1']);
  expect(asked.filter((path) => path === 'locked')).toHaveLength(1);
});

test('a batch ends long before its lease, and what it removed is written down', async () => {
  await db.query('delete from agentd.stored_objects');
  await orphans(Array.from({ length: 30 }, (_, i) => `slow/${String(i).padStart(2, '0')}`));
  // each removal takes six seconds of a lease of sixty
  let elapsed = 0;
  const clock: Clock = { ...systemClock, elapsed: () => elapsed };
  const asked: string[] = [];
  const batches: { removed: number; took: number }[] = [];
  let from = 0;
  const slow = (): Storage => {
    from = asked.length;
    const began = elapsed;
    return {
      ...removing(async (_bucket, path) => {
        asked.push(path);
        elapsed += 6_000;
      }),
      close: async () => {
        batches.push({ removed: asked.length - from, took: elapsed - began });
      },
    };
  };
  for (let i = 0; i < 20 && (await notes()).length > 0; i++) await pass(slow, clock);
  expect(asked).toHaveLength(30);
  expect(new Set(asked).size).toBe(30);
  expect(await notes()).toEqual([]);
  for (const { took } of batches) expect(took).toBeLessThan(LEASE_MS / 2);
});

/** Passes until one is over; how many there were, and the last one. */
async function wholePass(storage: () => Storage, clock: Clock) {
  for (let slices = 1; ; slices++) {
    const done = await pass(storage, clock);
    if (done.left?.how !== 'paused') return { ...done, slices };
  }
}
/** Time that passes only while the storage is asked: pauses take none. */
const clockOf = (elapsed: () => number): Clock => ({
  ...systemClock,
  elapsed,
  after: (_ms, fn) => systemClock.after(0, fn),
});
const many = (folder: string) => Array.from({ length: 120 }, (_, i) => `${folder}/${i}`);

test('one pass comes to every object, whatever buckets before it refuse or do not answer', async () => {
  await db.query('delete from agentd.stored_objects');
  await orphans(many('x'), 'hanging');
  await orphans(many('y'), 'refused');
  await orphans(many('z'), 'well');
  const asked = new Map<string, number>();
  let elapsed = 0;
  const storage = (): Storage =>
    removing(
      async (bucket) => {
        asked.set(bucket, (asked.get(bucket) ?? 0) + 1);
        if (bucket === 'refused') throw new DocumentError('credentials_refused', 'AccessDenied');
        if (bucket === 'well') return;
        elapsed += LEASE_MS / 4;
        throw new DOMException('The operation timed out.', 'TimeoutError');
      },
      (bucket) => bucket !== 'hanging',
    );
  const clock = clockOf(() => elapsed);
  const { row, slices } = await wholePass(storage, clock);
  expect(row).toMatchObject({ outcome: 'completed', rows: 120, held: 240 });
  // asked for a while, by several processes if need be, and then left out
  expect(slices).toBeGreaterThan(1);
  expect(Object.fromEntries(asked)).toEqual({ hanging: 10, refused: 120, well: 120 });
  // what was not asked for comes first the next time
  expect(
    await db.query(
      'select bucket, count(*)::integer as n from agentd.stored_objects where retry_at is null group by 1',
    ),
  ).toEqual([{ bucket: 'hanging', n: 110 }]);
});

test('a pass that can remove nothing fails, and not before it has come to the last object', async () => {
  await db.query('delete from agentd.stored_objects');
  await orphans(many('y'), 'refused');
  let asked = 0;
  const refusing = (): Storage =>
    removing(async () => {
      asked++;
      throw new DocumentError('credentials_refused', 'AccessDenied');
    });
  const { left, row } = await wholePass(
    refusing,
    clockOf(() => 0),
  );
  expect(left).toMatchObject({ how: 'failed', error: 'credentials_refused: AccessDenied' });
  expect(row).toMatchObject({ rows: 0, held: 120 });
  expect(asked).toBe(120);
});
