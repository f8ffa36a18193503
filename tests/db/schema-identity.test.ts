import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import {
  asUser,
  checkViolation,
  column,
  company,
  foreignKeyViolation,
  inserted,
  outcome,
  personalWorkspace,
  signUp,
  uniqueViolation,
  value,
} from './schema-support.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await testDatabase();
});
afterAll(() => db.dispose());

const roleOf = (workspace: string, user: string) =>
  value<string>(
    db.pool,
    'select role::text from public.user_roles where workspace_id = $1 and user_id = $2',
    [workspace, user],
  );
const memberRoleOf = (workspace: string, user: string) =>
  value<string>(
    db.pool,
    'select role::text from public.workspace_members where workspace_id = $1 and user_id = $2',
    [workspace, user],
  );

describe('signing up', () => {
  test('gives the user one personal workspace, owned by him', async () => {
    const user = await signUp(db.pool);
    const workspace = await personalWorkspace(db.pool, user);
    expect(await roleOf(workspace, user)).toBe('OWNER');
    expect(await memberRoleOf(workspace, user)).toBe('owner');
    expect(await value(db.pool, 'select agentd.ensure_personal_workspace($1)', [user])).toBe(workspace);
    expect(
      await outcome(
        db.pool,
        `insert into public.workspaces (name, owner_user_id, is_personal) values ('second', '${user}', true)`,
      ),
    ).toBe(uniqueViolation);
  });

  test('never fails because of agentd: the error is recorded, the workspace made when first needed', async () => {
    await db.pool.query(
      `alter table public.workspaces add constraint broken check (not is_personal or name <> 'Personal') not valid`,
    );
    let user: string;
    try {
      user = await signUp(db.pool);
    } finally {
      await db.pool.query('alter table public.workspaces drop constraint broken');
    }
    const failure = await db.pool.query(
      'select error_code, error_message from agentd.signup_failures where user_id = $1',
      [user],
    );
    expect(failure.rows).toEqual([
      { error_code: checkViolation, error_message: expect.stringContaining('broken') },
    ]);
    const agent = await inserted(db.pool, `insert into public.agents (user_id, name) values ($1, 'late')`, [
      user,
    ]);
    expect(await value(db.pool, 'select workspace_id from public.agents where id = $1', [agent])).toBe(
      await personalWorkspace(db.pool, user),
    );
  });

  test('deleting the user takes along what nobody else uses, and a shared workspace passes to its next owner', async () => {
    const lonely = await signUp(db.pool);
    const workspace = await personalWorkspace(db.pool, lonely);
    await db.pool.query('delete from auth.users where id = $1', [lonely]);
    expect(
      await value(db.pool, 'select 1 from public.workspaces where id = $1', [workspace]),
    ).toBeUndefined();

    const { owner, manager, workspace: shared } = await company(db.pool);
    expect(await outcome(db.pool, 'delete from auth.users where id = $1', [owner])).toBe('ok');
    expect(await value(db.pool, 'select owner_user_id from public.workspaces where id = $1', [shared])).toBe(
      manager,
    );
  });
});

describe('what an insert leaves out', () => {
  test('a workspace needs only a name: the slug is made from it and stays unique, the owner is the caller', async () => {
    const user = await signUp(db.pool);
    const made = await asUser(db.pool, user, async (client) => {
      const first = await client.query(
        `insert into public.workspaces (name) values ('Élan & Partner') returning slug, owner_user_id`,
      );
      const second = await client.query(
        `insert into public.workspaces (name) values ('Élan & Partner') returning slug`,
      );
      return { first: first.rows[0], second: second.rows[0].slug as string };
    });
    expect(made.first).toEqual({ slug: 'lan-partner', owner_user_id: user });
    expect(made.second).toMatch(/^lan-partner-[0-9a-f]{8}$/);
    expect(await value(db.pool, `select agentd.slug_of('日本')`)).toBe('workspace');
  });

  test('without a caller, rows belong to the workspace owner, and without a workspace to the system', async () => {
    const { workspace, owner } = await company(db.pool);
    const team = `insert into public.teams (name, workspace_id) values ('crew', $1)`;
    const teamId = await inserted(db.pool, team, [workspace]);
    expect(await value(db.pool, 'select owner_user_id from public.teams where id = $1', [teamId])).toBe(
      owner,
    );
    expect(await value(db.pool, 'select agentd.default_user_id($1)', [workspace])).toBe(owner);

    const system = await value<string>(db.pool, 'select agentd.system_user_id()');
    const lost = await inserted(db.pool, `insert into public.teams (name) values ('lost')`);
    const row = await db.pool.query('select owner_user_id, workspace_id from public.teams where id = $1', [
      lost,
    ]);
    expect(row.rows[0]).toEqual({
      owner_user_id: system,
      workspace_id: await personalWorkspace(db.pool, system as string),
    });
  });

  test('a team without a workspace falls into its owner’s personal one', async () => {
    const user = await signUp(db.pool);
    const team = await inserted(db.pool, `insert into public.teams (name, owner_user_id) values ('t', $1)`, [
      user,
    ]);
    expect(await value(db.pool, 'select workspace_id from public.teams where id = $1', [team])).toBe(
      await personalWorkspace(db.pool, user),
    );
  });

  test('user_id of a user’s own rows is the caller', async () => {
    const user = await signUp(db.pool);
    const owners = await asUser(db.pool, user, async (client) => [
      await value(client, 'insert into public.user_preferences default values returning user_id'),
      await value(client, `insert into public.user_secrets (vault_id) values ('v') returning user_id`),
      await value(client, 'insert into public.team_canvas_layouts default values returning user_id'),
      await value(
        client,
        'select user_id from public.team_canvas_layouts where workspace_id = any (array(select agentd.my_workspace_ids()))',
      ),
    ]);
    expect(owners).toEqual([user, user, user, user]);
  });
});

