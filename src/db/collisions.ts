/**
 * What of an application's own stands where a pending migration is going to make something: found before anything is changed.
 *
 * Whatever has a pending migration's name is not ours: the migration that makes it was not here yet. A table counts with any columns,
 * even the very same, as `create table` fails on it.
 */
import type { Database, Queryable } from './database.ts';
import { MADE_OBJECTS } from './made-objects.ts';

type Kind = 'table' | 'view' | 'materialized view' | 'sequence' | 'index' | 'type' | 'function' | 'schema';

/** Something that a migration makes. */
export type MadeObject = {
  readonly since: string;
  readonly kind: Kind;
  readonly schema: string;
  /** With argument types for a function; empty for a schema. */
  readonly name: string;
  /** Columns with types, labels, a function's result, an index's or a sequence's table. */
  readonly detail: string;
};

/** Something that is in the way. */
export type Found = {
  /** As PostgreSQL calls it: table, view, enum, function … */
  readonly kind: string;
  readonly schema: string;
  readonly name: string;
  /** As in MadeObject; for a schema, what it holds. */
  readonly detail: string;
};

export type Collision = { readonly made: MadeObject; readonly found: Found };

/** Everything that all migrations together make, in their order. */
export const madeObjects: readonly MadeObject[] = MADE_OBJECTS.trim()
  .split('\n')
  .map((line) => {
    const [since = '', kind = '', schema = '', name = '', ...detail] = line.split(/ ?\| ?/);
    return { since, kind: kind as Kind, schema, name, detail: detail.join(' | ') };
  });

/** Types as the same text wherever the search path finds them. */
const unqualified = (text: string): string => text.replace(/\b(public|extensions)\./g, '');

/**
 * The collisions of the pending migrations with what the database holds, and the names of these migrations. Reads one moment's state, so
 * that another process that migrates now is seen before or after, never half way. Changes nothing.
 */
export function findCollisions(
  db: Database,
  known: readonly string[],
): Promise<{ readonly pending: string[]; readonly collisions: Collision[] }> {
  return db.transaction(async (tx) => {
    const pending = await pendingMigrations(tx, known);
    const made = madeObjects.filter((object) => pending.includes(object.since));
    if (made.length === 0) return { pending, collisions: [] };
    const collisions = [
      ...(await schemasInTheWay(tx, made, pending.length === known.length)),
      ...(await usersInTheWay(tx, pending.length === known.length)),
      ...(await queueInTheWay(tx, pending.length === known.length)),
      ...(await namesInTheWay(tx, made)),
    ];
    // an order in which they can be moved: a function is named by its types
    const order: readonly string[] = ['schema', 'function', 'table', 'view', 'type'];
    const rank = ({ made: { kind } }: Collision): number =>
      order.includes(kind) ? order.indexOf(kind) : order.length;
    return { pending, collisions: collisions.sort((a, b) => rank(a) - rank(b)) };
  }, 'repeatable read');
}

async function pendingMigrations(tx: Queryable, known: readonly string[]): Promise<string[]> {
  const [table] = await tx.query<{ there: boolean }>(
    `select to_regclass('agentd.migrations') is not null as there`,
  );
  if (!table?.there) return [...known];
  const applied = await tx.query<{ name: string }>('select name from agentd.migrations');
  const names = new Set(applied.map((row) => row.name));
  return known.filter((name) => !names.has(name));
}

/** Schemas that agentd makes for itself and that hold something already. */
async function schemasInTheWay(
  tx: Queryable,
  made: readonly MadeObject[],
  isFirst: boolean,
): Promise<Collision[]> {
  const own: MadeObject = { since: '0001_platform', kind: 'schema', schema: 'agentd', name: '', detail: '' };
  const wanted = [...(isFirst ? [own] : []), ...made.filter((object) => object.kind === 'schema')];
  const rows = await tx.query<{ schema: string; holds: string | null }>(
    `select n.nspname::text as schema,
            (select string_agg(held.name, ', ') from (
               select c.relname::text as name from pg_catalog.pg_class c
                where c.relnamespace = n.oid and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
                  and not (n.nspname = 'agentd' and c.relname in ('migrations', 'migration_lock'))
               union all
               select p.proname || '()' from pg_catalog.pg_proc p where p.pronamespace = n.oid
               order by 1 limit 4
             ) held) as holds
       from pg_catalog.pg_namespace n where n.nspname = any ($1)`,
    [wanted.map((object) => object.schema)],
  );
  return rows.flatMap(({ schema, holds }) => {
    const object = wanted.find((one) => one.schema === schema);
    // agentd's own schema may be there and empty, with or without the record of migrations
    if (!object || (schema === 'agentd' && holds === null)) return [];
    return [{ made: object, found: { kind: 'schema', schema, name: '', detail: holds ?? '' } }];
  });
}

