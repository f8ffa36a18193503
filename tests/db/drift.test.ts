/** What doctor compares: every kind of damage is seen, said of its object and repaired by the statements; what is an application's is not seen. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { loadConfig } from '../../src/config.ts';
import { compareFacts, type Drift } from '../../src/db/drift/compare.ts';
import { actualFacts, expectedFacts, type Facts } from '../../src/db/drift/facts.ts';
import { rightsOf } from '../../src/db/drift/grants.ts';
import { repairScript } from '../../src/db/drift/repair.ts';
import { migrateUp } from '../../src/db/migrate.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { supabaseProject } from '../support/supabase.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await testDatabase();
});
afterAll(() => db?.dispose());

async function look(): Promise<{ drifts: Drift[]; vectorHome: string }> {
  const { facts, states } = await actualFacts(db);
  return { drifts: compareFacts(await expectedFacts(), facts, states), vectorHome: states.vectorHome };
}

const said = (drifts: readonly Drift[]): string[] =>
  drifts.map((drift) => `${drift.severity} ${drift.object}: ${drift.problem}`);

/** Runs the statements as psql does, one after the other and each by itself. */
async function repair(): Promise<void> {
  const { drifts, vectorHome } = await look();
  const client = await db.pool.connect();
  try {
    for (const statement of repairScript(drifts, vectorHome)) await client.query(statement);
  } finally {
    client.release(true);
  }
}

test('a migrated database differs in nothing, on the embedded database and on servers of other versions', async () => {
  expect(said((await look()).drifts)).toEqual([]);
  const { drifts, vectorHome } = await look();
  expect(repairScript(drifts, vectorHome)).toEqual([]);
});

test('neither does a Supabase project, where auth, the Vault and the owner are others', async () => {
  const project = await supabaseProject();
  try {
    const drifts = await project.migrating(async (migrator) => {
      await migrateUp(migrator, loadConfig({}).queues);
      const { facts, states } = await actualFacts(migrator);
      return compareFacts(await expectedFacts(), facts, states);
    });
    expect(said(drifts)).toEqual([]);
  } finally {
    await project.dispose();
  }
});

