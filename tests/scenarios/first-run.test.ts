import { afterAll, beforeAll, expect, test } from 'vitest';
import type { ChatMessage } from '../../src/providers/models.ts';
import { type ModelServer, type RecordedRequest, startModelServer } from '../peers/model-server.ts';
import { type TestDaemon, testDaemon } from '../support/daemon.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, MODEL, makePlatform, makeTask, type Platform, startRun } from '../support/platform.ts';
import {
  findRun,
  jobOutcomes,
  type Listening,
  listen,
  modelCalls,
  openRows,
  type Run,
  stepRuns,
  toolCalls,
  until,
  waitForRun,
} from '../support/runs.ts';

let db: TestDatabase;
let model: ModelServer;
let daemon: TestDaemon;
let platform: Platform;
let heard: Listening | null;
let taskId: string;
let conversationId: string;
let run: Run;
let requests: RecordedRequest[];

beforeAll(async () => {
  db = await testDatabase();
  model = await startModelServer();
  platform = await makePlatform(db);
  await insert(db, 'public.llm_models', {
    provider: 'openai',
    name: 'Mini',
    model_id: MODEL,
    input_cost_per_1k: 0.001,
    output_cost_per_1k: 0.002,
  });
  conversationId = await insert(db, 'public.conversations', {
    workspace_id: platform.workspaceId,
    agent_id: platform.agentId,
    user_id: platform.userId,
  });
  taskId = await makeTask(db, platform, { target_conversation_id: conversationId }, [
    { instructions: 'Find out the time.' },
    { instructions: 'Draft.', previous: true },
    { instructions: 'Polish.', previous: true },
  ]);
  model.respond(({ body }) => {
    const usage = { promptTokens: 1000, completionTokens: 100 };
    const step = stepOf(body.messages);
    if (step === 1 && body.messages.at(-1)?.role === 'user') {
      return { toolCalls: [{ name: 'current_time', arguments: { timezone: 'Europe/Paris' } }], usage };
    }
    return { content: `result ${step}`, usage };
  });
  heard = onServer ? await listen(db, 'agentd_runs') : null;
  daemon = await testDaemon(db, model);
  const id = await startRun(db, taskId, { topic: 'tides' });
  run = await waitForRun(db, id);
  await until('the job is settled', async () => (await jobOutcomes(db, id)).length > 0);
  requests = [...model.requests];
});

afterAll(async () => {
  await daemon?.stop();
  await heard?.close();
  await model?.close();
  await db?.dispose();
});

function stepOf(messages: readonly ChatMessage[]): number {
  return Number(/step (\d+):/.exec(String(messages[0]?.content))?.[1]);
}

test('a run of three steps ends completed with the last step’s answer as its output', () => {
  expect(run).toMatchObject({
    status: 'completed',
    reason_code: null,
    output: { text: 'result 3' },
    lease_epoch: 1,
    turns: 4,
    tool_calls: 1,
    prompt_tokens: 4000,
    completion_tokens: 400,
    cost_micros: 4 * 1200,
  });
  expect(run.finished_at).not.toBeNull();
});

test('every request is one that the strict provider takes', () => {
  expect(model.rejected).toEqual([]);
  expect(requests).toHaveLength(4);
});

test('every step is in the journal with its result, and nothing is left open', async () => {
  const steps = await stepRuns(db, run.id);
  expect(steps.map((s) => [s.step_order, s.status, s.attempt, s.result?.text])).toEqual([
    [1, 'completed', 1, 'result 1'],
    [2, 'completed', 1, 'result 2'],
    [3, 'completed', 1, 'result 3'],
  ]);
  expect(await openRows(db, run.id)).toEqual([]);
});

test('every model call is in the journal under the key that the provider saw, with tokens and cost', async () => {
  const calls = await modelCalls(db, run.id);
  expect(calls.map((c) => [c.step_order, c.turn, c.status, c.prompt_tokens, c.cost_micros])).toEqual([
    [1, 1, 'completed', 1000, 1200],
    [1, 2, 'completed', 1000, 1200],
    [2, 1, 'completed', 1000, 1200],
    [3, 1, 'completed', 1000, 1200],
  ]);
  expect(calls.map((c) => c.idempotency_key)).toEqual(requests.map((r) => r.idempotencyKey));
  expect(calls.map((c) => c.credential_source)).toEqual(Array(4).fill('environment'));
  const [row] = await db.query<{ key: string }>('select agentd.call_key($1, 2, 1) as key', [run.id]);
  expect(calls[2]?.idempotency_key).toBe(row?.key);
});

