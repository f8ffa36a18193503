/** What is found in the way of a first migration, and that nothing is changed by looking. */
import { readFile } from 'node:fs/promises';
import type { Kysely } from 'kysely';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { madeObjectsText } from '../../bin/made-objects.ts';
import { loadConfig } from '../../src/config.ts';
import { ASIDE, adviceFor } from '../../src/db/collision-advice.ts';
import { madeObjects } from '../../src/db/collisions.ts';
import {
  CollisionError,
  checkMigrations,
  migrateDown,
  migrateUp,
  newestMigration,
} from '../../src/db/migrate.ts';
import { applyAccess } from '../../src/db/migrations/access.ts';
import { publicArguments } from '../../src/db/migrations/access-rules.ts';
import { agentd, json } from '../commands/support.ts';
import { emptyDatabase, type TestDatabase, testDatabase } from '../support/database.ts';
import { type SupabaseProject, signUpAt, supabaseProject } from '../support/supabase.ts';
import { supabaseFacts } from '../support/supabase-facts.ts';
import { column, value } from './schema-support.ts';

const { queues } = loadConfig({});
// Each test migrates databases of its own.
vi.setConfig({ testTimeout: 120_000 });
const opened: { dispose(): Promise<void> }[] = [];
afterEach(async () => {
  for (const one of opened.splice(0)) await one.dispose();
});

/** A Supabase project with the tables of an application, made by its own role. */
async function projectWith(platform: string): Promise<SupabaseProject> {
  const project = await supabaseProject();
  opened.push(project);
  const script = await readFile(new URL(`../support/platforms/${platform}.sql`, import.meta.url), 'utf8');
  await project.migrating((db) => db.query(`set local search_path = public;\n${script}`));
  return project;
}

async function empty(): Promise<TestDatabase> {
  const db = await emptyDatabase();
  opened.push(db);
  return db;
}

/** What `migrateUp` made of an empty one. */
async function migrated(): Promise<TestDatabase> {
  const db = await testDatabase();
  opened.push(db);
  return db;
}

const found = async (project: SupabaseProject): Promise<string[]> =>
  (await checkMigrations(project.db)).collisions.map((collision) => adviceFor(collision).object).sort();

/** What a migration makes of these documents' own names. */
const tables = (names: string): string[] => names.split(' ').map((name) => `table public.${name}`);
const types = (names: string): string[] => names.split(' ').map((name) => `type public.${name}`);

const inTheWay: Readonly<Record<string, readonly string[]>> = {
  agentcenter: [
    ...tables(
      'agent_web_widget_config agents billing_invoices channel_configs chat_sessions knowledge_chunks knowledge_sources leads ' +
        'llm_models personas pricing_plans profiles user_roles workspace_llm_config workspace_subscriptions workspace_usage workspaces',
    ),
    ...types(
      'agent_status app_role business_domain fallback_policy knowledge_type persona_tone subscription_status',
    ),
    'function public.check_usage_limit(uuid)',
    'function public.get_user_role(uuid)',
    'function public.get_workspace_usage(uuid)',
    'function public.has_role(uuid, app_role)',
    'function public.increment_conversation_count(uuid)',
    'function public.user_has_workspace_access(uuid)',
  ],
  'agent-platform': [
    ...tables('agent_api_connections agent_feedback agent_messages agents api_connections'),
    'function public.current_user_id()',
  ],
  agentexpress: tables('agent_logs agents integrations user_agents'),
  'agentopia-diagram': tables(
    'agent_datastores agent_discord_connections agents chat_channels chat_messages chat_room_members chat_rooms datastores ' +
      'mcp_configurations mcp_servers roles team_members teams user_roles user_secrets user_team_memberships',
  ),
  agentopia: [
    ...tables(
      'account_tool_environments agent_datastores agent_integration_permissions agent_mcp_connections agent_media_assignments ' +
        'agent_tasks agents chat_channels chat_messages datastores integration_capabilities mcp_tools_cache media_library ' +
        'media_processing_logs profiles service_providers task_steps team_canvas_layouts team_connections team_members teams ' +
        'tool_catalog user_integration_credentials user_preferences workspace_members workspaces',
    ),
    ...types(
      'account_tool_installation_status_enum assignment_type credential_type datastore_type message_type processing_log_status ' +
        'processing_status provider_type task_status task_step_status task_type team_connection_type workspace_member_role',
    ),
    'function public.create_task_step(uuid, integer, text, text)',
    'function public.create_vault_secret(text, text, text)',
    'function public.delete_task_step(uuid)',
    'function public.revoke_agent_integration_permission(uuid)',
    'function public.vault_decrypt(text)',
  ],
};

