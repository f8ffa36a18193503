/** Every table of schema public × every command × every caller, against isolation-rules.ts. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import {
  expectations,
  group,
  readAfterLeaving,
  type SignedIn,
  signedIn,
  takenAfterLeaving,
  writtenForOthers,
} from './isolation-rules.ts';
import {
  type Answer,
  attemptInsert,
  type Caller,
  makeWorld,
  onStage,
  rowIn,
  type Stage,
  touches,
  type World,
} from './isolation-world.ts';
import { column, denied, value } from './schema-support.ts';

let db: TestDatabase;
let world: World;
let touch: (table: string) => string;
beforeAll(async () => {
  db = await testDatabase();
  world = await makeWorld(db);
  touch = await touches(db);
});
afterAll(() => db.dispose());

const notWritable = '55000';
const commands = ['select', 'insert', 'update', 'delete'] as const;

function attempt(
  stage: Stage,
  caller: Caller,
  command: (typeof commands)[number],
  table: string,
): Promise<Answer> {
  const condition = rowIn(world, table);
  switch (command) {
    case 'select':
      return stage.attempt(caller, `select 1 from public.${table} where ${condition}`);
    case 'insert':
      return attemptInsert(stage, caller, table);
    case 'update':
      return stage.attempt(caller, `${touch(table)} where ${condition}`);
    case 'delete':
      return stage.attempt(caller, `delete from public.${table} where ${condition}`);
  }
}

/** "yes", "no", or what else went wrong: an error that is no refusal must not pass for one. */
function verdict(answer: Answer): string {
  if (answer.code === denied || (answer.code === 'ok' && answer.count === 0)) return 'no';
  return answer.code === 'ok' ? 'yes' : `${answer.code} ${answer.message}`;
}

test('every table of schema public has an expectation, and every expectation a table', () => {
  expect(Object.keys(expectations).sort()).toEqual(world.tables);
});

describe.each(signedIn.map((caller) => [caller]))('the %s', (caller: SignedIn) => {
  test.each(commands.map((command) => [command]))(
    '%s: exactly where it is expected',
    async (command) => {
      const got: Record<string, string> = {};
      const wanted: Record<string, string> = {};
      await onStage(db, world, async (stage) => {
        for (const table of world.tables) {
          got[table] = verdict(await attempt(stage, caller, command, table));
          const expected = expectations[table]?.[command];
          wanted[table] = expected && group(expected).includes(caller) ? 'yes' : 'no';
        }
      });
      expect(got).toEqual(wanted);
    },
    60_000,
  );
});

test('a token without a user sees nothing and writes nothing; anon is refused everything', async () => {
  const open: string[] = [];
  await onStage(db, world, async (stage) => {
    for (const table of world.tables) {
      for (const command of commands) {
        if (verdict(await attempt(stage, 'no user', command, table)) !== 'no')
          open.push(`no user ${command} ${table}`);
        if ((await attempt(stage, 'anon', command, table)).code !== denied)
          open.push(`anon ${command} ${table}`);
      }
    }
  });
  expect(open).toEqual([]);
}, 60_000);

test.each([['service_role'], ['agentd_worker']] as const)(
  '%s may do everything',
  async (role) => {
    const refused: string[] = [];
    await onStage(db, world, async (stage) => {
      for (const table of world.tables) {
        for (const command of commands) {
          const answer = await attempt(stage, role, command, table);
          // Rows of the platform are in use, and may therefore not be deleted: not a matter of rights.
          if (['23503', '23001'].includes(answer.code) && command === 'delete') continue;
          if (verdict(answer) !== 'yes') refused.push(`${command} ${table}: ${verdict(answer)}`);
        }
      }
    });
    expect(refused).toEqual([]);
  },
  60_000,
);

test('nobody writes in another’s name but a manager, where that is what the table is for', async () => {
  const written: string[] = [];
  await onStage(db, world, async (stage) => {
    for (const table of world.tables) {
      for (const caller of ['stranger', 'viewer', 'manager', 'owner'] as const) {
        const insert = await attemptInsert(stage, caller, table, world.here.author);
        const own = await attemptInsert(stage, caller, table);
        if (verdict(insert) === 'no') continue;
        // Where the row names no user, both inserts are the same.
        if (await namesUser(stage, table)) written.push(`${caller} ${table}`);
        expect(verdict(own), `${caller} ${table}`).toBe('yes');
      }
    }
  });
  const expected = Object.keys(writtenForOthers).flatMap((table) =>
    ['manager', 'owner'].map((caller) => `${caller} ${table}`),
  );
  expect(written.sort()).toEqual(expected.sort());
}, 60_000);

