/** The client with the resolver that it has in earnest, against a name server on loopback. */
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { isIP } from 'node:net';
import { expect, test } from 'vitest';
import type { DocumentError } from '../../src/providers/document-error.ts';
import { parseAllowedHosts } from '../../src/providers/guarded-address.ts';
import { guardedConnector, publicResolver } from '../../src/providers/guarded-connect.ts';
import { openGuardedClient } from '../../src/providers/guarded-fetch.ts';
import { page, startWebServer } from '../peers/web-server.ts';

/** Answers each question by name with the next of its lists of addresses; NXDOMAIN for a name that it does not know. */
async function startNameServer(names: Record<string, string[][]>) {
  const socket = createSocket('udp4');
  const asked: string[] = [];
  socket.on('message', (query, from) => {
    const labels: string[] = [];
    let at = 12;
    for (let length = query[at] ?? 0; length > 0; length = query[at] ?? 0) {
      labels.push(query.toString('latin1', at + 1, at + 1 + length));
      at += length + 1;
    }
    const name = labels.join('.').toLowerCase();
    const type = query.readUInt16BE(at + 1);
    const question = query.subarray(12, at + 5);
    asked.push(`${type === 28 ? 'AAAA' : 'A'} ${name}`);
    const turn = asked.filter((each) => each === asked.at(-1)).length - 1;
    const lists = names[name];
    const list = lists?.[Math.min(turn, lists.length - 1)] ?? [];
    const records = list
      .filter((address) => isIP(address) === (type === 28 ? 6 : 4))
      .map((address) => {
        const bytes =
          type === 28
            ? Buffer.from(
                address
                  .split(':')
                  .map((part) => part.padStart(4, '0'))
                  .join(''),
                'hex',
              )
            : Buffer.from(address.split('.').map(Number));
        const head = Buffer.from([0xc0, 12, 0, type, 0, 1, 0, 0, 0, 0, 0, bytes.length]);
        return Buffer.concat([head, bytes]);
      });
    const header = Buffer.alloc(12);
    query.copy(header, 0, 0, 2);
    header.writeUInt16BE(lists === undefined ? 0x8183 : 0x8180, 2);
    header.writeUInt16BE(1, 4);
    header.writeUInt16BE(records.length, 6);
    socket.send(Buffer.concat([header, question, ...records]), from.port, from.address);
  });
  socket.bind(0, '127.0.0.1');
  await once(socket, 'listening');
  return {
    asked,
    server: `127.0.0.1:${socket.address().port}`,
    [Symbol.asyncDispose]: () => new Promise<void>((resolve) => socket.close(() => resolve())),
  };
}

test('names are asked of DNS, both families, and judged by every answer', async () => {
  await using names = await startNameServer({
    'private.example.com': [['10.0.0.1']],
    'metadata.example.com': [['169.254.169.254']],
    'six.example.com': [['0:0:0:0:0:0:0:1']],
    'mapped.example.com': [['0:0:0:0:0:ffff:7f00:1']],
    'mixed.example.com': [['93.184.216.34', '2606:4700:0:0:0:0:0:1111', '192.168.0.1']],
    'mixed-six.example.com': [['93.184.216.34', 'fd00:ec2:0:0:0:0:0:254']],
    'empty.example.com': [[]],
  });
  const web = openGuardedClient({ allowedPrivateHosts: [], resolve: publicResolver([], [names.server]) });
  const codeOf = (name: string): Promise<string> =>
    web.fetch(`http://${name}/`, { signal: new AbortController().signal }).then(
      () => 'fetched',
      (error: DocumentError) => error.code,
    );
  for (const name of ['private', 'metadata', 'six', 'mapped', 'mixed', 'mixed-six']) {
    expect([name, await codeOf(`${name}.example.com`)]).toEqual([name, 'blocked_address']);
    expect(names.asked).toContain(`A ${name}.example.com`);
    expect(names.asked).toContain(`AAAA ${name}.example.com`);
  }
  expect(await codeOf('empty.example.com')).toBe('unreachable');
  expect(await codeOf('nobody.example.com')).toBe('unreachable');
  await web.close();
});

test('a name whose answer in DNS changes is judged anew for each connection', async () => {
  await using site = await startWebServer();
  site.pages.set('/', page('secret'));
  await using names = await startNameServer({ 'rebind.example.com': [['127.0.0.1'], ['169.254.169.254']] });
  const { port } = site;
  // Opened by name for the guard; the resolver is to ask DNS all the same.
  const allowed = parseAllowedHosts([`rebind.example.com:${port}`]);
  const connect = guardedConnector(allowed, publicResolver([], [names.server]), 5000);
  const attempt = (): Promise<string> =>
    new Promise((resolve) => {
      connect({ hostname: 'rebind.example.com', protocol: 'http:', port: String(port) }, (error, socket) => {
        resolve(error ? (error as DocumentError).code : (socket?.remoteAddress ?? ''));
        socket?.destroy();
      });
    });
  expect([await attempt(), await attempt()]).toEqual(['127.0.0.1', 'blocked_address']);
});

test('a name that the operator opened is resolved as the system does', async () => {
  await using site = await startWebServer();
  site.pages.set('/', page('inside'));
  await using names = await startNameServer({});
  const entry = `localhost:${site.port}`;
  const web = openGuardedClient({
    allowedPrivateHosts: [entry],
    resolve: publicResolver(parseAllowedHosts([entry]), [names.server]),
  });
  const read = await web.fetch(`http://localhost:${site.port}/`, { signal: new AbortController().signal });
  expect(read.bytes.toString()).toBe('inside');
  expect(names.asked).toEqual([]);
  await web.close();
});
