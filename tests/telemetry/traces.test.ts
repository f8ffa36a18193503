import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type Clock, systemClock } from '../../src/clock.ts';
import type { Tool, ToolSource } from '../../src/pipelines/agent/tools.ts';
import { type Collector, type ReceivedSpan, startCollector } from '../peers/collector.ts';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { startDaemonProcess, testDaemon } from '../support/daemon.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { MODEL, makePlatform, makeTask, type Platform, startRun, startTask } from '../support/platform.ts';
import { findRun, loseLease, until, waitForRun } from '../support/runs.ts';

const PROMPT = 'prompt-7f3a';
const ANSWER = 'answer-91bc';
const ARGUMENT = 'argument-55de';
const RESULT = 'result-c0ff';
const HEADER = 'collector-key-8d1e';

let db: TestDatabase;
let model: ModelServer;
let platform: Platform;
let collector: Collector;

beforeEach(async () => {
  db = await testDatabase();
  model = await startModelServer();
  collector = await startCollector();
  platform = await makePlatform(db, { agent: { instructions: PROMPT } });
});

afterEach(async () => {
  expect(model.rejected).toEqual([]);
  await model.close();
  await collector.close();
  await db.dispose();
});

const env = (more: Record<string, string> = {}): Record<string, string> => ({
  OTEL_EXPORTER_OTLP_ENDPOINT: collector.url,
  OTEL_EXPORTER_OTLP_HEADERS: `x-api-key=${HEADER}`,
  OTEL_SERVICE_NAME: 'worker-of-tests',
  ...more,
});

/** A tool that is held until it is let go. */
function lookUp(effect: Tool['effect'] = 'read') {
  const gate = Promise.withResolvers<void>();
  let calls = 0;
  const source: ToolSource = {
    name: 'shop',
    list: async () => [
      {
        source: 'shop',
        effect,
        definition: {
          type: 'function',
          function: { name: 'look_up', parameters: { type: 'object', properties: {} } },
        },
        async call() {
          calls++;
          await gate.promise;
          return { content: RESULT };
        },
      },
    ],
  };
  return { source, letGo: () => gate.resolve(), calls: () => calls };
}

/** Every second turn answers; the one before calls the tools. */
function answerAfterTools(): void {
  model.respond(({ body }) =>
    body.messages.at(-1)?.role === 'tool'
      ? { content: ANSWER }
      : {
          toolCalls: [
            { name: 'look_up', arguments: { q: ARGUMENT } },
            { name: ARGUMENT.replace('-', '_'), arguments: {} },
          ],
        },
  );
}

const named = (spans: readonly ReceivedSpan[], name: string): ReceivedSpan[] =>
  spans.filter((span) => span.name === name);

/** One trace, one root, every parent there and around its children; ids are unique. */
function expectConnected(spans: readonly ReceivedSpan[], parentOfRoot: string | null = null): ReceivedSpan {
  expect(new Set(spans.map((span) => span.traceId)).size).toBe(1);
  expect(new Set(spans.map((span) => span.spanId)).size).toBe(spans.length);
  const byId = new Map(spans.map((span) => [span.spanId, span]));
  const roots = spans.filter((span) => span.parentSpanId === parentOfRoot);
  expect(roots.map((span) => span.name)).toEqual(['run']);
  for (const span of spans) {
    expect(span.end).toBeGreaterThanOrEqual(span.start);
    if (span === roots[0]) continue;
    const parent = byId.get(span.parentSpanId ?? '');
    expect([span.name, parent?.name ?? 'nothing']).toEqual([
      span.name,
      /^(chat|execute_tool|pause)/.test(span.name) ? 'step' : 'run',
    ]);
    expect([span.name, span.start >= (parent?.start ?? 0) - 1]).toEqual([span.name, true]);
    // The claim is over when the worker has let the run go, which is after the run's end is in the database.
    if (span.name !== 'claim')
      expect([span.name, span.end <= (parent?.end ?? 0) + 1]).toEqual([span.name, true]);
  }
  return roots[0] as ReceivedSpan;
}

