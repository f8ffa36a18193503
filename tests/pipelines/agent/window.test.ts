import { describe, expect, test } from 'vitest';
import { estimateTokens, fitConversation } from '../../../src/pipelines/agent/window.ts';
import type { ChatMessage } from '../../../src/providers/models.ts';

const head: ChatMessage[] = [
  { role: 'system', content: 'You are Ada.' },
  { role: 'user', content: 'Write the report.' },
];

/** A turn with one call of each named tool; each result is `length` characters. */
function turn(at: number, length: number, ...tools: string[]): ChatMessage[] {
  return [
    {
      role: 'assistant',
      content: null,
      tool_calls: tools.map((name, i) => ({
        id: `c${at}_${i}`,
        type: 'function',
        function: { name, arguments: '{}' },
      })),
    },
    ...tools.map(
      (_, i): ChatMessage => ({
        role: 'tool',
        tool_call_id: `c${at}_${i}`,
        content: `${at}`.repeat(length).slice(0, length),
      }),
    ),
  ];
}

/** Every tool message answers a call of the assistant's message before it, and every call is answered. */
function expectNoOrphans(messages: readonly ChatMessage[]): void {
  let open = new Set<string>();
  for (const message of messages) {
    if (message.role === 'tool') {
      expect(open.delete(message.tool_call_id)).toBe(true);
      continue;
    }
    expect([...open]).toEqual([]);
    open = new Set(
      message.role === 'assistant' ? (message.tool_calls ?? []).map((toolCall) => toolCall.id) : [],
    );
  }
  expect([...open]).toEqual([]);
}

describe('a conversation and its window', () => {
  const conversation = [
    ...head,
    ...[1, 2, 3, 4, 5, 6, 7, 8].flatMap((at) => turn(at, 2_000, 'read', 'look')),
  ];

  test('that fits is sent as it is', () => {
    expect(fitConversation(conversation, 1_000_000)).toEqual({ messages: conversation, leftOut: [] });
  });

  test.each([7_000, 5_000, 3_000, 2_000, 1_200, 600])(
    'that does not fit into %i tokens is made to, without an orphan, and says so',
    (limit) => {
      const fitted = fitConversation(conversation, limit);
      expect(estimateTokens(fitted.messages)).toBeLessThanOrEqual(limit);
      expectNoOrphans(fitted.messages);
      expect(fitted.messages.slice(0, 2)).toEqual(head);
      expect(fitted.leftOut.length).toBeGreaterThan(0);
      expect(fitConversation(conversation, limit)).toEqual(fitted);
    },
  );

  test('loses the results of early turns before anything of the last one', () => {
    const fitted = fitConversation(conversation, 5_000);
    expect(fitted.messages.slice(-3)).toEqual(conversation.slice(-3));
    expect(fitted.leftOut[0]).toMatch(/results of tools in \d earlier turns/);
  });

  test('says which tools the turns had called that are left out', () => {
    const { messages, leftOut } = fitConversation(conversation, 1_500);
    expect(messages[2]).toMatchObject({ role: 'user', content: expect.stringContaining('read, look') });
    expect(leftOut.join()).toMatch(/\d earlier turns/);
  });

  test('cuts the last results where nothing else is left, never inside a character', () => {
    const last = turn(9, 0, 'read');
    (last[1] as { content: string }).content = '😀'.repeat(5_000);
    const { messages } = fitConversation([...head, ...last], 500);
    const content = String(messages.at(-1)?.content);
    expect(content).toMatch(/more characters were left out\]$/);
    expect(content.isWellFormed()).toBe(true);
  });
});
