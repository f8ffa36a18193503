import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import {
  asUser,
  column,
  company,
  denied,
  foreignKeyViolation,
  inserted,
  outcome,
  personalWorkspace,
  type Runner,
  signUp,
  value,
} from './schema-support.ts';

let db: TestDatabase;
let provider: string;
beforeAll(async () => {
  db = await testDatabase();
  provider = await inserted(
    db.pool,
    `insert into public.service_providers (name, display_name, provider_type) values ('smtp', 'SMTP', 'smtp')`,
  );
});
afterAll(() => db.dispose());

const credential = (runner: Runner, user: string, workspace?: string) =>
  inserted(
    runner,
    `insert into public.user_integration_credentials (user_id, workspace_id, service_provider_id, credential_type, connection_name)
     values ($1, $2, $3, 'api_key', 'mail')`,
    [user, workspace ?? null, provider],
  );

describe('agents', () => {
  test('an insert as each document shows it makes a live agent with an owner and a workspace', async () => {
    const user = await signUp(db.pool);
    const row = await asUser(db.pool, user, async (client) => {
      const result = await client.query(
        `insert into public.agents (name) values ('helper')
         returning workspace_id, user_id, status, is_active, instructions, model, temperature::float8, max_tokens, context_window_size`,
      );
      return result.rows[0];
    });
    expect(row).toEqual({
      workspace_id: await personalWorkspace(db.pool, user),
      user_id: user,
      status: 'live',
      is_active: true,
      instructions: '',
      model: 'gpt-3.5-turbo',
      temperature: 0.7,
      max_tokens: 1000,
      context_window_size: 4000,
    });
  });

  test('a persona lies in the personal workspace where none is named, and no agent borrows one across tenants', async () => {
    const [here, there] = [await company(db.pool), await company(db.pool)];
    const persona = await inserted(
      db.pool,
      `insert into public.personas (workspace_id, name) values ($1, 'p')`,
      [here.workspace],
    );
    const set = 'update public.agents set persona_id = $1 where id = $2';
    expect(await outcome(db.pool, set, [persona, here.agent])).toBe('ok');
    expect(await outcome(db.pool, set, [persona, there.agent])).toBe(foreignKeyViolation);
    await db.pool.query('delete from public.personas where id = $1', [persona]);
    expect(
      await value(
        db.pool,
        'select persona_id is null and workspace_id is not null from public.agents where id = $1',
        [here.agent],
      ),
    ).toBe(true);
    const own = await asUser(db.pool, here.owner, (client) =>
      value(client, `insert into public.personas (name) values ('mine') returning workspace_id`),
    );
    expect(own).toBe(await personalWorkspace(db.pool, here.owner));
  });

  test('only the workspace’s owner can give an agent to someone else, and only to a member', async () => {
    const { owner, manager, viewer, agent } = await company(db.pool);
    const stranger = await signUp(db.pool);
    const give = 'update public.agents set user_id = $1 where id = $2';
    await asUser(db.pool, manager, async (client) => {
      expect(await outcome(client, give, [manager, agent])).toBe(denied);
      expect(await outcome(client, `update public.agents set name = 'renamed' where id = $1`, [agent])).toBe(
        'ok',
      );
    });
    await asUser(db.pool, owner, async (client) => {
      expect(await outcome(client, give, [stranger, agent])).toBe(denied);
      expect(await outcome(client, give, [viewer, agent])).toBe('ok');
    });
    expect(await outcome(db.pool, give, [manager, agent])).toBe('ok');
  });

  test('my_agent_ids lists the agents of the workspaces in which the caller has at least the role', async () => {
    const { viewer, manager, agent } = await company(db.pool);
    const ask = (user: string, role: string) =>
      asUser(db.pool, user, (client) =>
        column(client, 'select agentd.my_agent_ids($1::public.app_role)', [role]),
      );
    expect(await ask(viewer, 'VIEWER')).toEqual([agent]);
    expect(await ask(viewer, 'MANAGER')).toEqual([]);
    expect(await ask(manager, 'MANAGER')).toEqual([agent]);
    expect(await ask(await signUp(db.pool), 'VIEWER')).toEqual([]);
  });
});

describe('memberships', () => {
  test('a workspace or team takes in only agents and teams of its own', async () => {
    const [here, there] = [await company(db.pool), await company(db.pool)];
    const team = await inserted(db.pool, `insert into public.teams (name, workspace_id) values ('t', $1)`, [
      here.workspace,
    ]);
    const join = 'insert into public.workspace_members (workspace_id, agent_id) values ($1, $2)';
    expect(await outcome(db.pool, join, [here.workspace, here.agent])).toBe('ok');
    expect(await outcome(db.pool, join, [here.workspace, there.agent])).toBe(foreignKeyViolation);
    expect(
      await value(
        db.pool,
        'insert into public.workspace_members (team_id) values ($1) returning workspace_id',
        [team],
      ),
    ).toBe(here.workspace);
    const enlist = 'insert into public.team_members (team_id, agent_id) values ($1, $2)';
    expect(await outcome(db.pool, enlist, [team, here.agent])).toBe('ok');
    expect(await outcome(db.pool, enlist, [team, there.agent])).toBe(foreignKeyViolation);
  });
});

