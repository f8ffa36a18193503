/** Agents of tests that are connected with tool servers. */
import type { Queryable } from '../../src/db/database.ts';
import { type Columns, insert, type Platform } from './platform.ts';
import { until } from './runs.ts';

/** The environment under which a daemon may reach these ports of this machine. */
export function reaching(...ports: readonly number[]): Record<string, string> {
  return { AGENTD_ALLOWED_PRIVATE_HOSTS: ports.map((port) => `127.0.0.1:${port}`).join(',') };
}

/** Connects an agent with a server. Returns the connection's id. */
export function connectAgent(
  db: Queryable,
  platform: Pick<Platform, 'agentId'>,
  url: string,
  columns: Columns = {},
): Promise<string> {
  return insert(db, 'public.agent_mcp_connections', {
    agent_id: platform.agentId,
    connection_name: 'tools',
    server_url: url,
    ...columns,
  });
}

/** Resolves when a daemon has seen the tools of these connections. */
export async function toolsSeen(db: Queryable, ...connections: readonly string[]): Promise<void> {
  await until('the tools of the connections are known', async () => {
    const rows = await db.query(
      'select 1 from public.agent_mcp_connections where id = any($1) and tools_listed is not null',
      [connections],
    );
    return rows.length === connections.length;
  });
}
