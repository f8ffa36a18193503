/** From a connection's row to the tools of its server: the whole way, with real servers and a real daemon. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { agentConnections } from '../../src/db/mcp.ts';
import { type HostileMcp, plainTool, startHostileMcp } from '../peers/hostile-mcp.ts';
import { type EverythingServer, startEverything } from '../peers/mcp-everything.ts';
import { type TestDaemon, testDaemon } from '../support/daemon.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { type Columns, insert, makePlatform, type Platform } from '../support/platform.ts';
import { until } from '../support/runs.ts';
import { asUser } from '../support/sessions.ts';

type Connection = {
  id: string;
  reason_code: string | null;
  reason: string | null;
  refresh_failures: number;
  last_refreshed_at: Date | null;
  next_refresh_at: Date | null;
  tools_listed: number | null;
  tools_usable: number | null;
  server_info: Record<string, unknown> | null;
  auth_secret: string | null;
};
type Tool = {
  id: string;
  tool_name: string;
  function_name: string | null;
  is_quarantined: boolean;
  reason_code: string | null;
  reason: string | null;
  schema_hash: string;
  pinned_hash: string | null;
  openai_schema: { function: { name: string; strict: boolean } } | null;
};

let db: TestDatabase;
let peer: HostileMcp;
let platform: Platform;
let daemon: TestDaemon;

beforeAll(async () => {
  db = await testDatabase();
  peer = await startHostileMcp();
  platform = await makePlatform(db, { shared: true });
  daemon = await startAgentd([peer.host]);
});
afterAll(async () => {
  await daemon?.stop();
  await peer?.[Symbol.asyncDispose]();
  await db?.dispose();
});

function startAgentd(hosts: readonly string[]): Promise<TestDaemon> {
  return testDaemon(
    db,
    { url: 'http://127.0.0.1:9', apiKey: 'none' },
    { env: { AGENTD_ALLOWED_PRIVATE_HOSTS: hosts.join(',') } },
  );
}

const connect = (url: string, columns: Columns = {}, owner: Platform = platform): Promise<string> =>
  insert(db, 'public.agent_mcp_connections', {
    agent_id: owner.agentId,
    connection_name: url.slice(-50),
    server_url: url,
    ...columns,
  });
const connection = async (id: string): Promise<Connection> => {
  const [row] = await db.query<Connection>('select * from public.agent_mcp_connections where id = $1', [id]);
  if (!row) throw new Error(`There is no connection ${id}.`);
  return row;
};
const tools = (id: string): Promise<Tool[]> =>
  db.query<Tool>(
    'select * from public.mcp_tools_cache where connection_id = $1 order by tool_name collate "C"',
    [id],
  );
const names = async (id: string): Promise<string[]> => (await tools(id)).map(({ tool_name }) => tool_name);
const looks = async (id: string): Promise<{ status: string; details: Record<string, unknown> }[]> =>
  db.query(
    'select status, details from public.mcp_refresh_log where connection_id = $1 order by created_at, id',
    [id],
  );
/** Resolves when a connection has been looked at so many times. */
const looked = (id: string, times = 1): Promise<Connection> =>
  until(`connection ${id} was looked at ${times} times`, async () => {
    const [row] = await db.query<{ done: boolean }>(
      `select (select count(*) from public.mcp_refresh_log l where l.connection_id = $1) >= $2 as done`,
      [id, times],
    );
    return row?.done ? connection(id) : false;
  });
/** Asks for one more look and waits for it. */
const again = async (id: string): Promise<Connection> => {
  const before = (await looks(id)).length;
  await db.query('select public.refresh_mcp_connection($1)', [id]);
  return looked(id, before + 1);
};
const inPlace = (table: string, id: string): Promise<Record<string, string>[]> =>
  db.query(`select xmin::text, ctid::text from ${table} where connection_id = $1 order by id`, [id]);

