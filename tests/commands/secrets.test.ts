/** `agentd secrets`: what is stored, sealed anew while daemons work, by as many as like, and stopped wherever. */
import { spawn } from 'node:child_process';
import { createCipheriv, randomBytes, randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { type SecretDeps, type SecretStatus, sealAnew, secretStatus } from '../../src/db/secret-rotation.ts';
import { columnSecretStore, parseKeyRing, sealedUnder, secretForm } from '../../src/secrets.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, type Platform } from '../support/platform.ts';
import { until } from '../support/runs.ts';
import { agentd, json } from './support.ts';

const OLD = randomBytes(32).toString('hex');
const NEW = randomBytes(32).toString('hex');
const GONE = randomBytes(32).toString('hex');
const OLD_RING = { ENCRYPTION_KEYS: `old:${OLD}` };
const BOTH = { ENCRYPTION_KEYS: `new:${NEW},old:${OLD}` };
const SECRET = 'sk-canary-';

let db: TestDatabase;
let owner: Platform;
beforeAll(async () => {
  db = await testDatabase();
  owner = await makePlatform(db);
});
afterAll(() => db?.dispose());
beforeEach(async () => {
  await db.query('truncate public.api_connections, public.workspace_llm_config, public.datastores cascade');
  await db.query('truncate agentd.audit_log');
});

function deps(env: { ENCRYPTION_KEYS: string }): SecretDeps {
  const ring = parseKeyRing(env);
  return { db, ring, columns: columnSecretStore(ring) };
}

const transaction: Parameters<typeof sealAnew>[1]['transaction'] = (work) => db.transaction(work);

/** Keys of the workspace, each sealed as `seal` has it. */
async function plant(count: number, seal: (plain: string, row: string) => string): Promise<string[]> {
  const rows = Array.from({ length: count }, (_, index) => ({
    id: randomUUID(),
    plain: `${SECRET}${index}`,
  }));
  await db.query(
    `insert into public.api_connections (id, workspace_id, user_id, name, service, api_key)
     select x.id, $1, $2, 'A', 'openai', x.key from unnest($3::uuid[], $4::text[]) as x (id, key)`,
    [owner.workspaceId, owner.userId, rows.map(({ id }) => id), rows.map(({ id, plain }) => seal(plain, id))],
  );
  return rows.map(({ id }) => id);
}

const contextOf = (row: string) => ({
  table: 'public.api_connections',
  row,
  column: 'api_key',
  workspace: owner.workspaceId,
});
const sealedWith =
  (env: { ENCRYPTION_KEYS: string }) =>
  (plain: string, row: string): string =>
    deps(env).columns.seal(plain, contextOf(row));

function reference(plain: string): string {
  const iv = randomBytes(16);
  const cipher = createCipheriv('aes-256-gcm', Buffer.from(OLD, 'hex'), iv);
  const text = Buffer.concat([cipher.update(plain, 'utf8'), cipher.final()]);
  return [iv, cipher.getAuthTag(), text].map((part) => part.toString('hex')).join(':');
}

const stored = (): Promise<{ id: string; api_key: string }[]> =>
  db.query('select id, api_key from public.api_connections order by id');

/** How many are under the new key, all of which must open to one of what was planted. */
async function underNew(): Promise<number> {
  const { columns } = deps(BOTH);
  const rows = await stored();
  const opened = rows.map(({ id, api_key }) => columns.open(api_key, contextOf(id)));
  expect(new Set(opened).size).toBe(rows.length);
  for (const plain of opened) expect(plain).toMatch(/^sk-canary-\d+$/);
  return rows.filter(({ api_key }) => sealedUnder(api_key) === 'new').length;
}

test('status counts each form in each column, and says what does not open', async () => {
  await plant(3, sealedWith(OLD_RING));
  await plant(2, (plain) => reference(`${plain}r`));
  await plant(1, (plain) => `${plain}p`);
  await plant(1, sealedWith({ ENCRYPTION_KEYS: `gone:${GONE}` }));
  const datastore = await insert(db, 'public.datastores', {
    workspace_id: owner.workspaceId,
    name: 'D',
    type: 'pinecone',
    config: JSON.stringify({ api_key: 'pc-plain', index: 'x' }),
  });
  const vault = randomUUID();
  const llm = await insert(db, 'public.workspace_llm_config', {
    workspace_id: owner.workspaceId,
    provider: 'openai',
    vault_api_key_id: vault,
  });
  const env = { DATABASE_URL: db.url, ...BOTH };
  const found = json<SecretStatus>(await agentd(['secrets', 'status', '--json'], env));
  expect(found.keys).toEqual(['new', 'old']);
  const at = (name: string) => found.places.find(({ place }) => place === name);
  expect(at('public.api_connections.api_key')).toMatchObject({
    sealed: { old: 3, gone: 1 },
    reference: 2,
    plain: 1,
    vault: 0,
    unreadable: 1,
  });
  expect(at('public.datastores.config.api_key')).toMatchObject({ plain: 1 });
  expect(at('public.workspace_llm_config.vault_api_key_id')).toMatchObject({ vault: 1, unreadable: 1 });
  expect(found.unreadable.map(({ id, code }) => [id, code])).toContainEqual([llm, 'vault_unavailable']);
  expect(found.unreadable.map(({ code }) => code).sort()).toEqual(['unknown_key', 'vault_unavailable']);

  const printed = await agentd(['secrets', 'status'], env);
  expect(printed.stdout).toMatch(/Keys: new \(seals\), old/);
  expect(printed.stdout).toMatch(
    /public\.api_connections\.api_key +(gone 1, old 3|old 3, gone 1) +2 +1 +0 +1/,
  );
  expect(printed.stdout + printed.stderr).not.toContain(SECRET);
  expect(datastore).toBeTruthy();
});

test('rotate seals everything sealed under the first key, leaves plain text, and lists what does not open', async () => {
  await plant(450, sealedWith(OLD_RING));
  const [foreign] = await plant(1, sealedWith({ ENCRYPTION_KEYS: `gone:${GONE}` }));
  const [plainRow] = await plant(1, () => 'sk-plain');
  const [asReference] = await plant(1, () => reference('sk-canary-900'));
  const env = { DATABASE_URL: db.url, ...BOTH };
  const before = await stored();

  const dry = json<{ done: boolean; places: { place: string; changed: number }[] }>(
    await agentd(['secrets', 'rotate', '--dry-run', '--json'], env),
  );
  expect(dry.done).toBe(false);
  expect(dry.places.find(({ place }) => place === 'public.api_connections.api_key')).toMatchObject({
    changed: 451,
    unreadable: 1,
  });
  expect(await stored()).toEqual(before);

  const done = await agentd(['secrets', 'rotate'], env);
  expect(done.code).toBe(1);
  expect(done.stdout).toMatch(/public\.api_connections\.api_key +451 +1 +0/);
  expect(done.stdout).toContain(foreign);
  expect(done.stderr).toContain('were left as they are');
  expect(done.stdout + done.stderr).not.toContain(SECRET);
  const values = new Map((await stored()).map(({ id, api_key }) => [id, api_key]));
  expect(sealedUnder(values.get(foreign as string) ?? '')).toBe('gone');
  expect(values.get(plainRow as string)).toBe('sk-plain');
  expect(sealedUnder(values.get(asReference as string) ?? '')).toBe('new');
  await db.query('delete from public.api_connections where id = any ($1)', [[foreign, plainRow]]);
  expect(await underNew()).toBe(451);

  const audit = await db.query<{
    action: string;
    object_id: string;
    details: { changed: number; operator: string };
  }>('select action, object_id, details from agentd.audit_log order by id');
  expect(audit.reduce((sum, { details }) => sum + details.changed, 0)).toBe(451);
  expect(audit[0]).toMatchObject({
    action: 'rotate_secrets',
    object_id: 'public.api_connections.api_key',
    details: { operator: expect.stringContaining('@') },
  });
  expect(JSON.stringify(audit)).not.toMatch(/v1:|sk-/);

  const again = await agentd(['secrets', 'rotate'], env);
  expect(again.code).toBe(0);
  expect(again.stdout).toContain('Everything is sealed by the first key.');
});

test('one that dies in the middle loses nothing, and the next goes on where it was', async () => {
  await plant(700, sealedWith(OLD_RING));
  let batches = 0;
  const dying: typeof transaction = (work) =>
    db.transaction(async (tx) => {
      const result = await work(tx);
      // after its writes, before its commit
      if (++batches === 3) throw new Error('killed');
      return result;
    });
  await expect(sealAnew(deps(BOTH), { work: 'rotate', isDryRun: false, transaction: dying })).rejects.toThrow(
    'killed',
  );
  expect(await underNew()).toBe(400);
  const report = await sealAnew(deps(BOTH), { work: 'rotate', isDryRun: false, transaction });
  expect(report.places.find(({ place }) => place === 'public.api_connections.api_key')?.changed).toBe(300);
  expect(await underNew()).toBe(700);
});

test.skipIf(!onServer)(
  'server-only: a process that is killed between its batches loses nothing',
  async () => {
    const ids = (await plant(600, sealedWith(OLD_RING))).sort();
    const LOCK = 5_501_234;
    // its third batch waits for the test
    await db.query(`create function public.wait_for_test() returns trigger language plpgsql as $$
    begin
      if new.id = '${ids[450]}' then perform pg_advisory_xact_lock(${LOCK}); end if;
      return new;
    end $$`);
    await db.query(
      'create trigger wait_for_test before update on public.api_connections for each row execute function public.wait_for_test()',
    );
    await db.transaction(async (tx) => {
      await tx.query(`select pg_advisory_xact_lock(${LOCK})`);
      const child = spawn(process.execPath, ['src/cli.ts', 'secrets', 'rotate'], {
        env: { PATH: process.env.PATH, DATABASE_URL: db.url, ...BOTH },
        stdio: 'ignore',
      });
      const gone = once(child, 'exit');
      await until('it waits', async () => {
        const [row] = await db.query<{ waits: boolean }>(
          `select exists (select 1 from pg_locks where locktype = 'advisory' and objid = ${LOCK} and not granted) as waits`,
        );
        return row?.waits === true;
      });
      child.kill('SIGKILL');
      expect((await gone)[1]).toBe('SIGKILL');
    });
    await db.query('drop trigger wait_for_test on public.api_connections');
    await db.query('drop function public.wait_for_test()');
    await until('its connection is gone', async () => {
      const [row] = await db.query<{ others: number }>(
        `select count(*)::int as others from pg_stat_activity
        where datname = current_database() and application_name = 'agentd-cli'`,
      );
      return row?.others === 0;
    });
    const half = await underNew();
    expect(half).toBeGreaterThanOrEqual(400);
    expect((await agentd(['secrets', 'rotate'], { DATABASE_URL: db.url, ...BOTH })).code).toBe(0);
    expect(await underNew()).toBe(600);
  },
);

test.skipIf(!onServer)('server-only: two at once change each value once', async () => {
  await plant(1000, sealedWith(OLD_RING));
  const reports = await Promise.all(
    [1, 2].map(() => sealAnew(deps(BOTH), { work: 'rotate', isDryRun: false, transaction })),
  );
  const changed = reports.flatMap(({ places }) => places).reduce((sum, place) => sum + place.changed, 0);
  expect(changed).toBe(1000);
  expect(reports.flatMap(({ places }) => places).reduce((sum, { busy }) => sum + busy, 0)).toBe(0);
  expect(await underNew()).toBe(1000);
  const [audited] = await db.query<{ sum: number }>(
    `select sum((details ->> 'changed')::int)::int as sum from agentd.audit_log`,
  );
  expect(audited?.sum).toBe(1000);
});

test('a value that an application writes meanwhile stays', async () => {
  const [id] = await plant(1, sealedWith(OLD_RING));
  let isWritten = false;
  const raced: typeof transaction = async (work) => {
    // after it was read
    if (!isWritten)
      await db.query('update public.api_connections set api_key = $2 where id = $1', [
        id,
        sealedWith(OLD_RING)('sk-canary-77', id as string),
      ]);
    isWritten = true;
    return db.transaction(work);
  };
  await sealAnew(deps(BOTH), { work: 'rotate', isDryRun: false, transaction: raced });
  const [row] = await stored();
  expect(sealedUnder(row?.api_key ?? '')).toBe('new');
  expect(deps(BOTH).columns.open(row?.api_key ?? '', contextOf(id as string))).toBe('sk-canary-77');
});

test.skipIf(!onServer)(
  'server-only: a row that somebody holds is passed over and said to be held',
  async () => {
    const ids = await plant(5, sealedWith(OLD_RING));
    await db.transaction(async (tx) => {
      await tx.query('select from public.api_connections where id = $1 for update', [ids[0]]);
      const report = await sealAnew(deps(BOTH), { work: 'rotate', isDryRun: false, transaction });
      expect(report.places.find(({ place }) => place === 'public.api_connections.api_key')).toMatchObject({
        changed: 4,
        busy: 1,
      });
    });
  },
);

test('seal shows first, then seals what is plain in its own place, entries of JSON too', async () => {
  const [id] = await plant(1, () => 'sk-canary-1');
  const datastore = await insert(db, 'public.datastores', {
    workspace_id: owner.workspaceId,
    name: 'D',
    type: 'pinecone',
    config: JSON.stringify({ api_key: ' pc-plain ', index: 'x' }),
  });
  const [damaged] = await plant(1, () => 'v1:cut');
  const env = { DATABASE_URL: db.url, ...BOTH };
  const before = await stored();
  const preview = await agentd(['secrets', 'seal'], env);
  expect(preview.code).toBe(0);
  expect(preview.stdout).toContain('Nothing was changed. To do it, run it with --yes.');
  expect(await stored()).toEqual(before);

  const done = await agentd(['secrets', 'seal', '--yes'], env);
  expect(done.stdout).toContain(damaged);
  const { columns } = deps(BOTH);
  const rows = new Map((await stored()).map((row) => [row.id, row.api_key]));
  expect(columns.open(rows.get(id as string) ?? '', contextOf(id as string))).toBe('sk-canary-1');
  expect(rows.get(damaged as string)).toBe('v1:cut');
  const [config] = await db.query<{ config: { api_key: string; index: string } }>(
    'select config from public.datastores where id = $1',
    [datastore],
  );
  expect(secretForm(config?.config.api_key ?? '')).toBe('v1');
  expect(config?.config.index).toBe('x');
  expect(
    columns.open(config?.config.api_key ?? '', {
      table: 'public.datastores',
      row: datastore,
      column: 'config',
      workspace: owner.workspaceId,
    }),
  ).toBe('pc-plain');
  const [form] = await db.query('select secret_form from public.api_connections where id = $1', [id]);
  expect(form).toEqual({ secret_form: 'v1' });
});

test('a token that is sealed anew is no new token: its version and its time of refresh stay', async () => {
  const provider = await insert(db, 'public.service_providers', {
    name: randomUUID(),
    display_name: 'P',
    provider_type: 'oauth',
  });
  const table = 'public.user_integration_credentials';
  const id = await insert(db, table, {
    workspace_id: owner.workspaceId,
    user_id: owner.userId,
    service_provider_id: provider,
    credential_type: 'oauth',
    token_expires_at: new Date(Date.now() + 3_600_000),
  });
  const context = { table, row: id, column: 'vault_refresh_token_id', workspace: owner.workspaceId };
  await db.query(`update ${table} set vault_refresh_token_id = $2 where id = $1`, [
    id,
    deps(OLD_RING).columns.seal('rt-1', context),
  ]);
  const look = async () => {
    const [row] = await db.query<{ token: string; token_version: number; next_refresh_at: Date }>(
      `select vault_refresh_token_id as token, token_version, next_refresh_at from ${table} where id = $1`,
      [id],
    );
    return row as NonNullable<typeof row>;
  };
  const before = await look();
  expect(before.next_refresh_at).toBeInstanceOf(Date);
  await sealAnew(deps(BOTH), { work: 'rotate', isDryRun: false, transaction });
  const after = await look();
  expect(sealedUnder(after.token)).toBe('new');
  expect(deps(BOTH).columns.open(after.token, context)).toBe('rt-1');
  expect({ ...after, token: '' }).toEqual({ ...before, token: '' });
  await db.query(`delete from ${table} where id = $1`, [id]);
});

test('in every other place too a secret is sealed for where the worker opens it', async () => {
  const { workspaceId, agentId, userId } = owner;
  const provider = await insert(db, 'public.service_providers', {
    name: randomUUID(),
    display_name: 'P',
    provider_type: 'oauth',
    configuration_metadata: JSON.stringify({ client_id: 'c', client_secret: 'sk-canary-provider' }),
  });
  const credential = await insert(db, 'public.user_integration_credentials', {
    workspace_id: workspaceId,
    user_id: userId,
    service_provider_id: provider,
    credential_type: 'oauth',
    connection_metadata: JSON.stringify({ client_secret: 'sk-canary-client' }),
  });
  const connection = await insert(db, 'public.agent_mcp_connections', {
    agent_id: agentId,
    connection_name: 'C',
    server_url: 'https://mcp.test',
    auth_secret: 'sk-canary-mcp',
  });
  const rescued = await insert(db, 'agentd.rescued_tokens', {
    credential_id: credential,
    workspace_id: workspaceId,
    from_version: 1,
    access_token: 'sk-canary-rescued',
  });
  const datastore = randomUUID();
  const retired = await insert(db, 'agentd.vector_stores', {
    datastore_id: datastore,
    workspace_id: workspaceId,
    retired_at: new Date(),
    config: JSON.stringify({ apiKey: 'sk-canary-retired', index: 'x' }),
  });
  await sealAnew(deps(OLD_RING), { work: 'seal', isDryRun: false, transaction });
  await sealAnew(deps(BOTH), { work: 'rotate', isDryRun: false, transaction });
  const opened = async (
    sql: string,
    id: string,
    table: string,
    row: string,
    column: string,
    workspace: string | null,
  ) => {
    const [found] = await db.query<{ value: string }>(
      `select ${sql} as value from ${table === 'public.datastores' ? 'agentd.vector_stores' : table} where id = $1`,
      [id],
    );
    expect(sealedUnder(found?.value ?? '')).toBe('new');
    return deps(BOTH).columns.open(found?.value ?? '', { table, row, column, workspace });
  };
  expect([
    await opened(
      `configuration_metadata ->> 'client_secret'`,
      provider,
      'public.service_providers',
      provider,
      'configuration_metadata',
      null,
    ),
    await opened(
      `connection_metadata ->> 'client_secret'`,
      credential,
      'public.user_integration_credentials',
      credential,
      'connection_metadata',
      workspaceId,
    ),
    await opened(
      'auth_secret',
      connection,
      'public.agent_mcp_connections',
      connection,
      'auth_secret',
      workspaceId,
    ),
    await opened('access_token', rescued, 'agentd.rescued_tokens', rescued, 'access_token', workspaceId),
    await opened(`config ->> 'apiKey'`, retired, 'public.datastores', datastore, 'config', workspaceId),
  ]).toEqual(['provider', 'client', 'mcp', 'rescued', 'retired'].map((word) => `sk-canary-${word}`));
  await db.query('delete from agentd.vector_stores where id = $1', [retired]);
  await db.query('delete from public.user_integration_credentials where id = $1', [credential]);
  await db.query('delete from public.agent_mcp_connections where id = $1', [connection]);
  await db.query('delete from public.service_providers where id = $1', [provider]);
});

test('without a key nothing is begun, and the variable is named', async () => {
  await plant(1, () => 'sk-canary-1');
  for (const command of [['rotate'], ['seal', '--yes']]) {
    const { code, stderr } = await agentd(['secrets', ...command], { DATABASE_URL: db.url });
    expect(code).toBe(1);
    expect(stderr).toContain('ENCRYPTION_KEY');
  }
  expect(await secretStatus(deps({ ENCRYPTION_KEYS: '' }))).toMatchObject({ keys: [] });
});
