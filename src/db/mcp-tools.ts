/** The tools of an agent's MCP connections: what a run is offered, and whether a call of one may be made now. */
import type { Queryable } from './database.ts';
import type { McpConnection, McpServerRow } from './mcp.ts';

/** A tool of the cache as a run is offered it. */
export type OfferedTool = {
  readonly connection_id: string;
  readonly connection_name: string;
  readonly credential_id: string | null;
  readonly server_url: string;
  readonly tool_name: string;
  readonly function_name: string;
  readonly pinned_hash: string;
  readonly openai_schema: unknown;
  /** What the server says of the tool's effects. */
  readonly annotations: unknown;
};

/** Tools of one request, and characters of their functions: what is beyond is left out, the newest connections' first. */
const MAX_OFFERED = 120;
const MAX_OFFERED_CHARACTERS = 1_000_000;
/** Connections of an agent whose tools are looked through, the oldest: each may have a thousand. */
const MAX_CONNECTIONS = 100;

/**
 * The usable tools of an agent's active connections, the oldest connection's first, then by name; `left_out` more did not fit.
 *
 * `selected` are names as a task gives them: a tool's own, its function's, or either after its connection's; empty selects all.
 * The workspace must be the agent's. A connection that signs in with an account has none without an active permission.
 */
export async function offeredTools(
  db: Queryable,
  of: { readonly agentId: string; readonly workspaceId: string; readonly selected: readonly string[] },
): Promise<{ readonly tools: readonly OfferedTool[]; readonly leftOut: number }> {
  const rows = await db.query<OfferedTool & { total: number }>(
    {
      name: 'offered_mcp_tools',
      text: `
with connected as materialized (
  select c.id, c.connection_name, c.credential_id, c.server_url, c.created_at
    from public.agents a
    join public.agent_mcp_connections c on c.agent_id = a.id and c.is_active
    left join public.mcp_servers s on s.id = c.mcp_server_id
    left join public.mcp_configurations k on k.id = s.config_id
   where a.id = $1 and a.workspace_id = $2 and coalesce(k.is_enabled, true)
     and (c.credential_id is null or exists (
       select 1 from public.agent_integration_permissions p
        where p.agent_id = a.id and p.connection_id = c.credential_id and p.is_active))
   order by c.created_at, c.id limit $6
),
-- without the schemas, which may be large
candidate as materialized (
  select t.id, c.id as connection_id, c.connection_name, c.credential_id, c.server_url, t.tool_name, t.function_name, t.pinned_hash,
         row_number() over (order by c.created_at, c.id, t.tool_name collate "C") as n, count(*) over () as total
    from connected c
    join public.mcp_tools_cache t on t.connection_id = c.id and not t.is_quarantined and t.function_name is not null
                                 and t.pinned_hash = t.schema_hash
   -- a subquery of its own, so that it is hashed: a server has a thousand tools, and a task may select as many
   where cardinality($3::text[]) = 0
      or t.function_name in (select unnest($3::text[])) or t.tool_name in (select unnest($3::text[]))
   order by n limit $4
),
sized as (
  select x.*, t.openai_schema, t.tool_schema -> 'annotations' as annotations,
         sum(length(t.openai_schema::text)) over (order by x.n) as characters
    from candidate x join public.mcp_tools_cache t on t.id = x.id
)
select connection_id, connection_name, credential_id, server_url, tool_name, function_name, pinned_hash, openai_schema, annotations,
       total
  from sized where characters <= $5 order by n`,
    },
    [of.agentId, of.workspaceId, namesIn(of.selected), MAX_OFFERED, MAX_OFFERED_CHARACTERS, MAX_CONNECTIONS],
  );
  return {
    tools: rows.map(({ total: _, ...tool }) => tool),
    leftOut: rows.length === 0 ? 0 : (rows[0]?.total ?? 0) - rows.length,
  };
}

/** What of a selected name may be a tool's: all of it, or what stands after a connection's name, which may have slashes too. */
function namesIn(selected: readonly string[]): readonly string[] {
  const after = (name: string): string[] =>
    [...name.slice(0, 1_000).matchAll(/\//g)].slice(0, 20).map(({ index }) => name.slice(index + 1));
  return [...new Set(selected.flatMap((name) => [name, ...after(name)]))];
}

const server = (row: string): string => `jsonb_build_object(
         'id', ${row}.id, 'name', ${row}.name, 'endpoint_url', ${row}.endpoint_url, 'vault_api_key_id', ${row}.vault_api_key_id,
         'timeout_ms', ${row}.timeout_ms, 'max_retries', ${row}.max_retries, 'retry_backoff_ms', ${row}.retry_backoff_ms,
         'priority', ${row}.priority, 'is_active', ${row}.is_active)`;

/** A tool at the moment of its call, with everything that decides whether the call may be made. */
export type CallableTool = McpConnection & {
  /** It is on, and so is the configuration that its server belongs to. */
  readonly is_active: boolean;
  /** Other active servers of the configuration under the same name, the highest priority first. */
  readonly others: readonly McpServerRow[];
  /** Null: the cache does not have it any more. */
  readonly tool: {
    readonly tool_schema: Readonly<Record<string, unknown>>;
    readonly openai_schema: unknown;
    readonly schema_hash: string;
    readonly pinned_hash: string | null;
    readonly is_quarantined: boolean;
  } | null;
  /** The agent's permission for the account that the connection signs in with; null: there is none. */
  readonly permission: {
    readonly is_active: boolean;
    readonly level: string;
    readonly allowed: unknown;
  } | null;
};

/** Null where the agent has no such connection in that workspace. */
export async function callableTool(
  db: Queryable,
  of: {
    readonly agentId: string;
    readonly workspaceId: string;
    readonly connectionId: string;
    readonly toolName: string;
  },
): Promise<CallableTool | null> {
  const [row] = await db.query<CallableTool>(
    {
      name: 'callable_mcp_tool',
      text: `
select c.id, a.workspace_id, c.agent_id, c.connection_name as name, c.server_url, c.auth_type, c.auth_header, c.auth_secret,
       c.credential_id, c.is_active and coalesce(k.is_enabled, true) as is_active,
       case when s.id is not null then ${server('s')}
       end as server,
       coalesce((
         select jsonb_agg(o.server order by o.priority desc, o.id)
           from (select ${server('b')} as server, b.priority, b.id
                   from public.mcp_servers b
                  where b.config_id = s.config_id and b.name = s.name and b.id <> s.id and b.is_active
                  order by b.priority desc, b.id limit 4) o), '[]') as others,
       case when t.id is not null then jsonb_build_object(
         'tool_schema', t.tool_schema, 'openai_schema', t.openai_schema, 'schema_hash', t.schema_hash, 'pinned_hash', t.pinned_hash,
         'is_quarantined', t.is_quarantined)
       end as tool,
       case when p.id is not null then jsonb_build_object(
         'is_active', p.is_active, 'level', p.permission_level, 'allowed', p.allowed_scopes)
       end as permission
  from public.agents a
  join public.agent_mcp_connections c on c.agent_id = a.id
  left join public.mcp_servers s on s.id = c.mcp_server_id
  left join public.mcp_configurations k on k.id = s.config_id
  left join public.mcp_tools_cache t on t.connection_id = c.id and t.tool_name = $4
  left join public.agent_integration_permissions p on p.agent_id = a.id and p.connection_id = c.credential_id
 where a.id = $1 and a.workspace_id = $2 and c.id = $3`,
    },
    [of.agentId, of.workspaceId, of.connectionId, of.toolName],
  );
  return row ?? null;
}