describe('a connection', () => {
  test('is looked at as soon as it is there, and its tools become functions of its agent', async () => {
    const id = await connect(
      peer.serve('/plain', () => ({ tools: [plainTool('read'), plainTool('a tool.with dots')] })),
    );
    const row = await looked(id);
    expect(row).toMatchObject({ reason_code: null, refresh_failures: 0, tools_listed: 2, tools_usable: 2 });
    expect(row.server_info).toMatchObject({ name: 'peer', transport: 'streamable-http' });
    const [found] = (await agentConnections(db, platform)).filter((each) => each.id === id);
    expect(found?.tools.map(({ tool_name }) => tool_name)).toEqual(['a tool.with dots', 'read']);
    expect(found?.tools[1]).toMatchObject({
      function_name: 'read',
      openai_schema: { function: { name: 'read', strict: true } },
    });
    expect(found?.tools[0]?.function_name).toMatch(/^[a-zA-Z0-9_-]{1,64}$/);
    expect(
      await agentConnections(db, { ...platform, workspaceId: (await makePlatform(db)).workspaceId }),
    ).toEqual([]);
  });

  test('an unchanged listing rewrites no row of a tool, and is looked at again when it is due', async () => {
    const id = await connect(peer.serve('/same', () => ({ tools: [plainTool('one'), plainTool('two')] })));
    const first = await looked(id);
    const rows = await inPlace('public.mcp_tools_cache', id);
    const second = await again(id);
    expect(await inPlace('public.mcp_tools_cache', id)).toEqual(rows);
    expect(second.last_refreshed_at?.getTime()).toBeGreaterThan(first.last_refreshed_at?.getTime() ?? 0);
    expect((await looks(id)).map(({ status }) => status)).toEqual(['ok', 'unchanged']);
    await db.query(`update agentd.mcp_refreshes set due_at = now() - interval '1 second' where id = $1`, [
      id,
    ]);
    await looked(id, 3);
  });

  test('what was added, changed and removed is told apart, and columns of others survive', async () => {
    await db.query('alter table public.mcp_tools_cache add column learned text');
    let listed = [plainTool('stays'), plainTool('changes'), plainTool('goes')];
    const id = await connect(peer.serve('/moves', () => ({ tools: listed })));
    await looked(id);
    await db.query(`update public.mcp_tools_cache set learned = tool_name where connection_id = $1`, [id]);
    listed = [
      plainTool('stays'),
      plainTool('changes', { annotations: { readOnlyHint: true } }),
      plainTool('comes'),
    ];
    await again(id);
    expect(await names(id)).toEqual(['changes', 'comes', 'stays']);
    expect((await looks(id)).at(-1)).toMatchObject({
      status: 'ok',
      details: {
        added: ['comes'],
        removed: ['goes'],
        changed: [{ tool: 'changes', parts: ['annotations'], outcome: 'accepted' }],
      },
    });
    const learned = await db.query(
      'select learned from public.mcp_tools_cache where connection_id = $1 order by 1',
      [id],
    );
    expect(learned).toEqual([{ learned: 'changes' }, { learned: 'stays' }, { learned: null }]);
    listed = [];
    expect(await again(id)).toMatchObject({ reason_code: null, tools_usable: 0 });
    expect(await names(id)).toEqual([]);
    await db.query('alter table public.mcp_tools_cache drop column learned');
  });

  test('a failed look keeps the tools, says why, and waits; another address is looked at at once', async () => {
    let status = 200;
    const url = peer.serve('/away', ({ response }) => {
      if (status === 200) return { tools: [plainTool('kept')] };
      response.writeHead(status, { 'retry-after': '7200' }).end();
      return undefined;
    });
    const id = await connect(url);
    await looked(id);
    status = 503;
    const failed = await again(id);
    expect(failed).toMatchObject({ reason_code: 'rate_limited', refresh_failures: 1, tools_usable: 1 });
    expect(failed.reason).toMatch(/\. It is tried again\.$/);
    expect(await names(id)).toEqual(['kept']);
    const waits = (failed.next_refresh_at?.getTime() ?? 0) - Date.now();
    expect(waits).toBeGreaterThan(7_100_000);
    // a call that finds a tool changed does not cut the wait short
    await db.query(`select agentd.request_mcp_refresh($1, 'tool_call')`, [id]);
    const [row] = await db.query<{ wanted: boolean }>(
      'select wanted_at is not null as wanted from agentd.mcp_refreshes where id = $1',
      [id],
    );
    expect(row?.wanted).toBe(false);
    await db.query('update public.agent_mcp_connections set server_url = $2 where id = $1', [
      id,
      peer.serve('/found', () => ({ tools: [plainTool('new')] })),
    ]);
    expect(await looked(id, 3)).toMatchObject({ reason_code: null, refresh_failures: 0 });
    expect(await names(id)).toEqual(['new']);
  });

  test('one that is switched off is left alone; what a look brings meanwhile is not stored', async () => {
    const asked = Promise.withResolvers<void>();
    const go = Promise.withResolvers<void>();
    const id = await connect(
      peer.serve('/off', async () => {
        asked.resolve();
        await go.promise;
        return { tools: [plainTool('late')] };
      }),
    );
    await asked.promise;
    await db.query('update public.agent_mcp_connections set is_active = false where id = $1', [id]);
    go.resolve();
    await until('the look was dropped', () =>
      daemon.log.some((line) => line.includes(id) && line.includes('"kind":"lost"')),
    );
    expect(await names(id)).toEqual([]);
    expect(await looks(id)).toEqual([]);
    expect((await db.query('select public.refresh_mcp_connection($1) as is_wanted', [id]))[0]).toEqual({
      is_wanted: false,
    });
  });
});

