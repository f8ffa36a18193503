/** What was said is found again: by agents, who may look up their own talks with whom they work for, and by applications under row security. */
import { beforeAll, describe, expect, test } from 'vitest';
import { featureHashEmbedder } from '../../src/providers/feature-hash.ts';
import { onServer } from '../support/database.ts';
import { daemon, db, model, useDaemon } from '../support/one-daemon.ts';
import { insert, makeAgent, makePlatform, makeTask, type Platform, startRun } from '../support/platform.ts';
import { modelCalls, toolCalls, until, waitForRun } from '../support/runs.ts';
import { asUser } from '../support/sessions.ts';

useDaemon({ daemon: { env: { AGENTD_EMBEDDING_DIMENSIONS: '64' } } });

type Found = { id: string; kind: string; content: string; role: string; similarity: number | null };

const join = (workspace: string, user: string, role = 'member'): Promise<string> =>
  insert(db, 'public.workspace_members', { workspace_id: workspace, user_id: user, role });
const signUp = (): Promise<string> =>
  insert(db, 'auth.users', { email: `${Math.random().toString(36).slice(2)}@example.test` });
const conversation = (at: Platform, user: string | null, agent = at.agentId): Promise<string> =>
  insert(db, 'public.conversations', {
    workspace_id: at.workspaceId,
    agent_id: agent,
    user_id: user,
    title: 'Talk',
  });
const say = (
  at: Platform,
  place: string,
  user: string,
  content: string,
  agent = at.agentId,
): Promise<string> =>
  insert(db, 'public.agent_messages', {
    workspace_id: at.workspaceId,
    conversation_id: place,
    agent_id: agent,
    user_id: user,
    role: 'user',
    content,
  });
const channel = (at: Platform, columns: Record<string, unknown> = {}): Promise<string> =>
  insert(db, 'public.chat_channels', { workspace_id: at.workspaceId, name: 'general', ...columns });
const post = (at: Platform, place: string, content: string): Promise<string> =>
  insert(db, 'public.chat_messages', { workspace_id: at.workspaceId, channel_id: place, content });

/** What an agent finds on behalf of a user. */
const lookUp = async (
  at: Platform,
  user: string | null,
  text = 'walrus',
  agent = at.agentId,
): Promise<string[]> => {
  const rows = await db.query<Found>(
    'select * from public.search_messages(query_text => $1, workspace_id => $2, for_agent => $3, for_user => $4, match_count => 50)',
    [text, at.workspaceId, agent, user],
  );
  return rows.map((row) => row.content).sort();
};

