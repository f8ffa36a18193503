/**
 * Three probes over HTTP: is the process alive, is it ready for work, and what do its numbers say.
 *
 * `/livez` asks nobody: a worker whose database is away must not be restarted for it. `/readyz` asks the database.
 * `/metrics` answers whatever happens: the moment the database is down is the moment somebody looks at the graphs.
 */
import { createServer, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { credentialsFailing, misconfiguredProviders } from '../db/credential-reports.ts';
import type { Database } from '../db/database.ts';
import { appliedMigrations, documentsWaiting, queueHealth, scheduleOverdue } from '../db/operations.ts';
import { mcpConnectionStates } from '../db/operations-mcp.ts';
import { type DatabaseWatch, watchDatabase } from './database-watch.ts';
import type { Logger } from './logger.ts';
import type { Metrics } from './metrics.ts';

/** What the daemon tells the probes; it changes the fields, the probes read them. */
export type ProbeState = {
  /** True from the moment that a stop begins. */
  draining: boolean;
  readonly version: string;
  /** The migration that this version needs; a database beyond it is an older worker's normal upgrade, and ready. */
  readonly requiredMigration: string;
  /** Further reasons why the process can't work now; empty when it can. */
  readonly problems?: () => readonly string[];
};

export type ProbesOptions = {
  readonly host: string;
  /** 0 takes a free port. */
  readonly port: number;
  readonly metrics: Metrics;
  readonly state: ProbeState;
  readonly db: Pick<Database, 'url' | 'embedded'>;
  readonly logger: Logger;
  /** Longest wait for the database, in milliseconds; 2,000 when left out (a scrape gives up after 10 s). */
  readonly deadlineMs?: number;
};

export type Probes = {
  /** Where the probes are, without a slash at the end. */
  readonly url: string;
  /** Ends open connections and stops listening. */
  close(): Promise<void>;
};

/** The probes can't listen; the message says what to change. */
export class ProbesError extends Error {
  override readonly name = 'ProbesError';
  readonly reasonCode: string;
  readonly nextStep =
    'Set AGENTD_HTTP_PORT to a free port (0 takes any), and AGENTD_HTTP_HOST to an address of this machine.';
  constructor(message: string, reasonCode: string) {
    super(message);
    this.reasonCode = reasonCode;
  }
}

const READY_KEPT_MS = 1_000;
const DEPTHS_KEPT_MS = 5_000;

/** Starts the probes. Throws ProbesError when the address can't be listened on. */
export async function startProbes(options: ProbesOptions): Promise<Probes> {
  const { metrics, state, logger } = options;
  const watch = watchDatabase(options.db, {
    deadlineMs: options.deadlineMs ?? 2_000,
    onError: (error) =>
      logger.debug({ event: 'probes_connection_lost', err: error }, 'the connection of the probes was lost'),
  });
  // 20 ms: finer samples cost processor time and find the same pauses.
  const loop = monitorEventLoopDelay({ resolution: 20 });
  loop.enable();
  metrics.process.build(state.version);

  const readiness = readinessOf(watch, options);
  const scrape = scrapeOf(watch, options, () => {
    const delay = { mean: loop.mean / 1e9, p99: loop.percentile(99) / 1e9, max: loop.max / 1e9 };
    loop.reset();
    return delay;
  });

  const server = createServer((request, response) => {
    if (request.method !== 'GET' && request.method !== 'HEAD') {
      return send(response, 405, { error: 'Only GET and HEAD are answered here.' });
    }
    const { pathname } = new URL(request.url ?? '/', 'http://probe');
    const answer = async (): Promise<void> => {
      if (pathname === '/livez') send(response, 200, { status: 'ok', version: state.version });
      else if (pathname === '/readyz') {
        const reasons = await readiness();
        send(response, reasons.length === 0 ? 200 : 503, {
          status: reasons.length === 0 ? 'ready' : 'not ready',
          reasons,
        });
      } else if (pathname === '/metrics') {
        const text = await scrape();
        response.writeHead(200, { 'content-type': metrics.registry.contentType }).end(text);
      } else send(response, 404, { error: 'The probes are /livez, /readyz and /metrics.' });
    };
    answer().catch((error: unknown) => {
      logger.error({ event: 'probe_failed', err: error, path: pathname }, 'a probe failed');
      if (!response.headersSent) send(response, 500, { error: 'The probe failed; the log says why.' });
    });
  });

  try {
    await listen(server, options);
  } catch (error) {
    loop.disable();
    await watch.close();
    throw error;
  }
  const { port } = server.address() as AddressInfo;
  const host = options.host.includes(':') ? `[${options.host}]` : options.host;
  const url = `http://${host}:${port}`;
  logger.info({ event: 'probes_listening', url }, 'the probes listen');
  return {
    url,
    async close() {
      loop.disable();
      const ended = new Promise<void>((resolve) => server.close(() => resolve()));
      server.closeAllConnections();
      await Promise.all([ended, watch.close()]);
    },
  };
}

/** Why the process is not ready; empty when it is. */
function readinessOf(watch: DatabaseWatch, options: ProbesOptions): () => Promise<string[]> {
  const { state, metrics } = options;
  const applied = watch.question(READY_KEPT_MS, appliedMigrations);
  return async () => {
    const reasons: string[] = [...(state.problems?.() ?? [])];
    if (state.draining) reasons.push('The worker is stopping.');
    const answer = await applied();
    metrics.queues.databaseUp(answer.ok);
    if (!answer.ok) reasons.push('The database does not answer.');
    else if (!answer.value.includes(state.requiredMigration)) {
      reasons.push(`The migration ${state.requiredMigration} is missing. Run: agentd migrate up`);
    }
    return reasons;
  };
}

/** The text of /metrics. */
function scrapeOf(
  watch: DatabaseWatch,
  options: ProbesOptions,
  eventLoop: () => { mean: number; p99: number; max: number },
): () => Promise<string> {
  const { metrics, logger } = options;
  const depths = watch.question(DEPTHS_KEPT_MS, async (tx) => ({
    queues: await queueHealth(tx),
    overdue: await scheduleOverdue(tx),
    documents: await documentsWaiting(tx),
    credentials: await credentialsFailing(tx),
    misconfigured: await misconfiguredProviders(tx),
    mcp: await mcpConnectionStates(tx),
  }));
  let complained = false;
  return async () => {
    const answer = await depths();
    // A database without agentd's tables answers too: it is up, and has no depths to tell.
    metrics.queues.databaseUp(answer.ok || isSqlError(answer.error));
    if (answer.ok) {
      metrics.queues.set(answer.value.queues);
      metrics.queues.scheduleOverdue(answer.value.overdue);
      metrics.documents.waiting(answer.value.documents);
      metrics.credentials.failing(answer.value.credentials, answer.value.misconfigured);
      metrics.mcp.connections(answer.value.mcp);
    } else {
      metrics.queues.clear();
      metrics.documents.clear();
      metrics.credentials.clear();
      metrics.mcp.clear();
      metrics.databaseErrors.inc('probes');
      if (!complained)
        logger.warn(
          { event: 'probes_without_depths', err: answer.error },
          'the depths of the queues could not be read',
        );
    }
    complained = !answer.ok;
    metrics.process.eventLoopDelay(eventLoop());
    metrics.process.refresh();
    return metrics.registry.metrics();
  };
}

/** Whether the server itself refused a statement for what it says (class 42), so that it was reached and works. */
function isSqlError(error: Error): boolean {
  const { code } = error as Error & { code?: unknown };
  return typeof code === 'string' && /^42[0-9A-Z]{3}$/.test(code);
}

function listen(server: Server, options: ProbesOptions): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => {
      const where = `${options.host}:${options.port}`;
      reject(
        error.code === 'EADDRINUSE'
          ? new ProbesError(`The probes can't listen on ${where}: the port is in use.`, 'port_in_use')
          : new ProbesError(`The probes can't listen on ${where}: ${error.message}.`, 'probes_not_listening'),
      );
    });
    server.listen(options.port, options.host, resolve);
  });
}

function send(response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, {
    'content-type': 'application/json; charset=utf-8',
    'cache-control': 'no-store',
  });
  response.end(`${JSON.stringify(body)}\n`);
}
