/** Tools of a test, as a source that a daemon can be given. */
import type { Tool, ToolContext, ToolSource } from '../../src/pipelines/agent/tools.ts';

/** A tool without parameters that answers with the text that `call` gives. */
export function testTool(
  name: string,
  effect: Tool['effect'],
  call: (context: ToolContext) => string | Promise<string>,
  more: Pick<Tool, 'needsApproval' | 'transactional'> = {},
): Tool {
  return {
    source: 'test',
    effect,
    ...more,
    definition: { type: 'function', function: { name, parameters: { type: 'object', properties: {} } } },
    call: async (_args, context) => ({ content: await call(context) }),
  };
}

/** A source that has these tools for every run. */
export function testTools(...tools: readonly Tool[]): ToolSource {
  return { name: 'test', list: async () => tools };
}