/** pg-boss's schema is made after the migrations. It is ours if we marked it or if it holds our queues, and no others. */
const QUEUE_MARK = 'Jobs of agentd, kept by pg-boss.';
/** As agentd makes its queues, each with its dead letters, whatever they are called. */
const isOurs = `(q.name like '\\_\\_pgboss\\_\\_%' or (q.policy = 'exclusive' and q.dead_letter = q.name || '-failed')
  or exists (select 1 from pgboss.queue m where m.dead_letter = q.name and m.policy = 'exclusive' and q.name = m.name || '-failed'))`;

/** The statement that marks pg-boss's schema as agentd's. */
export const markQueueSchema = `comment on schema pgboss is '${QUEUE_MARK}'`;

/** What schema pgboss is: not there, agentd's, or an application's, with what it holds of it. */
export async function queueSchema(
  db: Queryable,
): Promise<{ readonly is: 'absent' | 'ours' | 'foreign'; readonly holds: string }> {
  const [schema] = await db.query<{ marked: boolean; queues: boolean }>(
    `select coalesce(pg_catalog.obj_description(n.oid, 'pg_namespace') = $1, false) as marked,
            exists (select 1 from pg_catalog.pg_class c where c.relnamespace = n.oid and c.relname = 'queue' and c.relkind = 'r') as queues
       from pg_catalog.pg_namespace n where n.nspname = 'pgboss'`,
    [QUEUE_MARK],
  );
  if (!schema) return { is: 'absent', holds: '' };
  if (!schema.queues) return { is: schema.marked ? 'ours' : 'foreign', holds: 'no queues of pg-boss' };
  const [found] = await db.query<{ ours: boolean; others: string | null }>(
    `select coalesce(bool_or(q.name = 'task-run'), false) as ours,
            string_agg(q.name, ', ' order by q.name) filter (where not ${isOurs}) as others
       from pgboss.queue q`,
  );
  if (found?.others) return { is: 'foreign', holds: `queues of others: ${found.others}` };
  return schema.marked || found?.ours
    ? { is: 'ours', holds: '' }
    : { is: 'foreign', holds: 'pg-boss without queues' };
}

/** A first migration finds an application's pg-boss: its jobs and ours would be in one schema, of one version, dropped as one. */
async function queueInTheWay(tx: Queryable, isFirst: boolean): Promise<Collision[]> {
  if (!isFirst) return [];
  const { is, holds } = await queueSchema(tx);
  if (is !== 'foreign') return [];
  return [
    {
      made: { since: '0001_platform', kind: 'schema', schema: 'pgboss', name: '', detail: '' },
      found: { kind: 'schema', schema: 'pgboss', name: '', detail: holds },
    },
  ];
}

/** A table of users is used where it is; only its key must be what all others refer to, and it must have what agentd reads. */
async function usersInTheWay(tx: Queryable, isFirst: boolean): Promise<Collision[]> {
  if (!isFirst) return [];
  const signIn = await signInInTheWay(tx);
  const [users] = await tx.query<{ kind: string; type: string | null; email: boolean; usable: boolean }>(
    `select case c.relkind when 'r' then 'table' when 'p' then 'table' when 'v' then 'view' else 'relation' end as kind,
            pg_catalog.format_type(a.atttypid, null) as type,
            exists (select 1 from pg_catalog.pg_attribute e
                     where e.attrelid = c.oid and e.attname = 'email' and not e.attisdropped) as email,
            c.relkind in ('r', 'p') and coalesce(a.atttypid = 'uuid'::regtype, false)
              and exists (select 1 from pg_catalog.pg_index i
                           where i.indrelid = c.oid and i.indisunique and i.indpred is null
                             and i.indnkeyatts = 1 and i.indkey[0] = a.attnum) as usable
       from pg_catalog.pg_class c
       left join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attname = 'id' and not a.attisdropped
      where c.oid = to_regclass('auth.users')`,
  );
  if (!users || (users.usable && users.email)) return signIn;
  return [
    ...signIn,
    {
      made: {
        since: '0001_platform',
        kind: 'table',
        schema: 'auth',
        name: 'users',
        detail: 'id uuid, email text',
      },
      found: {
        kind: users.kind,
        schema: 'auth',
        name: 'users',
        detail: !users.usable ? (users.type === null ? '' : `id ${users.type}`) : 'no email',
      },
    },
  ];
}

