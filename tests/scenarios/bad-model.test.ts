import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { ChatMessage } from '../../src/providers/models.ts';
import {
  type ModelServer,
  type RecordedRequest,
  type Scripted,
  startModelServer,
} from '../peers/model-server.ts';
import { type TestDaemon, testDaemon } from '../support/daemon.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import {
  type Columns,
  makeAgent,
  makePlatform,
  type Platform,
  type StepColumns,
  startTask,
  workspaceKey,
} from '../support/platform.ts';
import {
  findRun,
  jobOutcomes,
  modelCalls,
  openRows,
  type Run,
  stepRuns,
  tablesWith,
  toolCalls,
  until,
  waitForRun,
} from '../support/runs.ts';

let db: TestDatabase;
let model: ModelServer;
let daemon: TestDaemon;
let platform: Platform;

/** What the model does in each scenario: the answers to its requests in order; the last one stands for all further ones. */
const scripts: Record<string, readonly Scripted[]> = {
  'healthy run': [{ content: 'fine' }],
  'nonsense body': [{ body: 'no json' }],
  'foreign body': [{ body: '{"hello":1}' }],
  'nonsense once': [{ body: '<html>busy</html>' }, { content: 'better' }],
  nothing: [{ content: '' }],
  'nothing once': [{ content: '  ' }, { content: 'something' }],
  refusal: [{ refusal: 'I can’t help with that.' }],
  'content filter': [{ content: '', finishReason: 'content_filter' }],
  'cut off': [{ content: 'The beginning', finishReason: 'length' }],
  'cut off at once': [{ content: '', finishReason: 'length' }],
  'malformed arguments': [
    { toolCalls: [{ name: 'current_time', arguments: '{"timezone": "UT' }] },
    { content: 'done' },
  ],
  'unknown tool': [{ toolCalls: [{ name: 'launch', arguments: {} }] }, { content: 'done' }],
  'impossible tool name': [{ toolCalls: [{ name: 'search the web!', arguments: {} }] }, { content: 'done' }],
  overflow: [
    {
      status: 400,
      error: { code: 'context_length_exceeded', message: 'maximum context length is 8 tokens' },
    },
  ],
  'no such model': [{ status: 404, error: { code: 'model_not_found', message: 'The model does not exist' } }],
  'short rate limit': [
    { status: 429, headers: { 'retry-after-ms': '40' }, error: { code: 'rate_limit_exceeded' } },
    { content: 'served' },
  ],
  'server errors': [
    { status: 500, headers: { 'retry-after-ms': '20' } },
    { status: 503, headers: { 'retry-after-ms': '20' } },
    { content: 'recovered' },
  ],
  'server errors for ever': [{ status: 500, headers: { 'retry-after-ms': '10' } }],
  'dropped connection': [{ drop: true }, { content: 'reconnected' }],
  hang: [{ hang: true }],
  'rate limit without a pause': [{ status: 429, headers: { 'retry-after': '0' } }],
  characters: [{ content: 'a\u0000b\ud800c' }, { content: 'second' }],
  'characters in arguments': [
    { toolCalls: [{ name: 'current_time', arguments: '{"timezone":"\\u0000\\ud800"}' }] },
    { content: 'done' },
  ],
  'characters in argument names': [
    { toolCalls: [{ name: 'current_time', arguments: '{"\\u0000":"x"}' }] },
    { content: 'done' },
  ],
  'a megabyte': [{ content: `begin ${'x'.repeat(1_000_000)} end` }, { content: 'second' }],
  'absurd usage': [{ content: 'ok', usage: { promptTokens: 3e9, completionTokens: 1 } }],
  'no usage': [{ content: 'ok', usage: null }],
  'tools for ever': [{ toolCalls: [{ name: 'current_time', arguments: {} }] }],
};

const runs = new Map<string, string>();

const stepsOf: Record<string, StepColumns[]> = {
  hang: [{ timeoutSeconds: 1 }],
  characters: [{}, { previous: true }],
  'a megabyte': [{}, { previous: true }],
};
const columnsOf: Record<string, Columns> = {
  'rate limit without a pause': { timeout_seconds: 3 },
  'nonsense body': { max_retries: 1 },
  'nonsense once': { max_retries: 1 },
  nothing: { max_retries: 1 },
  'nothing once': { max_retries: 1 },
};

