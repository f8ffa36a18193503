/** Zep's public REST API over graphs in memory: as strict as its documentation, slow to process what it is given, with faults to order. */
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { factsOf, serveTalks, type ZepTalks } from './zep-threads.ts';

/**
 * What happens to one request instead of the ordinary answer: it is not heard (`lose`, the connection ends), carried out and not answered
 * (`lose_answer`), not answered and carried out when the test lets it arrive (`late`), refused with a status, or never answered (`hang`).
 */
export type ZepFault =
  | { readonly kind: 'lose' | 'lose_answer' | 'late' | 'hang' }
  | { readonly kind: 'status'; readonly status: number; readonly retryAfter?: number };

export type ZepEpisode = {
  readonly uuid: string;
  readonly content: string;
  readonly source: string;
  readonly source_description: string;
  readonly metadata: Readonly<Record<string, unknown>>;
  readonly created_at: string;
  /** An episode is listed before it is processed, and found after that. */
  processed: boolean;
};

export type ZepEdge = {
  readonly uuid: string;
  readonly fact: string;
  readonly episodes: readonly string[];
  readonly invalid_at?: string;
};

export type ZepGraphState = { readonly episodes: Map<string, ZepEpisode>; readonly edges: ZepEdge[] };

export type ZepCall = {
  readonly method: string;
  /** Below the API's root. */
  readonly path: string;
  readonly key: string | null;
  readonly body: Record<string, unknown> | null;
};

export type ZepServer = {
  readonly url: string;
  /** Graphs of each account, by its key: any other key is refused. */
  readonly accounts: Map<string, Map<string, ZepGraphState>>;
  /** Users and threads of each account that has any. */
  readonly talks: Map<string, ZepTalks>;
  readonly calls: ZepCall[];
  /** What was refused because it breaks the protocol. A correct client leaves it empty. */
  readonly rejected: string[];
  /** Asked before each request; null is the ordinary answer. */
  fault: (call: ZepCall) => ZepFault | null;
  /** Texts that Zep would not take, for reasons of its own. */
  dislikes: (text: string) => boolean;
  /** While true nothing is processed; `process` does it. */
  isHeld: boolean;
  process(): void;
  /** Carries out what was `late`. */
  arrive(): void;
  close(): Promise<void>;
};

const ROOT = '/api/v2';
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
const MOST_CHARACTERS = 10_000;
const MOST_BATCH = 20;
const MOST_METADATA = 10;
const MOST_QUERY = 400;
const MOST_FOUND = 50;
const MOST_LISTED = 50;
const MOST_NODES = 256;

class Refusal extends Error {
  readonly status: number;
  /** Whether a correct client may meet it. */
  readonly isOrdinary: boolean;
  constructor(status: number, message: string, isOrdinary = status !== 400) {
    super(message);
    this.status = status;
    this.isOrdinary = isOrdinary;
  }
}

const bad = (message: string): never => {
  throw new Refusal(400, message);
};

type Answer = {
  readonly status: number;
  readonly body: unknown;
  readonly headers?: Record<string, string>;
};

export async function startZepServer(): Promise<ZepServer> {
  const http = createServer((request, response) => {
    request.on('error', () => {});
    response.on('error', () => {});
    void read(request).then((text) => answer(request, response, text));
  });
  http.listen(0, '127.0.0.1');
  await once(http, 'listening');
  const late: (() => unknown)[] = [];

  const answer = (request: IncomingMessage, response: ServerResponse, text: Buffer): unknown => {
    const url = new URL(request.url ?? '', 'http://zep');
    let body: Record<string, unknown> | null = null;
    try {
      body = text.length > 0 ? JSON.parse(text.toString('utf8')) : null;
    } catch {
      // said below
    }
    const [, key = null] = /^Api-Key (.+)$/.exec(request.headers.authorization ?? '') ?? [];
    const call: ZepCall = {
      method: request.method ?? '',
      path: url.pathname.startsWith(`${ROOT}/`) ? url.pathname.slice(ROOT.length) : `?${url.pathname}`,
      key,
      body,
    };
    server.calls.push(call);
    const fault = server.fault(call);
    if (fault?.kind === 'hang') return;
    if (fault?.kind === 'lose') return request.socket.destroy();
    if (fault?.kind === 'late') {
      late.push(() => serve(server, call));
      return request.socket.destroy();
    }
    if (fault?.kind === 'status') {
      if (fault.retryAfter !== undefined) response.setHeader('retry-after', String(fault.retryAfter));
      return reply(response, { status: fault.status, body: { message: 'as ordered' } });
    }
    try {
      if (text.length > 0 && body === null) bad('the body is no JSON');
      const result = serve(server, call, url.searchParams);
      if (fault?.kind === 'lose_answer') return request.socket.destroy();
      reply(response, result);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (!error.isOrdinary) server.rejected.push(`${call.method} ${call.path}: ${error.message}`);
      reply(response, { status: error.status, body: { message: error.message } });
    }
  };

  const server: ZepServer = {
    url: `http://127.0.0.1:${(http.address() as AddressInfo).port}`,
    accounts: new Map(),
    talks: new Map(),
    calls: [],
    rejected: [],
    fault: () => null,
    dislikes: () => false,
    isHeld: false,
    process() {
      for (const graphs of server.accounts.values())
        for (const graph of graphs.values())
          for (const episode of graph.episodes.values()) episode.processed = true;
    },
    arrive() {
      for (const work of late.splice(0)) work();
    },
    async close() {
      const closed = once(http, 'close');
      http.close();
      http.closeAllConnections();
      await closed;
    },
  };
  return server;
}

