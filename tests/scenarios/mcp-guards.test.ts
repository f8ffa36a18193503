/** Who may call what: permissions, approvals, tools that change, names that collide, and other workspaces. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type McpServer, serverTool, startMcpServer } from '../peers/mcp-server.ts';
import { type ModelServer, type Scripted, startModelServer } from '../peers/model-server.ts';
import { makeCredential, makeProvider } from '../support/credentials.ts';
import { type TestDaemon, testDaemon } from '../support/daemon.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { connectAgent, reaching, toolsSeen } from '../support/mcp.ts';
import { insert, makePlatform, type Platform, startTask } from '../support/platform.ts';
import { toolCalls, waitForRun } from '../support/runs.ts';

let db: TestDatabase;
let model: ModelServer;
let platform: Platform;
let server: McpServer;
let daemon: TestDaemon;

beforeEach(async () => {
  db = await testDatabase();
  model = await startModelServer();
  platform = await makePlatform(db);
  server = await startMcpServer([
    serverTool('look', { annotations: { readOnlyHint: true } }),
    serverTool('put', { annotations: { idempotentHint: true, destructiveHint: false } }),
    serverTool('wipe', { annotations: { idempotentHint: true, destructiveHint: true } }),
    serverTool('post'),
  ]);
});

afterEach(async () => {
  expect(model.rejected).toEqual([]);
  await daemon.stop();
  await server.close();
  await model.close();
  await db.dispose();
});

async function start(env: Record<string, string> = {}): Promise<void> {
  daemon = await testDaemon(db, model, { env: { ...reaching(server.port), ...env } });
}

/** The model calls these tools, one a turn; `between` runs before each turn. */
function calling(names: readonly string[], between: (turn: number) => Promise<void> = async () => {}): void {
  model.respond(async ({ body }): Promise<Scripted> => {
    const turn = body.messages.filter((message) => message.role === 'tool').length;
    await between(turn);
    const name = names[turn];
    return name === undefined ? { content: 'the end' } : { toolCalls: [{ name, arguments: {} }] };
  });
}

const called = (): string[] => server.calls().map(({ params }) => params.name as string);
const codes = async (id: string) =>
  (await toolCalls(db, id)).map((call) => [call.tool_name, call.error_code]);

async function permitted(
  columns: Record<string, unknown> = {},
): Promise<{ connection: string; permission: string }> {
  const account = await makeCredential(db, platform, await makeProvider(db, null), {
    credential_type: 'api_key',
    token_expires_at: null,
  });
  const permission = await insert(db, 'public.agent_integration_permissions', {
    agent_id: platform.agentId,
    connection_id: account,
    ...columns,
  });
  const connection = await connectAgent(db, platform, server.url, { credential_id: account });
  await toolsSeen(db, connection);
  return { connection, permission };
}

describe('a permission for the account of a connection', () => {
  test('that is withdrawn in the middle of a run refuses the next call', async () => {
    await start();
    const { permission } = await permitted();
    calling(['post', 'post'], async (turn) => {
      if (turn === 1)
        await db.query('update public.agent_integration_permissions set is_active = false where id = $1', [
          permission,
        ]);
    });
    const id = await startTask(db, platform, 'x');
    expect((await waitForRun(db, id)).status).toBe('completed');
    expect(await codes(id)).toEqual([
      ['post', null],
      ['post', 'permission_denied'],
    ]);
    expect(called()).toEqual(['post']);
    // and a later run is not offered the tools at all
    const before = model.requests.length;
    calling([]);
    await waitForRun(db, await startTask(db, platform, 'y'));
    const tools = (model.requests[before]?.body.tools ?? []).map((tool) => tool.function.name);
    expect(tools).not.toContain('post');
  });

  test('that names tools, or only allows to read, allows no others', async () => {
    await start();
    const { permission } = await permitted({ allowed_scopes: JSON.stringify(['mail.read', 'tool:post']) });
    calling(['post', 'put', 'look', 'post'], async (turn) => {
      if (turn === 2)
        await db.query(
          `update public.agent_integration_permissions set allowed_scopes = '[]', permission_level = 'read' where id = $1`,
          [permission],
        );
    });
    const id = await startTask(db, platform, 'x');
    expect((await waitForRun(db, id)).status).toBe('completed');
    expect(await codes(id)).toEqual([
      ['post', null],
      ['put', 'permission_denied'],
      ['look', null],
      ['post', 'permission_denied'],
    ]);
    expect(called()).toEqual(['post', 'look']);
  });

  test('a connection that is turned off in the middle of a run is not used', async () => {
    await start();
    const connection = await connectAgent(db, platform, server.url);
    await toolsSeen(db, connection);
    calling(['post', 'post'], async (turn) => {
      if (turn === 1)
        await db.query('update public.agent_mcp_connections set is_active = false where id = $1', [
          connection,
        ]);
    });
    const id = await startTask(db, platform, 'x');
    await waitForRun(db, id);
    expect(await codes(id)).toEqual([
      ['post', null],
      ['post', 'connection_off'],
    ]);
  });
});

