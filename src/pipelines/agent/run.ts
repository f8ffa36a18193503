/** One run: its steps in order, its end, and everything in between that can stop it. */
import type { Logger } from 'pino';
import type { ClaimedRun, StepPlan } from '../../db/runs.ts';
import { JobAborted } from '../../queue/errors.ts';
import type { Metrics } from '../../telemetry/metrics.ts';
import { type ReserveBudget, RunBudgets } from './budgets.ts';
import type { StepResult } from './context.ts';
import type { ModelDeps } from './credentials.ts';
import { RunFailure, RunMustWait } from './errors.ts';
import {
  type CheckpointWriter,
  type JournalObserver,
  JournalRefused,
  RunJournal,
  RunLost,
} from './journal.ts';
import { chooseModels } from './model-choice.ts';
import { executeStep, type StepDeps, type StepOutcome } from './step.ts';
import { collectTools, namesOf, selectedToolNames, type ToolSource } from './tools.ts';
import { type AskLimit, RunLimit } from './usage-limit.ts';

/** Claims without a checkpoint after which a run is given up: it keeps killing its worker. */
const MAX_CLAIMS_WITHOUT_PROGRESS = 8;
/** Unexpected errors in a row after which a run is given up, and the first pause after one. */
const MAX_UNEXPECTED_ERRORS = 4;
const UNEXPECTED_ERROR_DELAY_MS = 500;

export type RunDeps = StepDeps & {
  readonly models: ModelDeps;
  readonly toolSources: readonly ToolSource[];
  readonly writeCheckpoint: CheckpointWriter;
  readonly reserveBudget: ReserveBudget;
  readonly askLimit: AskLimit;
  readonly metrics: Metrics;
  readonly log: Logger;
  /** Observes claimed runs; null, or absent, for those that nobody wants to see. */
  readonly observe?: (run: ClaimedRun) => (JournalObserver & { left(): void }) | null;
};

/** How the worker left a run. */
export type RunOutcome =
  | { readonly kind: 'ended'; readonly status: 'completed' | 'failed'; readonly reasonCode: string | null }
  /** To be claimed again after so many milliseconds; null: when its row changes. */
  | { readonly kind: 'waiting'; readonly waitMs: number | null }
  /** Given back at a drain: queued again, nothing lost. */
  | { readonly kind: 'released' }
  /** Somebody else's, or nobody's any more; nothing was written. */
  | { readonly kind: 'lost' };

/**
 * Executes a claimed run to its end, or to where it must wait. Whatever a task, an agent, a model or a tool
 * does wrong becomes the run's state and reason. After an error that nobody expected the run waits a moment and is
 * tried again, a few times. Throws only what the database throws while the run is left.
 */
export async function executeRun(deps: RunDeps, run: ClaimedRun, signal: AbortSignal): Promise<RunOutcome> {
  const observer = deps.observe?.(run) ?? null;
  const journal = new RunJournal(run, deps.writeCheckpoint, observer);
  const budgets = new RunBudgets(run, () => journal.totals, deps.reserveBudget);
  const outcomes: StepOutcome[] = [];
  const started = performance.now();
  const limitMs =
    Math.min(run.settings.timeout_seconds, budgets.maxSeconds ?? Number.POSITIVE_INFINITY) * 1000;
  const elapsedMs = (): number => run.elapsed_ms + performance.now() - started;
  const msLeft = (): number => limitMs - elapsedMs();
  const deadline = new AbortController();
  const timer = deps.clock.after(Math.max(msLeft(), 0), () => deadline.abort(new JobAborted('deadline')));
  const either = AbortSignal.any([signal, deadline.signal]);
  try {
    await executeSteps(deps, journal, budgets, run, outcomes, either, msLeft);
    return await complete(deps, journal, run, outcomes, elapsedMs);
  } catch (error) {
    const signals = { signal, deadline: deadline.signal };
    return await stop(deps, journal, run, { error, outcomes, limitMs }, signals, elapsedMs);
  } finally {
    timer.cancel();
    observer?.left();
  }
}