describe.each(Object.entries(inTheWay))(
  'on a project that holds the platform of %s',
  (platform, expected) => {
    test('all that is in the way is found, nothing is changed, and what the advice says makes room', async () => {
      const project = await projectWith(platform);
      const before = await supabaseFacts(project.db);
      expect(await found(project)).toEqual([...expected].sort());

      const refused = await project.migrating((db) => migrateUp(db, queues).catch((error: unknown) => error));
      expect(refused).toBeInstanceOf(CollisionError);
      expect((refused as Error).message).toMatch(/nothing was changed: .*agentd migrate up --check/);
      expect(await supabaseFacts(project.db)).toEqual(before);

      const { collisions } = await checkMigrations(project.db);
      const advice = collisions.map(adviceFor);
      await project.migrating((db) =>
        db.query([`create schema ${ASIDE};`, ...advice.map((each) => each.make_room)].join('\n')),
      );
      expect(await found(project)).toEqual([]);
      const applied = await project.migrating((db) => migrateUp(db, queues));
      expect(applied.at(-1)).toBe(newestMigration);
      // every statement for the rows is one that the database accepts
      await project.migrating((db) =>
        db.query(advice.flatMap((each) => each.rows_back ?? []).join('\n') || 'select 1'),
      );
    });
  },
);

test('the rows of a platform come over by the statements of the advice', async () => {
  const project = await projectWith('agentcenter');
  const [user, workspace, agent] = [1, 2, 3].map((n) => `00000000-0000-4000-8000-00000000000${n}`) as [
    string,
    string,
    string,
  ];
  await signUpAt(project, user);
  await project.migrating(async (db) => {
    await db.query(`insert into public.workspaces (id, name, slug) values ($1, 'Roastery', 'roastery')`, [
      workspace,
    ]);
    await db.query(`insert into public.profiles (id, workspace_id, full_name) values ($1, $2, 'Ada')`, [
      user,
      workspace,
    ]);
    await db.query(`insert into public.user_roles (user_id, workspace_id, role) values ($1, $2, 'OWNER')`, [
      user,
      workspace,
    ]);
    await db.query(
      `insert into public.agents (id, workspace_id, name, domain, goals, channels) values ($1, $2, 'Max', 'retail', '{sell}', '{web}')`,
      [agent, workspace],
    );
    await db.query(
      `insert into public.leads (workspace_id, agent_id, name, metadata) values ($1, $2, 'Bea', '{}')`,
      [workspace, agent],
    );
    const { collisions } = await checkMigrations(db);
    const advice = collisions.map(adviceFor);
    await db.query([`create schema ${ASIDE};`, ...advice.map((each) => each.make_room)].join('\n'));
    await migrateUp(db, queues);
    await db.query(advice.flatMap((each) => each.rows_back ?? []).join('\n'));
  });
  expect(
    await project.db.query(
      `select a.name, a.status, w.slug, l.name as lead, p.full_name,
              (select r.role from public.user_roles r where r.user_id = p.id and r.workspace_id = w.id) as role
         from public.agents a
         join public.workspaces w on w.id = a.workspace_id
         join public.leads l on l.agent_id = a.id
         join public.profiles p on p.workspace_id = w.id`,
    ),
  ).toEqual([
    { name: 'Max', status: 'draft', slug: 'roastery', lead: 'Bea', full_name: 'Ada', role: 'OWNER' },
  ]);
});

test('tables that do not collide go through and are left alone, up and down', async () => {
  const project = await projectWith('unrelated');
  const before = await supabaseFacts(project.db);
  expect(await found(project)).toEqual([]);
  await project.migrating((db) => migrateUp(db, queues));
  const shop = (facts: string[]): string[] =>
    facts.filter((fact) => /\b(products|orders|open_orders|order_state|price_of)\b/.test(fact));
  expect(shop(before).length).toBeGreaterThan(10);
  expect(shop(await supabaseFacts(project.db))).toEqual(shop(before));
  expect(await project.db.query('select price_of(id) as price from public.open_orders')).toEqual([
    { price: '8.50' },
  ]);
  await project.migrating((db) => migrateDown(db, { all: true, queue: true }));
  expect(await supabaseFacts(project.db)).toEqual(before);
});

test('an application’s function of one of our names with other arguments keeps its owner and its rights', async () => {
  const db = await migrated();
  await db.query(`create function public.has_role(name text) returns boolean language sql stable as 'select true';
                  grant execute on function public.has_role(text) to anon`);
  const facts = (): Promise<unknown[]> =>
    db.query(
      `select proowner::regrole::text, proacl::text from pg_proc where oid = 'public.has_role(text)'::regprocedure`,
    );
  const before = await facts();
  await applyAccess(db.kysely as Kysely<unknown>);
  expect(await facts()).toEqual(before);
});

