import { describe, expect, test } from 'vitest';
import type { ClaimedRun, StoredCredential } from '../../../src/db/runs.ts';
import { chooseModel, type ModelDeps } from '../../../src/pipelines/agent/credentials.ts';
import { RunFailure } from '../../../src/pipelines/agent/errors.ts';
import { loadModelCatalog } from '../../../src/providers/model-catalog.ts';
import type { ModelClientOptions } from '../../../src/providers/models.ts';
import { columnSecretStore, parseKeyRing } from '../../../src/secrets.ts';
import { claimedRun } from './claimed-run.ts';

const ring = parseKeyRing({ ENCRYPTION_KEY: 'ab'.repeat(32) });

function key(provider: string, secret: string | null, vault: string | null = null): StoredCredential {
  return { id: `row-of-${secret ?? vault}`, provider, secret, vault_id: vault };
}

async function choose(
  credentials: Partial<ClaimedRun['credentials']>,
  options: {
    model?: Partial<NonNullable<ClaimedRun['model']>>;
    environment?: Partial<ModelDeps['environment']>;
  } = {},
) {
  let used: ModelClientOptions | null = null;
  const base = claimedRun();
  const model = await chooseModel(
    {
      ...base,
      credentials: { agent: [], workspace: [], ...credentials },
      model: { ...(base.model as NonNullable<ClaimedRun['model']>), ...options.model },
    },
    {
      catalog: loadModelCatalog(),
      secrets: columnSecretStore(ring),
      environment: { apiKey: null, baseUrl: null, ...options.environment },
      callTimeoutMs: 1000,
      createClient: (given) => {
        used = given;
        return { complete: () => Promise.reject(new Error('not called')) };
      },
    },
  );
  return { ...model, used: used as ModelClientOptions | null };
}

async function failure(act: () => Promise<unknown>): Promise<RunFailure> {
  try {
    await act();
  } catch (error) {
    if (error instanceof RunFailure) return error;
    throw error;
  }
  throw new Error('It did not fail.');
}

describe('the key of a run', () => {
  test('is the agent’s, else the workspace’s, else the environment’s', async () => {
    const environment = { apiKey: 'env' };
    const workspace = [key('openai', 'ws')];
    const agent = [key('openai', 'own')];
    expect(await choose({ agent, workspace }, { environment })).toMatchObject({
      credentialSource: 'agent',
      used: { apiKey: 'own' },
    });
    expect(await choose({ workspace }, { environment })).toMatchObject({
      credentialSource: 'workspace',
      used: { apiKey: 'ws' },
    });
    expect(await choose({}, { environment })).toMatchObject({
      credentialSource: 'environment',
      used: { apiKey: 'env' },
    });
  });

  test('is of the model’s provider: a key of another one is never sent there', async () => {
    const { used } = await choose(
      { agent: [key('mistral', 'm')], workspace: [key('groq', 'g'), key('openai', 'o')] },
      {},
    );
    expect(used?.apiKey).toBe('o');
  });

  test('a provider’s other names are the same provider', async () => {
    const { used, provider } = await choose(
      { workspace: [key('Claude', 'c')] },
      { model: { provider: 'Anthropic' } },
    );
    expect(provider).toBe('anthropic');
    expect(used).toMatchObject({ apiKey: 'c', baseUrl: 'https://api.anthropic.com/v1' });
  });

  test('the environment’s key goes to no provider but its own', async () => {
    const error = await failure(() =>
      choose({}, { model: { provider: 'mistral' }, environment: { apiKey: 'env', baseUrl: 'http://x/v1' } }),
    );
    expect(error.code).toBe('no_model_credential');
  });

  test('a tenant’s key of another provider does not go to the environment’s base URL', async () => {
    const { used } = await choose(
      { workspace: [key('mistral', 'm')] },
      { model: { provider: 'mistral' }, environment: { apiKey: 'env', baseUrl: 'http://x/v1' } },
    );
    expect(used?.baseUrl).toBe('https://api.mistral.ai/v1');
  });

  test('a model without a provider is taken for OpenAI’s', async () => {
    expect((await choose({}, { model: { provider: null }, environment: { apiKey: 'env' } })).provider).toBe(
      'openai',
    );
  });

  test('a workspace row without any key is passed over', async () => {
    const { used } = await choose({ workspace: [key('openai', null)] }, { environment: { apiKey: 'env' } });
    expect(used?.apiKey).toBe('env');
  });

  test('the name of the credential says which one it is and holds none of its secret', async () => {
    const { credentialName } = await choose({
      workspace: [{ ...key('openai', 'very-secret'), id: 'row-7' }],
    });
    expect(credentialName).toContain('row-7');
    expect(credentialName).not.toContain('very-secret');
  });
});

describe('a run that can’t have a key', () => {
  test.each([
    ['no_model_credential', {}, {}],
    ['unknown_provider', { agent: [key('acme', 'k')] }, { model: { provider: 'acme' } }],
    ['secret_tampered', { agent: [key('openai', `${'0'.repeat(24)}:${'0'.repeat(32)}:ff`)] }, {}],
    ['secret_unknown_key', { agent: [key('openai', `v1:old:${'A'.repeat(16)}:${'A'.repeat(22)}:AA`)] }, {}],
    ['secret_bad_form', { agent: [key('openai', 'v1:cut')] }, {}],
  ] as const)('fails with %s and a sentence', async (code, credentials, options) => {
    const error = await failure(() => choose(credentials, options));
    expect(error.code).toBe(code);
    expect(error.message).toMatch(/[.]$/);
  });

  test('a key of the agent’s that does not open is not replaced by another', async () => {
    const error = await failure(() =>
      choose(
        { agent: [key('openai', 'v1:cut')], workspace: [key('openai', 'ws')] },
        { environment: { apiKey: 'env' } },
      ),
    );
    expect(error.code).toBe('secret_bad_form');
  });

  test('a sealed key opens with the ring', async () => {
    const sealed = columnSecretStore(ring).seal('plain', {
      table: 'public.api_connections',
      row: 'row-1',
      column: 'api_key',
      workspace: claimedRun().workspace_id,
    });
    expect((await choose({ agent: [{ ...key('openai', sealed), id: 'row-1' }] })).used?.apiKey).toBe('plain');
    expect((await failure(() => choose({ agent: [{ ...key('openai', sealed), id: 'row-2' }] }))).code).toBe(
      'secret_tampered',
    );
  });
});

describe('prices', () => {
  const environment = { apiKey: 'env' };

  test('are the row’s of llm_models where there is one', async () => {
    const model = { id: 'm', input_cost_per_1k: 0.5, output_cost_per_1k: 1 };
    expect((await choose({}, { model, environment })).prices).toMatchObject({
      inputPer1k: 0.5,
      outputPer1k: 1,
    });
  });

  test('else the catalog’s, else unknown', async () => {
    expect((await choose({}, { environment })).prices?.inputPer1k).toBeGreaterThan(0);
    expect((await choose({}, { model: { model: 'home-made' }, environment })).prices).toBeNull();
  });
});
