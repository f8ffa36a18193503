import { AsyncLocalStorage } from 'node:async_hooks';
import { type Kysely, sql } from 'kysely';
import { documents } from '../compatibility/documents.ts';
import {
  callableHelpers,
  publicArguments,
  publicFunctions,
  publicViews,
  secretColumns,
  serviceOnlyFunctions,
  type TableRule,
  tableRules,
  weighted,
} from './access-rules.ts';
import { runSql } from './run-sql.ts';

const putOff = new AsyncLocalStorage<boolean>();

/** Migrates without the access that the migration would end with: the last of several gives it for all of them. */
export function withoutAccess<T>(migrate: () => Promise<T>): Promise<T> {
  return putOff.run(true, migrate);
}

/**
 * Row security, grants and ownership of everything that exists by now: each migration that makes tables, columns or functions
 * ends with it. Says the same again of what had it already. It names its tables and functions and touches nothing else of schema
 * public, which may hold an application's own.
 */
export async function applyAccess(db: Kysely<unknown>): Promise<void> {
  if (putOff.getStore()) return;
  const made = await existingTables(db);
  await secureTables(db, made);
  await grantSchemas(db);
  await grantTables(db, made);
  await grantViews(db);
  await grantFunctions(db);
  await coverWorker(db);
  await handOver(db);
}

const documentSchemas = documents.map((document) => document.schema);

/** Tables of public that access-rules.ts knows. */
export const tables = Object.keys(tableRules);

type Rules = readonly (readonly [string, TableRule])[];

async function existingTables(db: Kysely<unknown>): Promise<Rules> {
  const found = await sql<{ name: string }>`
    select c.relname as name from pg_catalog.pg_class c
     where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')`.execute(db);
  const names = new Set(found.rows.map((row) => row.name));
  return Object.entries(tableRules).filter(([table]) => names.has(table));
}

function policies(table: string, rule: TableRule, isWeighted: boolean): string {
  const select = isWeighted ? weighted(rule.select) : rule.select;
  const statements = [
    `create policy ${table}_select on public.${table} for select to authenticated using (${select});`,
  ];
  if (rule.insert !== undefined) {
    statements.push(
      `create policy ${table}_insert on public.${table} for insert to authenticated with check (${rule.insert});`,
    );
  }
  if (rule.update !== undefined) {
    const after = table === 'agents' ? rule.update : (rule.insert ?? rule.update);
    statements.push(
      `create policy ${table}_update on public.${table} for update to authenticated using (${rule.update}) with check (${after});`,
    );
  }
  if (rule.delete !== undefined) {
    statements.push(
      `create policy ${table}_delete on public.${table} for delete to authenticated using (${rule.delete});`,
    );
  }
  return statements.join('\n');
}

async function secureTables(db: Kysely<unknown>, made: Rules): Promise<void> {
  const found = await sql<{ name: string }>`
    select polrelid::regclass::text || '.' || polname as name from pg_catalog.pg_policy`.execute(db);
  const there = new Set(found.rows.map((row) => row.name.replace(/^public\./, '')));
  // comes with a later migration
  const weight = await sql<{ there: boolean }>`
    select to_regprocedure('agentd.no_workspaces()') is not null as there`.execute(db);
  const isWeighted = weight.rows[0]?.there === true;
  const statements = made
    .filter(([table]) => !there.has(`${table}.${table}_select`))
    .map(
      ([table, rule]) =>
        `alter table public.${table} enable row level security;\n${policies(table, rule, isWeighted)}`,
    );
  await runSql(db, sql.raw(statements.join('\n')));
  // Private tables have row security and no policy: a grant by mistake would still show nothing.
  await runSql(
    db,
    sql`
    do $$
    declare
      private_table regclass;
    begin
      for private_table in
        select c.oid::regclass
          from pg_catalog.pg_class c
         where c.relnamespace = 'agentd'::regnamespace
           and c.relkind in ('r', 'p')
           and c.relname not in ('migrations', 'migration_lock')
      loop
        execute format('alter table %s enable row level security', private_table);
      end loop;
    end
    $$;
    `,
  );
}

