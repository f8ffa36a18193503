/** The tools of a server, page by page, as it lists them: each is looked at by itself, so that one that is broken spoils no other. */
import type { Client } from '@modelcontextprotocol/client';
import { z } from 'zod';
import { McpError } from './mcp-error.ts';

/** A tool as its server listed it. Only the name has been looked at. */
export type RawTool = {
  readonly name: string;
  readonly title?: unknown;
  readonly description?: unknown;
  readonly inputSchema?: unknown;
  readonly outputSchema?: unknown;
  readonly annotations?: unknown;
  readonly _meta?: unknown;
};

export type McpListing = {
  /** In the server's order; a name may come twice. */
  readonly tools: readonly RawTool[];
  /** What can't be a tool at all, with the reason. `name` is the server's own, cut to 200 characters. */
  readonly rejected: readonly {
    readonly name: string | null;
    readonly code: 'not_an_object' | 'invalid_name' | 'tool_too_large';
    readonly reason: string;
  }[];
  /** How long the server says that the list holds, in milliseconds. */
  readonly ttlMs: number | null;
};

/** Characters of one tool as JSON: more than any prompt should spend on one. */
const MAX_TOOL_CHARACTERS = 262_144;
/** Tools of one server. */
const MAX_TOOLS = 2_000;
const MAX_TTL_MS = 24 * 3_600_000;
const MAX_CURSOR_CHARACTERS = 8_192;

type Limits = {
  readonly signal: AbortSignal;
  readonly timeoutMs: number;
  readonly maxPages: number;
  readonly maxBytes: number;
  /** Bytes received so far; null where nobody counts them. */
  readonly received: (() => number) | null;
};

const page = z.looseObject({
  tools: z.unknown(),
  nextCursor: z.unknown().optional(),
  ttlMs: z.unknown().optional(),
});

/** Throws McpError `too_many_pages`, `endless_pages`, `too_large`, `bad_answer`, and what the client throws. */
export async function listAllTools(client: Client, limits: Limits): Promise<McpListing> {
  const tools: RawTool[] = [];
  const rejected: McpListing['rejected'][number][] = [];
  const before = limits.received?.() ?? 0;
  const seen = new Set<string>();
  let ttlMs: number | null = null;
  let cursor: string | null = null;
  if (client.getServerCapabilities()?.tools === undefined) return { tools, rejected, ttlMs };
  for (let pages = 1; ; pages++) {
    const answer: z.infer<typeof page> = await client.request(
      { method: 'tools/list', params: cursor === null ? {} : { cursor } },
      page,
      { signal: limits.signal, timeout: limits.timeoutMs },
    );
    if (!Array.isArray(answer.tools)) {
      throw new McpError('bad_answer', 'The server’s list of tools is no list.');
    }
    for (const tool of answer.tools) {
      const why = whyNot(tool);
      if (why === null) tools.push(tool as RawTool);
      else rejected.push({ name: nameOf(tool), ...why });
      if (tools.length + rejected.length > MAX_TOOLS) {
        throw new McpError('too_large', `The server lists more than ${MAX_TOOLS} tools.`);
      }
    }
    if (pages === 1 && typeof answer.ttlMs === 'number' && answer.ttlMs >= 0) {
      ttlMs = Math.min(answer.ttlMs, MAX_TTL_MS);
    }
    if (limits.received && limits.received() - before > limits.maxBytes) {
      throw new McpError('too_large', `The server’s tools have more than ${limits.maxBytes} bytes.`);
    }
    const next = answer.nextCursor;
    if (next === undefined || next === null) return { tools, rejected, ttlMs };
    if (typeof next !== 'string' || next.length > MAX_CURSOR_CHARACTERS) {
      throw new McpError('bad_answer', 'The server’s cursor for the next page is no short text.');
    }
    if (seen.has(next)) {
      throw new McpError('endless_pages', 'The server’s pages come back to one that was read before.');
    }
    if (pages >= limits.maxPages) {
      throw new McpError(
        'too_many_pages',
        `The server lists its tools on more than ${limits.maxPages} pages.`,
      );
    }
    seen.add(next);
    cursor = next;
  }
}

function whyNot(tool: unknown): { code: McpListing['rejected'][number]['code']; reason: string } | null {
  if (typeof tool !== 'object' || tool === null || Array.isArray(tool)) {
    return { code: 'not_an_object', reason: 'What the server lists is no tool.' };
  }
  const { name } = tool as { name?: unknown };
  if (typeof name !== 'string' || name.trim() === '' || name.length > 1_024 || name.includes('\u0000')) {
    return { code: 'invalid_name', reason: 'The tool has no name of 1 to 1,024 characters.' };
  }
  if (lengthOf(tool) > MAX_TOOL_CHARACTERS) {
    return { code: 'tool_too_large', reason: `The tool has more than ${MAX_TOOL_CHARACTERS} characters.` };
  }
  return null;
}

/** Characters as JSON; endless for what is nested too deeply to be written. */
function lengthOf(tool: object): number {
  try {
    return JSON.stringify(tool).length;
  } catch (error) {
    if (error instanceof RangeError) return Number.POSITIVE_INFINITY;
    throw error;
  }
}

function nameOf(tool: unknown): string | null {
  const name = (tool as { name?: unknown } | null)?.name;
  return typeof name === 'string' ? name.slice(0, 200).toWellFormed().replaceAll('\u0000', '') : null;
}
