/** What holds of every view of the documents' schemas. */
import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { isSimple, mapped } from '../../src/db/compatibility/document.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { until } from '../support/runs.ts';
import { found, insertRow, rowOf, type View, viewNamed, views } from './document-rows.ts';
import { type Rows, rowsOf } from './schema-rows.ts';
import { asRole, asUser, type Company, column, company, outcome, value } from './schema-support.ts';

let db: TestDatabase;
let here: Company & Rows;
beforeAll(async () => {
  db = await testDatabase();
  const made = await company(db.pool);
  here = { ...made, ...(await rowsOf(db.pool, made)) };
});
afterAll(() => db?.dispose());

const everyView = views.map((view) => [view.name, view] as const);
const simple = everyView.filter(([, view]) => isSimple(view.table));
const written = everyView.filter(([, view]) => !isSimple(view.table));

/** As the platform, in a transaction that is rolled back. */
const asService = <T>(act: (client: pg.PoolClient) => Promise<T>): Promise<T> =>
  asRole(db.pool, 'service_role', {}, async (client) => {
    // and what an application of any document has in its path
    await client.query('set local search_path = public, extensions');
    return act(client);
  });

/** What a failing statement says, inside a transaction. */
async function failure(
  client: pg.PoolClient,
  text: string,
  values: unknown[] = [],
): Promise<{ code: string; message: string; column?: string; hint?: string }> {
  await client.query('savepoint failure');
  try {
    await client.query(text, values);
  } catch (error) {
    await client.query('rollback to savepoint failure');
    return error as { code: string; message: string };
  }
  throw new Error(`It did not fail: ${text}`);
}

/** Unique keys of the table behind a view, in the view's columns, where the view has them all. */
async function uniqueKeys({ table }: View): Promise<string[][]> {
  const keys = await column<string[]>(
    db.pool,
    `select array(select a.attname::text from unnest(i.indkey::int2[]) k join pg_attribute a on (a.attrelid, a.attnum) = (i.indrelid, k))
       from pg_index i
      where i.indrelid = $1::regclass and i.indisunique and i.indimmediate and i.indpred is null and i.indexprs is null`,
    [table.from.includes('.') ? table.from : `public.${table.from}`],
  );
  const shown = new Map(Object.entries(table.columns).map(([name, spec]) => [mapped(name, spec).from, name]));
  return keys
    .map((key) => key.map((name) => shown.get(name)))
    .filter((key): key is string[] => key.every((name) => name !== undefined));
}

test('there are as many views as the documents have tables', () => {
  expect(simple.length + written.length).toBe(everyView.length);
  expect(everyView.length).toBeGreaterThan(65);
});

