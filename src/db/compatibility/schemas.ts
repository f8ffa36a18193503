/** Makes and drops the documents' schemas. A migration that changes a documented column drops them before and makes them anew. */
import { type Kysely, sql } from 'kysely';
import { ourPublicFunction } from '../migrations/access.ts';
import { serviceOnlyFunctions, tableRules } from '../migrations/access-rules.ts';
import { runSql } from '../migrations/run-sql.ts';
import { type DocumentSpec, mapped } from './document.ts';
import { documents } from './documents.ts';
import { type PublicColumns, type PublicFunction, viewOf, wrapperOf, writerOf } from './generate.ts';

/** Makes the schema of every document: its tables and functions. The public ones must exist. */
export async function createDocumentSchemas(db: Kysely<unknown>): Promise<void> {
  const columns = await publicColumns(db);
  const functions = await namedFunctions(db);
  await runSql(db, sql.raw(secretColumn()));
  for (const document of documents) {
    const statements = [
      `create schema ${document.schema};`,
      `comment on schema ${document.schema} is 'The tables of document ${document.title}, as views of schema public.';`,
      ...Object.entries(document.tables).map(([name, table]) => viewOf(document, name, table, columns)),
      ...document.functions.map((name) => wrapperOf(document, functionNamed(functions, name))),
      ...(document.schema === 'agent_platform' ? [CURRENT_USER_ID] : []),
      ...grants(document),
    ];
    await runSql(db, sql.raw(statements.join('\n')));
  }
}

/** Makes views of the documents, by "schema.table", and what writes them, anew in their places: they show the same columns as before. */
export async function remakeDocumentViews(db: Kysely<unknown>, views: readonly string[]): Promise<void> {
  const columns = await publicColumns(db);
  const made = documents.flatMap((document) =>
    Object.entries(document.tables)
      .filter(([name]) => views.includes(`${document.schema}.${name}`))
      .map(([name, table]) => viewOf(document, name, table, columns)),
  );
  if (made.length !== views.length)
    throw new Error(`Not all of these are views of documents: ${views.join(', ')}.`);
  await runSql(
    db,
    sql.raw(made.join('\n').replace(/^create (view|function|trigger) /gm, 'create or replace $1 ')),
  );
}

/** Takes them away. What an application has put into one of them stops it, loudly. */
export async function dropDocumentSchemas(db: Kysely<unknown>): Promise<void> {
  const functions = await namedFunctions(db);
  for (const document of documents.toReversed()) {
    const tables = Object.entries(document.tables);
    const writers = await sql<{ name: string }>`
      select p.oid::regprocedure::text as name from pg_catalog.pg_proc p
       where p.pronamespace = 'agentd'::regnamespace and p.proname like ${`write\\_${document.schema}\\_%`}`.execute(
      db,
    );
    const theirs = tables.map(([name]) => writerOf(document, name));
    const statements = [
      ...document.functions.map((name) => {
        const { signature } = functionNamed(functions, name);
        return `drop function ${document.schema}.${name}(${signature});`;
      }),
      ...(document.schema === 'agent_platform' ? ['drop function agent_platform.current_user_id();'] : []),
      // with their triggers; the writers know the views' row types
      ...tables.map(([name]) => `drop view ${document.schema}.${name};`),
      `drop schema ${document.schema};`,
    ];
    const own = writers.rows.map((row) => row.name).filter((name) => theirs.includes(name));
    await runSql(db, sql.raw([...statements, ...own.map((name) => `drop function ${name};`)].join('\n')));
  }
  await runSql(
    db,
    sql`drop function agentd.has_own_users(); drop function agentd.secret_column(text, uuid);`,
  );
}

/** The document's policies compare it with text ids. */
const CURRENT_USER_ID = `
create function agent_platform.current_user_id() returns text
language sql stable set search_path = pg_catalog, pg_temp as $$ select public.current_user_id()::text $$;`;

