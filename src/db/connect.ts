/** From the configuration to a database: yours, one that another agentd already serves, or a new embedded one. */
import type { Config } from '../config.ts';
import { type ConnectionLimits, type Database, openDatabase } from './database.ts';
import { type EmbeddedServer, embeddedUrl, isListening, startEmbedded } from './embedded.ts';

/** A connected database; closing it also stops the embedded server if this process runs it. */
export type Connection = { readonly db: Database; close(): Promise<void> };

/** Whether a connection string leads to PGlite, asked of the server itself. Throws if it can't be reached. */
export async function isEmbedded(url: string): Promise<boolean> {
  // The guarded way of speaking is safe with both; the plain one only with a server.
  const probe = openDatabase({ url, embedded: true, max: 1 });
  try {
    const [row] = await probe.query<{ version: string }>('select version()');
    return /emscripten|wasm|pglite/i.test(row?.version ?? '');
  } finally {
    await probe.close();
  }
}

/** The database could not be reached; the message names where and what to check, never the password. */
export class ConnectionFailed extends Error {
  override readonly name = 'ConnectionFailed';
}

/** Where a connection string leads, without its user's password and without secrets among its parameters. */
export function maskedUrl(url: string): string {
  try {
    const parsed = new URL(url);
    if (parsed.password) parsed.password = '***';
    for (const name of new Set(parsed.searchParams.keys())) {
      if (/(key|token|secret|signature|passw(or)?d)$/i.test(name)) parsed.searchParams.set(name, '***');
    }
    return parsed.toString();
  } catch {
    return '(not a URL)';
  }
}

/**
 * Connects as the configuration says.
 *
 * Without DATABASE_URL it joins the embedded database on AGENTD_EMBEDDED_PORT if one is served there, else
 * it starts one in AGENTD_DATA_DIR, which then lives as long as this process.
 * Throws ConnectionFailed when the server does not answer.
 */
export async function connectDatabase(
  config: Config,
  options: {
    max?: number;
    applicationName?: string;
    limits?: ConnectionLimits;
    onError?: (error: Error) => void;
  } = {},
): Promise<Connection> {
  let server: EmbeddedServer | null = null;
  let url = config.databaseUrl;
  if (url === null) {
    if (config.embeddedPort !== 0 && (await isListening(config.embeddedPort)))
      url = embeddedUrl(config.embeddedPort);
    else {
      server = await startEmbedded(config.dataDir, config.embeddedPort);
      url = server.url;
    }
  }
  let embedded: boolean;
  try {
    embedded = server !== null || (await isEmbedded(url));
  } catch (error) {
    await server?.stop();
    throw new ConnectionFailed(
      `The database at ${maskedUrl(url)} does not answer: ${describe(error)}. Check DATABASE_URL, the network and that the server runs.`,
      { cause: error },
    );
  }
  const db = openDatabase({ url, embedded, ...options });
  return {
    db,
    async close() {
      await db.close();
      await server?.stop();
    },
  };
}

/** Node reports a refused connection to a name with several addresses as an AggregateError without text. */
function describe(error: unknown): string {
  if (error instanceof AggregateError) return error.errors.map((e) => (e as Error).message).join(', ');
  return error instanceof Error ? error.message : String(error);
}
