import { randomUUID } from 'node:crypto';
import type pg from 'pg';

/** Runs one query on anything that can. */
export type Runner = Pick<pg.Pool | pg.PoolClient, 'query'>;

/** The first column of the first row; undefined when there is no row. */
export async function value<T>(db: Runner, text: string, values: unknown[] = []): Promise<T | undefined> {
  const result = await db.query({ text, values, rowMode: 'array' });
  return (result.rows as unknown[][])[0]?.[0] as T | undefined;
}

/** The first column of every row. */
export async function column<T>(db: Runner, text: string, values: unknown[] = []): Promise<T[]> {
  const result = await db.query({ text, values, rowMode: 'array' });
  return (result.rows as unknown[][]).map((row) => row[0] as T);
}

/** The id that an insert … returning id gave. */
export async function inserted(db: Runner, text: string, values: unknown[] = []): Promise<string> {
  const id = await value<string>(db, `${text} returning id`, values);
  if (id === undefined) throw new Error(`No row was inserted by: ${text}`);
  return id;
}

/** Signs a user up. Returns the user's id; his personal workspace is there already. */
export async function signUp(db: Runner, name = `user-${randomUUID()}`): Promise<string> {
  return inserted(db, 'insert into auth.users (email) values ($1)', [`${name}@example.test`]);
}

export async function personalWorkspace(db: Runner, userId: string): Promise<string> {
  const id = await value<string>(
    db,
    'select id from public.workspaces where owner_user_id = $1 and is_personal',
    [userId],
  );
  if (id === undefined) throw new Error(`User ${userId} has no personal workspace.`);
  return id;
}

/** A shared workspace with an owner, a manager and a viewer, and an agent in it that the owner made. */
export type Company = {
  readonly workspace: string;
  readonly owner: string;
  readonly manager: string;
  readonly viewer: string;
  readonly agent: string;
};

export async function company(db: Runner, name = `Company ${randomUUID()}`): Promise<Company> {
  const [owner, manager, viewer] = [await signUp(db), await signUp(db), await signUp(db)];
  const workspace = await inserted(
    db,
    'insert into public.workspaces (name, owner_user_id) values ($1, $2)',
    [name, owner],
  );
  for (const [user, role] of [
    [manager, 'manager'],
    [viewer, 'viewer'],
  ]) {
    await db.query('insert into public.workspace_members (workspace_id, user_id, role) values ($1, $2, $3)', [
      workspace,
      user,
      role,
    ]);
  }
  const agent = await inserted(
    db,
    'insert into public.agents (workspace_id, user_id, name) values ($1, $2, $3)',
    [workspace, owner, `${name}'s agent`],
  );
  return { workspace, owner, manager, viewer, agent };
}

/** Does something as a role in one transaction, which is rolled back. */
export async function asRole<T>(
  pool: pg.Pool,
  role: string,
  claims: Record<string, unknown>,
  act: (db: pg.PoolClient) => Promise<T>,
): Promise<T> {
  const client = await pool.connect();
  try {
    await client.query('begin');
    await client.query(`select set_config('request.jwt.claims', $1, true)`, [JSON.stringify(claims)]);
    await client.query(`set local role ${role}`);
    return await act(client);
  } finally {
    await client.query('rollback');
    client.release();
  }
}

/** Does something as a signed-in user, in one transaction that is rolled back. */
export async function asUser<T>(
  pool: pg.Pool,
  userId: string,
  act: (db: pg.PoolClient) => Promise<T>,
): Promise<T> {
  return asRole(pool, 'authenticated', { sub: userId, role: 'authenticated' }, act);
}

/** The SQLSTATE with which a statement fails, or "ok". Inside a transaction the failure is undone. */
export async function outcome(db: Runner, text: string, values: unknown[] = []): Promise<string> {
  const inTransaction = 'release' in db;
  if (inTransaction) await db.query('savepoint attempt');
  try {
    await db.query(text, values);
    if (inTransaction) await db.query('release savepoint attempt');
    return 'ok';
  } catch (error) {
    if (inTransaction) await db.query('rollback to savepoint attempt');
    return (error as { code?: string }).code ?? String(error);
  }
}

/** SQLSTATEs that tests name. */
export const denied = '42501';
export const foreignKeyViolation = '23503';
export const uniqueViolation = '23505';
export const checkViolation = '23514';
