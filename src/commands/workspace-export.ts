/** `agentd workspace export`: everything of a workspace as files. */
import { createReadStream } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Config } from '../config.ts';
import type { Database, Queryable } from '../db/database.ts';
import { readCatalog } from '../db/workspace-catalog.ts';
import { planWorkspace } from '../db/workspace-plan.ts';
import {
  type ExportedTable,
  eachLine,
  exportFacts,
  exportOf,
  MASK,
  readingSnapshot,
} from '../db/workspace-rows.ts';
import { EXPORTED_IF } from '../db/workspace-tables.ts';
import { DocumentError } from '../providers/document-error.ts';
import { type ObjectStorage, openStorage } from '../providers/object-storage.ts';
import { type ExportedFile, ExportFile, putExport } from './export-folder.ts';
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
  readonly objects: {
    readonly index: ExportedFile | null;
    readonly stored: number;
    readonly missing: number;
    readonly bytes: number;
  } | null;
  readonly notes: readonly string[];
};

type TableEntry = ExportedFile & {
  readonly table: string;
  readonly rows: number;
  readonly masked: readonly string[];
  readonly omitted: readonly string[];
};

const LARGEST_OBJECT_BYTES = 512 * 1024 * 1024;
const OBJECT_MS = 600_000;
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
      const rows = await writeTable(tx, given, file, options.note);
      const { masked, omitted } = given;
      tables.push({ table: given.table.name, rows, ...(await file.end()), masked, omitted });
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
      notes: notesOf(options),
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
): Promise<number> {
  let rows = 0;
  await eachLine(tx, given, async (lines) => {
    for (const line of lines) await file.write(`${line}\n`);
    const before = Math.floor(rows / NOTE_ROWS);
    rows += lines.length;
    if (Math.floor(rows / NOTE_ROWS) > before) note(`${given.table.name}: ${count(rows)} rows so far`);
  });
  return rows;
}

/** Copies the objects that the exported rows name, by number; objects.jsonl says which is which. */
async function exportObjects(
  config: Config,
  folder: string,
  rowsOfMedia: string | null,
  note: (text: string) => void,
): Promise<Manifest['objects']> {
  if (rowsOfMedia === null) return { index: null, stored: 0, missing: 0, bytes: 0 };
  await mkdir(join(folder, 'objects'), { mode: 0o700 });
  const index = await ExportFile.create(folder, 'objects.jsonl');
  const storage = openStorage(config.storageUrl, config.storageKeys);
  const total = { stored: 0, missing: 0, bytes: 0 };
  try {
    const lines = createInterface({ input: createReadStream(join(folder, rowsOfMedia)) });
    for await (const line of lines) {
      const row = JSON.parse(line) as { id: string; bucket: string; storage_path: string | null };
      if (row.storage_path === null) continue;
      const about = { media_id: row.id, bucket: row.bucket, storage_path: row.storage_path };
      const read = await readObject(storage, row.bucket, row.storage_path);
      if ('reason' in read) {
        total.missing++;
        await index.write(`${JSON.stringify({ ...about, file: null, ...read })}\n`);
        note(`file of media ${row.id} is left out: ${read.reason}`);
        continue;
      }
      const file = await ExportFile.create(folder, `objects/${String(++total.stored).padStart(8, '0')}`);
      await file.write(read.bytes);
      const { path, bytes, sha256 } = await file.end();
      total.bytes += bytes;
      await index.write(`${JSON.stringify({ ...about, file: path, bytes, sha256 })}\n`);
      if (total.stored % 100 === 0) note(`${count(total.stored)} files`);
    }
  } finally {
    await storage.close();
  }
  return { index: await index.end(), ...total };
}

/** An object, or why there can be none. Throws where the storage fails: without it the export would be less than it says. */
async function readObject(
  storage: ObjectStorage,
  bucket: string,
  path: string,
): Promise<{ bytes: Buffer } | { reason_code: string; reason: string }> {
  try {
    const signal = AbortSignal.timeout(OBJECT_MS);
    const { bytes } = await storage.read(bucket, path, { maxBytes: LARGEST_OBJECT_BYTES, signal });
    return { bytes };
  } catch (error) {
    const isForGood =
      error instanceof DocumentError && ['not_found', 'too_large', 'corrupt'].includes(error.code);
    if (!isForGood) throw error;
    return { reason_code: error.code, reason: error.message };
  }
}
