/** Two companies with a row in every table, and everybody who may come to see them. */
import type pg from 'pg';
import type { TestDatabase } from '../support/database.ts';
import { type SignedIn, signedIn } from './isolation-rules.ts';
import { insertText, newRow, type Place, type Rows, referenceRow, rowsOf } from './schema-rows.ts';
import { type Company, column, company, inserted, signUp } from './schema-support.ts';

export type Caller = SignedIn | 'outsider' | 'no user' | 'anon' | 'service_role' | 'agentd_worker';

export type World = {
  readonly here: Company & { readonly author: string } & Rows;
  readonly there: Company & { readonly author: string } & Rows;
  /** Signed up, and nothing else. */
  readonly outsider: string;
  /** Every table and partitioned table of schema public, from the catalog. */
  readonly tables: readonly string[];
};

export async function makeWorld(db: TestDatabase): Promise<World> {
  const capability = `insert into public.integration_capabilities (integration_id, capability_key, display_label) values ($1, 'k', 'l')`;
  const make = async () => {
    const made = await company(db.pool);
    const author = await signUp(db.pool);
    await db.pool.query(
      `insert into public.workspace_members (workspace_id, user_id, role) values ($1, $2, 'manager')`,
      [made.workspace, author],
    );
    const rows = await rowsOf(db.pool, made, author);
    await inserted(db.pool, capability, [rows.place.of('service_providers')]);
    return { ...made, author, ...rows };
  };
  return {
    here: await make(),
    there: await make(),
    outsider: await signUp(db.pool),
    tables: await column<string>(
      db.pool,
      `select relname::text from pg_class
        where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') order by 1`,
    ),
  };
}

/** The condition that finds the company's row; for a table of the platform's, any row. */
export function rowIn(world: World, table: string): string {
  return world.here.where.get(table) ?? 'true';
}

export type Answer = {
  /** The SQLSTATE, or "ok". */
  readonly code: string;
  readonly count: number;
  readonly rows: readonly Record<string, unknown>[];
  /** All that the caller is told of an error. */
  readonly message: string;
};

/** One transaction, rolled back at the end, in which statements are tried as one caller after the other. */
export class Stage {
  readonly client: pg.PoolClient;
  readonly world: World;

  constructor(client: pg.PoolClient, world: World) {
    this.client = client;
    this.world = world;
  }

  /** Who signs in as a caller; null for those without a user. */
  userOf(caller: Caller): string | null {
    const { here, there, outsider } = this.world;
    if (caller === 'stranger') return there.owner;
    if (caller === 'outsider') return outsider;
    return (signedIn as readonly string[]).includes(caller) ? here[caller as 'owner'] : null;
  }

  /** Tries one statement and undoes it. `meanwhile` looks at what it did, as the platform, before that. */
  async attempt(
    caller: Caller,
    text: string,
    values: unknown[] = [],
    meanwhile?: () => Promise<void>,
  ): Promise<Answer> {
    const { client } = this;
    await client.query(`savepoint attempt; ${this.become(caller)}`);
    let answer: Answer;
    try {
      const result = await client.query(text, values);
      answer = { code: 'ok', count: result.rowCount ?? 0, rows: result.rows, message: '' };
      if (meanwhile) {
        await client.query('reset role');
        await meanwhile();
      }
    } catch (error) {
      const { code, message, detail, hint, where } = error as pg.DatabaseError;
      answer = {
        code: code ?? String(error),
        count: 0,
        rows: [],
        message: [message, detail, hint, where].filter(Boolean).join(' '),
      };
    }
    await client.query('rollback to savepoint attempt');
    return answer;
  }

  private become(caller: Caller): string {
    const user = this.userOf(caller);
    const role = ['anon', 'service_role', 'agentd_worker'].includes(caller) ? caller : 'authenticated';
    const claims = JSON.stringify(user === null ? { role } : { sub: user, role });
    return `select set_config('request.jwt.claims', '${claims}', true); set local role ${role}`;
  }
}

/** Opens a stage and undoes everything that was done on it. */
export async function onStage<T>(
  db: TestDatabase,
  world: World,
  act: (stage: Stage) => Promise<T>,
): Promise<T> {
  const client = await db.pool.connect();
  try {
    await client.query('begin');
    return await act(new Stage(client, world));
  } finally {
    await client.query('rollback');
    client.release();
  }
}

/** Tables that have one row for a key which the new row has too: the company's must go before another can come. */
export const oneOfAKind = new Set([
  'profiles',
  'user_preferences',
  'team_canvas_layouts',
  'agent_api_connections',
  'agent_integration_permissions',
  'agent_datastores',
  'budgets',
  'usage_quarter_hours',
  'workspace_usage',
  'workspace_usage_counters',
]);

/** Tries to insert a row into this company, in the name of `user` (whoever calls, unless said otherwise). */
export async function attemptInsert(
  stage: Stage,
  caller: Caller,
  table: string,
  user?: string,
): Promise<Answer> {
  const { world } = stage;
  const writer = user ?? stage.userOf(caller) ?? world.here.author;
  const newcomer = caller === 'stranger' ? world.there.owner : world.here.place.newcomer;
  const place: Place = { ...world.here.place, user: writer, newcomer };
  const columns = columnsFor(table, place);
  await stage.client.query('savepoint insertion');
  if (oneOfAKind.has(table))
    await stage.client.query(`delete from public.${table} where ${rowIn(world, table)}`);
  const { text, values } = insertText(`public.${table}`, columns);
  const answer = await stage.attempt(caller, text, values);
  await stage.client.query('rollback to savepoint insertion');
  return answer;
}

function columnsFor(table: string, place: Place): Record<string, unknown> {
  if (table === 'integration_capabilities')
    return { integration_id: place.of('service_providers'), capability_key: 'k', display_label: 'l' };
  const columns = newRow[table]?.(place) ?? referenceRow[table]?.();
  if (columns === undefined) throw new Error(`Table ${table} has no row builder in schema-rows.ts.`);
  return columns;
}

/** An update that sets a column of each table to the value that it has. */
export async function touches(db: TestDatabase): Promise<(table: string) => string> {
  const found = await db.pool.query<{ table: string; column: string }>(
    `select c.relname as table, (array_agg(quote_ident(a.attname) order by a.attnum))[1] as column
       from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
      where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and a.attgenerated = ''
      group by c.relname`,
  );
  const first = new Map(found.rows.map((row) => [row.table, row.column]));
  return (table) => `update public.${table} set ${first.get(table)} = ${first.get(table)}`;
}
