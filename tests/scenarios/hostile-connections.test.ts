/** What users may not do by way of accounts, tool servers and triggers: to what only the worker says, to others' secrets, to others' time. */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { time } from '../../src/commands/format.ts';
import { nextCredentialDueMs } from '../../src/db/credential-repairs.ts';
import { claimCredential, credentialNow } from '../../src/db/credentials.ts';
import { offeredTools } from '../../src/db/mcp-tools.ts';
import { endpointFailed } from '../../src/db/provider-states.ts';
import { makeCredential, makeProvider } from '../support/credentials.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { connectAgent } from '../support/mcp.ts';
import { insert, makePlatform, type Platform } from '../support/platform.ts';
import { addMember, asService, asUser, stateOf } from '../support/sessions.ts';

const tooLarge = '23514';

let db: TestDatabase;
let owner: Platform;
let provider: string;
beforeAll(async () => {
  db = await testDatabase();
  owner = await makePlatform(db, { shared: true });
  provider = await makeProvider(db, 'https://provider.example/token');
});
afterAll(() => db?.dispose());

const one = async (sql: string, id: string): Promise<Record<string, unknown>> =>
  (await db.query<Record<string, unknown>>(sql, [id]))[0] ?? {};

describe('a credential', () => {
  test('keeps what the worker says of it, also where its user writes from a trigger of a table of his own', async () => {
    const id = await makeCredential(db, owner, provider);
    const engine = `select token_version, refresh_lease_until, refresh_failures, job_id, reason, is_refresh_due, refresh_request
                      from public.user_integration_credentials where id = $1`;
    const before = await one(engine, id);
    await asUser(db, owner.userId, async (client) => {
      await client.query('create temp table bait (x integer) on commit drop');
      await client.query(`create function pg_temp.spring() returns trigger language plpgsql as $$ begin
        update public.user_integration_credentials
           set token_version = 2147483647, refresh_lease_until = 'infinity', refresh_failures = 1000000,
               job_id = gen_random_uuid(), reason = E'\\x1b[2J', is_refresh_due = false, refresh_request = 2147483647;
        return new; end $$`);
      await client.query(
        'create trigger spring after insert on bait for each row execute function pg_temp.spring()',
      );
      await client.query('insert into bait values (1)');
      await client.query('drop function pg_temp.spring() cascade');
    });
    expect(await one(engine, id)).toEqual(before);
  });

  test('takes no more than a daemon can read many of', async () => {
    const id = await makeCredential(db, owner, provider);
    const set = (what: string): Promise<string> =>
      stateOf(
        asUser(db, owner.userId, (client) =>
          client.query(`update public.user_integration_credentials set ${what} where id = $1`, [id]),
        ),
      );
    expect(await set(`connection_metadata = jsonb_build_object('a', repeat('x', 70000))`)).toBe(tooLarge);
    expect(await set(`scopes_granted = jsonb_build_array(repeat('x', 1100000))`)).toBe(tooLarge);
    expect(await set(`vault_refresh_token_id = repeat('x', 600000)`)).toBe(tooLarge);
    expect(await set(`vault_access_token_id = repeat('x', 600000)`)).toBe(tooLarge);
    expect(await set(`connection_name = repeat('x', 5000)`)).toBe(tooLarge);
    expect(await set(`connection_name = 'mine'`)).toBe('ok');
  });

  test.each(['infinity', '-infinity', '294276-01-01', '4713-01-01 BC'])(
    'that ends at %s can be used, claimed and shown',
    async (at) => {
      const id = await makeCredential(db, owner, provider);
      await asUser(db, owner.userId, (client) =>
        client.query('update public.user_integration_credentials set token_expires_at = $2 where id = $1', [
          id,
          at,
        ]),
      );
      const of = { credentialId: id, workspaceId: owner.workspaceId };
      expect(Number.isFinite((await credentialNow(db, of))?.expires_in_ms)).toBe(true);
      const claim = await claimCredential(db, { id, workspaceId: owner.workspaceId, request: null }, 60);
      expect(claim?.id).toBe(id);
      expect(time(claim?.token_expires_at ?? null)).toMatch(/^(?:–|-?\d{4,6}-\d\d-\d\d .*)/);
    },
  );

  test('that is due at no time, or for ever, keeps nobody from knowing when the next one is', async () => {
    const id = await makeCredential(db, owner, provider, { connection_name: 'odd times' });
    const due = async (at: string): Promise<number | null> => {
      await db.query(
        `update public.user_integration_credentials set next_refresh_at = case when id = $1 then $2::timestamptz end, is_refresh_due = false`,
        [id, at],
      );
      return nextCredentialDueMs(db);
    };
    expect(await due('infinity')).toBe(86_400_000);
    expect(await due('-infinity')).toBeNull();
  });

  test('whose odd token a provider takes for a wrong client keeps nobody else from asking it', async () => {
    for (let n = 0; n < 10; n++)
      await endpointFailed(db, provider, {
        blockMs: null,
        isAlarm: true,
        reasonCode: 'provider_misconfigured',
        reason: 'x',
      });
    const other = await makePlatform(db);
    const id = await makeCredential(db, other, provider);
    const claim = await claimCredential(db, { id, workspaceId: other.workspaceId, request: null }, 60);
    expect(claim?.blocked_ms).toBe(0);
    // one that does not answer is left alone all the same
    for (let n = 0; n < 5; n++)
      await endpointFailed(db, provider, {
        blockMs: null,
        isAlarm: false,
        reasonCode: 'provider_unavailable',
        reason: 'x',
      });
    const next = await makeCredential(db, other, provider, { connection_name: 'next' });
    const late = await claimCredential(db, { id: next, workspaceId: other.workspaceId, request: null }, 60);
    expect(late?.blocked_ms).toBeGreaterThan(0);
  });
});

