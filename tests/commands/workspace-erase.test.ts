/** agentd workspace erase, as a process: what is gone, what stays, and being killed in the middle. */
import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Erasure, Preview } from '../../src/commands/workspace-erase.ts';
import { APART, BILLING } from '../../src/db/workspace-tables.ts';
import type { World } from '../db/isolation-world.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert } from '../support/platform.ts';
import { agentd, insertTenant, json } from './support.ts';
import { everythingOf, tracesOf, twoTenants } from './workspace-support.ts';

let db: TestDatabase;
let world: World;
const env = () => ({
  DATABASE_URL: db.url,
  AGENTD_STORAGE_URL: `file://${tmpdir()}/agentd-none-${process.pid}`,
});
const erase = (...args: string[]) => agentd(['workspace', 'erase', ...args], env());

const MIRRORED = ['public.user_roles', 'public.workspace_members'];
/** Tables in which the company has a row of its own. */
const tables = (): string[] =>
  [...world.here.where.keys()].map((table) => `public.${table}`).filter((table) => !(table in APART));

beforeAll(async () => {
  db = await testDatabase();
  world = await twoTenants(db);
});
afterAll(() => db?.dispose());

test('without --yes nothing is changed, and every table is counted', async () => {
  const { workspace } = world.here;
  const before = await everythingOf(db, workspace);
  const preview = json<Preview>(await erase(workspace, '--json'));
  const counted = new Map(preview.tables.map(({ table, rows }) => [table, rows]));
  for (const table of tables()) expect([table, counted.get(table) ?? 0]).not.toEqual([table, 0]);
  const said = await erase(workspace.slice(0, 13));
  expect(said).toMatchObject({ code: 0 });
  expect(said.stdout).toContain('Nothing was changed');
  expect(await everythingOf(db, workspace)).toEqual(before);
});

test('with --keep-billing what bills were made of stays, beside a workspace without its name', async () => {
  const tenant = await insertTenant(db, 'Keeper of bills');
  await db.query(
    `insert into public.billing_invoices (workspace_id, amount, status) values ($1, 12, 'paid')`,
    [tenant.workspace],
  );
  await db.query(`insert into public.usage_events (workspace_id, metric) values ($1, 'message')`, [
    tenant.workspace,
  ]);
  const done = json<Erasure>(await erase(tenant.workspace, '--yes', '--keep-billing', '--json'));
  expect(done).toMatchObject({ is_done: true });
  expect(
    await db.query('select name, slug, settings from public.workspaces where id = $1', [tenant.workspace]),
  ).toEqual([{ name: 'Erased workspace', slug: `erased-${tenant.workspace}`, settings: {} }]);
  const traces = await tracesOf(db, tenant.workspace);
  expect(traces).toContain('public.billing_invoices');
  expect(traces).toContain('public.usage_events');
  expect(
    traces.filter(
      (name) =>
        !BILLING.includes(name) &&
        !/^agentd\.(audit_log|usage_by_|workspace_overview|agent_activity)/.test(name),
    ),
  ).toEqual([]);
});

test('nothing says that there was such a workspace but the audit log; the other one is untouched to the byte', async () => {
  const { workspace, owner } = world.here;
  const other = await everythingOf(db, world.there.workspace);
  expect((await tracesOf(db, workspace)).length).toBeGreaterThan(45);
  const done = json<Erasure>(await erase(workspace, '--yes', '--json'));
  expect(done).toMatchObject({ is_done: true, left_rows: [], left_stores: [] });
  expect(await tracesOf(db, workspace)).toEqual(['agentd.audit_log']);
  expect(
    await db.query('select distinct action from agentd.audit_log where workspace_id = $1', [workspace]),
  ).toEqual([{ action: 'erase' }]);
  const after = await everythingOf(db, world.there.workspace);
  for (const [table, rows] of other) {
    // people stay; whoever looked at the workspace looks at none now
    if (table !== 'public.profiles') expect([table, after.get(table)]).toEqual([table, rows]);
  }
  expect([...after.keys()]).toEqual([...other.keys()]);
  // a row of each table was there, and is counted
  // (of each role and membership a trigger deletes the other)
  const counts = tables().map((table) => [table, done.rows[table] ?? 0] as const);
  expect(counts.filter(([table, rows]) => rows === 0 && !MIRRORED.includes(table))).toEqual([]);
  expect(await db.query('select id from auth.users where id = $1', [owner])).toHaveLength(1);
  expect(await db.query('select id from public.profiles where id = $1', [owner])).toHaveLength(1);

  const again = json<Erasure>(await erase(workspace, '--yes', '--json'));
  expect(again).toMatchObject({ is_done: true, rows: {}, cancelled_runs: 0 });
  expect(await erase(randomUUID(), '--yes')).toMatchObject({ code: 1 });
});

test('what others made of its agents and files goes with them, and is counted apart', async () => {
  const tenant = await insertTenant(db, 'Publisher');
  const { place, workspace } = world.there;
  await db.query('update public.agents set is_public = true where id = $1', [tenant.agent]);
  await insert(db, 'public.user_agents', { user_id: place.user, agent_id: tenant.agent });
  await insert(db, 'public.agent_logs', {
    workspace_id: workspace,
    user_id: place.user,
    agent_id: tenant.agent,
  });
  const preview = json<Preview>(await erase(tenant.workspace, '--json'));
  expect(preview.tables.find(({ table }) => table === 'public.agent_logs')).toMatchObject({
    rows: 0,
    others: 1,
  });
  expect(json<Erasure>(await erase(tenant.workspace, '--yes', '--json'))).toMatchObject({ is_done: true });
  expect(await tracesOf(db, tenant.workspace)).toEqual(['agentd.audit_log']);
  expect(await tracesOf(db, tenant.agent)).toEqual([]);
});

