/** `agentd workspace erase`: what would go, and its going. */
import { setTimeout as pause } from 'node:timers/promises';
import type { Config } from '../config.ts';
import { refreshDashboard } from '../db/dashboards.ts';
import type { Database } from '../db/database.ts';
import { readCatalog } from '../db/workspace-catalog.ts';
import {
  countJobs,
  countRows,
  dashboardViews,
  deleteAudit,
  deleteJobs,
  deleteVaultSecrets,
  isWorkerAlive,
  maskWorkspace,
  type RemoteLeft,
  remoteLeft,
} from '../db/workspace-erasing.ts';
import { type PlannedTable, planWorkspace } from '../db/workspace-plan.ts';
import { readingSnapshot } from '../db/workspace-rows.ts';
import { retireStores, stopWork, workInHand } from '../db/workspace-stopping.ts';
import { BILLING, LAST, REMOTE } from '../db/workspace-tables.ts';
import { eraseFiles, type FileReport } from './erase-files.ts';
import { eraseMemories } from './erase-memories.ts';
import { deleteRows, type LeftRows } from './erase-rows.ts';
import { count } from './format.ts';
import { asOperator, operatorName } from './operator.ts';

export type EraseOptions = {
  readonly keepBilling: boolean;
  readonly leaveFiles: boolean;
  readonly leaveMemories: boolean;
  /** How long work in hand, rows that others hold, and other stores are waited for, each. */
  readonly waitMs: number;
  readonly note: (text: string) => void;
};

export type Preview = {
  readonly tables: readonly {
    readonly table: string;
    readonly rows: number;
    readonly others: number;
    readonly is_kept: boolean;
  }[];
  readonly jobs: number;
  readonly work: readonly { readonly kind: string; readonly count: number }[];
  readonly stores: readonly RemoteLeft[];
  readonly files: FileReport;
};

/** What an erasure did, and what it left. */
export type Erasure = {
  readonly workspace_id: string;
  /** Whether every row and file is gone that was to go. What is in other stores may still be on its way. */
  readonly is_done: boolean;
  readonly rows: Readonly<Record<string, number>>;
  readonly cancelled_runs: number;
  readonly jobs: number;
  readonly vault_secrets: number;
  readonly files: FileReport;
  /** Users, with their threads, in stores that are memories of agents. */
  readonly forgotten_people: number;
  readonly kept_tables: readonly string[];
  readonly left_rows: readonly LeftRows[];
  /** What daemons have yet to delete elsewhere. */
  readonly left_stores: readonly RemoteLeft[];
  readonly notes: readonly string[];
};

const LOOK_MS = 250;

/** The tables of a workspace that an erasure deletes from, in their order, and the other ones. */
async function tablesOf(
  db: Database,
  keepBilling: boolean,
): Promise<{ gone: PlannedTable[]; kept: PlannedTable[] }> {
  const plan = planWorkspace(await readCatalog(db)).filter(
    ({ name }) => !REMOTE.includes(name) && !LAST.includes(name),
  );
  const isKept = ({ name }: PlannedTable): boolean => keepBilling && BILLING.includes(name);
  return { gone: plan.filter((table) => !isKept(table)), kept: plan.filter(isKept) };
}

/** What an erasure would delete. Changes nothing. */
export async function previewErasure(
  db: Database,
  config: Config,
  workspaceId: string,
  options: EraseOptions,
): Promise<Preview> {
  const { gone, kept } = await tablesOf(db, options.keepBilling);
  const tables = await readingSnapshot(db, async (tx) => {
    const found: Preview['tables'][number][] = [];
    for (const table of [...gone, ...kept]) {
      const { own, others } = await countRows(tx, table, workspaceId);
      if (own + others > 0)
        found.push({ table: table.name, rows: own, others, is_kept: kept.includes(table) });
    }
    return found.sort((a, b) => b.rows - a.rows || (a.table < b.table ? -1 : 1));
  });
  return {
    tables,
    jobs: await countJobs(db, workspaceId),
    work: await workInHand(db, workspaceId),
    stores: await remoteLeft(db, workspaceId),
    files: await eraseFiles(db, config, workspaceId, {
      isPreview: true,
      leaveFiles: options.leaveFiles,
      note: options.note,
    }),
  };
}

