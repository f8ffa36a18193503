/**
 * The schema as facts read from the catalog: what two databases of one version have in common.
 *
 * Left out is what may differ without being a difference: oids, the partitions that agentd makes as time goes on
 * (`p_…`), Kysely's own record of migrations, members of extensions, pg-boss's schema.
 */
import { documents } from './compatibility/documents.ts';
import type { Queryable } from './database.ts';

export type FactKind =
  | 'schema'
  | 'extension'
  | 'enum'
  | 'relation'
  | 'column'
  | 'constraint'
  | 'index'
  | 'trigger'
  | 'policy'
  | 'grant'
  | 'comment'
  | 'view'
  | 'function';

/** One thing about the schema. Two catalogs are the same when they have the same facts, whatever their order. */
export type Fact = {
  readonly kind: FactKind;
  /** Empty for extensions. */
  readonly schema: string;
  /** Table, view or sequence that it is about; a function's signature; empty where there is none. */
  readonly relation: string;
  /** Name of the column, constraint, index …; a grant's role; empty where there is none. */
  readonly name: string;
  /** Place among its like, as a table's columns have it; not part of what must be equal. */
  readonly position: number;
  readonly text: string;
};

const ofDocuments = documents.map((document) => `'${document.schema}'`).join(', ');
const schemas = `('agentd', 'public', 'auth', ${ofDocuments})`;

const notOfExtension = (catalog: string, oid: string): string =>
  `not exists (select 1 from pg_catalog.pg_depend d
                where d.classid = 'pg_catalog.${catalog}'::regclass and d.objid = ${oid} and d.deptype = 'e')`;

const relations = `
  pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace and n.nspname in ${schemas}
   and c.relname !~ '^p_' and c.relname !~ '^migration' and not c.relispartition
   and ${notOfExtension('pg_class', 'c.oid')}`;

const functions = `
  pg_catalog.pg_proc p
  join pg_catalog.pg_namespace n on n.oid = p.pronamespace and n.nspname in ${schemas}
   and p.prokind in ('f', 'p') and ${notOfExtension('pg_proc', 'p.oid')}`;

/** `identity` and not regprocedure's own text: that leaves the schema out where search_path has it. */
const signature = `p.proname || '(' || pg_catalog.pg_get_function_identity_arguments(p.oid) || ')'`;

/** Rights by role, from an access list; the owner's own are part of owning. */
const grants = (acl: string, owner: string): string => `
  lateral (
    select case when a.grantee = 0 then 'public' else a.grantee::regrole::text end as role,
           string_agg(lower(a.privilege_type) || case when a.is_grantable then ' with grant option' else '' end, ', '
                      order by a.privilege_type) as rights
      from pg_catalog.aclexplode(${acl}) a
     where a.grantee <> ${owner}
     group by a.grantee
  ) g`;

const relationKind = `case c.relkind when 'r' then 'table' when 'p' then 'partitioned table' when 'v' then 'view'
                                     when 'm' then 'materialized view' else 'sequence' end`;

