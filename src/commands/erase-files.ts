/** The stored files of a workspace, deleted one by one. */
import type { Config } from '../config.ts';
import type { Database } from '../db/database.ts';
import { filesAfter, type StoredFile, strayObjects } from '../db/workspace-erasing.ts';
import { DocumentError } from '../providers/document-error.ts';
import { type ObjectStorage, openStorage } from '../providers/object-storage.ts';
import { count } from './format.ts';

/** A file that stays. */
export type KeptFile = { readonly bucket: string; readonly storage_path: string; readonly reason: string };

export type FileReport = {
  /** Files that were deleted, or would be. */
  readonly deleted: number;
  /** Files that stay; of many the first hundred. */
  readonly kept: number;
  readonly kept_files: readonly KeptFile[];
  /** Files that could not be deleted; of many the first hundred. */
  readonly failed: readonly KeptFile[];
};

const AT_ONCE = 200;
const HANDS = 8;
const MOST_LISTED = 100;
const ONE_MS = 60_000;
const REASONS = {
  shared: 'a file of another workspace is the same',
  foreign: 'it lies in no folder of the workspace, nor of the user of its row',
} as const;

/** Deletes the files that rows of a workspace name, and those that agentd stored for it; with `isPreview` counts them. The rows stay. */
export async function eraseFiles(
  db: Database,
  config: Config,
  workspaceId: string,
  options: {
    readonly isPreview: boolean;
    readonly leaveFiles: boolean;
    readonly note: (text: string) => void;
  },
): Promise<FileReport> {
  const report = { deleted: 0, kept: 0, kept_files: [] as KeptFile[], failed: [] as KeptFile[] };
  const storage =
    options.isPreview || options.leaveFiles ? null : openStorage(config.storageUrl, config.storageKeys);
  const take = async (files: readonly Omit<StoredFile, 'id'>[]): Promise<void> => {
    const gone: Omit<StoredFile, 'id'>[] = [];
    for (const file of files) {
      const reason = options.leaveFiles
        ? 'it was to be left'
        : file.stays === null
          ? null
          : REASONS[file.stays];
      if (reason === null) gone.push(file);
      else if (++report.kept <= MOST_LISTED) report.kept_files.push(about(file, reason));
    }
    if (storage === null) {
      report.deleted += gone.length;
      return;
    }
    await Promise.all(
      Array.from({ length: HANDS }, async () => {
        for (let file = gone.pop(); file !== undefined; file = gone.pop())
          await removeOne(storage, file, report);
      }),
    );
    options.note(`${count(report.deleted)} files deleted so far`);
  };
  const isOver = (files: readonly unknown[]): boolean =>
    files.length < AT_ONCE || report.failed.length >= MOST_LISTED;
  try {
    for (let after: string | null = null; ; ) {
      const files: StoredFile[] = await filesAfter(db, workspaceId, after, AT_ONCE);
      if (files.length > 0) await take(files);
      after = files.at(-1)?.id ?? null;
      if (isOver(files)) break;
    }
    for (let after: Omit<StoredFile, 'id'> | null = null; ; ) {
      const files: Omit<StoredFile, 'id'>[] = await strayObjects(db, workspaceId, after, AT_ONCE);
      if (files.length > 0) await take(files);
      after = files.at(-1) ?? null;
      if (isOver(files)) break;
    }
    return report;
  } finally {
    await storage?.close();
  }
}

const about = ({ bucket, storage_path }: Omit<StoredFile, 'id'>, reason: string): KeptFile => ({
  bucket,
  storage_path,
  reason,
});

async function removeOne(
  storage: ObjectStorage,
  file: Omit<StoredFile, 'id'>,
  report: { deleted: number; failed: KeptFile[] },
): Promise<void> {
  try {
    await storage.remove(file.bucket, file.storage_path, { signal: AbortSignal.timeout(ONE_MS) });
    report.deleted++;
  } catch (error) {
    // what can be no object's path is no object
    if (error instanceof DocumentError && error.code === 'not_found') return;
    if (report.failed.length < MOST_LISTED) report.failed.push(about(file, (error as Error).message));
  }
}
