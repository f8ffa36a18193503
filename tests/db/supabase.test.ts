/** A Supabase project that becomes an agent platform, and then is a Supabase project again. */
import { randomUUID } from 'node:crypto';
import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { loadConfig } from '../../src/config.ts';
import { openDatabase } from '../../src/db/database.ts';
import { migrateDown, migrateUp, migrationStatus } from '../../src/db/migrate.ts';
import { agentd, json } from '../commands/support.ts';
import { startModelServer } from '../peers/model-server.ts';
import { testDaemon } from '../support/daemon.ts';
import { onServer } from '../support/database.ts';
import { insert, MODEL, startTask } from '../support/platform.ts';
import { until, waitForRun } from '../support/runs.ts';
import { MIGRATOR, type SupabaseProject, signUpAt, supabaseProject } from '../support/supabase.ts';
import { supabaseFacts } from '../support/supabase-facts.ts';
import { column, denied, outcome, uniqueViolation, value } from './schema-support.ts';

const { queues } = loadConfig({});

let project: SupabaseProject;
let before: string[];
const early = randomUUID();
const nameless = randomUUID();

beforeAll(async () => {
  project = await supabaseProject();
  before = await supabaseFacts(project.db);
  await signUpAt(project, early);
  await project.as('supabase_auth_admin', (client) =>
    client.query('insert into auth.users (id, is_anonymous) values ($1, true)', [nameless]),
  );
  await project.migrating((db) => migrateUp(db, queues));
});
afterAll(() => project?.dispose());

/** As a request to Supabase's API comes in: through the authenticator, with the claims of the token. */
function request<T>(
  role: 'anon' | 'authenticated' | 'service_role',
  claims: Record<string, unknown>,
  act: (client: pg.ClientBase) => Promise<T>,
): Promise<T> {
  return project.as('authenticator', async (client) => {
    await client.query(`set local role ${role}`);
    await client.query(`select set_config('request.jwt.claims', $1, true)`, [
      JSON.stringify({ ...claims, role }),
    ]);
    return act(client);
  });
}

const asUser = <T>(id: string, act: (client: pg.ClientBase) => Promise<T>): Promise<T> =>
  request('authenticated', { sub: id }, act);

type Home = { full_name: string | null; avatar_url: string | null; personal: boolean; workspaces: number };

/** The profile of a user, whether it points at his personal workspace, and how many of these he has. */
async function homeOf(id: string): Promise<Home | undefined> {
  const [row] = await project.db.query<Home>(
    `select p.full_name, p.avatar_url, coalesce(w.is_personal and w.owner_user_id = p.id, false) as personal,
            (select count(*) from public.workspaces o where o.owner_user_id = p.id) as workspaces
       from public.profiles p left join public.workspaces w on w.id = p.workspace_id where p.id = $1`,
    [id],
  );
  return row;
}

const failures = (id: string): Promise<{ error_code: string }[]> =>
  project.db.query('select error_code from agentd.signup_failures where user_id = $1', [id]);

const adas: Home = {
  full_name: 'Ada Lovelace',
  avatar_url: 'https://example.test/ada.png',
  personal: true,
  workspaces: 1,
};

test('an application may give a user’s first workspace his own id at sign-up', async () => {
  await project.db.query(`
    create function public.handle_new_user() returns trigger language plpgsql security definer set search_path = '' as $$
    begin
      insert into public.workspaces (id, name, owner_user_id) values (new.id, 'mine', new.id);
      return new;
    end $$;
    create trigger on_auth_user_created after insert on auth.users for each row execute function public.handle_new_user()`);
  const user = randomUUID();
  try {
    await signUpAt(project, user);
  } finally {
    await project.db.query('drop function public.handle_new_user() cascade');
  }
  expect(await project.db.query('select owner_user_id from public.workspaces where id = $1', [user])).toEqual(
    [{ owner_user_id: user }],
  );
});

test('the migrations apply as a role that is no superuser and owns nothing of auth, and nothing of the platform is made again', async () => {
  const rights = await project.migrating((db) =>
    db.query(
      `select current_user::text as name, rolsuper, pg_has_role('supabase_auth_admin', 'member') as is_auth_admin
         from pg_roles where rolname = current_user`,
    ),
  );
  expect(rights).toEqual([{ name: MIGRATOR, rolsuper: false, is_auth_admin: false }]);
  expect(await project.db.query('select kind, name from agentd.platform_objects')).toEqual([]);
  // agentd_owner could not do the definer functions' work, so nothing is handed to it
  expect(
    await column(
      project.db.pool,
      `select distinct c.relowner::regrole::text from pg_class c where c.relkind in ('r', 'v')
          and c.relnamespace in ('agentd'::regnamespace, 'public'::regnamespace)`,
    ),
  ).toEqual([MIGRATOR]);
  expect(await project.db.query(`select to_regclass('auth.users')::text as users`)).toEqual([
    { users: 'auth.users' },
  ]);
});