/** What is done, and what doctor says of it. */
const DAMAGES: readonly (readonly [sql: string, ...said: (string | RegExp)[]])[] = [
  [
    'alter table public.leads drop column email cascade',
    'fail agentcenter.leads: the view is missing',
    'fail public.leads: column email is missing',
  ],
  [
    'alter view agentcenter.agents alter column status drop default',
    /^fail agentcenter\.agents: column status is agent_status, not agent_status default 'draft'/,
  ],
  [
    'alter table public.agents alter column max_tokens drop default',
    'fail public.agents: column max_tokens is integer, not integer default 1000',
  ],
  [
    'alter table public.agents alter column model drop not null',
    /^fail public\.agents: column model is text default .*, not text not null default/,
  ],
  [
    'alter table agentd.job_runs alter column duration_ms type bigint',
    'fail agentd.job_runs: column duration_ms is bigint not null, not integer not null',
  ],
  [
    'alter table public.agents drop constraint agents_instructions_size',
    'fail public.agents: constraint agents_instructions_size is missing',
  ],
  [
    `alter table public.agents drop constraint agents_approval_policy_check;
     alter table public.agents add constraint agents_approval_policy_check check (approval_policy <> 'all')`,
    'fail public.agents: constraint agents_approval_policy_check is another',
  ],
  [
    'alter table public.task_runs drop constraint task_runs_task_id_scheduled_for_key',
    'fail public.task_runs: constraint task_runs_task_id_scheduled_for_key is missing',
  ],
  [
    'drop index public.task_runs_finished_idx',
    'fail public.task_runs: index task_runs_finished_idx is missing',
  ],
  [
    `drop index public.task_runs_waiting_room_idx;
     create index task_runs_waiting_room_idx on public.task_runs (workspace_id)`,
    'fail public.task_runs: index task_runs_waiting_room_idx is another',
  ],
  ['drop index agentd.job_runs_job_idx', 'fail agentd.job_runs: index job_runs_job_idx is missing'],
  [
    `update pg_index set indisvalid = false where indexrelid = 'public.agents_name_idx'::regclass`,
    'fail public.agents: index agents_name_idx is invalid',
  ],
  ['drop trigger prepare_run on public.task_runs', 'fail public.task_runs: trigger prepare_run is missing'],
  [
    'alter table public.task_runs disable trigger prepare_run',
    'fail public.task_runs: trigger prepare_run is disabled',
  ],
  [
    'alter table public.task_runs enable replica trigger end_run',
    'fail public.task_runs: trigger end_run is disabled',
  ],
  [
    `drop trigger prepare_run on public.task_runs;
     create trigger prepare_run before update on public.task_runs for each row execute function agentd.prepare_run()`,
    'fail public.task_runs: trigger prepare_run is another',
  ],
  ['drop policy agents_select on public.agents', 'fail public.agents: policy agents_select is missing'],
  [
    'alter policy task_runs_select on public.task_runs using (true)',
    'fail public.task_runs: policy task_runs_select is another',
  ],
  [
    'alter policy leads_select on public.leads to public',
    'fail public.leads: policy leads_select is another',
  ],
  ['alter table public.leads disable row level security', 'fail public.leads: row security is off'],
  [
    `create or replace function agentd.wake(queue text) returns boolean language plpgsql security definer set search_path = ''
       as $$ begin return false; end $$`,
    'fail agentd.wake(queue text): the function has another body',
  ],
  [
    'alter function agentd.wake(text) security invoker',
    'fail agentd.wake(queue text): the function has another body',
  ],
  [
    'alter function agentd.wake(text) owner to postgres',
    /^fail agentd\.wake\(queue text\): belongs to postgres/,
  ],
  [
    'drop function public.cancel_run(uuid) cascade',
    'fail public.cancel_run(run_id uuid): the function is missing',
  ],
  ['drop view agentd.recent_failures', 'fail agentd.recent_failures: the view is missing'],
  [
    'alter view public.workspace_overview reset (security_barrier)',
    'fail public.workspace_overview: lacks the option security_barrier=true',
  ],
  [
    `create or replace view agentd.late_tasks as
       select t.id as task_id, t.workspace_id, t.name, t.next_run_at, 0::double precision as late_seconds from public.agent_tasks t`,
    'fail agentd.late_tasks: the view has another definition',
  ],
  [
    'alter table public.leads owner to postgres',
    /^fail public\.leads: agentd_owner|^fail public\.leads: belongs to postgres, not agentd_owner/,
  ],
  [
    'revoke insert on public.task_runs from agentd_worker',
    'fail public.task_runs: agentd_worker lacks insert',
  ],
  [
    'revoke select (name) on public.agents from authenticated',
    'fail public.agents: authenticated lacks select on name',
  ],
  ['grant select on public.agents to anon', 'fail public.agents: anon has select, which it should not'],
  [
    'grant select (api_key) on public.api_connections to authenticated',
    'fail public.api_connections: authenticated has select on api_key, which it should not',
  ],
  [
    'grant execute on function public.vault_decrypt(text) to public',
    'fail public.vault_decrypt(vault_id text): public has execute, which it should not',
  ],
  ['revoke usage on schema agentd from agentd_worker', 'fail agentd: agentd_worker lacks usage'],
  [
    'drop materialized view agentd.agent_activity cascade',
    'fail agentd.agent_activity: the materialized view is missing',
    'fail public.agent_activity: the view is missing',
  ],
  [
    'drop table public.leads cascade',
    'fail agentcenter.leads: the view is missing',
    'fail public.leads: the table is missing',
  ],
];

describe('damage is seen, and the statements repair it', () => {
  for (const [sql, ...expected] of DAMAGES) {
    test(sql.replaceAll(/\s+/g, ' ').slice(0, 100), async () => {
      await db.query(sql);
      const found = said((await look()).drifts);
      for (const [index, one] of expected.entries()) {
        expect(found[index]).toEqual(typeof one === 'string' ? one : expect.stringMatching(one));
      }
      expect(found).toHaveLength(expected.length);
      await repair();
      expect(said((await look()).drifts)).toEqual([]);
    });
  }
});

test('an enum that lacks a label is seen and gets it; one more is an application’s', async () => {
  const key = 'enum | public |  | run_trigger';
  const expected = await expectedFacts();
  const fact = expected.get(key);
  if (!fact) throw new Error(`There is no fact ${key}.`);
  const more: Facts = new Map([...expected, [key, { ...fact, text: `${fact.text}, moon` }]]);
  const { facts, states } = await actualFacts(db);
  const drifts = compareFacts(more, facts, states);
  expect(said(drifts)).toEqual(['fail public.run_trigger: the enum lacks moon']);
  const script = repairScript(drifts, 'public');
  expect(script).toContain(`alter type public.run_trigger add value if not exists 'moon';`);
  for (const statement of script) await db.query(statement);
  expect(said(compareFacts(more, (await actualFacts(db)).facts, states))).toEqual([]);
  expect(said((await look()).drifts)).toEqual([]);
});

