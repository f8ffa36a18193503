/**
 * A workspace going: its rows deleted in batches, what is in other stores left to the outboxes.
 *
 * Everything may be done again, from anywhere: what is gone is gone, and the workspace's own row goes last.
 */
import type { Queryable } from './database.ts';
import { idRange } from './ids.ts';
import { quoted } from './workspace-catalog.ts';
import type { Path, PlannedTable } from './workspace-plan.ts';

/** Rows that are deleted at once. */
const BATCH_ROWS = 1_000;
/** Where no index leads to them, each batch reads the table. */
const BATCH_ROWS_READ = 20_000;
/** A batch waits so long for a row, and works so long. */
const LIMITS = `set local lock_timeout = '2s'; set local statement_timeout = '60s'`;

/** Statements of one batch, in a transaction of its own. */
export async function limitBatch(tx: Queryable): Promise<void> {
  await tx.query(LIMITS);
}

/** Deletes some of the rows that a path leads to, those that nobody holds at the moment. Returns how many; 0: nothing that can be deleted now. */
export async function deleteBatch(
  tx: Queryable,
  table: PlannedTable,
  path: Path,
  workspaceId: string,
): Promise<number> {
  const key = table.key.length > 0 ? table.key : ['ctid', 'tableoid'];
  const names = key.map((name) => (table.key.length > 0 ? quoted(name) : name));
  const [row] = await tx.query<{ deleted: number }>(
    `
with batch as (
  select ${names.map((name) => `t.${name}`).join(', ')} from ${table.sql} t where ${path.sql}
   limit ${path.isIndexed ? BATCH_ROWS : BATCH_ROWS_READ}
     for update of t skip locked
),
gone as (
  delete from ${table.sql} t using batch b where ${names.map((name) => `t.${name} = b.${name}`).join(' and ')} returning 1
)
select count(*)::integer as deleted from gone`,
    [workspaceId],
  );
  return row?.deleted ?? 0;
}

/** Whether a path leads to any row. */
export async function isLeft(
  db: Queryable,
  table: PlannedTable,
  path: Path,
  workspaceId: string,
): Promise<boolean> {
  const [row] = await db.query<{ is_left: boolean }>(
    `select exists (select 1 from ${table.sql} t where ${path.sql}) as is_left`,
    [workspaceId],
  );
  return row?.is_left === true;
}

/** How many rows are the workspace's own, and how many of others' go with them. */
export async function countRows(
  tx: Queryable,
  table: PlannedTable,
  workspaceId: string,
): Promise<{ own: number; others: number }> {
  const any = (paths: readonly Path[]): string =>
    paths.length === 0 ? 'false' : paths.map(({ sql }) => `coalesce(${sql}, false)`).join(' or ');
  const count = async (condition: string): Promise<number> => {
    const [row] = await tx.query<{ n: number }>(
      `select count(*)::integer as n from ${table.sql} t where ${condition}`,
      [workspaceId],
    );
    return row?.n ?? 0;
  };
  const only = table.own[0];
  return {
    own: await count(table.own.length === 1 && only !== undefined ? only.sql : any(table.own)),
    others:
      table.reached.length === 0 ? 0 : await count(`(${any(table.reached)}) and not (${any(table.own)})`),
  };
}

/** What is still to be deleted in other stores, or is being. */
export type RemoteLeft = {
  readonly store: string;
  readonly kind: string;
  readonly sources: number;
  readonly reason_code: string | null;
  readonly reason: string | null;
};

/** Stores that hold something of a workspace's: its own, and others' into which its sources went. */
export function remoteLeft(db: Queryable, workspaceId: string): Promise<RemoteLeft[]> {
  return db.query(
    `
select s.id as store, s.kind, coalesce(s.reason_code, o.reason_code) as reason_code, coalesce(s.reason, o.reason) as reason,
       (select count(*)::integer from (
          select x.source_id from agentd.vector_outbox x where x.store_id = s.id and x.workspace_id = $1
          union select c.source_id from agentd.vector_copies c where c.store_id = s.id and c.workspace_id = $1) y) as sources
  from agentd.vector_stores s
  left join lateral (
    select x.reason_code, x.reason from agentd.vector_outbox x
     where x.store_id = s.id and x.workspace_id = $1 and x.reason_code is not null limit 1) o on true
 where s.workspace_id = $1
    or exists (select 1 from agentd.vector_outbox x where x.store_id = s.id and x.workspace_id = $1)
    or exists (select 1 from agentd.vector_copies c where c.store_id = s.id and c.workspace_id = $1)
 order by s.created_at`,
    [workspaceId],
  );
}