test('killed anywhere and run again it ends, without a statement that takes all rows at once', async () => {
  const tenant = await insertTenant(db, 'Large');
  const other = await everythingOf(db, world.there.workspace);
  await db.query(`insert into public.chat_channels (workspace_id, name) values ($1, 'c')`, [
    tenant.workspace,
  ]);
  await db.query(
    `insert into public.chat_messages (workspace_id, channel_id, content)
     select $1, c.id, 'm ' || i from public.chat_channels c, generate_series(1, 12000) i where c.workspace_id = $1`,
    [tenant.workspace],
  );
  await db.query(
    `insert into public.integration_events (workspace_id, source, event_type) select $1, 's', 'e' from generate_series(1, 8000)`,
    [tenant.workspace],
  );
  // On a server it goes on while nobody looks: slowly, so that it is in the middle of it when it is killed.
  if (onServer) {
    await db.query(
      `create function public.slowly() returns trigger language plpgsql as $$ begin perform pg_sleep(0.2); return null; end $$`,
    );
    for (const table of ['chat_messages', 'integration_events'])
      await db.query(
        `create trigger slowly after delete on public.${table} for each statement execute function public.slowly()`,
      );
  }
  const cli = fileURLToPath(new URL('../../src/cli.ts', import.meta.url));
  const left = async (): Promise<number> => {
    const [row] = await db.query<{ n: number }>(
      `select ((select count(*) from public.chat_messages where workspace_id = $1) + (select count(*) from public.integration_events where workspace_id = $1))::integer as n`,
      [tenant.workspace],
    );
    return row?.n ?? 0;
  };
  const seen: number[] = [];
  for (const share of [19_000, 10_000]) {
    const child = spawn(process.execPath, [cli, 'workspace', 'erase', tenant.workspace, '--yes'], {
      env: {
        PATH: process.env.PATH ?? '',
        NODE_COMPILE_CACHE: process.env.NODE_COMPILE_CACHE ?? '',
        ...env(),
      },
      stdio: 'ignore',
    });
    const gone = once(child, 'exit');
    while ((await left()) > share && child.exitCode === null);
    child.kill('SIGKILL');
    await gone;
    seen.push(await left());
    expect(await db.query('select 1 from public.workspaces where id = $1', [tenant.workspace])).toHaveLength(
      1,
    );
  }
  await db.query('drop function if exists public.slowly() cascade');
  // it was in the middle of it both times
  expect(seen[0]).toBeGreaterThan(0);
  expect(seen[1]).toBeLessThan(seen[0] ?? 0);
  const done = json<Erasure>(await erase(tenant.workspace, '--yes', '--json'));
  expect(done).toMatchObject({ is_done: true });
  expect(await tracesOf(db, tenant.workspace)).toEqual(['agentd.audit_log']);
  expect(await everythingOf(db, world.there.workspace)).toEqual(other);
});

test.runIf(onServer)(
  'rows that somebody else holds are waited for, said, and deleted by the next run',
  async () => {
    const tenant = await insertTenant(db, 'Held');
    const client = await db.pool.connect();
    try {
      await client.query('begin');
      await client.query('select 1 from public.agent_tasks where id = $1 for update', [tenant.task]);
      const outcome = await erase(tenant.workspace, '--yes', '--wait', '0.5', '--json');
      expect(outcome.code).toBe(1);
      expect(json<Erasure>(outcome)).toMatchObject({
        is_done: false,
        left_rows: [{ table: 'public.agent_tasks' }],
      });
      expect(outcome.stderr).toContain('run the command again');
    } finally {
      await client.query('rollback');
      client.release();
    }
    expect(json<Erasure>(await erase(tenant.workspace, '--yes', '--json'))).toMatchObject({ is_done: true });
    expect(await tracesOf(db, tenant.workspace)).toEqual(['agentd.audit_log']);
  },
);

test.runIf(onServer)(
  'an application that goes on writing gets errors at last, and leaves nothing behind',
  async () => {
    const tenant = await insertTenant(db, 'Busy');
    let written = 0;
    const refused: string[] = [];
    const writers = Array.from({ length: 3 }, async () => {
      for (;;) {
        try {
          await db.query(
            `with c as (insert into public.chat_channels (workspace_id, name) values ($1, 'c') returning id),
                e as (insert into public.integration_events (workspace_id, source, event_type) values ($1, 's', 'e'))
           insert into public.usage_events (workspace_id, metric) values ($1, 'message')`,
            [tenant.workspace],
          );
          written++;
        } catch (error) {
          refused.push((error as { code: string }).code);
          return;
        }
      }
    });
    const done = json<Erasure>(await erase(tenant.workspace, '--yes', '--json'));
    await Promise.all(writers);
    expect(done).toMatchObject({ is_done: true });
    expect(written).toBeGreaterThan(10);
    // the workspace that they name is gone
    expect(refused).toEqual(['23503', '23503', '23503']);
    expect(await tracesOf(db, tenant.workspace)).toEqual(['agentd.audit_log']);
  },
);
