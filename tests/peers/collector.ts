/** A receiver of OTLP over HTTP that decodes what it gets, as far as tests look at it. */
import { once } from 'node:events';
import { createServer, type IncomingHttpHeaders, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export interface ReceivedSpan {
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId: string | null;
  readonly name: string;
  /** As OTLP counts them: 1 internal, 3 client, 5 consumer. */
  readonly kind: number;
  /** Milliseconds since the epoch. */
  readonly start: number;
  readonly end: number;
  readonly attributes: Readonly<Record<string, unknown>>;
  /** The status message of a span that failed; null for one that did not. */
  readonly error: string | null;
  /** Attributes of the process that sent it. */
  readonly resource: Readonly<Record<string, unknown>>;
}

export interface Collector {
  /** `http://127.0.0.1:<port>` */
  readonly url: string;
  readonly spans: ReceivedSpan[];
  readonly requests: {
    readonly path: string;
    readonly headers: IncomingHttpHeaders;
    readonly body: string;
  }[];
  /** What the next requests get: 200, another status, nothing at all, or an answer that never ends. */
  answer: number | 'hang' | 'trickle';
  /** Resolves with the spans once `enough` says so of them. */
  waitFor(enough: (spans: readonly ReceivedSpan[]) => boolean): Promise<readonly ReceivedSpan[]>;
  close(): Promise<void>;
}

type Value = {
  stringValue?: string;
  intValue?: number | string;
  doubleValue?: number;
  arrayValue?: { values: Value[] };
};
type KeyValue = { key: string; value: Value };
type WireSpan = {
  traceId: string;
  spanId: string;
  parentSpanId?: string;
  name: string;
  kind: number;
  startTimeUnixNano: string;
  endTimeUnixNano: string;
  attributes: KeyValue[];
  status: { code: number; message?: string };
};
type Export = {
  resourceSpans: { resource: { attributes: KeyValue[] }; scopeSpans: { spans: WireSpan[] }[] }[];
};

export async function startCollector(): Promise<Collector> {
  const waiting = new Set<() => void>();
  const server: Server = createServer((request, response) => {
    let body = '';
    request.setEncoding('utf8');
    request.on('data', (part: string) => {
      body += part;
    });
    request.on('error', () => {});
    request.on('end', () => {
      collector.requests.push({ path: request.url ?? '', headers: request.headers, body });
      if (collector.answer === 200) collector.spans.push(...decode(JSON.parse(body) as Export));
      for (const look of waiting) look();
      reply(response, collector.answer);
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const collector: Collector = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    spans: [],
    requests: [],
    answer: 200,
    waitFor(enough) {
      const { promise, resolve } = Promise.withResolvers<readonly ReceivedSpan[]>();
      const look = (): void => {
        if (!enough(collector.spans)) return;
        waiting.delete(look);
        resolve(collector.spans);
      };
      waiting.add(look);
      look();
      return promise;
    },
    async close() {
      const closed = once(server, 'close');
      server.close();
      server.closeAllConnections();
      await closed;
    },
  };
  return collector;
}

function reply(response: ServerResponse, answer: Collector['answer']): void {
  if (answer === 'hang') return;
  if (answer === 'trickle') {
    response.writeHead(200, { 'content-type': 'application/json' });
    const timer = setInterval(() => response.write(' '), 100);
    response.on('close', () => clearInterval(timer));
    return;
  }
  response.writeHead(answer, { 'content-type': 'application/json' }).end('{"partialSuccess":{}}');
}

function decode(message: Export): ReceivedSpan[] {
  return message.resourceSpans.flatMap(({ resource, scopeSpans }) =>
    scopeSpans.flatMap(({ spans }) =>
      spans.map((span) => ({
        traceId: span.traceId,
        spanId: span.spanId,
        parentSpanId: span.parentSpanId ?? null,
        name: span.name,
        kind: span.kind,
        start: Number(BigInt(span.startTimeUnixNano) / 1000n) / 1000,
        end: Number(BigInt(span.endTimeUnixNano) / 1000n) / 1000,
        attributes: record(span.attributes),
        error: span.status.code === 2 ? (span.status.message ?? '') : null,
        resource: record(resource.attributes),
      })),
    ),
  );
}

function record(pairs: readonly KeyValue[]): Record<string, unknown> {
  return Object.fromEntries(pairs.map(({ key, value }) => [key, plain(value)]));
}

function plain(value: Value): unknown {
  if (value.arrayValue) return value.arrayValue.values.map(plain);
  return value.stringValue ?? value.doubleValue ?? Number(value.intValue);
}
