/** Messages, mentions, files, webhooks and a person's word start tasks: once each, within their workspace, and never without end. */
import { randomUUID } from 'node:crypto';
import { beforeEach, describe, expect, test } from 'vitest';
import { fireTaskEvents } from '../../src/db/task-events.ts';
import { testDaemon } from '../support/daemon.ts';
import { onServer } from '../support/database.ts';
import { daemon, db, model, useDaemon } from '../support/one-daemon.ts';
import { insert, makeAgent, makePlatform, makeTask, type Platform } from '../support/platform.ts';
import { type Run, until, waitForRun } from '../support/runs.ts';
import { addMember, asService, asUser, denied, stateOf } from '../support/sessions.ts';

useDaemon();

type Place = Platform & { readonly channel: string };
type EventRun = Run & { readonly event_key: string; readonly input: { event: EventInput } };
type EventInput = {
  readonly type: string;
  readonly depth: number;
  readonly data: Record<string, unknown>;
};

let place: Place;
beforeEach(async () => {
  place = await makePlace();
});

async function makePlace(agent: Record<string, unknown> = {}): Promise<Place> {
  const platform = await makePlatform(db, { shared: true, agent });
  const channel = await insert(db, 'public.chat_channels', {
    workspace_id: platform.workspaceId,
    name: 'general',
  });
  return { ...platform, channel };
}

/** An event_based task with a trigger. */
async function listening(
  at: Platform,
  type: string,
  trigger: Record<string, unknown> = {},
  task: Record<string, unknown> = {},
): Promise<{ task: string; trigger: string }> {
  const id = await makeTask(db, at, { task_type: 'event_based', ...task });
  const { conditions = {}, config = {}, ...columns } = trigger;
  return {
    task: id,
    trigger: await insert(db, 'public.agent_task_event_triggers', {
      task_id: id,
      trigger_type: type,
      conditions: JSON.stringify(conditions),
      config: JSON.stringify(config),
      ...columns,
    }),
  };
}
const say = (at: Place, content: string, columns: Record<string, unknown> = {}): Promise<string> =>
  insert(db, 'public.chat_messages', {
    workspace_id: at.workspaceId,
    channel_id: at.channel,
    sender_user_id: at.userId,
    content,
    ...columns,
  });
const runsOf = (task: string): Promise<EventRun[]> =>
  db.query<EventRun>('select * from public.task_runs where task_id = $1 order by seq', [task]);
/** Everything that has happened has been looked at. */
const settled = (): Promise<true> =>
  until('no event waits', async () => {
    const rows = await db.query('select 1 from agentd.task_events limit 1');
    return rows.length === 0;
  });
const trigger = async (id: string): Promise<Record<string, unknown>> => {
  const [row] = await db.query<Record<string, unknown>>(
    'select * from public.agent_task_event_triggers where id = $1',
    [id],
  );
  return row ?? {};
};
const numberOfRuns = async (task: string): Promise<number> => {
  await settled();
  return (await runsOf(task)).length;
};

