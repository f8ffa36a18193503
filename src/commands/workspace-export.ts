/** `agentd workspace export`: everything of a workspace as files. */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { Config } from '../config.ts';
import type { Database, Queryable } from '../db/database.ts';
import { readCatalog } from '../db/workspace-catalog.ts';
import { planWorkspace } from '../db/workspace-plan.ts';
import {
  CUT,
  type ExportedTable,
  eachLine,
  exportFacts,
  exportOf,
  MASK,
  readingSnapshot,
} from '../db/workspace-rows.ts';
import { EXPORTED_IF } from '../db/workspace-tables.ts';
import { type ExportedFile, ExportFile, putExport } from './export-folder.ts';
import { type ExportedObjects, exportObjects } from './export-objects.ts';
import { count } from './format.ts';

export type ExportOptions = {
  readonly withFiles: boolean;
  readonly withVectors: boolean;
  /** All tables as of one moment; else each as of its own. */
  readonly isOneSnapshot: boolean;
};

/** What manifest.json holds. */
export type Manifest = {
  readonly format: 'agentd-workspace';
  readonly version: 1;
  readonly agentd: string;
  readonly schema: string;
  readonly postgres: string;
  readonly workspace: { readonly id: string; readonly name: string; readonly slug: string };
  readonly exported_at: string;
  readonly is_one_snapshot: boolean;
  readonly with_vectors: boolean;
  readonly with_files: boolean;
  readonly tables: readonly TableEntry[];
  readonly objects: ExportedObjects | null;
  readonly notes: readonly string[];
};

type TableEntry = ExportedFile & {
  readonly table: string;
  readonly rows: number;
  /** Of how many rows values were left out as too large. */
  readonly cut_rows: number;
  readonly masked: readonly string[];
  readonly omitted: readonly string[];
};

const NOTE_ROWS = 100_000;

/** Exports a workspace to a folder or an archive. Returns what the manifest says. */
export function exportWorkspace(
  db: Database,
  config: Config,
  workspace: { readonly id: string; readonly name: string; readonly slug: string },
  target: string,
  options: ExportOptions & { readonly agentd: string; readonly note: (text: string) => void },
): Promise<Manifest> {
  return putExport(target, async (folder) => {
    const tables: TableEntry[] = [];
    const plan = planWorkspace(await readCatalog(db))
      .filter(({ name }) => !name.startsWith('agentd.'))
      .map((table) => exportOf(table, workspace.id, options.withVectors));
    await mkdir(join(folder, 'tables'), { mode: 0o700 });
    const used = new Set<string>();
    const one = async (tx: Queryable, given: ExportedTable): Promise<void> => {
      const file = await ExportFile.create(folder, `tables/${fileNameOf(given.table.name, used)}.jsonl`);
      const { rows, cut } = await writeTable(tx, given, file, options.note);
      const { masked, omitted } = given;
      tables.push({
        table: given.table.name,
        rows,
        cut_rows: cut,
        ...(await file.end()),
        masked,
        omitted,
      });
      if (rows > 0) options.note(`${given.table.name}: ${count(rows)} rows`);
    };
    const facts = options.isOneSnapshot
      ? await readingSnapshot(db, async (tx) => {
          const known = await exportFacts(tx);
          for (const table of plan) await one(tx, table);
          return known;
        })
      : await exportFacts(db);
    if (!options.isOneSnapshot) for (const table of plan) await readingSnapshot(db, (tx) => one(tx, table));
    tables.sort((a, b) => (a.table < b.table ? -1 : 1));
    // no transaction is open while the storage is asked
    const objects = options.withFiles
      ? await exportObjects(
          config,
          folder,
          tables.find(({ table }) => table === 'public.media_library')?.path ?? null,
          options.note,
        )
      : null;
    const manifest: Manifest = {
      format: 'agentd-workspace',
      version: 1,
      agentd: options.agentd,
      schema: facts.schema,
      postgres: facts.postgres,
      workspace: { id: workspace.id, name: workspace.name, slug: workspace.slug },
      exported_at: facts.at.toISOString(),
      is_one_snapshot: options.isOneSnapshot,
      with_vectors: options.withVectors,
      with_files: options.withFiles,
      tables,
      objects,
      notes: [...notesOf(options), ...notesOfCuts(tables)],
    };
    const last = await ExportFile.create(folder, 'manifest.json');
    await last.write(`${JSON.stringify(manifest, null, 2)}\n`);
    await last.end();
    return manifest;
  });
}

function notesOf(options: ExportOptions): string[] {
  return [
    `Secrets are not exported: the columns that a table lists as masked hold "${MASK}" where the database holds something.`,
    'People are not exported: user ids stand for rows of auth.users and profiles, which belong to them and not to the workspace.',
    ...Object.entries(EXPORTED_IF).map(
      ([table, { reason }]) => `Of ${table} only rows of members: ${reason}.`,
    ),
    ...(options.withVectors
      ? []
      : ['Vectors are left out (--vectors): they can be made again from the texts.']),
    ...(options.withFiles
      ? []
      : ['Stored files are left out (--with-files): media_library says where they are.']),
    ...(options.isOneSnapshot
      ? []
      : ['Each table is as of its own moment: rows may refer to others that are not there.']),
    'What is in other stores (indexes, graphs, memories) is a copy of what is here, and is left out.',
  ];
}

const notesOfCuts = (tables: readonly TableEntry[]): string[] =>
  tables
    .filter(({ cut_rows }) => cut_rows > 0)
    .map(
      ({ table, cut_rows }) =>
        `${count(cut_rows)} rows of ${table} are too large: "${CUT}" stands for values.`,
    );

/** A file's name for a table: letters, digits and dots, whatever the application called it. */
function fileNameOf(table: string, used: Set<string>): string {
  const plain = table
    .replace(/^public\./, '')
    .replace(/[^A-Za-z0-9_.]/g, '_')
    .replace(/^\.+/, '_')
    .slice(0, 60);
  let name = plain;
  for (let i = 2; used.has(name.toLowerCase()); i++) name = `${plain}-${i}`;
  used.add(name.toLowerCase());
  return name;
}

async function writeTable(
  tx: Queryable,
  given: ExportedTable,
  file: ExportFile,
  note: (text: string) => void,
): Promise<{ rows: number; cut: number }> {
  let rows = 0;
  const cut = await eachLine(tx, given, async (lines) => {
    for (const line of lines) await file.write(`${line}\n`);
    const before = Math.floor(rows / NOTE_ROWS);
    rows += lines.length;
    if (Math.floor(rows / NOTE_ROWS) > before) note(`${given.table.name}: ${count(rows)} rows so far`);
  });
  return { rows, cut };
}
