/** Servers of tools that do what they should not: each is its own connection's trouble, which says what is wrong and what to do. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  dribbles,
  floods,
  type HostileMcp,
  hangs,
  plainTool,
  send,
  startHostileMcp,
} from '../peers/hostile-mcp.ts';
import { type TestDaemon, testDaemon } from '../support/daemon.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, type Platform } from '../support/platform.ts';
import { until } from '../support/runs.ts';

let db: TestDatabase;
let peer: HostileMcp;
let elsewhere: HostileMcp;
let platform: Platform;
let daemon: TestDaemon;
let config: string;

beforeAll(async () => {
  db = await testDatabase();
  peer = await startHostileMcp();
  elsewhere = await startHostileMcp();
  platform = await makePlatform(db);
  config = await insert(db, 'public.mcp_configurations', { agent_id: platform.agentId });
  daemon = await testDaemon(
    db,
    { url: 'http://127.0.0.1:9', apiKey: 'none' },
    { env: { AGENTD_ALLOWED_PRIVATE_HOSTS: peer.host } },
  );
});
afterAll(async () => {
  await daemon?.stop();
  await peer?.[Symbol.asyncDispose]();
  await elsewhere?.[Symbol.asyncDispose]();
  await db?.dispose();
});

/** A connection whose server is asked once, and waited for so long. */
async function connect(url: string, timeoutMs = 30_000): Promise<string> {
  const server = await insert(db, 'public.mcp_servers', {
    config_id: config,
    name: url,
    endpoint_url: url,
    timeout_ms: timeoutMs,
    max_retries: 0,
  });
  return insert(db, 'public.agent_mcp_connections', {
    agent_id: platform.agentId,
    mcp_server_id: server,
    connection_name: 'c',
    server_url: url,
  });
}
type Looked = {
  reason_code: string | null;
  reason: string | null;
  tools_listed: number | null;
  tools_usable: number | null;
};
const looked = (id: string): Promise<Looked> =>
  until(
    `connection ${id} was looked at`,
    async () => {
      const [row] = await db.query<Looked & { looks: number }>(
        `select c.*, (select count(*)::integer from public.mcp_refresh_log l where l.connection_id = c.id) as looks
           from public.agent_mcp_connections c where c.id = $1`,
        [id],
      );
      return row && row.looks > 0 ? row : false;
    },
    // twenty of them are waited for at once
    45_000,
  );
const codes = async (id: string): Promise<Record<string, string | null>> =>
  Object.fromEntries(
    (
      await db.query<{ tool_name: string; reason_code: string | null }>(
        'select tool_name, reason_code from public.mcp_tools_cache where connection_id = $1',
        [id],
      )
    ).map((row) => [row.tool_name, row.reason_code]),
  );
const tool = (name: string, inputSchema: unknown): Record<string, unknown> => ({
  ...plainTool(name),
  inputSchema,
});
const deep = (levels: number): unknown => {
  let schema: unknown = { type: 'string' };
  for (let i = 0; i < levels; i++) schema = { type: 'object', properties: { a: schema } };
  return schema;
};

