import { randomUUID } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { startEverything } from '../peers/mcp-everything.ts';

import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { testDaemon } from '../support/daemon.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { connectAgent, reaching, toolsSeen } from '../support/mcp.ts';
import { makePlatform, type Platform, startTask } from '../support/platform.ts';
import { until, waitForRun } from '../support/runs.ts';

let db: TestDatabase;
let model: ModelServer;
let platform: Platform;

beforeEach(async () => {
  db = await testDatabase();
  model = await startModelServer();
  platform = await makePlatform(db, { agent: { context_window_size: 32_000 } });
});

afterEach(async () => {
  expect(model.rejected).toEqual([]);
  await model.close();
  await db.dispose();
});

/** The model calls these tools, one a turn, then says what it was told last. */
function calling(...calls: readonly { name: string; arguments?: object }[]): void {
  model.respond(({ body }) => {
    const told = body.messages.filter((message) => message.role === 'tool');
    const next = calls[told.length];
    if (next) return { toolCalls: [{ name: next.name, arguments: next.arguments ?? {} }] };
    return { content: String(told.at(-1)?.content ?? 'nothing') };
  });
}

/** Names of the functions that the model was offered first. */
function offered(): string[] {
  return (model.requests[0]?.body.tools ?? []).map((tool) => tool.function.name);
}

const text = async (id: string): Promise<string> => (await waitForRun(db, id)).output?.text ?? '';

describe('an agent calls the protocol’s example server', () => {
  test.each(['streamableHttp', 'sse'] as const)('over %s', async (transport) => {
    await using server = await startEverything(transport);
    await using _daemon = await testDaemon(db, model, { env: reaching(server.port) });
    const connection = await connectAgent(db, platform, server.url);
    await toolsSeen(db, connection);
    calling(
      { name: 'echo', arguments: { message: 'hello' } },
      { name: 'get-sum', arguments: { a: 2, b: 40 } },
    );
    const id = await startTask(db, platform, 'x');
    expect(await text(id)).toContain('The sum of 2 and 40 is 42.');
    expect(offered()).toContain('echo');
    const rows = await db.query(
      'select tool_name, status, effect, source, connection_id from public.tool_calls where run_id = $1 order by turn',
      [id],
    );
    expect(rows).toEqual([
      { tool_name: 'echo', status: 'completed', effect: 'write', source: 'mcp', connection_id: connection },
      {
        tool_name: 'get-sum',
        status: 'completed',
        effect: 'write',
        source: 'mcp',
        connection_id: connection,
      },
    ]);
    const told = String(model.requests[1]?.body.messages.at(-1)?.content);
    expect(told).toBe('What echo answered:\n<data>\nEcho: hello\n</data>');
  });

  test('a long call says in the log how far it is', async () => {
    await using server = await startEverything('streamableHttp');
    await using daemon = await testDaemon(db, model, { env: reaching(server.port) });
    await toolsSeen(db, await connectAgent(db, platform, server.url));
    calling({ name: 'trigger-long-running-operation', arguments: { duration: 0.2, steps: 2 } });
    expect(await text(await startTask(db, platform, 'x'))).toContain('Long running operation completed');
    const [line] = daemon.log.filter((each) => each.includes('"event":"mcp_progress"'));
    expect(line).toContain('"progress":"1 of 2"');
  });

  test('over a command that the operator lists, and no other', async () => {
    const file = join(tmpdir(), `memory-${randomUUID()}.json`);
    const entry = fileURLToPath(
      new URL('../../node_modules/@modelcontextprotocol/server-memory/dist/index.js', import.meta.url),
    );
    const stdio = { memory: { command: process.execPath, args: [entry], env: { MEMORY_FILE_PATH: file } } };
    await using _daemon = await testDaemon(db, model, { env: { AGENTD_MCP_STDIO: JSON.stringify(stdio) } });
    const [listed, unlisted] = [
      await connectAgent(db, platform, 'stdio:memory'),
      await connectAgent(db, platform, 'stdio:shell', { connection_name: 'shell' }),
    ];
    await toolsSeen(db, listed);
    const entities = [{ name: 'Ada', entityType: 'person', observations: ['likes maps'] }];
    calling({ name: 'create_entities', arguments: { entities } }, { name: 'read_graph' });
    expect(await text(await startTask(db, platform, 'x'))).toContain('likes maps');
    const [row] = await until('the other was looked at', () =>
      db
        .query<{ reason_code: string }>(
          'select reason_code from public.agent_mcp_connections where id = $1 and reason_code is not null',
          [unlisted],
        )
        .then((rows) => rows.length > 0 && rows),
    );
    expect(row?.reason_code).toBe('not_listed');
    await rm(file, { force: true });
  });

  test('over a command that reads files, and reads none outside of its folder', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'files-'));
    await writeFile(join(folder, 'prices.txt'), 'A sack of green coffee costs 310 euros.');
    const entry = fileURLToPath(
      new URL('../../node_modules/@modelcontextprotocol/server-filesystem/dist/index.js', import.meta.url),
    );
    const stdio = { files: { command: process.execPath, args: [entry, folder] } };
    await using _daemon = await testDaemon(db, model, { env: { AGENTD_MCP_STDIO: JSON.stringify(stdio) } });
    await toolsSeen(db, await connectAgent(db, platform, 'stdio:files'));
    calling(
      { name: 'read_text_file', arguments: { path: join(folder, 'prices.txt'), head: null, tail: null } },
      { name: 'read_text_file', arguments: { path: '/etc/passwd', head: null, tail: null } },
    );
    const id = await startTask(db, platform, 'x');
    expect(await text(id)).toMatch(/access denied/i);
    expect(String(model.requests[1]?.body.messages.at(-1)?.content)).toContain('310 euros');
    expect(
      await db.query('select status, error_code from public.tool_calls where run_id = $1 order by turn', [
        id,
      ]),
    ).toEqual([
      { status: 'completed', error_code: null },
      { status: 'failed', error_code: 'tool_reported_error' },
    ]);
    await rm(folder, { recursive: true });
  });
});
