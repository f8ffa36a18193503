/** Messages of workspaces that ask for it are embedded: real daemons, a strict embedding server, and tenants that do what they can. */
import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { openDatabase } from '../../src/db/database.ts';
import { type EmbeddingServer, startEmbeddingServer, vectorOf } from '../peers/embedding-server.ts';
import { startDaemonProcess, type TestDaemon, testDaemon } from '../support/daemon.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, type Platform } from '../support/platform.ts';
import { until } from '../support/runs.ts';
import { asUser } from '../support/sessions.ts';

let db: TestDatabase;
let server: EmbeddingServer;

const env = (): Record<string, string> => ({
  AGENTD_EMBEDDING_MODEL: 'text-embedding-3-small',
  AGENTD_EMBEDDING_DIMENSIONS: '64',
});

beforeAll(async () => {
  db = await testDatabase();
  server = await startEmbeddingServer();
});
afterAll(async () => {
  await server?.close();
  await db?.dispose();
});
beforeEach(() => server.respond(() => ({})));
afterEach(() => expect(server.rejected).toEqual([]));

type Talk = Platform & { readonly conversation: string; readonly channel: string };

/** A workspace that asks, with a conversation and a channel. */
async function talk(asks = true): Promise<Talk> {
  const platform = await makePlatform(db, { shared: true });
  if (asks) await ask(platform);
  const conversation = await insert(db, 'public.conversations', {
    workspace_id: platform.workspaceId,
    agent_id: platform.agentId,
    user_id: platform.userId,
  });
  const channel = await insert(db, 'public.chat_channels', {
    workspace_id: platform.workspaceId,
    name: 'general',
  });
  return { ...platform, conversation, channel };
}

const ask = (at: Platform, wanted = true): Promise<unknown> =>
  db.query(
    `update public.workspaces set settings = settings || jsonb_build_object('embed_messages', $2::boolean) where id = $1`,
    [at.workspaceId, wanted],
  );
const say = (at: Talk, content: string, columns: Record<string, unknown> = {}): Promise<string> =>
  insert(db, 'public.agent_messages', {
    workspace_id: at.workspaceId,
    conversation_id: at.conversation,
    agent_id: at.agentId,
    user_id: at.userId,
    role: 'user',
    content,
    ...columns,
  });
const post = (at: Talk, content: string, columns: Record<string, unknown> = {}): Promise<string> =>
  insert(db, 'public.chat_messages', {
    workspace_id: at.workspaceId,
    channel_id: at.channel,
    sender_user_id: at.userId,
    content,
    ...columns,
  });

type Embedded = {
  embedding: string | null;
  embedding_model: string | null;
  embedding_dimensions: number | null;
};
const message = async (id: string): Promise<Embedded | undefined> => {
  const [row] = await db.query<Embedded>(
    `select embedding::text as embedding, embedding_model, embedding_dimensions from public.chat_messages where id = $1
     union all
     select embedding::text, embedding_model, embedding_dimensions from public.agent_messages where id = $1`,
    [id],
  );
  return row;
};
const embedded = (id: string): Promise<Embedded> =>
  until(`message ${id} is embedded`, async () => {
    const row = await message(id);
    return row?.embedding_model ? row : false;
  });
const queued = (
  at: Platform,
): Promise<{ message_id: string; reason_code: string | null; attempts: number }[]> =>
  db.query('select * from agentd.message_queue where workspace_id = $1 order by seq', [at.workspaceId]);
const settled = (at: Platform): Promise<true> =>
  until('nothing is left to do', async () => {
    const [row] = await db.query<{ open: boolean }>(
      `select exists (select 1 from agentd.message_queue q where q.workspace_id = $1 and q.failed_at is null)
           or exists (select 1 from agentd.message_workspaces w
                       where w.id = $1 and (w.walk_kind is not null or w.lease_expires_at is not null)) as open`,
      [at.workspaceId],
    );
    return row?.open === false;
  });
