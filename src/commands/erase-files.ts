/** The stored files of a workspace, deleted one by one. */
import type { Config } from '../config.ts';
import type { Database } from '../db/database.ts';
import { noteObjects } from '../db/uploads.ts';
import {
  filesAfter,
  forgetAllObjects,
  forgetObjects,
  type ObjectPlace,
  type StoredFile,
  strayObjects,
} from '../db/workspace-files.ts';
import { ObjectRemover } from '../providers/object-remover.ts';
import { openStorage } from '../providers/object-storage.ts';
import { count } from './format.ts';

/** A file that stays. */
export type KeptFile = { readonly bucket: string; readonly storage_path: string; readonly reason: string };

export type FileReport = {
  /** Files that were deleted, or would be. */
  readonly deleted: number;
  /** Files that stay; of many the first hundred, unless all were to be listed. */
  readonly kept: number;
  readonly kept_files: readonly KeptFile[];
  /** Files that could not be deleted; of many the first hundred, unless all were to be listed. */
  readonly not_deleted: number;
  readonly failed: readonly KeptFile[];
};

export type FileOptions = {
  readonly isPreview: boolean;
  readonly leaveFiles: boolean;
  /** What can't be deleted keeps no row: it is noted, for maintenance to delete. */
  readonly leaveFailed: boolean;
  /** Whether the report names every file that stays: no row will. */
  readonly listAll: boolean;
  readonly note: (text: string) => void;
};

const AT_ONCE = 200;
const HANDS = 8;
const MOST_LISTED = 100;
const ONE_MS = 60_000;
const REASONS = {
  shared: 'a file of another workspace is the same',
  foreign: 'it lies in no folder of the workspace, nor of the user of its row',
} as const;

/**
 * Deletes the files that rows of a workspace name, and those that agentd stored for it; with `isPreview` counts them. The rows stay, and the notes
 * of what could not be deleted: maintenance tries again.
 */
export async function eraseFiles(
  db: Database,
  config: Config,
  workspaceId: string,
  options: FileOptions,
): Promise<FileReport> {
  const report: Mutable = { deleted: 0, kept: 0, kept_files: [], not_deleted: 0, failed: [] };
  const most = options.listAll ? Number.POSITIVE_INFINITY : MOST_LISTED;
  const remover =
    options.isPreview || options.leaveFiles
      ? null
      : new ObjectRemover(openStorage(config.storageUrl, config.storageKeys));
  const take = async (files: readonly StoredFile[], isUploaded: boolean): Promise<void> => {
    const going: StoredFile[] = [];
    for (const file of files) {
      const reason = reasonToStay(file, options.leaveFiles);
      if (reason === null) going.push(file);
      else {
        report.kept++;
        list(report.kept_files, file, reason, most);
      }
    }
    if (remover === null) {
      report.deleted += going.length;
      return;
    }
    const gone: StoredFile[] = [];
    const left: StoredFile[] = [];
    await Promise.all(
      Array.from({ length: HANDS }, async () => {
        for (let file = going.pop(); file !== undefined; file = going.pop()) {
          const failure = await remover.remove(file.bucket, file.storage_path, { ms: ONE_MS });
          if (failure === null) gone.push(file);
          else {
            left.push(file);
            list(report.failed, file, failure.reason, most);
          }
        }
      }),
    );
    report.deleted += gone.length;
    report.not_deleted += left.length;
    await forgetObjects(db, gone, isUploaded);
    // their rows go, which alone say where they are
    if (options.leaveFailed) await noteObjects(db, left);
    options.note(`${count(report.deleted)} files deleted so far`);
  };
  try {
    for (let after: string | null = null; ; ) {
      const files: (StoredFile & { id: string })[] = await filesAfter(db, workspaceId, after, AT_ONCE);
      if (files.length > 0) await take(files, true);
      after = files.at(-1)?.id ?? null;
      if (files.length < AT_ONCE) break;
    }
    for (let after: StoredFile | null = null; ; ) {
      const files: StoredFile[] = await strayObjects(db, workspaceId, after, AT_ONCE);
      if (files.length > 0) await take(files, false);
      after = files.at(-1) ?? null;
      if (files.length < AT_ONCE) break;
    }
    if (options.leaveFiles && !options.isPreview) await forgetAllObjects(db, workspaceId);
    return report;
  } finally {
    await remover?.close();
  }
}

type Mutable = {
  deleted: number;
  kept: number;
  kept_files: KeptFile[];
  not_deleted: number;
  failed: KeptFile[];
};

function reasonToStay({ stays }: StoredFile, leaveFiles: boolean): string | null {
  if (leaveFiles) return 'it was to be left';
  return stays === null ? null : REASONS[stays];
}

function list(listed: KeptFile[], { bucket, storage_path }: ObjectPlace, reason: string, most: number): void {
  if (listed.length < most) listed.push({ bucket, storage_path, reason });
}