test('a run is one trace: its wait, its claim, its steps, and below them each call', async () => {
  const tool = lookUp();
  tool.letGo();
  answerAfterTools();
  const daemon = await testDaemon(db, model, { env: env(), toolSources: [tool.source] });
  const id = await startTask(db, platform, PROMPT, {}, [{}, { previous: true }]);
  const run = await waitForRun(db, id);
  await daemon.stop();

  const { spans } = collector;
  const root = expectConnected(spans);
  expect(root.traceId).toBe(id.replaceAll('-', ''));
  // A machine that is busy makes pauses.
  const work = spans.filter((span) => span.name !== 'pause');
  expect(work.map((span) => span.name).toSorted()).toEqual(
    [
      'run',
      'queued',
      'claim',
      ...['step', 'step'],
      ...Array(4).fill(`chat ${MODEL}`),
      ...Array(2).fill('execute_tool look_up'),
      // a tool that the model made up
      ...Array(2).fill('execute_tool unknown'),
    ].toSorted(),
  );
  expect(root).toMatchObject({
    kind: 5,
    error: null,
    attributes: {
      'agentd.run.id': id,
      'agentd.workspace.id': platform.workspaceId,
      'agentd.agent.id': platform.agentId,
      'agentd.run.status': 'completed',
      'agentd.run.claims': 1,
      'agentd.run.turns': 4,
      'agentd.run.tool_calls': run.tool_calls,
      'agentd.run.tokens': Number(run.prompt_tokens) + Number(run.completion_tokens),
      'agentd.cost_micros': Number(run.cost_micros),
    },
    resource: { 'service.name': 'worker-of-tests', 'service.instance.id': daemon.workerId },
  });
  const [times] = await db.query<{ created: Date; finished: Date }>(
    'select created_at as created, finished_at as finished from public.task_runs where id = $1',
    [id],
  );
  expect(Math.abs(root.start - Number(times?.created))).toBeLessThan(2);
  expect(Math.abs(root.end - Number(times?.finished))).toBeLessThan(5_000);
  expect(named(spans, `chat ${MODEL}`)[0]).toMatchObject({
    kind: 3,
    attributes: {
      'gen_ai.system': 'openai',
      'gen_ai.provider.name': 'openai',
      'gen_ai.request.model': MODEL,
    },
  });
  expect(named(spans, 'execute_tool unknown')[0]?.error).toBe('unknown_tool');
  expect(collector.requests[0]).toMatchObject({ path: '/v1/traces', headers: { 'x-api-key': HEADER } });
  expect(await daemon.metrics.registry.metrics()).toContain(
    `agentd_trace_spans_total{outcome="sent"} ${spans.length}`,
  );
});

test('nothing that a tenant wrote, a model said or a key is in a span, nor the collector’s key in the log', async () => {
  const tool = lookUp();
  tool.letGo();
  answerAfterTools();
  const daemon = await testDaemon(db, model, { env: env(), toolSources: [tool.source] });
  await waitForRun(db, await startTask(db, platform, PROMPT, { name: PROMPT }));
  model.respond(() => ({ status: 401, error: { message: ANSWER, code: RESULT } }));
  await waitForRun(db, await startTask(db, platform, PROMPT));
  await daemon.stop();
  const sent = collector.requests.map((request) => request.body).join();
  expect(named(collector.spans, 'run').map((span) => span.error)).toEqual([null, 'invalid_api_key']);
  for (const text of [PROMPT, ANSWER, ARGUMENT, ARGUMENT.replace('-', '_'), RESULT, model.apiKey, HEADER]) {
    expect([text, sent.includes(text)]).toEqual([text, false]);
  }
  expect(daemon.log.join()).not.toContain(HEADER);
});

