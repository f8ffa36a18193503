/** `agentd workspace erase`: what would go, and its going. */
import type { Config } from '../config.ts';
import { refreshDashboard } from '../db/dashboards.ts';
import { type ConnectionLimits, type Database, type Queryable, WORKER_LIMITS } from '../db/database.ts';
import { readCatalog } from '../db/workspace-catalog.ts';
import {
  countJobs,
  countRows,
  dashboardViews,
  deleteAudit,
  deleteJobs,
  deleteVaultSecrets,
  maskWorkspace,
  type RemoteLeft,
  remoteLeft,
} from '../db/workspace-erasing.ts';
import { type PlannedTable, planWorkspace } from '../db/workspace-plan.ts';
import { readingSnapshot } from '../db/workspace-rows.ts';
import { retireStores, workInHand } from '../db/workspace-stopping.ts';
import { BILLING, LAST, REMOTE } from '../db/workspace-tables.ts';
import { eraseFiles, type FileReport } from './erase-files.ts';
import { eraseMemories } from './erase-memories.ts';
import { deleteRows, type LeftRows } from './erase-rows.ts';
import { busyReason, patiently, stop, type Waiting, waitForStores } from './erase-waiting.ts';
import { count } from './format.ts';
import { asOperator } from './operator.ts';

export type EraseOptions = Waiting & {
  readonly keepBilling: boolean;
  readonly leaveFiles: boolean;
  /** Files that can't be deleted are left, and keep nothing. */
  readonly leaveFailed: boolean;
  /** Whether the report names every file that stays, not the first hundred. */
  readonly listAllFiles: boolean;
  readonly leaveMemories: boolean;
};

/** No row that somebody holds is waited for longer; counting what there is takes as long as it takes. */
export const ERASE_LIMITS: ConnectionLimits = { ...WORKER_LIMITS, statementMs: 0, answerMs: 0 };

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

const NO_FILES: FileReport = { deleted: 0, kept: 0, kept_files: [], not_deleted: 0, failed: [] };

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
      leaveFailed: options.leaveFailed,
      listAll: options.listAllFiles,
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
  const { cancelled, held } = await stop(db, workspaceId, options, notes);
  const left: LeftRows[] = held === null ? [] : [{ table: 'public.workspaces', reason: held }];
  const leave = (table: string, reason: string | null): void => {
    if (reason !== null) left.push({ table, reason });
  };
  let forgotten = 0;
  let files = NO_FILES;
  if (held === null) {
    // before the stores are retired: nobody would know afterwards that they were memories
    const memories = await eraseMemories(db, config, workspaceId, options);
    forgotten = memories.forgotten;
    leave('public.datastores', memories.failed);
    if (memories.failed === null) {
      const retired = await patiently(db, options.waitMs, (tx) => retireStores(tx, workspaceId));
      leave('public.datastores', retired.held);
      if (retired.held === null && retired.result > 0)
        note(`${count(retired.result)} stores elsewhere are being emptied`);
    }
    files = await eraseFiles(db, config, workspaceId, {
      isPreview: false,
      leaveFiles: options.leaveFiles,
      leaveFailed: options.leaveFailed,
      listAll: options.listAllFiles,
      note,
    }).catch((error: unknown) => {
      const reason = busyReason(error);
      if (reason === null) throw error;
      leave('agentd.stored_objects', reason);
      return NO_FILES;
    });
    if (files.not_deleted > 0 && options.leaveFailed) notes.push(FILES_NOTED);
    // rows whose files could not be deleted say where those are: the workspace stays until they are gone
    if (files.not_deleted > 0 && !options.leaveFailed) {
      const some = `${count(files.not_deleted)} stored files can't be deleted (--leave-failed leaves them)`;
      leave('public.media_library', `${some}: ${files.failed[0]?.reason}`);
    }
  }
  const deleted = new Map<string, number>();
  const deleteAll = async (): Promise<void> => {
    const removal = await deleteRows(db, gone, workspaceId, { patienceMs: options.waitMs, note });
    for (const [table, rows] of removal.deleted) deleted.set(table, (deleted.get(table) ?? 0) + rows);
    left.push(...removal.left);
  };
  const goOn = (): boolean => left.length === 0;
  let jobs = 0;
  if (goOn()) await deleteAll();
  if (goOn()) {
    const removal = await all(db, options.waitMs, (tx) => deleteJobs(tx, workspaceId));
    jobs = removal.sum;
    leave('pgboss.job', removal.held);
    if (options.keepBilling) {
      const masked = await patiently(db, options.waitMs, (tx) => maskWorkspace(tx, workspaceId));
      leave('public.workspaces', masked.held);
    }
  }
  // what is not done yet needs another run in any case
  const stores = goOn() ? await waitForStores(db, workspaceId, options) : await remoteLeft(db, workspaceId);
  // what daemons still wrote of work that they had in hand
  if (goOn()) await deleteAll();
  let vaultSecrets = 0;
  if (goOn())
    leave('agentd.audit_log', (await all(db, options.waitMs, (tx) => deleteAudit(tx, workspaceId))).held);
  if (goOn()) {
    if (stores.length === 0) vaultSecrets = await forgetSecrets(db, workspaceId, options, notes);
    else
      notes.push(
        'Keys of stores that are being emptied stay until that is done: run the command again then.',
      );
    await refreshDashboards(db, notes);
    notes.push(options.keepBilling ? BILLS_KEPT : BILLS_GONE);
  }
  await audit(db, workspaceId, {
    state: goOn() ? 'erased' : 'incomplete',
    rows: [...deleted.values()].reduce((sum, n) => sum + n, 0),
    files: files.deleted,
    stores_left: stores.length,
  });
  return {
    workspace_id: workspaceId,
    is_done: goOn(),
    rows: Object.fromEntries([...deleted].sort()),
    cancelled_runs: cancelled,
    jobs,
    vault_secrets: vaultSecrets,
    files,
    forgotten_people: forgotten,
    kept_tables: kept.map(({ name }) => name).sort(),
    left_rows: left,
    left_stores: stores,
    notes: [...notes, ...BEYOND],
  };
}

const FILES_NOTED =
  'The files that could not be deleted are noted in agentd.stored_objects: maintenance goes on trying (stored_objects).';
const BILLS_GONE =
  'What bills were made of is gone, also what agentd.closed_workspaces had kept of it (--keep-billing keeps it).';
const BILLS_KEPT =
  'What bills were made of is kept, also what agentd.closed_workspaces has of a workspace that its owner deleted.';

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

/** Batches until one finds nothing, with their sum. `held`: why one could not be done at last; null: all were. */
async function all(
  db: Database,
  waitMs: number,
  batch: (tx: Queryable) => Promise<number>,
): Promise<{ readonly sum: number; readonly held: string | null }> {
  for (let sum = 0; ; ) {
    const deleted = await patiently(db, waitMs, batch);
    if (deleted.held !== null) return { sum, held: deleted.held };
    if (deleted.result === 0) return { sum, held: null };
    sum += deleted.result;
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
    const { left } = await deleteRows(db, owners, workspaceId, {
      patienceMs: options.waitMs,
      note: options.note,
    });
    if (left.length > 0) notes.push(`Rows of agentd.vault_owners stay: ${left[0]?.reason}`);
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
