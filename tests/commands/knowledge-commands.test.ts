/** Commands about knowledge say whose it would be, that there is none, and what waits. */
import { randomUUID } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { agentd, insertTenant, json, type Outcome, type Tenant } from './support.ts';

let db: TestDatabase;
let directory: string;
let file: string;
let harbour: Tenant;

const on = (...args: string[]): Promise<Outcome> =>
  agentd(args, { DATABASE_URL: db.url, AGENTD_STORAGE_URL: `file://${directory}/storage` });
const ingest = (...args: string[]): Promise<Outcome> => on('ingest', file, '--no-wait', ...args);
const ownerOf = async (outcome: Outcome): Promise<string | undefined> => {
  const { source_id } = json<{ source_id: string }>(outcome);
  const [row] = await db.query<{ workspace_id: string }>(
    'select workspace_id from public.knowledge_sources where id = $1',
    [source_id],
  );
  return row?.workspace_id;
};

beforeAll(async () => {
  db = await testDatabase();
  directory = await mkdtemp(join(tmpdir(), 'agentd-knowledge-'));
  file = join(directory, 'terms.txt');
  await writeFile(file, 'Refunds are paid within 14 days.');
});
afterAll(async () => {
  await db?.dispose();
  await rm(directory, { recursive: true, force: true });
});

test('ingest without a workspace says that there is none, and the statement that makes one', async () => {
  await db.query('delete from public.workspaces');
  const { code, stderr } = await ingest();
  expect(code).toBe(1);
  expect(stderr).toContain('There is no workspace yet');
  const statement = /in SQL: (insert .*;)/.exec(stderr)?.[1] ?? '';
  await db.pool.query(statement);
  const [made, ...others] = await db.query<{ id: string }>('select id from public.workspaces');
  expect(others).toEqual([]);
  expect(await ownerOf(await ingest('--json'))).toBe(made?.id);
});

test('ingest among several lists them, and takes a slug or the beginning of an id', async () => {
  harbour = await insertTenant(db, 'Harbour', null);
  await db.query(`update public.workspaces set slug = 'harbour' where id = $1`, [harbour.workspace]);
  const { code, stderr } = await ingest();
  expect(code).toBe(2);
  expect(stderr).toMatch(/harbour {2}[0-9a-f]+ {2}Harbour/);
  expect(stderr).toContain('--workspace SLUG');
  expect(await ownerOf(await ingest('--json', '--workspace', 'harbour'))).toBe(harbour.workspace);
  expect(await ownerOf(await ingest('--json', '--workspace', harbour.workspace.slice(0, 8)))).toBe(
    harbour.workspace,
  );
  const unknown = await ingest('--workspace', 'nowhere');
  expect(unknown.code).toBe(1);
  expect(unknown.stderr).toContain("slug 'nowhere'");
});

test('ingest stores a file whose name no path can have under one that every storage takes', async () => {
  const odd = join(directory, 'a\tb\n.txt');
  await writeFile(odd, 'x');
  const outcome = await on('ingest', odd, '--no-wait', '--json', '--workspace', 'harbour');
  expect(outcome.code).toBe(0);
  const { source_id } = json<{ source_id: string }>(outcome);
  const [media] = await db.query<{ file_name: string; storage_path: string }>(
    `select m.file_name, m.storage_path from public.media_library m
       join public.knowledge_sources s on s.media_id = m.id where s.id = $1`,
    [source_id],
  );
  expect(media?.file_name).toBe('a\tb\n.txt');
  expect(media?.storage_path).toMatch(/\/a_b_\.txt$/);
  expect(
    await db.query('select 1 from agentd.stored_objects where path = $1', [media?.storage_path]),
  ).toHaveLength(1);
  await db.query('delete from public.media_library where storage_path = $1', [media?.storage_path]);
});

