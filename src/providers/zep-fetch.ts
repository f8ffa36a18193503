/** Zep's official client over our transport: it takes what it calls a fetcher, and leaves connections, deadlines and retries to that. */
import type { ZepClient } from '@getzep/zep-cloud';
import { RemoteStoreError } from './remote-store-error.ts';
import type { StoreService, StoreTransport } from './remote-store-fetch.ts';

type Fetcher = NonNullable<NonNullable<ConstructorParameters<typeof ZepClient>[0]>['fetcher']>;
type Args = Parameters<Fetcher>[0];

/** Zep as the transport sees it. */
export const ZEP: StoreService = {
  name: 'Zep',
  ownHost: /(?:^|\.)getzep\.com$/,
  // one host for everybody: those whose requests hang must leave room for searches
  connections: 128,
  passedHeaders: ['authorization', 'content-type'],
  answerHeaders: ['zep-next-cursor'],
  statusError: (where, status) =>
    status === 404
      ? new RemoteStoreError(
          'graph_not_found',
          `${where} does not have what was asked for (404). It is made again.`,
          { transient: true },
        )
      : null,
};

/** What the client sends goes by `send`; what that throws reaches the caller as it is. */
export function zepFetcher(send: ReturnType<StoreTransport['fetchWithin']>): Fetcher {
  return async <R>(args: Args) => {
    const headers: Record<string, string> = {};
    for (const [name, given] of Object.entries(args.headers ?? {})) {
      const value = await (typeof given === 'function' ? given() : given);
      if (value !== undefined) headers[name] = value;
    }
    if (args.contentType !== undefined) headers['content-type'] = args.contentType;
    const response = await send(withQuery(args.url, args.queryParameters), {
      method: args.method,
      headers,
      ...(args.body === undefined ? {} : { body: JSON.stringify(args.body) }),
    });
    const text = await response.text();
    let body: unknown;
    try {
      body = text === '' ? undefined : JSON.parse(text);
    } catch (error) {
      throw new RemoteStoreError('store_error', "The store's answer is no JSON. It is tried again.", {
        transient: true,
        cause: error,
      });
    }
    const { status, statusText, redirected, type, url } = response;
    const rawResponse = { headers: response.headers, status, statusText, redirected, type, url };
    return { ok: true, body: body as R, rawResponse };
  };
}

function withQuery(url: string, given: Args['queryParameters']): string {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(given ?? {})) {
    for (const one of Array.isArray(value) ? value : [value]) query.append(name, String(one));
  }
  return query.size === 0 ? url : `${url}?${query}`;
}

/** What a client makes of an answer that is not as it should be has no name of its own. Throws RemoteStoreError, or the signal's reason. */
export async function readable<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    signal.throwIfAborted();
    if (error instanceof RemoteStoreError) throw error;
    throw new RemoteStoreError('store_error', "The store's answer can't be read. It is tried again.", {
      transient: true,
      cause: error,
    });
  }
}
