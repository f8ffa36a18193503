import { expect, test } from 'vitest';
import type { RunEnding } from '../../src/db/run-ending.ts';
import type { Checkpoint, CheckpointResult, ClaimedRun } from '../../src/db/runs.ts';
import { JournalRefused, RunJournal, RunLost } from '../../src/pipelines/agent/journal.ts';
import { RunTrace } from '../../src/telemetry/traces-run.ts';
import type { SpanRecord } from '../../src/telemetry/traces-spans.ts';
import { claimedRun } from '../pipelines/agent/claimed-run.ts';
import { handClock } from '../support/hand-clock.ts';

const AT = Date.UTC(2026, 0, 1);
const STEP = { order: 1, step_id: null, name: 'only', attempt: 1 } as const;
const CALL = {
  order: 1,
  turn: 1,
  provider: 'openai',
  model: 'gpt-4.1-mini',
  model_id: null,
  credential_source: 'workspace',
  attempt: 1,
  status: 'started',
} as const;
const END = { reason: null, output: null, wake_in_ms: null, log: null } as const;

/** A journal whose checkpoints are answered as told, observed by a trace. */
function observed(changes: Partial<ClaimedRun> = {}, ending: RunEnding | null = null) {
  const spans: SpanRecord[] = [];
  const faults: unknown[] = [];
  const clock = handClock(5_000);
  const run = claimedRun(changes);
  const answers: (CheckpointResult | Error)[] = [];
  const trace = new RunTrace(run, null, {
    elapsed: () => clock.elapsed(),
    emit: (span) => spans.push(span),
    ending: async () => ending,
    onError: (error) => faults.push(error),
  });
  const write = async (_: Checkpoint): Promise<CheckpointResult> => {
    const answer = answers.shift() ?? { applied: true };
    if (answer instanceof Error) throw answer;
    return answer;
  };
  const journal = new RunJournal(run, write, trace);
  return { run, spans, faults, clock, answers, trace, journal, names: () => spans.map((span) => span.name) };
}

test('times are those of the claim and of the monotonic clock, whatever the machine’s date', async () => {
  const { clock, journal, trace, spans } = observed({
    created_at_ms: AT - 3_000,
    started_at_ms: AT,
    claimed_at_ms: AT,
  });
  journal.step({ ...STEP, status: 'running' });
  await clock.advance(10);
  journal.attemptStarted(CALL);
  await clock.advance(500);
  journal.modelCall({ ...CALL, status: 'completed', prompt_tokens: 7, completion_tokens: 3, latency_ms: 1 });
  journal.step({ ...STEP, status: 'completed' });
  journal.end({ ...END, status: 'completed', reason_code: null });
  await journal.flush();
  await trace.left();
  expect(spans.map((span) => [span.name, span.startMs - AT, span.endMs - AT])).toEqual([
    ['queued', -3_000, 0],
    ['chat gpt-4.1-mini', 10, 510],
    ['step', 0, 510],
    ['run', -3_000, 510],
    ['claim', 0, 510],
  ]);
  expect(spans[3]?.attributes).toMatchObject({ 'agentd.run.turns': 1, 'agentd.run.tokens': 10 });
});

test('any moment that an application wrote as created_at gives a run that begins before it ends', () => {
  for (const created of [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, Number.NaN, -1e15, AT + 1e12]) {
    const { spans } = observed({ created_at_ms: created });
    expect([spans[0]?.name, Number.isFinite(spans[0]?.startMs)]).toEqual(['queued', true]);
    expect(spans[0]?.startMs).toBeGreaterThanOrEqual(0);
    expect(spans[0]?.startMs).toBeLessThanOrEqual(spans[0]?.endMs ?? 0);
  }
});

test('the end of a step and of a run are not said before the journal has them, and not by a worker that lost the run', async () => {
  const { answers, journal, trace, names } = observed();
  answers.push({ applied: false, status: 'running', reasonCode: null });
  journal.step({ ...STEP, status: 'running' });
  journal.attemptStarted(CALL);
  journal.modelCall({ ...CALL, status: 'completed', latency_ms: 1 });
  journal.step({ ...STEP, status: 'completed' });
  journal.end({ ...END, status: 'completed', reason_code: null });
  expect(names()).toEqual(['queued', 'chat gpt-4.1-mini']);
  await expect(journal.flush()).rejects.toThrow(RunLost);
  await trace.left();
  expect(names()).toEqual(['queued', 'chat gpt-4.1-mini', 'claim']);
});

