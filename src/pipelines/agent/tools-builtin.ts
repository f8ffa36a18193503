/** The tools that come with agentd. */
import { z } from 'zod';
import { findChannel } from '../../db/conversations.ts';
import type { Queryable } from '../../db/database.ts';
import { isStatementTimeout } from '../../db/retry.ts';
import { citationsOf, knowledgeAsText } from './context.ts';
import { citationsOfMessages, findMessages, messagesAsText } from './found-messages.ts';
import { findKnowledge, type PaidEmbedding, type QueryEmbedder } from './query-embedding.ts';
import { type Tool, type ToolContext, ToolError, type ToolResult, type ToolSource } from './tools.ts';

/** Names of the built-in tools, for metrics and documentation. */
export const builtInToolNames = [
  'current_time',
  'search_knowledge',
  'search_messages',
  'send_message',
] as const;

/** Characters of a query that are searched for. */
const LONGEST_QUERY = 1000;

/** `now`: the database's time, not that of the node. */
type Deps = { readonly db: Queryable; readonly now: () => Date; readonly queries?: QueryEmbedder };

/**
 * The built-in source. `current_time` is always there, `search_knowledge` where the agent has knowledge, `search_messages` where its
 * workspace has messages embedded.
 * `send_message` writes, so it is there only when the task selects it or the agent's capabilities name it.
 */
export function builtInTools(deps: Deps): ToolSource {
  return {
    name: 'builtin',
    async list(selection) {
      const tools = [currentTime(deps)];
      if (selection.hasKnowledge) tools.push(searchKnowledge(deps));
      if (selection.hasMessages) tools.push(searchMessages(deps));
      if (
        selection.selected.includes('send_message') ||
        hasCapability(selection.capabilities, 'send_message')
      ) {
        tools.push(sendMessage(deps));
      }
      return tools;
    },
  };
}

function hasCapability(capabilities: unknown, name: string): boolean {
  if (Array.isArray(capabilities)) return capabilities.includes(name);
  if (typeof capabilities !== 'object' || capabilities === null) return false;
  return (capabilities as Record<string, unknown>)[name] === true;
}

function currentTime(deps: Deps): Tool {
  return define(
    {
      name: 'current_time',
      description: 'The current date and time in a time zone.',
      effect: 'read',
      schema: z.object({
        timezone: z
          .string()
          .describe('IANA name of a time zone, for example Europe/Paris. UTC if left out.')
          .optional(),
      }),
    },
    async ({ timezone }) => {
      const zone = timezone ?? 'UTC';
      const now = deps.now();
      try {
        const local = new Intl.DateTimeFormat('en-GB', {
          dateStyle: 'full',
          timeStyle: 'long',
          timeZone: zone,
        }).format(now);
        return { content: `${local} (${now.toISOString()})` };
      } catch {
        throw new ToolError(
          'invalid_arguments',
          `'${zone}' is not a time zone. Use an IANA name such as Europe/Paris.`,
        );
      }
    },
  );
}

function searchKnowledge(deps: Deps): Tool {
  return define(
    {
      name: 'search_knowledge',
      description: 'Searches the documents that the agent was given and returns the passages that fit best.',
      effect: 'read',
      schema: z.object({
        query: z.string().min(1).describe('What to look for, in a few words.'),
        limit: z.int().min(1).max(20).optional(),
      }),
    },
    async ({ query, limit }, context) => {
      let spent: readonly PaidEmbedding[] = [];
      const { workspaceId, agentId, signal } = context;
      const { chunks, paid, note } = await findKnowledge(
        deps,
        { workspaceId, agentId, text: query.slice(0, LONGEST_QUERY), limit: limit ?? null, signal },
        (some) => {
          spent = some;
        },
      ).catch((error: unknown) => {
        throw isStatementTimeout(error) ? tookTooLong(spent) : error;
      });
      const text = chunks.length === 0 ? 'Nothing was found.' : knowledgeAsText(chunks);
      return {
        content: byWords(note, text),
        citations: citationsOf(chunks),
        paid,
      };
    },
  );
}

function searchMessages(deps: Deps): Tool {
  return define(
    {
      name: 'search_messages',
      description:
        'Searches what was said before in your conversations and channels and returns the messages that fit best, with who said them and when.',
      effect: 'read',
      schema: z.object({
        query: z.string().min(1).describe('What to look for, in a few words.'),
        limit: z.int().min(1).max(20).optional(),
      }),
    },
    async ({ query, limit }, context) => {
      let spent: readonly PaidEmbedding[] = [];
      // where to look comes from the run, never from the model
      const { workspaceId, agentId, userId, signal } = context;
      const { messages, paid, note } = await findMessages(
        deps,
        { workspaceId, agentId, userId, text: query.slice(0, LONGEST_QUERY), limit: limit ?? 5, signal },
        (some) => {
          spent = some;
        },
      ).catch((error: unknown) => {
        throw isStatementTimeout(error) ? tookTooLong(spent) : error;
      });
      const text = messages.length === 0 ? 'Nothing was found.' : messagesAsText(messages);
      return {
        content: byWords(note, text),
        citations: citationsOfMessages(messages),
        paid,
      };
    },
  );
}

const byWords = (note: string | null, text: string): string =>
  note === null ? text : `(Searched by words alone: ${note}.)\n\n${text}`;

const tookTooLong = (spent: readonly PaidEmbedding[]): ToolError =>
  new ToolError('search_timeout', 'The search took too long. Search for fewer or rarer words.', spent);

function sendMessage(deps: Deps): Tool {
  return define(
    {
      name: 'send_message',
      description:
        'Posts a message to a chat channel of the workspace, or, without a channel, to where this task delivers its results.',
      effect: 'write',
      transactional: true,
      schema: z.object({
        content: z.string().min(1).describe('The text of the message.'),
        channel: z.string().describe('Name or id of the channel.').optional(),
      }),
    },
    async ({ content, channel }, context) => {
      let channelId = context.target.channelId;
      if (channel !== undefined) {
        channelId = await findChannel(deps.db, context.workspaceId, channel);
        if (channelId === null)
          throw new ToolError('unknown_channel', `There is no channel '${channel}' in this workspace.`);
      } else if (channelId === null && context.target.conversationId === null) {
        throw new ToolError(
          'no_target',
          'This task has no channel or conversation of its own: name a channel.',
        );
      }
      return {
        content: 'The message was posted.',
        messages: [
          {
            channel_id: channelId,
            conversation_id: channelId === null ? context.target.conversationId : null,
            content,
            is_answer: false,
            metadata: { run_id: context.runId, tool_call: context.idempotencyKey },
          },
        ],
      };
    },
  );
}

/** A tool from a zod schema: the model sees it as JSON Schema, the handler gets what passed it. */
function define<T extends z.ZodType<Record<string, unknown>>>(
  spec: { name: string; description: string; effect: Tool['effect']; transactional?: boolean; schema: T },
  handler: (args: z.infer<T>, context: ToolContext) => Promise<ToolResult>,
): Tool {
  const { $schema: _, ...parameters } = z.toJSONSchema(spec.schema, { io: 'input' });
  return {
    source: 'builtin',
    effect: spec.effect,
    transactional: spec.transactional ?? false,
    definition: {
      type: 'function',
      function: { name: spec.name, description: spec.description, parameters },
    },
    async call(args, context) {
      const parsed = spec.schema.safeParse(args);
      if (!parsed.success) throw new ToolError('invalid_arguments', z.prettifyError(parsed.error));
      return handler(parsed.data, context);
    },
  };
}
