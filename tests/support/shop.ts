/** A tool source beside the built-in ones: an order that writes outside, counted by the key of the call. */
import type { Tool, ToolContext, ToolSource } from '../../src/pipelines/agent/tools.ts';

export type Shop = {
  readonly source: ToolSource;
  /** Every call that was begun. */
  readonly calls: readonly ToolContext[];
  /** How often the call of each key took effect. */
  effects(): Map<string, number>;
};

/** A call takes effect at its beginning; its answer comes when `answer` resolves, or never if it is stopped before. */
export function startShop(effect: Tool['effect'], answer: () => Promise<void>): Shop {
  const calls: ToolContext[] = [];
  const source: ToolSource = {
    name: 'shop',
    list: async () => [
      {
        source: 'shop',
        effect,
        definition: {
          type: 'function',
          function: { name: 'order', parameters: { type: 'object', properties: {} } },
        },
        async call(_args, context) {
          calls.push(context);
          await answer();
          return { content: 'ordered' };
        },
      },
    ],
  };
  return {
    source,
    calls,
    effects: () => countBy(calls.map((call) => call.idempotencyKey)),
  };
}

/** How often each key occurs. */
export function countBy(keys: readonly (string | null)[]): Map<string, number> {
  const counts = new Map<string, number>();
  for (const key of keys) counts.set(key ?? '', (counts.get(key ?? '') ?? 0) + 1);
  return counts;
}