/** What a server does, and the reason that its connection gives. */
const servers: readonly (readonly [string, string, () => string])[] = [
  ['hangs', 'timeout', () => peer.raw('/hangs', hangs)],
  ['hangs at the listing', 'timeout', () => peer.serve('/hangs-later', () => undefined)],
  ['dribbles an endless stream', 'timeout', () => peer.raw('/dribbles', dribbles('text/event-stream'))],
  ['sends 50 MB', 'too_large', () => peer.raw('/floods', floods('application/json', 50 * 1024 * 1024))],
  [
    'lists a description of 12 MB',
    'too_large',
    () =>
      peer.serve('/long', () => ({ tools: [plainTool('a', { description: 'a'.repeat(12 * 1024 * 1024) })] })),
  ],
  [
    'answers under another id',
    'timeout',
    () => peer.serve('/ids', ({ response }) => send(response, 'another', { tools: [] })),
  ],
  [
    'answers with another type',
    'bad_answer',
    () =>
      peer.raw(
        '/html',
        (_request, response) => void response.writeHead(200, { 'content-type': 'text/html' }).end('<p>hello'),
      ),
  ],
  [
    'answers with broken JSON',
    'bad_answer',
    () =>
      peer.raw(
        '/json',
        (_request, response) =>
          void response.writeHead(200, { 'content-type': 'application/json' }).end('{"js'),
      ),
  ],
  ['lists no list', 'bad_answer', () => peer.serve('/nolist', () => ({ tools: 'none' }))],
  [
    'wants a credential',
    'auth_required',
    () => peer.raw('/401', (_request, response) => void response.writeHead(401).end()),
  ],
  [
    'wants a credential and says where',
    'auth_required',
    () =>
      peer.raw('/401meta', (_request, response) => {
        response.writeHead(401, {
          'www-authenticate': `Bearer resource_metadata="${elsewhere.origin}/.well-known/oauth-protected-resource"`,
        });
        response.end();
      }),
  ],
  ['is not there', 'not_found', () => `${peer.origin}/nowhere`],
  [
    'comes back to a cursor',
    'endless_pages',
    () => peer.serve('/pages', () => ({ tools: [], nextCursor: 'again' })),
  ],
  [
    'has pages without end',
    'too_many_pages',
    () => {
      let page = 0;
      return peer.serve('/more', () => ({ tools: [], nextCursor: `page ${++page}` }));
    },
  ],
  [
    'lists 10,000 tools',
    'too_large',
    () =>
      peer.serve('/many', () => ({ tools: Array.from({ length: 10_000 }, (_, i) => plainTool(`t${i}`)) })),
  ],
  [
    'sends elsewhere',
    'other_origin',
    () =>
      peer.raw(
        '/redirect',
        (_request, response) => void response.writeHead(307, { location: `${elsewhere.origin}/mcp` }).end(),
      ),
  ],
  ['is at an address of a private network', 'blocked_address', () => `${elsewhere.origin}/mcp`],
  ['is at a metadata service', 'blocked_address', () => 'http://169.254.169.254/latest/meta-data'],
  ['is no URL', 'blocked_address', () => 'nothing of the kind'],
];

describe('a server that misbehaves', () => {
  test('is its own connection’s trouble: each says what is wrong and what to do, and no other waits for it', async () => {
    const ids = await Promise.all(
      servers.map(async ([, code, url]) => connect(url(), code === 'timeout' ? 2_000 : 30_000)),
    );
    const held = await connect(
      peer.serve('/held', () => undefined),
      60_000,
    );
    await until('a look hangs', () => peer.listings.has('/held'));
    const good = await insert(db, 'public.agent_mcp_connections', {
      agent_id: platform.agentId,
      connection_name: 'good',
      server_url: peer.serve('/good', () => ({ tools: [plainTool('fine')] })),
    });
    expect(await looked(good)).toMatchObject({ reason_code: null, tools_usable: 1 });
    const [look] = await db.query<{ hangs: boolean }>(
      'select lease_expires_at is not null as hangs from agentd.mcp_refreshes where id = $1',
      [held],
    );
    expect(look).toEqual({ hangs: true });
    const rows = await Promise.all(ids.map((id) => looked(id)));
    expect(rows.map((row, i) => [servers[i]?.[0], row.reason_code])).toEqual(
      servers.map(([what, code]) => [what, code]),
    );
    for (const row of rows) expect(row.reason).toMatch(/^\S.*\.\s\S.*\.$/s);
    expect([...elsewhere.listings.keys()]).toEqual([]);
  });
});

test('servers that hang leave the only slot of a worker to those that answer', async () => {
  const own = await testDatabase();
  const { agentId } = await makePlatform(own);
  const connectTo = (url: string): Promise<string> =>
    insert(own, 'public.agent_mcp_connections', { agent_id: agentId, connection_name: url, server_url: url });
  const hanging = ['/slot-a', '/slot-b', '/slot-c'].map((path) => peer.serve(path, () => undefined));
  for (const url of hanging) await connectTo(url);
  const worker = await testDaemon(
    own,
    { url: 'http://127.0.0.1:9', apiKey: 'none' },
    { env: { AGENTD_ALLOWED_PRIVATE_HOSTS: peer.host, AGENTD_QUEUES: 'mcp-refresh=1' } },
  );
  try {
    await until('all three hang', () => ['/slot-a', '/slot-b', '/slot-c'].every((p) => peer.listings.has(p)));
    const good = await connectTo(peer.serve('/slot-good', () => ({ tools: [plainTool('fine')] })));
    await until('the good one was looked at', async () => {
      const [row] = await own.query<{ usable: number | null }>(
        'select tools_usable as usable from public.agent_mcp_connections where id = $1',
        [good],
      );
      return row?.usable === 1;
    });
    const [held] = await own.query<{ looks: number }>(
      'select count(*)::integer as looks from agentd.mcp_refreshes where lease_expires_at is not null',
    );
    expect(held).toEqual({ looks: 3 });
  } finally {
    await worker.stop();
    await own.dispose();
  }
});