describe('a tool that changes', () => {
  const served = async (
    policy: string,
    path: string,
  ): Promise<{ id: string; say: (text: string) => Promise<unknown>; list: (tools: unknown[]) => void }> => {
    let listed: unknown[] = [plainTool('send', { description: 'Sends.' }), plainTool('other')];
    const id = await connect(
      peer.serve(path, () => ({ tools: listed })),
      { change_policy: policy },
    );
    await looked(id);
    return {
      id,
      list: (tools) => {
        listed = tools;
      },
      say(text) {
        listed = [plainTool('send', { description: text }), plainTool('other')];
        return again(id);
      },
    };
  };
  const usable = async (id: string): Promise<string[]> =>
    (await agentConnections(db, platform))
      .find((each) => each.id === id)
      ?.tools.map((tool) => tool.tool_name) ?? [];
  const decide = (tool: string, accept: boolean): Promise<{ is_done: boolean }[]> =>
    db.query('select public.decide_tool_change($1, $2, $3) as is_done', [tool, accept, 'looked at it']);

  test('is offered at once where the policy accepts', async () => {
    const { id, say } = await served('accept', '/accepts');
    await say('Sends, and tells me.');
    expect(await usable(id)).toEqual(['other', 'send']);
    const [, send] = await tools(id);
    expect(send?.pinned_hash).toBe(send?.schema_hash);
  });

  test('waits for a manager where the policy asks, and the decision is on record', async () => {
    const { id, say } = await served('ask', '/asks');
    await say('Sends, and tells me.');
    expect(await usable(id)).toEqual(['other']);
    const [, send] = await tools(id);
    expect(send).toMatchObject({ is_quarantined: true, reason_code: 'changed' });
    expect((await looks(id)).at(-1)?.details).toMatchObject({
      changed: [{ tool: 'send', parts: ['description'], outcome: 'changed' }],
    });
    // still the same: nothing is written again, and refused it stays refused
    const rows = await inPlace('public.mcp_tools_cache', id);
    await again(id);
    expect(await inPlace('public.mcp_tools_cache', id)).toEqual(rows);
    await decide(send?.id ?? '', false);
    await again(id);
    expect((await tools(id))[1]).toMatchObject({ is_quarantined: true, reason_code: 'change_denied' });
    expect(await decide(send?.id ?? '', true)).toEqual([{ is_done: true }]);
    expect(await usable(id)).toEqual(['other', 'send']);
    expect(await decide(send?.id ?? '', true)).toEqual([{ is_done: false }]);
    const audit = await db.query(
      `select action, details ->> 'reason' as reason from agentd.audit_log where object_id = $1 order by id`,
      [send?.id],
    );
    expect(audit).toEqual([
      { action: 'refuse_change', reason: 'looked at it' },
      { action: 'accept_change', reason: 'looked at it' },
    ]);
  });

  test('is not decided on by who does not manage the workspace', async () => {
    const { id, say } = await served('ask', '/theirs');
    await say('Sends, and tells me.');
    const [, send] = await tools(id);
    const stranger = await makePlatform(db);
    await expect(
      asUser(db, stranger.userId, (as) => as.query('select public.decide_tool_change($1, true)', [send?.id])),
    ).rejects.toThrow(/not a manager/);
    await expect(
      asUser(db, stranger.userId, (as) => as.query('select public.refresh_mcp_connection($1)', [id])),
    ).rejects.toThrow(/not a manager/);
  });

  test('is known as changed after it was away, and offered again once it is as it was', async () => {
    const { id, say, list } = await served('quarantine', '/returns');
    list([plainTool('other')]);
    await again(id);
    expect(await names(id)).toEqual(['other']);
    await say('Sends, and tells me.');
    expect(await usable(id)).toEqual(['other']);
    await say('Sends.');
    expect(await usable(id)).toEqual(['other', 'send']);
  });
});

