import { expect, test } from 'vitest';
import { systemClock } from '../../../src/clock.ts';
import type { McpConnection, McpServerRow } from '../../../src/db/mcp.ts';
import { type McpSettingsDeps, mcpSettings } from '../../../src/pipelines/mcp/connection-settings.ts';
import { parseAllowedHosts } from '../../../src/providers/guarded-address.ts';
import { SecretError } from '../../../src/secrets.ts';

const server = (columns: Partial<McpServerRow> = {}): McpServerRow => ({
  id: 'server',
  name: 's',
  endpoint_url: 'https://one.example/mcp',
  vault_api_key_id: 'vault-id',
  timeout_ms: 5_000,
  max_retries: 0,
  retry_backoff_ms: 0,
  priority: 0,
  is_active: true,
  ...columns,
});
const connection = (columns: Partial<McpConnection> = {}): McpConnection => ({
  id: 'connection',
  workspace_id: 'workspace',
  agent_id: 'agent',
  name: 'c',
  server_url: 'https://one.example/mcp',
  auth_type: 'none',
  auth_header: null,
  auth_secret: null,
  credential_id: null,
  server: null,
  ...columns,
});
const asked: unknown[] = [];
const deps: McpSettingsDeps = {
  clock: systemClock,
  allowedPrivateHosts: parseAllowedHosts([]),
  secrets: {
    open: (stored, { table, row, column, workspace }) =>
      Promise.resolve(`${stored} of ${table}.${column} ${row} ${workspace}`),
  },
  freshToken: (wanted) => {
    asked.push(wanted);
    return Promise.resolve({
      accessToken: wanted.refused === undefined ? 'token' : 'another token',
      tokenType: 'Bearer',
    });
  },
};
const { signal } = new AbortController();
const headers = async (row: McpConnection, wanted = {}): Promise<Readonly<Record<string, string>>> =>
  (await mcpSettings(deps, row, signal, wanted)).headers;

test('a secret goes into its header, opened as what its row and column hold', async () => {
  const auth_secret = 'sealed';
  const opened = 'sealed of public.agent_mcp_connections.auth_secret connection workspace';
  expect(await headers(connection({ auth_type: 'bearer', auth_secret }))).toEqual({
    authorization: `Bearer ${opened}`,
  });
  expect(await headers(connection({ auth_type: 'header', auth_header: 'X-Key', auth_secret }))).toEqual({
    'x-key': opened,
  });
});

test('a connection’s own secret is sent to no other server, a server’s key to no other address', async () => {
  const own = connection({ auth_type: 'bearer', auth_secret: 'sealed', server: server() });
  const other = server({ id: 'other', endpoint_url: 'https://two.example/mcp', vault_api_key_id: null });
  expect(await mcpSettings(deps, own, signal, { instead: other })).toMatchObject({
    url: 'https://two.example/mcp',
    headers: {},
  });
  const key = 'Bearer vault-id of public.mcp_servers.vault_api_key_id server workspace';
  expect(await headers(connection({ server: server() }))).toEqual({ authorization: key });
  expect(await headers(connection({ server: server(), server_url: 'https://evil.example/mcp' }))).toEqual({});
});

test('no secret is opened for an address without https, unless the operator names it', async () => {
  const http = 'http://one.example/mcp';
  const opened: unknown[] = [];
  const secrets: McpSettingsDeps['secrets'] = {
    open: (stored) => Promise.resolve(String(opened.push(stored))),
  };
  const rows = [
    connection({ server_url: http, auth_type: 'bearer', auth_secret: 'sealed' }),
    connection({ server_url: ` ${http} `, auth_type: 'oauth', credential_id: 'credential' }),
    connection({ server_url: http, server: server({ endpoint_url: http }) }),
  ];
  asked.length = 0;
  for (const row of rows) {
    await expect(mcpSettings({ ...deps, secrets }, row, signal)).rejects.toMatchObject({
      code: 'insecure_url',
      transient: false,
    });
  }
  const instead = server({ endpoint_url: http });
  await expect(mcpSettings({ ...deps, secrets }, connection(), signal, { instead })).rejects.toMatchObject({
    code: 'insecure_url',
  });
  expect([opened, asked]).toEqual([[], []]);
  const allowedPrivateHosts = parseAllowedHosts(['one.example']);
  for (const row of rows) {
    expect(
      (await mcpSettings({ ...deps, secrets, allowedPrivateHosts }, row, signal)).headers,
    ).toHaveProperty('authorization');
  }
  // without a secret, what the server says is all that is in the clear
  expect(await headers(connection({ server_url: http }))).toEqual({});
});

test('a token is asked for with the credential’s and the workspace’s id, and anew once it was refused', async () => {
  asked.length = 0;
  const row = connection({ auth_type: 'oauth', credential_id: 'credential' });
  expect(await headers(row)).toEqual({ authorization: 'Bearer token' });
  expect(await headers(row, { refused: 'token' })).toEqual({ authorization: 'Bearer another token' });
  expect(asked).toMatchObject([
    { credentialId: 'credential', workspaceId: 'workspace' },
    { credentialId: 'credential', refused: 'token' },
  ]);
});

test('what is missing or can’t be opened has a code and a next step, and no secret in its words', async () => {
  const problem = (row: McpConnection, more: Partial<McpSettingsDeps> = {}) =>
    mcpSettings({ ...deps, ...more }, row, signal).then(
      () => null,
      (error: unknown) => error,
    );
  expect(await problem(connection({ auth_type: 'oauth' }))).toMatchObject({
    code: 'credential_missing',
    transient: false,
  });
  expect(await problem(connection({ auth_type: 'bearer' }))).toMatchObject({ code: 'secret_missing' });
  expect(await problem(connection({ auth_type: 'header', auth_secret: 'x' }))).toMatchObject({
    code: 'secret_missing',
  });
  const closed = { open: () => Promise.reject(new SecretError('no_key', 'No key.', 'Set ENCRYPTION_KEY.')) };
  expect(
    await problem(connection({ auth_type: 'bearer', auth_secret: 'x' }), { secrets: closed }),
  ).toMatchObject({
    code: 'secret_unreadable',
    nextStep: 'Set ENCRYPTION_KEY.',
  });
  const split = { open: () => Promise.resolve('canary\r\nx-injected: 1') };
  const refused = await problem(connection({ auth_type: 'bearer', auth_secret: 'x' }), { secrets: split });
  expect(refused).toMatchObject({ code: 'secret_unreadable' });
  expect(String(refused)).not.toContain('canary');
  const revoked = Object.assign(new Error('Revoked.'), {
    code: 'credential_revoked',
    nextStep: 'Sign in.',
    transient: false,
    retryAt: null,
  });
  const gone = { freshToken: () => Promise.reject(revoked) };
  expect(await problem(connection({ auth_type: 'oauth', credential_id: 'c' }), gone)).toMatchObject({
    code: 'credential_revoked',
    nextStep: 'Sign in.',
  });
});

test('time limits stay within bounds, whatever a row says', async () => {
  const limits = async (timeout_ms: number) =>
    (await mcpSettings(deps, connection({ server: server({ timeout_ms }) }), signal)).requestTimeoutMs;
  expect([await limits(0), await limits(-1), await limits(5_000), await limits(2_000_000_000)]).toEqual([
    1_000, 1_000, 5_000, 300_000,
  ]);
});
