/**
 * The embedded database: PGlite behind its socket server.
 *
 * Everything, agentd included, speaks to it through a socket. (Calls in the process would share one
 * session with every socket client: a transaction of the daemon would then commit another client's open work.)
 */
import { mkdirSync } from 'node:fs';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { PGlite } from '@electric-sql/pglite';
import { vector } from '@electric-sql/pglite-pgvector';
import { PGLiteSocketHandler } from '@electric-sql/pglite-socket';
import { EmbeddedSessions, type SessionQueue } from './embedded-sessions.ts';

/** A running embedded database. */
export type EmbeddedServer = {
  /** Connection string for `pg`, psql and applications. */
  readonly url: string;
  stop(): Promise<void>;
};

/** The connection string of the embedded database on a port of loopback. */
export function embeddedUrl(port: number): string {
  return `postgres://postgres@127.0.0.1:${port}/postgres?sslmode=disable`;
}

/** Whether something accepts connections on a port of loopback. */
export function isListening(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ host: '127.0.0.1', port });
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}

/**
 * Starts the embedded database.
 *
 * @param dataDir folder of the database, made if it is missing; null keeps it in memory.
 * @param port port on loopback; 0 takes a free one.
 */
export async function startEmbedded(dataDir: string | null, port: number): Promise<EmbeddedServer> {
  if (dataDir !== null) mkdirSync(dataDir, { recursive: true });
  const db = await PGlite.create({
    ...(dataDir === null ? {} : { dataDir: join(dataDir, 'postgres') }),
    extensions: { vector },
  });
  return serveEmbedded(db, port);
}

/** Serves a PGlite on a port of loopback; stopping the server closes it. */
export async function serveEmbedded(db: PGlite, port: number): Promise<EmbeddedServer> {
  // The handlers know the queue by its class; ours has the same methods and other insides.
  const byConnection = new Map<number, Socket>();
  const sessions = new EmbeddedSessions(db, (connection) => byConnection.get(connection)?.destroy());
  const queryQueue = sessions as unknown as SessionQueue;
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.once('close', () => sockets.delete(socket));
    const handler = new PGLiteSocketHandler({ queryQueue, closeOnDetach: true });
    byConnection.set(handler.handlerId, socket);
    socket.once('close', () => byConnection.delete(handler.handlerId));
    handler.attach(socket).catch(() => socket.destroy());
  });
  try {
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(port, '127.0.0.1', resolve);
    });
  } catch (error) {
    await db.close();
    throw new Error(
      `The embedded database can't listen on port ${port}: ${(error as Error).message}. ` +
        'Set AGENTD_EMBEDDED_PORT to a free port, or DATABASE_URL to use a PostgreSQL server.',
    );
  }
  let stopped = false;
  return {
    url: embeddedUrl((server.address() as AddressInfo).port),
    async stop() {
      if (stopped) return;
      stopped = true;
      const closed = new Promise((resolve) => server.close(resolve));
      for (const socket of sockets) socket.destroy();
      await closed;
      await db.close();
    },
  };
}