test('the migrations change nothing of Supabase’s but two triggers and what they grant to their own roles', async () => {
  const after = new Set(await supabaseFacts(project.db));
  const lost = before.filter(
    (fact) => !after.has(fact) && !/^(schema public|schema extensions|database)/.test(fact),
  );
  expect(lost.filter((fact) => !fact.startsWith('relation auth.users'))).toEqual([]);
  const [users] = await project.db.query<{ others: string[] }>(
    `select array_agg(distinct a.grantee::regrole::text) as others
       from pg_class c, aclexplode(c.relacl) a
      where c.oid = 'auth.users'::regclass and a.grantor = '${MIGRATOR}'::regrole`,
  );
  expect(users?.others.filter((role) => !role.startsWith('agentd_'))).toEqual([]);
  expect(
    await column(
      project.db.pool,
      `select tgname::text from pg_trigger where tgrelid = 'auth.users'::regclass and not tgisinternal order by 1`,
    ),
  ).toEqual(['zz_agentd_user_created', 'zz_agentd_user_deleted']);
});

test('users who were there before have a profile and a personal workspace, nameless ones too', async () => {
  expect(await homeOf(early)).toEqual(adas);
  expect(await homeOf(nameless)).toEqual({ ...adas, full_name: null, avatar_url: null });
});

test('a sign-up by Supabase Auth’s own role makes profile and workspace', async () => {
  const id = randomUUID();
  await signUpAt(project, id);
  expect(await homeOf(id)).toEqual(adas);
  expect(await failures(id)).toEqual([]);
});

test('an application that makes the profile itself is never refused because agentd was first', async () => {
  const [bySql, byUser, twice, used] = [randomUUID(), randomUUID(), randomUUID(), randomUUID()];
  for (const id of [bySql, byUser, twice, used]) await signUpAt(project, id);
  const write = (id: string) => (client: pg.ClientBase) =>
    outcome(client as pg.PoolClient, `insert into public.profiles (id, full_name) values ($1, 'Own')`, [id]);
  expect(await request('service_role', {}, write(bySql))).toBe('ok');
  expect(await asUser(byUser, write(byUser))).toBe('ok');
  expect(await homeOf(bySql)).toEqual({ ...adas, full_name: 'Own', avatar_url: null });
  expect(await homeOf(byUser)).toEqual({ ...adas, full_name: 'Own', avatar_url: null });
  // what somebody has written is replaced by nobody
  expect(await request('service_role', {}, write(bySql)).catch((error) => error.code)).toBe(uniqueViolation);
  await asUser(twice, (client) =>
    client.query(`update public.profiles set username = 'x' where id = $1`, [twice]),
  );
  expect(await asUser(twice, write(twice)).catch((error) => error.code)).toBe(uniqueViolation);
  // nobody replaces another's
  expect(await asUser(twice, write(used)).catch((error) => error.code)).toBe(denied);
  expect(await homeOf(used)).toEqual(adas);
  // nor does a row go with what an application has pointed at it
  await project.db.query(
    'create table public.posts (author uuid references public.profiles (id) on delete cascade)',
  );
  await project.db.query('insert into public.posts (author) values ($1)', [used]);
  expect(await request('service_role', {}, write(used)).catch((error) => error.code)).toBe(uniqueViolation);
  expect(await project.db.query('select author from public.posts')).toEqual([{ author: used }]);
  await project.db.query('drop table public.posts');
});

test('an application’s own trigger on auth.users comes first, and its profile stays', async () => {
  await project.migrating((db) =>
    db.query(`
      create function public.handle_new_user() returns trigger language plpgsql security definer set search_path = '' as $$
      begin
        insert into public.profiles (id, full_name) values (new.id, 'By the application');
        return new;
      end $$;
      create trigger on_auth_user_created after insert on auth.users
        for each row execute function public.handle_new_user()`),
  );
  try {
    const id = randomUUID();
    await signUpAt(project, id);
    expect(await homeOf(id)).toMatchObject({ full_name: 'By the application', workspaces: 1 });
    expect(await failures(id)).toEqual([]);
  } finally {
    await project.db.query('drop function public.handle_new_user() cascade');
  }
});

