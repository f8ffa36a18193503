/** One call of a tool on a server: what must hold is looked at right before it, and whatever goes wrong is told to the model. */
import { type CallableTool, callableTool, type OfferedTool } from '../../db/mcp-tools.ts';
import { McpError } from '../../providers/mcp-error.ts';
import { McpSettingsError } from '../mcp/connection-settings.ts';
import type { OpenAiFunction } from '../mcp/conversion/index.ts';
import { refusal } from './mcp-permission.ts';
import { type McpCallDeps, type Sending, sendCall, wantRefresh } from './mcp-send.ts';
import { type Tool, type ToolContext, ToolError, type ToolResult } from './tools.ts';

/** Throws ToolError for what the model should hear of, and the signal's reason. */
export async function callMcpTool(
  deps: McpCallDeps,
  offered: OfferedTool,
  effect: Tool['effect'],
  args: Record<string, unknown>,
  context: ToolContext,
): Promise<ToolResult> {
  const now = await callableTool(deps.db, {
    agentId: context.agentId,
    workspaceId: context.workspaceId,
    connectionId: offered.connection_id,
    toolName: offered.tool_name,
  });
  const refused = refusal(now, offered.tool_name, offered.pinned_hash);
  if (refused) {
    if (refused.refresh) await wantRefresh(deps, offered.connection_id, 'tool_call');
    throw new ToolError(refused.code, refused.message);
  }
  const connection = now as CallableTool & { tool: NonNullable<CallableTool['tool']> };
  const { toArguments } = await import('../mcp/conversion/index.ts');
  const given = toArguments(connection.tool.tool_schema.inputSchema, functionOf(offered.openai_schema), args);
  if ('problems' in given) throw new ToolError('invalid_arguments', given.problems.join(' '));
  const name = String(connection.tool.tool_schema.name);

  const sending: Sending = { hasBegun: false };
  try {
    const outgoing = { name, pinnedHash: offered.pinned_hash, effect, arguments: { ...given.arguments } };
    const outcome = await sendCall(deps, connection, outgoing, context, sending);
    if (outcome.isError) {
      // how older servers say -32602
      if (/^MCP error -3260[12]\b/.test(outcome.text))
        await wantRefresh(deps, offered.connection_id, 'tool_call');
      throw new ToolError('tool_reported_error', 'The tool reports an error.', [], { said: outcome.text });
    }
    return { content: outcome.text === '' ? '(The tool answered nothing.)' : outcome.text, isForeign: true };
  } catch (error) {
    if (context.signal.aborted) throw context.signal.reason;
    throw await toldError(deps, offered, effect, error, sending);
  }
}

/** What the model is told. An error that nobody expected is passed on. */
async function toldError(
  deps: McpCallDeps,
  offered: OfferedTool,
  effect: Tool['effect'],
  error: unknown,
  sending: Sending,
): Promise<unknown> {
  if (error instanceof McpSettingsError) return new ToolError(error.code, error.message);
  if (!(error instanceof McpError)) return error;
  if (error.code === 'invalid_params') await wantRefresh(deps, offered.connection_id, 'tool_call');
  const wait =
    error.retryAfterMs === null ? '' : ` It may be asked again in ${Math.ceil(error.retryAfterMs / 1000)} s.`;
  // what the server says is its word, not ours
  const said = error.jsonRpcCode === null ? {} : { said: error.message };
  const message = error.jsonRpcCode === null ? error.message : 'The server refuses the call.';
  if (!sending.hasBegun || effect === 'read') {
    return new ToolError(error.code, `${message}${wait}`, [], said);
  }
  const unknown = `${message} The call may or may not have taken effect, and it was not repeated. Check before calling it again.`;
  return new ToolError(error.code, unknown, [], { ...said, isUnknown: true });
}

function functionOf(schema: unknown): Pick<OpenAiFunction, 'parameters' | 'strict'> {
  return (schema as { function: OpenAiFunction }).function;
}
