import { describe, expect, test } from 'vitest';
import type { Checkpoint, JournaledToolCall } from '../../../src/db/runs.ts';
import { RunJournal, RunLost } from '../../../src/pipelines/agent/journal.ts';
import { callKey, callTools, type Turn } from '../../../src/pipelines/agent/tool-call.ts';
import {
  type Tool,
  type ToolContext,
  ToolError,
  type ToolResult,
} from '../../../src/pipelines/agent/tools.ts';
import type { ModelToolCall } from '../../../src/providers/models.ts';
import { createMetrics } from '../../../src/telemetry/metrics.ts';
import { claimedRun } from './claimed-run.ts';

const run = claimedRun({ steps: [] });

function tool(
  name: string,
  effect: Tool['effect'],
  call: (args: Record<string, unknown>, context: ToolContext) => Promise<ToolResult>,
  transactional = false,
): Tool {
  return {
    source: 'test',
    effect,
    transactional,
    definition: { type: 'function', function: { name } },
    call,
  };
}

function setup(tools: readonly Tool[], applied: (index: number) => boolean = () => true) {
  /** What happened, in order: checkpoints and calls. */
  const events: string[] = [];
  const written: Checkpoint[] = [];
  const journal = new RunJournal(run, async (checkpoint) => {
    written.push(structuredClone(checkpoint));
    events.push(`flush ${checkpoint.tools.map((t) => `${t.index}:${t.status}`).join(' ')}`);
    return applied(written.length - 1)
      ? { applied: true }
      : { applied: false, status: null, reasonCode: null };
  });
  const controller = new AbortController();
  const calling = (
    calls: readonly (Partial<ModelToolCall> & { name: string })[],
    journaled: readonly JournaledToolCall[] = [],
    contextWindowSize = 4000,
  ): Promise<string[]> => {
    const turn: Turn = {
      order: 1,
      turn: 2,
      calls: calls.map((call, i) => ({ id: `c${i}`, arguments: '{}', ...call })),
      journaled: new Map(journaled.map((call) => [call.call_index, call])),
      tools: new Map(tools.map((one) => [one.definition.function.name, one])),
      context: {
        workspaceId: 'w',
        runId: run.id,
        agentId: 'a',
        userId: null,
        target: { conversationId: null, channelId: null },
        signal: controller.signal,
      },
      contextWindowSize,
    };
    return callTools({ metrics: createMetrics() }, journal, turn);
  };
  return { events, written, journal, controller, calling };
}

function journaled(
  index: number,
  status: JournaledToolCall['status'],
  effect: Tool['effect'],
  content?: string,
): JournaledToolCall {
  return {
    step_order: 1,
    turn: 2,
    call_index: index,
    provider_call_id: `c${index}`,
    tool_name: 'any',
    source: 'test',
    effect,
    arguments: {},
    status,
    result: content === undefined ? null : { content },
    error_message: null,
  };
}