async function grantSchemas(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    revoke all on schema agentd from public;
    grant usage on schema agentd to authenticated, service_role, agentd_worker;
    grant usage, create on schema agentd to agentd_owner;

    do $$
    declare
      vector_home text := (
        select n.nspname
          from pg_catalog.pg_extension e
          join pg_catalog.pg_namespace n on n.oid = e.extnamespace
         where e.extname = 'vector'
      );
      shim        text;
    begin
      -- Whatever is refused here belongs to someone else, who has set it up (a Supabase project) or must be asked.
      begin
        grant usage on schema public to authenticated, service_role, agentd_worker;
        grant usage, create on schema public to agentd_owner;
        execute format('grant usage on schema %I to agentd_owner, agentd_worker', vector_home);
      exception when insufficient_privilege then
        raise warning 'agentd: % may not grant the use of schema public or %', current_user, vector_home;
      end;
      begin
        grant usage on schema auth to authenticated, service_role, agentd_worker, agentd_owner;
        grant select on auth.users to agentd_worker;
        grant select, insert, references on auth.users to agentd_owner;
        -- Who else may read somebody else's table of users is not ours to say.
        if exists (select 1 from agentd.platform_objects where name = 'auth.users') then
          grant select on auth.users to service_role;
        end if;
      exception when insufficient_privilege then
        raise warning 'agentd: % may not grant the use of auth.users', current_user;
      end;
      for shim in select name from agentd.platform_objects where kind = 'function' loop
        execute format('revoke all on function %s from public', shim);
        execute format('grant execute on function %s to authenticated, service_role, agentd_worker, agentd_owner', shim);
      end loop;
    end
    $$;
    `,
  );
}

async function grantTables(db: Kysely<unknown>, made: Rules): Promise<void> {
  const statements: string[] = [];
  for (const [table, rule] of made) {
    // A Supabase project grants everything on new tables of public to everyone; so take it back first.
    statements.push(`revoke all on public.${table} from public, anon, authenticated;`);
    statements.push(
      `grant select, insert, update, delete on public.${table} to service_role, agentd_worker;`,
    );
    const writes = (['insert', 'update', 'delete'] as const).filter((command) => rule[command] !== undefined);
    if (writes.length > 0) statements.push(`grant ${writes.join(', ')} on public.${table} to authenticated;`);
    if (secretColumns[table] === undefined)
      statements.push(`grant select on public.${table} to authenticated;`);
  }
  await runSql(db, sql.raw(statements.join('\n')));

  const readable: string[] = [];
  for (const [table, secrets] of Object.entries(secretColumns)) {
    const columns = await sql<{ name: string }>`
      select quote_ident(a.attname) as name
        from pg_catalog.pg_attribute a
       where a.attrelid = ${sql.lit(`public.${table}`)}::regclass
         and a.attnum > 0
         and not a.attisdropped
       order by a.attnum`.execute(db);
    const names = columns.rows.map((row) => row.name).filter((name) => !secrets.includes(name));
    readable.push(`grant select (${names.join(', ')}) on public.${table} to authenticated;`);
  }
  await runSql(db, sql.raw(readable.join('\n')));

  await runSql(
    db,
    sql`
    -- So are sequences; an identity column needs no right on its own.
    do $$
    declare
      sequence regclass;
    begin
      for sequence in
        select d.objid::regclass
          from pg_catalog.pg_depend d
          join pg_catalog.pg_class s on s.oid = d.objid and s.relkind = 'S'
          join pg_catalog.pg_class c on c.oid = d.refobjid
         where d.classid = 'pg_class'::regclass
           and d.refclassid = 'pg_class'::regclass
           and d.deptype in ('a', 'i')
           and c.relnamespace = 'public'::regnamespace
           and c.relname = any (${names(tables)})
      loop
        execute format('revoke all on sequence %s from public, anon, authenticated', sequence);
      end loop;
    end
    $$;

    do $$
    declare
      private_table record;
    begin
      for private_table in
        select c.oid::regclass as name, c.relname, c.relkind
          from pg_catalog.pg_class c
         where c.relnamespace = 'agentd'::regnamespace
           and c.relkind in ('r', 'p', 'v', 'm')
           and not c.relispartition
      loop
        if private_table.relkind in ('v', 'm') or private_table.relname in ('migrations', 'migration_lock', 'platform_objects') then
          execute format('grant select on %s to service_role, agentd_worker', private_table.name);
        else
          execute format('grant select, insert, update, delete on %s to service_role, agentd_worker', private_table.name);
        end if;
      end loop;
    end
    $$;
    grant usage, select on all sequences in schema agentd to service_role, agentd_worker;
    `,
  );
}

async function grantViews(db: Kysely<unknown>): Promise<void> {
  const found = await sql<{ name: string }>`
    select c.relname as name from pg_catalog.pg_class c
     where c.relnamespace = 'public'::regnamespace and c.relkind = 'v' and c.relname = any (${names(publicViews)})`.execute(
    db,
  );
  const statements = found.rows.flatMap(({ name }) => [
    `revoke all on public.${name} from public, anon, authenticated;`,
    `grant select on public.${name} to authenticated, service_role, agentd_worker;`,
  ]);
  await runSql(db, sql.raw(statements.join('\n')));
}

/** An SQL array of names. */
export const names = (list: readonly string[]) => sql.raw(`array[${quotedList(list)}]`);

function quotedList(list: readonly string[]): string {
  return list.map((name) => `'${name}'`).join(', ');
}

/** Whether the function `p` of schema public is one of ours, and not an application's of the same name with other arguments. */
export const ourPublicFunction = sql.raw(`(
  p.proname = any (array[${quotedList(publicFunctions.filter((name) => publicArguments[name] === undefined))}]::text[])
  or p.proname || '(' || regexp_replace(replace(pg_catalog.oidvectortypes(p.proargtypes), 'public.', ''), '[^ ]+\\.vector\\M', 'vector') || ')'
     = any (array[${quotedList(Object.entries(publicArguments).map(([name, types]) => `${name}(${types})`))}])
)`);

async function grantFunctions(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    do $$
    declare
      f record;
    begin
      for f in
        select p.oid::regprocedure as signature,
               p.pronamespace = 'agentd'::regnamespace as is_private,
               p.proname
          from pg_catalog.pg_proc p
         where p.pronamespace = 'agentd'::regnamespace
            or (p.pronamespace = 'public'::regnamespace
                and ${ourPublicFunction}
                and not exists (
                  select 1 from pg_catalog.pg_depend d
                   where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e'
                ))
      loop
        execute format('revoke all on function %s from public, anon, authenticated', f.signature);
        execute format('grant execute on function %s to service_role, agentd_worker', f.signature);
        if (f.is_private and f.proname = any (${names(callableHelpers)}))
           or (not f.is_private and f.proname <> all (${names(serviceOnlyFunctions)})) then
          execute format('grant execute on function %s to authenticated', f.signature);
        end if;
      end loop;
    end
    $$;
    `,
  );
}

