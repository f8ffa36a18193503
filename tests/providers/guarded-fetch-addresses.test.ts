import { expect, test } from 'vitest';
import { DocumentError } from '../../src/providers/document-error.ts';
import { notPublic, parseAllowedHosts, refusal } from '../../src/providers/guarded-address.ts';
import { type GuardedClientOptions, openGuardedClient } from '../../src/providers/guarded-fetch.ts';
import { page, redirect, startWebServer } from '../peers/web-server.ts';
import {
  ADDRESSES_V4,
  ADDRESSES_V6,
  NAMES,
  PORTS,
  SCHEMES,
  SPELLINGS,
  SPELLINGS_ALONE,
  TRICKS,
} from './guarded-forms.ts';

const live = (): AbortSignal => new AbortController().signal;

async function failure(work: Promise<unknown>): Promise<DocumentError> {
  const error = await work.then(
    () => null,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(DocumentError);
  return error as DocumentError;
}

function client(options: Partial<GuardedClientOptions> = {}) {
  const opened = openGuardedClient({ allowedPrivateHosts: [], ...options });
  return Object.assign(opened, { [Symbol.asyncDispose]: () => opened.close() });
}

const literals = [
  ...ADDRESSES_V4.map((address) => `http://${address}/`),
  ...ADDRESSES_V6.map((address) => `http://[${address}]/`),
  ...SPELLINGS,
];
const everyForm = [
  ...literals,
  ...SPELLINGS_ALONE,
  ...NAMES.map((name) => `http://${name}/`),
  ...TRICKS,
  ...SCHEMES,
  ...PORTS,
];

test('every form of a private address, name, scheme, login or port is refused before a name is asked for', async () => {
  const asked: string[] = [];
  await using web = client({
    resolve: async (host) => {
      asked.push(host);
      return ['93.184.216.34'];
    },
  });
  expect(new Set(everyForm).size).toBe(everyForm.length);
  expect(everyForm.length).toBeGreaterThanOrEqual(170);
  for (const url of everyForm) {
    const error = await failure(web.fetch(url, { signal: live() }));
    expect([url, error.code, error.isTransient]).toEqual([url, 'blocked_address', false]);
    expect(error.message).not.toContain('hunter2');
  }
  expect(asked).toEqual([]);
});

test('a redirect to any of them is refused as well', async () => {
  await using site = await startWebServer();
  await using web = client({
    allowedPrivateHosts: [`127.0.0.1:${site.port}`],
    resolve: async () => ['127.0.0.1'],
  });
  const followed = everyForm.filter((url) => !SPELLINGS_ALONE.includes(url));
  for (const [n, url] of followed.entries()) {
    site.pages.set('/go', redirect(url, [301, 302, 303, 307, 308][n % 5]));
    const error = await failure(web.fetch(`${site.origin}/go`, { signal: live() }));
    expect([url, error.code]).toEqual([url, 'blocked_address']);
  }
  expect(site.requests.filter(({ path }) => path === '/go')).toHaveLength(followed.length);
  expect(site.requests.every(({ path }) => path === '/go' || path === '/robots.txt')).toBe(true);
});

test('a name whose answer holds one private address is refused, wherever among public ones it stands', async () => {
  for (const address of [...ADDRESSES_V4, ...ADDRESSES_V6]) {
    for (const answer of [
      [address],
      ['93.184.216.34', '2606:4700::1111', address],
      [address, '93.184.216.34'],
    ]) {
      await using web = client({ resolve: async () => answer });
      const error = await failure(web.fetch('http://docs.example.com/', { signal: live() }));
      expect([answer, error.code]).toEqual([answer, 'blocked_address']);
      expect(error.message).not.toContain(address);
    }
  }
});

test('a name that changes its answer after the check has nothing to win', async () => {
  await using site = await startWebServer();
  // Each request is a connection of its own, and so a lookup.
  site.pages.set('/robots.txt', page('', { connection: 'close' }));
  site.pages.set('/page', page('secret', { connection: 'close' }));
  const answers = ['127.0.0.1', '169.254.169.254'];
  const asked: string[] = [];
  await using web = client({
    allowedPrivateHosts: [`rebind.example.com:${site.port}`],
    resolve: async (host) => {
      asked.push(host);
      return [answers[asked.length - 1] ?? '127.0.0.1'];
    },
  });
  const error = await failure(web.fetch(`http://rebind.example.com:${site.port}/page`, { signal: live() }));
  expect(error.code).toBe('blocked_address');
  expect(asked).toHaveLength(2);
  expect(site.requests.map(({ path }) => path)).toEqual(['/robots.txt']);
});

test('the connection goes to the very address that was judged, and the name is asked for once', async () => {
  await using one = await startWebServer();
  await using two = await startWebServer({ host: '127.0.0.2', port: one.port });
  two.pages.set('/page', page('from the second'));
  let asked = 0;
  await using web = client({
    allowedPrivateHosts: [`site.example.com:${one.port}`],
    resolve: async () => {
      asked++;
      return asked === 1 ? ['127.0.0.2'] : ['127.0.0.1'];
    },
  });
  const read = await web.fetch(`http://site.example.com:${one.port}/page`, { signal: live() });
  expect(read.bytes.toString()).toBe('from the second');
  expect(two.requests.map(({ headers }) => headers.host)).toEqual([
    `site.example.com:${one.port}`,
    `site.example.com:${one.port}`,
  ]);
  expect([asked, one.connections]).toEqual([1, 0]);
});

test('what the operator opens is open, and nothing beside it', async () => {
  await using site = await startWebServer();
  site.pages.set('/', page('inside'));
  const { port } = site;
  const other = port === 65_535 ? port - 1 : port + 1;
  const open = async (allowed: string[], url: string, address = '127.0.0.1'): Promise<string> => {
    await using web = client({ allowedPrivateHosts: allowed, resolve: async () => [address] });
    return await web.fetch(url, { signal: live() }).then(
      ({ bytes }) => bytes.toString(),
      (error: DocumentError) => error.code,
    );
  };
  const direct = `http://127.0.0.1:${port}/`;
  const named = `http://wiki.internal:${port}/`;
  expect(await open([`127.0.0.1:${port}`], direct)).toBe('inside');
  expect(await open([`127.0.0.0/8:${port}`], direct)).toBe('inside');
  expect(await open([`127.0.0.1:${port}`], `http://2130706433:${port}/`)).toBe('inside');
  expect(await open([` Wiki.Internal:${port} `], named)).toBe('inside');
  for (const [allowed, url, address] of [
    [[], direct],
    [['127.0.0.1'], direct],
    [[`127.0.0.1:${other}`], direct],
    [[`127.0.0.2:${port}`], direct],
    [[`10.0.0.0/8:${port}`], direct],
    [[`localhost:${port}`], direct],
    [[`127.0.0.1:${port}`], `http://[::ffff:127.0.0.1]:${port}/`],
    [[`127.0.0.1:${port}`], named],
    [['wiki.internal'], named],
    [[`wiki.internal:${port}`], `http://x.wiki.internal:${port}/`],
    [[`wiki.internal:${port}`], `http://wiki.internal.example.com:${port}/`],
    [[`wiki.internal:${port}`], named, '169.254.169.254'],
    [[`wiki.internal:${port}`], named, '224.0.0.1'],
    [[`wiki.internal:${port}`], named, '168.63.129.16'],
    [[`wiki.internal:${port}`], named, '::ffff:127.0.0.1'],
  ] as [string[], string, string?][]) {
    expect([allowed, url, address, await open(allowed, url, address)]).toEqual([
      allowed,
      url,
      address,
      'blocked_address',
    ]);
  }
});

test('an entry that is no host is an error that names it', () => {
  for (const entry of [
    'a b',
    '1.2.3',
    '10.0.0.0/33',
    'host:99999',
    '[zz]',
    'http://x',
    '*',
    '*.example.com',
    'x:0',
    '::1/129',
  ]) {
    expect(() => openGuardedClient({ allowedPrivateHosts: [entry] })).toThrow(entry);
  }
  expect(
    parseAllowedHosts(['::1', '[::1]:80', 'fd00::/8', '[fd00::/8]:81', 'minio', 'a_b.c:1']),
  ).toHaveLength(6);
});

test('public addresses are public', () => {
  for (const address of [
    '8.8.8.8',
    '1.1.1.1',
    '93.184.216.34',
    '172.15.255.255',
    '172.32.0.1',
    '100.63.255.255',
    '100.128.0.1',
    '169.253.1.1',
    '192.167.1.1',
    '223.255.255.255',
    '11.0.0.1',
    '126.1.1.1',
    '128.0.0.1',
    '2606:4700::1111',
    '2001:4860:4860::8888',
    '2a00:1450:4001::1',
    '2400:cb00::1',
  ]) {
    expect([address, notPublic(address)]).toEqual([address, null]);
    expect(refusal([], 'example.com', address, 443)).toBeNull();
  }
  for (const text of ['', 'x', '1.2.3', '999.1.1.1', '127.1', '0x7f.1', ':::'])
    expect(notPublic(text)).not.toBeNull();
});
