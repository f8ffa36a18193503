/** Zep's official client within our limits: what it sends, and what becomes of what it is answered. */
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { systemClock } from '../../src/clock.ts';
import { RemoteStoreError } from '../../src/providers/remote-store-error.ts';
import { openZeps, type ZepGraph, type Zeps } from '../../src/providers/zep.ts';
import { columnSecretStore } from '../../src/secrets.ts';
import { startZepServer, type ZepServer } from '../peers/zep-server.ts';

const STORE = {
  id: '00000000-0000-4000-8000-000000000001',
  datastore_id: '00000000-0000-4000-8000-000000000002',
  workspace_id: '00000000-0000-4000-8000-000000000003',
};
const WORKSPACE = STORE.workspace_id;

let peer: ZepServer;
let stores: Zeps;
const opened = (config: object, timeoutMs = 5_000): Promise<ZepGraph> =>
  stores.open({ ...STORE, config }, WORKSPACE, new AbortController().signal, timeoutMs);
const open = (): Promise<ZepGraph> => opened({ api_key: 'key' });
const code = async (work: Promise<unknown>): Promise<string> => {
  const error = await work.catch((failure: unknown) => failure);
  return error instanceof RemoteStoreError ? error.code : `no RemoteStoreError: ${error}`;
};
const episode = (n: number, text = `text ${n}`) => ({
  text,
  label: `label ${n}`,
  metadata: { n, batch: 'b' },
});

