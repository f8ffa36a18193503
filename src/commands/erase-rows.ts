/** The rows of a workspace, deleted batch by batch until none is left or none can be deleted. */
import { setTimeout as pause } from 'node:timers/promises';
import type { Database } from '../db/database.ts';
import { deleteBatch, isLeft, limitBatch } from '../db/workspace-erasing.ts';
import type { Path, PlannedTable } from '../db/workspace-plan.ts';
import { busyReason } from './erase-waiting.ts';
import { count } from './format.ts';

/** Rows that stay, and why. */
export type LeftRows = { readonly table: string; readonly reason: string };

export type Deletion = { readonly deleted: Map<string, number>; readonly left: readonly LeftRows[] };

const NOTE_ROWS = 50_000;
const SMALL_BATCH = 100;
const MOST_SMALL = 10;
/** Applications may go on writing while their rows go. */
const MOST_PASSES = 20;

/** Deletes rows of these tables in their order. `patienceMs`: how long rows that others hold are waited for, of each table. */
export async function deleteRows(
  db: Database,
  tables: readonly PlannedTable[],
  workspaceId: string,
  options: { readonly patienceMs: number; readonly note: (text: string) => void },
): Promise<Deletion> {
  const deleted = new Map<string, number>();
  let left: LeftRows[] = [];
  let lastWritten = '';
  for (let pass = 0; pass < MOST_PASSES; pass++) {
    left = [];
    let inPass = 0;
    let writtenInPass = '';
    for (const table of tables) {
      for (const path of [...table.own, ...table.reached]) {
        const { rows, reason } = await deletePath(db, table, path, workspaceId, options, deleted);
        inPass += rows;
        if (rows > 0) writtenInPass = table.name;
        if (reason !== null) left.push({ table: table.name, reason });
      }
      // what refers to it stays: so does it
      if (left.length > 0) return { deleted, left };
    }
    if (inPass === 0) return { deleted, left };
    lastWritten = writtenInPass;
  }
  return { deleted, left: [{ table: lastWritten, reason: 'Somebody goes on writing to it.' }] };
}

async function deletePath(
  db: Database,
  table: PlannedTable,
  path: Path,
  workspaceId: string,
  { patienceMs, note }: { readonly patienceMs: number; readonly note: (text: string) => void },
  deleted: Map<string, number>,
): Promise<{ rows: number; reason: string | null }> {
  let rows = 0;
  let waitedSince: number | null = null;
  let small = 0;
  for (;;) {
    let busy: string | null = null;
    try {
      const batch = await db.transaction(async (tx) => {
        await limitBatch(tx);
        return deleteBatch(tx, table, path, workspaceId);
      });
      if (batch > 0) {
        waitedSince = null;
        const before = deleted.get(table.name) ?? 0;
        deleted.set(table.name, before + batch);
        rows += batch;
        if (Math.floor((before + batch) / NOTE_ROWS) > Math.floor(before / NOTE_ROWS))
          note(`${table.name}: ${count(before + batch)} rows deleted so far`);
        // as fast as they are deleted others come: the next pass takes them, or they go with the row that they belong to
        if (batch < SMALL_BATCH && ++small > MOST_SMALL) return { rows, reason: null };
        continue;
      }
      if (!(await isLeft(db, table, path, workspaceId))) return { rows, reason: null };
      busy = 'A transaction of somebody else holds its rows.';
    } catch (error) {
      const { code, message } = error as { code?: string; message?: string };
      if (code === '23503' || code === '42501') return { rows, reason: message ?? code };
      busy = busyReason(error);
      if (busy === null) throw error;
    }
    waitedSince ??= performance.now();
    if (performance.now() - waitedSince > patienceMs) return { rows, reason: busy };
    await pause(100);
  }
}
