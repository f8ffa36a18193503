import { expect, test } from 'vitest';
import { createMetrics } from '../../src/telemetry/metrics.ts';

const REQUEST = { model: 'm', outcome: 'completed', seconds: 0.3, items: 2, tokens: 40, costMicros: 7 };

test('what is recorded is exported under its labels', async () => {
  const metrics = createMetrics();
  metrics.jobs.settled('task-run', 'completed', 0.2);
  metrics.runs.finished('failed', 'invalid_api_key', 3);
  metrics.modelCalls.finished('openai', 'gpt-test', 'completed', 1, 100, 20, 1234);
  metrics.schedule.inserted(3, 0.5);
  metrics.documents.ended('completed', null);
  metrics.documents.ended('failed', 'needs_ocr');
  metrics.documents.stage('embedding', 0.02);
  metrics.documents.embeddingInFlight(1);
  metrics.documents.embeddingInFlight(1);
  metrics.documents.embeddingInFlight(-1);
  metrics.documents.embeddingRequest(REQUEST);
  metrics.documents.threadKilled('memory');
  metrics.documents.waiting([
    { state: 'admitted', documents: 2, oldest_seconds: 61 },
    { state: 'retry', documents: 1, oldest_seconds: null },
  ]);
  const text = await metrics.registry.metrics();
  expect(text).toContain('agentd_jobs_total{queue="task-run",outcome="completed"} 1');
  expect(text).toContain('agentd_runs_total{status="failed",reason_code="invalid_api_key"} 1');
  expect(text).toContain('agentd_model_prompt_tokens_total{provider="openai",model="gpt-test"} 100');
  expect(text).toContain('agentd_model_cost_micros_total{provider="openai",model="gpt-test"} 1234');
  expect(text).toContain('agentd_schedule_runs_inserted_total 3');
  expect(text).toContain('agentd_documents_total{outcome="completed",reason_code=""} 1');
  expect(text).toContain('agentd_documents_total{outcome="failed",reason_code="needs_ocr"} 1');
  expect(text).toContain('agentd_document_stage_seconds_bucket{le="0.025",stage="embedding"} 1');
  expect(text).toContain('agentd_embedding_requests_in_flight 1');
  expect(text).toContain('agentd_embedding_requests_total{model="m",outcome="completed"} 1');
  expect(text).toContain('agentd_embedding_tokens_total{model="m"} 40');
  expect(text).toContain('agentd_embedding_cost_micros_total{model="m"} 7');
  expect(text).toContain('agentd_document_threads_killed_total{reason="memory"} 1');
  expect(text).toContain('agentd_documents_waiting{state="admitted"} 2');
  expect(text).toContain('agentd_documents_oldest_wait_seconds{state="admitted"} 61');
  expect(text).not.toContain('agentd_documents_oldest_wait_seconds{state="retry"}');
});

test('names that tenants choose cannot grow the number of series without bound', async () => {
  const metrics = createMetrics({ maxLabelValues: 5, builtInTools: ['current_time'] });
  for (let i = 0; i < 1000; i++) {
    metrics.modelCalls.finished(`provider-${i}`, `model-${i}`, 'completed', 1, 1, 1, 1);
    metrics.toolCalls.finished(`tenant_tool_${i}`, 'completed', 1);
    metrics.toolCalls.finished('mine', `code-${i}`, 1);
    metrics.runs.finished('failed', `reason-${i}`, 1);
    metrics.databaseErrors.inc(`where-${i}`);
    metrics.documents.ended('failed', `reason-${i}`);
    metrics.documents.embeddingRequest({ ...REQUEST, model: `model-${i}`, outcome: `code-${i}` });
  }
  metrics.toolCalls.finished('current_time', 'completed', 1);
  const text = await metrics.registry.metrics();
  expect(text).toContain('agentd_tool_calls_total{tool="other",outcome="completed"} 1000');
  expect(text).toContain('agentd_tool_calls_total{tool="current_time",outcome="completed"} 1');
  expect(text.split('\n').filter((line) => line.startsWith('agentd_model_calls_total{'))).toHaveLength(6);
  // four codes and 'completed' fill the bound, the rest are one
  expect(
    text.split('\n').filter((line) => line.startsWith('agentd_tool_calls_total{tool="other"')),
  ).toHaveLength(6);
  expect(text.split('\n').filter((line) => line.startsWith('agentd_runs_total{'))).toHaveLength(
    // and those that alerts ask for, which are there from the start
    6 + 3,
  );
  expect(text.split('\n').filter((line) => line.startsWith('agentd_documents_total{'))).toHaveLength(6);
  // the same number stands in both names: five pairs, and one of others
  expect(text.split('\n').filter((line) => line.startsWith('agentd_embedding_requests_total{'))).toHaveLength(
    6,
  );
});

test('a measurement that went wrong never throws into the work that it measures', async () => {
  const metrics = createMetrics();
  metrics.jobs.settled('task-run', 'completed', -1);
  metrics.modelCalls.finished('p', 'm', 'completed', Number.NaN, -5, Number.POSITIVE_INFINITY, Number.NaN);
  expect(await metrics.registry.metrics()).not.toMatch(/NaN|Infinity|-\d+\n/);
});

test('two registries share nothing', async () => {
  const [a, b] = [createMetrics(), createMetrics()];
  a.schedule.skipped(1);
  expect(await b.registry.metrics()).toContain('agentd_schedule_runs_skipped_total 0');
});
