/** An application of Agent Platform: text ids of its own making, its users known by app.current_user_id. */
import { createCipheriv, randomBytes } from 'node:crypto';
import { beforeAll, describe, expect, test } from 'vitest';
import { signUp } from '../db/schema-support.ts';
import { type Application, application, type Caller } from '../support/application.ts';
import { db, expectNoRepairs, model, useDaemon } from '../support/one-daemon.ts';
import { until } from '../support/runs.ts';

const ENCRYPTION_KEY = randomBytes(32).toString('hex');
const USERS_KEY = 'sk-of-the-user-0123456789abcdef';

useDaemon({
  model: { apiKeys: ['sk-environment-0123456789abcdef', USERS_KEY] },
  daemon: { env: { ENCRYPTION_KEY } },
});

let app: Application;
let ann: Caller;
let ben: Caller;
let annId: string;
let benId: string;
const agent = createId();
const connection = createId();
let sealed: string;

beforeAll(async () => {
  app = application(db, 'agent_platform', 'setting');
  annId = await signUp(db.pool);
  benId = await signUp(db.pool);
  ann = app.user(annId);
  ben = app.user(benId);
});

/** Of the form that cuid2 makes: a letter, then letters and digits, 24 in all. */
function createId(): string {
  const digits = [...randomBytes(23)].map((byte) => (byte % 36).toString(36));
  return `c${digits.join('')}`;
}

/** The document's utility, to the letter. */
function encryptApiKey(apiKey: string): string {
  const iv = randomBytes(16);
  const cipher = createCipheriv('aes-256-gcm', Buffer.from(ENCRYPTION_KEY, 'hex'), iv);

  let encrypted = cipher.update(apiKey, 'utf8', 'hex');
  encrypted += cipher.final('hex');

  const authTag = cipher.getAuthTag().toString('hex');

  // Store IV and auth tag with the encrypted data
  return `${iv.toString('hex')}:${authTag}:${encrypted}`;
}

describe('an agent', () => {
  test('has the id that the application made and the document’s defaults', async () => {
    expect(await ann.value('select current_user_id()')).toBe(annId);
    const made = await ann.one(
      `insert into agents (id, name, system_prompt, user_id) values ($1, 'Ada', 'You are Ada.', $2) returning *`,
      [agent, annId],
    );
    expect(made).toMatchObject({
      id: agent,
      name: 'Ada',
      description: null,
      system_prompt: 'You are Ada.',
      model: 'gpt-3.5-turbo',
      temperature: '0.7',
      max_tokens: null,
      user_id: annId,
      created_at: expect.any(Date),
    });
    const without = await ann.one<{ id: string }>(
      `insert into agents (name, system_prompt, user_id) values ('No id', 'x', $1) returning id`,
      [annId],
    );
    expect(without.id).toMatch(/^[0-9a-f-]{36}$/);
    expect(await ann.count('delete from agents where id = $1', [without.id])).toBe(1);
  });

  test('is changed column by column, found by the document’s policies, and another user’s for nobody', async () => {
    await ann.rows('update agents set model = $2, temperature = 0.1 where id = $1', [agent, 'gpt-4.1-mini']);
    expect(
      await ann.one('select model, temperature, system_prompt from agents where id = $1', [agent]),
    ).toEqual({
      model: 'gpt-4.1-mini',
      temperature: '0.1',
      system_prompt: 'You are Ada.',
    });
    expect(await ann.rows('select id from agents where user_id = current_user_id()')).toEqual([
      { id: agent },
    ]);
    expect(
      await ann.rows(`select id from agents where user_id = current_setting('app.current_user_id')::text`),
    ).toEqual([{ id: agent }]);
    expect(await ben.rows('select id from agents')).toEqual([]);
    expect(await ben.count(`update agents set name = 'Mine' where id = $1`, [agent])).toBe(0);
    expect(await ben.count('delete from agents where id = $1', [agent])).toBe(0);
    const taken = await ben.refused(
      `insert into agents (id, name, system_prompt, user_id) values ($1, 'B', 'x', $2)`,
      [agent, benId],
    );
    expect(taken).toMatchObject({ code: '23505', message: expect.stringContaining('duplicate key') });
    const forged = await ben.refused(
      `insert into agents (name, system_prompt, user_id) values ('B', 'x', $1)`,
      [annId],
    );
    expect(forged.code).toBe('42501');
    const nobody = await ben.refused(
      `insert into agents (name, system_prompt, user_id) values ('B', 'x', 'nobody')`,
    );
    expect(nobody).toMatchObject({
      code: '23503',
      message: 'user nobody does not exist',
      hint: 'Users are those of auth.users; their ids are uuids.',
    });
    const promptless = await ann.refused(`insert into agents (name, user_id) values (null, $1)`, [annId]);
    expect(promptless).toMatchObject({ code: '23502', column: 'name' });
  });
});

