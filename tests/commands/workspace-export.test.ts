/** agentd workspace export, as a process. */
import { execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { exportWorkspace, type Manifest } from '../../src/commands/workspace-export.ts';
import { loadConfig } from '../../src/config.ts';
import { readCatalog } from '../../src/db/workspace-catalog.ts';
import { planWorkspace } from '../../src/db/workspace-plan.ts';
import { CUT, MASK } from '../../src/db/workspace-rows.ts';
import type { World } from '../db/isolation-world.ts';
import { type S3Object, startS3Server } from '../peers/s3-server.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert } from '../support/platform.ts';
import { agentd, insertTenant, json } from './support.ts';
import { everythingOf, twoTenants } from './workspace-support.ts';

let db: TestDatabase;
let world: World;
let folder: string;
const run = (...args: string[]) =>
  agentd(['workspace', 'export', ...args], {
    DATABASE_URL: db.url,
    AGENTD_STORAGE_URL: `file://${folder}/storage`,
  });

beforeAll(async () => {
  db = await testDatabase();
  world = await twoTenants(db);
  folder = mkdtempSync(join(tmpdir(), 'agentd-export-'));
});
afterAll(async () => {
  if (folder) rmSync(folder, { recursive: true, force: true });
  await db?.dispose();
});

type Row = Record<string, unknown>;
const manifestOf = (place: string): Manifest =>
  JSON.parse(readFileSync(join(place, 'manifest.json'), 'utf8'));
function rowsOf(place: string, table: string): Row[] {
  const entry = manifestOf(place).tables.find((one) => one.table === table);
  return readFileSync(join(place, entry?.path ?? ''), 'utf8')
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line));
}
const partials = (): string[] => readdirSync(folder).filter((name) => name.includes('.partial-'));

test('every row of the workspace is in it, none of another’s, and no secret', async () => {
  const { workspace } = world.here;
  const target = join(folder, 'all');
  const outcome = await run(workspace, target);
  expect(outcome).toMatchObject({ code: 0 });
  const manifest = manifestOf(target);
  const covered = planWorkspace(await readCatalog(db)).filter(({ name }) => !name.startsWith('agentd.'));
  expect(manifest.tables.map(({ table }) => table)).toEqual(covered.map(({ name }) => name).sort());
  const there = await everythingOf(db, workspace);
  const own = world.here.where;
  for (const { table, rows, path, bytes, sha256, masked, omitted } of manifest.tables) {
    const text = readFileSync(join(target, path));
    expect([table, bytes, sha256]).toEqual([
      table,
      text.length,
      createHash('sha256').update(text).digest('hex'),
    ]);
    const exported = rowsOf(target, table);
    expect([table, exported.length]).toEqual([table, rows]);
    if (table !== 'public.user_agents' && table !== 'public.integrations')
      expect([table, rows]).toEqual([table, (there.get(table) ?? []).length]);
    // all columns as the database has them, but for those that are said to be otherwise
    const wanted = (there.get(table) ?? []).map((row) => JSON.parse(row) as Row);
    const comparable = (row: Row): Row =>
      Object.fromEntries(
        Object.entries(row)
          .filter(([name]) => ![...masked.map((column) => column.split('.')[0]), ...omitted].includes(name))
          .sort(),
      );
    const texts = (list: Row[]) => list.map((row) => JSON.stringify(comparable(row))).sort();
    expect([table, texts(exported).filter((row) => !texts(wanted).includes(row))]).toEqual([table, []]);
  }
  // a row in every table that tenants' rows are in
  const empty = manifest.tables.filter(
    ({ table, rows }) => rows === 0 && own.has(table.replace('public.', '')),
  );
  expect(empty.map(({ table }) => table)).toEqual([]);
  const everything = manifest.tables.map(({ path }) => readFileSync(join(target, path), 'utf8')).join('');
  expect(everything).toContain(workspace);
  for (const [table, where] of world.there.where) {
    const id = /'([0-9a-f-]{36})'/.exec(where)?.[1];
    if (id !== undefined) expect([table, everything.includes(id)]).toEqual([table, false]);
  }
  expect(everything).not.toContain(`secret-of-${workspace}`);
  expect(rowsOf(target, 'public.workspace_llm_config')).toMatchObject([{ api_key: MASK }]);
  expect(
    rowsOf(target, 'public.datastores')
      .map((row) => row.config)
      .sort(),
  ).toContain(MASK);
  expect(manifest.tables.find(({ table }) => table === 'public.workspace_llm_config')?.masked).toContain(
    'api_key',
  );
  expect(manifest.notes.join('\n')).toContain('Secrets are not exported');
  expect(partials()).toEqual([]);
  expect(statSync(target).mode & 0o077).toBe(0);
});