describe('the servers of a configuration', () => {
  const server = async (name: string, url: string, columns: Columns, config: string): Promise<string> =>
    insert(db, 'public.mcp_servers', {
      config_id: config,
      name,
      endpoint_url: url,
      retry_backoff_ms: 1,
      ...columns,
    });

  test('are turned to in the order of their priority where the connection’s own fails; others of another name are not', async () => {
    const config = await insert(db, 'public.mcp_configurations', { agent_id: platform.agentId });
    const broken = peer.serve('/broken', ({ response }) => void response.writeHead(500).end());
    const own = await server('search', broken, { max_retries: 2, timeout_ms: 2_000 }, config);
    await server(
      'other',
      peer.serve('/stranger', () => ({ tools: [plainTool('wrong')] })),
      { priority: 9 },
      config,
    );
    await server(
      'search',
      peer.serve('/second', () => ({ tools: [plainTool('second')] })),
      { priority: 1 },
      config,
    );
    await server(
      'search',
      peer.serve('/first', () => ({ tools: [plainTool('first')] })),
      { priority: 5 },
      config,
    );
    await server(
      'search',
      peer.serve('/asleep', () => ({ tools: [] })),
      { priority: 8, is_active: false },
      config,
    );
    const id = await connect(broken, { mcp_server_id: own });
    await looked(id);
    expect(await names(id)).toEqual(['first']);
    expect(peer.listings.get('/broken')).toHaveLength(3);
    expect(peer.listings.get('/stranger')).toBeUndefined();
    await db.query('update public.mcp_servers set is_active = false where config_id = $1', [config]);
    const row = await until('no server is left', async () => {
      const now = await connection(id);
      return now.reason_code === 'no_active_server' ? now : false;
    });
    expect(row.reason).toContain('is_active');
    expect(await names(id)).toEqual(['first']);
  });
});

describe('secrets', () => {
  test('are sent to their own server alone, and read back by nobody', async () => {
    const url = peer.serve('/secret', () => ({ tools: [] }));
    const id = await connect(url, { auth_type: 'bearer', auth_secret: 'canary-7f3a' });
    await looked(id);
    expect(peer.listings.get('/secret')?.[0]?.authorization).toBe('Bearer canary-7f3a');
    expect(daemon.log.some((line) => line.includes('canary-7f3a'))).toBe(false);
    await expect(
      asUser(db, platform.userId, (as) => as.query('select auth_secret from public.agent_mcp_connections')),
    ).rejects.toThrow(/permission denied/);
    // whoever may write the address gets the secret sent nowhere else
    await asUser(db, platform.userId, (as) =>
      as.query(
        `update public.agent_mcp_connections set server_url = 'https://attacker.example/mcp' where id = $1`,
        [id],
      ),
    );
    expect((await connection(id)).auth_secret).toBeNull();
  });

  test('a credential of another workspace is refused', async () => {
    const there = await makePlatform(db);
    const provider = await insert(db, 'public.service_providers', {
      name: 'p-mcp',
      display_name: 'P',
      provider_type: 'oauth',
    });
    const credential = await insert(db, 'public.user_integration_credentials', {
      workspace_id: there.workspaceId,
      user_id: there.userId,
      service_provider_id: provider,
      credential_type: 'oauth',
    });
    await expect(
      connect('https://x.example/mcp', { auth_type: 'oauth', credential_id: credential }),
    ).rejects.toThrow(/not one of the workspace/);
  });
});

describe('real servers', () => {
  const started: EverythingServer[] = [];
  afterAll(async () => {
    for (const server of started) await server[Symbol.asyncDispose]();
  });

  test('over Streamable HTTP and over server-sent events have the same tools', async () => {
    const [http, sse] = await Promise.all([startEverything('streamableHttp'), startEverything('sse')]);
    started.push(http, sse);
    const hosts = [http, sse].map(({ port }) => `127.0.0.1:${port}`);
    await using own = await startAgentd([peer.host, ...hosts]);
    await daemon.stop();
    const ids = [await connect(http.url), await connect(sse.url)];
    const [one, two] = await Promise.all(ids.map((id) => looked(id)));
    expect([one?.reason, two?.reason]).toEqual([null, null]);
    expect([one?.server_info?.transport, two?.server_info?.transport]).toEqual(['streamable-http', 'sse']);
    expect(await names(ids[0] as string)).toContain('echo');
    expect(await names(ids[1] as string)).toEqual(await names(ids[0] as string));
    await own.stop();
    daemon = await startAgentd([peer.host]);
  });
});
