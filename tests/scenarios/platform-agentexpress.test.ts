/** An AgentExpress application: nothing here is named otherwise than in its document. */
import { randomUUID } from 'node:crypto';
import { beforeAll, describe, expect, test } from 'vitest';
import { type Application, application, type Caller } from '../support/application.ts';
import { db, expectNoRepairs, model, useDaemon } from '../support/one-daemon.ts';
import { until } from '../support/runs.ts';

useDaemon();

const HASH = '$2b$10$abcdefghijklmnopqrstuuSGZ1aVDSkjC8Gm8eWmXWTeNCZbn3m2m';

let app: Application;
let ann: Caller;
let ben: Caller;
let annId: string;
let benId: string;
let agent: string;
let subscribed: string;

beforeAll(async () => {
  app = application(db, 'agentexpress');
});

describe('users', () => {
  test('are made by the backend, with a hash of their password that the backend alone reads', async () => {
    const made = await app.service.one<{ id: string }>(
      `insert into users (email, password, first_name, last_name, avatar_url)
       values ('ann@example.test', $1, 'Ann', 'Lee', 'https://a.example/a.png') returning *`,
      [HASH],
    );
    expect(made).toMatchObject({
      email: 'ann@example.test',
      password: HASH,
      first_name: 'Ann',
      role: 'user',
    });
    annId = made.id;
    benId = await app.service.value(
      `insert into users (email, password, role) values ('ben@example.test', $1, 'admin') returning id`,
      [HASH],
    );
    ann = app.user(annId);
    ben = app.user(benId);
    expect(await app.service.value(`select password from users where email = 'ann@example.test'`)).toBe(HASH);
    expect(await app.service.value('select role from users where id = $1', [benId])).toBe('admin');
    const twice = await app.service.refused(
      `insert into users (email, password) values ('ann@example.test', 'x')`,
    );
    expect(twice).toMatchObject({ code: '23505', message: expect.stringContaining('duplicate key') });
  });

  test('see themselves, without the password, and nobody else', async () => {
    expect(await ann.rows('select id, email, password, first_name, last_name from users')).toEqual([
      { id: annId, email: 'ann@example.test', password: null, first_name: 'Ann', last_name: 'Lee' },
    ]);
    expect(await ann.rows('select id from users where id = $1', [benId])).toEqual([]);
  });

  test('change their own names, and neither their role, nor their address, nor another user', async () => {
    expect(await ann.count(`update users set last_name = 'Smith' where id = $1`, [annId])).toBe(1);
    expect(await ann.one('select first_name, last_name, avatar_url from users')).toEqual({
      first_name: 'Ann',
      last_name: 'Smith',
      avatar_url: 'https://a.example/a.png',
    });
    expect(await ann.count(`update users set last_name = 'X' where id = $1`, [benId])).toBe(0);
    expect(await ann.refused(`update users set role = 'admin'`)).toMatchObject({
      code: '42501',
      message: 'no user changes his own role',
    });
    const address = await ann.refused(`update users set email = 'ben@example.test' where id = $1`, [annId]);
    expect(address).toMatchObject({ code: '42501', message: expect.stringContaining('address') });
    expect((await ann.refused(`update users set password = 'mine'`)).code).toBe('42501');
    expect((await ann.refused(`insert into users (email) values ('x@example.test')`)).code).toBe('42501');
    expect((await ann.refused('delete from users')).code).toBe('42501');
    expect(await app.service.one('select email, password, role from users where id = $1', [annId])).toEqual({
      email: 'ann@example.test',
      password: HASH,
      role: 'user',
    });
  });

  test('get another password from the backend', async () => {
    const changed = HASH.replace('$10$', '$12$');
    expect(await app.service.count('update users set password = $2 where id = $1', [benId, changed])).toBe(1);
    expect(await app.service.one('select email, password from users where id = $1', [benId])).toEqual({
      email: 'ben@example.test',
      password: changed,
    });
  });
});

