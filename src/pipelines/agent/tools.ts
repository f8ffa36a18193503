/**
 * Tools behind one interface, whatever their source: built in, or an MCP server's.
 */

import { isTransient } from '../../db/retry.ts';
import type { MessageChange, ToolCallChange } from '../../db/runs.ts';
import type { ToolDefinition } from '../../providers/models.ts';
import { RunFailure } from './errors.ts';
import type { PaidEmbedding } from './query-embedding.ts';

/** What a tool knows about the run that calls it. */
export type ToolContext = {
  readonly workspaceId: string;
  readonly runId: string;
  readonly agentId: string;
  readonly userId: string | null;
  readonly target: { readonly conversationId: string | null; readonly channelId: string | null };
  readonly signal: AbortSignal;
  /** The same for every repetition of the same call. */
  readonly idempotencyKey: string;
};

/** What a call gave. */
export type ToolResult = {
  /** What the model is told. */
  readonly content: string;
  /** Effects in our own database: they commit together with the call's outcome, so they happen exactly once. */
  readonly messages?: readonly MessageChange[];
  /** Where what it says comes from; journaled with it. */
  readonly citations?: readonly (Citation | MessageCitation)[];
  /** What embeddings for it have cost. */
  readonly paid?: readonly PaidEmbedding[];
  /** It is the word of a server that anybody may run: the model gets it marked as data. */
  readonly isForeign?: boolean;
};

/** A passage by its place. */
export type Citation = {
  readonly chunk_id: string;
  readonly source: string;
  readonly page: number | null;
  readonly heading: string | null;
};

/** A message by its place. */
export type MessageCitation = {
  readonly message_id: string;
  readonly conversation_id?: string;
  readonly channel_id?: string;
  /** Of the conversation or channel. */
  readonly title: string | null;
  readonly role: string;
  /** ISO 8601. */
  readonly said_at: string;
};

/** A call failed in a way that the model should know of and may correct. */
export class ToolError extends Error {
  override readonly name = 'ToolError';
  readonly code: string;
  /** What embeddings have cost before it failed. */
  readonly paid: readonly PaidEmbedding[];
  /** Nobody knows whether the call has had its effect. */
  readonly isUnknown: boolean;
  /** What a foreign server said of it; the model gets it after `message`, marked as data. */
  readonly said: string | null;
  constructor(
    code: string,
    message: string,
    paid: readonly PaidEmbedding[] = [],
    more: { readonly isUnknown?: boolean; readonly said?: string } = {},
  ) {
    super(message);
    this.code = code;
    this.paid = paid;
    this.isUnknown = more.isUnknown ?? false;
    this.said = more.said ?? null;
  }
}

export type Tool = {
  readonly definition: ToolDefinition;
  readonly source: string;
  /**
   * What recovery may repeat when a call's outcome is not known: `read` and `idempotent` calls are made again
   * with the same key, a `write` is not, and the model is told that its outcome is unknown.
   */
  readonly effect: ToolCallChange['effect'];
  /**
   * All effects of a call are in its result's `messages`, which commit with its outcome: a call without an
   * outcome has had none, and is made again even if it writes.
   */
  readonly transactional?: boolean;
  /** A person must allow each call, whatever the agent's and the task's policy say. */
  readonly needsApproval?: boolean;
  /** It may destroy what is there: a policy that asks for writes asks for it, even if it may be repeated. */
  readonly isDestructive?: boolean;
  /** Other names under which a task may select it. */
  readonly aliases?: readonly string[];
  /** Whose tool it is, for the journal: a row of agent_mcp_connections, and the account that it signs in with. */
  readonly connection?: { readonly id: string; readonly credentialId: string | null };
  /** Throws ToolError for what the model should hear of; anything else is reported to it as an internal error. */
  call(args: Record<string, unknown>, context: ToolContext): Promise<ToolResult>;
};

/** What decides which tools a run may use. */
export type ToolSelection = {
  readonly workspaceId: string;
  readonly agentId: string;
  /** Names that the task selected; empty means the agent's usual ones. */
  readonly selected: readonly string[];
  readonly hasKnowledge: boolean;
  /** Whether the workspace has its messages embedded, and the agent is its own. */
  readonly hasMessages: boolean;
  /** Whether the agent has active connections with servers of tools. */
  readonly hasConnections: boolean;
  readonly capabilities: unknown;
};

export interface ToolSource {
  readonly name: string;
  /** The tools of this source that a run may use. */
  list(selection: ToolSelection): Promise<readonly Tool[]>;
}

/**
 * The tools of all sources by name; the first source wins a name.
 *
 * Throws RunFailure tools_unavailable when a source can't be asked: an agent without its tools would go on
 * and make things up. What the database throws for a passing reason is thrown as it is.
 */
export async function collectTools(
  sources: readonly ToolSource[],
  selection: ToolSelection,
): Promise<ReadonlyMap<string, Tool>> {
  const tools = new Map<string, Tool>();
  for (const source of sources) {
    for (const tool of await listTools(source, selection)) {
      const { name } = tool.definition.function;
      const wanted =
        selection.selected.length === 0 || namesOf(tool).some((each) => selection.selected.includes(each));
      if (wanted && !tools.has(name)) tools.set(name, tool);
    }
  }
  return tools;
}

/** Every name by which a task may select a tool. */
export function namesOf(tool: Tool): readonly string[] {
  return [tool.definition.function.name, ...(tool.aliases ?? [])];
}

async function listTools(source: ToolSource, selection: ToolSelection): Promise<readonly Tool[]> {
  try {
    return await source.list(selection);
  } catch (error) {
    if (isTransient(error)) throw error;
    throw new RunFailure(
      'tools_unavailable',
      `The tools of ${source.name} can't be listed: ${(error as Error).message}`,
      {
        cause: error,
      },
    );
  }
}

/** The names in `selected_tools`: strings, or objects with a name. Anything else is left out. */
export function selectedToolNames(value: unknown): string[] {
  if (!Array.isArray(value)) return [];
  return value.flatMap((item) => {
    if (typeof item === 'string') return [item];
    const name = (item as { name?: unknown } | null)?.name;
    return typeof name === 'string' ? [name] : [];
  });
}