/** Policies compare the signed-in user's id with columns of type uuid. */
async function signInInTheWay(tx: Queryable): Promise<Collision[]> {
  const [uid] = await tx.query<{ kind: string; result: string }>(
    `select case p.prokind when 'f' then 'function' else 'procedure' end as kind, pg_catalog.pg_get_function_result(p.oid) as result
       from pg_catalog.pg_proc p where p.oid = to_regprocedure('auth.uid()') and (p.prorettype <> 'uuid'::regtype or p.proretset)`,
  );
  if (!uid) return [];
  return [
    {
      made: { since: '0001_platform', kind: 'function', schema: 'auth', name: 'uid()', detail: 'uuid' },
      found: { kind: uid.kind, schema: 'auth', name: 'uid()', detail: uid.result },
    },
  ];
}

/** Relations, types and functions of schema public that have a name which is going to be needed. */
async function namesInTheWay(tx: Queryable, made: readonly MadeObject[]): Promise<Collision[]> {
  const wanted = made.filter((object) => object.schema === 'public');
  const rows = await tx.query<{ space: string; kind: string; name: string; detail: string | null }>(
    `select 'relation' as space,
            case c.relkind when 'r' then 'table' when 'p' then 'table' when 'v' then 'view' when 'm' then 'materialized view'
                           when 'f' then 'foreign table' when 'S' then 'sequence' when 'c' then 'composite type' else 'index' end as kind,
            c.relname::text as name,
            case when c.relkind in ('i', 'I') then
                   (select i.indrelid::regclass::text from pg_catalog.pg_index i where i.indexrelid = c.oid)
                 when c.relkind = 'S' then
                   (select d.refobjid::regclass::text from pg_catalog.pg_depend d
                     where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype in ('a', 'i') limit 1)
                 else (select string_agg(quote_ident(a.attname) || ' ' || pg_catalog.format_type(a.atttypid, null), ', ' order by a.attnum)
                         from pg_catalog.pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) end as detail
       from pg_catalog.pg_class c where c.relnamespace = 'public'::regnamespace and c.relname = any ($1)
     union all
     select 'type',
            case t.typtype when 'e' then 'enum' when 'd' then 'domain' when 'r' then 'range type' else 'type' end, t.typname::text,
            case when t.typtype = 'e' then (select string_agg(e.enumlabel, ', ' order by e.enumsortorder)
                                              from pg_catalog.pg_enum e where e.enumtypid = t.oid) end
       from pg_catalog.pg_type t
      where t.typnamespace = 'public'::regnamespace and t.typname = any ($1) and t.typrelid = 0
        and not exists (select 1 from pg_catalog.pg_type e where e.typarray = t.oid)
     union all
     select 'function', case p.prokind when 'p' then 'procedure' when 'a' then 'aggregate' else 'function' end,
            p.proname || '(' || pg_catalog.oidvectortypes(p.proargtypes) || ')', pg_catalog.pg_get_function_result(p.oid)
       from pg_catalog.pg_proc p where p.pronamespace = 'public'::regnamespace and p.proname = any ($2)`,
    [
      wanted.filter((object) => object.kind !== 'function').map((object) => object.name),
      wanted.filter((object) => object.kind === 'function').map((object) => object.name.replace(/\(.*/, '')),
    ],
  );
  const found = rows.map(({ space, kind, name, detail }) => ({
    space,
    row: { kind, schema: 'public', name: unqualified(name), detail: unqualified(detail ?? '') },
  }));
  const tables = new Set(found.filter(({ row }) => row.kind === 'table').map(({ row }) => row.name));
  return wanted.flatMap((object) =>
    found
      .filter(({ space, row }) => row.name === object.name && sameSpace(object.kind, space, row.kind))
      // an index goes where its table goes, which is in the way itself
      .filter(({ row }) => !(['index', 'sequence'].includes(row.kind) && tables.has(row.detail)))
      .map(({ row }) => ({ made: object, found: row })),
  );
}

/** Whether two things of one name exclude each other: relations do, types do, and a table is a type as well. */
function sameSpace(made: Kind, space: string, found: string): boolean {
  if (made === 'function') return space === 'function';
  if (space === 'function') return false;
  if (made === 'type') return space === 'type' || !['index', 'sequence'].includes(found);
  if (made === 'index' || made === 'sequence') return space === 'relation';
  return true;
}
