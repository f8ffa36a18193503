/** Calls of servers' tools under way when their worker is killed, and tokens that a server does not take any more. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type McpServer, serverTool, startMcpServer, textResult } from '../peers/mcp-server.ts';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { startOAuthServer } from '../peers/oauth-provider.ts';
import { credentialEnv, makeCredential, makeProvider } from '../support/credentials.ts';
import { startDaemonProcess, testDaemon } from '../support/daemon.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { connectAgent, reaching, toolsSeen } from '../support/mcp.ts';
import { insert, makePlatform, type Platform, startTask } from '../support/platform.ts';
import { toolCalls, waitForRun } from '../support/runs.ts';

let db: TestDatabase;
let model: ModelServer;
let platform: Platform;
let server: McpServer;

beforeEach(async () => {
  db = await testDatabase();
  model = await startModelServer();
  platform = await makePlatform(db);
  server = await startMcpServer([
    serverTool('look', { annotations: { readOnlyHint: true } }),
    serverTool('put', { annotations: { idempotentHint: true } }),
    serverTool('post'),
  ]);
  // each run calls the tool that its instructions name
  model.respond(({ body, userText }) => {
    const told = body.messages.at(-1);
    if (told?.role === 'tool') return { content: String(told.content) };
    return { toolCalls: [{ name: userText.split('\n')[0] ?? '', arguments: {} }] };
  });
});

afterEach(async () => {
  expect(model.rejected).toEqual([]);
  await server.close();
  await model.close();
  await db.dispose();
});

/** Runs one call of each tool, kills the worker while the server is at them, and lets another one go on. */
async function killedDuring(
  names: readonly string[],
  env: Record<string, string>,
): Promise<Map<string, { id: string; keys: string[]; text: string; status: string }>> {
  server.call = () => ({ hang: true });
  await using first = await startDaemonProcess(db, model, env);
  await toolsSeen(db, await connectAgent(db, platform, server.url));
  const runs = new Map<string, string>();
  for (const name of names) runs.set(name, await startTask(db, platform, name));
  await server.waitFor(({ method }) => method === 'tools/call', names.length);
  await first.kill();
  await db.query(
    `update public.task_runs set lease_expires_at = agentd.now() - interval '1 second' where status = 'running'`,
  );
  server.call = () => textResult('done');
  await using _second = await testDaemon(db, model, { env });
  const outcomes = new Map<string, { id: string; keys: string[]; text: string; status: string }>();
  for (const [name, id] of runs) {
    const run = await waitForRun(db, id);
    const calls = server.calls().filter(({ params }) => params.name === name);
    outcomes.set(name, {
      id,
      keys: calls.map(({ params }) => params._meta['agentd/idempotencyKey'] as string),
      text: run.output?.text ?? '',
      status: (await toolCalls(db, id))[0]?.status ?? '',
    });
  }
  return outcomes;
}

describe.skipIf(!onServer)('server-only: a worker that is killed during a call', () => {
  test('of a trusted server: what reads or may be repeated is called again with the same key, what writes is not', async () => {
    const env = { ...reaching(server.port), AGENTD_MCP_TRUSTED: server.origin };
    const outcomes = await killedDuring(['look', 'put', 'post'], env);
    for (const name of ['look', 'put']) {
      const { keys, status, text } = outcomes.get(name) ?? { keys: [], status: '', text: '' };
      expect([name, keys.length, new Set(keys).size, status]).toEqual([name, 2, 1, 'completed']);
      expect(text).toContain('done');
    }
    const post = outcomes.get('post');
    expect([post?.keys.length, post?.status]).toEqual([1, 'unknown']);
    expect(post?.text).toContain('may or may not have taken effect');
  }, 60_000);

  test('of any other server: whatever the tool says of itself, it is not called again', async () => {
    const outcomes = await killedDuring(['look'], reaching(server.port));
    const look = outcomes.get('look');
    expect([look?.keys.length, look?.status]).toEqual([1, 'unknown']);
  }, 60_000);
});

test('a token that the server refuses is refreshed once, and the call is made with the new one', async () => {
  const provider = await startOAuthServer();
  try {
    let good = 'Bearer old-access-token';
    server.before = ({ headers }) =>
      headers.authorization === good || (good === '' && headers.authorization !== 'Bearer old-access-token')
        ? null
        : { status: 401, headers: { 'www-authenticate': 'Bearer' } };
    await using _daemon = await testDaemon(db, model, { env: credentialEnv(server.port, provider.port) });
    const account = await makeCredential(db, platform, await makeProvider(db, provider.tokenEndpoint), {
      vault_refresh_token_id: await provider.grant(),
      token_expires_at: new Date(Date.now() + 3_600_000),
      last_refreshed_at: new Date(Date.now() - 3_600_000),
    });
    await insert(db, 'public.agent_integration_permissions', {
      agent_id: platform.agentId,
      connection_id: account,
    });
    const connection = await connectAgent(db, platform, server.url, {
      auth_type: 'oauth',
      credential_id: account,
    });
    await toolsSeen(db, connection);
    good = '';
    const id = await startTask(db, platform, 'post');
    expect((await waitForRun(db, id)).output?.text).toContain('called post');
    const [call, ...more] = server
      .calls()
      .filter(({ headers }) => headers.authorization !== 'Bearer old-access-token');
    expect(more).toEqual([]);
    expect(call?.headers.authorization).toMatch(/^Bearer .{10,}/);
    expect(provider.succeeded()).toBe(1);
  } finally {
    await provider.close();
  }
}, 30_000);
