/** A caller's temporary objects are never taken for the database's own. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { makePlatform, type Platform } from '../support/platform.ts';
import { asUser } from '../support/sessions.ts';

let db: TestDatabase;
let platform: Platform;
beforeAll(async () => {
  db = await testDatabase();
  platform = await makePlatform(db);
});
afterAll(() => db?.dispose());

/** Types and functions that the definer functions name without a schema. */
const TYPES = ['uuid', 'text', 'jsonb', 'int4', 'int8', 'bool', 'timestamptz', 'interval'];

test('a temporary domain named like a type of PostgreSQL runs none of its author’s code as the owner of a function', async () => {
  const calls = await asUser(db, platform.userId, async (session) => {
    await session.query('create temporary table calls (by_whom text)');
    await session.query('grant all on calls to public');
    for (const type of TYPES) {
      await session.query(
        `create function pg_temp.evil_${type}(pg_catalog.${type}) returns pg_catalog.bool language plpgsql as $$
         begin insert into pg_temp.calls values (current_user::pg_catalog.text); return true; end $$`,
      );
      await session.query(
        `create domain pg_temp.${type} as pg_catalog.${type} check (pg_temp.evil_${type}(value))`,
      );
    }
    await session.query(`insert into public.teams (name) values ('temporary')`);
    await session.query(`insert into public.agents (name) values ('temporary')`);
    await session.query(`select public.check_usage_limit($1::pg_catalog.uuid)`, [platform.workspaceId]);
    await session.query(`select * from agentopia.agents`);
    const { rows } = await session.query<{ by_whom: string }>('select distinct by_whom from pg_temp.calls');
    return rows.map((row) => row.by_whom).filter((role) => role !== 'authenticated');
  });
  expect(calls).toEqual([]);
});