describe('the calls of one turn', () => {
  test('intents of all of them are on record before the first is made', async () => {
    const { events, calling } = setup([
      tool('read', 'read', async () => {
        events.push('call read');
        return { content: 'r' };
      }),
      tool('write', 'write', async () => {
        events.push('call write');
        return { content: 'w' };
      }),
    ]);
    await calling([{ name: 'write' }, { name: 'read' }]);
    expect(events[0]).toBe('flush 0:started 1:started');
    expect(events.slice(1)).toEqual([
      'call read',
      'call write',
      expect.stringMatching(/^flush .*0:completed/),
    ]);
  });

  test('reads are under way together', async () => {
    let under = 0;
    let most = 0;
    const all = Promise.withResolvers<void>();
    const { calling } = setup([
      tool('read', 'read', async () => {
        most = Math.max(most, ++under);
        if (under === 3) all.resolve();
        await all.promise;
        under--;
        return { content: 'r' };
      }),
    ]);
    await calling([{ name: 'read' }, { name: 'read' }, { name: 'read' }]);
    expect(most).toBe(3);
  });

  test('a write begins only when the one before it is on record', async () => {
    const { events, calling } = setup([
      tool('write', 'write', async () => {
        events.push('call');
        return { content: 'w' };
      }),
    ]);
    await calling([{ name: 'write' }, { name: 'write' }]);
    expect(events).toEqual([
      'flush 0:started 1:started',
      'call',
      'flush 0:completed',
      'call',
      'flush 1:completed',
    ]);
  });

  test('results come back in the order of the calls, whatever the order in which they were made', async () => {
    const { calling } = setup([
      tool('read', 'read', async () => ({ content: 'read' })),
      tool('write', 'write', async () => ({ content: 'written' })),
    ]);
    expect(await calling([{ name: 'write' }, { name: 'read' }, { name: 'write' }])).toEqual([
      'written',
      'read',
      'written',
    ]);
  });

  test('each call has a key of its own, which is the journal’s', async () => {
    const keys: string[] = [];
    const { calling } = setup([
      tool('read', 'read', async (_, { idempotencyKey }) => {
        keys.push(idempotencyKey);
        return { content: '' };
      }),
    ]);
    await calling([{ name: 'read' }, { name: 'read' }]);
    expect(keys).toEqual([callKey(run.id, 1, 2, 0), callKey(run.id, 1, 2, 1)]);
    expect(new Set([...keys, callKey(run.id, 1, 2)]).size).toBe(3);
  });

  test('no call is made when its intent could not be committed', async () => {
    let made = 0;
    const { calling } = setup(
      [
        tool('write', 'write', async () => {
          made++;
          return { content: '' };
        }),
      ],
      () => false,
    );
    await expect(calling([{ name: 'write' }])).rejects.toBeInstanceOf(RunLost);
    expect(made).toBe(0);
  });

  test('a transactional call’s messages are in the checkpoint of its outcome', async () => {
    const message = {
      conversation_id: null,
      channel_id: 'ch',
      content: 'hi',
      is_answer: false,
      metadata: {},
    };
    const { written, calling } = setup([
      tool('post', 'write', async () => ({ content: 'posted', messages: [message] }), true),
    ]);
    await calling([{ name: 'post' }]);
    expect(written.map((c) => [c.tools[0]?.status, c.messages.length])).toEqual([
      ['started', 0],
      ['completed', 1],
    ]);
  });
});

describe('after a takeover', () => {
  async function again(effect: Tool['effect'], transactional = false) {
    let made = 0;
    const { written, journal, calling } = setup([
      tool(
        'any',
        effect,
        async () => {
          made++;
          return { content: 'again' };
        },
        transactional,
      ),
    ]);
    const contents = await calling([{ name: 'any' }], [journaled(0, 'started', effect)]);
    await journal.flush();
    return { made, contents, status: written.at(-1)?.tools[0]?.status };
  }

  test.each(['read', 'idempotent'] as const)('a %s call without an outcome is made again', async (effect) => {
    expect(await again(effect)).toEqual({ made: 1, contents: ['again'], status: 'completed' });
  });

  test('a write without an outcome is not', async () => {
    const { made, contents, status } = await again('write');
    expect([made, status]).toEqual([0, 'unknown']);
    expect(contents[0]).toMatch(/may or may not have taken effect/);
  });

  test('a write whose effect commits with its outcome is: without one it had none', async () => {
    expect(await again('write', true)).toMatchObject({ made: 1, status: 'completed' });
  });

  test.each(['completed', 'failed', 'unknown', 'denied'] as const)(
    'a call that is %s is not made again',
    async (status) => {
      let made = 0;
      const { written, calling } = setup([
        tool('any', 'read', async () => {
          made++;
          return { content: 'new' };
        }),
      ]);
      expect(await calling([{ name: 'any' }], [journaled(0, status, 'read', 'old')])).toEqual(['old']);
      expect(made).toBe(0);
      expect(written).toEqual([]);
    },
  );

  test('only the unsettled calls of a turn are made', async () => {
    const made: unknown[] = [];
    const { calling } = setup([
      tool('any', 'read', async (args) => {
        made.push(args);
        return { content: 'new' };
      }),
    ]);
    const contents = await calling(
      [
        { name: 'any', arguments: '{"n":0}' },
        { name: 'any', arguments: '{"n":1}' },
      ],
      [journaled(0, 'completed', 'read', 'old')],
    );
    expect(made).toEqual([{ n: 1 }]);
    expect(contents).toEqual(['old', 'new']);
  });
});