/**
 * A policy lets the worker see what it works on, also where agentd_worker has BYPASSRLS: members of a role inherit its
 * rights and its policies, never its attributes, and daemons log in as members.
 */
async function coverWorker(db: Kysely<unknown>): Promise<void> {
  await runSql(
    db,
    sql`
    do $$
    declare
      t regclass;
    begin
      for t in
        select c.oid::regclass
          from pg_catalog.pg_class c
         where c.relkind in ('r', 'p')
           and c.relrowsecurity
           and not c.relispartition
           and (c.relnamespace = 'agentd'::regnamespace
                or (c.relnamespace = 'public'::regnamespace and c.relname = any (${names(tables)})))
           and not exists (
             select 1 from pg_catalog.pg_policy p where p.polrelid = c.oid and p.polname = 'agentd_worker_all')
      loop
        execute format('create policy agentd_worker_all on %s for all to agentd_worker using (true) with check (true)', t);
      end loop;
    end
    $$;
    `,
  );
}

/** Whether the migrating role may act as agentd_owner; to be a member is not enough from PostgreSQL 16. */
const actsAsOwner = `pg_catalog.pg_has_role(
  current_user, 'agentd_owner', case when current_setting('server_version_num')::int >= 160000 then 'SET' else 'MEMBER' end)`;

