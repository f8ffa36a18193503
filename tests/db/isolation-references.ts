/** The references between tenants' rows, read from the catalog, and which of them cross from one tenant to another. */
import type { Runner } from './schema-support.ts';

/** A column of schema public that says to which tenant's row another row belongs. */
export type Reference = {
  readonly table: string;
  readonly column: string;
  readonly parent: string;
  /** A foreign key; false for a workspace_id that is part of a larger one, or of none. */
  readonly isKey: boolean;
};

/** Parents that belong to the platform, to which everybody's rows may point. */
const platform = [
  'roles',
  'llm_models',
  'service_providers',
  'integration_capabilities',
  'tool_catalog',
  'pricing_plans',
];

/** Parents that belong to a user: what is his may be used by his own agents, wherever they are. */
const owned = ['datastores', 'media_library', 'api_connections', 'user_integration_credentials'];

/** The one thing that crosses: a public agent, through these. */
export const throughPublicAgent = ['agent_logs', 'agent_messages', 'user_agents'];

/** Every foreign key between tables of schema public, and every column workspace_id. Users are nobody's (auth.users). */
export async function references(db: Runner): Promise<Reference[]> {
  const { rows } = await db.query<Reference>(
    `with keys as (
       select c.conrelid::regclass::text as "table", a.attname::text as "column", p.relname::text as parent, true as "isKey"
         from pg_constraint c
         join pg_class p on p.oid = c.confrelid and p.relnamespace = 'public'::regnamespace
         -- Of a key of two columns the one that is not the workspace's.
         join pg_attribute a on a.attrelid = c.conrelid and a.attnum = any (c.conkey)
        where c.contype = 'f' and c.connamespace = 'public'::regnamespace and c.conparentid = 0
          and (cardinality(c.conkey) = 1 or a.attname <> 'workspace_id')
          and p.relname <> all ($1)
     )
     select * from keys
      union all
     select c.relname::text, 'workspace_id', 'workspaces', false
       from pg_class c
       join pg_attribute a on a.attrelid = c.oid and a.attname = 'workspace_id'
      where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
        and not exists (select 1 from keys k where k."table" = c.relname and k."column" = 'workspace_id')
      order by 1, 2`,
    [platform],
  );
  return rows;
}

/**
 * A query for the references whose two ends lie in different workspaces: rows "table.column → parent". A row without a workspace of
 * its own lies where its first parent lies.
 */
export async function crossingQuery(db: Runner, all: readonly Reference[]): Promise<string> {
  const { rows } = await db.query<{ table: string; column: string }>(
    `select c.relname::text as table, a.attname::text as column
       from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
      where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and a.attnotnull`,
  );
  const required = new Set(rows.map((row) => `${row.table}.${row.column}`));
  /** The workspace in which a row lies, as an expression; null where it lies in none. */
  const home = (table: string, alias: string, depth = 0): string | null => {
    if (table === 'workspaces') return `${alias}.id`;
    const mine = all.filter((one) => one.table === table);
    if (mine.some((one) => one.column === 'workspace_id')) return `${alias}.workspace_id`;
    const first = mine.find((one) => required.has(`${table}.${one.column}`));
    if (first === undefined) return null;
    const parent = `p${depth}`;
    const above = home(first.parent, parent, depth + 1);
    return (
      above &&
      `(select ${above} from public.${first.parent} ${parent} where ${parent}.id = ${alias}.${first.column})`
    );
  };
  const parts = all
    .filter((one) => one.isKey)
    .map((one) => {
      const [inner, outer] = [home(one.table, 'c'), home(one.parent, 'o')];
      const allowed = [
        owned.includes(one.parent) ? `o.user_id = ${ownerOf(one.table)}` : 'false',
        one.parent === 'agents' && throughPublicAgent.includes(one.table) ? 'o.is_public' : 'false',
      ].join(' or ');
      return `select '${one.table}.${one.column} → ${one.parent}' as crossing
                from public.${one.table} c join public.${one.parent} o on o.id = c.${one.column}
               where ${inner ?? 'null'} <> ${outer ?? 'null'} and (${allowed}) is not true`;
    });
  return parts.concat(beyondForeignKeys).join(' union all ');
}

/** The user for whom a row may use what is his. */
function ownerOf(table: string): string {
  if (table === 'integrations')
    return '(select u.user_id from public.user_agents u where u.id = c.user_agent_id)';
  return table === 'media_processing_logs' || table === 'credential_refresh_log'
    ? 'null'
    : '(select a.user_id from public.agents a where a.id = c.agent_id)';
}

/** What no foreign key says. */
const beyondForeignKeys = [
  `select 'user_agents: user is outside' from public.user_agents u join public.agents a on a.id = u.agent_id
    where not a.is_public and a.user_id <> u.user_id
      and not exists (select 1 from public.user_roles r where r.user_id = u.user_id and r.workspace_id = a.workspace_id)`,
  `select 'agent_mcp_connections: server of another agent'
     from public.agent_mcp_connections n
     join public.mcp_servers s on s.id = n.mcp_server_id
     join public.mcp_configurations f on f.id = s.config_id
    where f.agent_id <> n.agent_id`,
];
