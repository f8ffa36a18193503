/** Names of functions that are one to one over all of an agent's tools. */
import { createHash } from 'node:crypto';

const LONGEST = 64;
const HASH = 8;

type Named = {
  readonly connection_id: string;
  readonly connection_name: string;
  readonly function_name: string;
};

/**
 * A name for each tool, in their order: its function's where that is free, else its connection's name before it.
 *
 * Who comes first keeps the name, so that a connection that is added takes no name from an older one; `taken` are those of tools
 * that are no connection's. The same tools in the same order have the same names.
 */
export function uniqueNames(tools: readonly Named[], taken: ReadonlySet<string>): readonly string[] {
  const used = new Set(taken);
  return tools.map((tool) => {
    const name = used.has(tool.function_name) ? prefixed(tool, used) : tool.function_name;
    used.add(name);
    return name;
  });
}

function prefixed(tool: Named, used: ReadonlySet<string>): string {
  const prefix = tool.connection_name
    .replace(/[^a-zA-Z0-9]+/g, '_')
    .replace(/^_+|_+$/g, '')
    .slice(0, 24);
  const whole = `${prefix === '' ? 'mcp' : prefix}_${tool.function_name}`;
  if (whole.length <= LONGEST && !used.has(whole)) return whole;
  for (let round = 0; ; round++) {
    const hash = createHash('sha256')
      .update(JSON.stringify([tool.connection_id, tool.function_name, round]))
      .digest('hex')
      .slice(0, HASH);
    const name = `${whole.slice(0, LONGEST - HASH - 1)}_${hash}`;
    if (!used.has(name)) return name;
  }
}
