/** Ids in Agent Platform are words, which anybody may guess and anybody may choose. */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { application, type Caller } from '../support/application.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { signUp, value } from './schema-support.ts';

const tables = [
  'agents',
  'api_connections',
  'agent_api_connections',
  'agent_messages',
  'agent_feedback',
] as const;
type Table = (typeof tables)[number];

let db: TestDatabase;
let ann: Caller;
let ben: Caller;
let service: Caller;
let annId: string;
let benId: string;
/** Ben's rows: in each table one with a word and the uuid behind it, and one that has no word, whose uuid is its id. */
const word: Record<Table, string> = {
  agents: 'ben-agent',
  api_connections: 'ben-connection',
  agent_api_connections: 'ben-link',
  agent_messages: 'ben-message',
  agent_feedback: 'ben-feedback',
};
const uuid = {} as Record<Table, string>;
const plain = {} as Record<Table, string>;

/** An insert of a row that hangs on the given parents. */
function insert(table: Table, id: string | null, user: string, parents: Record<Table, string>) {
  const rows: Record<Table, Record<string, unknown>> = {
    agents: { name: 'A', system_prompt: 'x', user_id: user },
    api_connections: { name: 'K', service: 'openai', api_key: 'k', user_id: user },
    agent_api_connections: { agent_id: parents.agents, api_connection_id: parents.api_connections },
    agent_messages: {
      agent_id: parents.agents,
      user_id: user,
      role: 'user',
      content: 'c',
      conversation_id: 'talk',
    },
    agent_feedback: { message_id: parents.agent_messages, user_id: user, rating: 1 },
  };
  const row = { ...(id === null ? {} : { id }), ...rows[table] };
  const names = Object.keys(row);
  return {
    text: `insert into ${table} (${names}) values (${names.map((_, i) => `$${i + 1}`)})`,
    values: Object.values(row),
  };
}

const mine: Record<Table, string> = {
  agents: 'ann-agent',
  api_connections: 'ann-connection',
  agent_api_connections: 'ann-link',
  agent_messages: 'ann-message',
  agent_feedback: 'ann-feedback',
};

beforeAll(async () => {
  db = await testDatabase();
  annId = await signUp(db.pool);
  benId = await signUp(db.pool);
  const app = application(db, 'agent_platform', 'setting');
  ann = app.user(annId);
  ben = app.user(benId);
  service = app.service;
  for (const table of tables) {
    for (const [caller, id, words] of [
      [ben, benId, word],
      [ann, annId, mine],
    ] as const) {
      const { text, values } = insert(table, words[table], id, words);
      await caller.rows(text, values);
    }
    uuid[table] = (await value(db.pool, `select id from public.${table} where external_id = $1`, [
      word[table],
    ])) as string;
    const { text, values } = insert(table, null, benId, plain);
    plain[table] = await ben.value(`${text} returning id`, values);
  }
});
afterAll(() => db?.dispose());

describe.each(tables)('%s', (table) => {
  test('of another user are not found by their word, nor by their uuid', async () => {
    for (const id of [word[table], uuid[table], uuid[table].toUpperCase(), plain[table]]) {
      expect(await ann.rows(`select * from ${table} where id = $1`, [id])).toEqual([]);
      expect(await ann.count(`update ${table} set id = $1 where id = $1`, [id])).toBe(0);
      expect(await ann.count(`update ${table} set created_at = now() where id = $1`, [id])).toBe(0);
      expect(await ann.count(`delete from ${table} where id = $1`, [id])).toBe(0);
    }
    // and all of it at once is one's own
    expect(await ann.rows(`select id from ${table}`)).toEqual([{ id: mine[table] }]);
    expect(await ann.count(`update ${table} set created_at = created_at`)).toBe(1);
    expect(await ben.rows(`select id from ${table} order by id = $1`, [word[table]])).toEqual([
      { id: plain[table] },
      { id: word[table] },
    ]);
  });

  test('cannot be made under a word or a uuid that another user’s row has', async () => {
    for (const id of [word[table], uuid[table], plain[table]]) {
      // parents of one's own, so that nothing but the id is in the way
      const parents = { ...mine };
      if (table === 'agent_api_connections') {
        const agent = insert('agents', null, annId, mine);
        parents.agents = await ann.value(`${agent.text} returning id`, agent.values);
      }
      const { text, values } = insert(table, id, annId, parents);
      expect((await ann.refused(text, values)).code, id).toBe('23505');
      if (parents.agents !== mine.agents)
        await ann.rows('delete from agents where id = $1', [parents.agents]);
    }
    for (const id of [word[table], plain[table]]) {
      expect(
        (await ann.refused(`update ${table} set id = $2 where id = $1`, [mine[table], id])).code,
        id,
      ).toBe('23505');
      // nor past the view
      const planted = `update public.${table} set external_id = $2 where external_id = $1`;
      expect((await ann.refused(planted, [mine[table], id])).code, id).toBe('23505');
    }
  });

  test('a row that takes the uuid behind another’s word for its word is taken for nobody else’s', async () => {
    const id = uuid[table];
    expect(await ann.count(`update ${table} set id = $2 where id = $1`, [mine[table], id])).toBe(1);
    expect(await service.rows(`select id from ${table} where id = $1`, [id])).toHaveLength(1);
    expect(await ben.rows(`select id from ${table} where id = $1`, [id])).toEqual([]);
    expect(await ben.rows(`select id from ${table} where id = $1`, [word[table]])).toHaveLength(1);
    expect(await ann.count(`update ${table} set id = $2 where id = $1`, [id, mine[table]])).toBe(1);
  });
});

