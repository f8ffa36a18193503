/** The parts of refreshing, put together: connections, what is known of providers, lanes, and the job that uses them. */
import type { Logger } from 'pino';
import type { Clock } from '../clock.ts';
import type { Config } from '../config.ts';
import type { Database } from '../db/database.ts';
import type { RefreshDeps } from '../pipelines/oauth/attempt.ts';
import { type FreshToken, freshToken } from '../pipelines/oauth/fresh-token.ts';
import { HostLanes } from '../pipelines/oauth/host-lanes.ts';
import { openGuardedCaller } from '../providers/guarded-call.ts';
import { loadOAuthProviders } from '../providers/oauth-providers.ts';
import type { Job } from '../queue/job.ts';
import type { SecretStore } from '../secrets.ts';
import type { CredentialMetrics } from '../telemetry/credential-metrics.ts';
import { credentialRefreshJob } from './credential-refresh.ts';

/** Of the slots, those that one host may take. */
const SHARE = 1 / 3;

export type CredentialParts = {
  readonly job: Job;
  /** See pipelines/oauth/fresh-token.ts. */
  readonly freshToken: (wanted: Parameters<typeof freshToken>[1]) => Promise<FreshToken>;
  /** After the last run: refreshes that nobody waits for any more are over. What was sent is not cut off. */
  drained(): Promise<void>;
  /** After the last job: connections end. */
  close(): Promise<void>;
};

/** Opens what refreshing needs; nothing is asked of the outside before the first credential. Throws ConfigError. */
export function openCredentialParts(options: {
  readonly config: Config;
  readonly db: Database;
  readonly clock: Clock;
  readonly log: Logger;
  readonly secrets: SecretStore;
  readonly metrics: CredentialMetrics;
  readonly onRetry: (error: Error) => void;
  readonly isSteady?: NonNullable<RefreshDeps['isSteady']>;
  readonly signal?: NonNullable<RefreshDeps['signal']>;
}): CredentialParts {
  const { config, clock } = options;
  const concurrency = config.queues['credential-refresh']?.concurrency ?? 4;
  const caller = openGuardedCaller({ allowedPrivateHosts: config.allowedPrivateHosts, clock });
  const deps: RefreshDeps = {
    db: options.db,
    clock,
    log: options.log,
    secrets: options.secrets,
    metrics: options.metrics,
    onRetry: options.onRetry,
    caller,
    providers: loadOAuthProviders(),
    lanes: new HostLanes(Math.max(2, Math.ceil(concurrency * SHARE)), clock),
    ...(options.isSteady ? { isSteady: options.isSteady } : {}),
    ...(options.signal ? { signal: options.signal } : {}),
  };
  const underWay = new Set<Promise<unknown>>();
  const onRefreshing = (work: Promise<unknown>): void => {
    const over = work.catch(() => {}).finally(() => underWay.delete(over));
    underWay.add(over);
  };
  return {
    job: credentialRefreshJob({ ...deps, concurrency }),
    freshToken: (wanted) => freshToken({ ...deps, onRefreshing }, wanted),
    async drained() {
      await Promise.all(underWay);
    },
    close: () => caller.close(),
  };
}
