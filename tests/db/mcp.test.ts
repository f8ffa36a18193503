/** Connections to MCP servers as rows: requests, admission, claims, repairs, and what a user may say of them. */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  admitRefreshes,
  claimRefreshes,
  failRefresh,
  putBackRefresh,
  requestRefresh,
  storeListing,
} from '../../src/db/mcp.ts';
import { requeueLapsedRefreshes, requeueRefreshesWithoutJob } from '../../src/db/mcp-repairs.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { type Columns, insert, makePlatform, type Platform } from '../support/platform.ts';
import { asUser } from '../support/sessions.ts';

let db: TestDatabase;
let platform: Platform;
beforeAll(async () => {
  db = await testDatabase();
  platform = await makePlatform(db, { shared: true });
});
afterAll(() => db?.dispose());

const connect = (columns: Columns = {}, owner = platform): Promise<string> =>
  insert(db, 'public.agent_mcp_connections', {
    agent_id: owner.agentId,
    connection_name: 'c',
    server_url: 'https://one.example/mcp',
    ...columns,
  });
type State = {
  epoch: number;
  job_id: string | null;
  is_wanted: boolean;
  is_leased: boolean;
  failures: number;
};
const state = async (id: string): Promise<State> => {
  const [row] = await db.query<State>(
    `select lease_epoch as epoch, job_id, wanted_at is not null as is_wanted, lease_expires_at is not null as is_leased, failures
       from agentd.mcp_refreshes where id = $1`,
    [id],
  );
  if (!row) throw new Error('It has no row.');
  return row;
};
const claim = async (id: string) => {
  const { epoch } = await state(id);
  const [claimed = null] = await claimRefreshes(db, [{ connectionId: id, epoch }], 'worker', 15);
  if (!claimed) throw new Error('It could not be claimed.');
  return claimed;
};
const FACTS = {
  job_id: randomUUID(),
  duration_ms: 1,
  next_ms: 3_600_000,
  server_info: {},
  listed: 0,
  dropped: 0,
};
const FAILED = {
  jobId: randomUUID(),
  code: 'timeout',
  reason: 'Late. Wait.',
  inMs: 60_000,
  durationMs: 1,
  details: {},
};

test('a workspace has no more looks under way than its ceiling, and another’s come in beside', async () => {
  const [busy, quiet] = [await makePlatform(db), await makePlatform(db)];
  const many = await Promise.all(Array.from({ length: 20 }, () => connect({}, busy)));
  const one = await connect({}, quiet);
  await admitRefreshes(db, 100);
  const states = await Promise.all(many.map(state));
  expect(states.filter(({ job_id }) => job_id !== null)).toHaveLength(16);
  expect((await state(one)).job_id).not.toBeNull();
  await db.query('delete from public.agent_mcp_connections where agent_id in ($1, $2)', [
    busy.agentId,
    quiet.agentId,
  ]);
});

test('a claim is one worker’s, and what it writes after it was taken over changes nothing', async () => {
  const id = await connect();
  await admitRefreshes(db, 100);
  const { epoch } = await state(id);
  const first = await claim(id);
  const again = { connectionId: id, epoch };
  expect(await claimRefreshes(db, [again, again], 'other', 15)).toEqual([null, null]);
  await db.query(
    `update agentd.mcp_refreshes set lease_expires_at = agentd.now() - interval '1 second' where id = $1`,
    [id],
  );
  expect(await requeueLapsedRefreshes(db)).toBe(1);
  expect(await storeListing(db, first, [], FACTS)).toBeNull();
  expect(await failRefresh(db, first, FAILED)).toBe(false);
  await putBackRefresh(db, first, 0);
  expect(await state(id)).toMatchObject({ job_id: null, is_wanted: true, is_leased: false });
  await admitRefreshes(db, 100);
  const second = await claim(id);
  expect(await storeListing(db, second, [], FACTS)).toMatchObject({ added: 0, usable: 0 });
  expect(await state(id)).toMatchObject({ job_id: null, is_wanted: false, is_leased: false });
});

