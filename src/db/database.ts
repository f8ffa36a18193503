/**
 * One way to the database: a connection string, the embedded server's or yours, to one pool and one Kysely.
 *
 * On a server, statements with a name are prepared once per connection. The embedded database has a single
 * backend that all its connections share: there, every unit of work is a short transaction that first puts
 * role and settings back to the worker's (another client's SET ROLE would be ours otherwise), and names are
 * left out (two connections would collide on them).
 */
import { Kysely, PostgresDialect, type PostgresPool, type PostgresPoolClient } from 'kysely';
import pg from 'pg';
import type { DB } from './types.ts';

/** A statement that `pg` may prepare under its name; values go by position. */
export type Statement = { readonly name: string; readonly text: string };

/** What runs statements: the database, or one transaction of it. */
export interface Queryable {
  /** Runs one statement and returns its rows. Throws the driver's error, with the SQLSTATE in `code`. */
  query<R>(statement: Statement | string, values?: readonly unknown[]): Promise<R[]>;
}

export interface Database extends Queryable {
  readonly url: string;
  /** True for PGlite: one backend, no notifications across sessions, no session-level parallelism. */
  readonly embedded: boolean;
  readonly kysely: Kysely<DB>;
  /** Runs `work` in one transaction; commits when it resolves, rolls back when it throws. */
  transaction<T>(work: (tx: Queryable) => Promise<T>, isolation?: Isolation): Promise<T>;
  close(): Promise<void>;
}

export type Isolation = 'read committed' | 'repeatable read' | 'serializable';

/** In milliseconds; 0: as long as it takes. The embedded database has only the time that we wait for an answer. */
export type ConnectionLimits = {
  /** How long a statement waits for a row that another transaction holds. */
  readonly lockMs: number;
  /** How long the server works on a statement. */
  readonly statementMs: number;
  /** How long we wait for an answer: a network that swallows everything never says that it is gone. */
  readonly answerMs: number;
};

/**
 * Of what does the work of many tenants at once: a row that one of them holds must not hold the others up, and neither may a server that
 * hangs.
 */
export const WORKER_LIMITS: ConnectionLimits = { lockMs: 250, statementMs: 30_000, answerMs: 40_000 };

/** Options of a connection. */
export type DatabaseOptions = {
  readonly url: string;
  readonly embedded: boolean;
  /** Connections at most. */
  readonly max?: number;
  readonly applicationName?: string;
  /** Limits of every statement and connection, so that no default of the platform governs them. */
  readonly limits?: ConnectionLimits;
  /** Told of errors on idle connections, such as a restarted server; never throws. */
  readonly onError?: (error: Error) => void;
};

/**
 * Ends what another client of the embedded database may have left in the shared session, for this
 * transaction only: that client finds its own settings again afterwards.
 */
const EMBEDDED_BEGIN = [
  'begin read write',
  'set local role none',
  `set local search_path = "$user", public`,
  'set local statement_timeout = 0',
  'set local row_security = on',
  `set local app.current_user_id = ''`,
  `set local request.jwt.claims = ''`,
  `set local request.jwt.claim.sub = ''`,
].join(';');

// count(*), sum(bigint) and bigint columns fit a JavaScript number in everything that agentd reads back
// (ids are uuids; cost in micros stays below 2^53, nine billion dollars).
const types = new pg.TypeOverrides();
types.setTypeParser(20, (text) => Number(text));

