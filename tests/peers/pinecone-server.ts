/** Pinecone's public REST API over vectors in memory: as strict as its documentation, with faults to order. */
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

/**
 * What happens to one request instead of the ordinary answer: it is not heard (`lose`, the connection ends), carried out and not
 * answered (`lose_answer`), acknowledged and not carried out (`forget`), refused with a status, or never answered (`hang`).
 */
export type PineconeFault =
  | { readonly kind: 'lose' | 'lose_answer' | 'forget' | 'hang' }
  | { readonly kind: 'status'; readonly status: number; readonly retryAfter?: number };

export type PineconeVector = {
  readonly id: string;
  readonly values: readonly number[];
  readonly metadata: Readonly<Record<string, unknown>>;
};

export type PineconeCall = {
  readonly method: string;
  readonly path: string;
  readonly key: string | null;
  readonly namespace: string | null;
  readonly body: Record<string, unknown> | null;
};

export type PineconeIndexState = {
  readonly dimension: number;
  /** Whose it is: any other key is refused. */
  readonly apiKey: string;
  readonly namespaces: Map<string, Map<string, PineconeVector>>;
};

export type PineconeServer = {
  readonly url: string;
  /** By name. All are served from one host: the key says which is meant. */
  readonly indexes: Map<string, PineconeIndexState>;
  readonly calls: PineconeCall[];
  /** What was refused because it breaks the protocol. A correct client leaves it empty. */
  readonly rejected: string[];
  /** Asked before each request; null is the ordinary answer. */
  fault: (call: PineconeCall) => PineconeFault | null;
  /** Called between the parts of nothing: each request, once it has been answered. */
  onAnswered: (call: PineconeCall) => void;
  vectors(index: string, namespace: string): PineconeVector[];
  close(): Promise<void>;
};

const MOST_BYTES = 2 * 1024 * 1024;
const MOST_VECTORS = 1000;
const MOST_METADATA = 40 * 1024;
const LIST_LIMIT = 100;