test('schemas, indexes, views, types and users in the way are told by what they are', async () => {
  const db = await empty();
  await db.query(`
    create schema agentopia; create table agentopia.agents (id int); create function agentopia.f() returns int language sql as 'select 1';
    create schema agentexpress;
    create schema agentd; create table agentd.mine (id int);
    create schema auth; create table auth.users (id text primary key);
    create table public.people (id int, workspace int); create index idx_agents_workspace on public.people (workspace);
    create view public.agents as select 1 as id;
    create domain public.task_status as text;
    create table public.task_type (id int);
    create type public.run_status as enum ('queued', 'running');
    create type public.agent_status as enum ('draft', 'live');
    create function public.current_user_id() returns text language sql as $$ select 'me' $$;
    create function public.vault_decrypt(id text) returns text language sql as $$ select id $$;
    create sequence public.leads;
    create table public.user_secrets ("my id" int, "user" text, id uuid)`);
  const { collisions, pending } = await checkMigrations(db);
  expect(pending.at(-1)).toBe(newestMigration);
  const told = Object.fromEntries(
    collisions.map(adviceFor).map((each) => [each.object, [each.there, each.make_room]]),
  );
  expect(told).toEqual({
    'schema agentd': ['a schema with mine', 'alter schema agentd rename to agentd_before_agentd;'],
    'schema agentexpress': [
      'an empty schema',
      'alter schema agentexpress rename to agentexpress_before_agentd;',
    ],
    'schema agentopia': [
      'a schema with agents, f()',
      'alter schema agentopia rename to agentopia_before_agentd;',
    ],
    'table auth.users': [
      'a table with id text, or without a key on it',
      'use another database for agentd, or give auth.users a unique id of type uuid',
    ],
    'index public.idx_agents_workspace': [
      'index of table people',
      'alter index public.idx_agents_workspace rename to idx_agents_workspace_before_agentd;',
    ],
    'table public.agents': ['a view', 'alter view public.agents set schema before_agentd;'],
    'table public.leads': ['another sequence', 'alter sequence public.leads set schema before_agentd;'],
    'table public.user_secrets': [
      'a table with other columns: lacks user_id, vault_id, vault_item_id, created_at, updated_at; has "my id", "user"',
      'alter table public.user_secrets set schema before_agentd;',
    ],
    'type public.agent_status': [
      'an enum with the same labels',
      'alter type public.agent_status set schema before_agentd;',
    ],
    'type public.run_status': [
      'an enum with other labels: queued, running',
      'alter type public.run_status set schema before_agentd;',
    ],
    'type public.task_status': ['a domain', 'alter domain public.task_status set schema before_agentd;'],
    'type public.task_type': ['a table', 'alter table public.task_type set schema before_agentd;'],
    'function public.current_user_id()': [
      'a function that returns text',
      'alter function public.current_user_id() set schema before_agentd;',
    ],
    'function public.vault_decrypt(text)': [
      'a function that returns the same',
      'alter function public.vault_decrypt(text) set schema before_agentd;',
    ],
  });
});

describe('an application’s own pg-boss', () => {
  const theirs = `create schema pgboss;
    create table pgboss.queue (name text primary key, policy text, dead_letter text);
    insert into pgboss.queue values ('mail', 'standard', null)`;

  test('is in the way of a first migration, which changes nothing', async () => {
    const db = await empty();
    await db.query(theirs);
    const { collisions } = await checkMigrations(db);
    expect(collisions.map(adviceFor)).toMatchObject([
      {
        object: 'schema pgboss',
        there: 'a schema with queues of others: mail',
        make_room: 'alter schema pgboss rename to pgboss_before_agentd;',
      },
    ]);
    await expect(migrateUp(db, queues)).rejects.toThrow(CollisionError);
    await db.query('delete from pgboss.queue');
    expect((await checkMigrations(db)).collisions).toHaveLength(1);
  });

  test('is not dropped with agentd’s: whoever made a queue beside ours is told, and nothing is changed', async () => {
    const db = await migrated();
    await db.query(`select pgboss.create_queue('mail', '{"policy": "standard"}')`);
    await expect(migrateDown(db, { all: true, queue: true })).rejects.toThrow(
      /queues of others: mail.*nothing was changed/,
    );
    expect((await checkMigrations(db)).pending).toEqual([]);
    expect(await value(db.pool, `select count(*)::int from pgboss.queue where name = 'mail'`)).toBe(1);
  });

  test('is told from agentd’s own, which an earlier installation left or a version without the mark made', async () => {
    const db = await migrated();
    await migrateDown(db, { all: true });
    expect((await checkMigrations(db)).collisions).toEqual([]);
    await db.query('comment on schema pgboss is null');
    expect((await checkMigrations(db)).collisions).toEqual([]);
    await migrateUp(db, queues);
    await migrateDown(db, { all: true, queue: true });
    expect(await value(db.pool, `select to_regnamespace('pgboss')`)).toBeNull();
  });
});

