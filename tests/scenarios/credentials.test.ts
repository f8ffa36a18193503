/** OAuth credentials are refreshed before they expire, once each, by however many daemons, and no rotated token is lost in silence. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  type FaultServer,
  type OAuthServer,
  startFaultServer,
  startOAuthServer,
} from '../peers/oauth-provider.ts';
import {
  credential,
  credentialEnv,
  credentialThat,
  makeCredential,
  makeProvider,
  openTokens,
  outcomes,
} from '../support/credentials.ts';
import { startDaemonProcess, type TestDaemon, testDaemon } from '../support/daemon.ts';
import { onServer, shiftDatabaseClock, type TestDatabase, testDatabase } from '../support/database.ts';
import { makePlatform, type Platform } from '../support/platform.ts';
import { until } from '../support/runs.ts';

const MODEL = { url: 'http://127.0.0.1:9', apiKey: 'none' };
let db: TestDatabase;
let server: OAuthServer;
let platform: Platform;
let provider: string;
let daemon: TestDaemon;

beforeAll(async () => {
  db = await testDatabase({ max: 8 });
  server = await startOAuthServer();
  platform = await makePlatform(db);
  provider = await makeProvider(db, server.tokenEndpoint);
  daemon = await testDaemon(db, MODEL, { env: credentialEnv(server.port) });
});
afterAll(async () => {
  await daemon?.stop();
  await server?.close();
  await db?.dispose();
});

describe('a daemon', () => {
  test('refreshes a credential that is due, seals what it got and plans the next time before its end', async () => {
    const token = await server.grant();
    const id = await makeCredential(db, platform, provider, { vault_refresh_token_id: token });
    const row = await credentialThat(db, id, 'is refreshed', (c) => c.token_version > 1);
    expect(row).toMatchObject({
      connection_status: 'active',
      reason_code: null,
      refresh_started_at: null,
      job_id: null,
    });
    expect(row.vault_access_token_id).toMatch(/^v1:/);
    expect(row.vault_refresh_token_id).toMatch(/^v1:/);
    const tokens = await openTokens(db, id);
    expect(tokens.refresh).not.toBe(token);
    const ends = row.token_expires_at?.getTime() ?? 0;
    expect(Math.abs(ends - Date.now() - 3_600_000)).toBeLessThan(60_000);
    // a fifth of an hour and at most a tenth of that before the end
    const margin = (ends - (row.next_refresh_at?.getTime() ?? 0)) / 60_000;
    expect(margin).toBeGreaterThanOrEqual(11.9);
    expect(margin).toBeLessThanOrEqual(13.3);
    expect(await outcomes(db, id)).toEqual(['refreshed']);
    expect(daemon.log.join('\n')).not.toContain(token);
    expect(daemon.log.join('\n')).not.toContain(tokens.access);
    expect(daemon.log.join('\n')).not.toContain(tokens.refresh);
  });

  test('asks nobody twice: due in the same minute, each has one refresh by three daemons, and no family is revoked', {
    timeout: 120_000,
  }, async () => {
    const many = onServer ? 500 : 60;
    const before = server.succeeded();
    const others = onServer
      ? await Promise.all([1, 2].map(() => testDaemon(db, MODEL, { env: credentialEnv(server.port) })))
      : [];
    try {
      const owners = [platform, ...(await Promise.all(Array.from({ length: 9 }, () => makePlatform(db))))];
      const tokens = await Promise.all(Array.from({ length: many }, () => server.grant()));
      await db.query(
        `insert into public.user_integration_credentials (
           user_id, workspace_id, service_provider_id, credential_type, connection_name, vault_access_token_id, vault_refresh_token_id,
           token_expires_at)
         select x.user_id, x.workspace_id, $1, 'oauth', 'many', 'old', x.token, now() + random() * interval '1 minute'
           from jsonb_to_recordset($2::jsonb) as x (user_id uuid, workspace_id uuid, token text)`,
        [
          provider,
          JSON.stringify(
            tokens.map((token, i) => {
              const owner = owners[i % owners.length] as Platform;
              return { user_id: owner.userId, workspace_id: owner.workspaceId, token };
            }),
          ),
        ],
      );
      // their margin is seconds; that of tokens of an hour is minutes
      await db.query(
        `update public.user_integration_credentials set next_refresh_at = now() where connection_name = 'many' and token_version = 1 and not is_refresh_due`,
      );
      const state = () =>
        db.query<{ connection_status: string; token_version: number; count: number }>(
          `select connection_status, token_version, count(*)::integer as count from public.user_integration_credentials
            where connection_name = 'many' group by 1, 2 order by 2`,
        );
      await until(
        'all are refreshed',
        async () => (await state()).every((row) => row.token_version > 1),
        90_000,
      );
      expect(await state()).toEqual([{ connection_status: 'active', token_version: 2, count: many }]);
      expect(server.succeeded() - before).toBe(many);
      expect(server.revoked).toEqual([]);
      const asked = new Map<string, number>();
      for (const { form } of server.asked) {
        const token = form.get('refresh_token') ?? '';
        asked.set(token, (asked.get(token) ?? 0) + 1);
      }
      expect(tokens.filter((token) => asked.get(token) !== 1)).toEqual([]);
    } finally {
      await Promise.all(others.map((other) => other.stop()));
    }
  });

  test('leaves no token in the clear, in no table and no line of any log', async () => {
    const token = await server.grant();
    const id = await makeCredential(db, platform, provider, { vault_refresh_token_id: token });
    await credentialThat(db, id, 'is refreshed', (c) => c.token_version > 1);
    const tokens = await openTokens(db, id);
    const words = [token, tokens.access, tokens.refresh];
    const tables = await db.query<{ name: string }>(
      `select c.oid::regclass::text as name from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where c.relkind = 'r' and n.nspname in ('public', 'agentd', 'pgboss')`,
    );
    const found = await db.query(
      tables
        .map(({ name }) => `select '${name}' as name from ${name} t where t::text like any ($1::text[])`)
        .join(' union all '),
      [words.map((word) => `%${word}%`)],
    );
    expect(found, 'tables that hold a token').toEqual([]);
    for (const word of words) expect(daemon.log.join('')).not.toContain(word);
  });
});

test('what was due while no daemon was there is refreshed when one comes, an hour or a day late', async () => {
  await daemon.stop();
  const ids = await Promise.all(
    Array.from({ length: 5 }, async () =>
      makeCredential(db, platform, provider, {
        vault_refresh_token_id: await server.grant(),
        token_expires_at: new Date(Date.now() - 86_400_000),
      }),
    ),
  );
  daemon = await testDaemon(db, MODEL, { env: credentialEnv(server.port) });
  for (const id of ids) {
    expect(await credentialThat(db, id, 'is refreshed', (c) => c.token_version > 1)).toMatchObject({
      connection_status: 'active',
    });
  }
});

describe('with other providers', () => {
  let faults: FaultServer;
  let faulty: string;
  let own: TestDaemon;
  beforeAll(async () => {
    faults = await startFaultServer();
    faulty = await makeProvider(db, `${faults.url}/token`);
    own = await testDaemon(db, MODEL, { env: credentialEnv(server.port, faults.port) });
    await daemon.stop();
  });
  afterAll(async () => {
    await own?.stop();
    await faults?.close();
  });

  test('an outage of an hour costs no credential', { timeout: 60_000 }, async () => {
    faults.respond(() => ({ status: 503, body: 'away' }));
    const id = await makeCredential(db, platform, faulty, { token_expires_at: new Date(Date.now() + 5_000) });
    try {
      await credentialThat(db, id, 'has failed', (c) => c.refresh_failures === 1);
      // six times ten minutes
      for (let step = 1; step <= 6; step++) {
        await shiftDatabaseClock(db, step * 600_000 + step * 200_000);
        await credentialThat(db, id, `has failed ${step + 1} times`, (c) => c.refresh_failures >= step + 1);
      }
      expect(await credential(db, id)).toMatchObject({
        connection_status: 'active',
        reason_code: 'provider_unavailable',
        token_version: 1,
      });
      expect(
        await db.query('select reason_code from agentd.failing_credentials where credential_id = $1', [id]),
      ).toEqual([{ reason_code: 'provider_unavailable' }]);
      faults.respond(() => ({
        status: 200,
        body: { access_token: 'new', refresh_token: 'next', expires_in: 3600 },
      }));
      await shiftDatabaseClock(db, 7 * 900_000);
      expect(await credentialThat(db, id, 'is refreshed', (c) => c.token_version === 2)).toMatchObject({
        connection_status: 'active',
        refresh_failures: 0,
        reason_code: null,
      });
    } finally {
      await shiftDatabaseClock(db, 0);
      await db.query('delete from agentd.provider_states');
    }
  });

  test('one that hangs holds up nobody else’s credentials', { timeout: 60_000 }, async () => {
    faults.respond(() => 'hang');
    const strangers = await Promise.all(Array.from({ length: 6 }, () => makePlatform(db)));
    for (let i = 0; i < 48; i++) await makeCredential(db, strangers[i % 6] as Platform, faulty);
    await until('all ways to it are taken', async () => faults.asked.length >= 8);
    const began = Date.now();
    const id = await makeCredential(db, platform, provider, { vault_refresh_token_id: await server.grant() });
    await credentialThat(db, id, 'is refreshed', (c) => c.token_version > 1);
    expect(Date.now() - began).toBeLessThan(10_000);
    // freed, so that the next test finds a quiet house
    faults.respond(() => ({ status: 400, body: { error: 'invalid_grant' } }));
    await db.query('delete from public.user_integration_credentials where service_provider_id = $1', [
      faulty,
    ]);
  });
});

describe.skipIf(!onServer)('server-only: a worker that is killed', () => {
  test('between the answer and its commit is seen as a possible lost rotation, never passed over', {
    timeout: 90_000,
  }, async () => {
    const own = await testDatabase();
    const place = await makePlatform(own);
    const child = await startDaemonProcess(own, MODEL, credentialEnv(server.port));
    try {
      const at = await makeProvider(own, server.tokenEndpoint);
      const holder = await own.pool.connect();
      const id = await makeCredential(own, place, at, {
        vault_refresh_token_id: await server.grant(),
        token_expires_at: new Date(Date.now() + 3_600_000),
      });
      // once the provider has carried it out, the row is held: the answer arrives and can't be committed
      server.after = async () => {
        await holder.query('begin');
        await holder.query('select 1 from public.user_integration_credentials where id = $1 for update', [
          id,
        ]);
      };
      await own.query('select agentd.request_credential_refresh($1)', [id]);
      await until('the answer waits for its row', async () => {
        const rows = await own.query(
          `select 1 from pg_catalog.pg_stat_activity
            where datname = current_database() and wait_event_type = 'Lock' and query like '%for no key update%'`,
        );
        return rows.length > 0;
      });
      await child.kill();
      await holder.query('rollback');
      holder.release();
      server.after = null;
      expect(await credential(own, id)).toMatchObject({ token_version: 1, connection_status: 'active' });
      expect((await credential(own, id)).refresh_started_at).not.toBeNull();
      await shiftDatabaseClock(own, 120_000);
      const next = await testDaemon(own, MODEL, { env: credentialEnv(server.port) });
      try {
        const row = await credentialThat(own, id, 'is given up', (c) => c.connection_status !== 'active');
        expect(row).toMatchObject({
          connection_status: 'error',
          reason_code: 'possible_lost_rotation',
          next_refresh_at: null,
        });
        expect(await outcomes(own, id)).toEqual(['possible_lost_rotation']);
        expect(
          await own.query('select needs_person from agentd.failing_credentials where credential_id = $1', [
            id,
          ]),
        ).toEqual([{ needs_person: true }]);
      } finally {
        await next.stop();
      }
    } finally {
      server.after = null;
      await child.kill();
      await own.dispose();
    }
  });
});
