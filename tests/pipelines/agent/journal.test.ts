import { describe, expect, test } from 'vitest';
import type { Checkpoint, CheckpointResult, ModelCallChange, ToolCallChange } from '../../../src/db/runs.ts';
import { JournalRefused, RunJournal, RunLost } from '../../../src/pipelines/agent/journal.ts';
import { claimedRun } from './claimed-run.ts';

const started: ModelCallChange = {
  order: 1,
  turn: 1,
  provider: 'openai',
  model: 'm',
  model_id: null,
  credential_source: 'agent',
  status: 'started',
  attempt: 1,
};
const completed: ModelCallChange = {
  ...started,
  status: 'completed',
  prompt_tokens: 10,
  completion_tokens: 5,
  cost_micros: 7,
};
const toolCall: ToolCallChange = {
  order: 1,
  turn: 1,
  index: 0,
  provider_call_id: 'c',
  tool: 'look',
  source: 'builtin',
  effect: 'write',
  arguments: {},
  status: 'started',
};
const failed = {
  status: 'failed',
  reason_code: 'why',
  reason: 'Because.',
  output: null,
  wake_in_ms: null,
  log: null,
} as const;

function setup(
  answer: (checkpoint: Checkpoint, index: number) => CheckpointResult = () => ({ applied: true }),
  run = claimedRun({ lease_epoch: 3, journal_seq: 7, steps: [] }),
) {
  const written: Checkpoint[] = [];
  const journal = new RunJournal(run, async (checkpoint) => {
    written.push(structuredClone(checkpoint));
    return answer(checkpoint, written.length - 1);
  });
  return { journal, written };
}

describe('a run’s journal', () => {
  test('writes nothing when nothing was recorded', async () => {
    const { journal, written } = setup();
    await journal.flush();
    await journal.flush();
    expect(written).toEqual([]);
  });

  test('every checkpoint carries the claim’s epoch and the next place in the journal', async () => {
    const { journal, written } = setup();
    for (let i = 0; i < 3; i++) {
      journal.modelCall({ ...started, turn: i + 1 });
      await journal.flush();
    }
    expect(written.map((c) => [c.epoch, c.seq])).toEqual([
      [3, 7],
      [3, 8],
      [3, 9],
    ]);
  });

  test('an outcome and the next intent are one checkpoint', async () => {
    const { journal, written } = setup();
    journal.modelCall(completed);
    journal.modelCall({ ...started, turn: 2 });
    await journal.flush();
    expect(written).toHaveLength(1);
    expect(written[0]?.llm.map((c) => [c.turn, c.status])).toEqual([
      [1, 'completed'],
      [2, 'started'],
    ]);
  });

  test('what is said twice of one call is one row with the latest of both', async () => {
    const { journal, written } = setup();
    journal.modelCall(started);
    journal.modelCall(completed);
    journal.step({ order: 1, step_id: null, name: 's', attempt: 1, status: 'running', context: { a: 1 } });
    journal.step({
      order: 1,
      step_id: null,
      name: 's',
      attempt: 1,
      status: 'completed',
      result: { text: 'x' },
    });
    await journal.flush();
    expect(written[0]?.llm).toMatchObject([{ status: 'completed' }]);
    expect(written[0]?.steps).toMatchObject([
      { status: 'completed', context: { a: 1 }, result: { text: 'x' } },
    ]);
  });

  test('a completed call adds its tokens, its cost, a turn and one usage event, in its own checkpoint only', async () => {
    const { journal, written } = setup();
    journal.modelCall(completed);
    await journal.flush();
    journal.modelCall({ ...started, turn: 2 });
    await journal.flush();
    expect(written[0]).toMatchObject({ turns: 1, prompt_tokens: 10, completion_tokens: 5, cost_micros: 7 });
    expect(written[0]?.usage).toMatchObject([{ metric: 'tokens', quantity: 15, cost_micros: 7 }]);
    expect(written[1]).toMatchObject({ turns: 0, prompt_tokens: 0, cost_micros: 0, usage: [] });
  });

  test('a failed model call costs nothing', async () => {
    const { journal, written } = setup();
    journal.modelCall({ ...started, status: 'failed', error_code: 'server_error' });
    await journal.flush();
    expect(written[0]).toMatchObject({ turns: 0, prompt_tokens: 0, usage: [] });
  });

  test.each([
    ['completed', 1, undefined],
    ['failed', 1, 12],
    ['failed', 0, undefined],
    ['started', 0, undefined],
    ['waiting', 0, undefined],
    ['denied', 0, undefined],
  ] as const)(
    'a tool call that is %s is %i usage event: what was never made costs nothing',
    async (status, events, took) => {
      const { journal, written } = setup();
      journal.toolCall({ ...toolCall, status, ...(took === undefined ? {} : { duration_ms: took }) });
      await journal.flush();
      expect(written[0]?.usage).toHaveLength(events);
      expect(written[0]?.tool_calls).toBe(events);
    },
  );

  test('usage keys are of the call and not of the attempt', async () => {
    const keys = async (attempt: number): Promise<string[] | undefined> => {
      const { journal, written } = setup(
        undefined,
        claimedRun({ lease_epoch: attempt, journal_seq: attempt, steps: [] }),
      );
      journal.modelCall({ ...completed, attempt });
      journal.toolCall({ ...toolCall, status: 'completed' });
      journal.end({ ...failed, status: 'completed' });
      await journal.flush();
      return written[0]?.usage.map((event) => event.key);
    };
    expect(await keys(1)).toEqual(await keys(5));
    expect(new Set(await keys(1)).size).toBe(3);
  });

  test('a message is in one checkpoint and not in the next', async () => {
    const { journal, written } = setup();
    journal.message({
      conversation_id: null,
      channel_id: 'c',
      content: 'hi',
      is_answer: false,
      metadata: {},
    });
    await journal.flush();
    journal.modelCall(started);
    await journal.flush();
    expect(written.map((c) => c.messages.length)).toEqual([1, 0]);
  });

  test('a checkpoint that is not applied means that the run is lost', async () => {
    const { journal } = setup(() => ({ applied: false, status: 'cancelled', reasonCode: null }));
    journal.modelCall(started);
    await expect(journal.flush()).rejects.toBeInstanceOf(RunLost);
  });
});

