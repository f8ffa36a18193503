/**
 * The spans of a run's trace, one function a kind.
 *
 * A trace belongs to the run, not to a process: span ids are made of the run's id and the place, so the children that one worker sent find
 * the parent that another one sends.
 *
 * Nothing that a tenant wrote or a model said is in a span but the names of models, and of tools that exist.
 */
import { createHash } from 'node:crypto';
import type { ClaimedRun, ModelCallChange, StepChange, ToolCallChange } from '../db/runs.ts';

export type Attributes = Readonly<Record<string, string | number | readonly string[] | null>>;

/** A finished span. */
export type SpanRecord = {
  readonly spanId: string;
  /** Null for the root of a trace. */
  readonly parentSpanId: string | null;
  readonly name: string;
  /** `consumer` for the run, `client` for what goes out to a provider. */
  readonly kind: 'internal' | 'client' | 'consumer';
  /** Milliseconds since the epoch. */
  readonly startMs: number;
  readonly endMs: number;
  /** Those that are null are left out. */
  readonly attributes: Attributes;
  /** The reason code of what went wrong; null if nothing did. */
  readonly error: string | null;
};

/** What a run has used; cost in millionths of a US dollar. */
export type Totals = {
  readonly turns: number;
  readonly tool_calls: number;
  readonly tokens: number;
  readonly cost_micros: number;
};

/** From when to when, in milliseconds since the epoch. */
export type Period = { readonly startMs: number; readonly endMs: number };

/** The id of the span at a place of a run. */
export function spanIdAt(runId: string, place: string): string {
  return createHash('sha256').update(`${runId}:${place}`).digest('hex').slice(0, 16);
}

/** The root: from the insert of the run to its end. */
export function runSpan(
  run: ClaimedRun,
  parentSpanId: string | null,
  end: { readonly status: string; readonly code: string | null; readonly totals: Totals },
  period: Period,
): SpanRecord {
  return {
    ...period,
    spanId: spanIdAt(run.id, 'run'),
    parentSpanId,
    name: 'run',
    kind: 'consumer',
    attributes: {
      'agentd.run.id': run.id,
      'agentd.workspace.id': run.workspace_id,
      'agentd.task.id': run.task_id,
      'agentd.agent.id': run.agent_id,
      'agentd.run.trigger': run.trigger,
      'agentd.run.status': end.status,
      'agentd.reason_code': reasonCode(end.code),
      'agentd.run.claims': run.lease_epoch,
      'agentd.run.turns': end.totals.turns,
      'agentd.run.tool_calls': end.totals.tool_calls,
      'agentd.run.tokens': end.totals.tokens,
      'agentd.cost_micros': end.totals.cost_micros,
    },
    error: end.status === 'failed' ? (reasonCode(end.code) ?? 'failed') : null,
  };
}

/** What stands directly below the root and is nobody's work: `queued`, `waiting`. */
export function idleSpan(
  run: ClaimedRun,
  place: string,
  name: string,
  code: string | null,
  period: Period,
): SpanRecord {
  return {
    ...below(run, 'run', place, period),
    name,
    attributes: { 'agentd.run.id': run.id, 'agentd.reason_code': reasonCode(code) },
  };
}

/** The time in which one worker had the run. It has no children: what a killed worker began would hang on a span that never comes. */
export function claimSpan(run: ClaimedRun, outcome: string, code: string | null, period: Period): SpanRecord {
  return {
    ...below(run, 'run', `claim:${run.lease_epoch}`, period),
    name: 'claim',
    attributes: {
      'agentd.run.id': run.id,
      'agentd.run.epoch': run.lease_epoch,
      'agentd.claim.outcome': outcome,
      'agentd.reason_code': reasonCode(code),
    },
  };
}