/**
 * Whether definer functions could do their work as agentd_owner. On a Supabase project they could not: nobody but Supabase can
 * give that role the use of auth.users, whose row security would hide every user from it.
 */
const ownerCanWork = `
  pg_catalog.has_schema_privilege('agentd_owner', 'public', 'CREATE')
  and pg_catalog.has_schema_privilege('agentd_owner', 'auth', 'USAGE')
  and pg_catalog.has_table_privilege('agentd_owner', 'auth.users', 'SELECT')
  and pg_catalog.has_table_privilege('agentd_owner', 'auth.users', 'INSERT')
  and not exists (
    select 1
      from pg_catalog.pg_class c, pg_catalog.pg_roles r
     where c.oid = 'auth.users'::regclass
       and c.relrowsecurity
       and r.rolname = 'agentd_owner'
       and not (r.rolsuper or r.rolbypassrls)
  )`;

/**
 * Gives everything to agentd_owner, as whom definer functions then run. Where that role could not do their work, or the migrating
 * role may not act as it, everything stays with the migrating role, or goes back to it.
 */
async function handOver(db: Kysely<unknown>): Promise<void> {
  await changeOwner(db, 'agentd_owner', `${actsAsOwner} and ${ownerCanWork}`);
  await changeOwner(
    db,
    'current_user',
    `${actsAsOwner} and not (${ownerCanWork})
     and exists (
       select 1 from pg_catalog.pg_class c
        where c.oid = 'public.workspaces'::regclass and c.relowner = 'agentd_owner'::regrole
     )`,
  );
}

/** Gives tables, views and functions to a role, where `condition` holds. */
export async function changeOwner(db: Kysely<unknown>, owner: string, condition: string): Promise<void> {
  await runSql(
    db,
    sql`
    do $$
    declare
      statement text;
    begin
      if not (${sql.raw(condition)}) then
        return;
      end if;
      for statement in
        select format('alter %s %s owner to %s',
                      case c.relkind when 'v' then 'view' when 'm' then 'materialized view' else 'table' end,
                      c.oid::regclass, ${sql.lit(owner)})
          from pg_catalog.pg_class c
         where c.relkind in ('r', 'p', 'v', 'm')
           and (   (c.relnamespace = 'agentd'::regnamespace and c.relname not in ('migrations', 'migration_lock'))
                or (c.relnamespace = 'public'::regnamespace and c.relname = any (${names([...tables, ...publicViews])}))
                or c.relnamespace::regnamespace::text = any (${names(documentSchemas)}))
        union all
        select format('alter function %s owner to %s', p.oid::regprocedure, ${sql.lit(owner)})
          from pg_catalog.pg_proc p
         where (   p.pronamespace = 'agentd'::regnamespace
                or (p.pronamespace = 'public'::regnamespace and ${ourPublicFunction})
                or p.pronamespace::regnamespace::text = any (${names(documentSchemas)}))
           and not exists (
             select 1 from pg_catalog.pg_depend d
              where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e'
           )
      loop
        execute statement;
      end loop;
    end
    $$;
    `,
  );
}