test('a worker that is killed and the one that takes over draw one connected trace', async () => {
  const held = Promise.withResolvers<void>();
  model.respond(({ body }, index) => {
    if (body.messages.at(-1)?.role !== 'tool')
      return { toolCalls: [{ name: 'current_time', arguments: {} }] };
    return index === 1 ? { content: 'late', delay: held.promise } : { content: ANSWER };
  });
  const first = await startDaemonProcess(db, model, env());
  const id = await startTask(db, platform, PROMPT, {}, [{}, {}]);
  await model.waitForRequest(() => true, 2);
  await collector.waitFor((spans) => named(spans, 'execute_tool current_time').length === 1);
  await first.kill();
  // The second worker's machine is an hour ahead: a trace has the database's time.
  const clock: Clock = { ...systemClock, now: () => Date.now() + 3_600_000 };
  const second = await testDaemon(db, model, { env: env(), clock });
  await loseLease(db, id);
  const run = await waitForRun(db, id);
  held.resolve();
  await second.stop();

  expect(run).toMatchObject({ status: 'completed', lease_epoch: 2 });
  const { spans } = collector;
  const root = expectConnected(spans);
  expect(root).toMatchObject({
    attributes: {
      'agentd.run.claims': 2,
      'agentd.run.turns': 4,
      'agentd.run.tokens': Number(run.prompt_tokens) + Number(run.completion_tokens),
    },
  });
  const workers = (name: string): unknown[] =>
    named(spans, name)
      .toSorted((a, b) => a.start - b.start)
      .map((span) => span.resource['service.instance.id'] === second.workerId);
  // The first worker said what it had done; what it was doing when it was killed nobody can say.
  expect(workers('queued')).toEqual([false]);
  expect(workers(`chat ${MODEL}`)).toEqual([false, true, true, true]);
  expect(workers('execute_tool current_time')).toEqual([false, true]);
  expect(workers('step')).toEqual([true, true]);
  expect(workers('claim')).toEqual([true]);
  const [step] = named(spans, 'step').toSorted((a, b) => a.start - b.start);
  expect(step?.start).toBeLessThan(named(spans, 'claim')[0]?.start ?? 0);
});

test('a worker that loses a run says what it aborted, and the run’s end is said once', async () => {
  const tool = lookUp();
  answerAfterTools();
  const slots = { AGENTD_QUEUES: 'task-run=1' };
  const daemon = await testDaemon(db, model, { env: env(slots), toolSources: [tool.source] });
  const id = await startTask(db, platform, PROMPT);
  await until('the tool is called', () => tool.calls() === 1);
  const other = await testDaemon(db, model, { env: env(slots), toolSources: [tool.source] });
  await loseLease(db, id);
  await until('the tool is called again', () => tool.calls() === 2);
  await until('both have looked', async () => (await findRun(db, id))?.lease_epoch === 2);
  await collector.waitFor((spans) => named(spans, 'claim').length === 1);
  tool.letGo();
  await waitForRun(db, id);
  await Promise.all([daemon.stop(), other.stop()]);
  expectConnected(collector.spans);
  const claims = named(collector.spans, 'claim').toSorted((a, b) => a.start - b.start);
  expect(claims.map((span) => span.attributes['agentd.claim.outcome'])).toEqual(['lost', 'completed']);
  expect(named(collector.spans, 'execute_tool look_up').map((span) => span.error)).toEqual(['aborted', null]);
});

test('a run that is cancelled while a worker has it ends its trace, once', async () => {
  const tool = lookUp();
  answerAfterTools();
  const daemon = await testDaemon(db, model, { env: env(), toolSources: [tool.source] });
  const id = await startTask(db, platform, PROMPT);
  await until('the tool is called', () => tool.calls() === 1);
  await db.query('select public.cancel_run($1)', [id]);
  await collector.waitFor((spans) => named(spans, 'run').length > 0);
  await daemon.stop();
  const root = expectConnected(collector.spans);
  expect(root).toMatchObject({
    error: null,
    attributes: { 'agentd.run.status': 'cancelled', 'agentd.reason_code': 'cancelled' },
  });
  expect(named(collector.spans, 'step')[0]?.error).toBe('cancelled');
});

