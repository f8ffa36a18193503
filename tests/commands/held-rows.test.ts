/** Commands of operators wait no longer than they say for what a member of a workspace holds. */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type EraseOptions, type Erasure, eraseWorkspace } from '../../src/commands/workspace-erase.ts';
import { loadConfig } from '../../src/config.ts';
import { plant } from '../db/retention-rows.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert } from '../support/platform.ts';
import { agentd, insertTenant, json } from './support.ts';
import { tracesOf } from './workspace-support.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await testDatabase();
});
afterAll(() => db?.dispose());

const erase = (...args: string[]) => agentd(['workspace', 'erase', ...args], { DATABASE_URL: db.url });

/** Does `work` while another transaction holds what `statement` selects. */
async function holding<T>(statement: string, values: readonly unknown[], work: () => Promise<T>): Promise<T> {
  const client = await db.pool.connect();
  try {
    await client.query('begin');
    expect((await client.query(statement, [...values])).rowCount).toBeGreaterThan(0);
    return await work();
  } finally {
    await client.query('rollback');
    client.release();
  }
}

test.runIf(onServer)('a pass of maintenance steps over a run whose calls somebody holds', async () => {
  const tenant = await insertTenant(db, 'Old');
  const [held, free] = [randomUUID(), randomUUID()];
  const row = { workspace_id: tenant.workspace };
  for (const [id, days] of [
    [held, 400],
    [free, 390],
  ] as const) {
    const finished_at = new Date(Date.now() - days * 86_400_000);
    await plant(db, 'public.task_runs', [
      { ...row, id, agent_id: tenant.agent, steps: '[]', settings: '{}', status: 'failed', finished_at },
    ]);
    await plant(db, 'public.llm_calls', [
      { ...row, run_id: id, step_order: 1, turn: 1, idempotency_key: id, status: 'completed' },
    ]);
  }
  const done = await holding('select 1 from public.llm_calls where run_id = $1 for update', [held], () =>
    agentd(['maintenance', 'run', 'task_runs', '--json'], { DATABASE_URL: db.url }),
  );
  expect(json(done)).toMatchObject([{ name: 'task_runs', outcome: 'completed', rows: 1, held: 1 }]);
  expect(done.stderr).toContain(held);
  const left = await db.query<{ id: string }>('select id from public.task_runs where id = any ($1)', [
    [held, free],
  ]);
  expect(left.map(({ id }) => id)).toEqual([held]);
});

test.runIf(onServer).each([
  ['public.workspaces', 'the workspace itself', 'select 1 from public.workspaces where id = $1 for update'],
  [
    'public.datastores',
    'a store elsewhere',
    `select 1 from public.datastores where workspace_id = $1 and type = 'pinecone' for update`,
  ],
])('an erasure says that %s is held, and ends another time (%s)', async (table, _, statement) => {
  const tenant = await insertTenant(db, 'Held');
  const [owner] = await db.query<{ id: string }>(
    'select owner_user_id as id from public.workspaces where id = $1',
    [tenant.workspace],
  );
  await insert(db, 'public.datastores', {
    user_id: owner?.id,
    workspace_id: tenant.workspace,
    name: 'Elsewhere',
    type: 'pinecone',
    config: JSON.stringify({ api_key: 'k', index: 'i' }),
  });
  const held = await holding(statement, [tenant.workspace], () =>
    erase(tenant.workspace, '--yes', '--wait', '0.5', '--json'),
  );
  expect(held.code).toBe(1);
  expect(json<Erasure>(held)).toMatchObject({ is_done: false, rows: {}, left_rows: [{ table }] });
  expect(json<Erasure>(await erase(tenant.workspace, '--yes', '--json'))).toMatchObject({ is_done: true });
  expect(await tracesOf(db, tenant.workspace)).toEqual(['agentd.audit_log']);
});

test.runIf(onServer)(
  'what is written while other stores are emptied, and can’t be deleted, keeps an erasure from being done',
  async () => {
    const tenant = await insertTenant(db, 'Late');
    const [store] = await db.query<{ id: string }>(
      `insert into agentd.vector_stores (datastore_id, workspace_id, retired_at, config) values (gen_random_uuid(), $1, now(), '{}') returning id`,
      [tenant.workspace],
    );
    await db.query(
      `insert into agentd.workers (id, hostname, pid, version, queues, state, last_seen_at) values ('w', 'h', 1, '1', '{}', 'running', now() + interval '1 hour')`,
    );
    const client = await db.pool.connect();
    let isHeld: Promise<unknown> | null = null;
    const options: EraseOptions = {
      keepBilling: true,
      leaveFiles: true,
      leaveFailed: false,
      listAllFiles: false,
      leaveMemories: true,
      // short once the row is held: until then the stores are waited for
      get waitMs() {
        return isHeld === null ? 60_000 : 100;
      },
      note: (text) => {
        if (isHeld !== null || !text.includes('stores elsewhere')) return;
        isHeld = (async () => {
          await client.query('begin');
          await client.query(`insert into public.chat_channels (workspace_id, name) values ($1, 'late')`, [
            tenant.workspace,
          ]);
          await client.query('commit');
          await client.query('begin');
          await client.query('select 1 from public.chat_channels where workspace_id = $1 for update', [
            tenant.workspace,
          ]);
          await db.query('delete from agentd.vector_stores where id = $1', [store?.id]);
        })();
      },
    };
    const erasure = await eraseWorkspace(db, loadConfig({ DATABASE_URL: db.url }), tenant.workspace, options);
    expect(isHeld).not.toBeNull();
    await client.query('rollback');
    client.release();
    expect(erasure).toMatchObject({ is_done: false, left_rows: [{ table: 'public.chat_channels' }] });
    const [said] = await db.query<{ state: string }>(
      `select details ->> 'state' as state from agentd.audit_log where workspace_id = $1 and action = 'erase' order by id desc limit 1`,
      [tenant.workspace],
    );
    expect(said?.state).toBe('incomplete');
    await db.query(`delete from agentd.workers where id = 'w'`);
    expect(json<Erasure>(await erase(tenant.workspace, '--yes', '--keep-billing', '--json'))).toMatchObject({
      is_done: true,
      rows: { 'public.chat_channels': 1 },
    });
  },
);
