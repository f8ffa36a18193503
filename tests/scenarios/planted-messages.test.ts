/** A run's answer is its own: nobody takes its place, and what was paid for it is on the books whatever becomes of it. */
import { randomUUID } from 'node:crypto';
import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { db, holdAnswers, model, platform, useDaemon } from '../support/one-daemon.ts';
import { insert, makePlatform, type Platform, startTask } from '../support/platform.ts';
import { modelCalls, openRows, waitForRun } from '../support/runs.ts';
import { addMember, asService, asUser, stateOf } from '../support/sessions.ts';

useDaemon();

describe('a message that claims to be the answer of a run', () => {
  /** Where a user of a workspace may write. */
  type Place = {
    readonly table: 'chat_messages' | 'agent_messages';
    readonly columns: Record<string, string>;
    /** Column of a task that makes its answer appear here. */
    readonly target: Record<string, string>;
  };

  async function channel(owner: Platform, userId: string): Promise<Place> {
    const id = await insert(db, 'public.chat_channels', {
      workspace_id: owner.workspaceId,
      name: randomUUID(),
    });
    return {
      table: 'chat_messages',
      columns: { workspace_id: owner.workspaceId, channel_id: id, sender_user_id: userId },
      target: { target_channel_id: id },
    };
  }

  async function conversation(owner: Platform, userId: string): Promise<Place> {
    const id = await insert(db, 'public.conversations', {
      workspace_id: owner.workspaceId,
      agent_id: owner.agentId,
      user_id: userId,
    });
    return {
      table: 'agent_messages',
      columns: {
        workspace_id: owner.workspaceId,
        conversation_id: id,
        agent_id: owner.agentId,
        user_id: userId,
        role: 'assistant',
      },
      target: { target_conversation_id: id },
    };
  }

  async function write(
    client: pg.PoolClient,
    { table, columns }: Place,
    more: Record<string, string> = {},
  ): Promise<string> {
    const row = { ...columns, content: 'hi', ...more };
    const names = Object.keys(row);
    const { rows } = await client.query<{ id: string }>(
      `insert into public.${table} (${names.join(', ')}) values (${names.map((_, i) => `$${i + 1}`).join(', ')})
       returning id`,
      Object.values(row),
    );
    return rows[0]?.id ?? '';
  }

  async function runOf({ table }: Place, id: string): Promise<string | null | undefined> {
    const [row] = await db.query<{ run_id: string | null }>(
      `select run_id from public.${table} where id = $1`,
      [id],
    );
    return row?.run_id;
  }

  async function answers({ table }: Place, run: string): Promise<string[]> {
    const rows = await db.query<{ content: string }>(
      `select content from public.${table} where run_id = $1`,
      [run],
    );
    return rows.map((row) => row.content);
  }

  const places = [
    ['a channel', channel],
    ['a conversation', conversation],
  ] as const;

  describe.each(places)('in %s', (_, makePlace) => {
    test.each(['a viewer of the workspace', 'a user of another tenant'])(
      'from %s claims nothing: the run completes and its answer appears',
      async (who) => {
        const owner = await makePlatform(db, { shared: true });
        const place = await makePlace(owner, owner.userId);
        const hold = holdAnswers();
        const id = await startTask(db, owner, 'x', place.target);
        await model.waitForRequest();
        const stranger = await makePlatform(db);
        const writer = who.includes('viewer') ? await addMember(db, owner, 'viewer') : stranger.userId;
        const own = await makePlace(who.includes('viewer') ? owner : stranger, writer);
        const [inserted, updated] = await asUser(db, writer, async (client) => {
          const first = await write(client, own, { run_id: id });
          const second = await write(client, own);
          // Some tables let nobody edit a message: then it is refused, or nothing is found to be edited.
          await client.query('savepoint edit');
          await client
            .query(`update public.${own.table} set run_id = $1 where id = $2`, [id, second])
            .catch(() => client.query('rollback to savepoint edit'));
          return [first, second];
        });
        expect(await runOf(own, inserted ?? '')).toBeNull();
        expect(await runOf(own, updated ?? '')).toBeNull();
        hold.release();
        expect(await waitForRun(db, id)).toMatchObject({ status: 'completed', output: { text: 'held' } });
        expect(await answers(place, id)).toEqual(['held']);
      },
    );

    test('that a service has written is the one answer: the run completes without another', async () => {
      const place = await makePlace(platform, platform.userId);
      const hold = holdAnswers();
      const id = await startTask(db, platform, 'x', place.target);
      await model.waitForRequest();
      const message = await asService(db, (client) => write(client, place, { run_id: id, content: 'early' }));
      expect(await runOf(place, message)).toBe(id);
      hold.release();
      const run = await waitForRun(db, id);
      expect(run).toMatchObject({ status: 'completed', reason_code: null, output: { text: 'held' } });
      expect(run.prompt_tokens).toBeGreaterThan(0);
      expect(await answers(place, id)).toEqual(['early']);
    });

    test('whose run_id a user edits away stays the answer of its run', async () => {
      const place = await makePlace(platform, platform.userId);
      const id = await startTask(db, platform, 'x', place.target);
      await waitForRun(db, id);
      await stateOf(
        asUser(db, platform.userId, (client) =>
          client.query(`update public.${place.table} set run_id = $2 where run_id = $1`, [id, randomUUID()]),
        ),
      );
      expect(await answers(place, id)).toEqual(['answer']);
    });
  });
});

describe('a checkpoint that the database refuses', () => {
  const books = async (id: string): Promise<Record<string, number>> => {
    const rows = await db.query<{ metric: string; quantity: number; cost_micros: number }>(
      `select metric, sum(quantity)::integer as quantity, sum(cost_micros)::integer as cost_micros
         from public.usage_events where run_id = $1 group by metric`,
      [id],
    );
    return Object.fromEntries(
      rows.flatMap((row) => [
        [row.metric, row.quantity],
        [`${row.metric} cost`, row.cost_micros],
      ]),
    );
  };

  beforeAll(async () => {
    // A rule of the application's own that an answer may break.
    await db.query(
      `alter table public.chat_messages add constraint no_shouting check (content not like '%SHOUT%')`,
    );
  });
  afterAll(async () => {
    await db.query('alter table public.chat_messages drop constraint no_shouting');
  });

  test('fails the run, and leaves what was paid on the books', async () => {
    const channel = await insert(db, 'public.chat_channels', {
      workspace_id: platform.workspaceId,
      name: 'quiet',
    });
    const usage = { promptTokens: 1_000_000, completionTokens: 2_000 };
    model.respond((_, index) => ({ content: index === 0 ? 'one' : 'SHOUT', usage }));
    const id = await startTask(db, platform, 'x', { target_channel_id: channel }, [{}, {}]);
    const run = await waitForRun(db, id);
    expect(run).toMatchObject({
      status: 'failed',
      reason_code: 'journal_refused',
      lease_epoch: 1,
      turns: 2,
      prompt_tokens: 2_000_000,
      completion_tokens: 4_000,
    });
    expect(run.reason).toContain('no_shouting');
    expect(Number(run.cost_micros)).toBeGreaterThan(0);
    expect(await modelCalls(db, id)).toMatchObject([
      { status: 'completed', prompt_tokens: 1_000_000 },
      { status: 'completed', prompt_tokens: 1_000_000 },
    ]);
    expect(await books(id)).toEqual({
      tokens: 2_004_000,
      'tokens cost': Number(run.cost_micros),
      task_run: 1,
      'task_run cost': 0,
    });
    expect(await openRows(db, id)).toEqual([]);
    expect(model.requests).toHaveLength(2);
  });
});