test('each attempt of a model call is a span of its own, and so are the pauses between them', async () => {
  model.respond((_, index) =>
    index < 2 ? { status: 503, headers: { 'retry-after-ms': '120' } } : { content: ANSWER },
  );
  const daemon = await testDaemon(db, model, { env: env() });
  await waitForRun(db, await startTask(db, platform, PROMPT));
  await daemon.stop();
  expectConnected(collector.spans);
  const calls = named(collector.spans, `chat ${MODEL}`).toSorted((a, b) => a.start - b.start);
  expect(calls.map((span) => [span.attributes['agentd.attempt'], span.error])).toEqual([
    [1, 'overloaded'],
    [2, 'overloaded'],
    [3, null],
  ]);
  const pauses = named(collector.spans, 'pause')
    .filter((span) => span.attributes['agentd.reason_code'] === 'overloaded')
    .toSorted((a, b) => a.start - b.start);
  expect(pauses).toHaveLength(2);
  for (const [i, pause] of pauses.entries()) {
    expect(pause.end - pause.start).toBeGreaterThan(100);
    expect(pause.start).toBeGreaterThanOrEqual((calls[i]?.end ?? 0) - 1);
    expect(pause.end).toBeLessThanOrEqual((calls[i + 1]?.start ?? 0) + 1);
  }
});

test('a run that waits without a slot shows its wait', async () => {
  model.respond((_, index) =>
    index === 0 ? { status: 429, headers: { 'retry-after': '6' } } : { content: ANSWER },
  );
  const daemon = await testDaemon(db, model, { env: env() });
  const id = await startTask(db, platform, PROMPT);
  await waitForRun(db, id, ['waiting']);
  await daemon.stop();
  const [wait] = named(collector.spans, 'waiting');
  expect(wait?.attributes['agentd.reason_code']).toBe('rate_limit');
  const waited = (wait?.end ?? 0) - (wait?.start ?? 0);
  expect([waited >= 6_000, waited < 9_000]).toEqual([true, true]);
  expect(named(collector.spans, 'claim')[0]?.attributes['agentd.claim.outcome']).toBe('waiting');
  // The run goes on, so neither it nor its step has ended.
  expect(collector.spans.filter((span) => ['run', 'step'].includes(span.name))).toEqual([]);
});

test('a run that waits for a person shows how long', async () => {
  const tool = lookUp('write');
  tool.letGo();
  answerAfterTools();
  const daemon = await testDaemon(db, model, { env: env(), toolSources: [tool.source] });
  const id = await startTask(db, platform, PROMPT, { approval_policy: 'writes' });
  await waitForRun(db, id, ['waiting']);
  await collector.waitFor((spans) => named(spans, 'claim').length === 1);
  await db.query(
    `select public.decide_tool_call(id, true) from public.tool_calls where run_id = $1 and status = 'waiting'`,
    [id],
  );
  await waitForRun(db, id);
  await daemon.stop();
  expectConnected(collector.spans);
  const [first, second] = named(collector.spans, 'claim').toSorted((a, b) => a.start - b.start);
  const waits = named(collector.spans, 'waiting');
  expect(waits).toHaveLength(1);
  expect(Math.abs((waits[0]?.start ?? 0) - (first?.end ?? 0))).toBeLessThan(5_000);
  expect(waits[0]?.end).toBeCloseTo(second?.start ?? 0, 2);
  expect(named(collector.spans, 'execute_tool look_up').map((span) => span.error)).toEqual([null]);
});