/** Every secret column of the documents, by name. What is asked for is fixed by the views; the asker decides nothing but the row. */
function secretColumn(): string {
  const all = new Set(
    documents.flatMap((document) =>
      Object.values(document.tables).flatMap((table) =>
        Object.entries(table.columns)
          .map(([name, spec]) => mapped(name, spec))
          .filter((column) => column.secret)
          .map((column) => `${table.from}.${column.from}`),
      ),
    ),
  );
  const cases = [...all].map((name) => {
    const [table, column] = name.split('.');
    return `    when '${name}' then return (select to_jsonb(t.${column}) from public.${table} t where t.id = p_id);`;
  });
  return `
-- A secret of a row as it is stored, for the platform; null for signed-in users, who may not read the column.
create function agentd.secret_column(p_column text, p_id uuid) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  if not agentd.is_service_caller() then
    return null;
  end if;
  case p_column
${cases.join('\n')}
  end case;
end
$$;`;
}

/** A view may be written by whom its table may be written by, and read by whoever its rows show themselves to. */
function grants(document: DocumentSpec): string[] {
  const { schema } = document;
  return [
    `grant usage on schema ${schema} to authenticated, service_role;`,
    // which is to own the views, and whose functions name them
    `grant usage, create on schema ${schema} to agentd_owner;`,
    ...Object.entries(document.tables).flatMap(([name, table]) => {
      const rule = table.from === 'auth.users' ? { update: 'own row' } : tableRules[table.from];
      const written =
        table.from === 'user_roles' && schema === 'agentcenter' ? tableRules.workspace_members : rule;
      const commands = (['insert', 'update', 'delete'] as const).filter(
        (command) => (written as Record<string, string | undefined> | undefined)?.[command] !== undefined,
      );
      return [
        `revoke all on ${schema}.${name} from public, anon;`,
        `grant ${['select', ...commands].join(', ')} on ${schema}.${name} to authenticated;`,
        `grant select, insert, update, delete on ${schema}.${name} to service_role;`,
      ];
    }),
    `revoke all on all functions in schema ${schema} from public, anon;`,
    `grant execute on all functions in schema ${schema} to service_role;`,
    ...document.functions
      .filter((name) => !serviceOnlyFunctions.includes(name))
      .map((name) => `grant execute on function ${schema}.${name} to authenticated;`),
    ...(schema === 'agent_platform'
      ? ['grant execute on function agent_platform.current_user_id to authenticated;']
      : []),
  ];
}

async function publicColumns(db: Kysely<unknown>): Promise<PublicColumns> {
  const { rows } = await sql<{ name: string; type: string; default: string | null }>`
    select c.relname || '.' || a.attname as name,
           case when t.typnamespace = 'public'::regnamespace and t.typtype = 'e' then 'public.' || t.typname
                else pg_catalog.format_type(a.atttypid, a.atttypmod) end as type,
           case when a.attgenerated = '' then pg_catalog.pg_get_expr(d.adbin, d.adrelid) end as default
      from pg_catalog.pg_class c
      join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
      join pg_catalog.pg_type t on t.oid = a.atttypid
      left join pg_catalog.pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
     where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')`.execute(db);
  return new Map(rows.map((row) => [row.name, { type: row.type, default: row.default }]));
}

async function namedFunctions(db: Kysely<unknown>): Promise<readonly PublicFunction[]> {
  const { rows } = await sql<PublicFunction>`
    select p.proname as name, pg_catalog.pg_get_function_arguments(p.oid) as arguments,
           coalesce(p.proargnames[1:p.pronargs], '{}') as "argumentNames",
           pg_catalog.pg_get_function_identity_arguments(p.oid) as signature,
           pg_catalog.pg_get_function_result(p.oid) as result,
           case p.provolatile when 'i' then 'immutable' when 's' then 'stable' else 'volatile' end as volatility
      from pg_catalog.pg_proc p
     where p.pronamespace = 'public'::regnamespace and ${ourPublicFunction}
       and not exists (select 1 from pg_catalog.pg_depend d
                        where d.classid = 'pg_catalog.pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')`.execute(
    db,
  );
  return rows;
}

function functionNamed(functions: readonly PublicFunction[], name: string): PublicFunction {
  const found = functions.filter((f) => f.name === name);
  if (found.length !== 1) throw new Error(`There are ${found.length} functions public.${name}.`);
  return found[0] as PublicFunction;
}
