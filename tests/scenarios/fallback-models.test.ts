/** Models that are down, and those that take their place. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type ModelServer, type RecordedRequest, startModelServer } from '../peers/model-server.ts';
import { type TestDaemonOptions, testDaemon } from '../support/daemon.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, type Platform, startTask, workspaceKey } from '../support/platform.ts';
import { loseLease, modelCalls, openRows, stepRuns, waitForRun } from '../support/runs.ts';

let db: TestDatabase;
let model: ModelServer;
let platform: Platform;

const FIRST = 'gpt-4.1';
const SECOND = 'gpt-4.1-mini';
const THIRD = 'gpt-4o';

type Call = { model: string; provider: string; attempt: number; failures: number; status: string } & {
  llm_model_id: string | null;
  cost_micros: number;
  fallback_reason: string | null;
  error_code: string | null;
};
const calls = (id: string) => modelCalls(db, id) as unknown as Promise<Call[]>;
const asked = (): string[] => model.requests.map((request) => request.body.model);
const down = { status: 503, headers: { 'retry-after-ms': '1' }, error: { message: 'Overloaded.' } };

/** An agent of the first model with these to fall back to. */
async function agentWith(...fallbacks: string[]): Promise<void> {
  platform = await makePlatform(db, { agent: { model: FIRST, fallback_models: fallbacks } });
}

function isOf(name: string): (request: RecordedRequest) => boolean {
  return (request) => request.body.model === name;
}

function start(options: TestDaemonOptions = {}) {
  return testDaemon(db, model, options);
}

beforeEach(async () => {
  db = await testDatabase();
  model = await startModelServer();
});

afterEach(async () => {
  await model.close();
  await db.dispose();
});

