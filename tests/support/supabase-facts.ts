/** What of a Supabase project is Supabase's: everything that must be as it was when agentd has gone. */
import type { Queryable } from '../../src/db/database.ts';

const SCHEMAS = `('public', 'auth', 'vault', 'storage', 'extensions', 'graphql_public', 'realtime')`;

/** Rights as text that does not depend on the order in which they were given; the owner's own are among them. */
const rights = (acl: string, kind: string, owner: string): string => `
  (select string_agg(format('%s:%s%s by %s', case a.grantee when 0 then 'public' else a.grantee::regrole::text end, a.privilege_type,
                            case when a.is_grantable then '*' else '' end, a.grantor::regrole),
                     ' ' order by a.grantee, a.privilege_type, a.grantor)
     from pg_catalog.aclexplode(coalesce(${acl}, pg_catalog.acldefault('${kind}', ${owner}))) a)`;

const QUERIES = [
  `select format('schema %s owner %s %s', nspname, nspowner::regrole, ${rights('nspacl', 'n', 'nspowner')})
     from pg_namespace where nspname in ${SCHEMAS}`,
  `select format('database owner %s %s', datdba::regrole, ${rights('datacl', 'd', 'datdba')})
     from pg_database where datname = current_database()`,
  `select format('extension %s %s in %s', extname, extversion, extnamespace::regnamespace) from pg_extension`,
  `select format('relation %s.%s %s owner %s rls %s %s %s options %s comment %s', n.nspname, c.relname, c.relkind, c.relowner::regrole,
                 c.relrowsecurity, c.relforcerowsecurity, ${rights('c.relacl', 'r', 'c.relowner')}, c.reloptions,
                 obj_description(c.oid, 'pg_class'))
     from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname in ${SCHEMAS} and c.relkind in ('r', 'p', 'v', 'm', 'S')`,
  `select format('column %s.%s.%s %s %s %s %s %s %s', n.nspname, c.relname, a.attname, a.attnum, format_type(a.atttypid, a.atttypmod),
                 a.attnotnull, a.attgenerated, pg_get_expr(d.adbin, d.adrelid), a.attacl)
     from pg_attribute a
     join pg_class c on c.oid = a.attrelid and c.relkind in ('r', 'v')
     join pg_namespace n on n.oid = c.relnamespace
     left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    where n.nspname in ${SCHEMAS} and a.attnum > 0`,
  `select format('constraint %s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
     from pg_constraint where connamespace::regnamespace::text in ${SCHEMAS}`,
  `select format('index %s %s', indexrelid::regclass, pg_get_indexdef(indexrelid))
     from pg_index i join pg_class c on c.oid = i.indrelid where c.relnamespace::regnamespace::text in ${SCHEMAS}`,
  `select format('trigger %s %s %s', tgrelid::regclass, tgenabled, pg_get_triggerdef(t.oid))
     from pg_trigger t join pg_class c on c.oid = t.tgrelid
    where not t.tgisinternal and c.relnamespace::regnamespace::text in ${SCHEMAS}`,
  `select format('policy %s %s', polrelid::regclass, polname) from pg_policy`,
  `select format('view %s.%s %s', schemaname, viewname, definition) from pg_views where schemaname in ${SCHEMAS}`,
  `select format('function %s owner %s %s %s %s %s', p.oid::regprocedure, p.proowner::regrole, p.prosecdef, p.proconfig, p.prosrc,
                 ${rights('p.proacl', 'f', 'p.proowner')})
     from pg_proc p where p.pronamespace::regnamespace::text in ${SCHEMAS}`,
  `select format('type %s.%s %s', n.nspname, t.typname, t.typtype)
     from pg_type t join pg_namespace n on n.oid = t.typnamespace where n.nspname in ${SCHEMAS}`,
  `select format('default %s %s %s %s', defaclrole::regrole, defaclnamespace::regnamespace, defaclobjtype, defaclacl)
     from pg_default_acl`,
  `select format('role %s %s%s%s%s%s%s%s %s', rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication,
                 rolbypassrls, rolconfig)
     from pg_roles where rolname !~ '^agentd_'`,
  `select format('member %s of %s admin %s', member::regrole, roleid::regrole, admin_option)
     from pg_auth_members where roleid::regrole::text !~ '^agentd_' and member::regrole::text !~ '^agentd_'`,
  `select format('schema there: %s', nspname) from pg_namespace where nspname !~ '^pg_(temp|toast_temp)'`,
];

/** One line a fact, sorted. What belongs to roles named agentd_… is left out: roles are the server's, and stay. */
export async function supabaseFacts(db: Queryable): Promise<string[]> {
  const facts: string[] = [];
  for (const query of QUERIES) {
    const rows = await db.query<{ fact: string }>(`select fact from (${query}) f (fact)`);
    facts.push(...rows.map((row) => row.fact));
  }
  return facts.sort();
}