describe('a run that ends', () => {
  test('closes the step and the call that its claim has opened', async () => {
    const { journal, written } = setup(undefined, claimedRun());
    journal.end(failed);
    await journal.flush();
    expect(written[0]?.steps).toMatchObject([
      { order: 1, status: 'failed', reason_code: 'why', error: 'Because.' },
    ]);
    expect(written[0]?.llm).toMatchObject([{ order: 1, turn: 1, status: 'failed', error_code: 'why' }]);
  });

  test('closes what this worker has left open; a write under way is unknown, not failed', async () => {
    const { journal, written } = setup();
    journal.modelCall(started);
    journal.toolCall(toolCall);
    journal.toolCall({ ...toolCall, index: 1, effect: 'read' });
    await journal.flush();
    journal.end(failed);
    await journal.flush();
    expect(written[1]?.llm).toMatchObject([{ status: 'failed' }]);
    expect(written[1]?.tools.map((t) => [t.index, t.status])).toEqual([
      [0, 'unknown'],
      [1, 'failed'],
    ]);
  });

  test('leaves what has ended as it is', async () => {
    const { journal, written } = setup();
    journal.modelCall(completed);
    journal.step({ order: 1, step_id: null, name: 's', attempt: 1, status: 'completed' });
    await journal.flush();
    journal.end({ ...failed, status: 'completed' });
    await journal.flush();
    expect(written[1]).toMatchObject({ llm: [], tools: [], steps: [] });
  });

  test.each(['queued', 'waiting'] as const)(
    '%s is no end: open rows stay open and no run is counted',
    async (status) => {
      const { journal, written } = setup(undefined, claimedRun());
      journal.end({ ...failed, status });
      await journal.flush();
      expect(written[0]).toMatchObject({ llm: [], steps: [], usage: [] });
    },
  );
});

describe('a checkpoint that the database refuses', () => {
  test.each([
    [
      'once: what was paid stays on the books',
      1,
      { status: 'completed', prompt_tokens: completed.prompt_tokens },
    ],
    ['twice: nothing of it is kept, and its rows are closed', 2, { status: 'failed' }],
  ] as const)('%s', async (_name, refusals, call) => {
    const { journal, written } = setup((_, index) => {
      if (index < refusals) throw new Error('integer out of range');
      return { applied: true };
    }, claimedRun());
    journal.modelCall(completed);
    journal.toolCall(toolCall);
    for (let i = 0; i < refusals; i++) {
      await expect(journal.flush()).rejects.toBeInstanceOf(JournalRefused);
      journal.end(failed);
    }
    await journal.flush();
    const last = written.at(-1);
    expect(last?.seq).toBe(written[0]?.seq);
    expect(last?.llm).toMatchObject([{ order: 1, turn: 1, ...call }]);
    expect(last?.tools).toMatchObject([{ order: 1, turn: 1 }]);
    expect(last?.prompt_tokens).toBe(refusals === 1 ? written[0]?.prompt_tokens : 0);
    expect(last?.end).toMatchObject({ status: 'failed' });
  });
});
