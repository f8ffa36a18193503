import { afterAll, beforeAll, expect, test } from 'vitest';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { asUser, company, denied, inserted, outcome, signUp, value } from './schema-support.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await testDatabase();
});
afterAll(() => db.dispose());

const connect = (agent: string, server: string | null = null) =>
  inserted(
    db.pool,
    `insert into public.agent_mcp_connections (agent_id, mcp_server_id, connection_name, server_url, next_refresh_at, refresh_failures)
     values ($1, $2, 'tools', 'https://one.example', '2030-01-01Z', 3)`,
    [agent, server],
  );

test('a connection uses a server configured for its own agent only', async () => {
  const [here, there] = [await company(db.pool), await company(db.pool)];
  const server = async (agent: string) =>
    inserted(
      db.pool,
      `insert into public.mcp_servers (config_id, name, endpoint_url) values ($1, 's', 'https://s.example')`,
      [await inserted(db.pool, 'insert into public.mcp_configurations (agent_id) values ($1)', [agent])],
    );
  const [own, foreign] = [await server(here.agent), await server(there.agent)];
  const connection = await connect(here.agent, own);
  const point = 'update public.agent_mcp_connections set mcp_server_id = $1 where id = $2';
  expect(await outcome(db.pool, point, [foreign, connection])).toBe(denied);
  expect(await outcome(db.pool, point, [null, connection])).toBe('ok');
});

test('a connection with a new address or switched on again is due at once; another edit changes nothing', async () => {
  const { agent } = await company(db.pool);
  const id = await connect(agent);
  const due = async () =>
    (
      await db.pool.query(
        'select next_refresh_at is null as due, refresh_failures as failures from public.agent_mcp_connections where id = $1',
        [id],
      )
    ).rows[0];
  const set = (change: string) =>
    db.pool.query(`update public.agent_mcp_connections set ${change} where id = $1`, [id]);
  await set(`connection_name = 'renamed', server_url = server_url`);
  expect(await due()).toEqual({ due: false, failures: 3 });
  await set(`server_url = 'https://two.example'`);
  expect(await due()).toEqual({ due: true, failures: 0 });
  await set(`next_refresh_at = '2030-01-01Z', is_active = false`);
  expect(await due()).toEqual({ due: false, failures: 0 });
  await set('is_active = true');
  expect(await due()).toEqual({ due: true, failures: 0 });
});

test('a tool environment belongs to the caller', async () => {
  const user = await signUp(db.pool);
  expect(
    await asUser(db.pool, user, (client) =>
      value(client, 'insert into public.account_tool_environments default values returning user_id'),
    ),
  ).toBe(user);
});