/** Executes what is left of the steps; `outcomes` has what there is also when a step throws. */
async function executeSteps(
  deps: RunDeps,
  journal: RunJournal,
  budgets: RunBudgets,
  run: ClaimedRun,
  outcomes: StepOutcome[],
  signal: AbortSignal,
  msLeft: () => number,
): Promise<void> {
  if (run.claims_without_progress > MAX_CLAIMS_WITHOUT_PROGRESS) {
    throw new RunFailure(
      'worker_crashed',
      `${run.claims_without_progress - 1} workers stopped on this run without getting any further. See their logs.`,
    );
  }
  if (!run.agent || !run.agent_id)
    throw new RunFailure('agent_deleted', 'The agent was deleted before the run ended.');
  if (msLeft() <= 0) throw new JobAborted('deadline');
  const models = await chooseModels(run, deps.models);
  const limit = new RunLimit(run, deps.askLimit);
  const tools = await collectTools(deps.toolSources, {
    workspaceId: run.workspace_id,
    agentId: run.agent_id,
    selected: selectedToolNames(run.settings.selected_tools),
    hasKnowledge: run.agent.has_knowledge,
    hasMessages: run.agent.has_messages,
    hasConnections: run.agent.has_connections,
    capabilities: run.agent.capabilities,
  });
  const found = new Set([...tools.values()].flatMap(namesOf));
  const missingTools = selectedToolNames(run.settings.selected_tools).filter((name) => !found.has(name));
  for (const step of run.steps ?? []) {
    const before = restoredOutcome(run, step);
    if (before) {
      outcomes.push(before);
      continue;
    }
    outcomes.push(
      await executeStep(deps, journal, {
        run,
        agent: run.agent,
        models,
        tools,
        missingTools,
        budgets,
        limit,
        step,
        previous: resultsOf(outcomes),
        signal,
        msLeft,
      }),
    );
  }
  const lastFailure = outcomes.findLast((outcome) => outcome.status !== 'completed')?.note;
  if (lastFailure && outcomes.every((outcome) => outcome.status !== 'completed')) {
    throw new RunFailure(lastFailure.code, `No step was completed. ${lastFailure.message}`);
  }
}

/** What the journal has of a step that is over; null where it is not. */
function restoredOutcome(run: ClaimedRun, step: StepPlan): StepOutcome | null {
  const before = run.journal.steps.find((s) => s.step_order === step.order);
  if (before?.status !== 'completed' && before?.status !== 'failed' && before?.status !== 'skipped')
    return null;
  const text = (before.result as { text?: string } | null)?.text ?? '';
  const note =
    before.reason_code === null || before.reason_code === undefined
      ? null
      : { code: before.reason_code, message: before.error_message ?? '' };
  return { order: step.order, name: step.name, status: before.status, text, note };
}

async function complete(
  deps: RunDeps,
  journal: RunJournal,
  run: ClaimedRun,
  outcomes: StepOutcome[],
  elapsedMs: () => number,
): Promise<RunOutcome> {
  const text = answerOf(outcomes);
  const note = outcomes.findLast((outcome) => outcome.note !== null)?.note ?? null;
  const { target_conversation_id, target_channel_id } = run.settings;
  if (target_conversation_id !== null || target_channel_id !== null) {
    journal.message({
      channel_id: target_channel_id,
      conversation_id: target_channel_id === null ? target_conversation_id : null,
      content: text,
      is_answer: true,
      metadata: { run_id: run.id, task_id: run.task_id },
    });
  }
  journal.end({
    status: 'completed',
    reason_code: note?.code ?? null,
    reason: note?.message ?? null,
    output: { text },
    wake_in_ms: null,
    log: {
      input: run.settings.instructions || (run.steps?.[0]?.instructions ?? ''),
      output: text,
      metadata: { run_id: run.id, task_id: run.task_id, trigger: run.trigger, steps: outcomes.length },
    },
  });
  await journal.flush();
  return ended(deps, run, 'completed', note?.code ?? null, elapsedMs());
}

/** What later steps are given of earlier ones: a skipped step leaves nothing, a failed one what went wrong. */
function resultsOf(outcomes: readonly StepOutcome[]): StepResult[] {
  return outcomes
    .filter((outcome) => outcome.status !== 'skipped')
    .map(({ order, name, status, text, note }) => ({
      order,
      name,
      text: status === 'failed' ? `This step failed. ${note?.message ?? ''}` : text,
    }));
}

/** The run's answer: what its last completed step said. */
function answerOf(outcomes: readonly StepOutcome[]): string {
  return outcomes.findLast((outcome) => outcome.status === 'completed')?.text ?? '';
}