describe('an application that gives the run its own trace context', () => {
  const TRACE = '4bf92f3577b34da6a3ce929d0e0e4736';
  const SPAN = '00f067aa0ba902b7';

  async function runUnder(traceparent: string): Promise<string> {
    const daemon = await testDaemon(db, model, { env: env() });
    const id = await startRun(db, await makeTask(db, platform, { instructions: PROMPT, status: 'paused' }));
    await waitForRun(db, id);
    collector.spans.length = 0;
    const [row] = await db.query<{ id: string }>(
      'insert into public.task_runs (task_id, traceparent) select task_id, $2 from public.task_runs where id = $1 returning id',
      [id, traceparent],
    );
    await waitForRun(db, row?.id ?? '');
    await daemon.stop();
    return row?.id ?? '';
  }

  test('sees the run as a child of its own span', async () => {
    await runUnder(`00-${TRACE}-${SPAN}-01`);
    const mine = collector.spans.filter((span) => span.traceId === TRACE);
    const root = expectConnected(mine, SPAN);
    expect(root.parentSpanId).toBe(SPAN);
  });

  test('and has not sampled it, sees nothing of it', async () => {
    await runUnder(`00-${TRACE}-${SPAN}-00`);
    expect(collector.spans.filter((span) => span.traceId === TRACE)).toEqual([]);
  });

  test('and writes something else there, gets the run’s own trace', async () => {
    const id = await runUnder('not a trace context');
    expectConnected(collector.spans.filter((span) => span.traceId === id.replaceAll('-', '')));
  });
});

test.each(['hang', 'trickle', 500] as const)(
  'a collector that does wrong (%s) costs spans and nothing else',
  async (answer) => {
    collector.answer = answer;
    const daemon = await testDaemon(db, model, { env: env() });
    const id = await startTask(db, platform, PROMPT);
    expect((await waitForRun(db, id)).status).toBe('completed');
    await until('the collector is asked', () => collector.requests.length > 0);
    const started = performance.now();
    await daemon.stop();
    // Two seconds are promised; the rest is what a stop takes anyway, on a machine that is busy.
    expect(performance.now() - started).toBeLessThan(8_000);
    const said = daemon.log.filter((line) => line.includes('"event":"traces_not_sent"'));
    expect(said).toHaveLength(1);
    expect(await daemon.metrics.registry.metrics()).toMatch(
      /agentd_trace_spans_total\{outcome="dropped"\} [1-9]/,
    );
  },
);

test('traces at a ratio: every worker decides the same for a run, and one that is left out sends nothing', async () => {
  const sampler = { OTEL_TRACES_SAMPLER: 'parentbased_traceidratio', OTEL_TRACES_SAMPLER_ARG: '0.5' };
  const daemon = await testDaemon(db, model, { env: env(sampler) });
  const task = await makeTask(db, platform, { instructions: PROMPT });
  const ids = await Promise.all(Array.from({ length: 30 }, () => startRun(db, task)));
  for (const id of ids) await waitForRun(db, id);
  await daemon.stop();
  const traces = Map.groupBy(collector.spans, (span) => span.traceId);
  expect(traces.size).toBeGreaterThan(0);
  expect(traces.size).toBeLessThan(ids.length);
  for (const spans of traces.values()) expectConnected(spans);
});

/** Makes a process say which files of OpenTelemetry it loads. */
const SAY_WHAT_IS_LOADED = `--import=data:text/javascript,${encodeURIComponent(`
  import { registerHooks } from 'node:module';
  import { writeSync } from 'node:fs';
  registerHooks({
    load(url, context, next) {
      const name = /@opentelemetry\\/([a-z-]+)/.exec(url);
      if (name) writeSync(2, 'loaded ' + name[1] + '\\n');
      return next(url, context);
    },
  });`)}`;

test('off, nothing of OpenTelemetry’s SDK is loaded; on, it is', async () => {
  const loadedBy = async (more: Record<string, string>): Promise<string[]> => {
    const worker = await startDaemonProcess(db, model, { ...more, NODE_OPTIONS: SAY_WHAT_IS_LOADED });
    await worker.kill();
    return [...new Set([...worker.output().matchAll(/loaded ([a-z-]+)/g)].map((match) => match[1] ?? ''))];
  };
  const withoutApi = (await loadedBy({})).filter((name) => name !== 'api');
  expect(withoutApi).toEqual([]);
  expect(await loadedBy(env({ OTEL_SDK_DISABLED: 'true' }))).not.toContain('sdk-trace');
  expect(await loadedBy(env())).toEqual(expect.arrayContaining(['sdk-trace', 'exporter-trace-otlp-http']));
});