describe('an API key', () => {
  test('is stored as the document’s utility encrypted it, and shown to nobody but the platform', async () => {
    sealed = encryptApiKey(USERS_KEY);
    const made = await ann.one(
      `insert into api_connections (id, name, service, api_key, user_id, metadata)
       values ($1, 'Mine', 'openai', $2, $3, '{"plan": "free"}') returning id, api_key, metadata`,
      [connection, sealed, annId],
    );
    expect(made).toEqual({ id: connection, api_key: null, metadata: { plan: 'free' } });
    await ann.rows(`update api_connections set name = 'Renamed' where id = $1`, [connection]);
    expect(
      await app.service.one('select name, api_key from api_connections where id = $1', [connection]),
    ).toEqual({
      name: 'Renamed',
      api_key: sealed,
    });
    const link = 'insert into agent_api_connections (id, agent_id, api_connection_id) values ($1, $2, $3)';
    await ann.rows(link, [createId(), agent, connection]);
    expect((await ann.refused(link, [createId(), agent, connection])).code).toBe('23505');
    const hers = createId();
    await ben.rows(`insert into agents (id, name, system_prompt, user_id) values ($1, 'B', 'x', $2)`, [
      hers,
      benId,
    ]);
    expect(await ben.refused(link, [createId(), hers, connection])).toMatchObject({
      code: '23503',
      message: `api_connection_id ${connection} does not exist`,
    });
    expect(await ben.refused(link, [createId(), agent, connection])).toMatchObject({
      code: '23503',
      message: `agent_id ${agent} does not exist`,
    });
    expect(await ben.rows('select * from agent_api_connections')).toEqual([]);
    expect(await ben.rows('select * from api_connections')).toEqual([]);
  });

  test('is opened by a worker and pays for the agent’s call', async () => {
    // the document has no tasks: they are schema public's, and know the agent by its uuid
    const task = await ann.value<string>(
      `insert into agent_tasks (agent_id, name, instructions, next_run_at)
       select a.id, 'Note', 'Write.', now() from public.agents a where a.external_id = $1 returning id`,
      [agent],
    );
    const output = await until('the run completed', async () => {
      const [run] = await ann.rows<{ output: { text: string } | null }>(
        `select output from task_runs where task_id = $1 and status = 'completed'`,
        [task],
      );
      return run?.output;
    });
    expect(output.text).toBe('answer');
    expect(model.requests.map((request) => request.apiKey)).toEqual([USERS_KEY]);
    expect(JSON.stringify(model.requests[0]?.body)).toContain('You are Ada.');
    expect(await ben.rows('select id from task_runs')).toEqual([]);
  });
});

