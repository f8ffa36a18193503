/**
 * Tools of an MCP server as functions of chat completions.
 *
 * The tool cache stores what it makes; the agent pipeline sends that, and checks calls against it.
 *
 * All of it is pure: the same tools give the same bytes, and a tool's function does not depend on the order of the list; nothing is fetched;
 * work is bounded by the size of each schema. A tool that can't be offered is left out with its reason and disturbs no other.
 */
import { parametersOf, surveyed } from './convert-schema.ts';
import { functionNames } from './names.ts';
import { cleaned, functionDescription } from './text.ts';
import {
  type Conversion,
  type ListedTool,
  type OpenAiFunction,
  type Quarantined,
  type QuarantineReason,
  Unfit,
} from './types.ts';

const SHOWN_NAME = 200;
const BLANK = /^[\s\p{Cf}]*$/u;

/**
 * Converts the tools of one server. Never throws for what a server says.
 *
 * `reserved` are function names that others have in the same request: a tool of such a name gets another.
 * Functions stand in the order of the tools; a request takes 128 at most, which is the caller's to see to.
 */
export function convertTools(
  tools: readonly ListedTool[],
  reserved: ReadonlySet<string> = new Set(),
): Conversion {
  const quarantined: Quarantined[] = [];
  const leave = (name: unknown, reason: QuarantineReason, detail: string): void => {
    quarantined.push({ name: typeof name === 'string' ? cleaned(name, SHOWN_NAME) : '', reason, detail });
  };
  const made: { name: string; function: Omit<OpenAiFunction, 'name'> }[] = [];
  for (const { name, tools: same } of byName(tools, leave)) {
    try {
      const [tool] = same;
      if (!tool) continue;
      // listed twice by a page that came twice: the same tool; otherwise nobody can tell which one a call would reach
      const looked = same.map((each) => surveyed(each.inputSchema));
      if (same.length > 1 && new Set(same.map(asText)).size > 1) {
        leave(name, 'duplicate_name', `The server lists ${same.length} different tools of this name.`);
        continue;
      }
      const [schema] = looked;
      if (!schema) continue;
      const description = functionDescription(tool.description);
      made.push({ name, function: { description, ...parametersOf(schema) } });
    } catch (error) {
      if (!(error instanceof Unfit)) throw error;
      leave(name, error.reason, error.message);
    }
  }
  const names = functionNames(
    made.map((each) => each.name),
    reserved,
  );
  return {
    functions: made.map((each) => ({ name: names.get(each.name) as string, ...each.function })),
    names: new Map([...names].map(([tool, name]) => [name, tool])),
    quarantined,
  };
}

function asText({ description, inputSchema }: ListedTool): string {
  return JSON.stringify([description, inputSchema]);
}

/** Tools by their names, in the order in which these first appear. */
function byName(
  tools: readonly ListedTool[],
  leave: (name: unknown, reason: QuarantineReason, detail: string) => void,
): { name: string; tools: ListedTool[] }[] {
  const groups = new Map<string, ListedTool[]>();
  for (const tool of tools) {
    const name: unknown = typeof tool === 'object' && tool !== null ? tool.name : undefined;
    if (typeof name !== 'string') leave(name, 'invalid_name', 'The tool has no name that is a text.');
    else if (BLANK.test(name)) leave(name, 'empty_name', 'The name of the tool is empty or blank.');
    else if (name.length > 1_024) leave(name, 'invalid_name', 'The name has more than 1,024 characters.');
    else if (groups.has(name)) groups.get(name)?.push(tool);
    else groups.set(name, [tool]);
  }
  return [...groups].map(([name, same]) => ({ name, tools: same }));
}
