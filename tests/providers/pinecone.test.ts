/** Pinecone's official client within our limits: what it sends, and what becomes of what it is answered. */
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { systemClock } from '../../src/clock.ts';
import { openPinecones, type PineconeIndex, type Pinecones } from '../../src/providers/pinecone.ts';
import { RemoteStoreError } from '../../src/providers/remote-store-error.ts';
import { columnSecretStore } from '../../src/secrets.ts';
import { type PineconeServer, startPineconeServer } from '../peers/pinecone-server.ts';
import { page, redirect, startWebServer } from '../peers/web-server.ts';

const DIMENSIONS = 1536;
const SPACE = 'space';
const WHERE = {
  datastore_id: '00000000-0000-4000-8000-000000000001',
  workspace_id: '00000000-0000-4000-8000-000000000002',
};

let peer: PineconeServer;
let stores: Pinecones;
const opened = (config: object, timeoutMs = 5_000, of: Pinecones = stores): Promise<PineconeIndex> =>
  of.open({ ...WHERE, config }, new AbortController().signal, timeoutMs);
const open = (): Promise<PineconeIndex> => opened({ api_key: 'key', index: 'i' });
const code = async (work: Promise<unknown>): Promise<string> => {
  const error = await work.catch((failure: unknown) => failure);
  return error instanceof RemoteStoreError ? error.code : `no RemoteStoreError: ${error}`;
};
const vectors = (count: number, dimensions = DIMENSIONS, metadata = {}) =>
  Array.from({ length: count }, (_, n) => ({
    id: `v#${String(n).padStart(5, '0')}`,
    // the longest numbers that there are
    values: Array.from({ length: dimensions }, (_, i) => -1.1754944e-38 * (1 + ((n + i) % 7))),
    metadata,
  }));

beforeAll(async () => {
  peer = await startPineconeServer();
  stores = openPinecones({
    url: peer.url,
    allowedPrivateHosts: [],
    clock: systemClock,
    secrets: columnSecretStore([]),
  });
});
afterAll(async () => {
  await stores?.close();
  await peer?.close();
});
beforeEach(() => {
  peer.indexes.set('i', { dimension: DIMENSIONS, apiKey: 'key', namespaces: new Map() });
  peer.calls.length = 0;
  peer.rejected.length = 0;
  peer.fault = () => null;
});
const calls = (path: string): number => peer.calls.filter((call) => call.path === path).length;

test('no request is over the documented limits, whatever is to be sent', async () => {
  const index = await open();
  expect(index.dimension).toBe(DIMENSIONS);
  await index.upsert(SPACE, vectors(250));
  expect(peer.vectors('i', SPACE)).toHaveLength(250);
  expect(calls('/vectors/upsert')).toBeGreaterThan(1);

  peer.indexes.set('small', { dimension: 2, apiKey: 'small', namespaces: new Map() });
  const small = await opened({ api_key: 'small', index: 'small' });
  peer.calls.length = 0;
  await small.upsert(SPACE, vectors(2500, 2, { heading: 'ü'.repeat(100) }));
  expect(calls('/vectors/upsert')).toBe(3);
  await small.delete(
    SPACE,
    peer
      .vectors('small', SPACE)
      .slice(0, 2300)
      .map(({ id }) => id),
  );
  expect(calls('/vectors/delete')).toBe(3);
  const ids: string[] = [];
  let token: string | null = null;
  do {
    const found = await small.list(SPACE, 'v#', token);
    ids.push(...found.ids);
    token = found.next;
  } while (token !== null);
  expect(ids).toHaveLength(200);
  expect(peer.rejected).toEqual([]);
});

test('a namespace that is not there holds nothing', async () => {
  const index = await open();
  await index.delete('nowhere', ['a']);
  expect(await index.list('nowhere', '')).toEqual({ ids: [], next: null });
  expect(await index.query('nowhere', vectors(1)[0]?.values ?? [], 3, { key: 'k', values: ['v'] })).toEqual(
    [],
  );
});

test('each failure has its word', async () => {
  expect(await code(opened({ index: 'i' }))).toBe('no_credentials');
  expect(await code(opened({ api_key: 'key' }))).toBe('invalid_config');
  expect(await code(opened({ api_key: 'key', index: '../indexes' }))).toBe('invalid_config');
  expect(await code(opened({ api_key: 'line\nbreak', index: 'i' }))).toBe('credentials_refused');
  expect(await code(opened({ api_key: 'other', index: 'i' }))).toBe('credentials_refused');
  expect(await code(opened({ api_key: 'key', index: 'j' }))).toBe('index_not_found');
  const index = await open();
  expect(await code(index.upsert(SPACE, vectors(1, 3)))).toBe('dimension_mismatch');
  for (const [status, word] of [
    [400, 'refused'],
    [429, 'rate_limited'],
    [500, 'store_error'],
    [503, 'store_error'],
  ] as const) {
    peer.fault = () => ({ kind: 'status', status, retryAfter: 7 });
    peer.calls.length = 0;
    const error = await index.upsert(SPACE, vectors(1)).catch((failure: unknown) => failure);
    expect(error).toMatchObject({ code: word });
    if (status !== 400) expect(error).toMatchObject({ isTransient: true, retryAfterMs: 7000 });
    // the client's own retries would hold a turn up, and forget what was said
    expect(peer.calls).toHaveLength(1);
  }
  peer.fault = () => ({ kind: 'lose' });
  expect(await code(index.upsert(SPACE, vectors(1)))).toBe('unreachable');
  peer.fault = () => null;
  const hasty = await opened({ api_key: 'key', index: 'i' }, 200);
  peer.fault = () => ({ kind: 'hang' });
  expect(await code(hasty.upsert(SPACE, vectors(1)))).toBe('timeout');
});

test('a key goes to no place that nobody configured: a redirect is an answer', async () => {
  const thief = await startWebServer();
  const site = await startWebServer();
  thief.pages.set('/indexes/i', page('{}'));
  site.pages.set('/indexes/i', redirect(`${thief.origin}/indexes/i`));
  const own = openPinecones({
    url: site.origin,
    allowedPrivateHosts: [`127.0.0.1:${thief.port}`],
    clock: systemClock,
    secrets: columnSecretStore([]),
  });
  expect(await code(opened({ api_key: 'key', index: 'i' }, 5_000, own))).toBe('refused');
  expect(site.requests[0]?.headers['api-key']).toBe('key');
  expect(thief.requests).toEqual([]);
  await own.close();
  await site.close();
  await thief.close();
});
