/** What every kind of answer makes of a credential, asked of a real server and read in the row. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { systemClock } from '../../src/clock.ts';
import { loadConfig } from '../../src/config.ts';
import { rescueTokens } from '../../src/db/credential-outcomes.ts';
import { claimCredential } from '../../src/db/credentials.ts';
import { openDatabase } from '../../src/db/database.ts';
import { openCredentialParts } from '../../src/jobs/index.ts';
import { freshToken } from '../../src/pipelines/oauth/fresh-token.ts';
import { HostLanes } from '../../src/pipelines/oauth/host-lanes.ts';
import type { OAuthProvider } from '../../src/providers/oauth-providers.ts';
import { columnSecretStore } from '../../src/secrets.ts';
import { createMetrics } from '../../src/telemetry/metrics.ts';
import { type Fault, type FaultServer, startFaultServer } from '../peers/oauth-provider.ts';
import {
  credential,
  credentialEnv,
  makeCredential,
  makeProvider,
  openTokens,
  outcomes,
} from '../support/credentials.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { makePlatform, type Platform } from '../support/platform.ts';
import { refreshDeps, refreshNow } from '../support/refresh-deps.ts';
import { until } from '../support/runs.ts';
import { asUser } from '../support/sessions.ts';

let db: TestDatabase;
let server: FaultServer;
let platform: Platform;
let deps: ReturnType<typeof refreshDeps>;
let provider: string;
beforeAll(async () => {
  db = await testDatabase();
  server = await startFaultServer();
  platform = await makePlatform(db);
  deps = refreshDeps(db, [server.port], { requestMs: 500 });
});
afterAll(async () => {
  await deps?.close();
  await server?.close();
  await db?.dispose();
});
beforeEach(async () => {
  server.asked.length = 0;
  provider = await makeProvider(db, `${server.url}/token`);
});

const made = async (columns: Readonly<Record<string, unknown>> = {}, of = provider) => ({
  id: await makeCredential(db, platform, of, columns),
  workspaceId: platform.workspaceId,
});
const good = { access_token: 'new-access-token', refresh_token: 'new-refresh-token', expires_in: 3600 };
const json = (body: object, status = 200): Fault => ({ status, body });
const form = (fields: Record<string, string>, status = 200): Exclude<Fault, string> => ({
  status,
  body: new URLSearchParams(fields).toString(),
  headers: { 'content-type': 'application/x-www-form-urlencoded' },
});

describe('an answer that brings a token', () => {
  const lifetimes: [string, Fault, number | null][] = [
    ['plain', json(good), 3600],
    ['with 201', json(good, 201), 3600],
    ['form-encoded', form({ ...good, expires_in: '3600' }), 3600],
    [
      'form-encoded under a JSON type',
      { ...form({ ...good, expires_in: '3600' }), headers: { 'content-type': 'application/json' } },
      3600,
    ],
    ['expires_in as text', json({ ...good, expires_in: '1800' }), 1800],
    ['an odd token_type', json({ ...good, token_type: 'MAC' }), 3600],
    ['no lifetime', json({ access_token: 'new-access-token', refresh_token: 'new-refresh-token' }), null],
    ['an impossible lifetime', json({ ...good, expires_in: -5 }), null],
    ['Slack’s ok', json({ ok: true, ...good }), 3600],
    ['an empty error', json({ ...good, error: '' }), 3600],
  ];
  test.each(lifetimes)('%s: is stored and planned', async (_, fault, lifetime) => {
    server.respond(() => fault);
    const wanted = await made();
    expect(await refreshNow(deps, wanted)).toMatchObject({
      kind: 'refreshed',
      accessToken: 'new-access-token',
      version: 2,
    });
    const row = await credential(db, wanted.id);
    expect(row).toMatchObject({
      connection_status: 'active',
      reason_code: null,
      token_version: 2,
      refresh_started_at: null,
    });
    expect(await openTokens(db, wanted.id)).toEqual({
      access: 'new-access-token',
      refresh: 'new-refresh-token',
    });
    const left = row.token_expires_at === null ? null : (row.token_expires_at.getTime() - Date.now()) / 1000;
    if (lifetime === null) expect([left, row.next_refresh_at]).toEqual([null, null]);
    else {
      expect(Math.abs((left ?? 0) - lifetime)).toBeLessThan(30);
      expect(row.next_refresh_at?.getTime()).toBeLessThan(row.token_expires_at?.getTime() ?? 0);
    }
  });

  test('without a refresh token keeps the old one', async () => {
    server.respond(() => json({ access_token: 'new-access-token', expires_in: 60 }));
    const wanted = await made({ vault_refresh_token_id: 'kept-refresh-token' });
    await refreshNow(deps, wanted);
    const row = await credential(db, wanted.id);
    expect(row.vault_refresh_token_id).toBe('kept-refresh-token');
    // however short its life, nobody asks twice a second
    expect((row.next_refresh_at?.getTime() ?? 0) - Date.now()).toBeGreaterThan(20_000);
  });

  test('sends the secret, not its name: the form holds what was opened', async () => {
    server.respond(() => json(good));
    const wanted = await made();
    await db.query(
      'update public.user_integration_credentials set vault_refresh_token_id = $1 where id = $2',
      [
        deps.secrets.seal('the-refresh-token', {
          table: 'public.user_integration_credentials',
          row: wanted.id,
          column: 'vault_refresh_token_id',
          workspace: platform.workspaceId,
        }),
        wanted.id,
      ],
    );
    await refreshNow(deps, wanted);
    expect(Object.fromEntries(server.asked[0]?.form ?? [])).toMatchObject({
      grant_type: 'refresh_token',
      refresh_token: 'the-refresh-token',
    });
  });
});

describe('an answer that brings none', () => {
  const faults: [string, Fault, string, string][] = [
    ['invalid_grant', json({ error: 'invalid_grant' }, 400), 'expired', 'reauth_required'],
    ['200 with an error', json({ error: 'invalid_grant' }), 'expired', 'reauth_required'],
    ['invalid_client', json({ error: 'invalid_client' }, 401), 'active', 'provider_misconfigured'],
    ['401 without a word', { status: 401, body: '' }, 'active', 'provider_misconfigured'],
    ['404', { status: 404, body: '<html>' }, 'active', 'provider_misconfigured'],
    [
      'a redirect',
      { status: 302, body: '', headers: { location: 'https://example.com/' } },
      'active',
      'provider_misconfigured',
    ],
    ['429', { status: 429, body: '' }, 'active', 'rate_limited'],
    ['500', { status: 500, body: 'oops' }, 'active', 'provider_unavailable'],
    ['503 with a page', { status: 503, body: '<html>away</html>' }, 'active', 'provider_unavailable'],
    ['400 without a word', { status: 400, body: '' }, 'active', 'provider_unavailable'],
    ['200 with a page', { status: 200, body: '<html>hello</html>' }, 'active', 'provider_unavailable'],
    ['200 with nothing', { status: 200, body: '' }, 'active', 'provider_unavailable'],
    ['a list', { status: 200, body: '[1]' }, 'active', 'provider_unavailable'],
    ['a token that is no text', json({ access_token: 5 }), 'active', 'provider_unavailable'],
    ['an endless body', { status: 200, body: 'x'.repeat(400_000) }, 'active', 'provider_unavailable'],
    ['a connection that is cut', 'cut', 'active', 'provider_unavailable'],
    ['silence', 'hang', 'active', 'provider_unavailable'],
    [
      'our own token as its word',
      json({ error: 'old-refresh-token' }, 400),
      'active',
      'provider_unavailable',
    ],
  ];
  test.each(faults)('%s', async (_, fault, status, reasonCode) => {
    server.respond(() => fault);
    const wanted = await made();
    expect(await refreshNow(deps, wanted)).toMatchObject({ kind: 'failed', code: reasonCode });
    const row = await credential(db, wanted.id);
    expect(row).toMatchObject({ connection_status: status, reason_code: reasonCode, token_version: 1 });
    expect(row.vault_refresh_token_id).toBe('old-refresh-token');
    expect(row.reason).not.toContain('old-refresh-token');
    // who can still be helped is tried again, the others are left
    expect(row.next_refresh_at === null).toBe(status !== 'active');
    expect(deps.lines.join('')).not.toContain('old-refresh-token');
  });

  test('Retry-After is kept to, for the credential and for everybody’s requests to that provider', async () => {
    server.respond(() => ({ status: 429, body: '', headers: { 'retry-after': '120' } }));
    const first = await made();
    await refreshNow(deps, first);
    const row = await credential(db, first.id);
    expect((row.next_refresh_at?.getTime() ?? 0) - Date.now()).toBeGreaterThan(110_000);
    const other = await makePlatform(db);
    const second = await makeCredential(db, other, provider);
    expect(await refreshNow(deps, { id: second, workspaceId: other.workspaceId })).toMatchObject({
      kind: 'deferred',
    });
    expect(server.asked).toHaveLength(1);
    expect((await credential(db, second)).refresh_failures).toBe(0);
    // by a clock that was a day ahead
    await db.query(
      `update agentd.provider_states set blocked_until = agentd.now() + interval '1 day' where service_provider_id = $1`,
      [provider],
    );
    server.respond(() => json(good));
    expect(await refreshNow(deps, await made())).toMatchObject({ kind: 'refreshed' });
  });

  test('a refresh whose outcome is unknown makes the next invalid_grant a possible lost rotation', async () => {
    const wanted = await made();
    server.respond(() => 'cut');
    await refreshNow(deps, wanted);
    expect((await credential(db, wanted.id)).refresh_started_at).not.toBeNull();
    server.respond(() => json({ error: 'invalid_grant' }, 400));
    expect(await refreshNow(deps, wanted)).toMatchObject({ kind: 'failed', code: 'possible_lost_rotation' });
    expect(await credential(db, wanted.id)).toMatchObject({
      connection_status: 'error',
      next_refresh_at: null,
    });
    expect(await outcomes(db, wanted.id)).toEqual(['transient_error', 'possible_lost_rotation']);
  });

  test('one that surely had no effect leaves no such doubt', async () => {
    const wanted = await made();
    server.respond(() => ({ status: 429, body: '' }));
    await refreshNow(deps, wanted);
    await db.query('delete from agentd.provider_states');
    server.respond(() => json({ error: 'invalid_grant' }, 400));
    expect(await refreshNow(deps, wanted)).toMatchObject({ code: 'reauth_required' });
  });

  test('a refused client is the provider’s alarm, which ends with the next success', async () => {
    server.respond(() => json({ error: 'invalid_client' }, 401));
    const wanted = await made();
    await refreshNow(deps, wanted);
    const alarms = () =>
      db.query(
        'select provider, is_misconfigured, reason_code from agentd.provider_alarms where service_provider_id = $1',
        [provider],
      );
    expect(await alarms()).toMatchObject([{ is_misconfigured: true, reason_code: 'provider_misconfigured' }]);
    expect(deps.lines.join('')).toContain('"event":"provider_misconfigured"');
    server.respond(() => json(good));
    await refreshNow(deps, wanted);
    expect(await alarms()).toEqual([]);
  });

  test('a provider without a client is an alarm too, and nothing is sent', async () => {
    const bare = await makeProvider(db, `${server.url}/token`, { configuration: {} });
    expect(await refreshNow(deps, await made({}, bare))).toMatchObject({ code: 'provider_misconfigured' });
    expect(server.asked).toHaveLength(0);
  });

  test('an endpoint that a tenant names never gets the platform’s secret', async () => {
    server.respond(() => json(good));
    const own = await makeProvider(db, null, { configuration: { client_secret: 'the-platforms-secret' } });
    const wanted = await made(
      { connection_metadata: { token_endpoint: `${server.url}/theirs`, client_id: 'their-client' } },
      own,
    );
    expect(await refreshNow(deps, wanted)).toMatchObject({ kind: 'refreshed' });
    expect(Object.fromEntries(server.asked[0]?.form ?? [])).toEqual({
      grant_type: 'refresh_token',
      refresh_token: 'old-refresh-token',
      client_id: 'their-client',
    });
    expect(JSON.stringify(server.asked[0]?.headers)).not.toContain('authorization');
  });

  test('without a key to seal the answer with, nothing is sent', async () => {
    const keyless = refreshDeps(db, [server.port], { secrets: columnSecretStore([]) });
    expect(await refreshNow(keyless, await made())).toMatchObject({
      kind: 'failed',
      status: 'active',
      code: 'no_key',
    });
    expect(server.asked).toHaveLength(0);
    await keyless.close();
  });
});

describe('a token that has nowhere to go', () => {
  test('is kept when the row has a newer one', async () => {
    const wanted = await made();
    server.respond(async () => {
      await db.query(
        `update public.user_integration_credentials set vault_refresh_token_id = 'connected-anew' where id = $1`,
        [wanted.id],
      );
      return json(good);
    });
    expect(await refreshNow(deps, wanted)).toMatchObject({ kind: 'rescued' });
    expect((await credential(db, wanted.id)).vault_refresh_token_id).toBe('connected-anew');
    const kept = await db.query<{ refresh_token: string; from_version: number }>(
      'select refresh_token, from_version from agentd.rescued_tokens where credential_id = $1',
      [wanted.id],
    );
    expect(kept).toMatchObject([{ from_version: 1 }]);
    expect(kept[0]?.refresh_token).toMatch(/^v1:/);
    expect(await outcomes(db, wanted.id)).toEqual(['token_rescued']);
  });

  test('of the version that the row still has is its next one, without a request', async () => {
    const wanted = await made();

    const claim = await claimCredential(db, { ...wanted, request: null }, 60);
    if (!claim) throw new Error('no claim');
    const id = crypto.randomUUID();
    const seal = (value: string, column: string): string =>
      deps.secrets.seal(value, {
        table: 'agentd.rescued_tokens',
        row: id,
        column,
        workspace: platform.workspaceId,
      });
    await rescueTokens(
      db,
      claim,
      {
        id,
        accessToken: seal('kept-access', 'access_token'),
        refreshToken: seal('kept-refresh', 'refresh_token'),
        lifetimeMs: 3_600_000,
        ageMs: 0,
      },
      { jobId: null, attempt: 1, outcome: 'token_rescued', httpStatus: 200, durationMs: 5, message: null },
    );
    await db.query(
      'update public.user_integration_credentials set refresh_lease_until = null where id = $1',
      [wanted.id],
    );
    expect(await refreshNow(deps, wanted)).toMatchObject({ kind: 'refreshed', accessToken: 'kept-access' });
    expect(server.asked).toHaveLength(0);
    expect(await openTokens(db, wanted.id)).toEqual({ access: 'kept-access', refresh: 'kept-refresh' });
    expect(
      await db.query('select 1 from agentd.rescued_tokens where credential_id = $1', [wanted.id]),
    ).toEqual([]);
  });

  test('of a credential that was revoked meanwhile is not used', async () => {
    const wanted = await made();
    server.respond(async () => {
      await db.query(
        `update public.user_integration_credentials set connection_status = 'revoked' where id = $1`,
        [wanted.id],
      );
      return json(good);
    });
    expect(await refreshNow(deps, wanted)).toMatchObject({ kind: 'moved_on' });
    expect(await credential(db, wanted.id)).toMatchObject({
      connection_status: 'revoked',
      token_version: 1,
      next_refresh_at: null,
    });
  });
});

describe('whoever needs a token now', () => {
  const want = (wanted: { id: string; workspaceId: string }, more: object = {}) =>
    freshToken(deps, {
      credentialId: wanted.id,
      workspaceId: wanted.workspaceId,
      minimumMs: 60_000,
      waitMs: 5_000,
      signal: new AbortController().signal,
      ...more,
    });
  const hour = () => ({ token_expires_at: new Date(Date.now() + 3_600_000) });

  test('gets the stored one while it is good', async () => {
    expect(await want(await made(hour()))).toMatchObject({ accessToken: 'old-access-token', version: 1 });
    expect(server.asked).toHaveLength(0);
  });

  test('gets a fresh one otherwise, and two processes that ask make one refresh', async () => {
    const other = refreshDeps(db, [server.port]);
    server.respond(() => json(good));
    const wanted = await made();
    const both = await Promise.all([
      want(wanted),
      freshToken(other, {
        credentialId: wanted.id,
        workspaceId: wanted.workspaceId,
        minimumMs: 60_000,
        waitMs: 5_000,
        signal: new AbortController().signal,
      }),
      want(wanted),
    ]);
    expect(both.map((token) => token.accessToken)).toEqual(Array(3).fill('new-access-token'));
    expect(server.asked).toHaveLength(1);
    await other.close();
  });

  test('has a refused token replaced once, and not again at every refusal', async () => {
    server.respond(() => json(good));
    const wanted = await made(hour());
    expect(await want(wanted, { refused: 'old-access-token' })).toMatchObject({
      accessToken: 'new-access-token',
    });
    // another's refusal of the token before it
    expect(await want(wanted, { refused: 'old-access-token' })).toMatchObject({
      accessToken: 'new-access-token',
    });
    await expect(want(wanted, { refused: 'new-access-token' })).rejects.toMatchObject({
      code: 'token_refused',
    });
    expect(server.asked).toHaveLength(1);
  });

  test('never gets another workspace’s', async () => {
    const stranger = await makePlatform(db);
    const wanted = await made(hour());
    await expect(want({ ...wanted, workspaceId: stranger.workspaceId })).rejects.toMatchObject({
      code: 'credential_missing',
    });
  });

  test('is told what is wrong, and whether it passes', async () => {
    server.respond(() => json({ error: 'invalid_grant' }, 400));
    const gone = await made();
    await expect(want(gone)).rejects.toMatchObject({ code: 'reauth_required', transient: false });
    server.respond(() => 'cut');
    const away = await made();
    await expect(want(away)).rejects.toMatchObject({ code: 'provider_unavailable', transient: true });
    const asked = server.asked.length;
    await expect(want(away)).rejects.toMatchObject({ transient: true });
    expect(server.asked, 'not asked again by everybody who needs it').toHaveLength(asked);
    await db.query(
      `update public.user_integration_credentials set connection_status = 'revoked' where id = $1`,
      [away.id],
    );
    await expect(want(away)).rejects.toMatchObject({ code: 'credential_revoked' });
    server.respond(() => 'hang');
    const slow = await made();
    await expect(want(slow, { waitMs: 100 })).rejects.toMatchObject({
      code: 'refresh_pending',
      transient: true,
    });
  });
});

test('tokens that live shorter than they are wanted for are not asked for at each call', async () => {
  server.respond(() => json({ ...good, expires_in: 45 }));
  const wanted = await made();
  const want = () =>
    freshToken(deps, {
      credentialId: wanted.id,
      workspaceId: wanted.workspaceId,
      minimumMs: 60_000,
      waitMs: 5_000,
      signal: new AbortController().signal,
    });
  await Promise.all([want(), want(), want()]);
  await want();
  expect(server.asked).toHaveLength(1);
  // in the second half of its life it is
  await db.query(
    `update public.user_integration_credentials
        set last_refreshed_at = last_refreshed_at - interval '30 seconds', token_expires_at = token_expires_at - interval '30 seconds',
            token_version = token_version + 1
      where id = $1`,
    [wanted.id],
  );
  await want();
  expect(server.asked).toHaveLength(2);
});

test('a refresh that nobody waits for any more ends before the connections do', async () => {
  const asked = Promise.withResolvers<void>();
  const gate = Promise.withResolvers<void>();
  server.respond(async () => {
    asked.resolve();
    await gate.promise;
    return json(good);
  });
  const parts = openCredentialParts({
    ...deps,
    config: loadConfig(credentialEnv(server.port)),
    metrics: createMetrics({ builtInTools: [] }).credentials,
    onRetry: () => {},
  });
  const wanted = await made();
  const run = new AbortController();
  const wanting = parts.freshToken({
    credentialId: wanted.id,
    workspaceId: wanted.workspaceId,
    minimumMs: 60_000,
    waitMs: 60_000,
    signal: run.signal,
  });
  await asked.promise;
  run.abort(new Error('drain'));
  await expect(wanting).rejects.toThrow('drain');
  const closed = parts.drained().then(() => parts.close());
  gate.resolve();
  await closed;
  expect(await credential(db, wanted.id)).toMatchObject({ token_version: 2, refresh_started_at: null });
});

test('a refresh that was sent is taken over only where its lease surely has lapsed', async () => {
  const wanted = await made();
  const claim = (mayTakeOver: boolean) =>
    claimCredential(db, { ...wanted, request: null }, 60, mayTakeOver).then((found) => found !== null);
  const lapse = (startedAt: string) =>
    db.query(
      `update public.user_integration_credentials
          set refresh_lease_until = agentd.now() - interval '1 second', refresh_started_at = ${startedAt} where id = $1`,
      [wanted.id],
    );
  expect(await claim(false), 'nobody has had it').toBe(true);
  await lapse('null');
  expect(await claim(false), 'nothing was sent').toBe(true);
  await lapse(`agentd.now() - interval '1 minute'`);
  expect(await claim(false), 'its holder may be storing the answer').toBe(false);
  expect(await claim(true)).toBe(true);
});

describe.skipIf(!onServer)('server-only: a credential whose row somebody holds', () => {
  const limitedDatabase = () =>
    openDatabase({
      url: db.url,
      embedded: false,
      max: 4,
      applicationName: 'test',
      limits: { lockMs: 50, statementMs: 5_000, answerMs: 10_000 },
    });

  test('when its answer comes takes no way to the endpoint from others', async () => {
    const held = await made();
    const other = await made();
    const limited = limitedDatabase();
    const narrow = { ...deps, db: limited, lanes: new HostLanes(1, systemClock) };
    const holder = await db.pool.connect();
    const row = 'select 1 from public.user_integration_credentials where id = $1 for update';
    try {
      await holder.query('begin');
      server.respond(async () => {
        if (server.asked.length === 1) await holder.query(row, [held.id]);
        return json(good);
      });
      const storing = refreshNow(narrow, held);
      await until('it was answered', () => server.asked.length === 1);
      expect(await refreshNow(narrow, other)).toMatchObject({ kind: 'refreshed' });
      expect(await credential(db, held.id)).toMatchObject({ token_version: 1 });
      await holder.query('rollback');
      expect(await storing).toMatchObject({ kind: 'refreshed' });
    } finally {
      await holder.query('rollback');
      holder.release();
      await limited.close();
    }
  });

  test('is pending after the time that its caller waits', async () => {
    const wanted = await made();
    const limited = limitedDatabase();
    const holder = await db.pool.connect();
    try {
      await holder.query('begin');
      await holder.query('select 1 from public.user_integration_credentials where id = $1 for update', [
        wanted.id,
      ]);
      const asked = freshToken(
        { ...deps, db: limited },
        {
          credentialId: wanted.id,
          workspaceId: wanted.workspaceId,
          minimumMs: 60_000,
          waitMs: 300,
          signal: AbortSignal.timeout(20_000),
        },
      );
      await expect(asked).rejects.toMatchObject({ code: 'refresh_pending', transient: true });
    } finally {
      await holder.query('rollback');
      holder.release();
      await limited.close();
    }
  });
});

describe('an API key', () => {
  const known: OAuthProvider = {
    name: 'keys',
    aliases: [],
    tokenEndpoint: null,
    lifetimeSeconds: null,
    clientAuth: 'body',
    body: 'form',
    sendScope: false,
    errors: { reauth: [], client: [], transient: [] },
    keyCheck: { url: '', header: 'authorization', prefix: 'Bearer ', headers: {} },
  };
  let keys: ReturnType<typeof refreshDeps>;
  let keyProvider: string;
  beforeEach(async () => {
    const check = {
      ...known,
      keyCheck: { url: `${server.url}/me`, header: 'authorization', prefix: 'Bearer ', headers: {} },
    };
    keys = refreshDeps(db, [server.port], {
      providers: { provider: (name) => (name.startsWith('keys') ? check : null) },
    });
    keyProvider = await makeProvider(db, null, { name: `keys-${crypto.randomUUID()}`, type: 'api_key' });
  });
  afterEach(() => keys.close());
  const key = (of = keyProvider) =>
    made(
      {
        credential_type: 'api_key',
        vault_access_token_id: 'the-key',
        vault_refresh_token_id: null,
        token_expires_at: null,
      },
      of,
    );

  test.each([
    [200, 'active', null],
    [403, 'active', null],
    [500, 'active', null],
    [401, 'error', 'key_refused'],
  ])('answered with %i is %s', async (status, connectionStatus, reasonCode) => {
    server.respond(() => ({ status, body: '' }));
    const wanted = await key();
    await refreshNow(keys, wanted);
    expect(server.asked[0]?.headers.authorization).toBe('Bearer the-key');
    const row = await credential(db, wanted.id);
    expect(row).toMatchObject({
      connection_status: connectionStatus,
      reason_code: reasonCode,
      vault_access_token_id: 'the-key',
    });
    if (status === 401) expect(row.next_refresh_at).toBeNull();
    else expect((row.next_refresh_at?.getTime() ?? 0) - Date.now()).toBeGreaterThan(86_000_000);
    expect(keys.lines.join('')).not.toContain('the-key');
  });

  test('of a provider that has no cheap way is never looked at', async () => {
    const wanted = await key(provider);
    await refreshNow(keys, wanted);
    expect(server.asked).toHaveLength(0);
    expect(await credential(db, wanted.id)).toMatchObject({
      connection_status: 'active',
      next_refresh_at: null,
    });
  });
});

test('what is the worker’s to say of a credential, its user can’t', async () => {
  const { id } = await made({ token_expires_at: new Date(Date.now() + 3_600_000) });
  const before = await credential(db, id);
  await asUser(db, platform.userId, (user) =>
    user.query(
      `update public.user_integration_credentials
          set token_version = 2147483647, next_refresh_at = '-infinity', is_refresh_due = true, refresh_request = 2147483647,
              job_id = gen_random_uuid(), refresh_failures = -5, refresh_lease_until = 'infinity', reason_code = 'x', connection_name = 'mine'
        where id = $1`,
      [id],
    ),
  );
  expect(await credential(db, id)).toEqual({
    ...before,
    connection_name: 'mine',
    updated_at: expect.any(Date),
  });
});