/** Whether the row of a table says whose it is (memberships say who is a member, which is another thing). */
async function namesUser(stage: Stage, table: string): Promise<boolean> {
  if (['user_roles', 'workspace_members', 'chat_room_members'].includes(table)) return false;
  const found = await value<boolean>(
    stage.client,
    `select exists (
       select 1 from pg_attribute
        where attrelid = ('public.' || $1)::regclass and not attisdropped
          and attname in ('user_id', 'owner_user_id', 'sender_user_id'))
       or $1 in ('profiles')`,
    [table],
  );
  return found ?? false;
}

describe('statements without a condition', () => {
  // A condition asks for the right to read the row, and hides what the rule for writing alone would let through.
  const blind = async (caller: Caller, leave: boolean): Promise<string[]> => {
    const gone: string[] = [];
    await onStage(db, world, async (stage) => {
      if (leave) {
        await stage.client.query(
          'delete from public.workspace_members where user_id = $1 and workspace_id = $2',
          [world.here.author, world.here.workspace],
        );
      }
      for (const table of world.tables) {
        const there = `select count(*)::int from public.${table} where ${rowIn(world, table)}`;
        const before = await value<number>(stage.client, there);
        await stage.attempt(caller, `delete from public.${table}`, [], async () => {
          if ((await value<number>(stage.client, there)) !== before) gone.push(table);
        });
        const version = `select array_agg(xmin::text || ctid::text)::text from public.${table} where ${rowIn(world, table)}`;
        const old = await value<string>(stage.client, version);
        await stage.attempt(caller, touch(table), [], async () => {
          if ((await value<string>(stage.client, version)) !== old && !gone.includes(table)) gone.push(table);
        });
      }
    });
    return gone.sort();
  };

  test('reach no row of another tenant', async () => {
    expect(await blind('outsider', false)).toEqual([]);
    expect(await blind('stranger', false)).toEqual([]);
    expect(await blind('viewer', false)).toEqual([]);
  }, 60_000);

  test('reach, of what a user wrote before he left, only what was his alone', async () => {
    // His profile is his, and is not deleted.
    expect(await blind('author', true)).toEqual([...takenAfterLeaving, 'profiles'].sort());
  }, 60_000);
});

test('who leaves the company reads what was his own and nothing else of it', async () => {
  const seen: string[] = [];
  await onStage(db, world, async (stage) => {
    await stage.client.query(
      'delete from public.workspace_members where user_id = $1 and workspace_id = $2',
      [world.here.author, world.here.workspace],
    );
    for (const table of world.here.where.keys())
      if (verdict(await attempt(stage, 'author', 'select', table)) !== 'no') seen.push(table);
  });
  expect(seen.sort()).toEqual(readAfterLeaving);
});

test('a public agent is seen by everyone, and its children and secrets by nobody else', async () => {
  await onStage(db, world, async (stage) => {
    await stage.client.query('update public.agents set is_public = true where id = $1', [world.here.agent]);
    for (const table of world.here.where.keys()) {
      const answer = await attempt(stage, 'stranger', 'select', table);
      expect(verdict(answer), table).toBe(table === 'agents' ? 'yes' : 'no');
      for (const command of ['update', 'delete'] as const)
        expect(verdict(await attempt(stage, 'stranger', command, table)), `${command} ${table}`).toBe('no');
    }
    const secret = await stage.attempt('stranger', 'select discord_bot_key from public.agents');
    expect(secret.code).toBe(denied);
  });
});

test('partitions, and tables, views and sequences of schema agentd, are for the platform’s roles alone', async () => {
  const relations = await column<string>(
    db.pool,
    `select oid::regclass::text from pg_class
      where relnamespace = 'agentd'::regnamespace and relkind in ('r', 'p', 'v', 'm') order by 1`,
  );
  expect(relations.filter((name) => name.includes('p_usage_events'))).not.toHaveLength(0);
  expect(relations.length).toBeGreaterThan(30);
  const open: string[] = [];
  await onStage(db, world, async (stage) => {
    for (const relation of relations) {
      for (const caller of [...signedIn, 'no user', 'anon'] as const) {
        for (const text of [
          `select 1 from ${relation}`,
          `select count(*) from ${relation}`,
          `insert into ${relation} default values`,
          `delete from ${relation}`,
        ]) {
          const { code } = await stage.attempt(caller, text);
          // Some views cannot be written by anybody.
          if (code !== denied && !(code === notWritable && !text.startsWith('select')))
            open.push(`${caller}: ${text}: ${code}`);
        }
      }
    }
  });
  expect(open).toEqual([]);
}, 60_000);
