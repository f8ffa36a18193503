import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import {
  asRole,
  asUser,
  checkViolation,
  company,
  denied,
  inserted,
  outcome,
  personalWorkspace,
  signUp,
  value,
} from './schema-support.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await testDatabase();
});
afterAll(() => db.dispose());

const hex = (bytes: number) => randomBytes(bytes).toString('hex');
const base64 = (bytes: number) => randomBytes(bytes).toString('base64');

test.each([
  ['v1:k1:aXY:dGFn:Y2lwaGVy', 'v1'],
  [`${hex(16)}:${hex(16)}:${hex(40)}`, 'reference'],
  [`${hex(12)}:${hex(16)}:${hex(7)}`, 'reference'],
  [`${base64(12)}:${base64(16)}:${base64(31)}`, 'reference'],
  [`${base64(16)}:${base64(16)}:${base64(30)}`, 'reference'],
  ['sk-proj-abcdef', 'unknown'],
  [`${hex(16)}:${hex(8)}:${hex(40)}`, 'unknown'],
  ['', 'unknown'],
  [null, null],
])('secret_form tells sealed values from plain text: %s', async (secret, form) => {
  expect(await value(db.pool, 'select agentd.secret_form($1)', [secret])).toBe(form);
});

test('every column that holds ciphertext has its form kept, and no insert is refused for it', async () => {
  const { workspace, owner, agent } = await company(db.pool);
  const form = (text: string, values: unknown[]) =>
    value<string>(db.pool, `${text} returning secret_form`, values);
  expect(
    await form(
      `insert into public.workspace_llm_config (workspace_id, provider, api_key) values ($1, 'openai', 'sk')`,
      [workspace],
    ),
  ).toBe('unknown');
  expect(
    await form(`update public.workspace_llm_config set api_key = 'v1:k:a:b:c' where workspace_id = $1`, [
      workspace,
    ]),
  ).toBe('v1');
  expect(
    await form(
      `insert into public.api_connections (user_id, name, service, api_key) values ($1, 'n', 'openai', $2)`,
      [owner, `${hex(16)}:${hex(16)}:00`],
    ),
  ).toBe('reference');
  // It cannot be claimed: the trigger decides.
  expect(await form(`update public.api_connections set secret_form = 'v1' where user_id = $1`, [owner])).toBe(
    'reference',
  );
  expect(await form(`update public.agents set discord_bot_key = 'plain' where id = $1`, [agent])).toBe(
    'unknown',
  );
});

test('credentials and connections without a workspace fall into the personal one of their user', async () => {
  const user = await signUp(db.pool);
  const personal = await personalWorkspace(db.pool, user);
  const provider = await inserted(
    db.pool,
    `insert into public.service_providers (name, display_name, provider_type) values ('gmail', 'Gmail', 'oauth')`,
  );
  const made = await asUser(db.pool, user, async (client) => [
    await value(
      client,
      `insert into public.user_integration_credentials (service_provider_id, credential_type) values ($1, 'oauth')
       returning row(workspace_id, user_id)::text`,
      [provider],
    ),
    await value(
      client,
      `insert into public.api_connections (name, service, api_key) values ('n', 's', 'k') returning row(workspace_id, user_id)::text`,
    ),
  ]);
  expect(made).toEqual([`(${personal},${user})`, `(${personal},${user})`]);
  expect(
    await value(
      db.pool,
      `insert into public.workspace_llm_config (provider) values ('openai') returning workspace_id is not null`,
    ),
  ).toBe(true);
  expect(
    await outcome(
      db.pool,
      `insert into public.user_integration_credentials (user_id, service_provider_id, credential_type, encrypted_access_token)
       values ('${user}', '${provider}', 'oauth', 'token')`,
    ),
  ).toBe(checkViolation);
});

test('the Vault’s functions are for service_role alone, and say so where there is no Vault', async () => {
  const user = await signUp(db.pool);
  await asUser(db.pool, user, async (client) => {
    expect(await outcome(client, `select public.create_vault_secret('s', 'n', 'd')`)).toBe(denied);
    expect(await outcome(client, `select public.vault_decrypt('id')`)).toBe(denied);
  });
  await asRole(db.pool, 'service_role', {}, async (client) => {
    expect(await outcome(client, `select public.create_vault_secret('s', 'n', 'd')`)).toBe('0A000');
    expect(await outcome(client, `select public.vault_decrypt('id')`)).toBe('0A000');
  });
});

test('with a Vault a secret that was created is decrypted by its id, and an unknown id is null', async () => {
  // What Supabase's Vault offers to SQL, without its encryption.
  await db.pool.query(`
    create schema vault;
    create table vault.decrypted_secrets (id uuid primary key default gen_random_uuid(), decrypted_secret text, name text, description text);
    create function vault.create_secret(new_secret text, new_name text default null, new_description text default '', new_key_id uuid default null)
    returns uuid language sql as $$
      insert into vault.decrypted_secrets (decrypted_secret, name, description) values (new_secret, new_name, new_description) returning id
    $$;
    grant usage on schema vault to service_role;
    grant select, insert on vault.decrypted_secrets to service_role;
  `);
  try {
    await asRole(db.pool, 'service_role', {}, async (client) => {
      const id = await value<string>(client, `select public.create_vault_secret('hush', 'name', 'what for')`);
      expect(await value(client, 'select public.vault_decrypt($1)', [id])).toBe('hush');
      expect(await value(client, `select public.vault_decrypt('no such id')`)).toBeNull();
    });
  } finally {
    await db.pool.query('drop schema vault cascade');
  }
});