describe.each(everyView)('%s', (name, view) => {
  const other = Object.keys(view.table.columns).find(
    (column) => !view.key.includes(column) && !/_id$|_type$|_at$|^(role|created_at)$/.test(column),
  );

  test('gives an inserted, an updated and a deleted row back, and counts what it wrote', async () => {
    await asService(async (client) => {
      const given = rowOf(view, here.place);
      const row = await insertRow(client, view, given);
      expect(Object.keys(row)).toEqual(Object.keys(view.table.columns));
      for (const [column, wanted] of Object.entries(given)) {
        // numbers of some types come as texts, dates as dates
        if (typeof wanted === typeof row[column]) expect(row[column], column).toEqual(wanted);
      }
      const { condition, values } = found(view, row);
      expect((await client.query(`select * from ${name} where ${condition}`, values)).rows).toEqual([row]);

      const changed = other ?? (view.key[0] as string);
      const updated = await client.query(
        `update ${name} set "${changed}" = "${changed}" where ${condition} returning "${changed}"`,
        values,
      );
      expect(updated).toMatchObject({ rowCount: 1, rows: [{ [changed]: row[changed] }] });
      expect(
        (await client.query(`update ${name} set "${changed}" = "${changed}" where false`)).rowCount,
      ).toBe(0);
      expect((await client.query(`delete from ${name} where false`)).rowCount).toBe(0);
      const deleted = await client.query(`delete from ${name} where ${condition} returning *`, values);
      expect(deleted.rowCount).toBe(1);
      expect((await client.query(`delete from ${name} where ${condition}`, values)).rowCount).toBe(0);
      expect((await client.query(`select 1 from ${name} where ${condition}`, values)).rowCount).toBe(0);
    });
  });

  test('refuses null where the table does, by the column’s name, and keeps it elsewhere', async () => {
    if (view.table.from === 'auth.users') return;
    const columns = await db.query<{ name: string; required: boolean }>(
      `select a.attname as name, a.attnotnull as required from pg_attribute a
        where a.attrelid = $1::regclass and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''`,
      [`public.${view.table.from}`],
    );
    // What the public table may leave open and the document may not.
    const refused: Record<string, string> = {
      'agentopia.media_processing_logs.media_id': '23514',
      'agentopia_diagram.user_roles.role_id': '23514',
      'agentopia_diagram.chat_channels.room_id': '44000',
      'agentcenter.user_roles.role': '23502',
    };
    // Left out or null, they come from the caller, from the parent, or from other columns.
    const filled = /^(id|workspace_id|user_id|owner_user_id|slug)$/;
    await asService(async (client) => {
      for (const [column, spec] of Object.entries(view.table.columns)) {
        const { from } = mapped(column, spec);
        const target = columns.find((candidate) => candidate.name === from);
        if (
          target === undefined ||
          filled.test(from) ||
          `${name}.${column}` === 'agentcenter.user_roles.created_at'
        )
          continue;
        await client.query('savepoint one');
        const row = { ...rowOf(view, here.place), [column]: null };
        if (target.required) {
          const error = await insertRow(client, view, row).then(
            () => ({ code: 'ok' }),
            (problem) => problem,
          );
          const { code, column: named } = error as { code: string; column?: string };
          if (code === '42501') {
            // the other parent of the row was looked at first, and belongs to nobody's agent
            expect((error as Error).message, `${name}.${column}`).toContain('belongs to another owner');
            continue;
          }
          expect(code, `${name}.${column}`).toBe('23502');
          if (view.table.byHand === undefined) expect(named).toBe(from);
        } else {
          const code = await insertRow(client, view, row).then(
            (inserted) => inserted[column],
            (problem) => problem.code,
          );
          expect(refused[`${name}.${column}`] ?? null, `${name}.${column}`).toBe(code);
        }
        await client.query('rollback to savepoint one');
      }
    });
  });

  test('takes several rows at once, from a list and from a query', async () => {
    await asService(async (client) => {
      const given = rowOf(view, here.place);
      const row = await insertRow(client, view, given);
      const { condition, values } = found(view, row);
      const names = Object.keys(given).map((column) => `"${column}"`);
      await client.query(`delete from ${name} where ${condition}`, values);
      // two of the same kind cannot stand beside each other everywhere: one, and none
      const list = `select ${names} from (values (${names.map((_, i) => `$${i + 1}::text`)}), (${names.map(() => 'null')})) v (${names}) where v.${names[0]} is not null`;
      expect(
        (await client.query(`with v as (${list}) select count(*)::int from v`, asTexts(given))).rows,
      ).toEqual([{ count: 1 }]);
      const types = Object.keys(given).map((column) => typeOf(view, column));
      const inserted = await client.query(
        `insert into ${name} (${names}) select ${names.map((column, i) => `v.${column}::${types[i]}`)} from (${list}) v`,
        asTexts(given),
      );
      expect(inserted.rowCount).toBe(1);
      const none = await client.query(
        `insert into ${name} (${names}) select ${names} from ${name} where false`,
      );
      expect(none.rowCount).toBe(0);
    });
  });

  test('takes parameters of the documented types, as mappers send them', async () => {
    await asService(async (client) => {
      for (const column of Object.keys(view.table.columns)) {
        const type = typeOf(view, column);
        // enums are sent without a type
        const parameter = view.document.enums.some((known) => type.endsWith(known)) ? '$1' : `$1::${type}`;
        const same = `select 1 from ${name} where "${column}" is not distinct from ${parameter}`;
        expect(await outcome(client, same, [null]), `${column} = ${parameter}`).toBe('ok');
        const write = `update ${name} set "${column}" = ${parameter} where false`;
        expect(await outcome(client, write, [null]), `${column} := ${parameter}`).toBe('ok');
      }
    });
  });
});

/** The documented type of a column in words that a cast takes. */
function typeOf(view: View, column: string): string {
  const spec = view.table.columns[column];
  if (spec === undefined) throw new Error(`${view.name} has no column ${column}.`);
  return mapped(column, spec).type.replace(/\(\d+\)/, '');
}

function asTexts(row: Record<string, unknown>): (string | null)[] {
  return Object.values(row).map((one) =>
    one === null || one === undefined ? null : typeof one === 'object' ? JSON.stringify(one) : String(one),
  );
}