export function stepSpan(
  run: ClaimedRun,
  change: Pick<StepChange, 'order' | 'attempt' | 'step_id'>,
  status: string,
  code: string | null,
  period: Period,
): SpanRecord {
  return {
    ...below(run, 'run', `step:${change.order}`, period),
    name: 'step',
    attributes: {
      'agentd.run.id': run.id,
      'agentd.step.order': change.order,
      'agentd.step.id': change.step_id,
      'agentd.step.attempts': change.attempt,
      'agentd.step.status': status,
      'agentd.reason_code': reasonCode(code),
    },
    error: status === 'failed' ? (reasonCode(code) ?? 'failed') : null,
  };
}

/** The pause of a step before it tries something again. */
export function pauseSpan(
  run: ClaimedRun,
  order: number,
  number: number,
  code: string | null,
  period: Period,
): SpanRecord {
  return {
    ...below(run, `step:${order}`, `pause:${run.lease_epoch}:${number}`, period),
    name: 'pause',
    attributes: { 'agentd.run.id': run.id, 'agentd.reason_code': reasonCode(code) },
  };
}

/** One request to a model. `number`: which one of this claim. */
export function modelSpan(
  run: ClaimedRun,
  call: ModelCallChange,
  number: number,
  period: Period,
): SpanRecord {
  const { order, turn, attempt } = call;
  const provider = name(call.provider);
  const model = name(call.model);
  const finish = reasonCode(call.finish_reason ?? null);
  return {
    ...below(run, `step:${order}`, `model:${run.lease_epoch}:${number}`, period),
    name: `chat ${model ?? 'unknown'}`,
    kind: 'client',
    attributes: {
      'agentd.run.id': run.id,
      'gen_ai.operation.name': 'chat',
      'gen_ai.system': provider,
      'gen_ai.provider.name': provider,
      'gen_ai.request.model': model,
      'gen_ai.usage.input_tokens': call.prompt_tokens ?? null,
      'gen_ai.usage.output_tokens': call.completion_tokens ?? null,
      'gen_ai.response.finish_reasons': finish === null ? null : [finish],
      'agentd.cost_micros': call.cost_micros ?? null,
      'agentd.credential_source': call.credential_source ?? null,
      'agentd.turn': turn,
      'agentd.attempt': attempt,
    },
    error: reasonCode(call.error_code ?? null),
  };
}

/** One tool call, or an attempt of one. One that was settled without being made has no length. `number`: which one of this claim. */
export function toolSpan(
  run: ClaimedRun,
  call: ToolCallChange,
  number: number,
  outcome: { readonly status: string; readonly code: string | null },
  period: Period,
): SpanRecord {
  const { status, code } = outcome;
  // A name that no source has is the model's own words.
  const tool = call.source === 'none' ? 'unknown' : (name(call.tool) ?? 'unknown');
  return {
    ...below(run, `step:${call.order}`, `tool:${run.lease_epoch}:${number}`, period),
    name: `execute_tool ${tool}`,
    attributes: {
      'agentd.run.id': run.id,
      'gen_ai.operation.name': 'execute_tool',
      'gen_ai.tool.name': tool,
      'agentd.tool.source': name(call.source),
      'agentd.tool.effect': call.effect,
      'agentd.tool.status': status,
      'agentd.turn': call.turn,
      'agentd.call_index': call.index,
    },
    error: status === 'completed' ? null : (reasonCode(code) ?? status),
  };
}

function below(
  run: ClaimedRun,
  parent: string,
  place: string,
  period: Period,
): Pick<SpanRecord, 'spanId' | 'parentSpanId' | 'kind' | 'startMs' | 'endMs' | 'error'> {
  return {
    spanId: spanIdAt(run.id, place),
    parentSpanId: spanIdAt(run.id, parent),
    kind: 'internal',
    error: null,
    ...period,
  };
}

/** Names are what tenants call things; a span is not the place for more than a name. */
function name(text: string | null): string | null {
  return text === null ? null : text.slice(0, 128);
}

/** Codes of tools and providers come from outside: one that does not look like a code is not passed on. */
function reasonCode(code: string | null): string | null {
  if (code === null) return null;
  return /^[a-z][a-z0-9_]{0,63}$/i.test(code) ? code : 'other';
}