describe('a secret that a manager can use and not read', () => {
  const place = 'select endpoint_url, vault_api_key_id from public.mcp_servers where id = $1';
  let manager: string;
  let config: string;
  beforeAll(async () => {
    manager = await addMember(db, owner, 'manager');
    config = await insert(db, 'public.mcp_configurations', { agent_id: owner.agentId });
  });
  async function server(key: string): Promise<string> {
    return insert(db, 'public.mcp_servers', {
      config_id: config,
      name: 'tools',
      endpoint_url: 'https://good.example/mcp',
      vault_api_key_id: key,
    });
  }

  test('does not go to another server with the address of its server', async () => {
    const key = randomUUID();
    const id = await server(key);
    const move = async (url: string, as: typeof asService): Promise<void> => {
      await as(db, (client) =>
        client.query('update public.mcp_servers set endpoint_url = $2 where id = $1', [id, url]),
      );
    };
    const asManager: typeof asService = (database, act) => asUser(database, manager, act);
    await move('https://good.example/v2/mcp', asManager);
    await move('https://better.example/mcp', asService);
    expect(await one(place, id)).toEqual({
      endpoint_url: 'https://better.example/mcp',
      vault_api_key_id: key,
    });
    await move('https://evil.example/mcp', asManager);
    expect(await one(place, id)).toEqual({
      endpoint_url: 'https://evil.example/mcp',
      vault_api_key_id: null,
    });
  });

  test('does not go to another server with its server, into another configuration', async () => {
    const id = await server(randomUUID());
    const other = await insert(db, 'public.mcp_configurations', { agent_id: owner.agentId });
    await asUser(db, manager, (client) =>
      client.query('update public.mcp_servers set config_id = $2 where id = $1', [id, other]),
    );
    expect((await one(place, id)).vault_api_key_id).toBeNull();
  });

  test.each([
    ['https://good.example/mcp', 'https:\\\\evil.example/mcp'],
    ['https://good.example/mcp', 'https://good.example@evil.example/mcp'],
    ['https://good.example/mcp', 'https://good.example\\@evil.example/mcp'],
    [' https://good.example/mcp', ' https://evil.example/mcp'],
    ['https:good.example/mcp', 'https:evil.example/mcp'],
  ])('%s does not become %s with it', async (was, is) => {
    const id = await connectAgent(db, owner, was, {
      connection_name: randomUUID(),
      auth_type: 'bearer',
      auth_secret: 'not-to-be-read',
    });
    await asUser(db, manager, (client) =>
      client.query('update public.agent_mcp_connections set server_url = $2 where id = $1', [id, is]),
    );
    expect(
      await one('select server_url, auth_secret from public.agent_mcp_connections where id = $1', id),
    ).toEqual({ server_url: is, auth_secret: null });
  });
});

describe('what one tenant has much of', () => {
  test('agents with long names: a message that looks like mentions is compared in bounded time', async () => {
    const crowd = await makePlatform(db, { shared: true, agent: { name: 'a' } });
    await db.query(
      `insert into public.agents (workspace_id, user_id, name, instructions, model)
       select $1, $2, case when n = 20000 then 'a x' else 'a' || n end, 'x', 'none' from generate_series(1, 20000) n`,
      [crowd.workspaceId, crowd.userId],
    );
    const mentions = await asUser(db, crowd.userId, async (client) => {
      await client.query('reset role');
      await client.query(`set local statement_timeout = '1s'`);
      return client.query(`select agentd.mentions_agent(repeat('@a x ', 60), '{}', $1, $2, 'a') as here`, [
        crowd.workspaceId,
        crowd.agentId,
      ]);
    });
    // whether it is one depends on who else has a longer name, among so many agents on chance
    expect(mentions.rows).toHaveLength(1);
  });

  test('connections with tools: those of the oldest hundred are looked through', async () => {
    const many = await makePlatform(db, { shared: true });
    await db.query(
      `insert into public.agent_mcp_connections (agent_id, connection_name, server_url, created_at)
       select $1, 'c' || n, 'https://tools.example', now() + n * interval '1 second' from generate_series(1, 120) n`,
      [many.agentId],
    );
    await db.query(
      `insert into public.mcp_tools_cache (connection_id, tool_name, function_name, tool_schema, openai_schema, schema_hash, pinned_hash)
       select c.id, c.connection_name || '/t' || n, c.connection_name || '_t' || n, '{}', '{}', 'h', 'h'
         from public.agent_mcp_connections c, generate_series(1, 5) n where c.agent_id = $1`,
      [many.agentId],
    );
    const of = { agentId: many.agentId, workspaceId: many.workspaceId };
    const all = await offeredTools(db, { ...of, selected: [] });
    expect([all.tools.length, all.leftOut]).toEqual([120, 380]);
    const selected = ['c2/c2/t1', 'c3_t2', 'elsewhere/c4_t1', 'c101_t1', 'xc5_t1', 't1'];
    const some = await offeredTools(db, { ...of, selected });
    expect(some.tools.map((tool) => tool.tool_name)).toEqual(['c2/t1', 'c3/t2', 'c4/t1']);
  });
});
