import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import type { Tool } from '../../src/pipelines/agent/tools.ts';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { type TestDaemon, testDaemon } from '../support/daemon.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { makePlatform, type Platform, startTask } from '../support/platform.ts';
import { waitForRun } from '../support/runs.ts';
import { testTool, testTools } from '../support/tools.ts';
import { agentd, json, type Outcome } from './support.ts';

let db: TestDatabase;
let model: ModelServer;
let daemon: TestDaemon;
let platform: Platform;
let made: string[];

const tool = (name: string): Tool =>
  testTool(name, 'write', () => {
    made.push(name);
    return 'done';
  });

beforeAll(async () => {
  db = await testDatabase();
  model = await startModelServer();
  platform = await makePlatform(db);
  daemon = await testDaemon(db, model, {
    toolSources: [testTools(tool('pay'), tool('post'))],
  });
});
afterAll(async () => {
  await daemon?.stop();
  await model?.close();
  await db?.dispose();
});
beforeEach(() => {
  made = [];
});

const runs = (...args: string[]): Promise<Outcome> => agentd(['runs', ...args], { DATABASE_URL: db.url });

async function waitingRun(...names: string[]): Promise<string> {
  model.respond(({ body }) =>
    body.messages.at(-1)?.role === 'tool'
      ? { content: 'the end' }
      : { toolCalls: names.map((name) => ({ name, arguments: { amount: 12 } })) },
  );
  const id = await startTask(db, platform, 'x', { approval_policy: 'writes' });
  await waitForRun(db, id, ['waiting']);
  return id;
}

test('runs show says what a waiting run waits for, runs approve lets it go on, and the audit log says who did', async () => {
  const id = await waitingRun('pay');
  expect((await runs('show', id)).stdout).toContain(`agentd runs approve ${id.slice(0, 8)}`);
  const { code, stdout } = await runs('approve', id.slice(0, 8), '--reason', 'checked');
  expect(code).toBe(0);
  expect(stdout).toContain('Allowed: pay {"amount":12}');
  expect(stdout).toContain(`Run ${id} goes on.`);
  expect((await waitForRun(db, id)).status).toBe('completed');
  expect(made).toEqual(['pay']);
  const [row] = await db.query<{ operator: string }>(
    `select details ->> 'operator' as operator from agentd.audit_log where action = 'approve'`,
  );
  expect(row?.operator).toMatch(/.+@.+/);
});

test('of several calls one must be named, or all; runs deny keeps them from being made', async () => {
  const id = await waitingRun('pay', 'post');
  const unclear = await runs('deny', id);
  expect(unclear.code).toBe(2);
  expect(unclear.stderr).toContain('2 calls wait for a decision');
  const [call] = await db.query<{ id: string }>(
    `select id from public.tool_calls where run_id = $1 and tool_name = 'post'`,
    [id],
  );
  const one = await runs('deny', id, '--call', call?.id.slice(0, 8) ?? '');
  expect(one.stdout).toContain('1 more call waits for a decision.');
  expect(json<{ left: number }>(await runs('deny', id, '--all', '--json')).left).toBe(0);
  await waitForRun(db, id);
  expect(made).toEqual([]);
  const none = await runs('approve', id);
  expect(none.code).toBe(1);
  expect(none.stderr).toContain('waits for no decision: it is completed');
});

test('runs retry starts a run that has ended once more, and says why it can’t', async () => {
  model.respond(() => ({ refusal: 'No.' }));
  const id = await startTask(db, platform, 'x');
  await waitForRun(db, id);
  model.respond(() => ({ content: 'well' }));
  const { new_run_id } = json<{ new_run_id: string }>(await runs('retry', id, '--json'));
  expect((await waitForRun(db, new_run_id)).status).toBe('completed');
  const waiting = await waitingRun('pay');
  const refused = await runs('retry', waiting);
  expect(refused.code).toBe(1);
  expect(refused.stderr).toContain('has not ended: it is waiting');
  expect(refused.stderr).toContain('cancel it first');
  expect((await runs('cancel', waiting)).stdout).toContain('is cancelled');
});
