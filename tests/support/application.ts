/** An application that was written for one of the documents: its search_path, its users, its backend. Everything it does is committed. */
import pg from 'pg';
import { expect } from 'vitest';
import type { DocumentSpec } from '../../src/db/compatibility/document.ts';
import type { TestDatabase } from './database.ts';

/** What PostgreSQL said of a statement that failed, as an application's log shows it. */
export type Refusal = {
  readonly code: string;
  readonly message: string;
  readonly hint: string | undefined;
  readonly column: string | undefined;
};

/** One user of the application, or its backend: each statement is a transaction. */
export type Caller = {
  rows<T = Record<string, unknown>>(text: string, values?: unknown[]): Promise<T[]>;
  /** The only row. Fails the test where there is none, or more. */
  one<T = Record<string, unknown>>(text: string, values?: unknown[]): Promise<T>;
  /** The first column of the only row. */
  value<T = string>(text: string, values?: unknown[]): Promise<T>;
  /** How many rows the statement says that it wrote. */
  count(text: string, values?: unknown[]): Promise<number>;
  /** The statement must fail; gives what was said. */
  refused(text: string, values?: unknown[]): Promise<Refusal>;
  /** Several statements in one transaction. */
  transaction<T>(act: (client: pg.PoolClient) => Promise<T>): Promise<T>;
};

export type Application = {
  /** A signed-in user. */
  user(id: string): Caller;
  /** The application's own server, as service_role. */
  readonly service: Caller;
};

export type SignIn = 'jwt' | 'setting';

/**
 * An application of a document on a test's database. Its users are known by their token, as PostgREST passes it on, or, with
 * 'setting', by `app.current_user_id`.
 */
export function application(
  db: Pick<TestDatabase, 'pool'>,
  schema: DocumentSpec['schema'],
  signIn: SignIn = 'jwt',
): Application {
  const path = `set local search_path = ${schema}, public, extensions`;
  return {
    user: (id) =>
      caller(db.pool, async (client) => {
        await client.query(path);
        if (signIn === 'jwt') {
          const claims = JSON.stringify({ sub: id, role: 'authenticated' });
          await client.query(`select set_config('request.jwt.claims', $1, true)`, [claims]);
        } else {
          await client.query(`select set_config('app.current_user_id', $1, true)`, [id]);
        }
        await client.query('set local role authenticated');
      }),
    service: caller(db.pool, async (client) => {
      await client.query(path);
      await client.query(`select set_config('request.jwt.claims', '{"role": "service_role"}', true)`);
      await client.query('set local role service_role');
    }),
  };
}

function caller(pool: pg.Pool, begin: (client: pg.PoolClient) => Promise<void>): Caller {
  async function transaction<T>(act: (client: pg.PoolClient) => Promise<T>): Promise<T> {
    const client = await pool.connect();
    try {
      await client.query('begin');
      await begin(client);
      const result = await act(client);
      await client.query('commit');
      return result;
    } catch (error) {
      await client.query('rollback');
      throw error;
    } finally {
      client.release();
    }
  }
  const query = (text: string, values: unknown[] = []): Promise<pg.QueryResult> =>
    transaction((client) => client.query(text, values));
  const rows = async <T>(text: string, values?: unknown[]): Promise<T[]> =>
    (await query(text, values)).rows as T[];
  const one = async <T>(text: string, values?: unknown[]): Promise<T> => {
    const found = await rows<T>(text, values);
    expect(found, text).toHaveLength(1);
    return found[0] as T;
  };
  return {
    rows,
    one,
    value: async <T>(text: string, values?: unknown[]) =>
      Object.values(await one<Record<string, unknown>>(text, values))[0] as T,
    count: async (text, values) => (await query(text, values)).rowCount ?? 0,
    async refused(text, values) {
      try {
        await query(text, values);
      } catch (error) {
        if (!(error instanceof pg.DatabaseError)) throw error;
        const { code = '', message, hint, column } = error;
        return { code, message, hint, column };
      }
      throw new Error(`It was not refused: ${text}`);
    },
    transaction,
  };
}