const state = async (
  at: Platform,
): Promise<{
  reason_code: string;
  reason: string;
  failures: number;
  messages: number;
  tokens: number;
} | null> => {
  const [row] = await db.query<never>('select * from agentd.message_workspaces where id = $1', [
    at.workspaceId,
  ]);
  return row ?? null;
};
const paidFor = (text: string): number => server.paid.times.get(text) ?? 0;
const countOf = async (at: Platform): Promise<number> => {
  const [row] = await db.query<{ n: number }>(
    `select (select count(*) from public.chat_messages where workspace_id = $1 and embedding_model is not null)
          + (select count(*) from public.agent_messages where workspace_id = $1 and embedding_model is not null) as n`,
    [at.workspaceId],
  );
  return row?.n ?? 0;
};

describe('a daemon', () => {
  let daemon: TestDaemon;
  beforeAll(async () => {
    daemon = await testDaemon(db, server, { env: env() });
  });
  afterAll(() => daemon?.stop());

  test('embeds what is said in conversations and channels, with model, dimensions, tokens and cost', async () => {
    const at = await talk();
    const ids = [await say(at, 'The espresso machine leaks.'), await post(at, 'Beans arrive on Tuesday.')];
    for (const id of ids) {
      const row = await embedded(id);
      expect(row).toMatchObject({ embedding_model: 'text-embedding-3-small', embedding_dimensions: 64 });
    }
    await settled(at);
    const numbers = JSON.parse((await embedded(ids[0] as string)).embedding as string) as number[];
    expect(numbers[0]).toBeCloseTo(vectorOf('The espresso machine leaks.', 64)[0] as number, 5);
    expect(await queued(at)).toEqual([]);
    const row = await state(at);
    const [usage] = await db.query<{ tokens: number; keys: number; events: number }>(
      `select sum(quantity)::integer as tokens, count(distinct idempotency_key)::integer as keys, count(*)::integer as events
         from public.usage_events where workspace_id = $1 and metric = 'embedding_tokens' and dimensions ->> 'what' = 'messages'`,
      [at.workspaceId],
    );
    expect(usage?.tokens).toBeGreaterThan(0);
    expect(usage?.keys).toBe(usage?.events);
    expect(row).toMatchObject({ messages: 2, tokens: usage?.tokens, reason_code: null, failures: 0 });
  });

  test('asks nothing for workspaces that do not ask, and queues nothing for them', async () => {
    const silent = await talk(false);
    const loud = await talk();
    const id = await say(silent, 'Nobody is to embed this.');
    const strict = await talk(false);
    await db.query(`update public.workspaces set settings = '{"embed_messages": "true"}' where id = $1`, [
      strict.workspaceId,
    ]);
    await post(strict, 'Text is no boolean.');
    await embedded(await say(loud, 'This one, yes.'));
    expect(await message(id)).toMatchObject({ embedding: null });
    expect([...(await queued(silent)), ...(await queued(strict))]).toEqual([]);
    expect(paidFor('Nobody is to embed this.') + paidFor('Text is no boolean.')).toBe(0);
  });

  test('embeds what was said before a workspace asked, and takes the vectors away when it asks no more', async () => {
    const at = await talk(false);
    await db.query(
      `insert into public.chat_messages (workspace_id, channel_id, content, created_at)
       select $1::uuid, $2::uuid, 'old ' || n || ' of ' || $1::text, now() - n % 7 * interval '1 day' from generate_series(1, 700) n`,
      [at.workspaceId, at.channel],
    );
    await say(at, 'older still');
    const own = await post(at, 'an application has embedded this', { embedding: '[1,2,3]' });
    await ask(at);
    await until('all are embedded', async () => (await countOf(at)) === 701);
    await settled(at);
    expect(await message(own)).toEqual({
      embedding: '[1,2,3]',
      embedding_model: null,
      embedding_dimensions: null,
    });
    expect(
      [...server.paid.times].filter(([text, times]) => text.includes(at.workspaceId) && times > 1),
    ).toEqual([]);

    await ask(at, false);
    await until('it is forgotten', async () => (await state(at)) === null);
    expect(await countOf(at)).toBe(0);
    expect((await message(own))?.embedding).toBe('[1,2,3]');
    const late = await post(at, 'said after it had asked no more');
    expect(await queued(at)).toEqual([]);
    expect((await message(late))?.embedding).toBeNull();
  }, 60_000);

  test('embeds edited content anew, and never shows the vector of what is not said any more', async () => {
    const at = await talk();
    const id = await post(at, 'first words');
    const before = await embedded(id);
    const { promise, resolve } = Promise.withResolvers<void>();
    server.respond(() => ({ delay: promise }));
    await db.query(`update public.chat_messages set content = 'second words' where id = $1`, [id]);
    expect(await message(id)).toEqual({ embedding: null, embedding_model: null, embedding_dimensions: null });
    resolve();
    const after = await embedded(id);
    expect(after.embedding).not.toBe(before.embedding);
    // other columns cost nothing
    await settled(at);
    await db.query(`update public.chat_messages set metadata = '{"seen": true}' where id = $1`, [id]);
    expect(await message(id)).toEqual(after);
    await db.query('delete from public.chat_messages where id = $1', [id]);
    await settled(at);
    expect(paidFor('second words')).toBe(1);
  });

  test('an edit while the old words are embedded wins', async () => {
    const at = await talk();
    const { promise, resolve } = Promise.withResolvers<void>();
    server.respond((request) => (request.texts.includes('stale words') ? { delay: promise } : {}));
    const asked = server.requests.length;
    const id = await say(at, 'stale words');
    await server.waitForRequests(asked + 1);
    await db.query(`update public.agent_messages set content = 'fresh words' where id = $1`, [id]);
    resolve();
    const row = await embedded(id);
    const numbers = JSON.parse(row.embedding as string) as number[];
    expect(numbers[0]).toBeCloseTo(vectorOf('fresh words', 64)[0] as number, 5);
    expect(paidFor('stale words')).toBe(1);
  });

  test('a message that the provider refuses is marked with the reason and not tried again; the others pass', async () => {
    const at = await talk();
    server.respond((request) =>
      request.texts.some((text) => text.includes('poison'))
        ? { status: 400, error: { message: 'This input is not allowed.', code: 'content_filter' } }
        : {},
    );
    const bad = await say(at, 'a poison message');
    const good = await Promise.all(
      Array.from({ length: 20 }, (_, i) => say(at, `a good message ${i} of ${at.channel}`)),
    );
    for (const id of good) await embedded(id);
    const failed = await until('it is given up', async () => {
      const [row] = await db.query<{ message_id: string; reason_code: string; reason: string }>(
        'select * from agentd.message_queue where workspace_id = $1 and failed_at is not null',
        [at.workspaceId],
      );
      return row ?? false;
    });
    expect(failed).toMatchObject({ message_id: bad, reason_code: 'embedding_refused' });
    expect(failed.reason).toContain('not allowed');
    await settled(at);
    const tried = server.requests.filter((request) => request.texts.includes('a poison message')).length;
    await embedded(await say(at, 'one more'));
    expect(server.requests.filter((request) => request.texts.includes('a poison message')).length).toBe(
      tried,
    );
    // edited, it has another chance
    await db.query(`update public.agent_messages set content = 'a harmless message' where id = $1`, [bad]);
    await embedded(bad);
    expect(await queued(at)).toEqual([]);
  });

  test('many refused messages together hold up neither the good ones among them nor anybody else', async () => {
    const at = await talk(false);
    const other = await talk();
    server.respond((request) =>
      request.texts.some((text) => text.includes('venom'))
        ? { status: 400, error: { message: 'This input is not allowed.', code: 'content_filter' } }
        : {},
    );
    await db.query(
      `insert into public.chat_messages (workspace_id, channel_id, content)
       select $1::uuid, $2::uuid, case when n <= 40 then 'venom ' else 'honey ' end || n from generate_series(1, 44) n`,
      [at.workspaceId, at.channel],
    );
    await ask(at);
    const id = await say(other, 'patient words');
    await embedded(id);
    await until('the good ones are embedded', async () => (await countOf(at)) === 4, 60_000);
    await until(
      'the bad ones are given up',
      async () => (await queued(at)).filter((row) => row.reason_code === 'embedding_refused').length === 40,
      60_000,
    );
  }, 90_000);

  test('a provider that is away leaves its reason in the workspace’s row, and others go on', async () => {
    const at = await talk();
    const other = await talk();
    server.respond((request) =>
      request.texts.includes('unlucky words')
        ? { status: 401, error: { message: 'no', type: 'invalid_request_error', code: 'invalid_api_key' } }
        : {},
    );
    const id = await say(at, 'unlucky words');
    const row = await until('the reason is there', async () => {
      const now = await state(at);
      return now?.reason_code ? now : false;
    });
    expect(row.reason_code).toBe('credentials_refused');
    expect(row.reason.length).toBeGreaterThan(20);
    await embedded(await say(other, 'lucky words'));
    expect((await queued(at)).map(({ attempts }) => attempts)).toEqual([0]);
    server.respond(() => ({}));
    await db.query('update agentd.message_workspaces set retry_at = null where id = $1', [at.workspaceId]);
    await embedded(id);
    await settled(at);
    expect(await state(at)).toMatchObject({ reason_code: null, failures: 0 });
  });

  test('more workspaces that rest than one look comes by delay nobody behind them', async () => {
    const at = await talk();
    const behind = '00000000-0000-4000-8000-999999999999';
    await db.query(
      `insert into public.workspaces (id, name, slug, owner_user_id)
       select ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, 'Rests', 'rests-' || n, $1
         from unnest(array(select generate_series(1, 2500)::bigint) || 999999999999) n`,
      [at.userId],
    );
    await db.query(
      `with resting as (
         insert into agentd.message_workspaces (id, walk_kind, retry_at, reason_code)
         select id, null, agentd.now() + interval '30 minutes', 'no_credentials' from public.workspaces where name = 'Rests' and id <> $1
         returning id)
       insert into agentd.message_queue (kind, message_id, workspace_id) select 'channel', gen_random_uuid(), id from resting`,
      [behind],
    );
    const channel = await insert(db, 'public.chat_channels', { workspace_id: behind, name: 'general' });
    await ask({ ...at, workspaceId: behind });
    await embedded(await post({ ...at, workspaceId: behind, channel }, 'words from behind'));
    await db.query(`delete from public.workspaces where name = 'Rests'`);
  });

  test('one tenant’s thousands of messages delay nobody', async () => {
    const greedy = await talk(false);
    const patient = await talk();
    server.respond((request) =>
      request.texts.some((text) => text.includes('greedy')) ? { delay: pause(50) } : {},
    );
    await db.query(
      `insert into public.chat_messages (workspace_id, channel_id, content)
       select $1::uuid, $2::uuid, 'greedy ' || n from generate_series(1, 12000) n`,
      [greedy.workspaceId, greedy.channel],
    );
    await ask(greedy);
    await until('it has begun', async () => (await countOf(greedy)) > 0);
    await embedded(await say(patient, 'patient words once more'));
    expect(await countOf(greedy)).toBeLessThan(6000);
    await ask(greedy, false);
    await until('it is forgotten', async () => (await state(greedy)) === null, 60_000);
  }, 120_000);

  test('leaves out what has no words, is marked as hidden, or is longer than anybody reads', async () => {
    const at = await talk();
    const blank = await say(at, ' \n\t');
    const hidden = await post(at, 'hidden words', { metadata: '{"hidden": true}' });
    const temporary = await post(at, 'temporary words', { metadata: '{"temporary": true}' });
    const large = await say(at, 'x'.repeat(100_001));
    const long = await say(at, '言葉'.repeat(10_000));
    const shown = await post(at, 'shown words');
    await embedded(shown);
    await embedded(long);
    await settled(at);
    for (const id of [blank, hidden, temporary, large]) expect((await message(id))?.embedding).toBeNull();
    expect((await queued(at)).map(({ message_id, reason_code }) => [message_id, reason_code])).toEqual([
      [large, 'too_large'],
    ]);
    await db.query(`update public.chat_messages set metadata = '{"deleted": true}' where id = $1`, [shown]);
    expect((await message(shown))?.embedding).toBeNull();
    await db.query(`update public.chat_messages set metadata = '{}' where id in ($1, $2)`, [shown, hidden]);
    await embedded(shown);
    await embedded(hidden);
  });

  test('nobody who is signed in says which model has embedded something, or reads the queue', async () => {
    const at = await talk(false);
    const planted = await asUser(db, at.userId, async (session) => {
      const { rows } = await session.query<{ id: string }>(
        `insert into public.chat_messages (channel_id, sender_user_id, content, embedding, embedding_model, embedding_dimensions)
         values ($1, $2, 'planted', '[1,0]', 'text-embedding-3-small', 64) returning id`,
        [at.channel, at.userId],
      );
      await session.query(
        `update public.chat_messages set embedding_model = 'x', embedding_dimensions = 2 where id = $1`,
        [rows[0]?.id],
      );
      return rows[0]?.id ?? '';
    });
    expect(await message(planted)).toEqual({
      embedding: '[1,0]',
      embedding_model: null,
      embedding_dimensions: null,
    });
    for (const table of ['message_queue', 'message_workspaces'])
      await expect(
        asUser(db, at.userId, (session) => session.query(`select * from agentd.${table}`)),
      ).rejects.toThrow(/permission denied/);
  });
});