describe('an agent', () => {
  let at: Platform;
  let colleague: string;
  beforeAll(async () => {
    at = await makePlatform(db, { shared: true });
    await db.query(`update public.workspaces set settings = '{"embed_messages": true}' where id = $1`, [
      at.workspaceId,
    ]);
    colleague = await signUp();
    await join(at.workspaceId, colleague);
  });

  test('finds what was said to it by whom it works for or by nobody in particular, and no other’s talk', async () => {
    const other = await makeAgent(db, at, { name: 'Bea' });
    await say(at, await conversation(at, at.userId), at.userId, 'walrus: mine');
    await say(at, await conversation(at, colleague), colleague, 'walrus: the colleague’s');
    await say(at, await conversation(at, null), at.userId, 'walrus: shared');
    await say(at, await conversation(at, at.userId, other), at.userId, 'walrus: with another agent', other);
    expect(await lookUp(at, at.userId)).toEqual(['walrus: mine', 'walrus: shared']);
    expect(await lookUp(at, colleague)).toEqual(['walrus: shared', 'walrus: the colleague’s']);
    expect(await lookUp(at, null)).toEqual(['walrus: shared']);
  });

  test('finds what is said in open channels and in rooms where both it and whom it works for are members', async () => {
    const room = (owner: string) =>
      insert(db, 'public.chat_rooms', { workspace_id: at.workspaceId, name: 'room', owner_user_id: owner });
    const member = (of: string, columns: Record<string, unknown>) =>
      insert(db, 'public.chat_room_members', { workspace_id: at.workspaceId, room_id: of, ...columns });
    const team = await insert(db, 'public.teams', {
      workspace_id: at.workspaceId,
      name: 'Team',
      owner_user_id: at.userId,
    });
    await insert(db, 'public.team_members', { team_id: team, agent_id: at.agentId });
    await insert(db, 'public.user_team_memberships', { team_id: team, user_id: colleague });

    const [ours, theirs, byTeam] = [await room(at.userId), await room(colleague), await room(at.userId)];
    await member(ours, { agent_id: at.agentId });
    await member(byTeam, { team_id: team });
    await post(at, await channel(at), 'otter: open');
    await post(at, await channel(at, { is_public: false }), 'otter: closed, in no room');
    await post(at, await channel(at, { room_id: ours }), 'otter: of the agent and its user');
    await post(at, await channel(at, { room_id: theirs }), 'otter: of a room without the agent');
    await post(at, await channel(at, { room_id: byTeam, is_public: false }), 'otter: of the team');
    expect(await lookUp(at, at.userId, 'otter')).toEqual([
      'otter: of the agent and its user',
      'otter: of the team',
      'otter: open',
    ]);
    expect(await lookUp(at, colleague, 'otter')).toEqual(['otter: of the team', 'otter: open']);
  });

  test('finds nothing of another workspace, whatever ids are named, and nothing that is marked as gone', async () => {
    const stranger = await makePlatform(db, { shared: true });
    const place = await conversation(stranger, stranger.userId);
    const id = await say(stranger, place, stranger.userId, 'badger: the stranger’s');
    expect(await lookUp(at, stranger.userId, 'badger')).toEqual([]);
    for (const named of [
      { in_conversation: place, workspace_id: at.workspaceId },
      {
        in_conversation: place,
        workspace_id: at.workspaceId,
        for_agent: stranger.agentId,
        for_user: stranger.userId,
      },
      { for_agent: stranger.agentId, for_user: at.userId },
      { for_agent: at.agentId, for_user: stranger.userId },
    ]) {
      const args = Object.entries(named);
      const rows = await db.query(
        `select id from public.search_messages(query_text => 'badger', ${args.map(([name], i) => `${name} => $${i + 1}`).join(', ')})`,
        args.map(([, value]) => value),
      );
      expect(rows, JSON.stringify(named)).toEqual([]);
    }
    expect(await lookUp(stranger, stranger.userId, 'badger')).toEqual(['badger: the stranger’s']);
    for (const marks of [
      '{"deleted": true}',
      '{"hidden": true}',
      '{"temporary": true}',
      '{"deleted_at": "2026-01-01"}',
    ]) {
      await db.query('update public.agent_messages set metadata = $2 where id = $1', [id, marks]);
      expect(await lookUp(stranger, stranger.userId, 'badger'), marks).toEqual([]);
    }
    await db.query('delete from public.conversations where id = $1', [place]);
    expect(await lookUp(stranger, stranger.userId, 'badger')).toEqual([]);
  });

  test('is given search_messages where its workspace asks, and cites who said what where and when', async () => {
    const place = await conversation(at, at.userId);
    const id = await say(
      at,
      place,
      at.userId,
      'The espresso grinder of the Lisbon office was replaced in May.',
    );
    const secret = await say(
      at,
      await conversation(at, colleague),
      colleague,
      'The espresso grinder is hidden at home.',
    );
    await until('both are embedded', async () => {
      const rows = await db.query(
        'select 1 from public.agent_messages where id in ($1, $2) and embedding_model is not null',
        [id, secret],
      );
      return rows.length === 2;
    });
    model.respond((request) =>
      request.body.messages.some((message) => message.role === 'tool')
        ? { content: 'In May.' }
        : {
            toolCalls: [
              {
                name: 'search_messages',
                // what a model makes up, or was talked into, changes nothing
                arguments: {
                  query: 'espresso grinder replaced',
                  workspace_id: 'x',
                  user_id: colleague,
                  for_user: colleague,
                },
              },
            ],
          },
    );
    const task = await makeTask(db, at, { name: 'Ask', instructions: 'When was the grinder replaced?' });
    const run = await waitForRun(db, await startRun(db, task));
    expect(run).toMatchObject({ status: 'completed' });
    const [call] = await toolCalls(db, run.id);
    expect(call).toMatchObject({ tool_name: 'search_messages', status: 'completed', effect: 'read' });
    const result = call?.result as unknown as { content: string; citations: Record<string, unknown>[] };
    expect(result.content).toContain('replaced in May');
    expect(result.content).not.toContain('hidden at home');
    expect(result.citations[0]).toMatchObject({
      message_id: id,
      conversation_id: place,
      title: 'Talk',
      role: 'user',
      said_at: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/),
    });
    expect(result.citations.map((citation) => citation.message_id)).not.toContain(secret);
    expect(await modelCalls(db, run.id)).toHaveLength(2);

    // not where the task selects others, and not where the workspace does not ask
    const offered = (): string[] =>
      (model.requests.at(-1)?.body.tools ?? []).map(
        (tool: { function: { name: string } }) => tool.function.name,
      );
    model.respond(() => ({ content: 'answer' }));
    const narrow = await makeTask(db, at, { name: 'Narrow', selected_tools: '["current_time"]' });
    await waitForRun(db, await startRun(db, narrow));
    expect(offered()).toEqual(['current_time']);
    const silent = await makePlatform(db, { shared: true });
    await waitForRun(db, await startRun(db, await makeTask(db, silent)));
    expect(offered()).not.toContain('search_messages');
    expect(daemon.log.some((line) => line.includes('message_batch'))).toBe(true);
  });
});

