/** Whether an agent may call a tool now: connection, tool and permission as they are at the call, not as they were listed. */
import type { CallableTool } from '../../db/mcp-tools.ts';

/** Why a call is refused; `refresh`: the tools of the connection should be looked at again. */
export type Refusal = { readonly code: string; readonly message: string; readonly refresh?: boolean };

const READ_LEVELS = /^(?:read|read[_-]?only|viewer?)$/i;
const NO_LEVELS = /^(?:none|denied|no[_-]?access)$/i;

/** `offeredHash`: of the tool that the model was offered. Null: the call may be made. */
export function refusal(now: CallableTool | null, toolName: string, offeredHash: string): Refusal | null {
  if (!now?.is_active) {
    return { code: 'connection_off', message: 'The connection of this tool was turned off or deleted.' };
  }
  if (now.credential_id !== null || now.auth_type === 'oauth') {
    const refused = permissionRefusal(now, toolName);
    if (refused) return { code: 'permission_denied', message: refused };
  }
  const { tool } = now;
  if (!tool)
    return { code: 'tool_gone', message: 'The server does not have this tool any more.', refresh: true };
  if (tool.is_quarantined) {
    return {
      code: 'tool_quarantined',
      message: 'This tool has changed, and somebody has to look at it first.',
    };
  }
  if (tool.schema_hash !== offeredHash || tool.pinned_hash !== offeredHash) {
    return {
      code: 'tool_changed',
      message: 'This tool has changed since it was offered. It can be called in a later run.',
      refresh: true,
    };
  }
  return null;
}

/** Entries `tool:NAME` of allowed_scopes name tools; the others are scopes of the account, which the account's service keeps. */
function permissionRefusal({ permission, tool }: CallableTool, toolName: string): string | null {
  if (!permission) return 'The agent has no permission for the account of this connection.';
  if (!permission.is_active)
    return 'The agent’s permission for the account of this connection was withdrawn.';
  if (NO_LEVELS.test(permission.level)) return 'The agent’s permission for this account allows nothing.';
  if (READ_LEVELS.test(permission.level)) {
    const hints = tool?.tool_schema.annotations as { readOnlyHint?: unknown } | null | undefined;
    if (hints?.readOnlyHint !== true)
      return 'The agent may only read with this account, and this tool does not say that it only reads.';
  }
  const named = (Array.isArray(permission.allowed) ? permission.allowed : []).filter(
    (entry): entry is string => typeof entry === 'string' && entry.startsWith('tool:'),
  );
  if (named.length === 0 || named.includes('tool:*') || named.includes(`tool:${toolName}`)) return null;
  return 'The agent’s permission for this account does not name this tool.';
}