describe('ON CONFLICT', () => {
  test.each(simple)('works on every unique key that %s shows', async (name, view) => {
    const keys = await uniqueKeys(view);
    expect(keys.length, 'a simple view shows its primary key').toBeGreaterThan(0);
    await asService(async (client) => {
      const row = await insertRow(client, view, rowOf(view, here.place));
      const { condition, values } = found(view, row);
      for (const column of new Set(keys.flat())) {
        // such as the number of a subscription at Stripe: without one there is no conflict
        if (row[column] === null)
          await client.query(`update ${name} set "${column}" = 'k' where ${condition}`, values);
      }
      const names = [...new Set([...Object.keys(rowOf(view, here.place)), ...keys.flat()])].map(
        (n) => `"${n}"`,
      );
      for (const key of keys) {
        const again = `insert into ${name} (${names}) select ${names} from ${name} where ${condition}`;
        const set = `"${key[0]}" = excluded."${key[0]}"`;
        const ignored = await client.query(`${again} on conflict (${key}) do nothing`, values);
        expect(ignored.rowCount, `(${key})`).toBe(0);
        const updated = await client.query(`${again} on conflict (${key}) do update set ${set}`, values);
        expect(updated.rowCount, `(${key})`).toBe(1);
      }
    });
  });

  test.each(written)(
    'is refused with PostgreSQL’s own sentence on %s, which triggers write',
    async (name, view) => {
      await asService(async (client) => {
        const columns = rowOf(view, here.place);
        const names = Object.keys(columns);
        const error = await failure(
          client,
          `insert into ${name} (${names.map((n) => `"${n}"`)}) values (${names.map((_, i) => `$${i + 1}`)})
         on conflict (${view.key}) do update set "${view.key[0]}" = excluded."${view.key[0]}"`,
          Object.values(columns),
        );
        expect(error).toMatchObject({
          code: '42P10',
          message: 'there is no unique or exclusion constraint matching the ON CONFLICT specification',
        });
        // without columns it is taken, and a duplicate is an error all the same
        const row = await insertRow(client, view, columns);
        const again = { ...columns, ...Object.fromEntries(view.key.map((n) => [n, row[n]])) };
        const unheard = await failure(
          client,
          `insert into ${name} (${Object.keys(again).map((n) => `"${n}"`)})
           values (${Object.keys(again).map((_, i) => `$${i + 1}`)}) on conflict do nothing`,
          Object.values(again),
        );
        expect(unheard.code).toBe('23505');
      });
    },
  );

  test('lets a signed-in user upsert his own profile and preferences', async () => {
    await asUser(db.pool, here.manager, async (client) => {
      for (const name of ['agentopia.profiles', 'agentcenter.profiles']) {
        const upsert = `insert into ${name} (id, full_name) values ($1, $2) on conflict (id) do update set full_name = excluded.full_name returning full_name`;
        for (const full_name of ['One', 'Two']) {
          expect((await client.query(upsert, [here.manager, full_name])).rows).toEqual([{ full_name }]);
        }
      }
      const preferences = `insert into agentopia.user_preferences (user_id, theme) values ($1, $2)
                           on conflict (user_id) do update set theme = excluded.theme returning theme`;
      for (const theme of ['dark', 'light']) {
        expect((await client.query(preferences, [here.manager, theme])).rows).toEqual([{ theme }]);
      }
    });
  });
});

describe('COPY FROM', () => {
  test('is refused on a simple view, with what to do instead', async () => {
    await asService(async (client) => {
      expect(await failure(client, 'copy agentopia.agents (name) from stdin')).toMatchObject({
        code: '42809',
        message: 'cannot copy to view "agents"',
      });
    });
  });

  test.skipIf(!onServer)('server-only: is taken by a view that triggers write', async () => {
    const client = await db.pool.connect();
    try {
      await client.query('begin');
      const copied = await client.query(
        `copy agent_platform.agents (id, name, system_prompt, user_id) from program 'printf "copied\\tC\\tx\\t${here.owner}\\n"'`,
      );
      expect(copied.rowCount).toBe(1);
      expect((await client.query(`select name from agent_platform.agents where id = 'copied'`)).rows).toEqual(
        [{ name: 'C' }],
      );
    } finally {
      await client.query('rollback');
      client.release();
    }
  });
});