test('a connection whose job is gone is let in again', async () => {
  const id = await connect();
  await admitRefreshes(db, 100);
  const { job_id } = await state(id);
  await db.query(`delete from pgboss.job where name = 'mcp-refresh' and id = $1`, [job_id]);
  expect(await requeueRefreshesWithoutJob(db)).toBe(1);
  await admitRefreshes(db, 100);
  expect((await state(id)).job_id).not.toBeNull();
});

test('what is wished for during a look is another look', async () => {
  const id = await connect();
  await admitRefreshes(db, 100);
  const claimed = await claim(id);
  expect((await state(id)).is_wanted).toBe(false);
  await requestRefresh(db, id, 'asked');
  await storeListing(db, claimed, [], FACTS);
  expect(await state(id)).toMatchObject({ job_id: null, is_wanted: true });
});

test('what a server can cause comes every ten seconds at most, and not before the end of a backoff', async () => {
  const id = await connect();
  await admitRefreshes(db, 100);
  await storeListing(db, await claim(id), [], FACTS);
  await requestRefresh(db, id, 'tool_call');
  expect(await state(id)).toMatchObject({ is_wanted: true });
  await admitRefreshes(db, 100);
  expect((await state(id)).job_id).toBeNull();
  await requestRefresh(db, id, 'asked');
  await admitRefreshes(db, 100);
  expect((await state(id)).job_id).not.toBeNull();
  await failRefresh(db, await claim(id), FAILED);
  await requestRefresh(db, id, 'list_changed');
  expect(await state(id)).toMatchObject({ is_wanted: false, failures: 1 });
  await requestRefresh(db, id, 'asked');
  expect(await state(id)).toMatchObject({ is_wanted: true, failures: 0 });
});

test('a user says where a connection leads, and nothing of what became of it', async () => {
  const { agentId, userId } = platform;
  await asUser(db, userId, (as) =>
    as.query(
      `insert into public.agent_mcp_connections (agent_id, connection_name, server_url, reason_code, tools_usable, refresh_failures, next_refresh_at)
       values ($1, 'mine', 'https://mine.example', 'fine', 9, 9, '2099-01-01Z')`,
      [agentId],
    ),
  );
  const mine = `select reason_code, tools_usable, refresh_failures, next_refresh_at from public.agent_mcp_connections where connection_name = 'mine'`;
  const nothing = { reason_code: null, tools_usable: null, refresh_failures: 0, next_refresh_at: null };
  expect(await db.query(mine)).toEqual([nothing]);
  await asUser(db, userId, (as) =>
    as.query(
      `update public.agent_mcp_connections set reason_code = 'fine', tools_usable = 9, refresh_failures = 9, next_refresh_at = '2099-01-01Z',
              connection_name = 'mine' where connection_name = 'mine'`,
    ),
  );
  expect(await db.query(mine)).toEqual([nothing]);
  await expect(
    asUser(db, userId, (as) => as.query('update public.mcp_tools_cache set is_quarantined = false')),
  ).rejects.toThrow(/permission denied/);
  await expect(
    asUser(db, userId, (as) => as.query(`select agentd.request_mcp_refresh($1, 'asked')`, [randomUUID()])),
  ).rejects.toThrow(/permission denied/);
});

test('a secret follows its address to no other origin by a user’s hand', async () => {
  const id = await connect({ auth_type: 'bearer', auth_secret: 's3cret' });
  const point = (url: string, more = '') =>
    asUser(db, platform.userId, (as) =>
      as.query(`update public.agent_mcp_connections set server_url = $2 ${more} where id = $1`, [id, url]),
    );
  const secret = async () =>
    (
      await db.query<{ s: string | null }>(
        'select auth_secret as s from public.agent_mcp_connections where id = $1',
        [id],
      )
    )[0]?.s;
  await point('https://one.example/other/path');
  expect(await secret()).toBe('s3cret');
  await point('https://one.example@evil.example/mcp');
  expect(await secret()).toBeNull();
  await point('https://two.example/mcp', `, auth_secret = 'another'`);
  expect(await secret()).toBe('another');
  await point('http://two.example/mcp');
  expect(await secret()).toBeNull();
});
