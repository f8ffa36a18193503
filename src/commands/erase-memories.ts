/** What agents remember of a workspace's people in other stores, deleted. */
import { systemClock } from '../clock.ts';
import type { Config } from '../config.ts';
import type { Database } from '../db/database.ts';
import { secretReferences } from '../db/secret-references.ts';
import { memoriesOf } from '../db/workspace-stopping.ts';
import { RemoteStoreError } from '../providers/remote-store-error.ts';
import { openZeps } from '../providers/zep.ts';
import { columnSecretStore, parseKeyRing } from '../secrets.ts';
import { count } from './format.ts';

/** Of one request, and of all of a store. */
const REQUEST_MS = 15_000;
const STORE_MS = 600_000;

/** Deletes the users that are the workspace's in every store that is a memory. `failed`: why one could not be emptied; null: all were. */
export async function eraseMemories(
  db: Database,
  config: Config,
  workspaceId: string,
  options: { readonly leaveMemories: boolean; readonly note: (text: string) => void },
): Promise<{ readonly forgotten: number; readonly failed: string | null }> {
  const stores = options.leaveMemories ? [] : await memoriesOf(db, workspaceId);
  if (stores.length === 0) return { forgotten: 0, failed: null };
  const zeps = openZeps({
    url: config.zepUrl,
    allowedPrivateHosts: config.allowedPrivateHosts,
    clock: systemClock,
    secrets: secretReferences({ db, columns: columnSecretStore(parseKeyRing(config.encryption)) }),
  });
  let forgotten = 0;
  let failed: string | null = null;
  try {
    for (const store of stores) {
      try {
        forgotten += await zeps.forgetMemories(store, workspaceId, AbortSignal.timeout(STORE_MS), REQUEST_MS);
      } catch (error) {
        if (!(error instanceof RemoteStoreError) && (error as Error).name !== 'TimeoutError') throw error;
        failed ??= `What its agents remember in the datastore ${store.datastore_id} could not be deleted (--leave-memories leaves it): ${(error as Error).message}`;
      }
    }
  } finally {
    await zeps.close();
  }
  if (forgotten > 0) options.note(`what agents remembered of ${count(forgotten)} people is deleted`);
  return { forgotten, failed };
}