/** Each selects kind, schema, relation, name, position, text. */
const queries: readonly string[] = [
  `select 'schema' as kind, n.nspname as schema, '' as relation, '' as name, 0 as position, '' as text
     from pg_catalog.pg_namespace n where n.nspname in ('agentd', 'auth', ${ofDocuments})`,
  `select 'grant', n.nspname, '', g.role, 0, g.rights
     from pg_catalog.pg_namespace n, ${grants('n.nspacl', 'n.nspowner')}
    where n.nspname in ('agentd', 'auth', ${ofDocuments})`,
  `select 'extension', '', '', extname, 0, '' from pg_catalog.pg_extension`,
  `select 'enum', n.nspname, '', t.typname, 0, string_agg(e.enumlabel, ', ' order by e.enumsortorder)
     from pg_catalog.pg_type t
     join pg_catalog.pg_namespace n on n.oid = t.typnamespace and n.nspname in ${schemas}
     join pg_catalog.pg_enum e on e.enumtypid = t.oid
    group by n.nspname, t.typname`,
  `select 'relation', n.nspname, c.relname, '', 0,
          concat_ws(', ', ${relationKind}, 'owner ' || c.relowner::regrole,
                    case when c.relrowsecurity then 'row security' end,
                    case when c.relkind = 'p' then 'by ' || pg_catalog.pg_get_partkeydef(c.oid) end,
                    array_to_string(c.reloptions, ', '))
     from ${relations} where c.relkind in ('r', 'p', 'v', 'm', 'S')`,
  `select 'column', n.nspname, c.relname, a.attname, a.attnum,
          concat_ws(' ', pg_catalog.format_type(a.atttypid, a.atttypmod),
                    case when a.attnotnull then 'not null' end,
                    case when a.attidentity <> '' then
                      'generated ' || case a.attidentity when 'a' then 'always' else 'by default' end || ' as identity' end,
                    case when a.attgenerated <> '' then 'generated always as (' else 'default ' end
                      || pg_catalog.pg_get_expr(b.adbin, b.adrelid)
                      || case when a.attgenerated <> '' then ')' else '' end)
     from pg_catalog.pg_attribute a
     join ${relations} on c.oid = a.attrelid
     left join pg_catalog.pg_attrdef b on b.adrelid = a.attrelid and b.adnum = a.attnum
    where c.relkind in ('r', 'p', 'v', 'm') and a.attnum > 0 and not a.attisdropped`,
  // From PostgreSQL 18 "not null" is a constraint as well; the column says it on every version.
  `select 'constraint', n.nspname, c.relname, k.conname, 0, pg_catalog.pg_get_constraintdef(k.oid)
     from pg_catalog.pg_constraint k join ${relations} on c.oid = k.conrelid where k.contype <> 'n'`,
  `select 'index', n.nspname, c.relname, x.relname, 0, pg_catalog.pg_get_indexdef(i.indexrelid)
     from pg_catalog.pg_index i
     join pg_catalog.pg_class x on x.oid = i.indexrelid
     join ${relations} on c.oid = i.indrelid`,
  `select 'trigger', n.nspname, c.relname, t.tgname, 0, pg_catalog.pg_get_triggerdef(t.oid)
     from pg_catalog.pg_trigger t join ${relations} on c.oid = t.tgrelid where not t.tgisinternal`,
  `select 'policy', n.nspname, c.relname, p.polname, 0,
          concat_ws(' ', case when p.polpermissive then null else 'restrictive' end,
                    'for ' || case p.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update'
                                            when 'd' then 'delete' else 'all' end,
                    'to ' || (select string_agg(case when r = 0 then 'public' else r::regrole::text end, ', ' order by r::regrole::text)
                                from unnest(p.polroles) r),
                    'using (' || pg_catalog.pg_get_expr(p.polqual, p.polrelid) || ')',
                    'with check (' || pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid) || ')')
     from pg_catalog.pg_policy p join ${relations} on c.oid = p.polrelid`,
  `select 'grant', n.nspname, c.relname, g.role, 0, g.rights
     from ${relations}, ${grants('c.relacl', 'c.relowner')} where c.relkind in ('r', 'p', 'v', 'm', 'S')`,
  // Rights on columns, one fact a role: "select (id, name, …)".
  `select 'grant', n.nspname, c.relname, s.role, 1, s.rights
     from ${relations},
          lateral (
            select role, string_agg(privilege || ' (' || columns || ')', ', ' order by privilege) as rights
              from (
                select g.grantee::regrole::text as role, lower(g.privilege_type) as privilege,
                       string_agg(a.attname, ', ' order by a.attnum) as columns
                  from pg_catalog.pg_attribute a, pg_catalog.aclexplode(a.attacl) g
                 where a.attrelid = c.oid and not a.attisdropped
                 group by g.grantee, g.privilege_type
              ) by_privilege
             group by role
          ) s
    where c.relkind in ('r', 'p', 'v', 'm')`,
  `select 'comment', n.nspname, c.relname, coalesce(a.attname, ''), d.objsubid, d.description
     from pg_catalog.pg_description d
     join ${relations} on c.oid = d.objoid
     left join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = d.objsubid and d.objsubid > 0
    where d.classoid = 'pg_catalog.pg_class'::regclass`,
  `select 'view', n.nspname, c.relname, '', 0, pg_catalog.pg_get_viewdef(c.oid)
     from ${relations} where c.relkind in ('v', 'm')`,
  `select 'function', n.nspname, ${signature}, p.proowner::regrole::text, 0, pg_catalog.pg_get_functiondef(p.oid)
     from ${functions}`,
  `select 'grant', n.nspname, ${signature}, g.role, 0, g.rights
     from ${functions}, ${grants(`coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))`, 'p.proowner')}`,
];

/**
 * Reads the facts, sorted by their text's code units: the same list on every run and machine.
 *
 * Definitions name schema public where search_path lacks it, so compare what was read with one search_path; and
 * servers of different versions print some definitions differently.
 */
export async function readCatalog(db: Queryable): Promise<Fact[]> {
  const facts: Fact[] = [];
  for (const query of queries) {
    const text = `select kind::text, schema::text, relation::text, name::text, position::integer, text::text from (${query})
                    as fact (kind, schema, relation, name, position, text)`;
    facts.push(...(await db.query<Fact>(text)));
  }
  return facts
    .map((fact) => ({ fact, key: factLine(fact) }))
    .sort((a, b) => (a.key < b.key ? -1 : a.key > b.key ? 1 : 0))
    .map(({ fact }) => fact);
}

/** A fact as one line of text: what is compared between two databases. */
export function factLine(fact: Fact): string {
  const subject = [fact.schema, fact.relation, fact.name].filter((part) => part !== '').join('.');
  return `${fact.kind} ${subject} ${fact.text}`.trimEnd();
}