describe('effects', () => {
  const effects = async (id: string): Promise<Record<string, string>> =>
    Object.fromEntries((await toolCalls(db, id)).map((call) => [call.tool_name, call.effect]));

  test('a server that nobody trusts is believed nothing: all its tools write, and wait where writes are asked for', async () => {
    await start();
    await toolsSeen(db, await connectAgent(db, platform, server.url));
    calling(['look']);
    const id = await startTask(db, platform, 'x', { approval_policy: 'writes' });
    expect(await waitForRun(db, id, ['waiting', 'completed'])).toMatchObject({
      reason_code: 'approval_required',
    });
    expect(await effects(id)).toEqual({ look: 'write' });
    expect(called()).toEqual([]);
    await db.query(
      'select public.decide_tool_call(id, true, null) from public.tool_calls where run_id = $1',
      [id],
    );
    expect((await waitForRun(db, id)).status).toBe('completed');
    expect(called()).toEqual(['look']);
  });

  test('of a server that the operator trusts are what it says, and what destroys is asked for', async () => {
    await start({ AGENTD_MCP_TRUSTED: server.origin });
    await toolsSeen(db, await connectAgent(db, platform, server.url));
    calling(['look', 'put', 'wipe']);
    const id = await startTask(db, platform, 'x', { approval_policy: 'writes' });
    expect(await waitForRun(db, id, ['waiting', 'completed'])).toMatchObject({
      reason_code: 'approval_required',
    });
    expect(await effects(id)).toEqual({ look: 'read', put: 'idempotent', wipe: 'idempotent' });
    expect(called()).toEqual(['look', 'put']);
  });
});

describe('a tool that changes', () => {
  test('since it was looked at is not called, and a look is asked for', async () => {
    await start();
    const connection = await connectAgent(db, platform, server.url);
    await toolsSeen(db, connection);
    calling(['post']);
    server.tools = [serverTool('post', { description: 'Posts to everybody.' })];
    const id = await startTask(db, platform, 'x');
    await waitForRun(db, id);
    expect(await codes(id)).toEqual([['post', 'tool_changed']]);
    expect(called()).toEqual([]);
    const [row] = await db.query('select why from agentd.mcp_refreshes where id = $1', [connection]);
    expect(row).toEqual({ why: 'tool_call' });
  });

  test('in the cache in the middle of a run is not called under what the model was told of it', async () => {
    await start();
    await toolsSeen(db, await connectAgent(db, platform, server.url));
    calling(['post', 'post'], async (turn) => {
      if (turn === 1)
        await db.query(
          `update public.mcp_tools_cache set schema_hash = 'other', pinned_hash = 'other' where tool_name = 'post'`,
        );
    });
    const id = await startTask(db, platform, 'x');
    await waitForRun(db, id);
    expect(await codes(id)).toEqual([
      ['post', null],
      ['post', 'tool_changed'],
    ]);
  });
});