describe('a model that stays down', () => {
  test('gives way to the next one after three tries, in the same turn and row, which says so', async () => {
    await agentWith(SECOND);
    model.respond((request) => (isOf(FIRST)(request) ? down : { content: 'from the second' }));
    await using _daemon = await start();
    const id = await startTask(db, platform, 'x');
    expect(await waitForRun(db, id)).toMatchObject({
      status: 'completed',
      output: { text: 'from the second' },
    });
    expect(asked()).toEqual([FIRST, FIRST, FIRST, SECOND]);
    const rows = await calls(id);
    expect(rows).toMatchObject([
      { model: SECOND, provider: 'openai', attempt: 4, failures: 0, status: 'completed', error_code: null },
    ]);
    expect(rows[0]?.fallback_reason).toMatch(/^openai\/gpt-4\.1: overloaded \(3 times\)\. .*Overloaded\.$/);
    expect(new Set(model.requests.map((request) => request.idempotencyKey)).size).toBe(1);
  });

  test('gives way at once when it asks for a longer pause than a slot is held for', async () => {
    await agentWith(SECOND);
    model.respond((request) =>
      isOf(FIRST)(request) ? { status: 503, headers: { 'retry-after-ms': '60000' } } : { content: 'second' },
    );
    await using _daemon = await start();
    const id = await startTask(db, platform, 'x');
    expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', lease_epoch: 1 });
    expect(asked()).toEqual([FIRST, SECOND]);
  });

  test('gives way when this key has no such model, and when it answers what can’t be read', async () => {
    await agentWith('gpt-nowhere', SECOND, THIRD);
    await db.query(`update public.agents set model = 'gpt-nowhere-either' where id = $1`, [platform.agentId]);
    model.respond((request) => (isOf(SECOND)(request) ? { body: '<html>' } : { content: 'third' }));
    await using _daemon = await start();
    const id = await startTask(db, platform, 'x');
    expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', output: { text: 'third' } });
    expect(asked()).toEqual(['gpt-nowhere-either', 'gpt-nowhere', SECOND, THIRD]);
    const [row] = await calls(id);
    expect(row?.fallback_reason).toMatch(
      /^openai\/gpt-nowhere-either: model_not_found\. .* openai\/gpt-nowhere: model_not_found\. .* openai\/gpt-4\.1-mini: bad_response\. /,
    );
    expect(model.rejected.splice(0)).toHaveLength(2);
  });

  test('fails the run when there is no next one, after as many tries as without fallbacks', async () => {
    await agentWith(SECOND);
    model.respond(() => down);
    await using _daemon = await start();
    const id = await startTask(db, platform, 'x');
    expect(await waitForRun(db, id)).toMatchObject({ status: 'failed', reason_code: 'overloaded' });
    expect(asked()).toEqual([FIRST, FIRST, FIRST, ...Array(6).fill(SECOND)]);
    expect(await calls(id)).toMatchObject([{ status: 'failed', model: SECOND, attempt: 9, failures: 6 }]);
    expect(await openRows(db, id)).toEqual([]);
  });

  test('costs what the model that answered costs, and its row of llm_models is the call’s', async () => {
    const price = { provider: 'openai', name: 'n', input_cost_per_1k: 1, output_cost_per_1k: 2 };
    const ownId = await insert(db, 'public.llm_models', { ...price, model_id: FIRST });
    await insert(db, 'public.llm_models', {
      ...price,
      provider: 'other',
      model_id: SECOND,
      input_cost_per_1k: 9,
    });
    const nextId = await insert(db, 'public.llm_models', {
      ...price,
      model_id: SECOND,
      input_cost_per_1k: 3,
    });
    await agentWith(SECOND, 'unlisted-model');
    await db.query('update public.agents set llm_model_id = $2 where id = $1', [platform.agentId, ownId]);
    const usage = { promptTokens: 1_000, completionTokens: 1_000 };
    model.respond((request) => (isOf(FIRST)(request) ? down : { content: 'second', usage }));
    await using _daemon = await start();
    const id = await startTask(db, platform, 'x');
    expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', cost_micros: 5_000_000 });
    expect(await calls(id)).toMatchObject([{ llm_model_id: nextId, cost_micros: 5_000_000 }]);
  });

  test('leaves no trace of its row of llm_models when the next one has none', async () => {
    const ownId = await insert(db, 'public.llm_models', { provider: 'openai', name: 'n', model_id: FIRST });
    await agentWith(SECOND);
    await db.query('update public.agents set llm_model_id = $2 where id = $1', [platform.agentId, ownId]);
    model.respond((request) => (isOf(FIRST)(request) ? down : { content: 'second' }));
    await using _daemon = await start();
    const id = await startTask(db, platform, 'x');
    await waitForRun(db, id);
    expect(await calls(id)).toMatchObject([{ model: SECOND, llm_model_id: null }]);
  });
});

describe('no other model is asked', () => {
  test.each([
    ['rate_limit', { status: 429, headers: { 'retry-after-ms': '1' } }, 'completed'],
    ['a filter', { status: 400, error: { code: 'content_filter', message: 'Filtered.' } }, 'failed'],
    ['a refused key', { status: 401, error: { code: 'invalid_api_key' } }, 'failed'],
    ['an empty account', { status: 429, error: { code: 'insufficient_quota' } }, 'failed'],
  ])('for %s', async (_, refusal, status) => {
    await agentWith(SECOND);
    model.respond((_request, index) => (index === 0 ? refusal : { content: 'first' }));
    await using _daemon = await start();
    const id = await startTask(db, platform, 'x');
    expect((await waitForRun(db, id)).status).toBe(status);
    expect(new Set(asked())).toEqual(new Set([FIRST]));
  });
});