describe('roles', () => {
  test('get_user_role, has_role and user_has_workspace_access answer for the caller', async () => {
    const { workspace, owner, manager, viewer } = await company(db.pool);
    const stranger = await signUp(db.pool);
    const ask = (user: string) =>
      asUser(db.pool, user, async (client) => {
        const result = await client.query(
          `select public.get_user_role($1)::text as role, public.has_role($1, 'MANAGER') as manages,
                  public.user_has_workspace_access($1) as sees`,
          [workspace],
        );
        return result.rows[0];
      });
    expect(await ask(owner)).toEqual({ role: 'OWNER', manages: true, sees: true });
    expect(await ask(manager)).toEqual({ role: 'MANAGER', manages: true, sees: true });
    expect(await ask(viewer)).toEqual({ role: 'VIEWER', manages: false, sees: true });
    expect(await ask(stranger)).toEqual({ role: null, manages: false, sees: false });
  });

  test('my_workspace_ids lists the workspaces in which the caller has at least the role', async () => {
    const { workspace, manager } = await company(db.pool);
    const personal = await personalWorkspace(db.pool, manager);
    const lists = await asUser(db.pool, manager, async (client) => ({
      all: await column(client, 'select agentd.my_workspace_ids()'),
      managed: await column(client, `select agentd.my_workspace_ids('MANAGER')`),
      owned: await column(client, `select agentd.my_workspace_ids('OWNER')`),
    }));
    expect(new Set(lists.all)).toEqual(new Set([workspace, personal]));
    expect(new Set(lists.managed)).toEqual(new Set([workspace, personal]));
    expect(lists.owned).toEqual([personal]);
    expect(await column(db.pool, 'select agentd.my_workspace_ids()')).toEqual([]);
  });

  test('memberships and roles mirror each other through insert, update and delete', async () => {
    const { workspace } = await company(db.pool);
    const user = await signUp(db.pool);
    await db.pool.query(
      `insert into public.workspace_members (workspace_id, user_id, role) values ($1, $2, 'member')`,
      [workspace, user],
    );
    expect(await roleOf(workspace, user)).toBe('VIEWER');
    await db.pool.query(
      `update public.workspace_members set role = 'manager' where workspace_id = $1 and user_id = $2`,
      [workspace, user],
    );
    expect(await roleOf(workspace, user)).toBe('MANAGER');
    await db.pool.query(
      `update public.user_roles set role = 'OWNER' where workspace_id = $1 and user_id = $2`,
      [workspace, user],
    );
    expect(await memberRoleOf(workspace, user)).toBe('owner');
    await db.pool.query('delete from public.user_roles where workspace_id = $1 and user_id = $2', [
      workspace,
      user,
    ]);
    expect(await memberRoleOf(workspace, user)).toBeUndefined();

    await db.pool.query(
      `insert into public.user_roles (workspace_id, user_id, role) values ($1, $2, 'VIEWER')`,
      [workspace, user],
    );
    expect(await memberRoleOf(workspace, user)).toBe('viewer');
    await db.pool.query('delete from public.workspace_members where workspace_id = $1 and user_id = $2', [
      workspace,
      user,
    ]);
    expect(await roleOf(workspace, user)).toBeUndefined();
  });

  test('a member keeps his finer role when his app role is written back unchanged', async () => {
    const { workspace } = await company(db.pool);
    const user = await signUp(db.pool);
    await db.pool.query('insert into public.workspace_members (workspace_id, user_id) values ($1, $2)', [
      workspace,
      user,
    ]);
    await db.pool.query(
      `update public.user_roles set role = 'VIEWER' where workspace_id = $1 and user_id = $2`,
      [workspace, user],
    );
    expect(await memberRoleOf(workspace, user)).toBe('member');
  });

  test('the owner’s rows that an application inserts itself take the place of the automatic ones', async () => {
    const user = await signUp(db.pool);
    const make = () =>
      inserted(db.pool, `insert into public.workspaces (name, owner_user_id) values ('mine', $1)`, [user]);

    const agentopia = await make();
    const member = await inserted(
      db.pool,
      `insert into public.workspace_members (workspace_id, user_id, role) values ($1, $2, 'owner')`,
      [agentopia, user],
    );
    expect(
      await column(db.pool, 'select id from public.workspace_members where workspace_id = $1', [agentopia]),
    ).toEqual([member]);
    expect(await roleOf(agentopia, user)).toBe('OWNER');

    const agentCenter = await make();
    const role = await inserted(
      db.pool,
      `insert into public.user_roles (workspace_id, user_id, role) values ($1, $2, 'OWNER')`,
      [agentCenter, user],
    );
    expect(
      await column(db.pool, 'select id from public.user_roles where workspace_id = $1', [agentCenter]),
    ).toEqual([role]);
    expect(await memberRoleOf(agentCenter, user)).toBe('owner');

    // A second row that a person wrote is a mistake, and refused.
    expect(
      await outcome(db.pool, 'insert into public.workspace_members (workspace_id, user_id) values ($1, $2)', [
        agentopia,
        user,
      ]),
    ).toBe(uniqueViolation);
  });

  test('a new owner of a workspace becomes its OWNER', async () => {
    const { workspace, viewer } = await company(db.pool);
    await db.pool.query('update public.workspaces set owner_user_id = $1 where id = $2', [viewer, workspace]);
    expect(await roleOf(workspace, viewer)).toBe('OWNER');
  });

  test('a row of user_roles is a workspace role or a named role, never both or neither', async () => {
    const { workspace, viewer } = await company(db.pool);
    const admin = await inserted(db.pool, `insert into public.roles (name) values ('admin')`);
    expect(
      await outcome(db.pool, 'insert into public.user_roles (user_id, role_id) values ($1, $2)', [
        viewer,
        admin,
      ]),
    ).toBe('ok');
    expect(
      await outcome(
        db.pool,
        `insert into public.user_roles (user_id, workspace_id, role, role_id) values ($1, $2, 'OWNER', $3)`,
        [await signUp(db.pool), workspace, admin],
      ),
    ).toBe(checkViolation);
    expect(await outcome(db.pool, 'insert into public.user_roles (user_id) values ($1)', [viewer])).toBe(
      checkViolation,
    );
    expect(await value(db.pool, `select agentd.app_role_of('member')::text`)).toBe('VIEWER');
  });
});

