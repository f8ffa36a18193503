/** The tool calls of one turn: journaled before they are made, settled one by one, never repeated where that could write twice. */
import type { ApprovalPolicy, JournaledToolCall, ToolCallChange } from '../../db/runs.ts';
import type { ModelToolCall } from '../../providers/models.ts';
import type { Metrics } from '../../telemetry/metrics.ts';
import { maskText } from '../../telemetry/redact.ts';
import type { RunBudgets } from './budgets.ts';
import { callKey } from './call-key.ts';
import { data, toolResultText } from './context.ts';
import { RunMustWait } from './errors.ts';
import type { RunJournal } from './journal.ts';
import { isSettled, settledContent } from './replay.ts';
import { type Tool, type ToolContext, ToolError, type ToolResult } from './tools.ts';

/** Calls of one answer beyond this many are not made: no model needs them, and each one costs. */
const MAX_CALLS_PER_TURN = 64;

export type ToolCallDeps = { readonly metrics: Metrics };

export type Turn = {
  readonly order: number;
  readonly turn: number;
  readonly calls: readonly ModelToolCall[];
  /** What is known of these calls, from the journal and from this attempt; kept up to date for the next one. */
  readonly known: Map<number, JournaledToolCall>;
  readonly tools: ReadonlyMap<string, Tool>;
  readonly context: Omit<ToolContext, 'idempotencyKey'>;
  readonly contextWindowSize: number;
  readonly budgets: RunBudgets;
  /** Which calls a person must allow first. */
  readonly approval: ApprovalPolicy;
};

/**
 * Makes the calls that are not settled yet and returns what the model is told of each, in order.
 *
 * Reads run together, writes one after the other, each settled before the next begins. Calls that a person must allow
 * come last: they are recorded as waiting, in the checkpoint that lets the run wait. Never throws for a tool's failure: the model
 * hears of it. Throws RunMustWait (approval_required, budget_exhausted), RunFailure (budget_exhausted), RunLost, or the signal's reason.
 */
export async function callTools(deps: ToolCallDeps, journal: RunJournal, turn: Turn): Promise<string[]> {
  const prepared = turn.calls.map((call, index) => prepare(turn, call, index));
  // a finished call is on record before anything is waited for
  if (turn.budgets.any) await journal.flush();
  await turn.budgets.reserve(
    prepared
      .filter((one) => one.run)
      .map((one) => ({
        key: callKey(turn.context.runId, turn.order, turn.turn, one.index),
        turns: 0,
        tool_calls: 1,
        tokens: 0,
        cost_micros: 0,
      })),
  );
  // Intents first, all of them; what can't be called is settled in the same flush.
  for (const one of prepared) if (one.change) record(journal, turn, one.change);
  if (prepared.some((one) => one.run)) await journal.flush();

  const reads = prepared.filter((one) => one.run && one.tool?.effect === 'read');
  await Promise.all(reads.map((one) => perform(deps, journal, turn, one)));
  for (const one of prepared) {
    if (one.run && one.tool?.effect !== 'read') {
      await perform(deps, journal, turn, one);
      // an effect outside must be on record before the next one begins
      await journal.flush();
    }
  }
  waitForApproval(journal, turn, prepared);
  return prepared.map((one) => one.content);
}

function waitForApproval(journal: RunJournal, turn: Turn, prepared: readonly Prepared[]): void {
  const waiting = prepared.filter((one) => one.wait);
  if (waiting.length === 0) return;
  for (const one of waiting) record(journal, turn, one.wait as ToolCallChange);
  const names = [...new Set(waiting.map((one) => one.call.name))].join(', ');
  const calls = waiting.length === 1 ? 'A call' : `${waiting.length} calls`;
  throw new RunMustWait(
    'approval_required',
    `${calls} of ${names} must be allowed or denied first: decide_tool_call(call_id, approve), with the ids in tool_calls.`,
    null,
    true,
  );
}

function record(journal: RunJournal, turn: Turn, call: ToolCallChange): void {
  journal.toolCall(call);
  turn.known.set(call.index, {
    step_order: call.order,
    turn: call.turn,
    call_index: call.index,
    provider_call_id: call.provider_call_id,
    tool_name: call.tool,
    source: call.source,
    effect: call.effect,
    arguments: call.arguments,
    status: call.status,
    result: call.result ?? null,
    error_message: call.error ?? null,
  });
}

type Prepared = {
  readonly call: ModelToolCall;
  readonly index: number;
  readonly tool: Tool | undefined;
  readonly args: Record<string, unknown>;
  /** What the journal is told before anything is done; null if it knows. */
  readonly change: ToolCallChange | null;
  readonly run: boolean;
  /** What the journal is told where a person must allow the call first. */
  readonly wait?: ToolCallChange;
  content: string;
};

