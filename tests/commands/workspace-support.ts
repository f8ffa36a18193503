/** Two tenants with a row in every table, and ways to see what is left of one. */
import { randomUUID } from 'node:crypto';
import { readCatalog } from '../../src/db/workspace-catalog.ts';
import { planWorkspace } from '../../src/db/workspace-plan.ts';
import { APART } from '../../src/db/workspace-tables.ts';
import { makeWorld, type World } from '../db/isolation-world.ts';
import type { TestDatabase } from '../support/database.ts';
import { insert } from '../support/platform.ts';

/** Two companies with a row in every table of schema public, and in those of agentd that triggers do not fill. */
export async function twoTenants(db: TestDatabase): Promise<World> {
  const world = await makeWorld(db);
  for (const { workspace, place } of [world.here, world.there]) {
    const run = place.of('task_runs');
    await db.query(
      `insert into agentd.job_runs (queue, job_id, attempt, worker_id, workspace_id, outcome, duration_ms)
       values ('task-run', $1, 1, 'w', $2, 'completed', 1)`,
      [randomUUID(), workspace],
    );
    await db.query(
      `insert into agentd.message_queue (kind, message_id, workspace_id) values ('channel', $1, $2)`,
      [place.of('chat_messages'), workspace],
    );
    await db.query('insert into agentd.rate_limits (key) values ($1)', [`key-${workspace.slice(0, 4)}`]);
    await db.query(
      'insert into agentd.rate_limit_lines (key, workspace_id, waiting, last_at) values ($1, $2, 1, now())',
      [`key-${workspace.slice(0, 4)}`, workspace],
    );
    await db.query(`insert into agentd.budget_counters (budget_id, month) values ($1, '2030-01-01')`, [
      place.of('budgets'),
    ]);
    await db.query(
      `insert into agentd.budget_reservations (call_key, budget_id, month, run_id, turns, tool_calls, tokens, cost_micros)
       values ($1, $2, '2030-01-01', $3, 1, 1, 1, 1)`,
      [randomUUID(), place.of('budgets'), run],
    );
    await db.query(`insert into agentd.vault_owners (secret_id, owner_id) values ($1, $2)`, [
      randomUUID(),
      workspace,
    ]);
    await db.query(
      `insert into agentd.stored_objects (bucket, path, created_at) values ('b', $1, now() - interval '1 day')`,
      [`${workspace}/x`],
    );
    await db.query(`select agentd.audit('pause', 'queue', 'task-run', $1, '{}')`, [workspace]);
    await insert(db, 'public.datastores', {
      user_id: place.user,
      workspace_id: workspace,
      name: 'Elsewhere',
      type: 'pinecone',
      config: JSON.stringify({ api_key: `secret-of-${workspace}`, index: 'i' }),
    });
  }
  return world;
}

/** Tables, columns of any type, in which an id stands; materialized views as well. */
export async function tracesOf(db: TestDatabase, id: string): Promise<string[]> {
  const tables = await db.query<{ name: string }>(
    `select format('%I.%I', n.nspname, c.relname) as name
       from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where c.relkind in ('r', 'p', 'm') and not c.relispartition
        and n.nspname !~ '^pg_' and n.nspname <> 'information_schema' order by 1`,
  );
  const found: string[] = [];
  for (const { name } of tables) {
    const [row] = await db.query<{ n: number }>(
      `select count(*)::integer as n from ${name} t where t::text ilike '%' || $1 || '%'`,
      [id],
    );
    if ((row?.n ?? 0) > 0) found.push(name);
  }
  return found;
}

/** All rows of the database that belong to a workspace, as text, by table; equal while nothing of it was touched. */
export async function everythingOf(db: TestDatabase, workspace: string): Promise<Map<string, string[]>> {
  const all = new Map<string, string[]>();
  for (const table of planWorkspace(await readCatalog(db))) {
    const rows = await db.query<{ row: string }>(
      `select to_jsonb(t)::text as row from ${table.sql} t where ${table.own.map(({ sql }) => `coalesce(${sql}, false)`).join(' or ')} order by 1`,
      [workspace],
    );
    if (rows.length > 0)
      all.set(
        table.name,
        rows.map(({ row }) => row),
      );
  }
  for (const name of Object.keys(APART).filter((table) => table.startsWith('public.'))) {
    const rows = await db.query<{ row: string }>(`select to_jsonb(t)::text as row from ${name} t order by 1`);
    all.set(
      name,
      rows.map(({ row }) => row),
    );
  }
  return all;
}
