/** Keys in Supabase's Vault: the worker opens those that are a workspace's own, and nobody can have it open another's. */
import { randomUUID } from 'node:crypto';
import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { loadConfig } from '../../src/config.ts';
import { migrateUp } from '../../src/db/migrate.ts';
import { secretReferences } from '../../src/db/secret-references.ts';
import { columnSecretStore, parseKeyRing, type SecretContext, SecretError } from '../../src/secrets.ts';
import { denied } from '../db/schema-support.ts';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { testDaemon } from '../support/daemon.ts';
import { onServer } from '../support/database.ts';
import { agentKey, insert, makeAgent, type Platform, startTask } from '../support/platform.ts';
import { waitForRun } from '../support/runs.ts';
import { type SupabaseProject, signUpAt, supabaseProject } from '../support/supabase.ts';

const ring = parseKeyRing({ ENCRYPTION_KEY: 'ab'.repeat(32) });
const VAULT_KEY = 'sk-in-the-vault-0123456789';

let project: SupabaseProject;
let model: ModelServer;
beforeAll(async () => {
  project = await supabaseProject();
  await project.migrating((db) => migrateUp(db, loadConfig({}).queues));
  model = await startModelServer({ apiKeys: [VAULT_KEY] });
});
afterAll(async () => {
  await model?.close();
  await project?.dispose();
});

/** As a request to Supabase's API comes in. */
function request<T>(
  role: 'authenticated' | 'service_role',
  user: string | null,
  act: (client: pg.ClientBase) => Promise<T>,
): Promise<T> {
  return project.as('authenticator', async (client) => {
    await client.query(`set local role ${role}`);
    await client.query(`select set_config('request.jwt.claims', $1, true)`, [
      JSON.stringify({ role, ...(user === null ? {} : { sub: user }) }),
    ]);
    return act(client);
  });
}
const asService = <T>(act: (client: pg.ClientBase) => Promise<T>): Promise<T> =>
  request('service_role', null, act);

async function tenant(): Promise<Platform> {
  const userId = randomUUID();
  await signUpAt(project, userId);
  const [row] = await project.db.query<{ id: string }>(
    'select id from public.workspaces where owner_user_id = $1 and is_personal',
    [userId],
  );
  const workspaceId = row?.id as string;
  return { userId, workspaceId, agentId: await makeAgent(project.db, { userId, workspaceId }) };
}

/** A secret that a service makes by the documented function, and nobody has named yet. */
async function made(secret = VAULT_KEY): Promise<string> {
  const { rows } = await asService((client) =>
    client.query(`select public.create_vault_secret($1, $2, '') as id`, [secret, randomUUID()]),
  );
  return rows[0].id;
}

const nameKey = (by: 'authenticated' | 'service_role', owner: Platform, id: string): Promise<unknown> =>
  request(by, by === 'authenticated' ? owner.userId : null, (client) =>
    client.query(
      `insert into public.workspace_llm_config (workspace_id, provider, vault_api_key_id) values ($1, 'openai', $2)`,
      [owner.workspaceId, id],
    ),
  );

const references = (db = project.db) => secretReferences({ db, columns: columnSecretStore(ring) });
const context = (owner: Platform): SecretContext => ({
  table: 'public.workspace_llm_config',
  row: randomUUID(),
  column: 'vault_api_key_id',
  workspace: owner.workspaceId,
});
const codeOf = (act: Promise<unknown>): Promise<string> =>
  act.then(
    () => 'ok',
    (error: unknown) =>
      error instanceof SecretError ? error.code : ((error as { code: string }).code ?? String(error)),
  );

