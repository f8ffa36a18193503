/** What applications' users and services do in sessions of their own, committed. */
import { randomUUID } from 'node:crypto';
import type pg from 'pg';
import type { TestDatabase } from './database.ts';
import { insert, type Platform } from './platform.ts';

/** What a session does. */
export type Act<T> = (client: pg.PoolClient) => Promise<T>;

/** Does it in one transaction that begins with `settings`; commits, or rolls back and throws. */
export async function session<T>(db: TestDatabase, settings: readonly string[], act: Act<T>): Promise<T> {
  const client = await db.pool.connect();
  try {
    await client.query('begin');
    for (const setting of settings) await client.query(setting);
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

/** As a signed-in user. */
export function asUser<T>(db: TestDatabase, userId: string, act: Act<T>): Promise<T> {
  return session(db, ['set local role authenticated', `set local app.current_user_id = '${userId}'`], act);
}

/** As a service of the application. */
export function asService<T>(db: TestDatabase, act: Act<T>): Promise<T> {
  return session(db, ['set local role service_role'], act);
}

/** SQLSTATE of a refusal; 'ok' if there was none. */
export function stateOf(work: Promise<unknown>): Promise<string> {
  return work.then(
    () => 'ok',
    (error: { code?: string }) => error.code ?? String(error),
  );
}

/** SQLSTATE of what a caller has no right to. */
export const denied = '42501';

/** Signs a user up who has a part in a shared workspace. Returns the user's id. */
export async function addMember(
  db: TestDatabase,
  owner: Platform,
  role: 'viewer' | 'manager',
): Promise<string> {
  const userId = await insert(db, 'auth.users', { email: `${randomUUID()}@example.test` });
  await db.query('insert into public.workspace_members (workspace_id, user_id, role) values ($1, $2, $3)', [
    owner.workspaceId,
    userId,
    role,
  ]);
  return userId;
}