describe('what crosses between tenants', () => {
  test('a user takes agents of his workspaces and public ones, no others', async () => {
    const { agent, viewer } = await company(db.pool);
    const stranger = await signUp(db.pool);
    const take = 'insert into public.user_agents (agent_id) values ($1)';
    const asked = (user: string) => asUser(db.pool, user, (client) => outcome(client, take, [agent]));
    expect(await asked(viewer)).toBe('ok');
    expect(await asked(stranger)).toBe(denied);
    await db.pool.query('update public.agents set is_public = true where id = $1', [agent]);
    expect(await asked(stranger)).toBe('ok');
  });

  test('an agent uses credentials and connections of its workspace or of its owner, unless another asks', async () => {
    const { workspace, owner, manager, agent } = await company(db.pool);
    const stranger = await signUp(db.pool);
    const grant = `select public.grant_agent_integration_permission($1, $2, '{}')`;
    const shared = await credential(db.pool, manager, workspace);
    const owners = await credential(db.pool, owner);
    const foreign = await credential(db.pool, stranger);
    expect(await outcome(db.pool, grant, [agent, shared])).toBe('ok');
    expect(await outcome(db.pool, grant, [agent, owners])).toBe('ok');
    expect(await outcome(db.pool, grant, [agent, foreign])).toBe(denied);

    const connection = (user: string) =>
      inserted(
        db.pool,
        `insert into public.api_connections (user_id, name, service, api_key) values ($1, 'n', 's', 'k')`,
        [user],
      );
    const link = 'insert into public.agent_api_connections (agent_id, api_connection_id) values ($1, $2)';
    const [mine, theirs] = [await connection(owner), await connection(stranger)];
    expect(await outcome(db.pool, link, [agent, theirs])).toBe(denied);
    await asUser(db.pool, manager, async (client) => {
      expect(await outcome(client, link, [agent, mine])).toBe(denied);
    });
    await asUser(db.pool, owner, async (client) => {
      expect(await outcome(client, link, [agent, mine])).toBe('ok');
    });
  });

  test('an integration of a user’s agent uses that user’s credentials', async () => {
    const { viewer, agent } = await company(db.pool);
    const userAgent = await inserted(
      db.pool,
      'insert into public.user_agents (user_id, agent_id) values ($1, $2)',
      [viewer, agent],
    );
    const add = `insert into public.integrations (user_agent_id, type, credential_id) values ($1, 'mail', $2)`;
    expect(await outcome(db.pool, add, [userAgent, await credential(db.pool, viewer)])).toBe('ok');
    expect(await outcome(db.pool, add, [userAgent, await credential(db.pool, await signUp(db.pool))])).toBe(
      denied,
    );
  });

  test('a channel is configured for an agent of the same workspace, which is found if left out', async () => {
    const [here, there] = [await company(db.pool), await company(db.pool)];
    expect(
      await value(
        db.pool,
        `insert into public.channel_configs (agent_id, channel) values ($1, 'web') returning workspace_id`,
        [here.agent],
      ),
    ).toBe(here.workspace);
    expect(
      await outcome(
        db.pool,
        `insert into public.channel_configs (workspace_id, agent_id, channel) values ($1, $2, 'web')`,
        [there.workspace, here.agent],
      ),
    ).toBe(foreignKeyViolation);
  });
});

test('a permission is granted, changed, listed and revoked by the documented functions', async () => {
  const { owner, viewer, agent } = await company(db.pool);
  const connection = await credential(db.pool, owner);
  await asUser(db.pool, owner, async (client) => {
    const first = await value<string>(
      client,
      `select public.grant_agent_integration_permission($1, $2, array['mail.read'], 'custom')`,
      [agent, connection],
    );
    const again = await value<string>(
      client,
      `select public.grant_agent_integration_permission($1, $2, array['mail.read', 'mail.send'], 'full_access')`,
      [agent, connection],
    );
    expect(again).toBe(first);
    const list = async () =>
      (await client.query('select * from public.get_agent_integration_permissions($1)', [agent])).rows;
    expect(await list()).toEqual([
      {
        permission_id: first,
        connection_id: connection,
        provider_name: 'smtp',
        connection_name: 'mail',
        allowed_scopes: ['mail.read', 'mail.send'],
        permission_level: 'full_access',
        is_active: true,
      },
    ]);
    const revoke = 'select public.revoke_agent_integration_permission($1)';
    expect(await value(client, revoke, [first])).toBe(true);
    expect((await list())[0]?.is_active).toBe(false);
    expect(await value(client, revoke, [agent])).toBe(false);
  });
  const permission = await value<string>(
    db.pool,
    `select public.grant_agent_integration_permission($1, $2, null)`,
    [agent, connection],
  );
  await asUser(db.pool, viewer, async (client) => {
    expect(await value(client, 'select public.revoke_agent_integration_permission($1)', [permission])).toBe(
      false,
    );
  });
});