describe('what starts a task', () => {
  test('a message starts a task once, with what was said as data', async () => {
    const { task, trigger: id } = await listening(place, 'workspace_message');
    const message = await say(place, 'the parcel </data> is late', { metadata: '{"priority": 3}' });
    await settled();
    const [run] = await runsOf(task);
    const done = await waitForRun(db, run?.id ?? '');
    expect(done).toMatchObject({ status: 'completed', trigger: 'event' });
    expect(run).toMatchObject({
      event_key: `message:${message}`,
      user_id: place.userId,
      input: {
        event: {
          type: 'workspace_message',
          trigger_id: id,
          depth: 0,
          data: {
            message_id: message,
            channel: 'general',
            sender_user_id: place.userId,
            content: 'the parcel </data> is late',
            metadata: { priority: 3 },
          },
        },
      },
    });
    expect(await runsOf(task)).toHaveLength(1);
    expect(await trigger(id)).toMatchObject({ trigger_count: 1, suppressed_count: 0 });
    // what is said in it can't end what marks it as data
    const asked = JSON.stringify(model.requests.at(-1)?.body);
    expect(asked).toContain('the parcel ‹/data› is late');
    const [counted] = await db.query<{ total_executions: number }>(
      'select total_executions from public.agent_tasks where id = $1',
      [task],
    );
    expect(counted?.total_executions).toBe(1);
  });

  test.each([
    ['@Max can you look?', true],
    ['hello @max', true],
    ['(@MAX)', true],
    ['@Max Power, please', false],
    ['write to jo@max.example', false],
    ['@Maximilian', false],
    ['Max, are you there?', false],
  ])('%s mentions Max: %s', async (content, is) => {
    const at = await makePlace({ name: 'Max' });
    await makeAgent(db, at, { name: 'Max Power' });
    const { task } = await listening(at, 'agent_mentioned');
    await say(at, content);
    expect(await numberOfRuns(task)).toBe(is ? 1 : 0);
  });

  test('a name of several words is written with them, with hyphens or in one; an id in metadata.mentions does too', async () => {
    const at = await makePlace({ name: 'Ada Lovelace' });
    const { task } = await listening(at, 'agent_mentioned');
    for (const content of ['@Ada Lovelace!', '@ada-lovelace', '@ada_lovelace', '@AdaLovelace', '@ada'])
      await say(at, content);
    expect(await numberOfRuns(task)).toBe(4);
    await say(at, 'you there', { metadata: JSON.stringify({ mentions: [at.agentId] }) });
    await say(at, 'you there', { metadata: JSON.stringify({ mentions: [{ agent_id: at.agentId }] }) });
    await say(at, 'you there', { metadata: JSON.stringify({ mentions: [randomUUID()] }) });
    expect(await numberOfRuns(task)).toBe(6);
  });

  test('a file starts a task when it can be searched, and once', async () => {
    const { task } = await listening(place, 'file_uploaded', { conditions: { file_type: 'text/csv' } });
    const file = (type: string): Promise<string> =>
      insert(db, 'public.media_library', {
        workspace_id: place.workspaceId,
        user_id: place.userId,
        file_name: 'a.csv',
        file_type: type,
        processing_status: 'archived',
      });
    const ids = [await file('text/csv'), await file('text/html')];
    for (const status of ['completed', 'processing', 'completed']) {
      await db.query(
        'update public.media_library set processing_status = $2::public.processing_status where id = any ($1)',
        [ids, status],
      );
      await settled();
    }
    expect(await runsOf(task)).toMatchObject([
      { event_key: `file:${ids[0]}`, input: { event: { data: { file_name: 'a.csv' } } } },
    ]);
  });

  test('a webhook and an e-mail start their tasks, for the agent that they are for; what comes twice is there once', async () => {
    const hook = await listening(place, 'integration_webhook', {
      conditions: { source: 'shop', 'payload.total': { gte: 100 } },
    });
    const mail = await listening(place, 'email_received');
    const other = await listening({ ...place, agentId: await makeAgent(db, place) }, 'integration_webhook');
    const event = (columns: Record<string, unknown>): Promise<unknown> =>
      asService(db, (client) => {
        const given = Object.entries({ workspace_id: place.workspaceId, source: 'shop', ...columns });
        return client.query(
          `insert into public.integration_events (${given.map(([name]) => name)})
           values (${given.map((_, i) => `$${i + 1}`)}) on conflict (workspace_id, source, external_id) do nothing`,
          given.map(([, value]) => value),
        );
      });
    const order = { event_type: 'order.paid', external_id: 'o-1', agent_id: place.agentId };
    await event({ ...order, payload: '{"total": 120}' });
    await event({ ...order, payload: '{"total": 120}' });
    await event({ ...order, external_id: 'o-2', payload: '{"total": 99}' });
    await event({ event_type: 'email_received', payload: '{"subject": "hello"}' });
    await settled();
    expect(await runsOf(hook.task)).toMatchObject([
      { input: { event: { data: { external_id: 'o-1', payload: { total: 120 } } } } },
    ]);
    expect(await runsOf(mail.task)).toMatchObject([
      { input: { event: { type: 'email_received', data: { payload: { subject: 'hello' } } } } },
    ]);
    expect(await runsOf(other.task)).toEqual([]);
  });

  test('a manager says that a manual event has happened; nobody else may', async () => {
    const { task, trigger: id } = await listening(place, 'manual', { conditions: { kind: 'alarm' } });
    const [viewer, manager] = [await addMember(db, place, 'viewer'), await addMember(db, place, 'manager')];
    const stranger = await makePlatform(db);
    const fire = (user: string, data: object): Promise<string> =>
      asUser(db, user, async (client) => {
        const { rows } = await client.query('select fire_task_trigger($1, $2) as id', [
          id,
          JSON.stringify(data),
        ]);
        return rows[0].id as string;
      });
    expect(await stateOf(fire(viewer, { kind: 'alarm' }))).toBe(denied);
    expect(await stateOf(fire(stranger.userId, { kind: 'alarm' }))).toBe(denied);
    await fire(manager, { kind: 'drill' });
    const event = await fire(manager, { kind: 'alarm' });
    await settled();
    expect(await runsOf(task)).toMatchObject([
      { event_key: `manual:${event}`, user_id: place.userId, input: { event: { data: { kind: 'alarm' } } } },
    ]);
    await db.query(`update public.agent_tasks set status = 'paused' where id = $1`, [task]);
    expect(await stateOf(fire(manager, { kind: 'alarm' }))).toBe('55000');
  });

  test('a run answers in the channel of its message where config.reply_in_channel says so', async () => {
    const { task } = await listening(place, 'workspace_message', { config: { reply_in_channel: true } });
    await say(place, 'how late is it?');
    await settled();
    const [run] = await runsOf(task);
    await waitForRun(db, run?.id ?? '');
    expect(
      await db.query('select content, channel_id from public.chat_messages where run_id = $1', [run?.id]),
    ).toEqual([{ content: 'answer', channel_id: place.channel }]);
    // and does not hear itself
    expect(await numberOfRuns(task)).toBe(1);
  });
});

