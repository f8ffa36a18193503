/** Daemons of a test: in its own process, or in a child process that can be killed. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { loadConfig } from '../../src/config.ts';
import { type Daemon, type DaemonOptions, startDaemon } from '../../src/daemon.ts';
import type { Database } from '../../src/db/database.ts';
import { createLogger } from '../../src/telemetry/logger.ts';
import type { ModelServer } from '../peers/model-server.ts';

/** A running daemon whose log can be read. */
export type TestDaemon = Daemon & {
  /** Log lines as written, from debug up. */
  readonly log: readonly string[];
  [Symbol.asyncDispose](): Promise<void>;
};

export type TestDaemonOptions = Partial<DaemonOptions> & {
  /** Beside the database, the model server and a drain without patience. */
  readonly env?: Record<string, string>;
};

/**
 * Starts a daemon on a test's database that uses a test's model server, without probes and with a lease of 3 s.
 * Its drain aborts at once unless AGENTD_DRAIN_SECONDS says otherwise.
 */
export async function testDaemon(
  db: Pick<Database, 'url'>,
  model: Pick<ModelServer, 'url' | 'apiKey'>,
  { env, ...options }: TestDaemonOptions = {},
): Promise<TestDaemon> {
  const log: string[] = [];
  const logger = createLogger({
    level: 'debug',
    destination: {
      write: (line: string) => {
        log.push(line);
      },
    },
  });
  const daemon = await startDaemon(loadConfig(daemonEnv(db.url, model, env)), {
    logger,
    probes: false,
    leaseSeconds: 3,
    storeLookMs: 200,
    ...options,
  });
  return Object.assign(daemon, { log, [Symbol.asyncDispose]: () => daemon.stop() });
}

function daemonEnv(
  url: string,
  model: Pick<ModelServer, 'url' | 'apiKey'>,
  env: Record<string, string> = {},
): Record<string, string> {
  return {
    DATABASE_URL: url,
    OPENAI_API_KEY: model.apiKey,
    OPENAI_BASE_URL: model.url,
    AGENTD_DRAIN_SECONDS: '0',
    // the model servers of tests make no vectors
    AGENTD_EMBEDDING_MODEL: 'feature-hash-v1',
    AGENTD_HTTP_PORT: '0',
    ...env,
  };
}

/** A daemon in a process of its own. */
export type DaemonProcess = {
  readonly child: ChildProcess;
  /** Everything that it wrote. */
  readonly output: () => string;
  /** SIGKILL; resolves when the process is gone. */
  kill(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
};

const CLI = fileURLToPath(new URL('../../src/cli.ts', import.meta.url));

/** Starts `agentd start` as a child process; resolves when it works. Rejects with its output if it ends before. */
export async function startDaemonProcess(
  db: Pick<Database, 'url'>,
  model: Pick<ModelServer, 'url' | 'apiKey'>,
  env: Record<string, string> = {},
): Promise<DaemonProcess> {
  const child = spawn(process.execPath, [CLI, 'start'], {
    env: {
      PATH: process.env.PATH,
      NODE_COMPILE_CACHE: process.env.NODE_COMPILE_CACHE,
      ...daemonEnv(db.url, model, env),
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  const started = new Promise<void>((resolve, reject) => {
    const read = (data: Buffer): void => {
      output += data.toString();
      if (output.includes('"event":"started"')) resolve();
    };
    child.stdout?.on('data', read);
    child.stderr?.on('data', read);
    child.once('exit', (code) => reject(new Error(`The daemon ended with ${code}:\n${output}`)));
  });
  await started;
  const kill = async (): Promise<void> => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const gone = once(child, 'exit');
    child.kill('SIGKILL');
    await gone;
  };
  return { child, output: () => output, kill, [Symbol.asyncDispose]: kill };
}