test('embeddings migrate without any knowledge says that there is none', async () => {
  const { code, stdout } = await on('embeddings', 'migrate', '--to', 'feature-hash-v1');
  expect([code, stdout]).toEqual([0, expect.stringContaining('There is no knowledge yet')]);
  const one = await on('embeddings', 'migrate', '--workspace', 'harbour', '--yes');
  expect([one.code, one.stdout]).toEqual([0, expect.stringContaining('in this workspace')]);
});

type Held = { kind: string; reason_code: string; count: number };

test('status and doctor name stores that rest, messages that wait or were given up, and moves that failed', async () => {
  const held = async (): Promise<Held[]> =>
    json<{ held_work: Held[] }>(await on('status', '--json')).held_work.map(
      ({ kind, reason_code, count }) => ({
        kind,
        reason_code,
        count,
      }),
    );
  expect(await held()).toEqual([]);
  const dock = await insertTenant(db, 'Dock', null);
  const quay = await insertTenant(db, 'Quay', null);
  await db.query(
    `insert into agentd.vector_stores (datastore_id, workspace_id, rest_until, reason_code, reason)
     select gen_random_uuid(), $1, agentd.now() + n * interval '1 minute', 'credentials_refused', 'The key of the index is refused.'
       from generate_series(0, 2) n`,
    [harbour.workspace],
  );
  for (const { workspace } of [harbour, dock, quay])
    await db.query(`update public.workspaces set settings = '{"embed_messages": true}' where id = $1`, [
      workspace,
    ]);
  await db.query(
    `update agentd.message_workspaces set reason_code = 'no_credentials', reason = E'There is\\e[31m no key.', retry_at = agentd.now() + interval '1 minute'
      where id in ($1, $2)`,
    [harbour.workspace, dock.workspace],
  );
  await db.query(
    `update agentd.message_workspaces set retry_at = 'infinity', walk_kind = null where id = $1`,
    [quay.workspace],
  );
  // a reason of before, and nothing left to do
  await db.query(`update agentd.message_workspaces set walk_kind = null where id = $1`, [dock.workspace]);
  await db.query(
    `insert into agentd.message_queue (kind, message_id, workspace_id, failed_at, reason_code, reason)
     values ('channel', $1, $3, agentd.now(), 'too_large', 'It is too large.'), ('channel', $2, $4, null, null, null)`,
    [randomUUID(), randomUUID(), harbour.workspace, quay.workspace],
  );
  await db.query(
    `insert into agentd.embedding_migrations (workspace_id, status, model, dimensions, chunks, tokens, reason_code, reason, finished_at)
     values ($1, 'failed', 'text-embedding-3-large', 1024, 1, 1, 'wrong_dimensions', 'It makes other vectors.', agentd.now())`,
    [harbour.workspace],
  );
  expect(await held()).toEqual([
    { kind: 'stores_resting', reason_code: 'credentials_refused', count: 2 },
    { kind: 'messages_waiting', reason_code: 'no_credentials', count: 1 },
    { kind: 'messages_waiting', reason_code: 'paused', count: 1 },
    { kind: 'messages_given_up', reason_code: 'too_large', count: 1 },
    { kind: 'moves_failed', reason_code: 'wrong_dimensions', count: 1 },
  ]);
  const { stdout } = await on('status');
  for (const part of [
    '2 stores of vectors rest: credentials_refused (The key of the index is refused.)',
    '1 workspace’s messages wait to be embedded: paused',
    '1 message will not be embedded: too_large',
    '1 workspace was not moved to another embedding model: wrong_dimensions',
    'agentd embeddings migrate --yes',
  ])
    expect(stdout).toContain(part);
  expect(stdout).not.toContain('\u001b');
  const { checks } = json<{ checks: { name: string; status: string; details?: unknown[] }[] }>(
    await on('doctor', '--json'),
  );
  const check = checks.find(({ name }) => name === 'held work');
  expect(check).toMatchObject({ status: 'warn' });
  expect(check?.details).toHaveLength(5);
  expect(check?.details?.[0]).toEqual({
    object: '2 stores of vectors rest',
    problem: 'credentials_refused (The key of the index is refused.)',
    next_step: expect.stringContaining('datastores.config'),
  });
});