describe('users of somebody else’s', () => {
  test('whose table lacks an address, or whose auth.uid() is no uuid, are told of before anything is changed', async () => {
    const db = await empty();
    await db.query(`create schema auth; create table auth.users (id uuid primary key);
                    create function auth.uid() returns text language sql as $$ select 'me' $$`);
    const { collisions } = await checkMigrations(db);
    expect(collisions.map(adviceFor)).toMatchObject([
      {
        object: 'function auth.uid()',
        there: 'a function that returns text',
        make_room:
          '-- use another database for agentd, or let auth.uid() return uuid: null for an id that is none',
      },
      {
        object: 'table auth.users',
        there: 'a table without a column email',
        needed: 'a table with a unique id uuid and an email',
        make_room: 'alter table auth.users add column email text;',
      },
    ]);
    await expect(migrateUp(db, queues)).rejects.toThrow(CollisionError);
  });

  test('with no more than an id and an address are enough', async () => {
    const db = await empty();
    await db.query(`create schema auth; create table auth.users (id uuid primary key, email text)`);
    await migrateUp(db, queues);
    await db.query(`insert into auth.users (id, email) values (gen_random_uuid(), 'ada@example.test')`);
    expect(await value(db.pool, `select count(*)::int from public.workspaces where is_personal`)).toBe(1);
    // nobody signed in, so the system's
    expect(await value(db.pool, `insert into public.agents (name) values ('x') returning user_id`)).toBe(
      await value(db.pool, `select agentd.system_user_id()`),
    );
  });
});

test('an empty schema agentd, as a superuser may have made it for the owner, is in nobody’s way', async () => {
  const db = await empty();
  await db.query('create schema agentd');
  expect((await checkMigrations(db)).collisions).toEqual([]);
  await migrateUp(db, queues);
});

test('a migrated database is checked for what is pending only', async () => {
  const db = await migrated();
  expect(await checkMigrations(db)).toEqual({ pending: [], collisions: [] });
  const back = await migrateDown(db);
  expect(await checkMigrations(db)).toEqual({ pending: back, collisions: [] });
});

describe('agentd migrate up --check', () => {
  test('lists what is in the way and what to do, exits with 1, and migrate up refuses with the same list', async () => {
    const db = await empty();
    await db.query('create table public.agents (id uuid, name text, creator_id uuid)');
    const env = { DATABASE_URL: db.url };
    const checked = await agentd(['migrate', 'up', '--check'], env);
    expect(checked.code).toBe(1);
    expect(checked.stdout).toMatch(/^OBJECT +WHAT IS THERE +WHAT AGENTD NEEDS +WHAT TO DO$/m);
    expect(checked.stdout).toMatch(
      /^table public\.agents +a table with other columns: lacks .*; has creator_id +a table of \d+ columns +alter table public\.agents set schema before_agentd;$/m,
    );
    expect(checked.stdout).toContain(
      'insert into agentexpress.agents (id, name, creator_id) select id, name, creator_id from before_agentd.agents;',
    );
    const refused = await agentd(['migrate', 'up'], env);
    expect([refused.code, refused.stdout, refused.stderr]).toEqual([1, checked.stdout, '']);
    const asJson = await agentd(['migrate', 'up', '--check', '--json'], env);
    expect(asJson.code).toBe(1);
    expect(json(asJson)).toMatchObject({ ok: false, collisions: [{ object: 'table public.agents' }] });
    expect(
      await column(
        db.pool,
        `select nspname::text from pg_namespace where nspname in ('agentd', 'auth', 'pgboss')`,
      ),
    ).toEqual([]);
  });

  test('says that nothing collides and what is pending, and changes nothing', async () => {
    const db = await empty();
    const env = { DATABASE_URL: db.url };
    const { code, stdout } = await agentd(['migrate', 'up', '--check'], env);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^Nothing collides\.\npending {2}0001_platform\n/);
    expect(stdout).toMatch(/\n\d+ migrations are pending\. Run: agentd migrate up\n$/);
    expect(await value(db.pool, `select to_regnamespace('agentd')`)).toBeNull();
    expect(json(await agentd(['migrate', 'up', '--check', '--json'], env))).toMatchObject({
      ok: true,
      collisions: [],
    });
  });
});

test('src/db/made-objects.ts is what the migrations make, and the arguments of public functions are as access-rules.ts says', async () => {
  const db = await empty();
  const checkedIn = await readFile(new URL('../../src/db/made-objects.ts', import.meta.url), 'utf8');
  expect(await madeObjectsText(db), 'Run: npm run db:generate').toBe(checkedIn);
  const functions = madeObjects.filter((made) => made.kind === 'function').map((made) => made.name);
  expect(functions.sort()).toEqual(
    Object.entries(publicArguments)
      .map(([name, types]) => `${name}(${types})`)
      .sort(),
  );
});
