/** One turn's tool calls on a journal that records what was written. */
import type { ApprovalPolicy, Checkpoint, JournaledToolCall } from '../../../src/db/runs.ts';
import { RunBudgets } from '../../../src/pipelines/agent/budgets.ts';
import { RunJournal } from '../../../src/pipelines/agent/journal.ts';
import { callTools, type Turn } from '../../../src/pipelines/agent/tool-call.ts';
import type { Tool, ToolContext, ToolResult } from '../../../src/pipelines/agent/tools.ts';
import type { ModelToolCall } from '../../../src/providers/models.ts';
import { createMetrics } from '../../../src/telemetry/metrics.ts';
import { claimedRun } from './claimed-run.ts';

export const run = claimedRun({ steps: [] });

export function tool(
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

export function setup(tools: readonly Tool[], applied: (index: number) => boolean = () => true) {
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
    approval: ApprovalPolicy = 'none',
  ): Promise<string[]> => {
    const turn: Turn = {
      order: 1,
      turn: 2,
      calls: calls.map((call, i) => ({ id: `c${i}`, arguments: '{}', ...call })),
      known: new Map(journaled.map((call) => [call.call_index, call])),
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
      budgets: new RunBudgets(
        run,
        () => journal.totals,
        async () => null,
      ),
      approval,
    };
    return callTools({ metrics: createMetrics() }, journal, turn);
  };
  return { events, written, journal, controller, calling };
}

export function journaled(
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
