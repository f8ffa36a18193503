/** Messages that an agent looks up: found by meaning and words, and told with who said them where and when. */
import type { Queryable } from '../../db/database.ts';
import { type FoundMessage, findMessageModels, searchMessages } from '../../db/messages.ts';
import type { PaidEmbedding, QueryEmbedder } from './query-embedding.ts';
import type { MessageCitation } from './tools.ts';

export type MessageQuery = {
  readonly workspaceId: string;
  readonly agentId: string;
  /** On whose behalf; null: nobody's. */
  readonly userId: string | null;
  readonly text: string;
  readonly limit: number;
  readonly signal: AbortSignal;
};

/** Searches what was said. Throws what the database throws, or the signal's reason. */
export async function findMessages(
  deps: { readonly db: Queryable; readonly queries?: QueryEmbedder },
  query: MessageQuery,
  onPaid: (paid: readonly PaidEmbedding[]) => void = () => {},
): Promise<{
  readonly messages: readonly FoundMessage[];
  readonly paid: readonly PaidEmbedding[];
  /** Why it was searched by words alone; null where it was not, or where there is nothing but words. */
  readonly note: string | null;
}> {
  const { models, credentials } = await findMessageModels(deps.db, query.workspaceId);
  const embedded = deps.queries
    ? await deps.queries.embedFor(
        { workspace_id: query.workspaceId, credentials },
        models,
        query.text,
        query.signal,
      )
    : { vectors: [], paid: [], note: null };
  onPaid(embedded.paid);
  const messages = await searchMessages(deps.db, {
    workspaceId: query.workspaceId,
    agentId: query.agentId,
    userId: query.userId,
    query: query.text,
    limit: query.limit,
    vectors: embedded.vectors,
  });
  return { messages, paid: embedded.paid, note: embedded.note };
}

/** Messages with where they come from. */
export function messagesAsText(messages: readonly FoundMessage[]): string {
  return messages
    .map(({ id, kind, title, role, content, said_at }) => {
      // a title is a tenant's text and stays one line
      const place = `${kind} ${title?.replace(/\s+/g, ' ').trim() || 'without a title'}`;
      return `[${[place, said_at, role.replace(/\s+/g, ' '), `message ${id}`].join(', ')}]\n${content}`;
    })
    .join('\n\n');
}

/** Where messages come from. */
export function citationsOfMessages(messages: readonly FoundMessage[]): MessageCitation[] {
  return messages.map(({ id, kind, place_id, title, role, said_at }) => ({
    message_id: id,
    ...(kind === 'conversation' ? { conversation_id: place_id } : { channel_id: place_id }),
    title,
    role,
    said_at,
  }));
}
