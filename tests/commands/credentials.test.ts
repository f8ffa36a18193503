import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { credentialsFailing, misconfiguredProviders } from '../../src/db/credential-reports.ts';
import { credential, makeCredential, makeProvider, outcomes } from '../support/credentials.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { makePlatform, type Platform } from '../support/platform.ts';
import { agentd, json } from './support.ts';

let db: TestDatabase;
let platform: Platform;
let provider: string;
let hour: { token_expires_at: Date };
const credentials = (...args: string[]) => agentd(['credentials', ...args], { DATABASE_URL: db.url });

beforeAll(async () => {
  db = await testDatabase();
  platform = await makePlatform(db);
  provider = await makeProvider(db, 'https://provider.example/token', { name: 'example' });
  hour = { token_expires_at: new Date(Date.now() + 3_600_000) };
});
afterAll(() => db?.dispose());

const audit = (id: string): Promise<{ action: string; details: object }[]> =>
  db.query(
    `select action, details from agentd.audit_log where object_type = 'credential' and object_id = $1 order by id`,
    [id],
  );
const fail = (id: string, status: string, code: string): Promise<unknown> =>
  db.query(
    `update public.user_integration_credentials set connection_status = $2::public.connection_status, reason_code = $3, reason = 'It says so.'
      where id = $1`,
    [id, status, code],
  );

describe('credentials', () => {
  test('list shows what needs a person first, and no token', async () => {
    const good = await makeCredential(db, platform, provider, { ...hour, connection_name: 'good' });
    const bad = await makeCredential(db, platform, provider, { ...hour, connection_name: 'b\u001b[31mad' });
    await fail(bad, 'expired', 'reauth_required');
    const listed = await credentials('list');
    expect(listed).toMatchObject({ code: 0, stderr: '' });
    expect(listed.stdout.indexOf(bad.slice(0, 8))).toBeLessThan(listed.stdout.indexOf(good.slice(0, 8)));
    expect(listed.stdout).toContain('reauth_required');
    expect(listed.stdout).not.toContain('\u001b');
    const all = json<{ credentials: { id: string }[] }>(await credentials('list', '--failing', '--json'));
    expect(all.credentials.map((row) => row.id)).toEqual([bad]);
    for (const outcome of [listed, await credentials('list', '--json')]) {
      expect(outcome.stdout).not.toContain('old-access-token');
      expect(outcome.stdout).not.toContain('old-refresh-token');
    }
  });

  test('refresh asks for one now, of one that was given up too, and is on record', async () => {
    const id = await makeCredential(db, platform, provider, hour);
    await fail(id, 'error', 'possible_lost_rotation');
    expect((await credentials('refresh', id.slice(0, 12))).code).toBe(0);
    expect(await credential(db, id)).toMatchObject({
      connection_status: 'active',
      is_refresh_due: true,
      refresh_request: 1,
      reason_code: null,
    });
    expect(await audit(id)).toMatchObject([
      { action: 'refresh', details: { operator: expect.stringContaining('@') } },
    ]);
  });

  test('revoke forgets the tokens, and is on record with its reason', async () => {
    const id = await makeCredential(db, platform, provider, hour);
    expect((await credentials('revoke', id, '--reason', 'left the company')).stdout).toContain('is revoked');
    expect(await credential(db, id)).toMatchObject({
      connection_status: 'revoked',
      vault_access_token_id: null,
      vault_refresh_token_id: null,
      next_refresh_at: null,
    });
    expect((await credentials('revoke', id)).stdout).toContain('was revoked before');
    expect(await outcomes(db, id)).toEqual(['revoked']);
    expect(await audit(id)).toMatchObject([{ action: 'revoke', details: { reason: 'left the company' } }]);
    const refused = await credentials('refresh', id);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toContain('has to connect the account again');
  });

  test('status and doctor name accounts that need a person and providers that refuse us', async () => {
    await db.query(
      `insert into agentd.provider_states (service_provider_id, failures, alarm_since, reason_code, reason)
       values ($1, 1, now(), 'provider_misconfigured', 'It refuses the client.')`,
      [provider],
    );
    expect(await misconfiguredProviders(db)).toEqual(['example']);
    expect(await credentialsFailing(db)).toEqual([
      { provider: 'example', status: 'expired', credentials: 1 },
    ]);
    const status = await agentd(['status'], { DATABASE_URL: db.url });
    expect(status.stdout).toContain('1 connected account needs its user: reauth_required');
    expect(status.stdout).toContain('1 provider refuses this platform’s client');
    const doctor = json<{ checks: { name: string; text?: string }[] }>(
      await agentd(['doctor', '--json'], { DATABASE_URL: db.url }),
    );
    expect(JSON.stringify(doctor.checks.filter((check) => check.name === 'held work'))).toContain(
      'reauth_required',
    );
    const listed = await credentials('list');
    expect(listed.stdout).toContain('example refuses this platform’s client: It refuses the client.');
  });
});
