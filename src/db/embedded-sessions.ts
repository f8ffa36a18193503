/**
 * Shares PGlite's single backend between socket connections.
 *
 * The socket server's own queue hands messages to the backend one at a time, so that between one
 * connection's Parse and Bind another connection's Parse may come: the second then executes the wrong
 * statement. Here a connection's messages are kept together up to the one that ends them (Sync, or a
 * simple query), and a connection inside a transaction keeps the backend until the transaction ends.
 */
import type { PGlite } from '@electric-sql/pglite';
import type { PGLiteSocketHandlerOptions } from '@electric-sql/pglite-socket';

/** The part of the socket server's queue that its connection handlers use. */
export type SessionQueue = PGLiteSocketHandlerOptions['queryQueue'];

type Work = {
  readonly connection: number;
  readonly message: Uint8Array;
  readonly onData: (data: Uint8Array) => void;
  readonly resolve: (bytes: number) => void;
  readonly reject: (error: unknown) => void;
};

const QUERY = 0x51;
const PARSE = 0x50;
const BIND = 0x42;
const DESCRIBE = 0x44;
const EXECUTE = 0x45;
const CLOSE = 0x43;

/** Messages of the extended protocol that wait for the Sync behind them. */
const held = new Set([PARSE, BIND, DESCRIBE, EXECUTE, CLOSE]);

/** Whether a message may change the role or the settings of the session beyond its transaction. */
function changesSession(message: Uint8Array): boolean {
  if (message[0] !== PARSE && message[0] !== QUERY) return false;
  const text = Buffer.from(message.buffer, message.byteOffset + 5, message.length - 5).toString('latin1');
  return (
    /(^|[;\0])\s*set\s+(?!local\b|transaction\b|constraints\b)/i.test(text) || /\bset_config\s*\(/i.test(text)
  );
}

/** A Query message of the protocol. */
function simpleQuery(text: string): Uint8Array {
  const body = Buffer.from(`${text}\0`);
  const message = Buffer.alloc(5 + body.length);
  message.writeUInt8(QUERY, 0);
  message.writeInt32BE(4 + body.length, 1);
  body.copy(message, 5);
  return message;
}

/** A transaction that says nothing for so long, in milliseconds, while others wait, is rolled back. */
const OWNER_PATIENCE_MS = 10_000;

/**
 * One backend, many connections: groups run one after the other, transactions undisturbed, unless one is left open
 * and forgotten: then it is rolled back and its connection ended, since everybody else waits for it.
 */
export class EmbeddedSessions {
  readonly #db: PGlite;
  readonly #parts = new Map<number, Uint8Array[]>();
  /** Connections that changed the shared session's role or settings. */
  readonly #changed = new Set<number>();
  #queue: Work[] = [];
  /** The connection whose transaction is open. */
  #owner: number | null = null;
  #running = false;
  #patience: NodeJS.Timeout | null = null;
  readonly #evict: (connection: number) => void;

  /** @param evict ends a connection whose transaction was rolled back for its silence */
  constructor(db: PGlite, evict: (connection: number) => void) {
    this.#db = db;
    this.#evict = evict;
  }

  /** Takes one protocol message; resolves with the number of bytes answered. */
  enqueue(connection: number, message: Uint8Array, onData: (data: Uint8Array) => void): Promise<number> {
    if (changesSession(message)) this.#changed.add(connection);
    const parts = this.#parts.get(connection);
    if (held.has(message[0] ?? 0)) {
      if (parts) parts.push(message);
      else this.#parts.set(connection, [message]);
      return Promise.resolve(0);
    }
    this.#parts.delete(connection);
    const whole = parts ? Buffer.concat([...parts, message]) : message;
    return new Promise((resolve, reject) => {
      this.#queue.push({ connection, message: whole, onData, resolve, reject });
      void this.#run();
    });
  }

  /** Called when a connection closes: its waiting messages are dropped. */
  clearQueueForHandler(connection: number): void {
    this.#parts.delete(connection);
    for (const work of this.#queue)
      if (work.connection === connection) work.reject(new Error('disconnected'));
    this.#queue = this.#queue.filter((work) => work.connection !== connection);
  }

  /** Called when a connection closes: a transaction that it left open is rolled back. */
  async clearTransactionIfNeeded(connection: number): Promise<void> {
    const changed = this.#changed.delete(connection);
    if (this.#owner === connection) {
      await this.#db.exec('rollback');
      this.#owner = null;
    }
    // What a connection set is over with it: the next one must not begin as somebody else.
    if (changed) this.enqueue(-1, simpleQuery('reset role; reset all'), () => {}).catch(() => {});
    void this.#run();
  }

  getQueueLength(): number {
    return this.#queue.length;
  }

  async #run(): Promise<void> {
    if (this.#running) return;
    this.#running = true;
    try {
      for (let work = this.#next(); work; work = this.#next()) {
        const { connection, message, onData, resolve, reject } = work;
        let bytes = 0;
        try {
          await this.#db.runExclusive(() =>
            this.#db.execProtocolRawStream(message, {
              onRawData: (data) => {
                bytes += data.length;
                onData(data);
              },
            }),
          );
          this.#owner = this.#db.isInTransaction() ? connection : null;
          resolve(bytes);
        } catch (error) {
          reject(error);
        }
      }
    } finally {
      this.#running = false;
      this.#watchOwner();
    }
  }

  /** Starts, or stops, counting the silence of the transaction's owner. */
  #watchOwner(): void {
    if (this.#patience) clearTimeout(this.#patience);
    this.#patience = null;
    const owner = this.#owner;
    if (owner === null || this.#queue.length === 0) return;
    this.#patience = setTimeout(() => {
      if (this.#owner !== owner || this.#running) return;
      void this.clearTransactionIfNeeded(owner).finally(() => this.#evict(owner));
    }, OWNER_PATIENCE_MS);
  }

  #next(): Work | undefined {
    if (this.#owner === null) return this.#queue.shift();
    const index = this.#queue.findIndex((work) => work.connection === this.#owner);
    return index < 0 ? undefined : this.#queue.splice(index, 1)[0];
  }
}
