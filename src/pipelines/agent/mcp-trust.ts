/** What a tool's effects are taken for: a server is believed only where the operator trusts it. */
import type { OfferedTool } from '../../db/mcp-tools.ts';
import type { Tool } from './tools.ts';

type Hints = {
  readonly readOnlyHint?: unknown;
  readonly idempotentHint?: unknown;
  readonly destructiveHint?: unknown;
};

/** Without trust, and where a hint is missing, as the protocol says: it writes, it destroys, and not twice the same. */
export function effectOf(
  { server_url, annotations }: Pick<OfferedTool, 'server_url' | 'annotations'>,
  trusted: readonly string[],
): { effect: Tool['effect']; isDestructive: boolean } {
  if (!isTrusted(server_url, trusted)) return { effect: 'write', isDestructive: true };
  const hints = (typeof annotations === 'object' && annotations !== null ? annotations : {}) as Hints;
  if (hints.readOnlyHint === true) return { effect: 'read', isDestructive: false };
  return {
    effect: hints.idempotentHint === true ? 'idempotent' : 'write',
    isDestructive: hints.destructiveHint !== false,
  };
}

/** `trusted`: origins, or `stdio:NAME`. */
export function isTrusted(url: string, trusted: readonly string[]): boolean {
  const text = url.trim();
  if (text.startsWith('stdio:')) return trusted.includes(text.replace('stdio://', 'stdio:'));
  return URL.canParse(text) && trusted.includes(new URL(text).origin);
}
