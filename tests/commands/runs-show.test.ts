import { afterAll, beforeAll, expect, test } from 'vitest';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { agentd, insertTenant, json } from './support.ts';

const RUN = '3f2a91c0-1111-4222-8333-444455556666';
let db: TestDatabase;
const show = (...args: string[]) => agentd(['runs', 'show', ...args], { DATABASE_URL: db.url });

/** A run of 20 s: a model call, a slow tool, a rate limit of 10 s, a failed call. Its second step is never reached. */
beforeAll(async () => {
  db = await testDatabase();
  const { task, workspace } = await insertTenant(db, 'Lantern');
  const at = (seconds: number) => new Date(Date.UTC(2026, 2, 1, 12, 0, 0) + seconds * 1000);
  await db.query(
    `insert into public.task_runs (id, task_id, trigger, status, reason_code, reason, steps, turns, tool_calls,
       prompt_tokens, completion_tokens, cost_micros, created_at, started_at, finished_at)
     values ($1, $2, 'manual', 'failed', 'server_error', 'The model stayed down.', $3, 2, 1, 1200, 340, 1234, $4, $5, $6)`,
    [
      RUN,
      task,
      JSON.stringify([
        { order: 1, name: 'Gather' },
        { order: 2, name: 'Write' },
      ]),
      at(-2),
      at(0),
      at(20),
    ],
  );
  await db.query(
    `insert into public.task_step_runs (workspace_id, run_id, step_order, step_name, attempt, status, context,
       reason_code, error_message, started_at, finished_at, duration_ms)
     values ($1, $2, 1, 'Gather', 2, 'failed', '{"messages": [1, 2, 3], "tools": [1]}', 'server_error', $5, $3, $4, 20000)`,
    [workspace, RUN, at(0), at(20), 'HTTP \u001b[31m503\nforged'],
  );
  await db.query(
    `insert into public.llm_calls (workspace_id, run_id, step_order, turn, idempotency_key, model, status, prompt_tokens,
       completion_tokens, cost_micros, latency_ms, error_code, created_at, finished_at, finish_reason)
     values ($1, $2, 1, 1, 'k1', 'gpt-test', 'completed', 1200, 340, 1234, 1500, null, $3, $4, 'tool_calls'),
            ($1, $2, 1, 2, 'k2', 'gpt-test', 'failed', 0, 0, 0, 5000, 'server_error', $5, $6, null)`,
    [workspace, RUN, at(0), at(1.5), at(15), at(20)],
  );
  await db.query(
    `insert into public.tool_calls (workspace_id, run_id, step_order, turn, call_index, idempotency_key, provider_call_id,
       tool_name, source, effect, arguments, status, duration_ms, created_at, finished_at)
     values ($1, $2, 1, 1, 0, 'k3', 'call_1', 'look_up', 'builtin', 'read', $3, 'completed', 3500, $4, $5)`,
    [workspace, RUN, JSON.stringify({ query: `\u001b[31mred\n${'x'.repeat(200)}` }), at(1.5), at(5)],
  );
});
afterAll(() => db.dispose());

test('runs show draws header, steps, calls, the pause between them, tokens, cost and errors', async () => {
  const { code, stdout } = await show('3f2a91');
  expect(code).toBe(0);
  expect(stdout).toContain(`Run ${RUN}  failed  server_error: The model stayed down.`);
  expect(stdout).toContain('2 turns, 1 tool calls, 1,200 + 340 tokens, $0.001234');
  expect(stdout).toContain('2026-03-01 11:59:58Z, waited 2.00 s');
  expect(stdout).toContain('Step 1  Gather  failed  20.00 s  attempt 2');
  expect(stdout).toContain('context: 1 tools, 3 messages');
  expect(stdout).toMatch(/\+0\.00s {2}██·+ {2}turn 1 {2}gpt-test +1\.50 s/);
  expect(stdout).toMatch(/\+1\.50s {2}·█+·+ {4}tool look_up +3\.50 s {2}completed +\{"query"/);
  expect(stdout).toMatch(/\+5\.00s {2}·+░+·+ {2}no call +10\.00 s/);
  expect(stdout).toMatch(/\+15\.00s {2}·+█+ {2}turn 2 {2}gpt-test +5\.00 s {2}failed/);
  expect(stdout).toContain('Step 2  Write  pending');
});

test('what a tenant wrote can neither colour the terminal nor forge a line, and long arguments are cut', async () => {
  const { stdout } = await show(RUN);
  expect(stdout).not.toContain('\u001b');
  expect(stdout).not.toMatch(/^forged/m);
  expect(stdout).not.toContain('x'.repeat(100));
});

test('runs show --json holds the whole journal, step by step', async () => {
  const journal = json<{ run: { id: string }; steps: { model_calls: unknown[]; tool_calls: unknown[] }[] }>(
    await show(RUN, '--json'),
  );
  expect(journal.run.id).toBe(RUN);
  expect(journal.steps.map((step) => [step.model_calls.length, step.tool_calls.length])).toEqual([
    [2, 1],
    [0, 0],
  ]);
});