test('a sign-up never fails because of agentd: what fails is written down, and the rest is made', async () => {
  const [one, other] = [randomUUID(), randomUUID()];
  await project.db.query(
    `alter table public.profiles add constraint broken check (full_name <> 'No Profile')`,
  );
  await project.db.query(
    `alter table public.workspaces add constraint broken check (name <> 'Personal') not valid`,
  );
  try {
    await signUpAt(project, one, 'No Profile');
    expect(await failures(one)).toEqual([{ error_code: '23514' }, { error_code: '23514' }]);
    await project.db.query('alter table public.workspaces drop constraint broken');
    await signUpAt(project, other, 'No Profile');
    expect(await failures(other)).toEqual([{ error_code: '23514' }]);
  } finally {
    await project.db.query('alter table public.workspaces drop constraint if exists broken');
    await project.db.query('alter table public.profiles drop constraint broken');
  }
  expect(await project.db.query('select 1 from auth.users where id = any ($1)', [[one, other]])).toHaveLength(
    2,
  );
  expect(await value(project.db.pool, 'select agentd.ensure_personal_workspace($1)', [one])).toBeTruthy();
});

test('Supabase Auth deletes a user with all that is his, and a workspace that others use stays', async () => {
  const [id, owner] = [randomUUID(), randomUUID()];
  await signUpAt(project, id);
  await signUpAt(project, owner);
  await insert(project.db, 'public.agents', { user_id: id, name: 'Ada' });
  const shared = await insert(project.db, 'public.workspaces', { name: 'Shared', owner_user_id: owner });
  const [manager, viewer] = [randomUUID(), randomUUID()];
  for (const member of [manager, viewer]) await signUpAt(project, member);
  await project.db.query(
    `insert into public.workspace_members (workspace_id, user_id, role) values ($1, $2, 'manager'), ($1, $3, 'viewer')`,
    [shared, manager, viewer],
  );
  const remove = (user: string): Promise<string> =>
    project
      .as('supabase_auth_admin', (client) => client.query('delete from auth.users where id = $1', [user]))
      .then(
        () => 'ok',
        (error: { code: string }) => error.code,
      );
  expect(await remove(id)).toBe('ok');
  const ownerOf = () =>
    value(project.db.pool, 'select owner_user_id from public.workspaces where id = $1', [shared]);
  expect(await remove(owner)).toBe('ok');
  expect(await ownerOf()).toBe(manager);
  // a viewer inherits nothing
  expect(await remove(manager)).toBe('ok');
  expect(await ownerOf()).toBe('00000000-0000-4000-8000-0000000a6e7d');
  const [left] = await project.db.query(
    `select (select count(*) from public.profiles where id = $1) as profiles,
            (select count(*) from public.workspaces where owner_user_id = $1) as workspaces,
            (select count(*) from public.agents where user_id = $1) as agents`,
    [id],
  );
  expect(left).toEqual({ profiles: 0, workspaces: 0, agents: 0 });
});

test('a row without an owner gets the system’s user, in a table of users that row security hides', async () => {
  const id = await request('service_role', {}, (client) =>
    value<string>(
      client as pg.PoolClient,
      `insert into public.agents (name) values ('Nobody’s') returning user_id`,
    ),
  );
  expect(
    await project.db.query('select email, raw_app_meta_data from auth.users where id = $1', [id]),
  ).toEqual([{ email: 'system@agentd.invalid', raw_app_meta_data: { agentd: 'system' } }]);
});

test('service_role stores a secret in Supabase’s Vault and opens it; users can do neither', async () => {
  const secret = `s3cret-${randomUUID()}`;
  const id = await request('service_role', {}, (client) =>
    value<string>(client as pg.PoolClient, `select public.create_vault_secret($1, $2, 'a key')`, [
      secret,
      `key-${randomUUID()}`,
    ]),
  );
  const stored = await project.db.query<{ secret: string; description: string }>(
    'select secret, description from vault.secrets where id = $1',
    [id],
  );
  expect(stored).toEqual([{ secret: Buffer.from(secret).toString('base64'), description: 'a key' }]);
  const open = (client: pg.ClientBase): Promise<string | null | undefined> =>
    value(client as pg.PoolClient, 'select public.vault_decrypt($1)', [id]);
  expect(await request('service_role', {}, open)).toBe(secret);
  for (const role of ['authenticated', 'anon'] as const) {
    expect(await request(role, { sub: early }, open).catch((error) => error.code)).toBe(denied);
    expect(
      await request(role, { sub: early }, (client) =>
        client.query(`select public.create_vault_secret('x', 'y', 'z')`),
      ).catch((error) => error.code),
    ).toBe(denied);
  }
});

