import { describe, expect, test } from 'vitest';
import type { JournaledModelCall, JournaledToolCall } from '../../../src/db/runs.ts';
import type { StepContext } from '../../../src/pipelines/agent/context.ts';
import { assistantMessage, replayStep, settledContent } from '../../../src/pipelines/agent/replay.ts';

const context: StepContext = {
  messages: [
    { role: 'system', content: 'You are Ada.' },
    { role: 'user', content: 'Do it.' },
  ],
  left_out: [],
};

function answered(turn: number, response: object, finish = 'stop'): JournaledModelCall {
  return {
    step_order: 1,
    turn,
    status: 'completed',
    attempt: 1,
    failures: 0,
    provider: 'openai',
    model: 'gpt-4.1-mini',
    ticket_at: null,
    ticket_kind: null,
    response,
    finish_reason: finish,
    error_code: null,
  };
}

function open(turn: number, status: JournaledModelCall['status'], attempt = 1): JournaledModelCall {
  return {
    step_order: 1,
    turn,
    status,
    attempt,
    response: null,
    finish_reason: null,
    error_code: null,
    failures: 0,
    provider: 'openai',
    model: 'gpt-4.1-mini',
    ticket_at: null,
    ticket_kind: null,
  };
}

const calls = (...ids: string[]) => ({
  content: null,
  tool_calls: ids.map((id) => ({ id, name: 'look', arguments: '{}' })),
});

function tool(
  turn: number,
  index: number,
  status: JournaledToolCall['status'],
  content?: string,
): JournaledToolCall {
  return {
    step_order: 1,
    turn,
    call_index: index,
    provider_call_id: `t${turn}_${index}`,
    tool_name: 'look',
    source: 'builtin',
    effect: 'read',
    arguments: {},
    status,
    result: content === undefined ? null : { content },
    error_message: null,
  };
}