describe('a key in the Vault', () => {
  test('runs an agent, and one that is gone, or another’s, fails the run and says why', async () => {
    const [ann, bob, eve] = [await tenant(), await tenant(), await tenant()];
    const [annKey, bobKey] = [await made(), await made()];
    await nameKey('service_role', ann, annKey);
    await nameKey('service_role', bob, bobKey);
    await project.db.query('delete from vault.secrets where id = $1', [bobKey]);
    // past the guard, as a superuser can: what opens asks again
    await project.db.query('alter table public.workspace_llm_config disable trigger zz_guard_vault_ids');
    await insert(project.db, 'public.workspace_llm_config', {
      workspace_id: eve.workspaceId,
      provider: 'openai',
      vault_api_key_id: annKey,
    });
    await project.db.query('alter table public.workspace_llm_config enable trigger zz_guard_vault_ids');

    await using _daemon = await testDaemon(project.db, model, {
      env: { OPENAI_API_KEY: 'sk-not-known-at-all' },
    });
    const seen: string[] = [];
    for (const owner of [ann, bob, eve]) {
      const run = await waitForRun(project.db, await startTask(project.db, owner, 'say'));
      seen.push(`${run.status} ${run.reason_code ?? ''}`.trim());
      expect(run.reason ?? '').not.toContain(VAULT_KEY);
    }
    expect(seen).toEqual(['completed', 'failed vault_missing', 'failed vault_foreign']);
    expect(model.requests.map(({ apiKey }) => apiKey)).toEqual([VAULT_KEY]);
  });

  test('may stand where a plain key stands, if a service put it there', async () => {
    const ann = await tenant();
    await agentKey(project.db, ann, await made());
    await using _daemon = await testDaemon(project.db, model);
    const run = await waitForRun(project.db, await startTask(project.db, ann, 'say'));
    expect(run.status).toBe('completed');
    expect(model.requests.at(-1)?.apiKey).toBe(VAULT_KEY);
  });

  test('is replaced in its place; one that is gone is not replaced in silence', async () => {
    const [ann, bob] = [await tenant(), await tenant()];
    const id = await made('before');
    await nameKey('service_role', ann, id);
    const held = references();
    expect(await held.replace(id, 'after', context(ann))).toBe(id);
    expect(await held.open(id, context(ann))).toBe('after');
    expect(await held.open(id.toUpperCase(), context(ann))).toBe('after');
    expect(await codeOf(held.replace(id, 'theft', context(bob)))).toBe('vault_foreign');
    expect(await held.open(id, context(ann))).toBe('after');
    await project.db.query('delete from vault.secrets where id = $1', [id]);
    expect(await codeOf(held.replace(id, 'lost', context(ann)))).toBe('vault_missing');
    expect(await codeOf(held.open(id, context(ann)))).toBe('vault_missing');
  });

  test('is replaced with the transaction that it is given, or not at all', async () => {
    const ann = await tenant();
    const id = await made('before');
    await nameKey('service_role', ann, id);
    await project.db
      .transaction(async (tx) => {
        await secretReferences({ db: tx, columns: columnSecretStore(ring) }).replace(
          id,
          'after',
          context(ann),
        );
        throw new Error('no');
      })
      .catch(() => {});
    expect(await references().open(id, context(ann))).toBe('before');
  });

  test('that the database’s owner may not open is unavailable, not missing', async () => {
    const ann = await tenant();
    const id = await made();
    await nameKey('service_role', ann, id);
    // it may read everything, and is a member of service_role
    const right = 'execute on function vault._crypto_aead_det_decrypt';
    await project.db.query(`revoke ${right} from supabase_postgres, service_role cascade`);
    expect(await codeOf(references().open(id, context(ann)))).toBe('vault_unavailable');
    await project.db.query(`grant ${right} to supabase_postgres with grant option`);
    await project.db.query(`grant ${right} to service_role`);
    expect(await references().open(id, context(ann))).toBe(VAULT_KEY);
  });

  test('nobody signed in opens one with agentd’s functions', async () => {
    const ann = await tenant();
    const id = await made();
    await nameKey('service_role', ann, id);
    for (const call of [
      'agentd.open_vault_secret($1, $2)',
      `agentd.replace_vault_secret($1, $2, 'x')`,
      'agentd.note_vault_secret($1)',
      'agentd.is_in_vault($1)',
    ]) {
      const values = call.includes('$2') ? [id, ann.workspaceId] : [id];
      const asked = request('authenticated', ann.userId, (client) => client.query(`select ${call}`, values));
      expect(await codeOf(asked)).toBe(denied);
    }
    const table = request('authenticated', ann.userId, (client) =>
      client.query('select * from agentd.vault_owners'),
    );
    expect(await codeOf(table)).toBe(denied);
  });
});