describe('agents', () => {
  test('that are public are there for everybody; others for their creator', async () => {
    const insert = `insert into agents (name, description, type, capabilities, is_public, creator_id)
                    values ($1, 'd', 'social', '{"send_message": true}', $2, $3) returning id`;
    agent = await ann.value(insert, ['Poster', true, annId]);
    const hidden = await ann.value<string>(insert, ['Hidden', false, annId]);
    expect(await ben.rows('select id, name, type, creator_id from agents')).toEqual([
      { id: agent, name: 'Poster', type: 'social', creator_id: annId },
    ]);
    expect(await ben.count(`update agents set name = 'Mine' where id = $1`, [agent])).toBe(0);
    expect((await ben.refused(insert, ['Forged', true, annId])).code).toBe('42501');
    const unseen = await ben.refused('insert into user_agents (user_id, agent_id) values ($1, $2)', [
      benId,
      hidden,
    ]);
    expect(unseen).toMatchObject({ code: '42501', message: expect.stringContaining('agent') });
    expect(
      (
        await ben.refused('insert into user_agents (user_id, agent_id) values ($1, $2)', [
          benId,
          randomUUID(),
        ])
      ).code,
    ).toMatch(/^(23503|42501)$/);
  });

  test('are taken by users, each with settings and integrations of his own', async () => {
    const made = await ben.one<{ id: string }>(
      `insert into user_agents (user_id, agent_id, settings) values ($1, $2, '{"tone": "dry"}')
       returning id, settings, is_active`,
      [benId, agent],
    );
    subscribed = made.id;
    expect(made).toMatchObject({ settings: { tone: 'dry' }, is_active: true });
    expect(await ann.rows('select * from user_agents')).toEqual([]);
    const integration = await ben.one<{ id: string }>(
      `insert into integrations (user_agent_id, type, credentials, settings)
       values ($1, 'slack', '{"token": "xoxb"}', '{"channel": "#a"}') returning id, credentials, settings`,
      [subscribed],
    );
    expect(integration).toMatchObject({ credentials: null, settings: { channel: '#a' } });
    await ben.rows(`update integrations set settings = '{"channel": "#b"}' where id = $1`, [integration.id]);
    expect(await app.service.one('select credentials, settings from integrations')).toEqual({
      credentials: { token: 'xoxb' },
      settings: { channel: '#b' },
    });
    expect(await ann.rows('select * from integrations')).toEqual([]);
    expect(
      await ann.refused(`insert into integrations (user_agent_id, type) values ($1, 'slack')`, [subscribed]),
    ).toMatchObject({ code: '42501', message: expect.stringContaining('integrations') });
  });

  test('leave a log of what they were asked and answered', async () => {
    // the document has no tasks: they are schema public's, behind the document's in the search_path
    await ann.rows(
      `insert into agent_tasks (agent_id, name, instructions, next_run_at) values ($1, 'Post', 'Post it.', now())`,
      [agent],
    );
    const log = await until('the log is there', async () => {
      const [row] = await ann.rows(
        'select user_id, input, output, timestamp from agent_logs where agent_id = $1',
        [agent],
      );
      return row;
    });
    expect(log).toMatchObject({ user_id: annId, output: 'answer', timestamp: expect.any(Date) });
    expect(model.requests).toHaveLength(1);
    expect(await ben.rows('select * from agent_logs')).toEqual([]);
    await app.service.rows(
      `insert into agent_logs (agent_id, user_id, input, output) values ($1, $2, 'Q', 'A')`,
      [agent, benId],
    );
    expect(await ben.rows('select input, output from agent_logs')).toEqual([{ input: 'Q', output: 'A' }]);
    expect(
      (await ben.refused(`insert into agent_logs (agent_id, user_id) values ($1, $2)`, [agent, benId])).code,
    ).toBe('42501');
  });
});

describe('subscriptions', () => {
  test('are a user’s, to a plan; "cancelled" is understood', async () => {
    const plan = await app.service.one<{ id: string; price: string }>(
      `insert into plans (name, description, price, features) values ('Pro', 'All', 19.99, '["all"]') returning id, price`,
    );
    expect(plan.price).toBe('19.99');
    await app.service.rows(
      `insert into subscriptions (user_id, plan_id, status, start_date) values ($1, $2, 'active', now())`,
      [benId, plan.id],
    );
    expect(
      await ben.one(
        `select p.name, s.status, s.end_date from subscriptions s join plans p on p.id = s.plan_id where s.user_id = $1`,
        [benId],
      ),
    ).toEqual({ name: 'Pro', status: 'active', end_date: null });
    expect(await app.service.count(`update subscriptions set status = 'cancelled', end_date = now()`)).toBe(
      1,
    );
    expect(await ben.one('select status, end_date is not null as ended from subscriptions')).toEqual({
      status: 'canceled',
      ended: true,
    });
    expect(await ann.rows('select * from subscriptions')).toEqual([]);
    expect((await ben.refused(`update subscriptions set status = 'active'`)).code).toBe('42501');
    expect(await app.service.refused(`update subscriptions set status = 'dreaming'`)).toMatchObject({
      code: '22P02',
      message: expect.stringContaining('"dreaming"'),
    });
  });
});

test('no run of this file was taken over or spent an attempt of its job', expectNoRepairs);
