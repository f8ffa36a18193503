import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { ChatMessage } from '../../src/providers/models.ts';
import { type ModelServer, type RecordedRequest, startModelServer } from '../peers/model-server.ts';
import { type TestDaemon, testDaemon } from '../support/daemon.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { makePlatform, type Platform, startTask } from '../support/platform.ts';
import { modelCalls, openRows, type Run, stepRuns, toolCalls, waitForRun } from '../support/runs.ts';
import { columnsOf, scripts, stepsOf } from './bad-model-scripts.ts';

let db: TestDatabase;
let model: ModelServer;
let daemon: TestDaemon;
let platform: Platform;

const runs = new Map<string, string>();

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
  // The lease of production, so that none lapses while all of them are under way on a busy machine.
  daemon = await testDaemon(db, model, { leaseSeconds: 15 });
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