describe('an application', () => {
  test('finds by meaning and words what the caller may read, and compares no vectors of other models or sizes', async () => {
    const at = await makePlatform(db, { shared: true });
    const place = await channel(at);
    const words = await post(at, place, 'invoices are paid in May');
    const other = await post(at, place, 'whales swim');
    const { vectors } = await featureHashEmbedder(64).embed(['whales swim', 'invoices are paid in May'], {
      signal: new AbortController().signal,
    });
    const literal = (i: number) => `[${Array.from(vectors[i] as Float32Array).join(',')}]`;
    await db.query(
      `update public.chat_messages set embedding = $2, embedding_model = 'feature-hash-v1', embedding_dimensions = 64 where id = $1`,
      [other, literal(0)],
    );
    const odd = await insert(db, 'public.chat_messages', {
      workspace_id: at.workspaceId,
      channel_id: place,
      content: 'of three dimensions',
      embedding: '[1,2,3]',
    });
    const ask = (user: string) =>
      asUser(db, user, async (session) => {
        const { rows } = await session.query<Found>(
          `select id, similarity from public.search_messages($1, 'paid invoices', workspace_id => $2)`,
          [literal(0), at.workspaceId],
        );
        return rows;
      });
    const found = await ask(at.userId);
    expect(found.map((row) => row.id).sort()).toEqual([words, other].sort());
    expect(found.find((row) => row.id === other)?.similarity).toBeCloseTo(1, 5);
    expect(found.find((row) => row.id === words)?.similarity).toBeNull();
    expect(found.map((row) => row.id)).not.toContain(odd);
    const stranger = await makePlatform(db, { shared: true });
    expect(await ask(stranger.userId)).toEqual([]);
    const [wrong] = await db.query<{ n: number }>(
      `select count(*) as n from public.search_messages($1, workspace_id => $2, embedding_model => 'another')`,
      [literal(0), at.workspaceId],
    );
    expect(wrong?.n).toBe(0);
  });

  test('with words that no text has, patterns in them, or nothing to look for, is answered', async () => {
    const at = await makePlatform(db, { shared: true });
    await post(at, await channel(at), '100% of a_b \\ c');
    for (const [text, count] of [
      ['%', 0],
      ['_', 0],
      ['100%', 1],
      ['\\', 0],
      ['<|endoftext|>', 0],
      ['a_b', 1],
      ['', 0],
    ] as const)
      expect(await lookUp(at, at.userId, text), text).toHaveLength(count);
    await expect(db.query(`select * from public.search_messages(query_text => 'x')`)).rejects.toThrow(
      /not clear which workspace/,
    );
  });

  test.runIf(onServer)(
    'server-only: a workspace of 20,000 messages is searched in less than two seconds',
    async () => {
      const at = await makePlatform(db, { shared: true });
      const place = await channel(at);
      await db.query(
        `insert into public.chat_messages (workspace_id, channel_id, content, embedding, embedding_model, embedding_dimensions)
       select $1, $2, 'message ' || n || ' about many things', v.embedding, 'm', 64
         from generate_series(1, 20000) n, (select (select array_agg(random()) from generate_series(1, 64))::public.vector as embedding) v`,
        [at.workspaceId, place],
      );
      const from = performance.now();
      const rows = await db.query(
        `select id from public.search_messages(
         (select embedding from public.chat_messages where workspace_id = $1 limit 1), 'message things', workspace_id => $1)`,
        [at.workspaceId],
      );
      expect(rows).toHaveLength(10);
      expect(performance.now() - from).toBeLessThan(2_000);
    },
  );
});