beforeAll(async () => {
  db = await testDatabase();
  model = await startModelServer();
  platform = await makePlatform(db);
  const asked = new Map<string, number>();
  model.respond((request) => {
    const marker = markerOf(request);
    const script = scripts[marker] ?? [];
    const count = asked.get(marker) ?? 0;
    asked.set(marker, count + 1);
    return script[Math.min(count, script.length - 1)] ?? { content: 'no script' };
  });
  daemon = await testDaemon(db, model);
  // All of them at once: what one model does wrong must not be felt by the other runs of the daemon.
  for (const marker of Object.keys(scripts)) {
    runs.set(
      marker,
      await startTask(db, platform, `<${marker}>`, columnsOf[marker] ?? {}, stepsOf[marker] ?? []),
    );
  }
});

afterAll(async () => {
  await daemon?.stop();
  await model?.close();
  await db?.dispose();
});

function markerOf(request: Pick<RecordedRequest, 'userText'>): string {
  return /<([a-z ]+)>/.exec(request.userText)?.[1] ?? '';
}

function requestsOf(marker: string): RecordedRequest[] {
  return model.requests.filter((request) => markerOf(request) === marker);
}

function runOf(marker: string): Promise<Run> {
  return waitForRun(db, runs.get(marker) ?? marker);
}

function lastMessage(request: RecordedRequest | undefined): ChatMessage | undefined {
  return request?.body.messages.at(-1);
}

/** The run failed with this code, says so in a sentence, and nothing of it is open or asked for again. */
async function expectFailure(marker: string, code: string, requests: number): Promise<Run> {
  const run = await runOf(marker);
  expect(run).toMatchObject({ status: 'failed', reason_code: code, lease_epoch: 1 });
  expect(run.reason).toMatch(/^Step 1 .*[.]$/s);
  expect(await openRows(db, run.id)).toEqual([]);
  expect(requestsOf(marker)).toHaveLength(requests);
  return run;
}

async function expectSuccess(marker: string, text: string, requests: number): Promise<Run> {
  const run = await runOf(marker);
  // A second epoch would mean that a worker fell over it and the lease had to lapse.
  expect(run).toMatchObject({ status: 'completed', output: { text }, lease_epoch: 1 });
  expect(await openRows(db, run.id)).toEqual([]);
  expect(requestsOf(marker)).toHaveLength(requests);
  return run;
}

describe('an answer that is none', () => {
  test('a body that is not JSON is asked for again as often as the task says, then the run fails', async () => {
    const run = await expectFailure('nonsense body', 'bad_response', 2);
    expect(run.reason).toContain('after 2 attempts');
    expect((await stepRuns(db, run.id))[0]).toMatchObject({ status: 'failed', attempt: 2 });
  });

  test('a JSON body that is no completion fails the step', async () => {
    await expectFailure('foreign body', 'bad_response', 1);
  });

  test('a proxy’s page in place of one answer costs an attempt and no more', async () => {
    await expectSuccess('nonsense once', 'better', 2);
  });

  test('an empty answer fails the step when no attempt is left', async () => {
    await expectFailure('nothing', 'empty_answer', 2);
  });

  test('one empty answer is asked for again and is no part of the conversation', async () => {
    await expectSuccess('nothing once', 'something', 2);
    const [first, second] = requestsOf('nothing once');
    expect(second?.body.messages).toEqual(first?.body.messages);
    expect(second?.idempotencyKey).not.toBe(first?.idempotencyKey);
  });

  test('a refusal is final and is quoted', async () => {
    const run = await expectFailure('refusal', 'refusal', 1);
    expect(run.reason).toContain('I can’t help with that.');
  });

  test('an answer withheld by the content filter is final', async () => {
    await expectFailure('content filter', 'content_filter', 1);
  });

  test('a cut off answer is kept, and the run says that it is cut off', async () => {
    const run = await expectSuccess('cut off', 'The beginning', 1);
    expect(run).toMatchObject({ reason_code: 'answer_cut_off' });
    expect(run.reason).toContain('max_tokens');
  });

  test('an answer that was cut off before its first word fails the run', async () => {
    await expectFailure('cut off at once', 'answer_cut_off', 1);
  });
});

