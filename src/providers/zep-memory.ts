/**
 * Zep as a memory: a user of Zep's for each person an agent works for, and a thread for each talk.
 *
 * The ids are ours (memory.ts of db/ says of what they are made), so that nobody reads what was said to another, and no tenant what was
 * said at another's. Zep takes a message twice if it is sent twice: whoever is not sure asks `has` before.
 */
import type { ZepClient } from '@getzep/zep-cloud';
import { RemoteStoreError } from './remote-store-error.ts';
import { readable } from './zep-fetch.ts';

/** Characters of a message that are sent, and of what is recalled. */
const MESSAGE_CHARACTERS = 4_000;
const RECALLED_CHARACTERS = 20_000;
const QUERY_CHARACTERS = 400;
const FACTS = 20;
/** The newest messages of a thread among which one is looked for. */
const LOOKED_THROUGH = 100;

export type MemoryMessage = { readonly role: 'user' | 'assistant'; readonly content: string };

/** One talk. All methods throw RemoteStoreError, or the signal's reason. */
export type ZepMemory = {
  /** What Zep knows that matters now: by the talk so far, or, of a new one, by the query. Null: nothing. */
  recall(query: string): Promise<string | null>;
  /** Whether what belongs to this key was added; looked for among the newest hundred. */
  has(key: string): Promise<boolean>;
  /** Adds messages at the end; user and thread are made where they are not. Not idempotent. */
  add(messages: readonly MemoryMessage[], key: string): Promise<void>;
};

export function zepMemory(
  client: ZepClient,
  { userId, threadId }: { readonly userId: string; readonly threadId: string },
  signal: AbortSignal,
): ZepMemory {
  const told = <T>(work: () => Promise<T>): Promise<T> => readable(signal, work);
  /** Null: what it asks of is not there. */
  const orNull = async <T>(work: () => Promise<T>): Promise<T | null> => {
    try {
      return await told(work);
    } catch (error) {
      if (error instanceof RemoteStoreError && error.code === 'graph_not_found') return null;
      throw error;
    }
  };
  /** What is there already is refused as such. */
  const made = async (make: () => Promise<unknown>, isThere: () => Promise<unknown>): Promise<void> => {
    try {
      await told(make);
    } catch (error) {
      if (error instanceof RemoteStoreError && error.code === 'refused' && (await orNull(isThere)) !== null)
        return;
      throw error;
    }
  };

  return {
    async recall(query) {
      const context = await orNull(() => client.thread.getUserContext(threadId));
      if (context !== null) return textOf(context.context);
      const text = cut(query, QUERY_CHARACTERS).trim();
      if (text === '') return null;
      const found = await orNull(() =>
        client.graph.search({ userId, query: text, scope: 'edges', limit: FACTS }),
      );
      const facts = (Array.isArray(found?.edges) ? found.edges : []).flatMap((edge) =>
        typeof edge?.fact === 'string' && !edge.expiredAt && !edge.invalidAt
          ? [`- ${edge.fact.trim().replace(/\s+/g, ' ')}`]
          : [],
      );
      return textOf(facts.slice(0, FACTS).join('\n'));
    },
    async has(key) {
      const found = await orNull(() => client.thread.get(threadId, { lastn: LOOKED_THROUGH }));
      return (Array.isArray(found?.messages) ? found.messages : []).some(
        (message) => message?.metadata?.run_id === key,
      );
    },
    async add(messages, key) {
      const given = messages
        .map(({ role, content }) => ({
          role,
          content: cut(content, MESSAGE_CHARACTERS),
          metadata: { run_id: key },
        }))
        .filter(({ content }) => content.trim() !== '');
      if (given.length === 0) return;
      const add = (): Promise<unknown> => client.thread.addMessages(threadId, { messages: given });
      if ((await orNull(add)) !== null) return;
      await made(
        () => client.user.add({ userId }),
        () => client.user.get(userId),
      );
      await made(
        () => client.thread.create({ threadId, userId }),
        () => client.thread.get(threadId, { lastn: 1 }),
      );
      await told(add);
    },
  };
}

/** Users of one page. */
const USERS_OF_PAGE = 100;

/**
 * Deletes the users whose id begins so, with their threads and all that is remembered of them. Returns how many there were. Throws
 * RemoteStoreError, or the signal's reason; what was deleted by then is gone.
 */
export async function forgetUsers(client: ZepClient, prefix: string, signal: AbortSignal): Promise<number> {
  const forgotten = new Set<string>();
  let before = 0;
  for (let pageNumber = 1; ; ) {
    const page = await readable(signal, () =>
      client.user.listOrdered({ pageNumber, pageSize: USERS_OF_PAGE, search: prefix }),
    );
    const users = Array.isArray(page.users) ? page.users : [];
    // one that is listed for a while after it was deleted is not deleted again
    const ids = users.flatMap(({ userId }) =>
      userId?.startsWith(prefix) && !forgotten.has(userId) ? [userId] : [],
    );
    for (const id of ids) {
      try {
        await readable(signal, () => client.user.delete(id));
      } catch (error) {
        // deleted by somebody else meanwhile
        if (!(error instanceof RemoteStoreError && error.code === 'graph_not_found')) throw error;
      }
      forgotten.add(id);
    }
    if (users.length === 0) {
      if (forgotten.size === before) return before;
      // while they went, others may have moved to a page that was read
      before = forgotten.size;
      pageNumber = 1;
      continue;
    }
    // the pages move up as users go
    if (ids.length === 0) pageNumber++;
  }
}

function textOf(given: unknown): string | null {
  const text = typeof given === 'string' ? cut(given.trim(), RECALLED_CHARACTERS) : '';
  return text === '' ? null : text;
}

/** The first characters, and no half of a pair. */
function cut(text: string, characters: number): string {
  return text.length <= characters
    ? text
    : Array.from(text.slice(0, characters * 2))
        .slice(0, characters)
        .join('');
}
