/** The document of the demo on its way into the agent's knowledge, as an uploaded file takes it. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { sleep, systemClock } from '../clock.ts';
import { CommandError } from '../commands/errors.ts';
import { duration } from '../commands/format.ts';
import { type Config, configDir } from '../config.ts';
import type { Database } from '../db/database.ts';
import { type SourceProgress, sourceProgress } from '../db/uploads.ts';
import { openStorage } from '../providers/object-storage.ts';
import { insertFile, type Team } from './sample.ts';

export const HANDBOOK = 'handbook.pdf';
const BUCKET = 'media-library';
/** How often its row is looked at, in milliseconds. */
const LOOK_MS = 50;
/** A file of four pages that is not searchable by then has failed the demo, in milliseconds. */
const PATIENCE_MS = 40_000;

/** Puts the file into the worker's storage and inserts its row. Returns the id of its source. */
export async function uploadHandbook(config: Config, db: Database, team: Team): Promise<string> {
  const bytes = await readFile(join(configDir, 'demo', HANDBOOK));
  const path = `${team.workspaceId}/${HANDBOOK}`;
  const storage = openStorage(config.storageUrl, config.storageKeys);
  try {
    await storage.write(BUCKET, path, bytes, {
      contentType: 'application/pdf',
      signal: AbortSignal.timeout(PATIENCE_MS),
    });
  } finally {
    await storage.close();
  }
  return insertFile(db, team, { name: HANDBOOK, bytes: bytes.byteLength, path });
}

/** Resolves when the worker has made it searchable. Throws CommandError with the reason where that fails. */
export async function untilSearchable(
  db: Database,
  sourceId: string,
  signal: AbortSignal,
): Promise<SourceProgress> {
  const deadline = performance.now() + PATIENCE_MS;
  for (;;) {
    const now = await sourceProgress(db, sourceId);
    if (now?.processing_status === 'completed') return now;
    const hasFailed = now === null || now.processing_status === 'failed';
    if (hasFailed || performance.now() > deadline) {
      const state = now?.reason ?? now?.processing_status ?? 'its row is gone';
      throw new CommandError(
        hasFailed
          ? `${HANDBOOK} could not be read: ${state}`
          : `${HANDBOOK} was not searchable after ${duration(PATIENCE_MS)}: it is ${state}`,
        'Run it again with AGENTD_LOG_LEVEL=debug to see what the worker says.',
      );
    }
    await sleep(systemClock, LOOK_MS, signal);
  }
}