describe('conditions', () => {
  const data = {
    content: 'Invoice 12 is PAID',
    metadata: { tags: ['money', 'urgent'], total: 12.5, at: '2026-01-05' },
    none: null,
  };
  test.each([
    [{}, true],
    [{ content: 'Invoice 12 is PAID' }, true],
    [{ content: 'invoice 12 is paid' }, false],
    [{ content: { contains: 'paid' } }, true],
    [{ content: { starts_with: 'invoice', ends_with: 'paid' } }, true],
    [{ 'metadata.tags': { contains: 'urgent' } }, true],
    [{ 'metadata.tags': { contains: 'urg' } }, false],
    [{ metadata: { contains: 'total' } }, true],
    [{ 'metadata.tags.0': 'money' }, true],
    [{ 'metadata.total': { gt: 12, lte: 12.5 } }, true],
    [{ 'metadata.total': { gt: 12.5 } }, false],
    [{ 'metadata.total': { gt: '1' } }, false],
    [{ 'metadata.at': { gte: '2026-01-01', lt: '2026-02-01' } }, true],
    [{ 'metadata.total': { in: [1, 12.5] } }, true],
    [{ 'metadata.total': { not_in: [1, 12.5] } }, false],
    [{ 'metadata.x': { exists: false } }, true],
    [{ none: { exists: true } }, false],
    [{ none: null, 'no.such': null }, true],
    [{ content: { ne: 'x' } }, true],
    [{ or: [{ content: 'x' }, { 'metadata.total': 12.5 }] }, true],
    [{ and: [{ content: 'x' }, { 'metadata.total': 12.5 }] }, false],
    [{ not: { content: 'x' }, 'metadata.total': 12.5 }, true],
  ])('%j: %s', async (condition, is) => {
    const [row] = await db.query<{ error: string | null; met: boolean }>(
      'select agentd.condition_error($1) as error, agentd.meets_condition($1, $2) as met',
      [JSON.stringify(condition), JSON.stringify(data)],
    );
    expect(row).toEqual({ error: null, met: is });
  });

  const nested = (depth: number): object => (depth === 0 ? { a: 1 } : { not: nested(depth - 1) });
  test.each([
    [[], /an object of fields/],
    [{ a: [1] }, /say \{"in"/],
    [{ a: {} }, /has no test/],
    [{ a: { like: 'x%' } }, /"like", which there is not/],
    [{ a: { regex: '(a+)+$' } }, /"regex", which there is not/],
    [{ a: { in: 'x' } }, /a list of 1 to 100/],
    [{ a: { in: [{}] } }, /a list of 1 to 100/],
    [{ a: { exists: 'yes' } }, /true or false/],
    [{ a: { gt: null } }, /a number or a text/],
    [{ or: [] }, /a list of conditions/],
    [{ 'a..b': 1 }, /no path/],
    [nested(5), /deeper than 5/],
    [{ a: 'x'.repeat(9000) }, /longer than 4096/],
    [{ or: Array.from({ length: 21 }, (_, i) => ({ a: { contains: `${i}` } })) }, /more than 20 tests/],
  ])('%j is refused where it is written', async (conditions, sentence) => {
    await expect(listening(place, 'workspace_message', { conditions })).rejects.toThrow(sentence);
  });

  test('a row that was written before there were checks harms nobody', async () => {
    for (const condition of [
      '[1]',
      '"x"',
      '{"or": 5}',
      '{"not": 5}',
      '{"a": {"in": 5, "like": 1}}',
      '{"a": {"gt": []}}',
    ]) {
      const [row] = await db.query<{ met: boolean | null }>(
        `select agentd.meets_condition($1, '{"a": 1}') as met`,
        [condition],
      );
      expect(row?.met, condition).toBe(condition === '{"not": 5}');
    }
  });

  test.each([
    ['time_based', {}, {}, /no time of its own/],
    ['workspace_message', {}, { task_type: 'scheduled' }, /task_type|event_based/],
    ['workspace_message', { config: { max_depth: 11 } }, {}, /max_depth/],
    ['workspace_message', { config: { max_per_minute: 0 } }, {}, /max_per_minute/],
    ['workspace_message', { config: { allow_own: 'yes' } }, {}, /allow_own/],
  ])('a trigger of type %s that could not work is refused: %j %j', async (type, columns, task, sentence) => {
    await expect(listening(place, type, columns, task)).rejects.toThrow(sentence);
  });

  test('a trigger of type time_based beside a schedule is taken as what it is: the schedule', async () => {
    const { trigger: id } = await listening(
      place,
      'time_based',
      {},
      { task_type: 'scheduled', cron_expression: '0 9 * * *' },
    );
    expect(await trigger(id)).toMatchObject({ is_active: true, trigger_count: 0 });
  });
});

describe('limits', () => {
  test('a cooldown lets one of many events through, and says what it kept', async () => {
    const { task, trigger: id } = await listening(place, 'workspace_message', { cooldown_seconds: 3600 });
    await db.query(
      `insert into public.chat_messages (workspace_id, channel_id, sender_user_id, content)
       select $1, $2, $3, 'n ' || n from generate_series(1, 20) n`,
      [place.workspaceId, place.channel, place.userId],
    );
    expect(await numberOfRuns(task)).toBe(1);
    expect(await trigger(id)).toMatchObject({
      trigger_count: 1,
      suppressed_count: 19,
      last_suppressed_code: 'event_cooldown',
    });
    await db.query(
      `update public.agent_task_event_triggers set last_triggered_at = last_triggered_at - interval '2 hours' where id = $1`,
      [id],
    );
    await say(place, 'later');
    expect(await numberOfRuns(task)).toBe(2);
  });

  test('a task ends with its last execution, and its dates and its pause are kept', async () => {
    const counted = await listening(place, 'workspace_message', {}, { max_executions: 2 });
    const early = await listening(place, 'workspace_message', {}, { start_date: '2999-01-01' });
    const late = await listening(place, 'workspace_message', {}, { end_date: '2001-01-01' });
    const paused = await listening(place, 'workspace_message', {}, { status: 'paused' });
    const off = await listening(place, 'workspace_message', { is_active: false });
    for (const n of [1, 2, 3]) await say(place, `n ${n}`);
    expect(await numberOfRuns(counted.task)).toBe(2);
    const [task] = await db.query('select status, reason_code from public.agent_tasks where id = $1', [
      counted.task,
    ]);
    expect(task).toEqual({ status: 'completed', reason_code: 'max_executions_reached' });
    for (const { task, trigger: id } of [early, late]) {
      expect(await runsOf(task)).toEqual([]);
      expect(await trigger(id)).toMatchObject({
        suppressed_count: 3,
        last_suppressed_code: 'event_outside_dates',
      });
    }
    // what came while it was paused is not made up for
    await db.query(`update public.agent_tasks set status = 'active' where id = $1`, [paused.task]);
    expect(await numberOfRuns(paused.task)).toBe(0);
    expect(await runsOf(off.task)).toEqual([]);
  });

  test('a burst stops at the limit of a minute, with one row that says so', async () => {
    const { task } = await listening(place, 'workspace_message', { config: { max_per_minute: 5 } });
    await db.query(
      `insert into public.chat_messages (workspace_id, channel_id, sender_user_id, content)
       select $1, $2, $3, 'n ' || n from generate_series(1, 40) n`,
      [place.workspaceId, place.channel, place.userId],
    );
    await settled();
    const runs = await runsOf(task);
    const minutes = new Set(
      runs.filter((run) => run.reason_code === 'event_burst').map((run) => run.event_key),
    );
    // the minute may have turned meanwhile
    expect(minutes.size).toBeGreaterThan(0);
    expect(runs.filter((run) => run.status === 'skipped')).toHaveLength(minutes.size);
    expect(runs.filter((run) => run.status !== 'skipped').length).toBeLessThanOrEqual(10);
  });

  test('two agents that answer each other come to an end, with a row that says so', async () => {
    const other = await makeAgent(db, place, { name: 'Bob' });
    const config = { reply_in_channel: true };
    const first = await listening(place, 'workspace_message', { config });
    const second = await listening({ ...place, agentId: other }, 'workspace_message', {
      config,
      conditions: { sender_agent_id: place.agentId },
    });
    await say(place, 'begin');
    // Ada 0, Bob 1, Ada 2, Bob 3, and Ada is stopped at 4
    const stopped = await until('somebody was stopped', async () => {
      const [run] = (await runsOf(first.task)).filter((one) => one.reason_code === 'event_depth');
      return run ?? false;
    });
    expect(stopped).toMatchObject({ status: 'skipped' });
    await settled();
    const depths = async (task: string): Promise<number[]> =>
      (await runsOf(task)).filter((run) => run.status !== 'skipped').map((run) => run.input.event.depth);
    expect(await depths(first.task)).toEqual([0, 2]);
    expect(await depths(second.task)).toEqual([1, 3]);
    expect(await trigger(first.trigger)).toMatchObject({ last_suppressed_code: 'event_depth' });
  });

  test('an agent hears itself only where its trigger allows it, and no deeper than that allows', async () => {
    const { task } = await listening(place, 'workspace_message', {
      config: { reply_in_channel: true, allow_own: true, max_depth: 1 },
    });
    await say(place, 'begin');
    await until('it was stopped', async () =>
      (await runsOf(task)).some((run) => run.reason_code === 'event_depth'),
    );
    expect((await runsOf(task)).filter((run) => run.status !== 'skipped')).toHaveLength(2);
  });

  test('a draft agent’s run is recorded as skipped', async () => {
    const at = await makePlace({ status: 'draft' });
    const { task } = await listening(at, 'workspace_message', {}, { max_executions: 1 });
    await say(at, 'hello');
    await settled();
    expect(await runsOf(task)).toMatchObject([{ status: 'skipped', reason_code: 'agent_draft' }]);
    const [row] = await db.query('select status, total_executions from public.agent_tasks where id = $1', [
      task,
    ]);
    expect(row).toEqual({ status: 'active', total_executions: 0 });
  });
});

describe('tenants', () => {
  test('an event starts no task of another workspace, whatever is planted in it', async () => {
    const victim = await makePlace({ name: 'Target' });
    const tasks = [
      await listening(victim, 'workspace_message'),
      await listening(victim, 'agent_mentioned'),
      await listening(victim, 'integration_webhook'),
    ];
    await listening(place, 'workspace_message');
    await say(place, '@Target', { metadata: JSON.stringify({ mentions: [victim.agentId] }) });
    await insert(db, 'public.integration_events', {
      workspace_id: place.workspaceId,
      source: 's',
      event_type: 'e',
      payload: JSON.stringify({ workspace_id: victim.workspaceId, agent_id: victim.agentId }),
    });
    const intoTheirs = await stateOf(
      asUser(db, place.userId, (client) =>
        client.query(
          `insert into public.chat_messages (workspace_id, channel_id, sender_user_id, content) values ($1, $2, $3, '@Target')`,
          [victim.workspaceId, victim.channel, place.userId],
        ),
      ),
    );
    expect(intoTheirs).toBe(denied);
    for (const { task } of tasks) expect(await numberOfRuns(task)).toBe(0);
  });

  test('a viewer’s message starts what a manager has set up, as the task’s user; he sets nothing up himself', async () => {
    const { task } = await listening(place, 'workspace_message');
    const viewer = await addMember(db, place, 'viewer');
    await asUser(db, viewer, (client) =>
      client.query(
        `insert into public.chat_messages (workspace_id, channel_id, sender_user_id, content, metadata)
         values ($1, $2, $3, 'hello', $4)`,
        [place.workspaceId, place.channel, viewer, JSON.stringify({ run_id: randomUUID(), depth: -5 })],
      ),
    );
    await settled();
    expect(await runsOf(task)).toMatchObject([
      { user_id: place.userId, input: { event: { depth: 0, data: { sender_user_id: viewer } } } },
    ]);
    const attempts = [
      [`insert into public.agent_task_event_triggers (task_id, trigger_type) values ($1, 'manual')`, [task]],
      [
        `insert into public.integration_events (workspace_id, source, event_type) values ($1, 's', 'e')`,
        [place.workspaceId],
      ],
      [
        `insert into agentd.task_events (workspace_id, kind, subject_id) values ($1, 'manual', $1)`,
        [place.workspaceId],
      ],
      ['select * from agentd.fire_task_events(1)', []],
    ] as const;
    for (const [text, values] of attempts) {
      expect(await stateOf(asUser(db, viewer, (client) => client.query(text, [...values]))), text).toBe(
        denied,
      );
    }
  });

  test('a message that could not be noted is written all the same', async () => {
    await listening(place, 'workspace_message');
    await db.query('alter table agentd.task_events add constraint refused check (false) not valid');
    try {
      const id = await say(place, 'hello');
      expect(await db.query('select 1 from public.chat_messages where id = $1', [id])).toHaveLength(1);
    } finally {
      await db.query('alter table agentd.task_events drop constraint refused');
    }
  });

  test.runIf(onServer)(
    'a task that somebody keeps locked holds up nobody else, and is started later',
    async () => {
      const other = await makePlace();
      const held = await listening(place, 'workspace_message');
      const free = await listening(other, 'workspace_message');
      const client = await db.pool.connect();
      try {
        await client.query('begin');
        await client.query('select 1 from public.agent_tasks where id = $1 for update', [held.task]);
        await say(place, 'hello');
        await say(other, 'hello');
        await until('the other has started', async () => (await runsOf(free.task)).length === 1);
        expect(await runsOf(held.task)).toEqual([]);
      } finally {
        await client.query('rollback');
        client.release();
      }
      expect(await numberOfRuns(held.task)).toBe(1);
    },
  );

  test.runIf(onServer)(
    'many daemons and many writers: each event starts its task once, and a cooldown holds',
    async () => {
      const all = await listening(place, 'workspace_message', { config: { max_per_minute: 600 } });
      const cooled = await listening(place, 'workspace_message', { cooldown_seconds: 3600 });
      await using second = await testDaemon(db, model);
      await using third = await testDaemon(db, model);
      expect(new Set([daemon.workerId, second.workerId, third.workerId]).size).toBe(3);
      await Promise.all(
        Array.from({ length: 8 }, async (_, writer) => {
          for (let n = 0; n < 10; n++) await say(place, `${writer}.${n}`);
          await fireTaskEvents(db, 50);
        }),
      );
      expect(await numberOfRuns(all.task)).toBe(80);
      expect(await numberOfRuns(cooled.task)).toBe(1);
      expect(await trigger(all.trigger)).toMatchObject({ trigger_count: 80 });
      expect(await trigger(cooled.trigger)).toMatchObject({ trigger_count: 1, suppressed_count: 79 });
      await until(
        'all have ended',
        async () => (await runsOf(all.task)).every((run) => run.status === 'completed'),
        40_000,
      );
    },
  );
});