test('what is there is never overwritten, and what fails leaves nothing', async () => {
  mkdirSync(join(folder, 'taken'));
  writeFileSync(join(folder, 'taken.tar'), 'mine');
  expect(await run(world.here.workspace, join(folder, 'taken'))).toMatchObject({ code: 2, stdout: '' });
  expect(await run(world.here.workspace, join(folder, 'taken.tar'))).toMatchObject({ code: 2 });
  expect(await run(world.here.workspace, join(folder, 'nowhere', 'x'))).toMatchObject({ code: 2 });
  expect(await run('no-such', join(folder, 'x'))).toMatchObject({ code: 1 });
  expect(readdirSync(join(folder, 'taken'))).toEqual([]);
  expect(readFileSync(join(folder, 'taken.tar'), 'utf8')).toBe('mine');
  const broken = exportWorkspace(
    db,
    loadConfig({ DATABASE_URL: db.url }),
    { id: world.here.workspace, name: 'n', slug: 's' },
    join(folder, 'broken'),
    {
      withFiles: false,
      withVectors: false,
      isOneSnapshot: true,
      agentd: '0',
      note: () => {
        // half of it is written by then, under another name and without a manifest
        expect(partials()).toHaveLength(1);
        expect(existsSync(join(folder, partials()[0] ?? '', 'manifest.json'))).toBe(false);
        throw new Error('the disk is full');
      },
    },
  );
  await expect(broken).rejects.toThrow('the disk is full');
  expect(existsSync(join(folder, 'broken'))).toBe(false);
  expect(partials()).toEqual([]);
});

test('an archive holds the same, with the manifest last, and stored files under names of ours', async () => {
  const { workspace, place } = world.here;
  const hostile = `${workspace}/..%2f..%2fetc/pass wd;rm -rf.txt`;
  mkdirSync(join(folder, 'storage', 'media-library', workspace, '..%2f..%2fetc'), { recursive: true });
  writeFileSync(join(folder, 'storage', 'media-library', hostile), 'its bytes');
  const media = await insert(db, 'public.media_library', {
    workspace_id: workspace,
    user_id: place.user,
    file_name: '../../x',
    storage_path: hostile,
  });
  const lost = await insert(db, 'public.media_library', {
    workspace_id: workspace,
    user_id: place.user,
    file_name: 'lost',
    storage_path: `${workspace}/lost`,
  });
  const target = join(folder, 'all.tar');
  const { objects } = json<Manifest>(await run(workspace, target, '--with-files', '--no-snapshot', '--json'));
  expect(objects).toMatchObject({ stored: 1, missing: 1, bytes: 9 });
  const names = execFileSync('tar', ['-tf', target], { encoding: 'utf8' }).trim().split('\n');
  expect(names.at(-1)).toBe('all/manifest.json');
  expect(names.every((name) => /^all\/[\w./-]+$/.test(name) && !name.includes('..'))).toBe(true);
  execFileSync('tar', ['-xf', target, '-C', folder]);
  const index = readFileSync(join(folder, 'all', 'objects.jsonl'), 'utf8');
  const entries = index
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as { media_id: string; file: string | null });
  expect(entries.find(({ media_id }) => media_id === lost)).toMatchObject({
    file: null,
    reason_code: 'not_found',
  });
  const file = entries.find(({ media_id }) => media_id === media)?.file ?? '';
  expect(readFileSync(join(folder, 'all', file), 'utf8')).toBe('its bytes');
  expect(partials()).toEqual([]);
});

