/** What the catalog says of access: functions, policies, views and the indexes that policies need, in every schema of ours. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { column } from './schema-support.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await testDatabase();
});
afterAll(() => db.dispose());

const documents = ['agentopia', 'agentopia_diagram', 'agentcenter', 'agent_platform', 'agentexpress'];
const ours = ['public', 'agentd', ...documents];

const functions = `
  select p.*, n.nspname
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace
   where n.nspname = any ($1)
     and not exists (
       select 1 from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')`;

describe('functions', () => {
  test('there are some in every schema but those without functions in their document', async () => {
    expect(
      await column(db.pool, `select distinct nspname::text from (${functions}) f order by 1`, [ours]),
    ).toEqual(expect.arrayContaining(['agent_platform', 'agentcenter', 'agentd', 'agentopia', 'public']));
  });

  test('have a fixed search_path in which nothing of the caller comes first, but for the clock, which names all in full', async () => {
    const open = `select f.oid::regprocedure::text from (${functions}) f
                   where not coalesce(f.proconfig, '{}') && array['search_path=pg_catalog, pg_temp']`;
    expect(await column(db.pool, open, [ours])).toEqual(['agentd.now()']);
    const body = `select btrim(p.prosrc, E' \\n') from pg_proc p where p.oid = 'agentd.now()'::regprocedure`;
    expect(await column(db.pool, body)).toEqual(['select pg_catalog.statement_timestamp()']);
  });

  test('run as their definer in schema agentd alone', async () => {
    const definers = `select f.oid::regprocedure::text from (${functions}) f where f.prosecdef and f.nspname <> 'agentd'`;
    expect(await column(db.pool, definers, [ours])).toEqual([]);
  });

  test('are for nobody by default, and never for anon', async () => {
    const open = `select f.oid::regprocedure::text from (${functions}) f
                   where has_function_privilege('anon', f.oid, 'EXECUTE')
                      or exists (select 1 from aclexplode(coalesce(f.proacl, acldefault('f', f.proowner))) a where a.grantee = 0)`;
    expect(await column(db.pool, open, [ours])).toEqual([]);
  });

  test('of a document are callable where the function of schema public that they stand for is', async () => {
    const wrong = `
      select f.oid::regprocedure::text
        from (${functions}) f
        left join pg_proc p on p.proname = f.proname and p.pronamespace = 'public'::regnamespace
       where f.nspname = any ($2)
         and has_function_privilege('authenticated', f.oid, 'EXECUTE')
             is distinct from coalesce(has_function_privilege('authenticated', p.oid, 'EXECUTE'), false)`;
    expect(await column(db.pool, wrong, [ours, documents])).toEqual([]);
  });

  test('of triggers are called by triggers alone', async () => {
    const callable = `select f.oid::regprocedure::text from (${functions}) f
                       where f.prorettype = 'trigger'::regtype and has_function_privilege('authenticated', f.oid, 'EXECUTE')`;
    expect(await column(db.pool, callable, [ours])).toEqual([]);
  });
});

type Policy = { readonly name: string; readonly text: string };

async function policies(): Promise<Policy[]> {
  const { rows } = await db.pool.query<Policy>(
    `select tablename || '.' || policyname as name, x.text
       from pg_policies, lateral (values (qual), (with_check)) x (text)
      where schemaname = any ($1) and 'authenticated' = any (roles) and x.text is not null`,
    [ours],
  );
  return rows;
}

/** The calls in an expression that are made for every row: outside subqueries, and in subqueries that read a table. */
function callsPerRow(expression: string): string[] {
  const found: string[] = [];
  const read = (text: string, isQuery: boolean): void => {
    let flat = '';
    for (let i = 0; i < text.length; i++) {
      if (text[i] === '(' && text.slice(i).startsWith('( SELECT')) {
        let depth = 0;
        let end = i;
        do {
          if (text[end] === '(') depth++;
          if (text[end] === ')') depth--;
          end++;
        } while (depth > 0);
        read(text.slice(i + 1, end - 1), true);
        flat += '()';
        i = end - 1;
      } else flat += text[i];
    }
    // Without a table of its own a subquery is evaluated once a statement.
    if (isQuery && !/\bFROM\b/.test(flat)) return;
    // An array that is there is never null: what follows it in coalesce is never called.
    const reached = flat.replaceAll(/COALESCE\(ARRAY\(\), agentd\.no_workspaces\(\)\)/g, 'ARRAY()');
    found.push(...[...reached.matchAll(/([a-z_][\w.]*)\(/g)].map((match) => match[1] as string));
  };
  read(expression, false);
  return found;
}

describe('policies', () => {
  test('the search for calls made per row finds them', () => {
    expect(callsPerRow(`(has_role(workspace_id, 'VIEWER'::app_role) OR is_public)`)).toEqual(['has_role']);
    expect(callsPerRow('(user_id = auth.uid())')).toEqual(['auth.uid']);
    expect(callsPerRow('(id IN ( SELECT t.id FROM teams t WHERE (t.user_id = current_user_id())))')).toEqual([
      'current_user_id',
    ]);
    expect(
      callsPerRow('(id IN ( SELECT t.id FROM teams t WHERE (t.user_id = ( SELECT current_user_id() AS c))))'),
    ).toEqual([]);
    expect(callsPerRow('(workspace_id = ANY (ARRAY( SELECT agentd.my_workspace_ids() AS my)))')).toEqual([]);
  });

  test('call no function for every row', async () => {
    const all = await policies();
    expect(all.length).toBeGreaterThan(150);
    const slow = all.flatMap(({ name, text }) => callsPerRow(text).map((call) => `${name}: ${call}`));
    expect(slow).toEqual([]);
  });

  test('name first a column that an index begins with', async () => {
    const bare = await column(
      db.pool,
      `with used as (
         select p.polrelid, a.attnum, a.attname
           from pg_policy p
           join pg_class c on c.oid = p.polrelid and c.relnamespace = 'public'::regnamespace
           join pg_attribute a on a.attrelid = p.polrelid and a.attnum > 0 and not a.attisdropped
          where p.polname like '%\\_select'
            and pg_get_expr(p.polqual, p.polrelid) ~ format('\\m%s (=|IN)', a.attname)
       )
       select u.polrelid::regclass || '.' || u.attname
         from used u
        where not exists (
          select 1 from pg_index i where i.indrelid = u.polrelid and i.indkey[0] = u.attnum and i.indpred is null)`,
    );
    expect(bare).toEqual([]);
  });
});

describe('views', () => {
  /** Read with their owner's rights, behind a condition of their own, and why. */
  const asOwner = {
    'agentexpress.users': 'nobody signed in may read auth.users: the view shows each himself',
    agent_activity: 'a materialized view knows no row security: the view asks for the caller’s workspaces',
    usage_by_agent: 'a materialized view knows no row security: the view asks for the caller’s workspaces',
    usage_by_model: 'a materialized view knows no row security: the view asks for the caller’s workspaces',
    workspace_overview:
      'a materialized view knows no row security: the view asks for the caller’s workspaces',
  };

  test('that signed-in users may read are read with their own rights, or guarded by a condition', async () => {
    const { rows } = await db.pool.query<{
      name: string;
      invoker: boolean;
      barrier: boolean;
      writable: boolean;
    }>(
      `select c.oid::regclass::text as name,
              coalesce(c.reloptions, '{}') && array['security_invoker=true', 'security_invoker=on'] as invoker,
              coalesce(c.reloptions, '{}') && array['security_barrier=true', 'security_barrier=on'] as barrier
         from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = any ($1) and c.relkind in ('v', 'm')
          and has_schema_privilege('authenticated', n.oid, 'USAGE')
          and has_any_column_privilege('authenticated', c.oid, 'SELECT, INSERT, UPDATE')`,
      [ours],
    );
    expect(rows.length).toBeGreaterThan(70);
    const others = rows.filter((row) => !row.invoker);
    expect(others.map((row) => row.name).sort()).toEqual(Object.keys(asOwner).sort());
    expect(others.filter((row) => !row.barrier)).toEqual([]);
  });

  test('are nothing to anon', async () => {
    const open = await column(
      db.pool,
      `select c.oid::regclass::text
         from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = any ($1) and c.relkind in ('v', 'm')
          and has_any_column_privilege('anon', c.oid, 'SELECT, INSERT, UPDATE, REFERENCES')`,
      [ours],
    );
    expect(open).toEqual([]);
  });
});

test('no index is the beginning of another, but where a document gives its name', async () => {
  const redundant = await column(
    db.pool,
    `select a.indexrelid::regclass::text
       from pg_index a
       join pg_index b on b.indrelid = a.indrelid and b.indexrelid <> a.indexrelid
       join pg_class t on t.oid = a.indrelid and t.relnamespace::regnamespace::text in ('public', 'agentd') and not t.relispartition
       join pg_class i on i.oid = a.indexrelid
       join pg_class j on j.oid = b.indexrelid and j.relam = i.relam
       join pg_am m on m.oid = i.relam and m.amname = 'btree'
      where not a.indisunique and a.indexprs is null and b.indexprs is null
        and coalesce(pg_get_expr(a.indpred, a.indrelid), '') = coalesce(pg_get_expr(b.indpred, b.indrelid), '')
        and b.indkey::text || ' ' like a.indkey::text || ' %'
        and (b.indisunique or a.indkey::text <> b.indkey::text or a.indexrelid < b.indexrelid)
      order by 1`,
  );
  expect(redundant).toEqual(['agent_api_connections_agent_id_idx', 'idx_agents_workspace']);
});
