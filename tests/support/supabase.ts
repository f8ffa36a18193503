/**
 * A Supabase project without agentd: its roles, its schemas auth, vault, storage and extensions, with the owners, rights and
 * default privileges that it has there. What it was made after is named in supabase/*.sql.
 *
 * On a server every role logs in for itself. The embedded database has one session: it takes a role's place by SET SESSION
 * AUTHORIZATION, which has the same rights but not the settings that a login brings (search_path, timeouts).
 * Two things of Supabase are not here: its extension supautils, which lets a role drop triggers of a table that it does not
 * own, and the sealing of secrets (see vault.sql). The roles stay on the test server; the database goes.
 */
import { readFile } from 'node:fs/promises';
import pg from 'pg';
import { type Database, openDatabase } from '../../src/db/database.ts';
import { emptyDatabase, onServer, type TestDatabase } from './database.ts';

/** The role that migrations run as, no superuser: what a project calls `postgres`. */
export const MIGRATOR = 'supabase_postgres';

export type SupabaseProject = {
  /** As the superuser, whom nobody but the platform has on Supabase. Not to be used inside `migrating` or `as`. */
  readonly db: TestDatabase;
  /** Does it as the role that migrations run as. */
  migrating<T>(work: (db: Database) => Promise<T>): Promise<T>;
  /** Does it as a role that logs in, in one transaction that is committed, or rolled back by an error. */
  as<T>(login: string, act: (client: pg.ClientBase) => Promise<T>): Promise<T>;
  /** The connection string of a login; the superuser's on the embedded database. */
  urlOf(login: string): string;
  dispose(): Promise<void>;
};

/** Makes a project on an empty database. */
export async function supabaseProject(): Promise<SupabaseProject> {
  const db = await emptyDatabase();
  for (const part of ['roles', 'auth', 'vault', 'storage']) {
    await db.pool.query(await readFile(new URL(`./supabase/${part}.sql`, import.meta.url), 'utf8'));
  }
  const urlOf = (login: string): string => {
    const url = new URL(db.url);
    if (onServer) {
      url.username = login;
      url.password = 'supabase';
    }
    return url.toString();
  };
  /** On the embedded database, for everyone who is connected. */
  const standingIn = async <T>(login: string, work: () => Promise<T>): Promise<T> => {
    await db.pool.query(`set session authorization ${login}`);
    try {
      return await work();
    } finally {
      // RESET stays with the role there: the embedded server began as nobody
      await db.pool.query('set session authorization postgres');
    }
  };
  return {
    db,
    urlOf,
    async migrating(work) {
      if (!onServer) return standingIn(MIGRATOR, () => work(db));
      const own = openDatabase({ url: urlOf(MIGRATOR), embedded: false });
      try {
        return await work(own);
      } finally {
        await own.close();
      }
    },
    async as(login, act) {
      const run = async (): Promise<Awaited<ReturnType<typeof act>>> => {
        const client = new pg.Client({ connectionString: urlOf(login) });
        await client.connect();
        try {
          await client.query('begin');
          const result = await act(client);
          await client.query('commit');
          return result;
        } catch (error) {
          await client.query('rollback');
          throw error;
        } finally {
          await client.end();
        }
      };
      return onServer ? run() : standingIn(login, run);
    },
    dispose: () => db.dispose(),
  };
}

/** Signs a user up as Supabase Auth does: as its own role, with the columns that it fills. */
export function signUpAt(project: SupabaseProject, id: string, name = 'Ada Lovelace'): Promise<unknown> {
  return project.as('supabase_auth_admin', (client) =>
    client.query(
      `insert into auth.users (instance_id, id, aud, role, email, encrypted_password, confirmation_token, recovery_token,
                               email_change_token_new, email_change, raw_app_meta_data, raw_user_meta_data,
                               email_confirmed_at, created_at, updated_at)
       values ('00000000-0000-0000-0000-000000000000', $1::uuid, 'authenticated', 'authenticated', $1::text || '@example.test',
               '$2a$10$not.a.hash', '', '', '', '', '{"provider": "email", "providers": ["email"]}',
               jsonb_build_object('full_name', $2::text, 'avatar_url', 'https://example.test/ada.png'), now(), now(), now())`,
      [id, name],
    ),
  );
}
