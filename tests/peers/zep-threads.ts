/** Users and threads of Zep's public REST API: as strict as its documentation. What is added twice is there twice. */
import { randomUUID } from 'node:crypto';

export type ZepMessage = {
  readonly uuid: string;
  readonly role: string;
  readonly content: string;
  readonly metadata: Readonly<Record<string, unknown>>;
  readonly created_at: string;
};

export type ZepThread = { readonly userId: string; readonly messages: ZepMessage[] };

/** What an account has said and to whom. */
export type ZepTalks = { readonly users: Set<string>; readonly threads: Map<string, ZepThread> };

/** How a request is refused: its status, words, and whether a correct client may meet it. */
export type Refuse = (status: number, message: string, isOrdinary?: boolean) => never;

const ROLES = ['norole', 'system', 'assistant', 'user', 'function', 'tool'];
const MOST_MESSAGES = 30;
const MOST_CHARACTERS = 4_096;
const ID = /^[\w-]{1,100}$/;

/** Answers a request of users or threads; null: it is neither. */
export function serveTalks(
  talks: ZepTalks,
  request: {
    readonly method: string;
    readonly path: string;
    readonly query: URLSearchParams;
    readonly body: Record<string, unknown>;
  },
  refuse: Refuse,
): { readonly status: number; readonly body: unknown } | null {
  const { method, path, query, body } = request;
  const [, first, id = '', what = ''] = path.split('/').map(decodeURIComponent);
  if (method === 'GET' && first === 'users-ordered') {
    const [page, size] = [Number(query.get('pageNumber')), Number(query.get('pageSize'))];
    if (!(page >= 1 && size >= 1 && size <= 1_000)) return refuse(400, 'the page');
    const all = [...talks.users].filter((userId) => userId.includes(query.get('search') ?? '')).sort();
    const users = all.slice((page - 1) * size, page * size).map((userId) => ({ user_id: userId }));
    return { status: 200, body: { users, row_count: users.length, total_count: all.length } };
  }
  if (first !== 'users' && first !== 'threads') return null;
  if (first === 'users') {
    if (method === 'POST' && id === '') {
      const userId = body.user_id;
      if (typeof userId !== 'string' || !ID.test(userId)) return refuse(400, `the user_id ${userId}`);
      if (talks.users.has(userId)) return refuse(400, 'the user already exists', true);
      talks.users.add(userId);
      return { status: 201, body: { user_id: userId } };
    }
    if (method === 'GET' && talks.users.has(id)) return { status: 200, body: { user_id: id } };
    if (method === 'DELETE' && talks.users.delete(id)) {
      for (const [threadId, { userId }] of talks.threads) if (userId === id) talks.threads.delete(threadId);
      return { status: 200, body: { message: 'deleted' } };
    }
    // what nobody has is nobody's to delete
    return refuse(404, 'user not found', method === 'DELETE');
  }
  if (method === 'POST' && id === '') {
    const { thread_id: threadId, user_id: userId } = body;
    if (typeof threadId !== 'string' || !ID.test(threadId)) return refuse(400, `the thread_id ${threadId}`);
    if (typeof userId !== 'string' || !talks.users.has(userId)) return refuse(404, 'user not found');
    if (talks.threads.has(threadId)) return refuse(400, 'the thread already exists', true);
    talks.threads.set(threadId, { userId, messages: [] });
    return { status: 201, body: { thread_id: threadId, user_id: userId } };
  }
  const thread = talks.threads.get(id);
  if (thread === undefined) return refuse(404, 'thread not found');
  if (method === 'GET' && what === 'context') {
    const said = [...talks.threads.values()]
      .filter(({ userId }) => userId === thread.userId)
      .flatMap(({ messages }) => messages);
    return {
      status: 200,
      body: { context: said.map(({ role, content }) => `${role}: ${content}`).join('\n') },
    };
  }
  if (method === 'GET' && what === 'messages') {
    const last = Number(query.get('lastn') ?? thread.messages.length);
    if (!Number.isInteger(last) || last < 0) return refuse(400, 'lastn');
    return {
      status: 200,
      body: { messages: last === 0 ? [] : thread.messages.slice(-last), total_count: thread.messages.length },
    };
  }
  if (method === 'POST' && what === 'messages') {
    const given = Array.isArray(body.messages) ? (body.messages as Record<string, unknown>[]) : [];
    if (given.length === 0 || given.length > MOST_MESSAGES) return refuse(400, `${given.length} messages`);
    for (const { role, content, metadata = {} } of given) {
      if (!ROLES.includes(String(role))) return refuse(400, `the role ${role}`);
      if (typeof content !== 'string' || content.trim() === '') return refuse(400, 'no content');
      if ([...content].length > MOST_CHARACTERS) return refuse(400, `${content.length} characters`);
      if (Object.keys(metadata as object).length > 10) return refuse(400, 'too much metadata');
      thread.messages.push({
        uuid: randomUUID(),
        role: String(role),
        content,
        metadata: metadata as Record<string, unknown>,
        created_at: new Date().toISOString(),
      });
    }
    return { status: 202, body: { message_uuids: given.map(() => randomUUID()) } };
  }
  return refuse(400, `no such path: ${method} ${path}`);
}

/** Facts of a user's graph: each of his messages is one. */
export function factsOf(
  talks: ZepTalks,
  userId: unknown,
  wanted: ReadonlySet<string>,
  words: (text: string) => Set<string>,
): object[] {
  return [...talks.threads.values()]
    .filter((thread) => thread.userId === userId)
    .flatMap(({ messages }) => messages)
    .filter(({ content }) => [...words(content)].some((word) => wanted.has(word)))
    .map(({ content }) => ({
      uuid: randomUUID(),
      name: 'SAYS',
      fact: content,
      episodes: [],
      created_at: new Date().toISOString(),
      source_node_uuid: randomUUID(),
      target_node_uuid: randomUUID(),
    }));
}