describe.skipIf(!onServer)('server-only: several daemons', () => {
  test('embed each message once between them', async () => {
    const tenants = await Promise.all(Array.from({ length: 6 }, () => talk(false)));
    for (const at of tenants)
      await db.query(
        `insert into public.chat_messages (workspace_id, channel_id, content)
         select $1::uuid, $2::uuid, 'shared work ' || n || ' of ' || $1::text from generate_series(1, 600) n`,
        [at.workspaceId, at.channel],
      );
    await using _one = await testDaemon(db, server, { env: env(), leaseSeconds: 15 });
    await using _two = await testDaemon(db, server, { env: env(), leaseSeconds: 15 });
    await using _three = await testDaemon(db, server, { env: env(), leaseSeconds: 15 });
    await Promise.all(tenants.map((at) => ask(at)));
    for (const at of tenants)
      await until('all are embedded', async () => (await countOf(at)) === 600, 60_000);
    const twice = [...server.paid.times].filter(
      ([text, times]) => text.startsWith('shared work') && times > 1,
    );
    expect(twice).toEqual([]);
    for (const at of tenants) {
      const [usage] = await db.query<{ tokens: number }>(
        `select sum(quantity)::integer as tokens from public.usage_events where workspace_id = $1 and metric = 'embedding_tokens'`,
        [at.workspaceId],
      );
      expect(usage?.tokens).toBe((await state(at))?.tokens);
    }
  }, 120_000);

  test('a worker that is killed between the answer and the commit costs what was in flight, and nothing else', async () => {
    const at = await talk();
    const count = 40;
    const { promise: isHeld, resolve: held } = Promise.withResolvers<void>();
    const asked = server.requests.length;
    server.respond((_, index) => (index === 0 ? { delay: isHeld } : {}));
    await using worker = await startDaemonProcess(db, server, env());
    await db.query(
      `insert into public.chat_messages (workspace_id, channel_id, content)
       select $1::uuid, $2::uuid, 'fragile ' || n || ' of ' || $1::text from generate_series(1, $3::integer) n`,
      [at.workspaceId, at.channel, count],
    );
    await server.waitForRequests(asked + 1);
    const second = openDatabase({ url: db.url, embedded: false });
    try {
      // the answer comes, and cannot be written
      await second.transaction(async (tx) => {
        await tx.query('select 1 from agentd.message_workspaces where id = $1 for update', [at.workspaceId]);
        held();
        const writing = async (): Promise<boolean> => {
          const rows = await db.query(
            `select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()
                and query like '%with own%is_wanted for no key update%' and query not like '%pg_stat_activity%'`,
          );
          return rows.length > 0;
        };
        await until('the worker waits to write', writing);
        await worker.kill();
        // the server does not know yet, and would write what it was sent
        await until('its statement has given up', async () => !(await writing()));
      });
    } finally {
      await second.close();
    }
    expect(await countOf(at)).toBe(0);
    await db.query(
      `update agentd.message_workspaces set lease_expires_at = agentd.now() - interval '1 second' where id = $1`,
      [at.workspaceId],
    );
    await using _next = await testDaemon(db, server, { env: env() });
    await until('all are embedded', async () => (await countOf(at)) === count);
    const times = [...server.paid.times].filter(([text]) => text.includes(`of ${at.workspaceId}`));
    expect(times).toHaveLength(count);
    const inFlight = server.requests[asked]?.texts.length ?? 0;
    expect(times.reduce((sum, [, n]) => sum + n, 0)).toBeLessThanOrEqual(count + inFlight);
    const [usage] = await db.query<{ tokens: number }>(
      `select sum(quantity)::integer as tokens from public.usage_events where workspace_id = $1 and metric = 'embedding_tokens'`,
      [at.workspaceId],
    );
    expect(usage?.tokens).toBe((await state(at))?.tokens);
  }, 60_000);

  test('a tenant that holds his messages holds up nobody, and is not asked for at full speed', async () => {
    const at = await talk();
    const other = await talk();
    await using _daemon = await testDaemon(db, server, { env: env(), leaseSeconds: 15 });
    const tenant = openDatabase({ url: db.url, embedded: false });
    try {
      const id = await say(at, 'held words');
      await embedded(id);
      await settled(at);
      const { promise, resolve } = Promise.withResolvers<void>();
      const held = tenant.transaction(async (tx) => {
        await tx.query(`update public.agent_messages set metadata = '{"x": 1}' where id = $1`, [id]);
        await tx.query(
          `insert into public.agent_messages (workspace_id, conversation_id, agent_id, user_id, role, content)
                        values ($1, $2, $3, $4, 'user', 'not there yet')`,
          [at.workspaceId, at.conversation, at.agentId, at.userId],
        );
        const more = await say(at, 'more words');
        await embedded(more);
        await db.query(`update public.agent_messages set content = 'held and changed' where id = $1`, [more]);
        await tx.query('select 1 from public.agent_messages where id = $1 for update', [more]);
        await embedded(await say(other, 'free words'));
        await until('the row says so', async () => (await state(at))?.reason_code === 'row_locked');
        await promise;
      });
      await until('somebody is held up', async () => (await state(at))?.reason_code === 'row_locked');
      expect(paidFor('held and changed')).toBeLessThanOrEqual(2);
      resolve();
      await held;
      await db.query('update agentd.message_workspaces set retry_at = null where id = $1', [at.workspaceId]);
      await until('all is embedded', async () => (await queued(at)).length === 0);
      expect(await countOf(at)).toBe(3);
    } finally {
      await tenant.close();
    }
  }, 60_000);
});
