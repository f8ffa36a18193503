/** The parts of looks at MCP servers, put together: settings of sessions, places at hosts, leases, and the job that uses them. */
import type { Logger } from 'pino';
import type { Clock } from '../clock.ts';
import type { Config } from '../config.ts';
import type { Queryable } from '../db/database.ts';
import { renewRefreshLeases } from '../db/mcp.ts';
import type { FreshToken, McpSettingsDeps } from '../pipelines/mcp/connection-settings.ts';
import { HostPlaces } from '../pipelines/mcp/host-places.ts';
import { parseAllowedHosts } from '../providers/guarded-address.ts';
import { McpEras } from '../providers/mcp-eras.ts';
import type { Job } from '../queue/job.ts';
import { Leases } from '../queue/leases.ts';
import type { SecretOpener } from '../secrets.ts';
import type { McpMetrics } from '../telemetry/mcp-metrics.ts';
import { mcpRefreshJob } from './mcp-refresh.ts';

/** Looks at one host at once: many tenants use the same servers, and one that hangs is not to take all places. */
const HOST_PLACES = 16;

export type McpPartsOptions = {
  readonly config: Config;
  readonly db: Queryable;
  readonly clock: Clock;
  readonly log: Logger;
  readonly secrets: SecretOpener;
  readonly freshToken: FreshToken;
  readonly workerId: string;
  readonly leaseSeconds: number;
  /** A statement was tried again. */
  readonly onRetry: (error: Error) => void;
  readonly metrics: McpMetrics;
};

export type McpParts = {
  readonly job: Job;
  readonly leases: Leases;
  /** For sessions of others than the job: the same addresses, secrets and tokens. */
  readonly settings: McpSettingsDeps;
};

/** Opens what the job needs; nothing is asked of the outside before the first connection. Throws ConfigError. */
export function openMcpParts(options: McpPartsOptions): McpParts {
  const { clock, config, db, log, leaseSeconds } = options;
  const leases = new Leases({
    clock,
    log,
    leaseMs: leaseSeconds * 1000,
    everyMs: (leaseSeconds * 1000) / 3,
    renew: (held) => renewRefreshLeases(db, held, leaseSeconds),
  });
  const settings: McpSettingsDeps = {
    clock,
    secrets: options.secrets,
    freshToken: options.freshToken,
    allowedPrivateHosts: parseAllowedHosts(config.allowedPrivateHosts),
    stdio: config.mcp.stdio,
    eras: new McpEras(clock),
  };
  const job = mcpRefreshJob({
    ...settings,
    db,
    workerId: options.workerId,
    leases,
    leaseSeconds,
    concurrency: config.queues['mcp-refresh']?.concurrency ?? 1,
    places: new HostPlaces(HOST_PLACES),
    everyMs: config.mcpRefreshMinutes * 60_000,
    metrics: options.metrics,
    onRetry: options.onRetry,
  });
  return { job, leases, settings };
}