test('row security goes by the claims of the token', async () => {
  const [ann, bob] = [randomUUID(), randomUUID()];
  await signUpAt(project, ann);
  await signUpAt(project, bob);
  const made = await asUser(ann, (client) =>
    client.query(`insert into public.agents (name) values ('Ann’s') returning user_id, workspace_id`),
  );
  expect(made.rows[0].user_id).toBe(ann);
  const seen = async (id: string): Promise<string[]> =>
    asUser(id, (client) => column(client as pg.PoolClient, 'select name from public.agents order by name'));
  expect(await seen(ann)).toEqual(['Ann’s']);
  expect(await seen(bob)).toEqual([]);
  expect(
    await asUser(bob, (client) =>
      client.query(`insert into public.agents (name, workspace_id) values ('x', $1)`, [
        made.rows[0].workspace_id,
      ]),
    ).catch((error) => error.code),
  ).toBe(denied);
});

test('anon has nothing of agentd’s, whatever Supabase’s default privileges give it', async () => {
  const ours = `n.nspname not like 'pg\\_%'
    and n.nspname not in ('information_schema', 'auth', 'vault', 'storage', 'extensions', 'graphql_public', 'realtime')`;
  const reachable = await column(
    project.db.pool,
    `select format('%s %s.%s', c.relkind, n.nspname, c.relname)
       from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where ${ours} and has_schema_privilege('anon', n.oid, 'usage')
        and case when c.relkind = 'S' then has_sequence_privilege('anon', c.oid, 'usage, select, update')
                 when c.relkind in ('r', 'p', 'v', 'm') then
                   has_table_privilege('anon', c.oid, 'select, insert, update, delete, truncate, references, trigger')
                   or has_any_column_privilege('anon', c.oid, 'select, insert, update, references')
                 else false end
     union all
     select format('function %s', p.oid::regprocedure)
       from pg_proc p join pg_namespace n on n.oid = p.pronamespace
      where ${ours} and has_schema_privilege('anon', n.oid, 'usage') and has_function_privilege('anon', p.oid, 'execute')
     order by 1`,
  );
  expect(reachable).toEqual([]);
  // and what users get is what the rules say: no TRUNCATE, which row security does not stop
  const truncatable = await column(
    project.db.pool,
    `select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where ${ours} and c.relkind in ('r', 'p', 'v') and has_table_privilege('authenticated', c.oid, 'truncate, references, trigger')
     union all
     select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where n.nspname = 'public'
        and case when c.relkind = 'S' then has_sequence_privilege('authenticated', c.oid, 'usage, select, update') else false end`,
  );
  expect(truncatable).toEqual([]);
});

test('vectors are stored, found and removed with pgvector in schema extensions', async () => {
  const workspace = await value<string>(
    project.db.pool,
    'select id from public.workspaces where owner_user_id = $1 and is_personal',
    [early],
  );
  const source = await insert(project.db, 'public.knowledge_sources', {
    workspace_id: workspace,
    name: 'Facts',
    type: 'TEXT',
    content: 'x',
  });
  const found = await request('service_role', {}, async (client) => {
    await client.query(`set local search_path = ''`);
    await client.query(
      `insert into public.knowledge_chunks (source_id, workspace_id, content, chunk_index, embedding)
       values ($1, $2, 'near', 0, '[1,0,0]'), ($1, $2, 'far', 1, '[0,1,0]')`,
      [source, workspace],
    );
    return column(
      client as pg.PoolClient,
      `select content from public.knowledge_chunks where source_id = $1
        order by embedding operator(extensions.<=>) '[0.9,0.1,0]'::extensions.vector`,
      [source],
    );
  });
  expect(found).toEqual(['near', 'far']);
  const types = await column(
    project.db.pool,
    `select distinct t.typnamespace::regnamespace::text from pg_attribute a join pg_type t on t.oid = a.atttypid
      where t.typname = 'vector' and a.attrelid in ('public.knowledge_chunks'::regclass, 'public.chat_messages'::regclass)`,
  );
  expect(types).toEqual(['extensions']);
});

