/** Which workspace an operator's word means: a tenant chooses his slug, and never what a command for another one is about. */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Erasure, Preview } from '../../src/commands/workspace-erase.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { agentd, insertTenant, json } from './support.ts';
import { tracesOf } from './workspace-support.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await testDatabase();
});
afterAll(() => db?.dispose());

const erase = (...args: string[]) => agentd(['workspace', 'erase', ...args], { DATABASE_URL: db.url });
/** The workspace that a preview is about. */
const meant = async (text: string): Promise<string> =>
  json<Preview & { workspace: { id: string } }>(await erase(text, '--json')).workspace.id;
const rename = (workspace: string, slug: string) =>
  db.query('update public.workspaces set slug = $2 where id = $1', [workspace, slug]);

test('a whole id is that workspace’s, whoever has it for a slug', async () => {
  const [victim, other] = [await insertTenant(db, 'Victim'), await insertTenant(db, 'Other')];
  await rename(victim.workspace, 'victim');
  await rename(other.workspace, victim.workspace);
  for (const text of [
    victim.workspace,
    victim.workspace.toUpperCase(),
    victim.workspace.replaceAll('-', ''),
    'victim',
  ])
    expect(await meant(text)).toBe(victim.workspace);
});

test('a slug that is the beginning of another’s id is refused, and one that only looks so is a slug', async () => {
  const [victim, other] = [await insertTenant(db, 'Victim'), await insertTenant(db, 'Other')];
  const prefix = victim.workspace.slice(0, 8);
  await rename(victim.workspace, `v-${prefix}`);
  expect(await meant(prefix)).toBe(victim.workspace);
  await rename(other.workspace, prefix);
  const unclear = await erase(prefix, '--yes');
  expect(unclear).toMatchObject({ code: 2 });
  expect(unclear.stderr).toContain(victim.workspace);
  expect(unclear.stderr).toContain(other.workspace);
  // also once the one is gone whose id it is the beginning of
  expect(json<Erasure>(await erase(victim.workspace, '--yes', '--json'))).toMatchObject({ is_done: true });
  expect(await erase(prefix, '--yes')).toMatchObject({ code: 2 });
  expect(await db.query('select 1 from public.workspaces where id = $1', [other.workspace])).toHaveLength(1);
  await rename(other.workspace, 'facade');
  expect(await meant('facade')).toBe(other.workspace);
});

test('bills are kept although somebody has the slug that an erased workspace gets', async () => {
  const [tenant, squatter] = [await insertTenant(db, 'Kept'), await insertTenant(db, 'Squatter')];
  await rename(squatter.workspace, `erased-${tenant.workspace}`);
  for (const _ of ['once', 'again']) {
    const done = json<Erasure>(await erase(tenant.workspace, '--yes', '--keep-billing', '--json'));
    expect(done).toMatchObject({ is_done: true, left_rows: [] });
  }
  const [row] = await db.query<{ slug: string }>('select slug from public.workspaces where id = $1', [
    tenant.workspace,
  ]);
  expect(row?.slug).toMatch(new RegExp(`^erased-${tenant.workspace}-[0-9a-f]{8}$`));
});

test('what its owner deleted is erased by its id: what is kept of its bills goes, or stays with --keep-billing', async () => {
  const tenant = await insertTenant(db, 'Deleted');
  const event = `insert into public.usage_events (workspace_id, metric) values ($1, 'message')`;
  await db.query(event, [tenant.workspace]);
  await db.query('delete from public.workspaces where id = $1', [tenant.workspace]);
  const kept = json<Erasure>(await erase(tenant.workspace, '--yes', '--keep-billing', '--json'));
  expect(kept).toMatchObject({ is_done: true });
  expect(kept.kept_tables).toContain('agentd.closed_workspaces');
  const traces = await tracesOf(db, tenant.workspace);
  for (const table of ['agentd.closed_workspaces', 'public.usage_events']) expect(traces).toContain(table);
  const gone = json<Erasure>(await erase(tenant.workspace, '--yes', '--json'));
  expect(gone).toMatchObject({ is_done: true, rows: { 'agentd.closed_workspaces': 1 } });
  expect(gone.notes.join(' ')).toContain('agentd.closed_workspaces');
  expect(await tracesOf(db, tenant.workspace)).toEqual(['agentd.audit_log']);
  expect(await erase(randomUUID(), '--yes')).toMatchObject({ code: 1 });
});
