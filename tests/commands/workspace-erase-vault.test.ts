/** agentd workspace erase in a Supabase project: secrets of the Vault go with the workspace that alone owns them. */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Erasure } from '../../src/commands/workspace-erase.ts';
import { loadConfig } from '../../src/config.ts';
import { migrateUp } from '../../src/db/migrate.ts';
import { insert } from '../support/platform.ts';
import { type SupabaseProject, signUpAt, supabaseProject } from '../support/supabase.ts';
import { agentd, json } from './support.ts';
import { tracesOf } from './workspace-support.ts';

let project: SupabaseProject;
beforeAll(async () => {
  project = await supabaseProject();
  await project.migrating((db) => migrateUp(db, loadConfig({}).queues));
});
afterAll(() => project?.dispose());

test('its own go, another’s and shared ones stay', async () => {
  const user = randomUUID();
  await signUpAt(project, user);
  const [here, there] = [
    await insert(project.db, 'public.workspaces', { name: 'Here', owner_user_id: user }),
    await insert(project.db, 'public.workspaces', { name: 'There', owner_user_id: user }),
  ];
  const secret = async (...owners: string[]): Promise<string> => {
    const id = await insert(project.db, 'vault.secrets', { name: randomUUID(), secret: 'c2VjcmV0' });
    for (const [index, owner] of owners.entries()) {
      await insert(project.db, 'public.workspace_llm_config', {
        workspace_id: owner,
        provider: `p-${index}-${id.slice(0, 4)}`,
        vault_api_key_id: id,
      });
    }
    return id;
  };
  const [own, shared, other] = [await secret(here), await secret(here, there), await secret(there)];
  const owners = await project.db.query('select 1 from agentd.vault_owners where owner_id = $1', [here]);
  expect(owners).toHaveLength(2);
  const done = json<Erasure>(
    await agentd(['workspace', 'erase', here, '--yes', '--json'], { DATABASE_URL: project.db.url }),
  );
  expect(done).toMatchObject({ is_done: true, vault_secrets: 1 });
  const left = await project.db.query<{ id: string }>('select id from vault.secrets');
  expect(left.map(({ id }) => id).sort()).toEqual([shared, other].sort());
  expect(left.map(({ id }) => id)).not.toContain(own);
  expect(await tracesOf(project.db, here)).toEqual(['agentd.audit_log']);
});