describe('a tool that is broken', () => {
  test('is held back with its reason, and the others of its server work', async () => {
    const long = 'a'.repeat(70);
    const id = await connect(
      peer.serve('/tools', () => ({
        tools: [
          plainTool('read_file'),
          plainTool('reаd_file'), // Cyrillic а
          plainTool('send​'), // zero width
          plainTool('twice'),
          plainTool('twice', { description: 'Not the same.' }),
          plainTool('same'),
          plainTool('same'),
          { ...plainTool('x'), name: '' },
          { ...plainTool('x'), name: 7 },
          'no tool at all',
          tool('no_schema', undefined),
          tool('string_schema', 'object'),
          tool('deep', deep(100)),
          tool('huge', { type: 'object', description: 'a'.repeat(200_000) }),
          tool('remote', {
            type: 'object',
            properties: { a: { $ref: 'https://attacker.example/schema.json' } },
          }),
          tool('dangling', { type: 'object', properties: { a: { $ref: '#/$defs/none' } } }),
          tool('circle', {
            type: 'object',
            properties: { a: { $ref: '#/$defs/a' } },
            $defs: { a: { $ref: '#/$defs/a' } },
          }),
          tool('recursive', { type: 'object', properties: { a: { $ref: '#' } } }),
          tool('regex', { type: 'object', properties: { a: { type: 'string', pattern: '^(a+)+$' } } }),
          tool('contradictory', {
            type: 'object',
            properties: { a: { type: 'string', minLength: 9, maxLength: 1 } },
          }),
          plainTool(`${long}1`),
          plainTool(`${long}2`),
          plainTool('n'.repeat(201)),
        ],
      })),
    );
    const row = await looked(id);
    expect(row.reason_code).toBeNull();
    expect(await codes(id)).toMatchObject({
      read_file: null,
      reаd_file: 'confusable_name',
      twice: 'duplicate_name',
      same: null,
      '': 'empty_name',
      deep: 'schema_too_deep',
      huge: 'schema_too_large',
      remote: 'remote_reference',
      dangling: 'broken_reference',
      circle: 'endless_reference',
      recursive: null,
      regex: null,
      contradictory: null,
      [`${long}1`]: null,
      [`${long}2`]: null,
    });
    const named = Object.entries(await codes(id)).find(([name]) => name.startsWith('nnnn'));
    expect(named?.[1]).toBe('invalid_name');
    const functions = await db.query<{ function_name: string }>(
      'select function_name from public.mcp_tools_cache where connection_id = $1 and function_name is not null',
      [id],
    );
    expect(new Set(functions.map((each) => each.function_name)).size).toBe(functions.length);
    const held = await db.query<{ reason: string | null }>(
      'select reason from public.mcp_tools_cache where connection_id = $1 and is_quarantined',
      [id],
    );
    for (const { reason } of held) expect(reason).toMatch(/\.$/);
  });

  test('nested beyond everything takes no other with it', async () => {
    const open = '{"type":"object","properties":{"a":'.repeat(5_000);
    const nested = `${open}{}${'}}'.repeat(5_000)}`;
    const id = await connect(
      peer.serve('/nested', ({ message, response }) => {
        const text = JSON.stringify({
          jsonrpc: '2.0',
          id: message.id,
          result: { tools: [plainTool('fine'), { name: 'nested', inputSchema: 'HERE' }] },
        });
        response.writeHead(200, { 'content-type': 'application/json' }).end(text.replace('"HERE"', nested));
      }),
    );
    const row = await looked(id);
    expect(row.reason_code).toBeNull();
    expect(await codes(id)).toMatchObject({ fine: null });
  });

  test('beyond the thousandth is left out, and the connection says so', async () => {
    const id = await connect(
      peer.serve('/thousand', () => ({ tools: Array.from({ length: 1_200 }, (_, i) => plainTool(`t${i}`)) })),
    );
    const row = await looked(id);
    expect(row).toMatchObject({ reason_code: 'too_many_tools', tools_listed: 1_200, tools_usable: 1_000 });
    expect(row.reason).toContain('200 of them');
  });
});