test('a daemon logs in as a worker, runs a queued run there and complains of nothing', async () => {
  const login = `agentd_test_login_${randomUUID().slice(0, 8)}`;
  const model = await startModelServer();
  await project.migrating((db) =>
    db.query(`create role ${login} login password 'supabase' in role agentd_worker`),
  );
  // the embedded database lets nobody log in: there the daemon is the superuser
  const worker = openDatabase({ url: project.urlOf(login), embedded: !onServer, max: 2 });
  try {
    const [workspace] = await project.db.query<{ id: string }>(
      'select id from public.workspaces where owner_user_id = $1 and is_personal',
      [early],
    );
    const owner = { userId: early, workspaceId: workspace?.id ?? '' };
    const agentId = await insert(project.db, 'public.agents', {
      workspace_id: owner.workspaceId,
      user_id: early,
      name: 'Ada',
      instructions: 'Answer briefly.',
      model: MODEL,
    });
    await using daemon = await testDaemon(worker, model);
    const run = await waitForRun(project.db, await startTask(project.db, { ...owner, agentId }, 'Say yes.'));
    expect(run).toMatchObject({ status: 'completed', reason_code: null });
    await until('the worker was seen a second time', async () => {
      const rows = await project.db.query(
        `select 1 from agentd.workers where id = $1 and last_seen_at > started_at + interval '1 second'`,
        [daemon.workerId],
      );
      return rows.length > 0;
    });
    expect(daemon.log.filter((line) => /"level":"(warn|error|fatal)"|permission denied/.test(line))).toEqual(
      [],
    );
  } finally {
    await worker.close();
    await model.close();
    await project.db.query(`drop role ${login}`);
  }
});

test.runIf(onServer)('doctor finds nothing wrong with the database for a worker’s login', async () => {
  const login = `agentd_test_login_${randomUUID().slice(0, 8)}`;
  await project.migrating((db) =>
    db.query(`create role ${login} login password 'supabase' in role agentd_worker`),
  );
  try {
    const { checks } = json<{ checks: { name: string; status: string; message: string }[] }>(
      await agentd(['doctor', '--json'], { DATABASE_URL: project.urlOf(login) }),
    );
    const asked = [
      'server',
      'pgvector',
      'migrations',
      'rights',

      'queue schema',
      'enqueue',
      'notifications',
      'clock',
    ];
    const answers = checks.filter(({ name }) => asked.includes(name));
    expect(answers.map(({ name }) => name).sort()).toEqual(asked.sort());
    expect(answers.filter(({ status }) => status !== 'ok')).toEqual([]);
  } finally {
    await project.db.query(`drop role ${login}`);
  }
});

describe('down with all and queue', () => {
  test('leaves Supabase’s objects, rights and users as they were before', async () => {
    const users = await project.db.query('select * from auth.users order by id');
    expect(users.length).toBeGreaterThan(5);
    await project.migrating((db) => migrateDown(db, { all: true, queue: true }));
    expect(await supabaseFacts(project.db)).toEqual(before);
    expect(await project.db.query('select * from auth.users order by id')).toEqual(users);
  });

  test('and up again works as the first time', async () => {
    await project.migrating((db) => migrateUp(db, queues));
    const pending = (await migrationStatus(project.db)).filter((migration) => migration.appliedAt === null);
    expect(pending).toEqual([]);
    expect(await homeOf(early)).toEqual(adas);
  });
});

test('a project of before 2025, whose role is a member of supabase_auth_admin, is served as well', async () => {
  const older = await supabaseProject();
  try {
    await older.db.query(`grant supabase_auth_admin, supabase_storage_admin to ${MIGRATOR}`);
    const then = await supabaseFacts(older.db);
    await older.migrating((db) => migrateUp(db, queues));
    const id = randomUUID();
    await signUpAt(older, id);
    expect(
      await older.db.query(
        'select 1 from public.profiles p join public.workspaces w on w.id = p.workspace_id where p.id = $1',
        [id],
      ),
    ).toHaveLength(1);
    // row security of auth.users would hide it from any role but an owner or one that bypasses it
    expect(await value(older.db.pool, 'select agentd.system_user_id()')).toBeTruthy();
    await older.migrating((db) => migrateDown(db, { all: true, queue: true }));
    expect(await supabaseFacts(older.db)).toEqual(then);
  } finally {
    await older.db.query(`revoke supabase_auth_admin, supabase_storage_admin from ${MIGRATOR}`);
    await older.dispose();
  }
}, 120_000);
