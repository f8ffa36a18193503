/** Which workspace's messages come next, whoever rests, is paused, or was put off by a clock that was ahead; and what a batch of them costs. */
import pino from 'pino';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { systemClock } from '../../src/clock.ts';
import { openDatabase } from '../../src/db/database.ts';
import {
  claimMessageWorkspace,
  type MessageClaim,
  releaseMessageWorkspace,
  storeMessageEmbeddings,
} from '../../src/db/message-embeddings.ts';
import { embedMessageBatch, type MessageBatchOutcome } from '../../src/pipelines/ingest/messages.ts';
import { type EmbeddingServer, startEmbeddingServer } from '../peers/embedding-server.ts';
import { lanesOf, serverEmbedder } from '../pipelines/ingest/embed-support.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, type Platform } from '../support/platform.ts';

let db: TestDatabase;
let server: EmbeddingServer;

beforeAll(async () => {
  db = await testDatabase();
  server = await startEmbeddingServer();
});
afterAll(async () => {
  await server?.close();
  await db?.dispose();
});
beforeEach(async () => {
  await db.query('delete from agentd.message_queue');
  await db.query('delete from agentd.message_workspaces');
});

const ask = (at: Platform, wanted: boolean): Promise<unknown> =>
  db.query(
    `update public.workspaces set settings = settings || jsonb_build_object('embed_messages', $2::boolean) where id = $1`,
    [at.workspaceId, wanted],
  );
async function talk(): Promise<Platform & { readonly channel: string }> {
  const platform = await makePlatform(db, { shared: true });
  await ask(platform, true);
  const channel = await insert(db, 'public.chat_channels', {
    workspace_id: platform.workspaceId,
    name: 'general',
  });
  return { ...platform, channel };
}
const post = (at: Platform & { readonly channel: string }, content: string): Promise<string> =>
  insert(db, 'public.chat_messages', { workspace_id: at.workspaceId, channel_id: at.channel, content });
const set = (at: Platform, columns: string): Promise<unknown> =>
  db.query(`update agentd.message_workspaces set ${columns} where id = $1`, [at.workspaceId]);
const claim = (after: string | null = null): Promise<MessageClaim | string | null> =>
  claimMessageWorkspace(db, after, 'worker', 60);
const work = (claimed: MessageClaim): Promise<MessageBatchOutcome> =>
  embedMessageBatch(
    {
      db,
      clock: systemClock,
      log: pino({ level: 'silent' }),
      lanes: lanesOf(systemClock),
      chooseEmbedder: () => ({ provider: 'openai', embedder: serverEmbedder(server) }),
      leaseSeconds: 60,
    },
    claimed,
    new AbortController().signal,
  );
/** Until nothing is left to do. */
async function workOff(): Promise<void> {
  for (;;) {
    const claimed = await claim();
    if (claimed === null) return;
    if (typeof claimed !== 'string') await work(claimed);
    await db.query(`update agentd.message_workspaces set retry_at = null where retry_at < 'infinity'`);
  }
}

test('a thousand workspaces that rest keep nobody waiting: the next look goes on behind them', async () => {
  const at = await talk();
  await db.query(
    `insert into public.workspaces (id, name, slug, owner_user_id, settings)
     select ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, 'Rests', 'rests-' || n, $1, '{"embed_messages": true}'
       from generate_series(1, 1300) n`,
    [at.userId],
  );
  await db.query(
    `update agentd.message_workspaces set retry_at = case when id::text like '%0' then 'infinity' else agentd.now() + interval '30 minutes' end
      where id < '00000000-0000-4000-8000-999999999999'`,
  );
  let after: string | null = null;
  for (let look = 1; look <= 2; look++) {
    const found: MessageClaim | string | null = await claim(after);
    if (look === 1) {
      expect(found).toBe('00000000-0000-4000-8000-000000001000');
      after = found as string;
    } else expect(found).toMatchObject({ id: at.workspaceId });
  }
  // who has something to do and rests is no reason to look for ever
  expect([await claim(after), await claim(null)]).toEqual([
    expect.any(String),
    '00000000-0000-4000-8000-000000001000',
  ]);
  await db.query(`delete from public.workspaces where name = 'Rests'`);
  expect(await claim()).toBeNull();
});

