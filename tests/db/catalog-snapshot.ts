import { column, type Runner } from './schema-support.ts';

const schemas = `('agentd', 'public', 'auth')`;

/** Members of extensions, which are not ours to compare. */
const ofExtension = (catalog: string, oid: string): string =>
  `exists (select 1 from pg_depend d where d.classid = '${catalog}'::regclass and d.objid = ${oid} and d.deptype = 'e')`;

/** Objects made at run time carry the prefix p_; Kysely's own record is not part of the schema. */
const named = `n.nspname in ${schemas} and c.relname !~ '^p_' and c.relname !~ '^migration'`;

const parts: readonly string[] = [
  `select format('schema %s %s', nspname, nspacl) from pg_namespace where nspname in ${schemas} and nspname <> 'public'`,
  `select format('extension %s', extname) from pg_extension`,
  `select format('relation %s.%s %s rls=%s owner=%s acl=%s options=%s', n.nspname, c.relname, c.relkind, c.relrowsecurity,
                 c.relowner::regrole, (select array_agg(x::text order by x::text) from unnest(c.relacl) x), c.reloptions)
     from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where ${named} and c.relkind in ('r', 'p', 'v', 'm', 'S') and not ${ofExtension('pg_class', 'c.oid')}`,
  `select format('column %s.%s.%s %s notnull=%s default=%s generated=%s identity=%s acl=%s', n.nspname, c.relname, a.attname,
                 format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid), a.attgenerated, a.attidentity,
                 (select array_agg(x::text order by x::text) from unnest(a.attacl) x))
     from pg_attribute a
     join pg_class c on c.oid = a.attrelid
     join pg_namespace n on n.oid = c.relnamespace
     left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    where ${named} and c.relkind in ('r', 'p', 'v', 'm') and a.attnum > 0 and not a.attisdropped`,
  `select format('constraint %s.%s %s %s', n.nspname, c.relname, k.conname, pg_get_constraintdef(k.oid))
     from pg_constraint k join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace
    where ${named}`,
  `select format('index %s', pg_get_indexdef(i.indexrelid))
     from pg_index i join pg_class c on c.oid = i.indrelid join pg_namespace n on n.oid = c.relnamespace
    where ${named}`,
  `select format('view %s.%s %s', n.nspname, c.relname, pg_get_viewdef(c.oid))
     from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where ${named} and c.relkind in ('v', 'm')`,
  `select format('trigger %s', pg_get_triggerdef(t.oid))
     from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
    where ${named} and not t.tgisinternal`,
  `select format('policy %s.%s %s %s %s using=%s check=%s', n.nspname, c.relname, p.polname, p.polcmd, p.polroles::regrole[],
                 pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
     from pg_policy p join pg_class c on c.oid = p.polrelid join pg_namespace n on n.oid = c.relnamespace
    where ${named}`,
  `select format('function %s owner=%s acl=%s %s', p.oid::regprocedure, p.proowner::regrole,
                 (select array_agg(x::text order by x::text) from unnest(p.proacl) x), pg_get_functiondef(p.oid))
     from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where n.nspname in ${schemas} and p.prokind in ('f', 'p') and not ${ofExtension('pg_proc', 'p.oid')}`,
  `select format('enum %s.%s %s', n.nspname, t.typname, array_agg(e.enumlabel order by e.enumsortorder))
     from pg_type t join pg_namespace n on n.oid = t.typnamespace join pg_enum e on e.enumtypid = t.oid
    where n.nspname in ${schemas} group by n.nspname, t.typname`,
  `select format('comment %s.%s %s %s', n.nspname, c.relname, d.objsubid, d.description)
     from pg_description d join pg_class c on c.oid = d.objoid and d.classoid = 'pg_class'::regclass
     join pg_namespace n on n.oid = c.relnamespace
    where ${named}`,
];

/** Everything that makes up the schema, one line a fact, in a stable order, without oids. */
export async function catalogSnapshot(db: Runner): Promise<string[]> {
  const lines: string[] = [];
  for (const part of parts) lines.push(...(await column<string>(db, part)));
  return lines.sort();
}
