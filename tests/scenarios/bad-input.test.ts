import { describe, expect, test } from 'vitest';
import { db, expectNoRepairs, expectRefused, model, platform, useDaemon } from '../support/one-daemon.ts';
import { insert, makePlatform, startTask } from '../support/platform.ts';
import { openRows, stepRuns, waitForRun } from '../support/runs.ts';

useDaemon();

describe('what a task lacks', () => {
  test('a task without any instructions fails with the place to write them', async () => {
    await expectRefused(
      await startTask(db, platform, '', {}, [{ instructions: '  ' }]),
      'no_instructions',
      /instructions/,
    );
  });

  test('gaps in the numbering of steps do not matter', async () => {
    const id = await startTask(db, platform, 'x', {}, [{ order: 3 }, { order: 7 }, { order: 20 }]);
    expect((await waitForRun(db, id)).status).toBe('completed');
    expect((await stepRuns(db, id)).map((s) => [s.step_order, s.status])).toEqual([
      [1, 'completed'],
      [2, 'completed'],
      [3, 'completed'],
    ]);
    const projected = await db.query<{ status: string }>(
      `select s.status from public.task_steps s join public.task_runs r on r.task_id = s.task_id where r.id = $1`,
      [id],
    );
    expect(projected.map((row) => row.status)).toEqual(['completed', 'completed', 'completed']);
  });

  test('earlier results reach only the steps that include them', async () => {
    model.respond((_, index) => ({ content: `result-${index + 1}` }));
    const id = await startTask(db, platform, 'x', {}, [{}, { previous: false }, { previous: true }]);
    await waitForRun(db, id);
    const texts = model.requests.map((r) => r.userText);
    expect(texts[1]).not.toContain('result-1');
    expect(texts[2]).toContain('result-1');
    expect(texts[2]).toContain('result-2');
  });
});

describe('limits', () => {
  test('a step that fails is tried again and goes on; the attempts are counted', async () => {
    model.respond((_, index) => (index < 2 ? { body: 'nonsense' } : { content: 'third time' }));
    const id = await startTask(db, platform, 'x', { max_retries: 2 });
    expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', output: { text: 'third time' } });
    expect(await stepRuns(db, id)).toMatchObject([{ attempt: 3, status: 'completed' }]);
  });

  test('a step’s own max_retries counts, not the task’s', async () => {
    model.respond(() => ({ body: 'nonsense' }));
    const id = await startTask(db, platform, 'x', { max_retries: 3 }, [{ maxRetries: 1 }]);
    const run = await waitForRun(db, id);
    expect(run).toMatchObject({ status: 'failed', reason_code: 'bad_response' });
    expect(run.reason).toContain('after 2 attempts');
    expect(model.requests).toHaveLength(2);
  });

  test('what a failed run had finished before stays readable', async () => {
    model.respond((_, index) => (index === 0 ? { content: 'kept' } : { refusal: 'No.' }));
    const id = await startTask(db, platform, 'x', {}, [{}, {}, {}]);
    expect((await waitForRun(db, id)).status).toBe('failed');
    const steps = await stepRuns(db, id);
    expect(steps.map((s) => [s.step_order, s.status, s.result?.text])).toEqual([
      [1, 'completed', 'kept'],
      [2, 'failed', undefined],
    ]);
  });

  test.each([3_000_000, 2_000_000_000])(
    'a step may have %i seconds: longer than a timer counts',
    async (seconds) => {
      const id = await startTask(db, platform, 'x', { timeout_seconds: seconds }, [
        { timeoutSeconds: seconds },
      ]);
      expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', output: { text: 'answer' } });
    },
  );

  test('a run ends at its timeout_seconds, whatever its model does', async () => {
    model.respond(() => ({ hang: true }));
    const id = await startTask(db, platform, 'x', { timeout_seconds: 1, max_retries: 5 });
    const run = await waitForRun(db, id);
    expect(run).toMatchObject({ status: 'failed', reason_code: 'timeout' });
    expect(run.reason).toContain('timeout_seconds');
    expect(await model.requests[0]?.finished).toBe(true);
    expect(await openRows(db, id)).toEqual([]);
  });
});

describe('tools of a task', () => {
  test('selected_tools restrict what the model is offered', async () => {
    await waitForRun(db, await startTask(db, platform, 'x'));
    await waitForRun(db, await startTask(db, platform, 'x', { selected_tools: '["send_message"]' }));
    await waitForRun(db, await startTask(db, platform, 'x', { selected_tools: '[{"name":"current_time"}]' }));
    await waitForRun(db, await startTask(db, platform, 'x', { selected_tools: '["no_such_tool"]' }));
    expect(model.requests.map(({ body }) => (body.tools ?? []).map((tool) => tool.function.name))).toEqual([
      ['current_time'],
      ['send_message'],
      ['current_time'],
      [],
    ]);
  });

  test('a tool that was not selected can’t be called', async () => {
    model.respond((_, index) =>
      index === 0
        ? { toolCalls: [{ name: 'send_message', arguments: { content: 'sneaky', channel: 'general' } }] }
        : { content: 'done' },
    );
    await insert(db, 'public.chat_channels', { workspace_id: platform.workspaceId, name: 'general' });
    await waitForRun(db, await startTask(db, platform, 'x', { selected_tools: '["current_time"]' }));
    expect(await db.query(`select 1 from public.chat_messages where content = 'sneaky'`)).toEqual([]);
  });

  test('send_message posts exactly once, beside the answer', async () => {
    const channel = await insert(db, 'public.chat_channels', {
      workspace_id: platform.workspaceId,
      name: 'alerts',
    });
    model.respond((_, index) =>
      index === 0
        ? { toolCalls: [{ name: 'send_message', arguments: { content: 'heads up' } }] }
        : { content: 'done' },
    );
    const id = await startTask(db, platform, 'x', {
      selected_tools: '["send_message"]',
      target_channel_id: channel,
    });
    await waitForRun(db, id);
    const rows = await db.query<{ content: string }>(
      'select content from public.chat_messages where channel_id = $1 order by created_at',
      [channel],
    );
    expect(rows.map((row) => row.content)).toEqual(['heads up', 'done']);
  });

  test('send_message can’t reach a channel of another workspace', async () => {
    const other = await makePlatform(db);
    const foreign = await insert(db, 'public.chat_channels', {
      workspace_id: other.workspaceId,
      name: 'secret',
    });
    model.respond((_, index) =>
      index < 2
        ? {
            toolCalls: [
              {
                name: 'send_message',
                arguments: { content: 'hi', channel: index === 0 ? 'secret' : foreign },
              },
            ],
          }
        : { content: 'done' },
    );
    const id = await startTask(db, platform, 'x', { selected_tools: '["send_message"]' });
    expect((await waitForRun(db, id)).status).toBe('completed');
    expect(await db.query('select 1 from public.chat_messages where channel_id = $1', [foreign])).toEqual([]);
    expect(model.requests).toHaveLength(3);
  });
});

test('no run of this file was taken over or spent an attempt of its job', expectNoRepairs);