/** Whether a daemon is there to delete it. */
export async function isWorkerAlive(db: Queryable): Promise<boolean> {
  const rows = await db.query('select 1 from agentd.worker_health h where h.alive limit 1');
  return rows.length > 0;
}

/** Jobs of the workspace in pg-boss, those of dead letters included. */
export async function deleteJobs(tx: Queryable, workspaceId: string): Promise<number> {
  const [there] = await tx.query<{ is_there: boolean }>(
    `select to_regclass('pgboss.job') is not null as is_there`,
  );
  if (there?.is_there !== true) return 0;
  const rows = await tx.query(
    `
delete from pgboss.job j
 where (j.name, j.id) in (select x.name, x.id from pgboss.job x where x.data ->> 'workspace_id' = $1::text limit ${BATCH_ROWS_READ} for update skip locked)
returning 1`,
    [workspaceId],
  );
  return rows.length;
}

/** How many jobs pg-boss has of the workspace. */
export async function countJobs(db: Queryable, workspaceId: string): Promise<number> {
  const [there] = await db.query<{ is_there: boolean }>(
    `select to_regclass('pgboss.job') is not null as is_there`,
  );
  if (there?.is_there !== true) return 0;
  const [row] = await db.query<{ n: number }>(
    `select count(*)::integer as n from pgboss.job j where j.data ->> 'workspace_id' = $1::text`,
    [workspaceId],
  );
  return row?.n ?? 0;
}

/** Deletes the Vault's secrets that this workspace alone owns. Throws where the role may not. */
export async function deleteVaultSecrets(tx: Queryable, workspaceId: string): Promise<number> {
  const [there] = await tx.query<{ is_there: boolean }>(
    `select to_regclass('vault.secrets') is not null as is_there`,
  );
  if (there?.is_there !== true) return 0;
  const rows = await tx.query(
    `
delete from vault.secrets s
 where s.id in (select o.secret_id from agentd.vault_owners o where o.owner_id = $1)
   and not exists (select 1 from agentd.vault_owners o where o.secret_id = s.id and o.owner_id <> $1)
returning 1`,
    [workspaceId],
  );
  return rows.length;
}

/** Deletes what the audit log says of the workspace, but for its being erased. */
export async function deleteAudit(tx: Queryable, workspaceId: string): Promise<number> {
  const rows = await tx.query(
    `
delete from agentd.audit_log a
 where a.id in (select x.id from agentd.audit_log x
                 where x.workspace_id = $1 and x.action <> 'erase' limit ${BATCH_ROWS})
returning 1`,
    [workspaceId],
  );
  return rows.length;
}

/** Takes everything from a workspace's row that says whose it was. */
export async function maskWorkspace(tx: Queryable, workspaceId: string): Promise<void> {
  await tx.query(
    `update public.workspaces w
        set name = 'Erased workspace', description = null, settings = '{}', is_public = false,
            -- somebody may have taken that slug when it was still possible
            slug = 'erased-' || w.id || case
              when exists (select 1 from public.workspaces o where o.slug = 'erased-' || w.id and o.id <> w.id)
              then '-' || left(replace(gen_random_uuid()::text, '-', ''), 8) else '' end
      where w.id = $1`,
    [workspaceId],
  );
}

/** Whether anything says that there was such a workspace, though its row is gone. */
export async function isRemembered(db: Queryable, workspaceId: string): Promise<boolean> {
  const rows = await db.query(
    `select 1 where exists (select 1 from agentd.audit_log where workspace_id = $1 and action = 'erase')
        or exists (select 1 from agentd.closed_workspaces where workspace_id = $1)
        or exists (select 1 from agentd.vector_stores where workspace_id = $1)`,
    [workspaceId],
  );
  return rows.length > 0;
}

/** Ids of workspaces that are gone which begin so, at most two. */
export async function formerIds(db: Queryable, prefix: string): Promise<string[]> {
  const rows = await db.query<{ id: string }>(
    `select x.id from (
       select c.workspace_id as id from agentd.closed_workspaces c where c.workspace_id between $1::uuid and $2::uuid
       union
       select a.workspace_id from agentd.audit_log a where a.workspace_id between $1::uuid and $2::uuid and a.action = 'erase') x
      where not exists (select 1 from public.workspaces w where w.id = x.id)
      order by 1 limit 2`,
    idRange(prefix),
  );
  return rows.map(({ id }) => id);
}

/** Views that dashboards are computed into: they show a workspace until they are computed again. */
export async function dashboardViews(db: Queryable): Promise<string[]> {
  const rows = await db.query<{ view_name: string }>(
    'select view_name from agentd.dashboard_refreshes order by 1',
  );
  return rows.map(({ view_name }) => view_name);
}