beforeAll(async () => {
  peer = await startZepServer();
  stores = openZeps({
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
  peer.accounts.set('key', new Map());
  peer.fault = () => null;
  peer.calls.length = 0;
});
afterEach(() => expect(peer.rejected.splice(0)).toEqual([]));

test('a graph is named by workspace and store, is made once, and goes once', async () => {
  const graph = await opened({ api_key: 'key', graph_id: 'another', graphId: 'another' });
  expect(await graph.exists()).toBe(false);
  await graph.make();
  await graph.make();
  expect([...(peer.accounts.get('key')?.keys() ?? [])]).toEqual([`agentd-${WORKSPACE}-${STORE.id}`]);
  expect(await graph.exists()).toBe(true);
  await graph.drop();
  await graph.drop();
  expect(peer.accounts.get('key')?.size).toBe(0);
});

test('what is added is listed page by page, told by its label, found by its metadata and its id, and deleted', async () => {
  const graph = await open();
  await graph.make();
  const ids: string[] = [];
  for (let from = 0; from < 120; from += 20) {
    const added = await graph.add(Array.from({ length: 20 }, (_, n) => episode(from + n)));
    expect(added.map(({ label }) => label).sort()).toEqual(
      Array.from({ length: 20 }, (_, n) => `label ${from + n}`).sort(),
    );
    ids.push(...added.map(({ id }) => id));
  }
  const [single] = await graph.add([{ ...episode(500), metadata: { batch: 'alone' } }]);
  const listed: string[] = [];
  for (let token: string | null = null; ; ) {
    const page = await graph.list(token);
    listed.push(...page.episodes.map(({ id }) => id));
    token = page.next;
    if (token === null) break;
  }
  expect(listed.sort()).toEqual([...ids, single?.id].sort());
  expect(await graph.list(null, { key: 'batch', value: 'alone' })).toEqual({
    episodes: [single],
    next: null,
  });
  const unknown = '00000000-0000-4000-8000-000000000009';
  expect(await graph.present([ids[0] ?? '', unknown])).toEqual(new Set([ids[0]]));
  await graph.delete(ids[0] ?? '');
  await graph.delete(ids[0] ?? '');
  expect(await graph.present([ids[0] ?? ''])).toEqual(new Set());
});

test('an episode and a query are cut to what Zep takes, and no character is halved', async () => {
  const graph = await open();
  await graph.make();
  await graph.add([episode(1, '😀'.repeat(10_001))]);
  expect(await graph.search('😀'.repeat(401))).toEqual({ episodes: [], facts: [] });
  expect(await graph.search('   ')).toEqual({ episodes: [], facts: [] });
});

test('facts come with their episodes; what no longer holds is none', async () => {
  const graph = await open();
  await graph.make();
  const [added] = await graph.add([episode(1, 'Refunds take fourteen days')]);
  const state = [...(peer.accounts.get('key')?.values() ?? [])][0];
  const id = added?.id ?? '';
  state?.edges.push(
    { uuid: id, fact: 'Refunds take 14 days', episodes: [id] },
    { uuid: id, fact: 'Refunds took 30 days', episodes: [id], invalid_at: '2020-01-01T00:00:00Z' },
    { uuid: id, fact: 'Refunds of nobody', episodes: ['x'] },
  );
  expect(await graph.search('refunds')).toEqual({
    episodes: [id],
    facts: [{ fact: 'Refunds take 14 days', episodes: [id] }],
  });
});

test.each([
  [401, 'credentials_refused', false],
  [403, 'credentials_refused', false],
  [400, 'refused', false],
  [404, 'graph_not_found', true],
  [429, 'rate_limited', true],
  [500, 'store_error', true],
] as const)('a %i is %s', async (status, expected, isTransient) => {
  const graph = await open();
  peer.fault = () => ({ kind: 'status', status, retryAfter: 7 });
  const error = await graph.add([episode(1), episode(2)]).catch((failure: unknown) => failure);
  expect(error).toMatchObject({ code: expected, isTransient });
  expect(JSON.stringify(error)).not.toContain('as ordered');
  if (status === 429) expect(error).toMatchObject({ retryAfterMs: 7_000 });
  // the client would try again by itself
  expect(peer.calls).toHaveLength(1);
});

test('a hang ends at the deadline, and at the signal with its reason', async () => {
  peer.fault = () => ({ kind: 'hang' });
  expect(await code((await opened({ api_key: 'key' }, 100)).list(null))).toBe('timeout');
  const stop = new AbortController();
  const graph = await stores.open({ ...STORE, config: { api_key: 'key' } }, WORKSPACE, stop.signal, 5_000);
  const listing = graph.list(null);
  stop.abort(new Error('stopping'));
  await expect(listing).rejects.toThrow('stopping');
});

test.each([
  ['no_credentials', {}],
  ['credentials_refused', { api_key: 'two words' }],
  ['credentials_refused', { api_key: 'somebody-elses' }],
  ['blocked_address', { api_key: 'key', host: 'https://169.254.169.254' }],
  ['blocked_address', { api_key: 'key', host: 'http://api.getzep.com' }],
  ['blocked_address', { api_key: 'key', base_url: 'https://getzep.com.evil.example' }],
  ['blocked_address', { api_key: 'key', base_url: 'https://evilgetzep.com' }],
  ['blocked_address', { api_key: 'key', host: 'https://user:password@api.getzep.com' }],
  ['invalid_config', { api_key: 'key', host: 'no address at all' }],
])('%s: a config of %j reaches nobody with a key', async (expected, config) => {
  expect(await code(opened(config).then((graph) => graph.list(null)))).toBe(expected);
  expect(peer.calls.length).toBe(JSON.stringify(config).includes('somebody') ? 1 : 0);
});

test('users are forgotten once each, also where they are listed for ever after', async () => {
  const user = (n: number) => `agentd-${WORKSPACE}-${n}`;
  const stranger = 'agentd-00000000-0000-4000-8000-000000000009-1';
  const users = new Set([...Array.from({ length: 250 }, (_, n) => user(n)), stranger]);
  peer.talks.set('key', { users, threads: new Map() });
  const forget = () =>
    stores.forgetMemories(
      { ...STORE, config: { api_key: 'key' } },
      WORKSPACE,
      AbortSignal.timeout(20_000),
      5_000,
    );
  expect(await forget()).toBe(250);
  expect([...users]).toEqual([stranger]);

  class Lingering extends Set<string> {
    override delete(id: string): boolean {
      return this.has(id);
    }
  }
  peer.talks.set('key', { users: new Lingering([user(1), user(2)]), threads: new Map() });
  peer.calls.length = 0;
  expect(await forget()).toBe(2);
  expect(peer.calls.filter(({ method }) => method === 'DELETE')).toHaveLength(2);
});
