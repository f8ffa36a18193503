/** Commands about MCP connections say how they are and why, and print no secret. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type HostileMcp, plainTool, startHostileMcp } from '../peers/hostile-mcp.ts';
import { testDaemon } from '../support/daemon.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform } from '../support/platform.ts';
import { agentd, json, type Outcome } from './support.ts';

let db: TestDatabase;
let peer: HostileMcp;
beforeAll(async () => {
  db = await testDatabase();
  peer = await startHostileMcp();
});
afterAll(async () => {
  await peer?.[Symbol.asyncDispose]();
  await db?.dispose();
});
const on = (...args: string[]): Promise<Outcome> => agentd(args, { DATABASE_URL: db.url });

// a command beside a daemon needs a session of its own
test.runIf(onServer)('a connection is listed, shown and looked at anew', async () => {
  const { agentId } = await makePlatform(db);
  const url = peer.serve('/mcp', () => ({
    tools: [plainTool('fine'), plainTool('twice'), plainTool('twice', { title: 'x' })],
  }));
  const id = await insert(db, 'public.agent_mcp_connections', {
    agent_id: agentId,
    connection_name: 'tracker',
    server_url: `${url}?api_key=canary-1`,
    auth_type: 'bearer',
    auth_secret: 'canary-2',
  });
  await using _daemon = await testDaemon(
    db,
    { url: 'http://127.0.0.1:9', apiKey: 'none' },
    { env: { AGENTD_ALLOWED_PRIVATE_HOSTS: peer.host } },
  );
  // the query is part of the peer's path
  const refreshed = await on('mcp', 'refresh', id.slice(0, 8));
  const list = await on('mcp', 'list');
  const show = await on('mcp', 'show', id);
  const data = await on('mcp', 'show', id, '--json');
  expect(refreshed.stdout).toMatch(/added|nothing changed/);
  expect([refreshed.code, list.code, show.code]).toEqual([0, 0, 0]);
  expect(list.stdout).toMatch(/tracker .* ok +1\/3 +1 /);
  expect(show.stdout).toContain('duplicate_name');
  expect(json<{ tools: { tool_name: string }[] }>(data).tools.map((tool) => tool.tool_name)).toEqual([
    'twice',
    'fine',
  ]);
  for (const { stdout, stderr } of [refreshed, list, show, data])
    expect(stdout + stderr).not.toContain('canary');
});

test.runIf(onServer)(
  'an id that is none, and a connection that is off, are told apart with a next step',
  async () => {
    const { agentId } = await makePlatform(db);
    const id = await insert(db, 'public.agent_mcp_connections', {
      agent_id: agentId,
      connection_name: 'off',
      server_url: 'https://x.example',
      is_active: false,
    });
    expect(await on('mcp', 'show', 'nonsense')).toMatchObject({ code: 2 });
    expect(await on('mcp', 'show', 'ffffffffffff')).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('agentd mcp list'),
    });
    expect(await on('mcp', 'refresh', id)).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('is_active'),
    });
  },
);