test('a checkpoint that the database refuses makes no span twice', async () => {
  const { answers, journal, trace, spans, names } = observed();
  const tool = {
    order: 1,
    turn: 1,
    index: 0,
    provider_call_id: 'c',
    tool: 'current_time',
    source: 'builtin',
    effect: 'read',
    arguments: {},
    status: 'started',
  } as const;
  answers.push({ applied: true }, new Error('refused'), new Error('refused'));
  journal.step({ ...STEP, status: 'running' });
  journal.toolCall(tool);
  await journal.flush();
  journal.attemptStarted(CALL);
  journal.modelCall({ ...CALL, status: 'completed', latency_ms: 1 });
  journal.toolCall({ ...tool, status: 'completed', duration_ms: 3 });
  journal.step({ ...STEP, status: 'completed' });
  for (const code of ['journal_refused', 'journal_refused', 'journal_refused']) {
    journal.end({ ...END, status: 'failed', reason_code: code });
    await journal.flush().catch((error: unknown) => expect(error).toBeInstanceOf(JournalRefused));
  }
  await trace.left();
  expect(names().toSorted()).toEqual(
    ['queued', 'chat gpt-4.1-mini', 'execute_tool current_time', 'step', 'run', 'claim'].toSorted(),
  );
  expect(spans.find((span) => span.name === 'run')?.error).toBe('journal_refused');
});

test.each([
  ['cancelled', 'cancelled', 2, true],
  // the job was given up
  ['failed', 'job_failed', 2, true],
  // another worker has it, has ended it, or had it when it was cancelled
  ['running', null, 2, false],
  ['failed', 'timeout', 2, false],
  ['completed', null, 2, false],
  ['cancelled', 'cancelled', 3, false],
] as const)(
  'a lost run that is %s (%s) at epoch %i: this worker says so: %s',
  async (status, code, epoch, says) => {
    const { journal, trace, names, spans } = observed({}, { status, reason_code: code, lease_epoch: epoch });
    journal.step({ ...STEP, status: 'running' });
    journal.attemptStarted(CALL);
    await trace.left();
    expect(names()).toEqual(['queued', 'chat gpt-4.1-mini', 'claim', ...(says ? ['step', 'run'] : [])]);
    expect(spans[1]?.error).toBe('aborted');
  },
);

test('what a step’s time limit aborts is said then, and its repetition by itself', async () => {
  const { clock, journal, trace, spans } = observed();
  const tool = {
    order: 1,
    turn: 1,
    index: 0,
    provider_call_id: 'c',
    tool: 'look_up',
    source: 'shop',
    effect: 'read',
    arguments: {},
    status: 'started',
  } as const;
  journal.step({ ...STEP, status: 'running' });
  journal.toolCall(tool);
  journal.attemptStarted({ ...CALL, turn: 2 });
  await clock.advance(1_000);
  journal.step({ ...STEP, attempt: 2, status: 'running', reason_code: 'step_timeout' });
  await clock.advance(500);
  journal.attemptStarted({ ...CALL, turn: 2, attempt: 2 });
  await clock.advance(100);
  journal.modelCall({ ...CALL, turn: 2, attempt: 2, status: 'completed', latency_ms: 100 });
  journal.toolCall({ ...tool, status: 'completed', duration_ms: 40 });
  await journal.flush();
  await trace.left();
  expect(
    spans.slice(1, -1).map((span) => [span.name, span.startMs - AT, span.endMs - AT, span.error]),
  ).toEqual([
    ['chat gpt-4.1-mini', 0, 1_000, 'aborted'],
    ['execute_tool look_up', 0, 1_000, 'aborted'],
    ['pause', 1_000, 1_500, null],
    ['chat gpt-4.1-mini', 1_500, 1_600, null],
    ['execute_tool look_up', 1_560, 1_600, null],
  ]);
  expect(spans[3]?.attributes['agentd.reason_code']).toBe('step_timeout');
  expect(new Set(spans.map((span) => span.spanId)).size).toBe(spans.length);
});

test('codes and names from outside are passed on only as what they should be', async () => {
  const { journal, spans } = observed();
  journal.step({ ...STEP, status: 'running' });
  journal.attemptStarted({ ...CALL, model: 'm'.repeat(500) });
  journal.attemptFailed({ ...CALL }, 'sk-live 4711: the prompt was …');
  journal.toolCall({
    order: 1,
    turn: 1,
    index: 0,
    provider_call_id: 'c',
    tool: 'the words of a model',
    source: 'none',
    effect: 'read',
    arguments: {},
    status: 'failed',
    error_code: 'unknown_tool',
  });
  expect(spans[1]).toMatchObject({ name: `chat ${'m'.repeat(128)}`, error: 'other' });
  expect(spans[2]).toMatchObject({ name: 'execute_tool unknown', error: 'unknown_tool' });
});

test('a fault of the trace is none of the run', async () => {
  const faults: unknown[] = [];
  const trace = new RunTrace(claimedRun({ lease_epoch: 2 }), null, {
    elapsed: () => 0,
    emit: () => {
      throw new Error('broken');
    },
    ending: () => Promise.reject(new Error('away')),
    onError: (error) => faults.push(error),
  });
  const journal = new RunJournal(claimedRun({ lease_epoch: 2 }), async () => ({ applied: true }), trace);
  journal.step({ ...STEP, status: 'running' });
  journal.attemptStarted(CALL);
  journal.modelCall({ ...CALL, status: 'completed', latency_ms: 1 });
  await journal.flush();
  await trace.left();
  expect(faults.map((fault) => (fault as Error).message)).toEqual(['broken', 'broken', 'away']);
});
