/** How MCP connections are, for metrics, doctor and the command line. */
import type { Queryable } from './database.ts';

export type McpConnectionsState = {
  /** `idle`: looked at, and not due; `failing`: the last look failed; `waiting` for a place; `working`. */
  readonly state: 'idle' | 'failing' | 'waiting' | 'working';
  readonly connections: number;
  /** Of those that wait: since when. */
  readonly oldest_seconds: number | null;
};

/** Connections that are switched on, by how they are. */
export function mcpConnectionStates(db: Queryable): Promise<McpConnectionsState[]> {
  return db.query<McpConnectionsState>({
    name: 'mcp_connection_states',
    text: `
select s.state, count(r.id)::integer as connections,
       extract(epoch from agentd.now() - min(r.wanted_at) filter (where r.job_id is null and r.wanted_at <= agentd.now()))::float8 as oldest_seconds
  from (values ('idle'), ('failing'), ('waiting'), ('working')) s (state)
  left join (
    select o.* from agentd.mcp_refreshes o where o.due_at < 'infinity' or o.wanted_at is not null or o.job_id is not null limit 20000) r
    on s.state = case when r.job_id is not null then 'working'
                      when r.wanted_at is not null then 'waiting'
                      when r.failures > 0 then 'failing' else 'idle' end
 group by s.state`,
  });
}

/** A connection as an operator sees it. */
export type ConnectionReport = {
  readonly id: string;
  readonly workspace_id: string;
  readonly workspace: string;
  readonly agent: string;
  readonly name: string;
  readonly server_url: string;
  readonly is_active: boolean;
  readonly auth_type: string;
  readonly change_policy: string;
  readonly state: 'off' | 'working' | 'waiting' | 'failing' | 'ok' | 'new';
  readonly tools_usable: number | null;
  readonly tools_listed: number | null;
  readonly quarantined: number;
  readonly reason_code: string | null;
  readonly reason: string | null;
  readonly refresh_failures: number;
  readonly last_refreshed_at: Date | null;
  readonly next_refresh_at: Date | null;
  readonly server_info: Readonly<Record<string, unknown>> | null;
};

const REPORT = `
select c.id, a.workspace_id, w.name as workspace, a.name as agent, c.connection_name as name, c.server_url, c.is_active, c.auth_type,
       c.change_policy, c.tools_usable, c.tools_listed, c.reason_code, c.reason, c.refresh_failures, c.last_refreshed_at,
       c.next_refresh_at, c.server_info,
       case when not c.is_active then 'off'
            when r.job_id is not null then 'working'
            when r.wanted_at is not null then 'waiting'
            when c.refresh_failures > 0 then 'failing'
            when c.last_refreshed_at is null then 'new' else 'ok' end as state,
       (select count(*)::integer from public.mcp_tools_cache t where t.connection_id = c.id and t.is_quarantined) as quarantined
  from public.agent_mcp_connections c
  join public.agents a on a.id = c.agent_id
  join public.workspaces w on w.id = a.workspace_id
  left join agentd.mcp_refreshes r on r.id = c.id`;

/** Connections, those that fail first, at most `limit`. */
export function connectionReports(
  db: Queryable,
  of: { readonly workspace: string | null; readonly limit: number },
): Promise<ConnectionReport[]> {
  return db.query<ConnectionReport>(
    `${REPORT}
 where $1::uuid is null or a.workspace_id = $1
 order by c.refresh_failures > 0 desc, w.name, a.name, c.connection_name, c.id limit $2`,
    [of.workspace, of.limit],
  );
}

/** One connection; null: there is none of that id. */
export async function connectionReport(db: Queryable, id: string): Promise<ConnectionReport | null> {
  const [row] = await db.query<ConnectionReport>(`${REPORT} where c.id = $1`, [id]);
  return row ?? null;
}

export type ToolReport = {
  readonly id: string;
  readonly tool_name: string;
  readonly function_name: string | null;
  readonly is_strict: boolean | null;
  readonly is_quarantined: boolean;
  readonly reason_code: string | null;
  readonly reason: string | null;
  readonly last_updated: Date;
};

/** The tools of a connection, the quarantined ones first. */
export function toolReports(db: Queryable, connectionId: string): Promise<ToolReport[]> {
  return db.query<ToolReport>(
    `select t.id, t.tool_name, t.function_name, (t.openai_schema #>> '{function,strict}')::boolean as is_strict, t.is_quarantined,
            t.reason_code, t.reason, t.last_updated
       from public.mcp_tools_cache t where t.connection_id = $1
      order by t.is_quarantined desc, t.tool_name collate "C"`,
    [connectionId],
  );
}

export type RefreshReport = {
  readonly created_at: Date;
  readonly status: string;
  readonly tools_added: number;
  readonly tools_changed: number;
  readonly tools_removed: number;
  readonly duration_ms: number | null;
  readonly error_message: string | null;
  readonly details: Readonly<Record<string, unknown>>;
};

/** The last looks at a connection, the newest first. */
export function refreshReports(db: Queryable, connectionId: string, limit: number): Promise<RefreshReport[]> {
  return db.query<RefreshReport>(
    `select l.created_at, l.status, l.tools_added, l.tools_changed, l.tools_removed, l.duration_ms, l.error_message, l.details
       from public.mcp_refresh_log l where l.connection_id = $1 order by l.created_at desc limit $2`,
    [connectionId, limit],
  );
}
