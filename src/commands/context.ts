/** What a command is given: the environment, a way to print, and a database when it asks for one. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { type Config, loadConfig } from '../config.ts';
import { type Connection, connectDatabase } from '../db/connect.ts';
import type { ConnectionLimits, Database } from '../db/database.ts';
import { isListening } from '../db/embedded.ts';
import { type IdKind, idsByPrefix, isIdPrefix } from '../db/ids.ts';
import { CommandError, UsageError } from './errors.ts';
import { createOutput, type Output, type Stream } from './output.ts';

type Env = Readonly<Record<string, string | undefined>>;

export type CommandContext = {
  readonly env: Env;
  readonly version: string;
  /** Where results go. */
  output(options: { readonly json?: boolean }): Output;
  /** Where warnings and progress go, so that a pipe gets results only. */
  note(text: string): void;
  /** The configuration. Throws ConfigError with every problem. */
  config(): Config;
  /**
   * Runs `work` with the database and closes it, whatever happens.
   * Without `create`, an embedded database that was never started is an error, not a reason to make one. Without `limits` a statement takes
   * as long as it takes, and waits for whoever holds its rows.
   */
  withDatabase<T>(
    work: (db: Database, config: Config) => Promise<T>,
    options?: { create?: boolean; limits?: ConnectionLimits },
  ): Promise<T>;
  /** Ends the command with this exit code once it returns. */
  exitWith(code: number): void;
};

/** Builds the context of one run of the command line. */
export function createContext(parts: {
  env: Env;
  version: string;
  stdout: Stream;
  stderr: Stream;
  exitWith: (code: number) => void;
}): CommandContext {
  const config = (): Config => loadConfig(parts.env);
  return {
    env: parts.env,
    version: parts.version,
    output: (options) => createOutput(parts.stdout, parts.env, options.json === true),
    note: (text) => {
      parts.stderr.write(`${text}\n`);
    },
    config,
    async withDatabase(work, options = {}) {
      const inForce = config();
      const connection = await openFor(inForce, options.create === true, options.limits);
      try {
        return await work(connection.db, inForce);
      } finally {
        await connection.close();
      }
    },
    exitWith: parts.exitWith,
  };
}

/** Connects for a command that lives a moment. */
export async function openFor(
  config: Config,
  create: boolean,
  limits?: ConnectionLimits,
): Promise<Connection> {
  if (config.databaseUrl === null && !create) {
    const served = config.embeddedPort !== 0 && (await isListening(config.embeddedPort));
    if (!served && !existsSync(join(config.dataDir, 'postgres'))) {
      throw new CommandError(
        `There is no database yet: DATABASE_URL is not set and ${config.dataDir} holds no embedded database.`,
        'Run agentd start (or agentd migrate up) to create the embedded one, or set DATABASE_URL to use a server.',
      );
    }
  }
  return connectDatabase(config, {
    max: 4,
    applicationName: 'agentd-cli',
    onError: () => {},
    ...(limits ? { limits } : {}),
  });
}

/** The id that a person meant by its beginning. Throws UsageError for no id or several, CommandError for none found. */
export async function resolveId(db: Database, kind: IdKind, text: string): Promise<string> {
  if (!isIdPrefix(text)) {
    throw new UsageError(
      `'${text}' is not the id of a ${kind}.`,
      kind === 'workspace' || kind === 'agent'
        ? `Give the id, or at least its first six digits: select id, name from ${kind}s.`
        : `Give the id, or at least its first six digits, as agentd ${kind}s list shows it.`,
    );
  }
  const [id, another] = await idsByPrefix(db, kind, text);
  if (id === undefined) {
    throw new CommandError(
      `There is no ${kind} with the id ${text}.`,
      kind === 'workspace' || kind === 'agent'
        ? `In SQL: select id, name from ${kind}s.`
        : `agentd ${kind}s list shows the newest ones.`,
    );
  }
  if (another !== undefined) {
    throw new UsageError(
      `Several ${kind}s begin with ${text}, such as ${id} and ${another}.`,
      'Give more digits.',
    );
  }
  return id;
}
