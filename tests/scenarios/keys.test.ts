import { createCipheriv, randomBytes } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { columnSecretStore, parseKeyRing } from '../../src/secrets.ts';
import {
  daemonOfItsOwn,
  db,
  expectNoRepairs,
  expectRefused,
  model,
  useDaemon,
} from '../support/one-daemon.ts';
import { agentKey, makePlatform, startTask, workspaceKey } from '../support/platform.ts';
import { modelCalls, openRows, waitForRun } from '../support/runs.ts';

const ENCRYPTION_KEY = randomBytes(32).toString('hex');
const ENVIRONMENT_KEY = 'sk-environment-0123456789abcdef';
const WORKSPACE_KEY = 'sk-workspace-0123456789abcdef';
const AGENT_KEY = 'sk-agent-key-0123456789abcdef';

useDaemon({
  model: { apiKeys: [ENVIRONMENT_KEY, WORKSPACE_KEY, AGENT_KEY] },
  daemon: { env: { ENCRYPTION_KEY } },
});

describe('whose key is used', () => {
  test('the agent’s own key comes before the workspace’s, and that before the environment’s', async () => {
    const owner = await makePlatform(db);
    const used: (string | null)[] = [];
    const sources: (string | null | undefined)[] = [];
    const once = async (): Promise<void> => {
      const id = await startTask(db, owner, 'key');
      await waitForRun(db, id);
      used.push(model.requests.at(-1)?.apiKey ?? null);
      sources.push((await modelCalls(db, id))[0]?.credential_source);
    };
    await once();
    await workspaceKey(db, owner, WORKSPACE_KEY);
    await once();
    await agentKey(db, owner, AGENT_KEY);
    await once();
    expect(used).toEqual([ENVIRONMENT_KEY, WORKSPACE_KEY, AGENT_KEY]);
    expect(sources).toEqual(['environment', 'workspace', 'agent']);
  });

  test('a key of another workspace is never used', async () => {
    const other = await makePlatform(db);
    await workspaceKey(db, other, WORKSPACE_KEY);
    await agentKey(db, other, AGENT_KEY);
    await waitForRun(db, await startTask(db, await makePlatform(db), 'key'));
    expect(model.requests.map((r) => r.apiKey)).toEqual([ENVIRONMENT_KEY]);
  });

  test('a workspace’s key that is switched off is not used', async () => {
    const owner = await makePlatform(db);
    await workspaceKey(db, owner, WORKSPACE_KEY, { is_active: false });
    await waitForRun(db, await startTask(db, owner, 'key'));
    expect(model.requests.map((r) => r.apiKey)).toEqual([ENVIRONMENT_KEY]);
  });

  test('a key in the form iv:tag:ciphertext is opened with ENCRYPTION_KEY', async () => {
    const owner = await makePlatform(db);
    await workspaceKey(db, owner, referenceForm(WORKSPACE_KEY, ENCRYPTION_KEY));
    await waitForRun(db, await startTask(db, owner, 'key'));
    expect(model.requests.map((r) => r.apiKey)).toEqual([WORKSPACE_KEY]);
  });

  test('a sealed key opens in its own row and in no other', async () => {
    const owner = await makePlatform(db);
    const id = await workspaceKey(db, owner, null);
    const store = columnSecretStore(parseKeyRing({ ENCRYPTION_KEY }));
    const seal = (row: string): string =>
      store.seal(WORKSPACE_KEY, {
        table: 'public.workspace_llm_config',
        row,
        column: 'api_key',
        workspace: owner.workspaceId,
      });
    const save = (sealed: string) =>
      db.query('update public.workspace_llm_config set api_key = $2 where id = $1', [id, sealed]);
    await save(seal(owner.agentId));
    await expectRefused(await startTask(db, owner, 'key'), 'secret_tampered', /workspace_llm_config/);
    await save(seal(id));
    await waitForRun(db, await startTask(db, owner, 'key'));
    expect(model.requests.map((r) => r.apiKey)).toEqual([WORKSPACE_KEY]);
  });

  test('a key sealed with another ENCRYPTION_KEY, or changed since, fails the run and names its row', async () => {
    const owner = await makePlatform(db);
    const other = referenceForm(WORKSPACE_KEY, randomBytes(32).toString('hex'));
    const id = await workspaceKey(db, owner, other);
    const run = await expectRefused(await startTask(db, owner, 'key'), 'secret_tampered', new RegExp(id));
    expect(run.reason).not.toContain(WORKSPACE_KEY);
    const good = referenceForm(WORKSPACE_KEY, ENCRYPTION_KEY);
    const changed = good.slice(0, -1) + (good.endsWith('0') ? '1' : '0');
    await db.query('update public.workspace_llm_config set api_key = $2 where id = $1', [id, changed]);
    await expectRefused(await startTask(db, owner, 'key'), 'secret_tampered', new RegExp(id));
  });

  test('without ENCRYPTION_KEY a sealed key fails the run and says which variable to set', async () => {
    await using other = await daemonOfItsOwn({});
    await workspaceKey(other.db, other.owner, referenceForm(WORKSPACE_KEY, ENCRYPTION_KEY));
    const run = await waitForRun(other.db, await startTask(other.db, other.owner, 'key'));
    expect(run).toMatchObject({ status: 'failed', reason_code: 'secret_no_key' });
    expect(run.reason).toContain('ENCRYPTION_KEY');
  });

  test('without any key the run fails and says where to put one', async () => {
    await using other = await daemonOfItsOwn({ OPENAI_API_KEY: '' });
    const id = await startTask(other.db, other.owner, 'key');
    const run = await waitForRun(other.db, id);
    expect(run).toMatchObject({ status: 'failed', reason_code: 'no_model_credential' });
    expect(run.reason).toMatch(/workspace_llm_config.*OPENAI_API_KEY/);
    expect(await openRows(other.db, id)).toEqual([]);
    expect(model.requests).toEqual([]);
  });
});

/** The form iv:tag:ciphertext in hex that applications write by themselves. */
function referenceForm(text: string, keyHex: string): string {
  const iv = randomBytes(16);
  const cipher = createCipheriv('aes-256-gcm', Buffer.from(keyHex, 'hex'), iv);
  const sealed = Buffer.concat([cipher.update(text, 'utf8'), cipher.final()]);
  return [iv, cipher.getAuthTag(), sealed].map((part) => part.toString('hex')).join(':');
}

test('no run of this file was taken over or spent an attempt of its job', expectNoRepairs);