class Refusal extends Error {
  readonly status: number;
  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

const bad = (message: string): never => {
  throw new Refusal(400, message);
};

export async function startPineconeServer(): Promise<PineconeServer> {
  const http = createServer((request, response) => {
    request.on('error', () => {});
    response.on('error', () => {});
    void read(request).then((text) => answer(request, response, text));
  });
  http.listen(0, '127.0.0.1');
  await once(http, 'listening');
  const host = `127.0.0.1:${(http.address() as AddressInfo).port}`;

  const answer = (request: IncomingMessage, response: ServerResponse, text: Buffer): unknown => {
    const url = new URL(request.url ?? '', `http://${host}`);
    const given = request.headers['api-key'];
    const key = typeof given === 'string' ? given : null;
    let body: Record<string, unknown> | null = null;
    try {
      body = text.length > 0 ? JSON.parse(text.toString('utf8')) : null;
    } catch {
      // said below
    }
    const named = body?.namespace ?? url.searchParams.get('namespace');
    const call: PineconeCall = {
      method: request.method ?? '',
      path: url.pathname,
      key,
      namespace: typeof named === 'string' ? named : null,
      body,
    };
    server.calls.push(call);
    const fault = server.fault(call);
    if (fault?.kind === 'hang') return;
    if (fault?.kind === 'lose') return request.socket.destroy();
    if (fault?.kind === 'status') {
      if (fault.retryAfter !== undefined) response.setHeader('retry-after', String(fault.retryAfter));
      return reply(response, fault.status, { code: fault.status, message: 'as ordered' });
    }
    try {
      if (request.headers['x-pinecone-api-version'] === undefined) bad('X-Pinecone-Api-Version is missing');
      if (text.length > 0 && body === null) bad('the body is no JSON');
      const result = fault?.kind === 'forget' ? {} : serve(call, url, text.length);
      if (fault?.kind === 'lose_answer') return request.socket.destroy();
      reply(response, 200, result);
      server.onAnswered(call);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (error.status === 400) server.rejected.push(`${call.method} ${call.path}: ${error.message}`);
      reply(response, error.status, { code: 3, message: error.message, details: [] });
    }
  };

  const serve = (call: PineconeCall, url: URL, bytes: number): object => {
    const [name, index] = [...server.indexes].find(([, one]) => one.apiKey === call.key) ?? [];
    if (index === undefined || name === undefined) throw new Refusal(401, 'Invalid API Key');
    if (call.method === 'GET' && call.path.startsWith('/indexes/')) {
      const asked = decodeURIComponent(call.path.slice('/indexes/'.length));
      if (asked !== name) throw new Refusal(404, `Resource ${asked} not found`);
      return {
        name,
        host,
        deletion_protection: 'disabled',
        deployment: { deployment_type: 'managed', cloud: 'aws', region: 'us-east-1' },
        read_capacity: { mode: 'OnDemand', status: { state: 'Ready' } },
        schema: {
          fields: { _values: { type: 'dense_vector', dimension: index.dimension, metric: 'cosine' } },
        },
        status: { ready: true, state: 'Ready' },
      };
    }
    const space = index.namespaces.get(call.namespace ?? '');
    const body = call.body ?? {};
    switch (`${call.method} ${call.path}`) {
      case 'POST /vectors/upsert':
        return upsert(index, body, bytes);
      case 'POST /vectors/delete': {
        fields(body, ['ids', 'namespace']);
        const ids = strings(body.ids, 'ids');
        if (ids.length === 0 || ids.length > MOST_VECTORS) bad(`${ids.length} ids in one deletion`);
        if (space === undefined) throw new Refusal(404, 'Namespace not found');
        for (const id of ids) space.delete(id);
        if (space.size === 0) index.namespaces.delete(call.namespace ?? '');
        return {};
      }
      case 'GET /vectors/list':
        return list(url, space);
      case 'GET /vectors/fetch': {
        const ids = url.searchParams.getAll('ids');
        if (ids.length > MOST_VECTORS) bad(`${ids.length} ids in one fetch`);
        const found = ids.flatMap((id) => space?.get(id) ?? []);
        return { vectors: Object.fromEntries(found.map((one) => [one.id, one])), namespace: call.namespace };
      }
      case 'POST /query':
        return query(index, space, body);
      default:
        throw new Refusal(404, `no such path: ${call.path}`);
    }
  };

  const server: PineconeServer = {
    url: `http://${host}`,
    indexes: new Map(),
    calls: [],
    rejected: [],
    fault: () => null,
    onAnswered: () => {},
    vectors: (index, namespace) => [
      ...(server.indexes.get(index)?.namespaces.get(namespace)?.values() ?? []),
    ],
    async close() {
      const closed = once(http, 'close');
      http.close();
      http.closeAllConnections();
      await closed;
    },
  };
  return server;
}

function upsert(index: PineconeIndexState, body: Record<string, unknown>, bytes: number): object {
  if (bytes > MOST_BYTES) bad(`an upsert of ${bytes} bytes`);
  fields(body, ['vectors', 'namespace']);
  const vectors = Array.isArray(body.vectors)
    ? (body.vectors as Record<string, unknown>[])
    : bad('no vectors');
  if (vectors.length === 0 || vectors.length > MOST_VECTORS) bad(`${vectors.length} vectors in one upsert`);
  const checked = vectors.map((vector): PineconeVector => {
    fields(vector, ['id', 'values', 'metadata']);
    const { id, metadata = {} } = vector;
    if (typeof id !== 'string' || id === '' || id.length > 512 || !/^[\x20-\x7e]+$/.test(id))
      bad(`the id ${id}`);
    const values = numbers(vector.values, index.dimension);
    if (values.every((value) => value === 0)) bad('Dense vectors must contain at least one non-zero value');
    if (Buffer.byteLength(JSON.stringify(metadata)) > MOST_METADATA) bad('metadata of more than 40 KB');
    for (const [key, value] of Object.entries(metadata as object)) {
      const isText = Array.isArray(value) && value.every((each) => typeof each === 'string');
      if (!isText && !['string', 'number', 'boolean'].includes(typeof value))
        bad(`metadata ${key} is ${value}`);
    }
    return { id: id as string, values, metadata: metadata as Record<string, unknown> };
  });
  if (typeof body.namespace !== 'string' || body.namespace === '') bad('no namespace');
  const name = body.namespace as string;
  const space = index.namespaces.get(name) ?? new Map<string, PineconeVector>();
  index.namespaces.set(name, space);
  for (const vector of checked) space.set(vector.id, vector);
  return { upsertedCount: checked.length };
}

function list(url: URL, space: Map<string, PineconeVector> | undefined): object {
  for (const name of url.searchParams.keys()) {
    if (!['prefix', 'limit', 'paginationToken', 'namespace'].includes(name)) bad(`the parameter ${name}`);
  }
  const limit = Number(url.searchParams.get('limit') ?? LIST_LIMIT);
  if (!(limit >= 1 && limit <= LIST_LIMIT)) bad(`a limit of ${limit}`);
  const after = url.searchParams.get('paginationToken');
  const ids = [...(space?.keys() ?? [])]
    .filter((id) => id.startsWith(url.searchParams.get('prefix') ?? ''))
    .sort()
    .filter((id) => after === null || id > Buffer.from(after, 'base64url').toString());
  const page = ids.slice(0, limit);
  const last = page.at(-1);
  return {
    vectors: page.map((id) => ({ id })),
    ...(ids.length > limit && last !== undefined
      ? { pagination: { next: Buffer.from(last).toString('base64url') } }
      : {}),
    namespace: url.searchParams.get('namespace'),
    usage: { readUnits: 1 },
  };
}

function query(
  index: PineconeIndexState,
  space: Map<string, PineconeVector> | undefined,
  body: Record<string, unknown>,
): object {
  fields(body, ['vector', 'topK', 'namespace', 'filter', 'includeValues', 'includeMetadata']);
  const vector = numbers(body.vector, index.dimension);
  const topK = Number(body.topK);
  if (!(Number.isInteger(topK) && topK >= 1 && topK <= 10_000)) bad(`a topK of ${body.topK}`);
  const matches = [...(space?.values() ?? [])]
    .filter((one) => passes(one.metadata, body.filter))
    .map((one) => ({ id: one.id, score: cosine(one.values, vector), values: [] }))
    .sort((a, b) => b.score - a.score)
    .slice(0, topK);
  return { matches, namespace: body.namespace, usage: { readUnits: 1 } };
}

function passes(metadata: Readonly<Record<string, unknown>>, filter: unknown): boolean {
  return Object.entries((filter ?? {}) as Record<string, unknown>).every(([key, condition]) => {
    const given = (condition as Record<string, unknown>).$in;
    if (!Array.isArray(given)) return bad(`the filter ${JSON.stringify(condition)}`);
    if (given.length > 10_000) bad(`${given.length} values in $in`);
    return given.includes(metadata[key]);
  });
}

function cosine(a: readonly number[], b: readonly number[]): number {
  let dot = 0;
  let aa = 0;
  let bb = 0;
  for (const [i, x] of a.entries()) {
    const y = b[i] ?? 0;
    dot += x * y;
    aa += x * x;
    bb += y * y;
  }
  return dot / Math.sqrt(aa * bb);
}

function numbers(given: unknown, dimension: number): number[] {
  if (!Array.isArray(given) || !given.every((each) => Number.isFinite(each)))
    return bad('values that are no numbers');
  if (given.length !== dimension) {
    bad(`Vector dimension ${given.length} does not match the dimension of the index ${dimension}`);
  }
  return given as number[];
}

function strings(given: unknown, name: string): string[] {
  if (!Array.isArray(given) || !given.every((each) => typeof each === 'string'))
    return bad(`${name} are no strings`);
  return given as string[];
}

function fields(body: Record<string, unknown>, known: readonly string[]): void {
  for (const name of Object.keys(body)) if (!known.includes(name)) bad(`the field ${name}`);
}

function reply(response: ServerResponse, status: number, body: object): void {
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
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
