/** The parts of refreshing without a daemon around them. */
import { systemClock } from '../../src/clock.ts';
import { claimCredential } from '../../src/db/credentials.ts';
import type { Database } from '../../src/db/database.ts';
import {
  CREDENTIAL_LEASE_SECONDS,
  type RefreshDeps,
  type RefreshOutcome,
} from '../../src/pipelines/oauth/attempt.ts';
import { HostLanes } from '../../src/pipelines/oauth/host-lanes.ts';
import { refreshClaimed } from '../../src/pipelines/oauth/refresh.ts';
import { openGuardedCaller } from '../../src/providers/guarded-call.ts';
import { loadOAuthProviders } from '../../src/providers/oauth-providers.ts';
import { columnSecretStore, parseKeyRing } from '../../src/secrets.ts';
import { createLogger } from '../../src/telemetry/logger.ts';
import { createMetrics } from '../../src/telemetry/metrics.ts';
import { ENCRYPTION_KEY } from './credentials.ts';

/** As one process has them, which may ask the given ports on loopback. */
export function refreshDeps(
  db: Database,
  ports: readonly number[],
  more: Partial<RefreshDeps> = {},
): RefreshDeps & { close(): Promise<void>; readonly lines: string[] } {
  const lines: string[] = [];
  const caller = openGuardedCaller({
    allowedPrivateHosts: ports.map((port) => `127.0.0.1:${port}`),
    clock: systemClock,
  });
  return {
    db,
    clock: systemClock,
    log: createLogger({ level: 'debug', destination: { write: (line: string) => void lines.push(line) } }),
    secrets: columnSecretStore(parseKeyRing({ ENCRYPTION_KEY })),
    caller,
    providers: loadOAuthProviders(),
    lanes: new HostLanes(8, systemClock),
    metrics: createMetrics({ builtInTools: [] }).credentials,
    ...more,
    lines,
    close: () => caller.close(),
  };
}

/** Claims a credential and refreshes it, as a worker would whatever its time. */
export async function refreshNow(
  deps: RefreshDeps,
  credential: { readonly id: string; readonly workspaceId: string },
): Promise<RefreshOutcome> {
  const claim = await claimCredential(deps.db, { ...credential, request: null }, CREDENTIAL_LEASE_SECONDS);
  if (!claim) throw new Error(`Credential ${credential.id} can't be claimed.`);
  return refreshClaimed(deps, claim, { jobId: null, signal: new AbortController().signal });
}