/** Erases a workspace. May be run again wherever it ended. */
export async function eraseWorkspace(
  db: Database,
  config: Config,
  workspaceId: string,
  options: EraseOptions,
): Promise<Erasure> {
  const { note } = options;
  const { gone, kept } = await tablesOf(db, options.keepBilling);
  const notes: string[] = [];
  await audit(db, workspaceId, { state: 'begun', keep_billing: options.keepBilling });
  const cancelled = await stop(db, workspaceId, options, notes);
  // before the stores are retired: nobody would know afterwards that they were memories
  const memories = await eraseMemories(db, config, workspaceId, options);
  const retired = memories.failed !== null ? 0 : await asOperator(db, (tx) => retireStores(tx, workspaceId));
  if (retired > 0) note(`${count(retired)} stores elsewhere are being emptied`);

  const files = await eraseFiles(db, config, workspaceId, {
    isPreview: false,
    leaveFiles: options.leaveFiles,
    note,
  });
  // rows whose files could not be deleted say where those are: the workspace stays until they are gone
  const removal =
    memories.failed !== null
      ? {
          deleted: new Map<string, number>(),
          left: [{ table: 'public.datastores', reason: memories.failed }],
        }
      : files.failed.length > 0
        ? {
            deleted: new Map<string, number>(),
            left: [{ table: 'public.media_library', reason: files.failed[0]?.reason ?? '' }],
          }
        : await deleteRows(db, gone, workspaceId, { patienceMs: options.waitMs, note });
  const isDone = removal.left.length === 0;
  const jobs = isDone ? await all(db, (tx) => deleteJobs(tx, workspaceId)) : 0;
  if (isDone && options.keepBilling) await asOperator(db, (tx) => maskWorkspace(tx, workspaceId));

  // what is not done yet needs another run in any case
  const stores = isDone ? await waitForStores(db, workspaceId, options) : await remoteLeft(db, workspaceId);
  let vaultSecrets = 0;
  if (isDone) {
    // what daemons still wrote of work that they had in hand
    const late = await deleteRows(db, gone, workspaceId, { patienceMs: options.waitMs, note });
    for (const [table, rows] of late.deleted)
      removal.deleted.set(table, (removal.deleted.get(table) ?? 0) + rows);
    await all(db, (tx) => deleteAudit(tx, workspaceId));
    if (stores.length === 0) vaultSecrets = await forgetSecrets(db, workspaceId, options, notes);
    else
      notes.push(
        'Keys of stores that are being emptied stay until that is done: run the command again then.',
      );
    await refreshDashboards(db, notes);
  }
  const rows = Object.fromEntries([...removal.deleted].sort());
  await audit(db, workspaceId, {
    state: isDone ? 'erased' : 'incomplete',
    rows: [...removal.deleted.values()].reduce((sum, n) => sum + n, 0),
    files: files.deleted,
    stores_left: stores.length,
  });
  return {
    workspace_id: workspaceId,
    is_done: isDone,
    rows,
    cancelled_runs: cancelled,
    jobs,
    vault_secrets: vaultSecrets,
    files,
    forgotten_people: memories.forgotten,
    kept_tables: kept.map(({ name }) => name).sort(),
    left_rows: removal.left,
    left_stores: stores,
    notes: [...notes, ...BEYOND],
  };
}

/** What no statement reaches. */
const BEYOND = [
  'agentd.audit_log says that the workspace was erased, with its id. Backups, write-ahead logs, replicas and logs hold what they held; they go as they age.',
  'People stay: auth.users, profiles and what else is a person’s.',
];

async function audit(db: Database, workspaceId: string, details: object): Promise<void> {
  await asOperator(db, (tx) =>
    tx.query(`select agentd.audit('erase', 'workspace', $1::text, $1::uuid, $2)`, [
      workspaceId,
      JSON.stringify(details),
    ]),
  );
}

/** Stops the workspace's work and waits until nobody has any of it in hand. Returns how many runs were cancelled. */
async function stop(
  db: Database,
  workspaceId: string,
  options: EraseOptions,
  notes: string[],
): Promise<number> {
  let cancelled = 0;
  const began = performance.now();
  for (let said = ''; ; ) {
    const stopped = await asOperator(db, (tx) => stopWork(tx, workspaceId, operatorName()));
    cancelled += stopped;
    const work = await workInHand(db, workspaceId);
    if (stopped === 0 && work.length === 0) return cancelled;
    const line = work.map((one) => `${count(one.count)} ${one.kind}`).join(', ');
    if (performance.now() - began > options.waitMs) {
      notes.push(
        `It was not waited for longer that daemons let go of: ${line}. What they write of it is refused.`,
      );
      return cancelled;
    }
    if (line !== said && line !== '') options.note(`waiting for daemons to let go of ${line}`);
    said = line;
    await pause(LOOK_MS);
  }
}

async function waitForStores(
  db: Database,
  workspaceId: string,
  options: EraseOptions,
): Promise<RemoteLeft[]> {
  const began = performance.now();
  for (let said = -1; ; ) {
    const left = await remoteLeft(db, workspaceId);
    if (left.length === 0 || performance.now() - began > options.waitMs) return left;
    if (!(await isWorkerAlive(db))) {
      options.note('No daemon is running that could empty the stores elsewhere.');
      return left;
    }
    const sources = left.reduce((sum, store) => sum + store.sources, 0);
    if (sources !== said)
      options.note(`waiting for ${count(left.length)} stores elsewhere, ${count(sources)} sources`);
    said = sources;
    await pause(LOOK_MS);
  }
}

/** Batches until one finds nothing. Returns the sum. */
async function all(db: Database, batch: Parameters<typeof asOperator<number>>[1]): Promise<number> {
  for (let sum = 0; ; ) {
    const deleted = await asOperator(db, batch);
    if (deleted === 0) return sum;
    sum += deleted;
  }
}

/** Deletes the Vault's secrets, and what says whose they were. Returns how many. */
async function forgetSecrets(
  db: Database,
  workspaceId: string,
  options: EraseOptions,
  notes: string[],
): Promise<number> {
  const owners = planWorkspace(await readCatalog(db)).filter(({ name }) => name === 'agentd.vault_owners');
  try {
    const secrets = await asOperator(db, (tx) => deleteVaultSecrets(tx, workspaceId));
    await deleteRows(db, owners, workspaceId, { patienceMs: options.waitMs, note: options.note });
    return secrets;
  } catch (error) {
    notes.push(`Secrets of the Vault could not be deleted: ${(error as Error).message}.`);
    return 0;
  }
}

async function refreshDashboards(db: Database, notes: string[]): Promise<void> {
  for (const view of await dashboardViews(db)) {
    try {
      await refreshDashboard(db, view, AbortSignal.timeout(60_000));
    } catch {
      notes.push(`${view} shows the workspace until it is computed again, which daemons do.`);
    }
  }
}