test('files that the storage does not give are listed, keep none of the others, and are said by the exit code', async () => {
  await using server = await startS3Server();
  const objects = new Map<string, S3Object>();
  server.buckets.set('media-library', objects);
  server.forbidden.add('test');
  const { place } = world.there;
  const { workspace } = await insertTenant(db, 'Buckets');
  const file = (bucket: string, name: string) =>
    insert(db, 'public.media_library', {
      workspace_id: workspace,
      user_id: place.user,
      // a line's end for some who read lines
      file_name: `a\u2028b\u2029${name}`,
      bucket,
      storage_path: `${workspace}/${name}`,
      is_archived: true,
    });
  for (let i = 0; i < 30; i++) await file('test', `${i}`);
  const s3 = (target: string) =>
    agentd(['workspace', 'export', workspace, join(folder, target), '--with-files', '--json'], {
      DATABASE_URL: db.url,
      AGENTD_STORAGE_URL: `s3://${server.host}?scheme=http&region=${server.keys.region}`,
      AWS_ACCESS_KEY_ID: server.keys.accessKeyId,
      AWS_SECRET_ACCESS_KEY: server.keys.secretAccessKey,
    });
  // nothing at all may be the keys of the storage, or its address
  const none = await s3('none');
  expect(none).toMatchObject({ code: 1, stdout: '' });
  expect(none.stderr).toContain('The storage gives none of the files (credentials_refused)');
  expect(existsSync(join(folder, 'none'))).toBe(false);
  const bytes = Buffer.from(Array.from({ length: 700_000 }, (_, i) => i % 251));
  for (const name of ['x', 'y']) {
    objects.set(`${workspace}/${name}`, { bytes, contentType: 'text/plain' });
    await file('media-library', name);
  }
  await file('media-library', 'lost');
  const some = await s3('some');
  expect(some.code).toBe(1);
  expect(some.stderr).toContain('did not give 30 files');
  expect(json<Manifest>(some).objects).toMatchObject({
    stored: 2,
    missing: 31,
    refused: 30,
    bytes: 1_400_000,
  });
  const entries = readFileSync(join(folder, 'some', 'objects.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as { bucket: string; file: string | null; reason_code?: string });
  expect(entries.filter(({ reason_code }) => reason_code === 'credentials_refused')).toHaveLength(30);
  for (const { file: copy } of entries)
    if (copy !== null) expect(readFileSync(join(folder, 'some', copy)).equals(bytes)).toBe(true);
  expect(readdirSync(join(folder, 'some', 'objects')).sort()).toEqual(['00000001', '00000002']);
  await db.query(`delete from public.media_library where bucket = 'test'`);
  expect((await s3('whole')).code).toBe(0);
});

test('rows of megabytes are exported whole, and one that no line can hold without what is too large in it', async () => {
  const { workspace, agent } = await insertTenant(db, 'Large rows');
  const visit = (text: string, length: number) =>
    db.query(
      `insert into public.chat_sessions (workspace_id, agent_id, channel, internal_notes) values ($1, $2, 'voice', repeat($3, $4))`,
      [workspace, agent, text, length],
    );
  await visit('ä', 100);
  await visit('ö\n', 1_000_000);
  await visit('ü\u2028', 500_000);
  // as JSON, six characters for each of these
  if (onServer) await visit('\u0001', 200_000_000);
  const target = join(folder, 'large-rows');
  const outcome = await run(workspace, target, '--json');
  expect(outcome.code).toBe(0);
  const table = json<Manifest>(outcome).tables.find((one) => one.table === 'public.chat_sessions');
  expect(table).toMatchObject({ rows: onServer ? 4 : 3, cut_rows: onServer ? 1 : 0 });
  const rows = rowsOf(target, 'public.chat_sessions');
  expect(rows.map((row) => row.internal_notes)).toEqual(
    expect.arrayContaining(['ä'.repeat(100), 'ö\n'.repeat(1_000_000), 'ü\u2028'.repeat(500_000)]),
  );
  if (onServer) {
    expect(rows.find((row) => row.internal_notes === CUT)).toMatchObject({
      agent_id: agent,
      channel: 'voice',
    });
    expect(json<Manifest>(outcome).notes.join('\n')).toContain(
      '1 rows of public.chat_sessions are too large',
    );
  }
});

test('vectors are arrays of numbers where they are asked for', async () => {
  const source = world.here.place.of('knowledge_sources');
  await db.query(
    `insert into public.knowledge_chunks (workspace_id, source_id, chunk_index, content, embedding, embedding_model)
     values ($1, $2, 7, E'two\nlines', '[1,2.5]', 'm')`,
    [world.here.workspace, source],
  );
  await run(world.here.workspace, join(folder, 'vectors'), '--vectors');
  const rows = rowsOf(join(folder, 'vectors'), 'public.knowledge_chunks');
  expect(rows.find((row) => row.chunk_index === 7)).toMatchObject({
    content: 'two\nlines',
    embedding: [1, 2.5],
  });
});

test('a process that is told to stop leaves nothing, one that is killed nothing that looks whole', async () => {
  await db.query(
    `insert into public.integration_events (workspace_id, source, event_type) select $1, 's', 'e' from generate_series(1, 40000)`,
    [world.there.workspace],
  );
  const cli = fileURLToPath(new URL('../../src/cli.ts', import.meta.url));
  const codes: (number | null)[] = [];
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    const child = spawn(
      process.execPath,
      [cli, 'workspace', 'export', world.there.workspace, join(folder, 'cut-short')],
      {
        env: {
          PATH: process.env.PATH ?? '',
          NODE_COMPILE_CACHE: process.env.NODE_COMPILE_CACHE ?? '',
          DATABASE_URL: db.url,
        },
        stdio: ['ignore', 'ignore', 'pipe'],
      },
    );
    const gone = once(child, 'exit');
    // the first table has been written
    await once(child.stderr, 'data');
    child.kill(signal);
    await gone;
    codes.push(child.exitCode);
    expect(existsSync(join(folder, 'cut-short'))).toBe(false);
    expect(partials()).toHaveLength(signal === 'SIGTERM' ? 0 : 1);
  }
  expect(codes).toEqual([143, null]);
  expect(readdirSync(join(folder, partials()[0] ?? ''))).not.toContain('manifest.json');
  // the next one says what is there, and leaves it: it may be of one that is running
  const [killed] = partials();
  const next = await run(world.there.workspace, join(folder, 'cut-short'));
  expect(next.code).toBe(0);
  expect(next.stderr).toContain(join(folder, killed ?? ''));
  expect(partials()).toEqual([killed]);
});