describe('tools as models call them', () => {
  test('malformed arguments are told to the model, which goes on', async () => {
    const run = await expectSuccess('malformed arguments', 'done', 2);
    expect(await toolCalls(db, run.id)).toMatchObject([
      { status: 'failed', error_code: 'invalid_arguments' },
    ]);
    expect(lastMessage(requestsOf('malformed arguments')[1])).toMatchObject({
      role: 'tool',
      content: expect.stringContaining('JSON'),
    });
  });

  test('an unknown tool is told to the model with the tools that there are', async () => {
    const run = await expectSuccess('unknown tool', 'done', 2);
    expect(await toolCalls(db, run.id)).toMatchObject([{ status: 'failed', error_code: 'unknown_tool' }]);
    expect(lastMessage(requestsOf('unknown tool')[1])).toMatchObject({
      content: expect.stringContaining('current_time'),
    });
  });

  test('a tool name that no provider takes back does not end the run', async () => {
    await expectSuccess('impossible tool name', 'done', 2);
  });

  test('a model that calls tools for ever is stopped', async () => {
    const run = await runOf('tools for ever');
    expect(run.status).toBe('failed');
    expect(run.reason_code).toMatch(/too_many_turns|loop/);
    expect(await openRows(db, run.id)).toEqual([]);
  });
});

describe('a provider that answers with an error', () => {
  test('a context overflow fails the step and says what to do', async () => {
    const run = await expectFailure('overflow', 'context_length_exceeded', 1);
    expect(run.reason).toMatch(/context window/);
  });

  test('a model that does not exist fails the run at once', async () => {
    await expectFailure('no such model', 'model_not_found', 1);
  });

  test('a short rate limit is waited for and the same call is made again under the same key', async () => {
    const run = await expectSuccess('short rate limit', 'served', 2);
    const [first, second] = requestsOf('short rate limit');
    expect(second?.idempotencyKey).toBe(first?.idempotencyKey);
    expect((await stepRuns(db, run.id))[0]?.attempt).toBe(1);
    expect(await modelCalls(db, run.id)).toMatchObject([{ attempt: 2, status: 'completed' }]);
  });

  test('a rate limit that names no pause is not answered with a storm of requests', async () => {
    const run = await runOf('rate limit without a pause');
    expect(run).toMatchObject({ status: 'failed', reason_code: 'timeout' });
    expect(requestsOf('rate limit without a pause').length).toBeLessThan(30);
    expect(await openRows(db, run.id)).toEqual([]);
  });

  test('server errors are tried again under the same key and cost the step no attempt', async () => {
    const run = await expectSuccess('server errors', 'recovered', 3);
    expect(new Set(requestsOf('server errors').map((r) => r.idempotencyKey)).size).toBe(1);
    expect((await stepRuns(db, run.id))[0]?.attempt).toBe(1);
  });

  test('server errors that do not end fail the run after a bounded number of tries', async () => {
    const run = await runOf('server errors for ever');
    expect(run).toMatchObject({ status: 'failed', reason_code: 'server_error' });
    expect(requestsOf('server errors for ever').length).toBeLessThanOrEqual(10);
    expect(await openRows(db, run.id)).toEqual([]);
  });

  test('a dropped connection is tried again', async () => {
    await expectSuccess('dropped connection', 'reconnected', 2);
  });

  test('a model that hangs is given up at the step’s time limit and its request is ended', async () => {
    await expectFailure('hang', 'step_timeout', 1);
    expect(await requestsOf('hang')[0]?.finished).toBe(true);
  });
});

describe('answers that are hard to keep', () => {
  test('NUL and lone surrogates are kept as U+FFFD and go on to the next step', async () => {
    const run = await expectSuccess('characters', 'second', 2);
    expect((await stepRuns(db, run.id))[0]?.result?.text).toBe('a\uFFFDb\uFFFDc');
  });

  test('NUL and lone surrogates in a tool’s arguments do not stop the run', async () => {
    await expectSuccess('characters in arguments', 'done', 2);
  });

  test('NUL in the name of an argument does not stop the run', async () => {
    await expectSuccess('characters in argument names', 'done', 2);
  });

  test('an answer of a megabyte is kept whole and cut for the next step, which is recorded', async () => {
    const run = await expectSuccess('a megabyte', 'second', 2);
    const [first, second] = await stepRuns(db, run.id);
    expect(first?.result?.text).toHaveLength(1_000_010);
    expect(second?.context?.left_out.join()).toMatch(/characters of the result of step 1/);
    expect(requestsOf('a megabyte')[1]?.userText.length).toBeLessThan(4000 * 4);
  });

  test('usage that no column can hold does not stop the run', async () => {
    await expectSuccess('absurd usage', 'ok', 1);
  });

  test('an answer without usage counts as unknown, not as an error', async () => {
    const run = await expectSuccess('no usage', 'ok', 1);
    expect(run.prompt_tokens).toBe(0);
  });
});

