import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Tool } from '../../src/pipelines/agent/tools.ts';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { testDaemon } from '../support/daemon.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { until } from '../support/runs.ts';
import { installAudit } from './audit.ts';
import { checkDatabase } from './checks.ts';
import { countRuns, type Load, makeLoad } from './load.ts';
import { answerTo, EFFECTS } from './script.ts';
import { dice } from './windows.ts';

const tools: Tool[] = Object.entries(EFFECTS).map(([name, effect]) => ({
  definition: { type: 'function', function: { name, parameters: { type: 'object', properties: {} } } },
  source: 'chaos',
  effect,
  call: async () => ({ content: 'done' }),
}));

/** What an invariant forbids, done by hand. */
const FORBIDDEN: readonly (readonly [invariant: string, sql: string])[] = [
  ['every run completed', `update public.task_runs set reason_code = 'x' where id = $1`],
  [
    'every occurrence has exactly one run',
    `delete from public.task_runs where id = (select id from public.task_runs where scheduled_for is not null limit 1)`,
  ],
  [
    'every run has its answer in the channel once, and what it told once',
    `delete from public.chat_messages where run_id = $1`,
  ],
  [
    'every run has its answer in the channel once, and what it told once',
    `insert into public.chat_messages (workspace_id, channel_id, sender_agent_id, content, metadata)
     select workspace_id, channel_id, sender_agent_id, content, metadata from public.chat_messages where run_id = $1`,
  ],
  [
    'steps are completed at their first attempt',
    `update public.task_step_runs set attempt = 2 where run_id = $1 and step_order = 2`,
  ],
  [
    'every call has one outcome, and only a write an unknown one',
    `update public.tool_calls set status = 'unknown' where run_id = $1 and effect = 'idempotent'`,
  ],
  [
    'every call has one outcome, and only a write an unknown one',
    `delete from public.llm_calls where run_id = $1 and step_order = 3 and turn = 2`,
  ],
  [
    'usage events are the completed calls of the journal',
    `delete from public.usage_events where run_id = $1 and metric = 'task_run'`,
  ],
  [
    'usage events are the completed calls of the journal',
    `insert into public.usage_events (workspace_id, agent_id, run_id, metric, quantity, cost_micros, idempotency_key)
     select workspace_id, agent_id, run_id, metric, quantity, cost_micros, idempotency_key
       from public.usage_events where run_id = $1 and metric = 'tokens' limit 1`,
  ],
  [
    'totals of the runs are the sums of the journal',
    `update public.task_runs set prompt_tokens = prompt_tokens + 1 where id = $1`,
  ],
  [
    'no attempt of a job failed',
    `insert into agentd.job_runs (queue, job_id, attempt, worker_id, outcome, duration_ms) values ('task-run', $1, 1, 'w', 'retry', 1)`,
  ],
  ['no job is dead', `update pgboss.job set state = 'failed' where singleton_key = $1::uuid::text`],
  [
    'no budget is reserved',
    `insert into agentd.budget_reservations (call_key, budget_id, month, run_id, turns, tool_calls, tokens, cost_micros)
     select 'x', budget_id, month, $1, 0, 0, 0, 0 from agentd.budget_counters limit 1`,
  ],
  [
    'the counters of budgets are the sums of the journal',
    `update agentd.budget_counters set tokens = tokens + 1`,
  ],
  [
    'nobody wrote a call of a run that another held',
    `update chaos.call_writes set writer = 'agentd ghost' where run = $1 and status = 'completed'`,
  ],
];

describe.skipIf(!onServer)('server-only: what chaos looks at', () => {
  let db: TestDatabase;
  let model: ModelServer;
  let load: Load;
  let run: string;

  beforeAll(async () => {
    db = await testDatabase();
    model = await startModelServer();
    model.respond(answerTo);
    await installAudit(db);
    load = await makeLoad(db, { workspaces: 2, scheduledTasks: 1, periodSeconds: 2, random: dice(1) });
    await using _daemon = await testDaemon(db, model, {
      toolSources: [{ name: 'chaos', list: async () => tools }],
    });
    await load.fill(3);
    const occurrences = (): Promise<{ n: number }[]> =>
      db.query('select count(scheduled_for) as n from public.task_runs');
    await until('two occurrences', async () => ((await occurrences())[0]?.n ?? 0) > 1);
    await load.endSchedules();
    await until('all runs have ended', async () => (await countRuns(db, ['queued', 'running'])) === 0);
    run = [...load.asked][0] ?? '';
  });

  afterAll(async () => {
    await model?.close();
    await db?.dispose();
  });

  test('finds nothing wrong where nothing was disturbed', async () => {
    expect((await checkDatabase(db, load)).violations).toEqual([]);
  });

  test('finds a run that was asked for and is not there', async () => {
    const more = { ...load, asked: new Set([...load.asked, randomUUID()]) };
    expect((await checkDatabase(db, more)).violations).toMatchObject([
      { invariant: 'no run is lost', count: 1 },
    ]);
  });

  test.each(FORBIDDEN)('sees when it is not true that %s: %s', async (invariant, sql) => {
    let found: string[] = [];
    const undo = new Error('undo');
    const tried = db.transaction(async (tx) => {
      await tx.query(sql, sql.includes('$1') ? [run] : []);
      found = (await checkDatabase(tx, load)).violations.map((violation) => violation.invariant);
      throw undo;
    });
    await expect(tried).rejects.toBe(undo);
    expect(found).toContain(invariant);
  });
});
