/** Tools of the servers that an agent is connected with (MCP), as runs are offered them. */
import { type OfferedTool, offeredTools } from '../../db/mcp-tools.ts';
import type { ToolDefinition } from '../../providers/models.ts';
import { callMcpTool } from './mcp-call.ts';
import { uniqueNames } from './mcp-names.ts';
import { type McpCallDeps, wantRefresh } from './mcp-send.ts';
import { McpSessions } from './mcp-sessions.ts';
import { effectOf } from './mcp-trust.ts';
import type { Tool, ToolSource } from './tools.ts';
import { builtInToolNames } from './tools-builtin.ts';

export type McpToolsDeps = Omit<McpCallDeps, 'sessions'>;

/** The source, and its sessions, which a drain closes. */
export type McpToolSource = ToolSource & { close(): Promise<void> };

/**
 * Lists from the cache, so that a server which is down holds no run up: the model is told when it calls.
 *
 * A tool of a server is a `write` unless the operator trusts the server and it says otherwise.
 */
export function mcpTools(deps: McpToolsDeps): McpToolSource {
  const sessions = new McpSessions({
    clock: deps.clock,
    onToolsChanged: (connectionId) => void wantRefresh(deps, connectionId, 'list_changed'),
  });
  const call: McpCallDeps = { ...deps, sessions };
  return {
    name: 'mcp',
    async list({ agentId, workspaceId, selected, hasConnections }) {
      if (!hasConnections) return [];
      const { tools, leftOut } = await offeredTools(deps.db, { agentId, workspaceId, selected });
      if (leftOut > 0) {
        deps.log.warn(
          { event: 'mcp_tools_left_out', workspace_id: workspaceId, agent_id: agentId, left_out: leftOut },
          'an agent has more tools of servers than fit into a request; the newest connections’ were left out',
        );
      }
      const names = uniqueNames(tools, new Set(builtInToolNames));
      return tools.map((tool, n) => toolOf(call, tool, names[n] as string));
    },
    close: () => sessions.close(),
  };
}

function toolOf(deps: McpCallDeps, offered: OfferedTool, name: string): Tool {
  const { effect, isDestructive } = effectOf(offered, deps.trusted);
  return {
    definition: definitionOf(offered, name),
    source: 'mcp',
    effect,
    isDestructive,
    aliases: [
      offered.tool_name,
      offered.function_name,
      `${offered.connection_name}/${offered.tool_name}`,
      `${offered.connection_name}/${offered.function_name}`,
    ],
    connection: { id: offered.connection_id, credentialId: offered.credential_id },
    call: (args, context) => callMcpTool(deps, offered, effect, args, context),
  };
}

function definitionOf({ openai_schema }: OfferedTool, name: string): ToolDefinition {
  const { function: made } = openai_schema as { function: ToolDefinition['function'] };
  return { type: 'function', function: { ...made, name } };
}