function serve(
  server: ZepServer,
  { method, path, key, body: given }: ZepCall,
  query = new URLSearchParams(),
): Answer {
  const graphs = server.accounts.get(key ?? '');
  if (graphs === undefined) throw new Refusal(401, 'unauthorized');
  const body = given ?? {};
  const talks = server.talks.get(key ?? '') ?? { users: new Set<string>(), threads: new Map() };
  server.talks.set(key ?? '', talks);
  const talked = serveTalks(talks, { method, path, query, body }, (status, message, isOrdinary) => {
    throw new Refusal(status, message, isOrdinary);
  });
  if (talked !== null) return talked;
  if (method === 'POST' && path === '/graph/search' && body.user_id !== undefined) {
    if (!talks.users.has(String(body.user_id))) throw new Refusal(404, 'user not found');
    fields(body, ['user_id', 'query', 'scope', 'limit']);
    const { query: asked, scope } = body;
    if (typeof asked !== 'string' || asked === '' || [...asked].length > MOST_QUERY) bad('the query');
    if (scope !== 'edges') bad(`the scope ${scope}`);
    return { status: 200, body: { edges: factsOf(talks, body.user_id, words(String(asked)), words) } };
  }
  const [, first = '', second = '', third = ''] = path.split('/').map(decodeURIComponent);
  const graphOf = (id: unknown): ZepGraphState => {
    if (typeof id !== 'string') return bad('no graph_id');
    const graph = graphs.get(id);
    if (graph === undefined) throw new Refusal(404, 'graph not found');
    return graph;
  };
  const accept = (id: unknown, episodes: readonly Record<string, unknown>[]): ZepEpisode[] => {
    const graph = graphOf(id);
    const made = episodes.map((episode) => newEpisode(server, episode));
    for (const episode of made) graph.episodes.set(episode.uuid, episode);
    // what is processed is so after it was answered
    setImmediate(() => {
      if (!server.isHeld) for (const episode of made) episode.processed = true;
    });
    return made;
  };
  switch (true) {
    case method === 'POST' && path === '/graph/create': {
      fields(body, ['graph_id', 'name', 'description', 'time_zone']);
      const id = body.graph_id;
      if (typeof id !== 'string' || !/^[\w-]{1,100}$/.test(id)) return bad(`the graph_id ${id}`);
      if (graphs.has(id)) throw new Refusal(400, `graph ${id} already exists`, true);
      graphs.set(id, { episodes: new Map(), edges: [] });
      return { status: 201, body: { graph_id: id, uuid: randomUUID() } };
    }
    case method === 'POST' && path === '/graph': {
      const { graph_id, ...episode } = body;
      return { status: 202, body: accept(graph_id, [episode])[0] };
    }
    case method === 'POST' && path === '/graph-batch': {
      fields(body, ['graph_id', 'episodes']);
      const episodes = Array.isArray(body.episodes) ? body.episodes : bad('no episodes');
      if (episodes.length === 0 || episodes.length > MOST_BATCH)
        bad(`${episodes.length} episodes in one batch`);
      // in no order that is promised
      return { status: 202, body: accept(body.graph_id, episodes).reverse() };
    }
    case method === 'POST' && path === '/graph/search':
      return { status: 200, body: search(graphOf(body.graph_id), body) };
    case method === 'POST' && first === 'graph' && second === 'episodes' && third === 'graph':
      return list(graphOf(decodeURIComponent(path.split('/')[4] ?? '')), body);
    case method === 'DELETE' && first === 'graph' && second === 'episodes': {
      if (!UUID.test(third)) bad(`the episode ${third}`);
      const graph = [...graphs.values()].find(({ episodes }) => episodes.has(third));
      if (graph === undefined) throw new Refusal(404, 'episode not found');
      graph.episodes.delete(third);
      return { status: 200, body: { message: 'deleted' } };
    }
    case method === 'GET' && first === 'graph' && third === '':
      graphOf(second);
      return { status: 200, body: { graph_id: second } };
    case method === 'DELETE' && first === 'graph' && third === '':
      graphOf(second);
      graphs.delete(second);
      return { status: 200, body: { message: 'deleted' } };
    default:
      return bad(`no such path: ${path}`);
  }
}