test('the tool call is in the journal, and the model got its result as a tool message', async () => {
  const [call, ...others] = await toolCalls(db, run.id);
  expect(others).toEqual([]);
  expect(call).toMatchObject({ tool_name: 'current_time', status: 'completed', effect: 'read' });
  expect(requests[1]?.body.messages.at(-1)).toMatchObject({ role: 'tool', content: call?.result?.content });
});

test('input and earlier results reach the steps that want them', () => {
  expect(requests[0]?.userText).toContain('tides');
  expect(requests[2]?.userText).toContain('result 1');
  expect(requests[3]?.userText).toContain('result 2');
});

test('each call and the run are one usage event, and their sums are the run’s', async () => {
  const rows = await db.query<{ metric: string; events: number; quantity: number; cost: number }>(
    `select metric, count(*)::integer as events, sum(quantity)::integer as quantity, sum(cost_micros)::integer as cost
       from public.usage_events where run_id = $1 group by metric order by metric`,
    [run.id],
  );
  expect(rows).toEqual([
    { metric: 'task_run', events: 1, quantity: 1, cost: 0 },
    {
      metric: 'tokens',
      events: 4,
      quantity: run.prompt_tokens + run.completion_tokens,
      cost: run.cost_micros,
    },
    { metric: 'tool_call', events: 1, quantity: 1, cost: 0 },
  ]);
});

test('the answer is one message in the target conversation and one agent log', async () => {
  const messages = await db.query(
    'select conversation_id, role, content, agent_id from public.agent_messages where run_id = $1',
    [run.id],
  );
  expect(messages).toEqual([
    { conversation_id: conversationId, role: 'assistant', content: 'result 3', agent_id: platform.agentId },
  ]);
  const logs = await db.query<{ output: string }>(
    `select output from public.agent_logs where metadata ->> 'run_id' = $1`,
    [run.id],
  );
  expect(logs).toEqual([{ output: 'result 3' }]);
});

test('the task’s steps show the last run’s results', async () => {
  const rows = await db.query(
    'select status, execution_result, retry_count, error_message from public.task_steps where task_id = $1 order by step_order',
    [taskId],
  );
  expect(rows).toEqual(
    [1, 2, 3].map((n) => ({
      status: 'completed',
      execution_result: { text: `result ${n}` },
      retry_count: 0,
      error_message: null,
    })),
  );
});

test('the job’s only attempt is in job_runs as completed', async () => {
  expect(await jobOutcomes(db, run.id)).toEqual(['completed']);
});

test('the daemon logs nothing above info for a run that goes well', () => {
  expect(daemon.log.filter((line) => /"level":"(warn|error|fatal)"/.test(line))).toEqual([]);
});

test.skipIf(!onServer)(
  'server-only: the end is announced once on agentd_runs, with nothing of whose it is',
  () => {
    expect(heard?.payloads).toEqual(['']);
  },
);

test('a task with a target channel posts its answer there, once', async () => {
  const channelId = await insert(db, 'public.chat_channels', {
    workspace_id: platform.workspaceId,
    name: 'reports',
  });
  const other = await makeTask(db, platform, { target_channel_id: channelId });
  const id = await startRun(db, other);
  await waitForRun(db, id);
  const rows = await db.query('select channel_id, content, sender_agent_id from public.chat_messages');
  expect(rows).toEqual([{ channel_id: channelId, content: 'result 1', sender_agent_id: platform.agentId }]);
});

test('a later edit of the task does not change a run that exists', async () => {
  expect((await findRun(db, run.id))?.status).toBe('completed');
  let release: () => void = () => {};
  const held = new Promise<void>((resolve) => {
    release = resolve;
  });
  model.respond(({ body }) => ({ content: `again ${stepOf(body.messages)}`, delay: held }));
  const id = await startRun(db, taskId);
  await model.waitForRequest((r) => r.idempotencyKey !== null, 6);
  await db.query('delete from public.task_steps where task_id = $1 and step_order > 1', [taskId]);
  await db.query(`update public.agent_tasks set instructions = 'Something else.' where id = $1`, [taskId]);
  release();
  expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', output: { text: 'again 3' } });
  expect(model.requests.at(-1)?.userText).toContain('Write the report.');
  expect(model.rejected).toEqual([]);
});