describe('messages', () => {
  const words = 'conversation-1';
  let hers: string;

  test('stand in a conversation that the application has named, in their order, page by page', async () => {
    for (let n = 1; n <= 5; n++) {
      await ann.rows(
        `insert into agent_messages (id, agent_id, user_id, role, content, conversation_id, created_at)
         values ($1, $2, $3, $4, $5, $6, '2026-01-01'::timestamptz + $7 * interval '1 minute')`,
        [createId(), agent, annId, n % 2 ? 'user' : 'assistant', `message ${n}`, words, n],
      );
    }
    const page = (before: Date | null) =>
      ann.rows<{ content: string; created_at: Date }>(
        `select content, created_at from agent_messages
          where conversation_id = $1 and ($2::timestamptz is null or created_at < $2)
          order by created_at desc limit 2`,
        [words, before],
      );
    const first = await page(null);
    const second = await page(first.at(-1)?.created_at ?? null);
    const third = await page(second.at(-1)?.created_at ?? null);
    expect([first, second, third].map((rows) => rows.map((row) => row.content))).toEqual([
      ['message 5', 'message 4'],
      ['message 3', 'message 2'],
      ['message 1'],
    ]);
    expect(await ann.rows('select distinct conversation_id from agent_messages')).toEqual([
      { conversation_id: words },
    ]);
  });

  test('of two users who chose the same word stay apart', async () => {
    hers = await ben.value('select id from agents');
    await ben.rows(
      `insert into agent_messages (agent_id, user_id, role, content, conversation_id) values ($1, $2, 'user', 'Ben here', $3)`,
      [hers, benId, words],
    );
    const read = 'select content from agent_messages where conversation_id = $1';
    expect(await ben.rows(read, [words])).toEqual([{ content: 'Ben here' }]);
    expect(await ann.rows(read, [words])).toHaveLength(5);
    expect(await app.service.rows(read, [words])).toHaveLength(6);
    const planted = await ben.refused(
      `insert into agent_messages (agent_id, user_id, role, content, conversation_id) values ($1, $2, 'user', 'x', $3)`,
      [agent, benId, words],
    );
    expect(planted).toMatchObject({ code: '23503', message: `agent_id ${agent} does not exist` });
    expect(
      (
        await ben.refused(
          `insert into agent_messages (agent_id, user_id, role, content, conversation_id) values ($1, $2, 'user', 'x', $3)`,
          [hers, annId, words],
        )
      ).code,
    ).toBe('42501');
  });

  test('are rated by their user, and not by another', async () => {
    const message = await ann.value(`select id from agent_messages where content = 'message 2'`);
    const rate = `insert into agent_feedback (id, message_id, user_id, rating, comment) values ($1, $2, $3, 1, 'good')
                  returning rating`;
    expect(await ann.value(rate, [createId(), message, annId])).toBe(1);
    expect(await ben.refused(rate, [createId(), message, benId])).toMatchObject({
      code: '23503',
      message: `message_id ${message} does not exist`,
    });
    expect(await ben.rows('select * from agent_feedback')).toEqual([]);
    expect(await ann.count(`update agent_feedback set rating = 0 where message_id = $1`, [message])).toBe(1);
    expect(await ann.one('select rating, comment from agent_feedback')).toEqual({
      rating: 0,
      comment: 'good',
    });
  });

  test('without a user signed in there is nothing to see, and no error', async () => {
    const nobody = app.user('');
    for (const table of [
      'agents',
      'agent_api_connections',
      'agent_messages',
      'agent_feedback',
      'api_connections',
    ]) {
      expect(await nobody.rows(`select * from ${table}`), table).toEqual([]);
    }
  });

  test('go with their agent, with all that hangs on it, and leave the other user’s', async () => {
    expect(await ann.count('delete from agents where id = $1', [agent])).toBe(1);
    for (const table of ['agents', 'agent_api_connections', 'agent_messages', 'agent_feedback']) {
      expect(await ann.rows(`select id from ${table}`), table).toEqual([]);
    }
    expect(await ann.rows('select id from api_connections')).toEqual([{ id: connection }]);
    expect(await ben.rows('select content from agent_messages')).toEqual([{ content: 'Ben here' }]);
  });
});

test('no run of this file was taken over or spent an attempt of its job', expectNoRepairs);