function newEpisode(server: ZepServer, given: Record<string, unknown>): ZepEpisode {
  fields(given, ['data', 'type', 'source_description', 'metadata', 'created_at']);
  const { data, type, source_description: description, metadata = {} } = given;
  if (typeof data !== 'string' || data.trim() === '') return bad('no data');
  if ([...data].length > MOST_CHARACTERS) bad(`${[...data].length} characters of data`);
  if (type !== 'text') bad(`the type ${type}`);
  if (typeof description !== 'string' || description.length > 500)
    return bad(`the source_description ${description}`);
  const entries = Object.entries(metadata as object);
  if (entries.length > MOST_METADATA) bad(`${entries.length} keys of metadata`);
  for (const [name, value] of entries)
    if (!['string', 'number', 'boolean'].includes(typeof value)) bad(`metadata ${name} is ${value}`);
  if (server.dislikes(data)) throw new Refusal(400, 'this text is not wanted', true);
  return {
    uuid: randomUUID(),
    content: data,
    source: 'text',
    source_description: description,
    metadata: metadata as Record<string, unknown>,
    created_at: new Date().toISOString(),
    processed: false,
  };
}

function search(graph: ZepGraphState, body: Record<string, unknown>): object {
  fields(body, ['graph_id', 'query', 'scope', 'limit', 'reranker']);
  const { query, scope, limit = 10 } = body;
  if (typeof query !== 'string' || query === '') return bad('no query');
  if ([...query].length > MOST_QUERY) bad(`a query of ${[...query].length} characters`);
  if (!(Number(limit) >= 1 && Number(limit) <= MOST_FOUND)) bad(`a limit of ${limit}`);
  const wanted = words(query);
  const best = <T>(all: readonly T[], text: (one: T) => string): T[] =>
    all
      .map((one) => ({ one, score: [...words(text(one))].filter((word) => wanted.has(word)).length }))
      .filter(({ score }) => score > 0)
      .sort((a, b) => b.score - a.score)
      .slice(0, Number(limit))
      .map(({ one }) => one);
  if (scope === 'episodes') {
    const processed = [...graph.episodes.values()].filter((episode) => episode.processed);
    return { episodes: best(processed, (episode) => episode.content) };
  }
  if (scope !== 'edges') return bad(`the scope ${scope}`);
  return {
    edges: best(graph.edges, (edge) => edge.fact).map((edge) => ({
      ...edge,
      name: 'SAYS',
      created_at: new Date().toISOString(),
      source_node_uuid: randomUUID(),
      target_node_uuid: randomUUID(),
    })),
  };
}

const words = (text: string): Set<string> => new Set(text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? []);

function list(graph: ZepGraphState, body: Record<string, unknown>): Answer {
  fields(body, [
    'cursor',
    'direction',
    'episode_metadata_filters',
    'limit',
    'mentioned_node_uuids',
    'order_by',
  ]);
  if (body.order_by !== 'uuid' || body.direction !== 'asc') bad('another order than ours');
  const among = body.mentioned_node_uuids;
  if (among !== undefined) {
    if (!Array.isArray(among) || among.length > MOST_NODES || !among.every((id) => UUID.test(id)))
      bad('mentioned_node_uuids');
  }
  const limit = Math.min(Number(body.limit ?? 100), MOST_LISTED);
  const after = typeof body.cursor === 'string' ? Buffer.from(body.cursor, 'base64url').toString() : '';
  const found = [...graph.episodes.values()]
    .filter((episode) => among === undefined || (among as string[]).includes(episode.uuid))
    .filter((episode) => passes(episode, body.episode_metadata_filters))
    .sort((a, b) => (a.uuid < b.uuid ? -1 : 1))
    .filter(({ uuid }) => uuid > after);
  const page = found.slice(0, limit);
  const last = page.at(-1);
  return {
    status: 200,
    body: page,
    ...(found.length > limit && last !== undefined
      ? { headers: { 'Zep-Next-Cursor': Buffer.from(last.uuid).toString('base64url') } }
      : {}),
  };
}

function passes({ metadata }: ZepEpisode, given: unknown): boolean {
  if (given === undefined) return true;
  const group = given as Record<string, unknown>;
  fields(group, ['type', 'filters']);
  if (group.type !== 'and' || !Array.isArray(group.filters)) return bad('episode_metadata_filters');
  return group.filters.every((filter: Record<string, unknown>) => {
    fields(filter, ['property_name', 'comparison_operator', 'property_value']);
    if (filter.comparison_operator !== '=') bad(`the operator ${filter.comparison_operator}`);
    return metadata[String(filter.property_name)] === filter.property_value;
  });
}

function fields(body: Record<string, unknown>, known: readonly string[]): void {
  for (const name of Object.keys(body)) if (!known.includes(name)) bad(`the field ${name}`);
}

function reply(response: ServerResponse, { status, body, headers }: Answer): void {
  response.writeHead(status, { 'content-type': 'application/json', ...headers }).end(JSON.stringify(body));
}

async function read(request: IncomingMessage): Promise<Buffer> {
  const pieces: Buffer[] = [];
  try {
    for await (const piece of request) pieces.push(piece as Buffer);
  } catch {
    // the client went away
  }
  return Buffer.concat(pieces);
}