describe('names', () => {
  test('of two connections that collide, and of our own tools: each call reaches the one that was meant', async () => {
    await using other = await startMcpServer([serverTool('post'), serverTool('current_time')]);
    await start(reaching(server.port, other.port));
    const first = await connectAgent(db, platform, server.url, { connection_name: 'first' });
    const second = await connectAgent(db, platform, other.url, { connection_name: 'The second!' });
    await toolsSeen(db, first, second);
    calling(['post', 'The_second_post', 'The_second_current_time', 'current_time']);
    const id = await startTask(db, platform, 'x');
    await waitForRun(db, id);
    expect((await toolCalls(db, id)).map(({ status }) => status)).toEqual(Array(4).fill('completed'));
    expect(called()).toEqual(['post']);
    expect(other.calls().map(({ params }) => params.name)).toEqual(['post', 'current_time']);
  });

  test('that a task selects are all that a run is offered', async () => {
    await start();
    await toolsSeen(db, await connectAgent(db, platform, server.url, { connection_name: 'shop' }));
    calling(['look', 'put']);
    const id = await startTask(db, platform, 'x', {
      selected_tools: JSON.stringify(['look', 'shop/wipe', 'gone']),
    });
    await waitForRun(db, id);
    const names = (model.requests[0]?.body.tools ?? []).map((tool) => tool.function.name);
    expect(names.toSorted()).toEqual(['look', 'wipe']);
    expect(await codes(id)).toEqual([
      ['look', null],
      ['put', 'unknown_tool'],
    ]);
    const [step] = await db.query<{ context: { left_out: string[] } }>(
      'select context from public.task_step_runs where run_id = $1',
      [id],
    );
    expect(step?.context.left_out.filter((note) => note.startsWith('tool'))).toHaveLength(1);
  });
});

test('another workspace’s connections can’t be reached by any name or id', async () => {
  await start();
  const stranger = await makePlatform(db);
  const theirs = await connectAgent(db, stranger, server.url, { connection_name: 'theirs' });
  await toolsSeen(db, theirs);
  const tools = await db.query<{ id: string }>(
    'select id from public.mcp_tools_cache where connection_id = $1',
    [theirs],
  );
  calling(['post', 'theirs_post', 'theirs/post', theirs, tools[0]?.id ?? '', `mcp:${theirs}:post`]);
  const id = await startTask(db, platform, `Call post of ${theirs}.`, {
    selected_tools: JSON.stringify(['current_time', 'post', 'theirs/post', theirs]),
  });
  expect((await waitForRun(db, id)).status).toBe('completed');
  expect(new Set((await toolCalls(db, id)).map((call) => call.error_code))).toEqual(
    new Set(['unknown_tool']),
  );
  expect(called()).toEqual([]);
  // nor by a row that ties them together
  await expect(
    db.query('update public.agent_mcp_connections set credential_id = $2 where id = $1', [
      theirs,
      await makeCredential(db, platform, await makeProvider(db, null)),
    ]),
  ).rejects.toThrow(/credential/);
});

test('what a server answers one tenant’s calls keeps nobody else from calling others on its host', async () => {
  await start();
  const other = await makePlatform(db);
  await toolsSeen(
    db,
    await connectAgent(db, platform, server.url),
    await connectAgent(db, other, `${server.origin}/theirs`),
  );
  server.call = ({ headers }) => {
    expect(headers.authorization).toBeUndefined();
    return { status: 429, headers: { 'retry-after': '3600' } };
  };
  calling(['post']);
  const mine = await startTask(db, platform, 'x');
  await waitForRun(db, mine);
  expect(await codes(mine)).toEqual([['post', 'rate_limited']]);
  server.call = () => ({ result: { content: [{ type: 'text', text: 'done' }] } });
  const theirs = await startTask(db, other, 'y');
  await waitForRun(db, theirs);
  expect(await codes(theirs)).toEqual([['post', null]]);
});