describe('a run that fell back', () => {
  const useTool = { toolCalls: [{ name: 'current_time', arguments: '{}' }] };

  test('stays with that model; the next run begins with the first', async () => {
    await agentWith(SECOND);
    let isDown = true;
    model.respond((request) => {
      if (isOf(FIRST)(request)) return isDown ? down : { content: 'first again' };
      isDown = false;
      return request.body.messages.some((message) => message.role === 'tool') ? { content: 'done' } : useTool;
    });
    await using _daemon = await start();
    const id = await startTask(db, platform, 'x', { selected_tools: JSON.stringify(['current_time']) });
    expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', output: { text: 'done' } });
    expect(asked()).toEqual([FIRST, FIRST, FIRST, SECOND, SECOND]);
    const [first, second] = await calls(id);
    expect(first?.fallback_reason).toContain('overloaded');
    expect(second).toMatchObject({ model: SECOND, fallback_reason: null, attempt: 1 });

    const next = await waitForRun(db, await startTask(db, platform, 'y'));
    expect(next.output?.text).toBe('first again');
  });

  test('stays with it when another worker takes it over in the middle of a call', async () => {
    await agentWith(THIRD, SECOND);
    const held = Promise.withResolvers<void>();
    model.respond((request, index) => {
      if (isOf(FIRST)(request)) return down;
      return index === 3 ? { content: 'too late', delay: held.promise } : { content: 'taken over' };
    });
    await using _one = await start({ leaseSeconds: 30 });
    const id = await startTask(db, platform, 'x');
    await model.waitForRequest(isOf(THIRD));
    await loseLease(db, id);
    expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', output: { text: 'taken over' } });
    held.resolve();
    expect(asked()).toEqual([FIRST, FIRST, FIRST, THIRD, THIRD]);
    const rows = await calls(id);
    expect(rows).toMatchObject([{ model: THIRD, attempt: 5, status: 'completed' }]);
    expect(rows[0]?.fallback_reason).toMatch(/^openai\/gpt-4\.1: overloaded/);
  });
});

describe('a fallback without a usable key', () => {
  test('is left out, and the step’s context says so; the others are used', async () => {
    await agentWith('mistral/mistral-small', SECOND);
    model.respond((request) => (isOf(FIRST)(request) ? down : { content: 'second' }));
    await using _daemon = await start();
    const id = await startTask(db, platform, 'x');
    expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', output: { text: 'second' } });
    const [step] = await stepRuns(db, id);
    expect(step?.context?.left_out).toEqual([
      expect.stringMatching(/^fallback model 'mistral\/mistral-small': No usable key for mistral/),
    ]);
  });

  test('does not stand in for an agent whose own model has no key', async () => {
    await agentWith(SECOND);
    await db.query(`update public.agents set model = 'x' where id = $1`, [platform.agentId]);
    const id = await insert(db, 'public.llm_models', { provider: 'mistral', name: 'x', model_id: 'x' });
    await db.query('update public.agents set llm_model_id = $2 where id = $1', [platform.agentId, id]);
    await using _daemon = await start();
    const run = await waitForRun(db, await startTask(db, platform, 'x'));
    expect(run).toMatchObject({ status: 'failed', reason_code: 'no_model_credential' });
  });

  test('each model has its own: a key of the workspace’s pays for the fallback as for the first', async () => {
    await agentWith(SECOND);
    await workspaceKey(db, platform, model.apiKey);
    model.respond((request) => (isOf(FIRST)(request) ? down : { content: 'second' }));
    await using _daemon = await start({ env: { OPENAI_API_KEY: 'sk-nobody' } });
    const id = await startTask(db, platform, 'x');
    expect((await waitForRun(db, id)).status).toBe('completed');
    expect(await modelCalls(db, id)).toMatchObject([{ credential_source: 'workspace' }]);
  });
});

test('a list of fallbacks is bounded', async () => {
  await agentWith();
  const set = (list: (string | null)[]) =>
    db.query('update public.agents set fallback_models = $2 where id = $1', [platform.agentId, list]);
  await expect(set(Array(11).fill('m'))).rejects.toThrow('agents_fallback_models_check');
  await expect(set(['m'.repeat(2_001)])).rejects.toThrow('agents_fallback_models_check');
  await expect(set([null])).rejects.toThrow('agents_fallback_models_check');
  await set(Array(10).fill('m'));
});