describe('whose secret it is', () => {
  test('the first workspace that names what create_vault_secret made has it, and no other', async () => {
    const [ann, bob] = [await tenant(), await tenant()];
    const id = await made();
    expect(await codeOf(references().open(id, context(ann)))).toBe('vault_foreign');
    await nameKey('authenticated', ann, id);
    expect(await codeOf(nameKey('authenticated', bob, id))).toBe(denied);
    await nameKey('authenticated', ann, id);
    expect(await references().open(id, context(ann))).toBe(VAULT_KEY);
    expect(await codeOf(references().open(id, context(bob)))).toBe('vault_foreign');
    // nor when the first is gone
    await project.db.query('delete from public.workspace_llm_config where workspace_id = $1', [
      ann.workspaceId,
    ]);
    expect(await codeOf(nameKey('authenticated', bob, id))).toBe(denied);
  });

  test.skipIf(!onServer)('server-only: of two who name it at once one has it', async () => {
    const [ann, bob] = [await tenant(), await tenant()];
    const id = await made();
    const outcomes = await Promise.all(
      [ann, bob].map((owner) => codeOf(nameKey('authenticated', owner, id))),
    );
    expect(outcomes.sort()).toEqual([denied, 'ok']);
    expect(
      await project.db.query('select owner_id from agentd.vault_owners where secret_id = $1', [id]),
    ).toHaveLength(1);
  });

  test('a secret of the application’s own, which no service gave to anybody, can be named by no user', async () => {
    const ann = await tenant();
    const [row] = await project.db.query<{ id: string }>(`select vault.create_secret('internal', $1) as id`, [
      randomUUID(),
    ]);
    expect(await codeOf(nameKey('authenticated', ann, row?.id as string))).toBe(denied);
    await nameKey('service_role', ann, row?.id as string);
    expect(await references().open(row?.id as string, context(ann))).toBe('internal');
  });

  test('nor where a key stands, and a service that changes something beside one that is there has not given it', async () => {
    const eve = await tenant();
    const [row] = await project.db.query<{ id: string }>(`select vault.create_secret('internal', $1) as id`, [
      randomUUID(),
    ]);
    const id = row?.id as string;
    const put = (): Promise<unknown> =>
      request('authenticated', eve.userId, (client) =>
        client.query(
          `insert into public.datastores (workspace_id, name, type, config) values ($1, 'D', 'pinecone', $2)`,
          [eve.workspaceId, JSON.stringify({ api_key: id, index: 'x' })],
        ),
      );
    expect(await codeOf(put())).toBe(denied);
    // as it was before there was a guard
    await project.db.query('alter table public.datastores disable trigger zz_guard_vault_ids');
    await put();
    await project.db.query('alter table public.datastores enable trigger zz_guard_vault_ids');
    await asService((client) =>
      client.query(
        `update public.datastores set config = config || '{"index": "y"}' where workspace_id = $1`,
        [eve.workspaceId],
      ),
    );
    expect(await project.db.query('select 1 from agentd.vault_owners where secret_id = $1', [id])).toEqual(
      [],
    );
    expect(
      await references().open(id, { ...context(eve), table: 'public.datastores', column: 'config' }),
    ).toBe(id);
  });

  test('a service gives one secret to several workspaces', async () => {
    const [ann, bob] = [await tenant(), await tenant()];
    const id = await made();
    await nameKey('service_role', ann, id);
    await nameKey('service_role', bob, id);
    for (const owner of [ann, bob]) expect(await references().open(id, context(owner))).toBe(VAULT_KEY);
  });

  test('no column takes another’s id from a user, by insert or update', async () => {
    const [ann, eve] = [await tenant(), await tenant()];
    const id = await made();
    await nameKey('service_role', ann, id);
    const provider = await insert(project.db, 'public.service_providers', {
      name: randomUUID(),
      display_name: 'P',
      provider_type: 'oauth',
    });
    const configuration = await insert(project.db, 'public.mcp_configurations', { agent_id: eve.agentId });
    const rows: Record<string, readonly [columns: Record<string, unknown>, vault: string]> = {
      workspace_llm_config: [{ workspace_id: eve.workspaceId, provider: 'openai' }, 'vault_api_key_id'],
      user_integration_credentials: [
        { workspace_id: eve.workspaceId, service_provider_id: provider, credential_type: 'oauth' },
        'vault_access_token_id',
      ],
      'user_integration_credentials ': [
        { workspace_id: eve.workspaceId, service_provider_id: provider, credential_type: 'oauth' },
        'vault_refresh_token_id',
      ],
      user_secrets: [{}, 'vault_id'],
      mcp_servers: [
        { config_id: configuration, name: 'M', endpoint_url: 'https://m.test' },
        'vault_api_key_id',
      ],
      api_connections: [{ workspace_id: eve.workspaceId, name: 'A', service: 'openai' }, 'api_key'],
      'workspace_llm_config ': [{ workspace_id: eve.workspaceId, provider: 'openai' }, 'api_key'],
      agent_mcp_connections: [
        { agent_id: eve.agentId, connection_name: 'C', server_url: 'https://m.test' },
        'auth_secret',
      ],
    };
    for (const [name, [columns, vault]] of Object.entries(rows)) {
      const table = `public.${name.trim()}`;
      const put = (value: string): Promise<unknown> =>
        request('authenticated', eve.userId, (client) =>
          client.query(
            `insert into ${table} (${[...Object.keys(columns), vault].join(', ')})
             values (${[...Object.keys(columns), vault].map((_, i) => `$${i + 1}`)})`,
            [...Object.values(columns), value],
          ),
        );
      expect([name, await codeOf(put(id))]).toEqual([name, denied]);
      expect([name, await codeOf(put(id.toUpperCase()))]).toEqual([name, denied]);
      if (vault === 'vault_api_key_id' && name === 'mcp_servers') continue; // a uuid has no other value to begin with
      expect([name, await codeOf(put('plain'))]).toEqual([name, 'ok']);
      const changed = request('authenticated', eve.userId, (client) =>
        client.query(`update ${table} set ${vault} = $1`, [id]),
      );
      expect([name, await codeOf(changed)]).toEqual([name, denied]);
    }
    const store = request('authenticated', eve.userId, (client) =>
      client.query(
        `insert into public.datastores (workspace_id, name, type, config) values ($1, 'D', 'pinecone', $2)`,
        [eve.workspaceId, JSON.stringify({ api_key: id, index: 'x' })],
      ),
    );
    expect(await codeOf(store)).toBe(denied);
    expect(
      await project.db.query('select owner_id from agentd.vault_owners where secret_id = $1', [id]),
    ).toEqual([{ owner_id: ann.workspaceId }]);
  });

  test('a key of a provider that looks like an id is a key', async () => {
    const ann = await tenant();
    const key = randomUUID();
    await request('authenticated', ann.userId, (client) =>
      client.query(
        `insert into public.api_connections (workspace_id, name, service, api_key) values ($1, 'A', 'pinecone', $2)`,
        [ann.workspaceId, key],
      ),
    );
    expect(
      await references().open(key, { ...context(ann), table: 'public.api_connections', column: 'api_key' }),
    ).toBe(key);
  });
});

test('without a Vault an id is refused when it is opened, and says what to do', async () => {
  const { testDatabase } = await import('../support/database.ts');
  const db = await testDatabase();
  try {
    const userId = await insert(db, 'auth.users', { email: `${randomUUID()}@example.test` });
    const [row] = await db.query<{ id: string }>(
      'select id from public.workspaces where owner_user_id = $1',
      [userId],
    );
    const owner = { workspaceId: row?.id as string, userId, agentId: '' };
    const id = randomUUID();
    await insert(db, 'public.workspace_llm_config', {
      workspace_id: owner.workspaceId,
      provider: 'openai',
      vault_api_key_id: id,
    });
    const error = await references(db)
      .open(id, context(owner))
      .catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({
      code: 'vault_unavailable',
      nextStep: expect.stringContaining('Store the key'),
    });
    expect(await codeOf(references(db).open(randomUUID(), context(owner)))).toBe('vault_foreign');
  } finally {
    await db.dispose();
  }
});