describe('teams', () => {
  test('create_team_connection connects teams of one workspace and refuses to cross', async () => {
    const [here, there] = [await company(db.pool), await company(db.pool)];
    const team = (workspace: string) =>
      inserted(db.pool, `insert into public.teams (name, workspace_id) values ('t', $1)`, [workspace]);
    const [a, b, foreign] = [
      await team(here.workspace),
      await team(here.workspace),
      await team(there.workspace),
    ];
    const connection = await value<string>(
      db.pool,
      `select public.create_team_connection($1, $2, 'reports_to', $3)`,
      [a, b, here.owner],
    );
    expect(
      await value(db.pool, 'select workspace_id from public.team_connections where id = $1', [connection]),
    ).toBe(here.workspace);
    expect(
      await outcome(db.pool, `select public.create_team_connection($1, $2, 'supports', $3)`, [
        a,
        foreign,
        here.owner,
      ]),
    ).toBe(foreignKeyViolation);
  });

  test('save_team_canvas_layout keeps one layout a user and workspace', async () => {
    const { workspace, viewer } = await company(db.pool);
    const save = (client: Parameters<typeof value>[0], positions: string) =>
      value<string>(client, `select public.save_team_canvas_layout($1, $2, $3, '[]', '{}')`, [
        viewer,
        workspace,
        positions,
      ]);
    const seen = await asUser(db.pool, viewer, async (client) => {
      const first = await save(client, '{"a": 1}');
      const second = await save(client, '{"a": 2}');
      return {
        same: first === second,
        positions: await value(client, 'select positions from public.team_canvas_layouts where id = $1', [
          first,
        ]),
      };
    });
    expect(seen).toEqual({ same: true, positions: { a: 2 } });
  });
});
