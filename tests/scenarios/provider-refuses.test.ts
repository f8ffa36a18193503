import { describe, expect, test } from 'vitest';
import { daemon, daemonOfItsOwn, db, model, platform, useDaemon } from '../support/one-daemon.ts';
import { makeAgent, makePlatform, startTask, workspaceKey } from '../support/platform.ts';
import { jobOutcomes, openRows, stepRuns, tablesWith, until, waitForRun } from '../support/runs.ts';

useDaemon();

describe('a refused key', () => {
  const key = 'sk-Wq7ZpLm3Vt9RxN2cKd8Yb5Hs';

  test('stops the run, names the credential, and is nowhere but in its own row', async () => {
    const owner = await makePlatform(db);
    const config = await workspaceKey(db, owner, key);
    const id = await startTask(db, owner, 'x', { max_retries: 3 });
    const run = await waitForRun(db, id);
    expect(run).toMatchObject({ status: 'failed', reason_code: 'invalid_api_key' });
    expect(run.reason).toContain(config);
    expect(await openRows(db, id)).toEqual([]);
    // The provider echoed its first eight and last four characters.
    expect(model.rejected.splice(0).map((r) => r.status)).toEqual([401]);
    for (const piece of [key, key.slice(0, 8), key.slice(-8)]) {
      expect(await tablesWith(db, piece, ['public.workspace_llm_config'])).toEqual([]);
      expect(daemon.log.filter((line) => line.includes(piece))).toEqual([]);
    }
  });
});

describe('a key that a provider repeats', () => {
  test.each([
    [400, 'invalid_request_error'],
    [403, 'permission_denied'],
    [429, 'insufficient_quota'],
    [500, 'server_error'],
  ])('in an answer with status %i is masked wherever the error is kept', async (status, code) => {
    model.respond(() => ({
      status,
      headers: { 'retry-after-ms': '10' },
      error: { code, message: `The key ${model.apiKey} (${model.apiKey.slice(0, 12)}…) may not do this.` },
    }));
    const run = await waitForRun(db, await startTask(db, platform, 'x'));
    expect(run.status).toBe('failed');
    expect(run.reason).toContain('may not do this');
    for (const piece of [model.apiKey, model.apiKey.slice(0, 12), model.apiKey.slice(-8)]) {
      expect(await tablesWith(db, piece)).toEqual([]);
      expect(daemon.log.filter((line) => line.includes(piece))).toEqual([]);
    }
  });
});

describe('a long rate limit', () => {
  test('the run waits without a slot and goes on by itself; the call keeps its key', async () => {
    await using other = await daemonOfItsOwn({ AGENTD_QUEUES: 'task-run=1' });
    const { db: database, owner } = other;
    model.respond((request, index) =>
      index === 0
        ? { status: 429, headers: { 'retry-after-ms': '8000' }, error: { code: 'rate_limit_exceeded' } }
        : { content: request.userText },
    );
    const limited = await startTask(database, owner, 'limited');
    const waiting = await waitForRun(database, limited, ['waiting']);
    expect(waiting.reason_code).toBe('rate_limit');
    expect(waiting.wake_at).not.toBeNull();

    // The daemon has one slot: this run can only complete if the waiting one does not hold it.
    // Of another model, which is not limited.
    const agentId = await makeAgent(database, owner, { model: 'gpt-4o' });
    const second = await startTask(database, { ...owner, agentId }, 'second');
    const { status, finished_at } = await waitForRun(database, second);
    expect(status).toBe('completed');
    expect(finished_at?.getTime()).toBeLessThan(waiting.wake_at?.getTime() ?? 0);

    const run = await waitForRun(database, limited);
    expect(run).toMatchObject({ status: 'completed', output: { text: 'limited' }, lease_epoch: 2 });
    const calls = model.requests.filter((r) => r.userText.includes('limited'));
    expect(calls).toHaveLength(2);
    expect(calls[1]?.idempotencyKey).toBe(calls[0]?.idempotencyKey);
    expect((await stepRuns(database, limited))[0]?.attempt).toBe(1);
    expect(
      await until('the last attempt is settled', async () => {
        const outcomes = await jobOutcomes(database, limited);
        return outcomes.length === 1 && outcomes;
      }),
    ).toEqual(['completed']);
  });
});

test('an agent’s model that the provider does not know fails only that agent’s runs', async () => {
  const agentId = await makeAgent(db, platform, { model: 'gpt-nowhere' });
  const id = await startTask(db, { ...platform, agentId }, 'x');
  const run = await waitForRun(db, id);
  expect(run).toMatchObject({ status: 'failed', reason_code: 'model_not_found' });
  expect(run.reason).toContain('gpt-nowhere');
  expect(model.rejected.splice(0).map((r) => r.status)).toEqual([404]);
});