test('another run of the same daemon completes meanwhile', async () => {
  await expectSuccess('healthy run', 'fine', 1);
});

test('all requests were such as the strict provider takes', async () => {
  for (const marker of runs.keys()) await runOf(marker);
  expect(model.rejected).toEqual([]);
});

describe('a refused key', () => {
  const key = 'sk-Wq7ZpLm3Vt9RxN2cKd8Yb5Hs';

  test('stops the run, names the credential, and is nowhere but in its own row', async () => {
    const owner = await makePlatform(db);
    const config = await workspaceKey(db, owner, key);
    const before = model.rejected.length;
    const id = await startTask(db, owner, '<healthy run>', { max_retries: 3 });
    const run = await waitForRun(db, id);
    expect(run).toMatchObject({ status: 'failed', reason_code: 'invalid_api_key' });
    expect(run.reason).toContain(config);
    expect(await openRows(db, id)).toEqual([]);
    // The provider echoed its first eight and last four characters.
    expect(model.rejected.slice(before).map((r) => r.status)).toEqual([401]);
    for (const piece of [key, key.slice(0, 8), key.slice(-8)]) {
      expect(await tablesWith(db, piece, ['public.workspace_llm_config'])).toEqual([]);
      expect(daemon.log.filter((line) => line.includes(piece))).toEqual([]);
    }
  });
});

describe('a long rate limit', () => {
  test('the run waits without a slot and goes on by itself; the call keeps its key', async () => {
    await using other = await platformWithOneSlot();
    const { database, server, owner } = other;
    server.respond((request, index) =>
      index === 0
        ? { status: 429, headers: { 'retry-after-ms': '5200' }, error: { code: 'rate_limit_exceeded' } }
        : { content: request.userText },
    );
    const limited = await startTask(database, owner, 'limited');
    const waiting = await waitForRun(database, limited, ['waiting']);
    expect(waiting.reason_code).toBe('rate_limit');
    expect(waiting.wake_at?.getTime()).toBeGreaterThan(Date.now() + 3000);

    // The daemon has one slot: this run can only complete if the waiting one does not hold it.
    const second = await startTask(database, owner, 'second');
    expect((await waitForRun(database, second)).status).toBe('completed');
    expect((await findRun(database, limited))?.status).toBe('waiting');

    const run = await waitForRun(database, limited);
    expect(run).toMatchObject({ status: 'completed', output: { text: 'limited' }, lease_epoch: 2 });
    const calls = server.requests.filter((r) => r.userText.includes('limited'));
    expect(calls).toHaveLength(2);
    expect(calls[1]?.idempotencyKey).toBe(calls[0]?.idempotencyKey);
    expect((await stepRuns(database, limited))[0]?.attempt).toBe(1);
    expect(
      await until('both attempts are settled', async () => {
        const outcomes = await jobOutcomes(database, limited);
        return outcomes.length === 2 && outcomes;
      }),
    ).toEqual(['snoozed', 'completed']);
  });
});

async function platformWithOneSlot() {
  const database = await testDatabase();
  const server = await startModelServer();
  const owner = await makePlatform(database);
  const worker = await testDaemon(database, server, { env: { AGENTD_QUEUES: 'task-run=1' } });
  return {
    database,
    server,
    owner,
    async [Symbol.asyncDispose]() {
      await worker.stop();
      await server.close();
      await database.dispose();
    },
  };
}

test('an agent’s model that the provider does not know fails only that agent’s runs', async () => {
  const agentId = await makeAgent(db, platform, { model: 'gpt-nowhere' });
  const id = await startTask(db, { ...platform, agentId }, '<healthy run>');
  const run = await waitForRun(db, id);
  expect(run).toMatchObject({ status: 'failed', reason_code: 'model_not_found' });
  expect(run.reason).toContain('gpt-nowhere');
});