/** From what went wrong to the state in which the run is left. */
async function stop(
  deps: RunDeps,
  journal: RunJournal,
  run: ClaimedRun,
  { error, outcomes, limitMs }: { error: unknown; outcomes: readonly StepOutcome[]; limitMs: number },
  signals: { signal: AbortSignal; deadline: AbortSignal },
  elapsedMs: () => number,
): Promise<RunOutcome> {
  if (error instanceof RunLost) return { kind: 'lost' };
  if (signals.signal.aborted) {
    if ((signals.signal.reason as JobAborted).code !== 'drain') return { kind: 'lost' };
    // Finished calls are in the journal; whoever claims the run next goes on after them.
    return leave(journal, { status: 'queued', reason_code: null, reason: null }, { kind: 'released' });
  }
  if (error instanceof RunMustWait) {
    return leave(
      journal,
      {
        status: 'waiting',
        reason_code: error.code,
        reason: error.message,
        wake_in_ms: error.waitMs,
        for_somebody: error.forSomebody,
      },
      { kind: 'waiting', waitMs: error.waitMs },
    );
  }
  let failure: { code: string; message: string };
  if (signals.deadline.aborted || (error instanceof JobAborted && error.code === 'deadline'))
    failure = timedOut(run, limitMs);
  else if (error instanceof RunFailure) failure = error;
  else if (error instanceof JournalRefused) failure = { code: 'journal_refused', message: error.message };
  else {
    const tries = run.claims_without_progress;
    deps.log.error(
      { event: 'run_error', run_id: run.id, workspace_id: run.workspace_id, tries, err: error },
      'a run met an unexpected error',
    );
    const message = 'agentd met an error that it did not expect; its log has the details.';
    if (tries < MAX_UNEXPECTED_ERRORS) {
      const waitMs = UNEXPECTED_ERROR_DELAY_MS * 2 ** tries;
      return leave(
        journal,
        {
          status: 'waiting',
          reason_code: 'internal_error',
          reason: `${message} The run goes on in ${waitMs / 1000} s.`,
          wake_in_ms: waitMs,
        },
        { kind: 'waiting', waitMs },
        false,
      );
    }
    failure = { code: 'internal_error', message: `${message} It was tried ${tries} times.` };
  }

  // A checkpoint that the database refuses is given up by parts: first its texts, then all of it but the end.
  const partial = answerOf(outcomes);
  for (let refusals = 0; ; refusals++) {
    journal.end({
      status: 'failed',
      reason_code: failure.code,
      reason: failure.message,
      // what was paid for is kept: the result of the last step that was completed
      output: partial === '' || refusals > 0 ? null : { text: partial, partial: true },
      wake_in_ms: null,
      log: {
        input: run.settings.instructions,
        output: failure.message,
        metadata: { run_id: run.id, task_id: run.task_id, trigger: run.trigger, reason_code: failure.code },
      },
    });
    try {
      await journal.flush();
      break;
    } catch (error) {
      if (error instanceof RunLost) return { kind: 'lost' };
      if (!(error instanceof JournalRefused) || refusals >= 2) throw error;
    }
  }
  deps.log.warn(
    { event: 'run_failed', run_id: run.id, workspace_id: run.workspace_id, reason_code: failure.code },
    failure.message,
  );
  return ended(deps, run, 'failed', failure.code, elapsedMs());
}

async function leave(
  journal: RunJournal,
  end: {
    status: 'queued' | 'waiting';
    reason_code: string | null;
    reason: string | null;
    wake_in_ms?: number | null;
    for_somebody?: boolean;
  },
  outcome: RunOutcome,
  getsOn = true,
): Promise<RunOutcome> {
  journal.end({ output: null, log: null, wake_in_ms: null, ...end }, getsOn);
  try {
    await journal.flush();
    return outcome;
  } catch (error) {
    if (error instanceof RunLost) return { kind: 'lost' };
    throw error;
  }
}

function timedOut(run: ClaimedRun, limitMs: number): RunFailure {
  const seconds = limitMs / 1000;
  if (seconds < run.settings.timeout_seconds) {
    return new RunFailure(
      'budget_exhausted',
      `The run took longer than the ${seconds} s of its budget. Raise max_seconds in budgets and retry the run.`,
    );
  }
  return new RunFailure(
    'timeout',
    `The run took longer than its ${run.settings.timeout_seconds} s. Raise the task's timeout_seconds or shorten its steps.`,
  );
}

function ended(
  deps: RunDeps,
  run: ClaimedRun,
  status: 'completed' | 'failed',
  reasonCode: string | null,
  elapsedMs: number,
): RunOutcome {
  deps.metrics.runs.finished(status, reasonCode, elapsedMs / 1000);
  deps.log.debug(
    {
      event: 'run_ended',
      run_id: run.id,
      workspace_id: run.workspace_id,
      status,
      reason_code: reasonCode,
    },
    'a run ended',
  );
  return { kind: 'ended', status, reasonCode };
}