describe('a secret', () => {
  const secrets = views.flatMap((view) =>
    Object.entries(view.table.columns)
      .filter(([name, spec]) => mapped(name, spec).secret)
      .map(([name, spec]) => [`${view.name}.${name}`, view, name, mapped(name, spec)] as const),
  );
  /** A secret that its table takes, and another. */
  const samples = (column: string, type: string): [unknown, unknown] => {
    if (type === 'jsonb') return [{ api_key: 'one' }, { api_key: 'two' }];
    if (type === 'uuid') return [here.workspace, here.agent];
    return [`${column} one`, `${column} two`];
  };
  /** Of Agentopia's deprecated columns the document says that they are always null, and the table holds it to that. */
  const alwaysNull = (column: string): boolean => /^encrypted_/.test(column);

  test('is what the documents have of keys, tokens and credentials', () => {
    expect(secrets.length).toBeGreaterThan(14);
  });

  test.each(secrets)(
    '%s is null to users in every command, kept by other updates, replaced by its own',
    async (_, view, name, spec) => {
      if (alwaysNull(name)) {
        await asService(async (client) => {
          const row = { ...rowOf(view, here.place), [name]: 'x' };
          await expect(insertRow(client, view, row)).rejects.toMatchObject({ code: '23514' });
        });
        return;
      }
      const [one, two] = samples(name, spec.type);
      const other = Object.keys(view.table.columns).find(
        (c) => /name|^type$|channel$|settings|is_enabled|is_active|provider/.test(c) && c !== name,
      ) as string;
      await asService(async (client) => {
        const platform = async <T>(act: () => Promise<T>): Promise<T> => {
          await client.query('set local role service_role');
          await client.query(`select set_config('request.jwt.claims', '', true)`);
          return act();
        };
        const user = async <T>(act: () => Promise<T>): Promise<T> => {
          await client.query(`select set_config('request.jwt.claims', $1, true)`, [
            JSON.stringify({ sub: here.owner, role: 'authenticated' }),
          ]);
          await client.query('set local role authenticated');
          return act();
        };
        const row = await insertRow(client, view, { ...rowOf(view, here.place), [name]: one });
        expect(row[name]).toEqual(one);
        const { condition, values } = found(view, row);
        const stored = () =>
          platform(async () => {
            const { rows } = await client.query(
              `select "${name}" as secret from ${view.name} where ${condition}`,
              values,
            );
            expect(rows).toHaveLength(1);
            return rows[0].secret;
          });

        await user(async () => {
          const { rows } = await client.query(
            `select "${name}" as secret from ${view.name} where ${condition}`,
            values,
          );
          expect(rows).toEqual([{ secret: null }]);
          // not even by asking whether it is this or that
          expect(
            (
              await client.query(
                `select 1 from ${view.name} where ${condition} and "${name}" is not null`,
                values,
              )
            ).rows,
          ).toEqual([]);
        });
        const mayWrite = await user(() =>
          value<boolean>(client, `select has_table_privilege('${view.name}', 'update')`),
        );
        await (mayWrite ? user : platform)(async () => {
          const updated = await client.query(
            `update ${view.name} set "${other}" = "${other}" where ${condition} returning "${name}" as secret`,
            values,
          );
          expect(updated.rows).toEqual([{ secret: mayWrite ? null : one }]);
        });
        expect(await stored()).toEqual(one);
        await (mayWrite ? user : platform)(async () => {
          const replaced = await client.query(
            `update ${view.name} set "${name}" = $${values.length + 1} where ${condition} returning "${name}" as secret`,
            [...values, two],
          );
          expect(replaced.rows).toEqual([{ secret: mayWrite ? null : two }]);
        });
        expect(await stored()).toEqual(two);
        if (!mayWrite) return;
        await user(async () => {
          const { rows } = await client.query(
            `delete from ${view.name} where ${condition} returning "${name}" as secret`,
            values,
          );
          expect(rows).toEqual([{ secret: null }]);
        });
      });
    },
  );
});

describe.skipIf(!onServer)('server-only: an update of one column', () => {
  test.each([
    ['agentcenter.agents', 'name', 'description'],
    ['agent_platform.agents', 'name', 'description'],
    ['agent_platform.api_connections', 'name', 'service'],
    ['agentopia_diagram.datastores', 'name', 'description'],
    ['agentexpress.integrations', 'type', 'settings'],
    ['agentexpress.users', 'first_name', 'last_name'],
  ])('of %s does not undo what another session wrote meanwhile', async (name, first, second) => {
    const view = viewNamed(name);
    const setup = await db.pool.connect();
    const [one, two] = [await db.pool.connect(), await db.pool.connect()];
    try {
      await setup.query('begin');
      const row = await insertRow(setup, view, rowOf(view, here.place));
      await setup.query('commit');
      const { condition, values } = found(view, row, 2);
      const [word, later] = second === 'settings' ? ['social', '{"a": 1}'] : ['one', 'two'];
      await one.query('begin');
      await one.query(`update ${name} set "${first}" = $1 where ${condition}`, [word, ...values]);
      const pid = await value<number>(two, 'select pg_backend_pid()');
      const waiting = two.query(`update ${name} set "${second}" = $1 where ${condition}`, [later, ...values]);
      await until('the second session waits for the first', async () => {
        const { rows } = await setup.query(
          `select 1 from pg_stat_activity where pid = $1 and wait_event_type = 'Lock'`,
          [pid],
        );
        return rows.length > 0;
      });
      await one.query('commit');
      expect((await waiting).rowCount).toBe(1);
      const { rows } = await setup.query(
        `select "${first}", "${second}"::text from ${name} where ${found(view, row).condition}`,
        values,
      );
      expect(rows).toEqual([{ [first]: word, [second]: later }]);
    } finally {
      for (const client of [setup, one, two]) client.release();
    }
  });
});