describe('a step replayed from its journal', () => {
  test('without calls it begins at turn 1 with its context, and its intent is not in the journal', () => {
    expect(replayStep(context, [], [])).toMatchObject({
      messages: context.messages,
      turn: 1,
      answer: null,
      openTries: null,
    });
  });

  test('the context itself is not changed by what is added to it', () => {
    const before = structuredClone(context);
    replayStep(
      context,
      [answered(1, calls('a'), 'tool_calls'), open(2, 'started')],
      [tool(1, 0, 'completed', 'r')],
    );
    expect(context).toEqual(before);
  });

  test.each(['started', 'waiting', 'failed'] as const)(
    'a call that is %s is made again, and its tries are known',
    (status) => {
      expect(replayStep(context, [open(1, status, 3)], [])).toMatchObject({
        turn: 1,
        answer: null,
        openTries: 3,
      });
    },
  );

  test('finished turns become assistant and tool messages in the order of the calls', () => {
    const replayed = replayStep(
      context,
      [answered(1, calls('a', 'b'), 'tool_calls'), open(2, 'started')],
      [tool(1, 1, 'failed', 'second'), tool(1, 0, 'completed', 'first')],
    );
    expect(replayed.messages.slice(2)).toEqual([
      {
        role: 'assistant',
        content: null,
        tool_calls: ['a', 'b'].map((id) => ({
          id,
          type: 'function',
          function: { name: 'look', arguments: '{}' },
        })),
      },
      { role: 'tool', tool_call_id: 'a', content: 'first' },
      { role: 'tool', tool_call_id: 'b', content: 'second' },
    ]);
    expect(replayed.turn).toBe(2);
  });

  test('an unsettled tool call leaves its turn open: answered, not yet in the conversation', () => {
    const replayed = replayStep(
      context,
      [answered(1, calls('a', 'b'), 'tool_calls')],
      [tool(1, 0, 'completed', 'r'), tool(1, 1, 'started')],
    );
    expect(replayed.turn).toBe(1);
    expect(replayed.answer?.toolCalls.map((call) => call.id)).toEqual(['a', 'b']);
    expect([...replayed.toolCalls.keys()].sort()).toEqual([0, 1]);
    expect(replayed.messages).toEqual(context.messages);
  });

  test.each(['unknown', 'denied', 'failed', 'completed'] as const)(
    'a tool call that is %s needs nothing more',
    (status) => {
      const replayed = replayStep(
        context,
        [answered(1, calls('a'), 'tool_calls')],
        [tool(1, 0, status, 'said')],
      );
      expect(replayed).toMatchObject({ turn: 2, answer: null });
      expect(replayed.messages.at(-1)).toEqual({ role: 'tool', tool_call_id: 'a', content: 'said' });
    },
  );

  test('a final answer is found again and not asked for again', () => {
    const replayed = replayStep(context, [answered(1, { content: 'done' })], []);
    expect(replayed).toMatchObject({ turn: 1, answer: { content: 'done', finishReason: 'stop' } });
  });

  test('empty answers in the middle are no part of the conversation', () => {
    const replayed = replayStep(
      context,
      [answered(1, { content: '' }), answered(2, { content: ' ' }), open(3, 'started')],
      [],
    );
    expect(replayed).toMatchObject({ turn: 3, answer: null, openTries: 1 });
    expect(replayed.messages).toEqual(context.messages);
  });

  test('an empty answer between tool turns leaves no gap in the conversation', () => {
    const replayed = replayStep(
      context,
      [
        answered(1, calls('a'), 'tool_calls'),
        answered(2, { content: '' }),
        answered(3, calls('b'), 'tool_calls'),
        open(4, 'started', 2),
      ],
      [tool(1, 0, 'completed', 'one'), tool(3, 0, 'completed', 'three')],
    );
    expect(replayed.messages.slice(2).map((m) => [m.role, m.content])).toEqual([
      ['assistant', null],
      ['tool', 'one'],
      ['assistant', null],
      ['tool', 'three'],
    ]);
    expect(replayed).toMatchObject({ turn: 4, openTries: 2 });
  });

  test('tool calls of another turn are not taken for this one’s', () => {
    const replayed = replayStep(
      context,
      [answered(2, calls('a'), 'tool_calls')],
      [tool(1, 0, 'completed', 'other')],
    );
    expect(replayed.answer).not.toBeNull();
    expect(replayed.toolCalls.size).toBe(0);
  });

  test('every prefix of a conversation is one that a provider takes: no tool message without its call', () => {
    const llm = [
      answered(1, calls('a', 'b'), 'tool_calls'),
      answered(2, { content: '' }),
      answered(3, calls('c'), 'tool_calls'),
      answered(4, { content: 'done' }),
    ];
    const tools = [tool(1, 0, 'completed', 'x'), tool(1, 1, 'unknown', 'y'), tool(3, 0, 'failed', 'z')];
    for (let n = 0; n <= llm.length; n++) {
      for (let m = 0; m <= tools.length; m++) {
        const { messages } = replayStep(context, llm.slice(0, n), tools.slice(0, m));
        let waiting: string[] = [];
        for (const message of messages) {
          if (message.role === 'tool') expect(waiting.shift()).toBe(message.tool_call_id);
          else expect(waiting).toEqual([]);
          if (message.role === 'assistant') waiting = (message.tool_calls ?? []).map((call) => call.id);
        }
        expect(waiting).toEqual([]);
      }
    }
  });
});

describe('what the model is told of a settled call', () => {
  test('its result, or the error where there is none, or nothing', () => {
    expect(settledContent(tool(1, 0, 'completed', 'r'))).toBe('r');
    expect(settledContent({ ...tool(1, 0, 'failed'), error_message: 'broke' })).toBe('broke');
    expect(settledContent(tool(1, 0, 'unknown'))).toBe('');
    expect(settledContent(undefined)).toBe('');
  });

  test('an answer without tool calls has no tool_calls on the wire', () => {
    expect(assistantMessage({ content: 'x', toolCalls: [], refusal: null, finishReason: 'stop' })).toEqual({
      role: 'assistant',
      content: 'x',
    });
  });
});