function prepare(turn: Turn, call: ModelToolCall, index: number): Prepared {
  const tool = turn.tools.get(call.name);
  const journaled = turn.known.get(index);
  const args = parseArguments(call.arguments);
  const base = change(turn, call, index, tool, args ?? {});
  const settledAs = (
    code: string,
    message: string,
    status: ToolCallChange['status'] = 'failed',
  ): Prepared => ({
    call,
    index,
    tool,
    args: args ?? {},
    change: {
      ...base,
      arguments: args ?? call.arguments,
      status,
      error_code: code,
      error: message,
      result: { content: message },
    },
    run: false,
    content: message,
  });

  if (isSettled(journaled)) {
    return {
      call,
      index,
      tool,
      args: args ?? {},
      change: null,
      run: false,
      content: settledContent(journaled),
    };
  }
  if (!tool) {
    const known = [...turn.tools.keys()].join(', ') || 'none';
    return settledAs(
      'unknown_tool',
      `There is no tool named '${call.name}'. Tools that can be called: ${known}.`,
    );
  }
  if (!args) {
    return settledAs(
      'invalid_arguments',
      'The arguments are not a JSON object. Send them again as valid JSON.',
    );
  }
  if (index >= MAX_CALLS_PER_TURN) {
    return settledAs(
      'too_many_calls',
      `Only the first ${MAX_CALLS_PER_TURN} calls of an answer are made. Make this one again if it is needed.`,
    );
  }
  if (journaled?.status === 'waiting' || (!journaled && needsApproval(tool, turn.approval))) {
    // allowed: the intent is journaled now, as of any other call
    if (journaled?.approved) return { call, index, tool, args, change: base, run: true, content: '' };
    return {
      call,
      index,
      tool,
      args,
      change: null,
      run: false,
      wait: { ...base, status: 'waiting' },
      content: '',
    };
  }
  if (journaled && tool.effect === 'write' && !tool.transactional) {
    return settledAs(
      'outcome_unknown',
      'The worker stopped while this call was under way. It may or may not have taken effect, and it was not repeated. Check before calling it again.',
      'unknown',
    );
  }
  return { call, index, tool, args, change: journaled ? null : base, run: true, content: '' };
}

function needsApproval(tool: Tool, policy: ApprovalPolicy): boolean {
  if (tool.needsApproval) return true;
  if (policy === 'all') return tool.effect !== 'read';
  return policy === 'writes' && (tool.effect === 'write' || tool.isDestructive === true);
}

function change(
  turn: Turn,
  call: ModelToolCall,
  index: number,
  tool: Tool | undefined,
  args: Record<string, unknown>,
): ToolCallChange {
  return {
    order: turn.order,
    turn: turn.turn,
    index,
    provider_call_id: call.id,
    tool: call.name,
    source: tool?.source ?? 'none',
    effect: tool?.effect ?? 'read',
    connection_id: tool?.connection?.id ?? null,
    credential_id: tool?.connection?.credentialId ?? null,
    arguments: args,
    status: 'started',
  };
}

async function perform(deps: ToolCallDeps, journal: RunJournal, turn: Turn, one: Prepared): Promise<void> {
  const { tool, call, index, args } = one;
  if (!tool) return;
  const started = performance.now();
  const place = { order: turn.order, turn: turn.turn, index };
  const settle = (
    status: 'completed' | 'failed' | 'unknown',
    content: string,
    code: string | null,
    { citations = [], said = null }: { citations?: ToolResult['citations']; said?: string | null } = {},
  ): void => {
    const duration = performance.now() - started;
    // marked after it is cut, so that the end of the mark is never cut off
    const marked =
      said === null ? null : data(`What ${call.name} answered`, toolResultText(said, turn.contextWindowSize));
    one.content = [content === '' ? null : toolResultText(content, turn.contextWindowSize), marked]
      .filter((part) => part !== null)
      .join('\n');
    record(journal, turn, {
      ...change(turn, call, index, tool, args),
      status,
      result: { content: one.content, ...(citations.length > 0 ? { citations } : {}) },
      error_code: code,
      error: code === null ? null : one.content,
      duration_ms: Math.round(duration),
    });
    deps.metrics.toolCalls.finished(call.name, code ?? status, duration / 1000);
  };
  try {
    const { signal, runId } = turn.context;
    if (signal.aborted) throw signal.reason;
    const result = await untilAborted(
      tool.call(args, { ...turn.context, idempotencyKey: callKey(runId, turn.order, turn.turn, index) }),
      signal,
    );
    for (const message of result.messages ?? []) journal.message(message);
    for (const paid of result.paid ?? []) journal.embedding(place, paid);
    if (result.isForeign === true) settle('completed', '', null, { said: result.content });
    else settle('completed', result.content, null, { citations: result.citations ?? [] });
  } catch (error) {
    if (turn.context.signal.aborted) throw turn.context.signal.reason;
    // a tool that quotes its request quotes the credential in it
    if (error instanceof ToolError) {
      for (const paid of error.paid) journal.embedding(place, paid);
      settle(error.isUnknown ? 'unknown' : 'failed', maskText(error.message), error.code, {
        said: error.said === null ? null : maskText(error.said),
      });
    }
    // what went wrong inside is for the operator's log, not for a model that may repeat it to anyone
    else settle('failed', 'The tool failed for a reason of its own. It may work later.', 'tool_failed');
  }
}

/** A tool that does not listen to its signal must not hold its run: its late answer is nobody's. */
async function untilAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  const { promise, reject } = Promise.withResolvers<never>();
  const abort = (): void => reject(signal.reason);
  signal.addEventListener('abort', abort, { once: true });
  if (signal.aborted) abort();
  try {
    return await Promise.race([work, promise]);
  } finally {
    signal.removeEventListener('abort', abort);
    promise.catch(() => {});
    work.catch(() => {});
  }
}

function parseArguments(text: string): Record<string, unknown> | null {
  if (text.trim() === '') return {};
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === 'object' && value !== null && !Array.isArray(value)
      ? (value as Record<string, unknown>)
      : null;
  } catch {
    return null;
  }
}