describe('what goes wrong', () => {
  test('a tool’s own complaint is told to the model as it is', async () => {
    const { written, journal, calling } = setup([
      tool('any', 'read', async () => {
        throw new ToolError('no_such_city', 'There is no city Atlantis.');
      }),
    ]);
    expect(await calling([{ name: 'any' }])).toEqual(['There is no city Atlantis.']);
    await journal.flush();
    expect(written.at(-1)?.tools).toMatchObject([{ status: 'failed', error_code: 'no_such_city' }]);
  });

  test('an internal failure is not: it may hold what nobody should repeat', async () => {
    const { calling } = setup([
      tool('any', 'read', async () => {
        throw new Error('password=hunter2 refused');
      }),
    ]);
    expect((await calling([{ name: 'any' }]))[0]).not.toContain('hunter2');
  });

  test('one read that fails does not spoil the others', async () => {
    let n = 0;
    const { calling } = setup([
      tool('any', 'read', async () => {
        if (n++ === 0) throw new ToolError('bad', 'first fails');
        return { content: 'ok' };
      }),
    ]);
    expect(await calling([{ name: 'any' }, { name: 'any' }])).toEqual(['first fails', 'ok']);
  });

  test.each([['{"a":'], ['[1]'], ['"text"'], ['null'], ['7']])(
    'arguments %s are refused without a call',
    async (text) => {
      let made = 0;
      const { journal, written, calling } = setup([
        tool('any', 'write', async () => {
          made++;
          return { content: '' };
        }),
      ]);
      const [content] = await calling([{ name: 'any', arguments: text }]);
      await journal.flush();
      expect(made).toBe(0);
      expect(content).toMatch(/JSON object/);
      expect(written.at(-1)?.tools).toMatchObject([{ status: 'failed', arguments: text }]);
    },
  );

  test('empty arguments are an empty object: some models send none', async () => {
    const seen: unknown[] = [];
    const { calling } = setup([
      tool('any', 'read', async (args) => {
        seen.push(args);
        return { content: '' };
      }),
    ]);
    await calling([{ name: 'any', arguments: '' }]);
    expect(seen).toEqual([{}]);
  });

  test('a long result is cut for the model and kept cut in the journal', async () => {
    const { written, journal, calling } = setup([
      tool('any', 'read', async () => ({ content: 'x'.repeat(10_000) })),
    ]);
    const [content] = await calling([{ name: 'any' }], [], 1000);
    await journal.flush();
    expect(content).toMatch(/^x{1000}\n\[9000 more/);
    expect(written.at(-1)?.tools[0]?.result).toEqual({ content });
  });

  test('an aborted call is not settled: who takes the run over decides what it was', async () => {
    const { written, controller, calling } = setup([
      tool('any', 'write', (_, { signal }) => {
        queueMicrotask(() => controller.abort(new Error('drain')));
        return new Promise((_, reject) =>
          signal.addEventListener('abort', () => reject(new Error('stopped'))),
        );
      }),
    ]);
    await expect(calling([{ name: 'any' }])).rejects.toThrow('drain');
    expect(written.flatMap((c) => c.tools.map((t) => t.status))).toEqual(['started']);
  });

  test('after an abort no further call of the turn begins', async () => {
    let made = 0;
    const { controller, calling } = setup([
      tool('any', 'write', async () => {
        made++;
        controller.abort(new Error('drain'));
        return { content: 'first' };
      }),
    ]);
    await expect(calling([{ name: 'any' }, { name: 'any' }])).rejects.toThrow('drain');
    expect(made).toBe(1);
  });
});
