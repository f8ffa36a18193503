/** From what a server lists to the rows of its connection: each tool by itself, in bounded time, and what can't be offered with its reason. */
import { createHash } from 'node:crypto';
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Clock } from '../../clock.ts';
import { toJson } from '../../db/json.ts';
import type { ToolRow } from '../../db/mcp.ts';
import type { McpListing, RawTool } from '../../providers/mcp-listing.ts';
import { canonicalHash, TooDeep } from './canonical.ts';
import { confusable, mixesScripts } from './confusable.ts';
import { boundedRun, OutOfTime } from './conversion/bounded-run.ts';
import { convertTools, type OpenAiFunction } from './conversion/index.ts';
import { functionNames } from './conversion/names.ts';
import { inDatabaseOrder } from './database-order.ts';

/** Tools of one connection: a request takes 128, and a search among a thousand is what a person can look through. */
export const MAX_TOOLS = 1_000;
/** Characters of a whole tool as JSON. Its input schema has a bound of its own. */
const MAX_TOOL_CHARACTERS = 262_144;
/** Characters of a name as it is shown and stored. */
const MAX_STORED_NAME = 200;
/** Milliseconds for one tool, and of the processor for all of one listing: one that has used them up offers no more tools. */
const TOOL_MS = 200;
const LISTING_MS = 2_000;
/** Others have their turn after so many milliseconds. */
const TURN_MS = 8;

/** Of conversions that are kept: 16 MiB or so at most. */
const MAX_REMEMBERED = 2_000;
const MAX_REMEMBERED_CHARACTERS = 4_096;
/** By the hash of the whole tool; the one that was used last stands last. */
const CONVERTED = new Map<string, Judged>();

export type ListedRows = {
  readonly rows: readonly ToolRow[];
  /** What the server lists, doubles included. */
  readonly listed: number;
  /** Left out beyond the most that a connection may have. */
  readonly dropped: number;
};

type Judged = { readonly function: OpenAiFunction } | { readonly code: string; readonly reason: string };
type Named = { readonly name: string; readonly raw: unknown; readonly hash: string; judged: Judged };

const left = (code: string, reason: string): Judged => ({ code, reason });

/** Never throws for what a server says. The order of the listing does not matter; the first `MAX_TOOLS` names of it count. */
export async function toolRows(
  listing: McpListing,
  clock: Clock,
  busyMs: () => number = threadBusyMs,
): Promise<ListedRows> {
  const { groups, unnamed, dropped } = byName(listing);
  const named: Named[] = [];
  let spent = 0;
  let turn = clock.elapsed();
  let began = busyMs();
  for (const [name, tools] of groups) {
    named.push(judge(name, tools, spent < LISTING_MS));
    const now = busyMs();
    spent += now - began;
    began = now;
    if (clock.elapsed() - turn > TURN_MS) {
      await nextTurn();
      turn = clock.elapsed();
      began = busyMs();
    }
  }
  keepApart(named);
  for (const { name, code, reason } of listing.rejected.slice(0, MAX_TOOLS)) {
    if (name?.trim()) reject(named, name, code, reason);
    else unnamed.push({ code, reason });
  }
  const first = unnamed[0];
  if (first) {
    const many = unnamed.length > 1 ? ` So it is with ${unnamed.length} of them.` : '';
    const reason = `A tool of the server has no name.${many} Name it.`;
    named.push({ name: '', raw: {}, hash: canonicalHash({}), judged: left('empty_name', reason) });
  }
  return { rows: rowsOf(named), listed: listing.tools.length + listing.rejected.length, dropped };
}

function byName({ tools }: McpListing): {
  groups: Map<string, RawTool[]>;
  unnamed: { code: string; reason: string }[];
  dropped: number;
} {
  const groups = new Map<string, RawTool[]>();
  const unnamed: { code: string; reason: string }[] = [];
  let dropped = 0;
  for (const tool of tools) {
    const same = groups.get(tool.name);
    if (same) same.push(tool);
    else if (/^[\s\p{Cf}]*$/u.test(tool.name)) unnamed.push({ code: 'empty_name', reason: '' });
    else if (groups.size < MAX_TOOLS) groups.set(tool.name, [tool]);
    else dropped++;
  }
  return { groups, unnamed, dropped };
}

/** A tool by itself; its function has no final name yet. */
function judge(name: string, tools: readonly RawTool[], inTime: boolean): Named {
  const [first, ...others] = tools.map(readable);
  if (first === undefined || 'code' in first) {
    const { code, reason } = first ?? { code: 'invalid_schema', reason: '' };
    const stub = { name: shown(name), left_out: code };
    return { name, raw: stub, hash: canonicalHash(stub), judged: left(code, reason) };
  }
  const { raw, hash } = first;
  if (stored(name) !== name) {
    const reason = `Its name has more than ${MAX_STORED_NAME} characters, or some that are none. Rename it.`;
    return { name, raw, hash, judged: left('invalid_name', reason) };
  }
  if (!inTime) {
    const reason =
      'The tools listed before this one took all the time that a listing may take. Simplify their schemas.';
    return { name, raw, hash, judged: left('schema_too_slow', reason) };
  }
  if (others.some((other) => 'code' in other || other.hash !== hash)) {
    const reason = `The server lists ${tools.length} different tools of this name. Rename all but one.`;
    return { name, raw, hash, judged: left('duplicate_name', reason) };
  }
  return { name, raw, hash, judged: remembered(hash, raw) };
}

