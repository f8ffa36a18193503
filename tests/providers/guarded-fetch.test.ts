import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { getCACertificates, setDefaultCACertificates } from 'node:tls';
import { brotliCompressSync, deflateSync, gzipSync } from 'node:zlib';
import { expect, test } from 'vitest';
import { DocumentError } from '../../src/providers/document-error.ts';
import {
  type GuardedClient,
  type GuardedTimeouts,
  openGuardedClient,
} from '../../src/providers/guarded-fetch.ts';
import { page, redirect, startWebServer, type WebServer } from '../peers/web-server.ts';

const MAX = 1024 * 1024;
const live = (): AbortSignal => new AbortController().signal;

async function withSite(
  use: (web: GuardedClient, site: WebServer) => Promise<void>,
  timeouts: Partial<GuardedTimeouts> = {},
): Promise<void> {
  await using site = await startWebServer();
  const web = openGuardedClient({ allowedPrivateHosts: [`127.0.0.1:${site.port}`], timeouts });
  try {
    await use(web, site);
  } finally {
    await web.close();
  }
}

async function failure(work: Promise<unknown>): Promise<DocumentError> {
  const error = await work.then(
    () => null,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(DocumentError);
  return error as DocumentError;
}

test('a page comes with what its headers say of it', async () => {
  await withSite(async (web, site) => {
    site.pages.set(
      '/docs/Report%20%C3%BC.pdf',
      page('%PDF', {
        'content-type': 'application/pdf',
        etag: '"v1"',
        'last-modified': 'Mon, 05 Jan 2026 10:00:00 GMT',
      }),
    );
    const url = `${site.origin}/docs/Report%20%C3%BC.pdf`;
    expect(await web.fetch(`${url}?token=t#part`, { signal: live() })).toEqual({
      bytes: Buffer.from('%PDF'),
      contentType: 'application/pdf',
      charset: null,
      fileName: 'Report ü.pdf',
      finalUrl: `${url}?token=t`,
      etag: '"v1"',
      lastModified: 'Mon, 05 Jan 2026 10:00:00 GMT',
      notModified: false,
    });
    const sent = site.requests.at(-1)?.headers;
    expect(sent).toMatchObject({ 'user-agent': 'agentd', 'accept-encoding': 'gzip, br' });
    expect(sent).not.toHaveProperty('if-none-match');
    expect(sent).not.toHaveProperty('referer');
    // The rules of the site and the page came over one connection.
    expect([site.requests.length, site.connections]).toEqual([2, 1]);
  });
});

test('the charset is one that TextDecoder knows or none, and the bytes stay as they were sent', async () => {
  await withSite(async (web, site) => {
    const bytes = Buffer.from([0xe4, 0xff, 0x00, 0xfe, 0x80]);
    for (const [type, charset] of [
      ['text/html; charset=ISO-8859-1', 'windows-1252'],
      ['text/html;charset="utf-8"', 'utf-8'],
      ["text/html; charset='shift_jis'", 'shift_jis'],
      ['text/html; boundary=x; CHARSET = UTF-16LE ', 'utf-16le'],
      ['text/html; charset=klingon', null],
      ['text/html; charset=', null],
      ['text/html; charset=utf-8\u0080', null],
      [`text/html; charset=${'x'.repeat(900)}`, null],
      ['text/html', null],
    ] as const) {
      site.pages.set('/', page(bytes, { 'content-type': type }));
      const read = await web.fetch(site.origin, { signal: live() });
      expect([type, read.charset]).toEqual([type, charset]);
      expect(read.bytes.equals(bytes)).toBe(true);
    }
    site.pages.set('/', (_request, response) => void response.end(bytes));
    expect(await web.fetch(site.origin, { signal: live() })).toMatchObject({
      contentType: null,
      charset: null,
      fileName: null,
    });
  });
});

test('the name is a name, from the header or the path, and never a path', async () => {
  await withSite(async (web, site) => {
    for (const [disposition, name] of [
      ['attachment; filename="a b.pdf"', 'a b.pdf'],
      ['attachment; filename=plain.docx', 'plain.docx'],
      ["attachment; filename=x; filename*=UTF-8''%e2%82%ac.pdf", '€.pdf'],
      ['attachment; filename="../../etc/passwd"', 'passwd'],
      ['attachment; filename="c:\\\\x\\\\y.pdf"', 'y.pdf'],
      ["attachment; filename*=UTF-8''%2e%2e%2fz.pdf", 'z.pdf'],
      ["attachment; filename*=UTF-8''%ff", '%ff'],
      ['attachment', 'get.php'],
    ] as const) {
      site.pages.set('/get.php', page('x', { 'content-disposition': disposition }));
      expect([disposition, (await web.fetch(`${site.origin}/get.php`, { signal: live() })).fileName]).toEqual(
        [disposition, name],
      );
    }
  });
});

test('validators go out and 304 comes back as not modified; unasked it is a failure', async () => {
  await withSite(async (web, site) => {
    site.pages.set('/', (request, response) => {
      const same =
        request.headers['if-none-match'] === '"v1"' || request.headers['if-modified-since'] === 'yesterday';
      if (same) response.writeHead(304, { etag: '"v1"' }).end();
      else page('new', { etag: '"v2"' })(request, response);
    });
    const held = await web.fetch(site.origin, { signal: live(), etag: '"v1"' });
    expect(held).toMatchObject({ notModified: true, etag: '"v1"' });
    expect(held.bytes).toHaveLength(0);
    expect((await web.fetch(site.origin, { signal: live(), lastModified: 'yesterday' })).notModified).toBe(
      true,
    );
    const fresh = await web.fetch(site.origin, { signal: live(), etag: '"v0"' });
    expect(fresh).toMatchObject({ notModified: false, etag: '"v2"' });
    // What no header can hold, from a row that anybody may have written, is not sent.
    for (const etag of ['"v1"\r\nx-evil: 1', '"\u00e4"', 'x'.repeat(2000), '']) {
      expect((await web.fetch(site.origin, { signal: live(), etag })).notModified).toBe(false);
      expect(site.requests.at(-1)?.headers).not.toHaveProperty('x-evil');
    }
    site.pages.set('/', page('', {}, 304));
    expect((await failure(web.fetch(site.origin, { signal: live() }))).code).toBe('http_error');
  });
});

test('five redirects are followed, a sixth, a loop and one without an address are not', async () => {
  await withSite(async (web, site) => {
    for (let n = 0; n < 7; n++)
      site.pages.set(
        `/${n}`,
        redirect(n === 3 ? `${site.origin}/4?x=1` : `${n + 1}`, [301, 302, 303, 307, 308][n % 5]),
      );
    site.pages.set('/7', page('arrived'));
    const arrived = await web.fetch(`${site.origin}/2`, { signal: live() });
    expect(arrived.bytes.toString()).toBe('arrived');
    expect(arrived.finalUrl).toBe(`${site.origin}/7`);
    expect((await failure(web.fetch(`${site.origin}/1`, { signal: live() }))).code).toBe('http_error');
    site.pages.set('/loop', redirect('/loop'));
    expect((await failure(web.fetch(`${site.origin}/loop`, { signal: live() }))).code).toBe('http_error');
    site.pages.set('/nowhere', (_request, response) => void response.writeHead(302).end());
    expect((await failure(web.fetch(`${site.origin}/nowhere`, { signal: live() }))).code).toBe('http_error');
    // Beyond ASCII, as many servers write it.
    site.pages.set('/umlaut', redirect('/ü'));
    site.pages.set('/%C3%BC', page('ü'));
    expect((await web.fetch(`${site.origin}/umlaut`, { signal: live() })).finalUrl).toBe(
      `${site.origin}/%C3%BC`,
    );
    // A long body of a redirect is not read, and one that never ends does not hold anybody.
    site.pages.set('/long', (_request, response) => {
      response.writeHead(302, { location: '/7' });
      const more = (): void => {
        while (!response.destroyed && response.write(Buffer.alloc(64 * 1024)));
      };
      response.on('drain', more);
      more();
    });
    expect((await web.fetch(`${site.origin}/long`, { signal: live() })).bytes.toString()).toBe('arrived');
  });
});

test('the caller’s headers go to the URL’s own origin, and are gone for good after a redirect elsewhere', async () => {
  await using one = await startWebServer();
  await using two = await startWebServer();
  const web = openGuardedClient({ allowedPrivateHosts: [`127.0.0.1:${one.port}`, `127.0.0.1:${two.port}`] });
  one.pages.set('/a', redirect('/b'));
  one.pages.set('/b', redirect(`${two.origin}/c`));
  two.pages.set('/c', redirect(`${one.origin}/d`));
  one.pages.set('/d', page('x'));
  const headers = {
    Authorization: 'Bearer t',
    Cookie: 'c=1',
    'X-Api-Key': 'k',
    Host: 'evil',
    'Content-Length': '5',
    Range: 'bytes=0-1',
  };
  await web.fetch(`${one.origin}/a`, { signal: live(), headers });
  const sent = (site: WebServer, path: string) =>
    site.requests.find((request) => request.path === path)?.headers ?? {};
  for (const path of ['/a', '/b']) {
    expect(sent(one, path)).toMatchObject({
      authorization: 'Bearer t',
      cookie: 'c=1',
      'x-api-key': 'k',
      host: `127.0.0.1:${one.port}`,
    });
    expect(sent(one, path)).not.toHaveProperty('range');
    expect(sent(one, path)).not.toHaveProperty('content-length');
  }
  for (const [site, path] of [
    [two, '/c'],
    [one, '/d'],
    [one, '/robots.txt'],
    [two, '/robots.txt'],
  ] as const) {
    for (const name of ['authorization', 'cookie', 'x-api-key'])
      expect(sent(site, path)).not.toHaveProperty(name);
  }
  await web.close();
});

test('a body over the limit ends the transfer: announced, endless, or only when inflated', async () => {
  await withSite(async (web, site) => {
    const read = (path: string) => web.fetch(site.origin + path, { signal: live(), maxBytes: MAX });
    const closed: Promise<unknown>[] = [];
    site.pages.set('/exact', page(Buffer.alloc(MAX)));
    site.pages.set('/announced', page(Buffer.alloc(MAX + 1)));
    site.pages.set('/endless', (_request, response) => {
      closed.push(new Promise((resolve) => response.on('close', resolve)));
      response.writeHead(200);
      const more = (): void => {
        while (!response.destroyed && response.write(Buffer.alloc(64 * 1024)));
      };
      response.on('drain', more);
      more();
    });
    const zeros = Buffer.alloc(20 * MAX);
    site.pages.set('/gzip-bomb', page(gzipSync(zeros), { 'content-encoding': 'gzip' }));
    site.pages.set('/br-bomb', page(brotliCompressSync(zeros), { 'content-encoding': 'br' }));
    expect((await read('/exact')).bytes).toHaveLength(MAX);
    for (const path of ['/announced', '/endless', '/gzip-bomb', '/br-bomb']) {
      const error = await failure(read(path));
      expect([path, error.code, error.isTransient]).toEqual([path, 'too_large', false]);
    }
    await Promise.all(closed);
    site.pages.set('/nested', page(gzipSync(gzipSync(zeros)), { 'content-encoding': 'gzip, gzip' }));
    expect((await failure(read('/nested'))).code).toBe('http_error');
  });
});

test('a body sent byte by byte comes whole and within its limit', async () => {
  await withSite(async (web, site) => {
    const count = 300_000;
    site.pages.set('/', (_request, response) => {
      response.writeHead(200, { 'transfer-encoding': 'chunked' });
      response.flushHeaders();
      const socket = response.socket;
      socket?.write('1\r\nx\r\n'.repeat(count));
      socket?.end('0\r\n\r\n');
    });
    const read = await web.fetch(site.origin, { signal: live(), maxBytes: count });
    expect(read.bytes.equals(Buffer.alloc(count, 'x'))).toBe(true);
    expect((await failure(web.fetch(site.origin, { signal: live(), maxBytes: count - 1 }))).code).toBe(
      'too_large',
    );
  });
});

test('codings are undone; broken, unknown and cut ones are failures', async () => {
  await withSite(async (web, site) => {
    const text = 'a page '.repeat(10_000);
    for (const [encoding, bytes] of [
      ['gzip', gzipSync(text)],
      ['X-GZip', gzipSync(text)],
      ['br', brotliCompressSync(text)],
      ['identity', Buffer.from(text)],
    ] as const) {
      site.pages.set('/', page(bytes, { 'content-encoding': encoding }));
      expect((await web.fetch(site.origin, { signal: live() })).bytes.toString()).toBe(text);
    }
    for (const [encoding, bytes] of [
      ['gzip', Buffer.from('no gzip at all')],
      ['br', Buffer.from('no brotli at all')],
      ['gzip', gzipSync(text).subarray(0, 60)],
      ['br', brotliCompressSync(text).subarray(0, 20)],
      ['deflate', deflateSync(text)],
      ['klingon', Buffer.from('x')],
    ] as const) {
      site.pages.set('/', page(bytes, { 'content-encoding': encoding }));
      const error = await failure(web.fetch(site.origin, { signal: live() }));
      expect([encoding, error.code, error.isTransient]).toEqual([encoding, 'http_error', true]);
    }
  });
});

test('statuses are failures with what to do; those that pass are tried again, when the site says so', async () => {
  await withSite(async (web, site) => {
    for (const [status, isTransient] of [
      [400, false],
      [401, false],
      [403, false],
      [404, false],
      [410, false],
      [451, false],
      [206, false],
      [305, false],
      [408, true],
      [425, true],
      [429, true],
      [500, true],
      [502, true],
      [503, true],
    ] as const) {
      site.pages.set('/', page('x', {}, status));
      const error = await failure(web.fetch(`${site.origin}/?key=hunter2`, { signal: live() }));
      expect([status, error.code, error.isTransient]).toEqual([status, 'http_error', isTransient]);
      expect(error.message).not.toContain('hunter2');
      expect(error.message).toContain(String(status));
    }
    site.pages.set('/', page('x', { 'retry-after': '120' }, 503));
    expect((await failure(web.fetch(site.origin, { signal: live() }))).retryAfterMs).toBe(120_000);
    site.pages.set('/', page('x', { 'retry-after': '120' }, 404));
    expect((await failure(web.fetch(site.origin, { signal: live() }))).retryAfterMs).toBeNull();
  });
});

test('sounds, pictures and films are refused before their body, whatever could be a document is not', async () => {
  await withSite(async (web, site) => {
    for (const type of [
      'video/mp4',
      'IMAGE/png',
      'audio/mpeg',
      'font/woff2',
      'text/event-stream',
      'multipart/x-mixed-replace;boundary=x',
    ]) {
      // Endless: it would be too large if it were read.
      site.pages.set(
        '/',
        (_request, response) => void response.writeHead(200, { 'content-type': type }).write('x'),
      );
      expect((await failure(web.fetch(site.origin, { signal: live() }))).code).toBe('unsupported');
    }
    for (const type of ['application/octet-stream', 'application/x-unknown', 'text/x-anything', 'nonsense']) {
      site.pages.set('/', page('x', { 'content-type': type }));
      expect((await web.fetch(site.origin, { signal: live() })).contentType).toBe(type);
    }
  });
});

test('silence ends by time: before the headers, within the body, and a drip that never stalls', async () => {
  await withSite(
    async (web, site) => {
      site.pages.set('/silent', () => {});
      site.pages.set(
        '/stall',
        (_request, response) => void response.writeHead(200, { 'content-length': '100' }).write('x'),
      );
      for (const path of ['/silent', '/stall']) {
        const error = await failure(web.fetch(site.origin + path, { signal: live() }));
        expect([path, error.code, error.isTransient]).toEqual([path, 'timeout', true]);
      }
    },
    { headersMs: 100, stallMs: 100 },
  );
  await withSite(
    async (web, site) => {
      site.pages.set('/drip', (_request, response) => {
        response.writeHead(200);
        const timer = setInterval(() => response.write('x'), 10);
        response.on('close', () => clearInterval(timer));
      });
      site.pages.set('/silent', () => {});
      for (const path of ['/drip', '/silent']) {
        const error = await failure(web.fetch(site.origin + path, { signal: live() }));
        expect([path, error.code, error.isTransient]).toEqual([path, 'timeout', true]);
      }
    },
    { totalMs: 300 },
  );
});

test('a host that is never connected, and a name that is never resolved, end by time', async () => {
  const web = openGuardedClient({
    allowedPrivateHosts: [],
    timeouts: { connectMs: 100 },
    resolve: () => new Promise(() => {}),
  });
  const error = await failure(web.fetch('http://docs.example.com/', { signal: live() }));
  expect(error).toMatchObject({ code: 'timeout', isTransient: true });
  await web.close();
});

test('the caller’s abort comes out as its own reason, wherever it strikes', async () => {
  await withSite(async (web, site) => {
    const why = new Error('drain');
    await expect(web.fetch(site.origin, { signal: AbortSignal.abort(why) })).rejects.toBe(why);
    const stop = new AbortController();
    site.pages.set('/robots.txt', () => setImmediate(() => stop.abort(why)));
    await expect(web.fetch(`${site.origin}/a`, { signal: stop.signal })).rejects.toBe(why);
  });
  await withSite(async (web, site) => {
    const why = new Error('drain');
    for (const path of ['/silent', '/half']) {
      const stop = new AbortController();
      site.pages.set(path, (_request, response) => {
        if (path === '/half') response.writeHead(200).write('x');
        setImmediate(() => stop.abort(why));
      });
      await expect(web.fetch(site.origin + path, { signal: stop.signal })).rejects.toBe(why);
    }
  });
});

test('what is no HTTP, ends too soon, or is not there, is said so', async () => {
  const raw = createServer((socket) => {
    socket.on('error', () => {});
    socket.on('data', () => socket.end(answer));
  });
  let answer = '';
  await new Promise<void>((resolve) => raw.listen(0, '127.0.0.1', resolve));
  const { port } = raw.address() as AddressInfo;
  const origin = `http://127.0.0.1:${port}`;
  const web = openGuardedClient({ allowedPrivateHosts: [`127.0.0.1:${port}`] });
  const robots = 'HTTP/1.1 404 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n';
  const cases: [string, string, boolean][] = [
    ['HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort', 'unreachable', true],
    ['HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabc', 'unreachable', true],
    ['SSH-2.0-OpenSSH_9.2\r\n', 'http_error', false],
    ['HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab', 'unreachable', true],
    [`HTTP/1.1 200 OK\r\n${`x: ${'y'.repeat(1000)}\r\n`.repeat(100)}\r\n`, 'http_error', false],
    ['', 'unreachable', true],
  ];
  for (const [text, code, isTransient] of cases) {
    answer = robots;
    await web.fetch(`${origin}/`, { signal: live() }).catch(() => {});
    answer = text;
    const error = await failure(web.fetch(`${origin}/`, { signal: live() }));
    expect([text.slice(0, 40), error.code, error.isTransient]).toEqual([
      text.slice(0, 40),
      code,
      isTransient,
    ]);
  }
  await new Promise((resolve) => raw.close(resolve));
  expect(await failure(web.fetch(`${origin}/`, { signal: live() }))).toMatchObject({
    code: 'unreachable',
    isTransient: true,
  });
  await web.close();
  for (const [code, transient] of [
    ['ENOTFOUND', false],
    ['EAI_AGAIN', true],
    ['ESERVFAIL', true],
  ] as const) {
    const lost = openGuardedClient({
      allowedPrivateHosts: [],
      resolve: async () => {
        throw Object.assign(new Error(`no ${code}`), { code });
      },
    });
    const error = await failure(lost.fetch('http://docs.example.com/', { signal: live() }));
    expect([code, error.code, error.isTransient]).toEqual([code, 'unreachable', transient]);
    await lost.close();
  }
});

test('https is verified, and a redirect from it to http is refused', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'agentd-tls-'));
  const certificate = (name: string): { key: string; cert: string } => {
    const [key, cert] = [join(folder, `${name}.key`), join(folder, `${name}.crt`)] as const;
    const subject = ['-subj', `/CN=${name}`, '-addext', `subjectAltName=DNS:${name}`];
    execFileSync(
      'openssl',
      [
        'req',
        '-x509',
        '-newkey',
        'ec',
        '-pkeyopt',
        'ec_paramgen_curve:prime256v1',
        '-nodes',
        '-days',
        '2',
        '-keyout',
        key,
        '-out',
        cert,
        ...subject,
      ],
      { stdio: 'ignore' },
    );
    return { key: readFileSync(key, 'utf8'), cert: readFileSync(cert, 'utf8') };
  };
  const own = certificate('site.example.com');
  const before = getCACertificates('default');
  await using secure = await startWebServer({ tls: own });
  await using plain = await startWebServer();
  const web = openGuardedClient({
    allowedPrivateHosts: [
      `site.example.com:${secure.port}`,
      `other.example.com:${secure.port}`,
      `127.0.0.1:${plain.port}`,
    ],
    resolve: async () => ['127.0.0.1'],
  });
  const site = `https://site.example.com:${secure.port}`;
  try {
    const unknown = await failure(web.fetch(`${site}/`, { signal: live() }));
    expect(unknown).toMatchObject({ code: 'unreachable', isTransient: false });
    expect(unknown.message).toContain('certificate');
    setDefaultCACertificates([...before, own.cert]);
    secure.pages.set('/', page('safe'));
    expect((await web.fetch(`${site}/`, { signal: live() })).bytes.toString()).toBe('safe');
    const wrongName = await failure(
      web.fetch(`https://other.example.com:${secure.port}/`, { signal: live() }),
    );
    expect(wrongName).toMatchObject({ code: 'unreachable', isTransient: false });
    secure.pages.set('/down', redirect(`${plain.origin}/`));
    const down = await failure(web.fetch(`${site}/down`, { signal: live() }));
    expect(down).toMatchObject({ code: 'http_error', isTransient: false });
    expect(plain.requests).toEqual([]);
    plain.pages.set('/up', redirect(`${site}/`));
    expect((await web.fetch(`${plain.origin}/up`, { signal: live() })).bytes.toString()).toBe('safe');
  } finally {
    setDefaultCACertificates(before);
    await web.close();
    rmSync(folder, { recursive: true });
  }
});