test('an id that only looks like another’s uuid is a word of its own, and is read back as it was written', async () => {
  const loud = uuid.agents.toUpperCase();
  const { text, values } = insert('agents', loud, annId, mine);
  expect(await ann.value(`${text} returning id`, values)).toBe(loud);
  expect(await ben.rows('select id from agents where id = $1', [loud])).toEqual([]);
  expect(await ann.count('delete from agents where id = $1', [loud])).toBe(1);
});

describe('a row', () => {
  const children = [
    ['agent_api_connections', 'agents', 'agent_id'],
    ['agent_api_connections', 'api_connections', 'api_connection_id'],
    ['agent_messages', 'agents', 'agent_id'],
    ['agent_feedback', 'agent_messages', 'message_id'],
  ] as const;

  test.each(children)('of %s cannot hang on another user’s row of %s', async (table, parent, name) => {
    for (const id of [word[parent], uuid[parent], plain[parent]]) {
      const { text, values } = insert(table, null, annId, { ...mine, [parent]: id });
      expect(await ann.refused(text, values)).toMatchObject({
        code: '23503',
        message: `${name} ${id} does not exist`,
      });
      expect(
        await ann.refused(`update ${table} set ${name} = $2 where id = $1`, [mine[table], id]),
      ).toMatchObject({
        code: '23503',
        message: `${name} ${id} does not exist`,
      });
    }
  });

  test('is said not to exist in the same words whether another has it or nobody', async () => {
    const nothing = randomUUID();
    const said = async (id: string): Promise<string> => {
      const { text, values } = insert('agent_messages', null, annId, { ...mine, agents: id });
      return (await ann.refused(text, values)).message.replace(id, 'it');
    };
    expect(await said(uuid.agents)).toBe(await said(nothing));
    expect(await said(word.agents)).toBe(await said('no-such-word'));
  });

  test('of another’s conversation is not reached by the uuid of that', async () => {
    const conversation = (await value(
      db.pool,
      'select conversation_id from public.agent_messages where id = $1',
      [uuid.agent_messages],
    )) as string;
    await ann.rows(
      `insert into agent_messages (agent_id, user_id, role, content, conversation_id) values ($1, $2, 'user', 'mine', $3)`,
      [mine.agents, annId, conversation],
    );
    expect(
      await ann.rows('select content from agent_messages where conversation_id = $1', [conversation]),
    ).toEqual([{ content: 'mine' }]);
    expect(await ben.rows('select content from agent_messages')).toEqual([
      { content: 'c' },
      { content: 'c' },
    ]);
    await ann.rows(`delete from agent_messages where content = 'mine'`);
  });

  test('cannot be written in another user’s name', async () => {
    for (const table of ['agents', 'api_connections', 'agent_messages', 'agent_feedback'] as const) {
      const { text, values } = insert(table, null, benId, mine);
      expect((await ann.refused(text, values)).code, table).toBe('42501');
      expect(
        (await ann.refused(`update ${table} set user_id = $2 where id = $1`, [mine[table], benId])).code,
        table,
      ).toBe('42501');
    }
  });
});