/** Opens the pool. No connection is made before the first statement. */
export function openDatabase(options: DatabaseOptions): Database {
  const poolOptions: pg.PoolConfig = {
    connectionString: options.url,
    max: options.max ?? 10,
    application_name: options.applicationName ?? 'agentd',
    types,
    keepAlive: true,
    keepAliveInitialDelayMillis: 10_000,
    idleTimeoutMillis: 30_000,
    connectionTimeoutMillis: 10_000,
    ...(options.limits && !options.embedded ? { query_timeout: options.limits.answerMs } : {}),
  };
  if (options.limits && !options.embedded) {
    const { lockMs, statementMs } = options.limits;
    // Without JIT: the estimates for lists in JSON (a hundred rows each, joined) pass jit_above_cost, and checkpoints of
    // two runs then took up to 1.7 s, most of it compiling.
    // Not as startup parameters, which poolers refuse. It runs before the connection's first statement. A transaction
    // whose process has frozen gives its rows back.
    const settings = `set lock_timeout = ${lockMs}; set statement_timeout = ${statementMs};
      set idle_in_transaction_session_timeout = ${statementMs};
      set jit = off`;
    poolOptions.onConnect = async (client) => {
      await client.query(settings);
    };
  }
  const pool = new pg.Pool(poolOptions);
  pool.on('error', (error) => options.onError?.(error));
  const kysely = new Kysely<DB>({
    dialect: new PostgresDialect({ pool: options.embedded ? guardedPool(pool) : pool }),
  });

  const onClient = (client: pg.PoolClient | pg.Pool): Queryable => ({
    async query<R>(statement: Statement | string, values: readonly unknown[] = []): Promise<R[]> {
      const config =
        typeof statement === 'string'
          ? { text: statement, values: values as unknown[] }
          : options.embedded
            ? { text: statement.text, values: values as unknown[] }
            : { name: statement.name, text: statement.text, values: values as unknown[] };
      const result: pg.QueryResult | pg.QueryResult[] = await client.query(config);
      // a script of several statements answers one result for each
      return (Array.isArray(result) ? result.flatMap((one) => one.rows) : result.rows) as R[];
    },
  });

  const transaction = async <T>(work: (tx: Queryable) => Promise<T>, isolation?: Isolation): Promise<T> => {
    const client = await pool.connect();
    let broken: Error | undefined;
    // A connection that breaks while it is out of the pool reports here as well as through the query.
    const onError = (error: Error): void => {
      broken = error;
    };
    client.on('error', onError);
    try {
      await client.query(options.embedded ? EMBEDDED_BEGIN : 'begin');
      if (isolation) await client.query(`set transaction isolation level ${isolation}`);
      const result = await work(onClient(client));
      await client.query('commit');
      return result;
    } catch (error) {
      await client.query('rollback').catch((rollback: Error) => {
        broken = rollback;
      });
      throw error;
    } finally {
      client.off('error', onError);
      client.release(broken);
    }
  };

  const direct = onClient(pool);
  return {
    url: options.url,
    embedded: options.embedded,
    kysely,
    query: options.embedded
      ? <R>(statement: Statement | string, values?: readonly unknown[]) =>
          transaction((tx) => tx.query<R>(statement, values))
      : direct.query,
    transaction,
    async close() {
      await kysely.destroy();
      // Kysely ends the pool only if it has used it.
      if (!pool.ending) await pool.end();
    },
  };
}

/**
 * Kysely's view of the embedded pool: every transaction begins with the guard above, and a statement
 * outside a transaction gets one of its own.
 */
function guardedPool(pool: pg.Pool): PostgresPool {
  return {
    options: {},
    end: () => pool.end(),
    async connect() {
      const client = await pool.connect();
      let open = false;
      const run = async (text: string, values: readonly unknown[]): Promise<pg.QueryResult> => {
        if (/^begin$|^start transaction/.test(text)) {
          open = true;
          return client.query(EMBEDDED_BEGIN + text.replace(/^(begin|start transaction)/, ';select 1'));
        }
        if (/^(commit|rollback)$/.test(text)) open = false;
        if (open || /^(commit|rollback)$/.test(text)) return client.query(text, values as unknown[]);
        await client.query(EMBEDDED_BEGIN);
        try {
          const result = await client.query(text, values as unknown[]);
          await client.query('commit');
          return result;
        } catch (error) {
          await client.query('rollback');
          throw error;
        }
      };
      return {
        query: (text: unknown, values: unknown) => run(text as string, (values ?? []) as readonly unknown[]),
        release: () => client.release(),
      } as unknown as PostgresPoolClient;
    },
  };
}

/** The first row, or null. */
export async function first<R>(rows: Promise<readonly R[]>): Promise<R | null> {
  return (await rows)[0] ?? null;
}