/** Many tenants use the same servers, and most listings are the one before: small tools are converted once. */
function remembered(hash: string, raw: Record<string, unknown>): Judged {
  const known = CONVERTED.get(hash);
  if (known) {
    CONVERTED.delete(hash);
    CONVERTED.set(hash, known);
    return known;
  }
  const judged = converted(raw);
  const isSmall = JSON.stringify(judged).length <= MAX_REMEMBERED_CHARACTERS;
  if (!isSmall || ('code' in judged && judged.code === 'schema_too_slow')) return judged;
  CONVERTED.set(hash, judged);
  const [oldest] = CONVERTED.keys();
  if (CONVERTED.size > MAX_REMEMBERED && oldest !== undefined) CONVERTED.delete(oldest);
  return judged;
}

function converted(raw: Record<string, unknown>): Judged {
  try {
    const { functions, quarantined } = bounded(() => convertTools([raw]));
    const [made] = functions;
    if (made) return { function: made };
    const [why] = quarantined;
    return left(why?.reason ?? 'invalid_schema', why?.detail ?? 'It has no usable schema.');
  } catch (error) {
    if (error instanceof OutOfTime) {
      return left('schema_too_slow', `Its schema takes more than ${TOOL_MS} ms to read. Simplify it.`);
    }
    if (error instanceof RangeError)
      return left('schema_too_deep', 'Its schema is nested too deeply. Flatten it.');
    throw error;
  }
}

/** A process that others keep from the processor is late through no fault of a schema's: then it gets more time. */
function bounded<T>(work: () => T): T {
  const began = threadBusyMs();
  try {
    return boundedRun(TOOL_MS, work);
  } catch (error) {
    if (!(error instanceof OutOfTime) || threadBusyMs() - began > TOOL_MS / 2) throw error;
    return boundedRun(TOOL_MS * 10, work);
  }
}

/** Milliseconds of processor time of this thread. */
function threadBusyMs(): number {
  const { user, system } = process.threadCpuUsage();
  return (user + system) / 1000;
}

/** A tool as the database will hold it, so that what is made of it now is what would be made of its row. */
function readable(
  tool: RawTool,
): { raw: Record<string, unknown>; hash: string } | { code: string; reason: string } {
  try {
    const text = toJson(tool);
    if (text.length > MAX_TOOL_CHARACTERS) {
      return {
        code: 'schema_too_large',
        reason: `The tool has more than ${MAX_TOOL_CHARACTERS} characters. Describe it more briefly.`,
      };
    }
    const raw = inDatabaseOrder(JSON.parse(text)) as Record<string, unknown>;
    return { raw, hash: canonicalHash(raw) };
  } catch (error) {
    if (error instanceof TooDeep || error instanceof RangeError) {
      return { code: 'schema_too_deep', reason: 'The tool is nested too deeply. Flatten its schema.' };
    }
    throw error;
  }
}

/** Names that a person would take for another's. */
function keepApart(named: Named[]): void {
  const alike = confusable(named.map(({ name }) => name));
  for (const tool of named) {
    if (!('function' in tool.judged)) continue;
    const other = alike.get(tool.name);
    if (other !== undefined) {
      tool.judged = left(
        'confusable_name',
        `Its name looks like that of another tool (${shown(other)}). Rename one of them.`,
      );
    } else if (mixesScripts(tool.name)) {
      tool.judged = left(
        'confusable_name',
        'Its name mixes letters of several scripts, which look alike. Rename it.',
      );
    }
  }
}

/** What the client refused. A good tool of the same name is no longer the only one. */
function reject(named: Named[], name: string, code: string, reason: string): void {
  const there = named.find((each) => each.name === name);
  if (!there) named.push({ name, raw: { name }, hash: canonicalHash({ name }), judged: left(code, reason) });
  else if ('function' in there.judged) {
    there.judged = left('duplicate_name', 'The server lists another tool of this name, which is broken.');
  }
}

function rowsOf(named: readonly Named[]): ToolRow[] {
  const names = functionNames(
    named.filter(({ judged }) => 'function' in judged).map(({ name }) => name),
    new Set(),
  );
  return named.map(({ name, raw, hash, judged }) => {
    const made = 'function' in judged ? { ...judged.function, name: names.get(name) as string } : null;
    const said = {
      function_name: made?.name ?? null,
      openai_schema: made && { type: 'function', function: made },
      code: 'code' in judged ? judged.code : null,
      reason: 'reason' in judged ? judged.reason.slice(0, 1_000) : null,
    };
    // the conversion of one tool always writes the same text
    const row_hash = createHash('sha256')
      .update(JSON.stringify([hash, said]))
      .digest('hex');
    return { tool_name: stored(name), tool_schema: raw, schema_hash: hash, row_hash, ...said };
  });
}

/** Two long names that begin alike stay two. */
function stored(name: string): string {
  const text = JSON.parse(toJson(name)) as string;
  if (text === name && name.length <= MAX_STORED_NAME) return name;
  const hash = createHash('sha256').update(JSON.stringify(name)).digest('hex').slice(0, 10);
  return `${text.slice(0, MAX_STORED_NAME - 12).toWellFormed()}… ${hash}`;
}

function shown(name: string): string {
  return name.slice(0, 60).toWellFormed();
}