test('what a clock that was ahead has put off is due, and what an operator has paused is not', async () => {
  const at = await talk();
  const isDue = async (columns: string): Promise<boolean> => {
    await set(at, 'lease_expires_at = null, retry_at = null');
    await set(at, columns);
    return (await claim()) !== null;
  };
  expect(await isDue(`retry_at = agentd.now() + interval '30 minutes'`)).toBe(false);
  expect(await isDue(`retry_at = agentd.now() + interval '1 day'`)).toBe(true);
  expect(await isDue(`lease_expires_at = agentd.now() + interval '1 minute'`)).toBe(false);
  expect(await isDue(`lease_expires_at = agentd.now() + interval '1 day'`)).toBe(true);
  expect(await isDue(`retry_at = 'infinity'`)).toBe(false);
  // the workspace's own settings do not end the pause
  await ask(at, false);
  await ask(at, true);
  expect(await claim()).toBeNull();
});

test('what is embedded after a workspace asked no more, and asks again, is billed again', async () => {
  const at = await talk();
  await post(at, 'billed words');
  const billed = async (): Promise<number> => {
    const [row] = await db.query<{ tokens: number }>(
      `select coalesce(sum(quantity), 0)::integer as tokens from public.usage_events where workspace_id = $1 and metric = 'embedding_tokens'`,
      [at.workspaceId],
    );
    return row?.tokens ?? 0;
  };
  /** The batch that embeds has the same epoch in both lives. */
  const life = async (): Promise<void> => {
    await set(at, `walk_kind = null, lease_epoch = 0, lease_expires_at = null`);
    await db.query(
      `insert into agentd.message_queue (kind, message_id, workspace_id)
       select 'channel', id, workspace_id from public.chat_messages where workspace_id = $1 on conflict do nothing`,
      [at.workspaceId],
    );
    expect(await work((await claim()) as MessageClaim)).toMatchObject({ kind: 'embedded', embedded: 1 });
  };
  await life();
  const once = await billed();
  expect(once).toBeGreaterThan(0);
  await ask(at, false);
  await workOff();
  expect(await db.query('select 1 from agentd.message_workspaces')).toEqual([]);
  await ask(at, true);
  await life();
  expect(await billed()).toBe(2 * once);
});

test.skipIf(!onServer)(
  'server-only: a message without words whose place in the queue a transaction holds makes its workspace wait, not spin',
  async () => {
    const at = await talk();
    await set(at, 'walk_kind = null');
    const id = await post(at, ' \n');
    const other = openDatabase({ url: db.url, embedded: false });
    try {
      await other.transaction(async (tx) => {
        await tx.query('select 1 from agentd.message_queue where message_id = $1 for update', [id]);
        const claimed = (await claim()) as MessageClaim;
        const outcome = await work(claimed);
        expect(outcome.kind).toBe('nothing');
        expect(outcome.againMs).toBeGreaterThan(500);
        expect(await claim()).toBeNull();
      });
    } finally {
      await other.close();
    }
    await set(at, 'retry_at = null');
    const claimed = (await claim()) as MessageClaim;
    expect(await work(claimed)).toMatchObject({ kind: 'nothing', againMs: null });
    await releaseMessageWorkspace(db, claimed, { grows: false });
    expect(await db.query('select 1 from agentd.message_queue where message_id = $1', [id])).toEqual([]);
  },
);

test('what was paid while a workspace took its wish back is booked, once', async () => {
  const at = await talk();
  await post(at, 'hello');
  const claimed = await claim();
  if (claimed === null || typeof claimed === 'string') throw new Error('There was nothing to claim.');
  await ask(at, false);
  const paid = { tokens: 9, costMicros: 4, provider: 'p', model: 'm', dimensions: 2, leaseSeconds: 60 };
  for (let said = 0; said < 2; said++)
    expect(
      await storeMessageEmbeddings(db, claimed, { ...paid, key: 'messages:x', messages: [] }),
    ).toBeNull();
  expect(
    await db.query(
      `select quantity::integer, cost_micros::integer from public.usage_events
        where workspace_id = $1 and metric = 'embedding_tokens'`,
      [at.workspaceId],
    ),
  ).toEqual([{ quantity: 9, cost_micros: 4 }]);
});