test('what an application adds is not agentd’s to judge', async () => {
  await db.query(`
    create table public.my_notes (id int primary key, agent_id uuid references public.agents (id));
    alter table public.my_notes disable row level security;
    grant all on public.my_notes to anon;
    create function public.my_function() returns int language sql as 'select 1';
    create view public.my_view as select * from public.agents;
    create trigger my_trigger before insert on public.agents for each row execute function agentd.set_updated_at();
    create index my_index on public.agents (description);
    create policy my_policy on public.agents for select to authenticated using (false);
    create role my_role;
    grant select on public.agents to my_role;
    grant truncate on public.agents to service_role;
    alter table public.agents set (autovacuum_vacuum_scale_factor = 0.01);
    comment on table public.agents is 'ours';
    create table public.p_0001 (id int)`);
  try {
    expect(said((await look()).drifts)).toEqual([]);
  } finally {
    await db.query(`
      drop table public.my_notes, public.p_0001;
      drop function public.my_function();
      drop view public.my_view;
      drop trigger my_trigger on public.agents;
      drop index public.my_index;
      drop policy my_policy on public.agents;
      revoke all on public.agents from my_role;
      drop role my_role;
      alter table public.agents reset (autovacuum_vacuum_scale_factor)`);
  }
});

test('what it adds to agentd’s own tables is a warning, and a failure where agentd’s inserts fail of it', async () => {
  await db.query(`
    alter table public.leads add column mine text, add column demanded text not null,
      add constraint my_check check (name <> 'x')`);
  await db.query('create table agentd.stray (id int)');
  try {
    const { drifts } = await look();
    expect(said(drifts)).toEqual([
      'warn agentd.stray: is not of this version',
      'fail public.leads: column demanded is not agentd’s',
      'warn public.leads: column mine is not agentd’s',
      expect.stringMatching(/^warn public\.leads: constraint my_check is not agentd’s: CHECK/),
    ]);
    expect(repairScript(drifts, 'public')).toEqual([]);
  } finally {
    await db.query(
      'alter table public.leads drop constraint my_check, drop column mine, drop column demanded',
    );
    await db.query('drop table agentd.stray');
  }
});

test('pgvector in another schema is no difference', async () => {
  await db.query('create schema if not exists extensions');
  await db.query('alter extension vector set schema extensions');
  try {
    expect(said((await look()).drifts)).toEqual([]);
    await db.query('alter table public.chat_messages drop column embedding cascade');
    expect(said((await look()).drifts)).toContain('fail public.chat_messages: column embedding is missing');
    await repair();
    expect(said((await look()).drifts)).toEqual([]);
  } finally {
    await db.query('alter extension vector set schema public');
  }
});

test('where the migrating role kept everything, its owning is no difference, and one table elsewhere is', async () => {
  const { facts, states } = await actualFacts(db);
  const kept: Facts = new Map(
    [...facts].map(([key, fact]) => [
      key,
      fact.kind === 'function' && fact.name === 'agentd_owner'
        ? { ...fact, name: 'app' }
        : fact.kind === 'relation'
          ? { ...fact, text: fact.text.replace('owner agentd_owner', 'owner app') }
          : fact,
    ]),
  );
  const expected = await expectedFacts();
  expect(said(compareFacts(expected, kept, states))).toEqual([]);
  const key = 'relation | public | leads | ';
  const leads = facts.get(key);
  if (!leads) throw new Error('There is no table public.leads.');
  const drifts = compareFacts(expected, new Map([...kept, [key, leads]]), states);
  expect(said(drifts)).toEqual(['fail public.leads: belongs to agentd_owner, not app']);
  expect(repairScript(drifts, 'public')).toContain('alter table public.leads owner to app;');
});

test('rights are read one by one, those on columns too', () => {
  expect(rightsOf('delete, insert')).toEqual(['delete', 'insert']);
  expect(rightsOf('insert (a), select (a, b)')).toEqual(['insert (a)', 'select (a)', 'select (b)']);
  expect(rightsOf('usage with grant option, create')).toEqual(['usage with grant option', 'create']);
});
