import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { contents, match, source } from './retrieval-rows.ts';
import { asRole, asUser, company, inserted, signUp } from './schema-support.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await testDatabase();
});
afterAll(() => db.dispose());

const datastore = (workspace: string, user: string, columns: Record<string, unknown>) => {
  const row = {
    workspace_id: workspace,
    user_id: user,
    name: 'd',
    type: 'pgvector',
    similarity_threshold: -1000,
    ...columns,
  };
  const names = Object.keys(row);
  return inserted(
    db.pool,
    `insert into public.datastores (${names}) values (${names.map((_, i) => `$${i + 1}`)})`,
    Object.values(row),
  );
};

describe('what is found', () => {
  test('the nearest first, with source, page and heading', async () => {
    const { workspace } = await company(db.pool);
    await source(
      db.pool,
      workspace,
      [
        { content: 'far', vector: [0, 1, 0] },
        { content: 'near', vector: [1, 0.1, 0] },
      ],
      { name: 'Manual' },
    );
    const found = await match(db.pool, { query_embedding: [1, 0, 0], workspace_id: workspace });
    expect(contents(found)).toEqual(['near', 'far']);
    expect(found[0]).toMatchObject({ source_name: 'Manual', page: 2, heading_path: ['Part', '1'] });
    expect(found[0]?.similarity).toBeCloseTo(1 / Math.sqrt(1.01), 5);
    expect(found[1]?.similarity).toBeCloseTo(0, 5);
  });

  test('each datastore’s metric decides what is near in it', async () => {
    const { workspace, owner } = await company(db.pool);
    const expected = {
      cosine: ['direction', 'place', 'length'],
      l2: ['place', 'direction', 'length'],
      Euclidean: ['place', 'direction', 'length'],
      dot: ['length', 'direction', 'place'],
      inner_product: ['length', 'direction', 'place'],
    };
    for (const [metric, order] of Object.entries(expected)) {
      const store = await datastore(workspace, owner, { similarity_metric: metric });
      const id = await source(
        db.pool,
        workspace,
        [
          { content: 'direction', vector: [3, 0, 0] },
          { content: 'place', vector: [1, 0.5, 0] },
          { content: 'length', vector: [9, 9, 0] },
        ],
        { datastore_id: store },
      );
      const found = await match(db.pool, {
        query_embedding: [1, 0, 0],
        workspace_id: workspace,
        source_ids: [id],
      });
      expect(contents(found), metric).toEqual(order);
    }
  });

  test('likeness is the cosine, one over one and the distance, or the inner product', async () => {
    const { workspace, owner } = await company(db.pool);
    for (const [metric, likeness] of [
      ['cosine', 0.8],
      ['l2', 1 / (1 + Math.sqrt(13 + 4 - 8))],
      ['dot', 8],
    ] as const) {
      const store = await datastore(workspace, owner, { similarity_metric: metric });
      const vector = metric === 'l2' ? [2, 3, 0] : [4, 3, 0];
      const id = await source(db.pool, workspace, [{ vector }], { datastore_id: store });
      const [found] = await match(db.pool, {
        query_embedding: [2, 0, 0],
        workspace_id: workspace,
        source_ids: [id],
      });
      expect(found?.similarity, metric).toBeCloseTo(metric === 'l2' ? 1 / (1 + 3) : likeness, 5);
    }
  });

  test('the threshold of the call, else of the datastore, leaves out what is less like; words need none', async () => {
    const { workspace, owner } = await company(db.pool);
    const store = await datastore(workspace, owner, { similarity_threshold: 0.9 });
    await source(
      db.pool,
      workspace,
      [
        { content: 'like', vector: [1, 0, 0] },
        { content: 'unlike zebra', vector: [1, 1, 0] },
      ],
      { datastore_id: store },
    );
    const query = { query_embedding: [1, 0, 0], workspace_id: workspace };
    expect(contents(await match(db.pool, query))).toEqual(['like']);
    expect(contents(await match(db.pool, { ...query, match_threshold: 0.5 }))).toEqual([
      'like',
      'unlike zebra',
    ]);
    expect(contents(await match(db.pool, { ...query, match_threshold: 1.1 }))).toEqual([]);
    const worded = await match(db.pool, { ...query, query_text: 'a zebra' });
    expect(contents(worded).sort()).toEqual(['like', 'unlike zebra']);
    expect(worded.find((one) => one.content !== 'like')?.similarity).toBeCloseTo(Math.SQRT1_2, 5);
  });

  test('max_results of a datastore holds where the call names no number', async () => {
    const { workspace, owner } = await company(db.pool);
    const vectors = Array.from({ length: 9 }, (_, i) => ({ vector: [1, i / 10, 0] }));
    const two = await datastore(workspace, owner, { max_results: 2 });
    const three = await datastore(workspace, owner, { max_results: 3 });
    const [a, b] = [
      await source(db.pool, workspace, vectors, { datastore_id: two }),
      await source(db.pool, workspace, vectors, { datastore_id: three }),
    ];
    const count = async (args: Record<string, unknown>) =>
      (await match(db.pool, { query_embedding: [1, 0, 0], workspace_id: workspace, ...args })).length;
    expect(await count({ source_ids: [a] })).toBe(2);
    expect(await count({ source_ids: [b] })).toBe(3);
    expect(await count({ source_ids: [a], match_count: 7 })).toBe(7);
    const plain = await source(db.pool, workspace, vectors);
    expect(await count({ source_ids: [plain] })).toBe(5);
  });

  test('what is near and has the words comes before what is only one of the two', async () => {
    const { workspace } = await company(db.pool);
    await source(db.pool, workspace, [
      { content: 'something else', vector: [1, 0, 0] },
      { content: 'coffee harvest', vector: [1, 0.1, 0] },
      { content: 'coffee prices', vector: [0, 0, 1] },
    ]);
    const found = await match(db.pool, {
      query_embedding: [1, 0, 0],
      workspace_id: workspace,
      query_text: 'coffee',
    });
    expect(found[0]?.content).toBe('coffee harvest');
    expect(found).toHaveLength(3);
  });

  test('a passage without a vector is found by its words', async () => {
    const { workspace } = await company(db.pool);
    await source(db.pool, workspace, [
      { content: 'embedded', vector: [1, 0, 0] },
      { content: 'quinine without vector', vector: null },
    ]);
    const found = await match(db.pool, {
      query_embedding: [1, 0, 0],
      workspace_id: workspace,
      query_text: 'quinine',
    });
    expect(contents(found).sort()).toEqual(['embedded', 'quinine without vector']);
    expect(found.find((one) => one.content.includes('quinine'))?.similarity).toBeNull();
    expect(contents(await match(db.pool, { workspace_id: workspace, query_text: 'quinine' }))).toEqual([
      'quinine without vector',
    ]);
  });

  test('only the generation that is searched, and nothing of an archived source', async () => {
    const { workspace } = await company(db.pool);
    const id = await source(
      db.pool,
      workspace,
      [
        { content: 'old word', vector: [1, 0, 0], generation: 1 },
        { content: 'new word', vector: [1, 0, 0], generation: 2 },
      ],
      {},
    );
    const query = { query_embedding: [1, 0, 0], query_text: 'word', workspace_id: workspace };
    expect(contents(await match(db.pool, query))).toEqual(['old word']);
    await db.pool.query('update public.knowledge_sources set generation = 2 where id = $1', [id]);
    expect(contents(await match(db.pool, query))).toEqual(['new word']);
    await db.pool.query(`update public.knowledge_sources set processing_status = 'archived' where id = $1`, [
      id,
    ]);
    expect(await match(db.pool, query)).toEqual([]);
  });

  test('the caller’s settings are as they were', async () => {
    const { workspace } = await company(db.pool);
    await source(db.pool, workspace, [{ vector: [1, 0, 0] }]);
    const client = await db.pool.connect();
    try {
      const settings = `select name, setting from pg_settings where name in ('jit', 'enable_sort', 'enable_bitmapscan') order by name`;
      await client.query('begin; set local jit = on');
      const before = (await client.query(settings)).rows;
      await match(client, { query_embedding: [1, 0, 0], workspace_id: workspace });
      expect((await client.query(settings)).rows).toEqual(before);
    } finally {
      await client.query('rollback');
      client.release();
    }
  });
});

describe('who finds it', () => {
  test('an agent finds its own, its active datastores’, its media’s and nobody’s, as the function for workers does', async () => {
    const { workspace, owner, agent } = await company(db.pool);
    const other = await inserted(
      db.pool,
      `insert into public.agents (workspace_id, user_id, name) values ($1, $2, 'other')`,
      [workspace, owner],
    );
    const [on, off] = [await datastore(workspace, owner, {}), await datastore(workspace, owner, {})];
    await db.pool.query(
      'insert into public.agent_datastores (agent_id, datastore_id, is_active) values ($1, $2, true), ($1, $3, false)',
      [agent, on, off],
    );
    const media = async () =>
      inserted(
        db.pool,
        `insert into public.media_library (user_id, workspace_id, file_name) values ($1, $2, 'f')`,
        [owner, workspace],
      );
    const [assigned, unassigned] = [await media(), await media()];
    await db.pool.query('insert into public.agent_media_assignments (agent_id, media_id) values ($1, $2)', [
      agent,
      assigned,
    ]);
    for (const [content, columns] of Object.entries({
      nobody: {},
      own: { agent_id: agent },
      others: { agent_id: other },
      active: { datastore_id: on },
      inactive: { datastore_id: off },
      assigned: { media_id: assigned },
      unassigned: { media_id: unassigned },
    })) {
      await source(db.pool, workspace, [{ content, vector: [1, 0, 0] }], columns);
    }
    const query = { query_embedding: [1, 0, 0], workspace_id: workspace, match_count: 20 };
    expect(contents(await match(db.pool, query))).toHaveLength(7);
    expect(contents(await match(db.pool, { ...query, agent_id: agent })).sort()).toEqual([
      'active',
      'assigned',
      'nobody',
      'own',
    ]);
    const { workspace_id: _, ...unnamed } = query;
    expect(contents(await match(db.pool, { ...unnamed, agent_id: agent }))).toHaveLength(4);
  });

  test('a workspace’s search never shows another’s passages: not to its members, to no other user, not to the service', async () => {
    const [mine, theirs] = [await company(db.pool), await company(db.pool)];
    await source(db.pool, mine.workspace, [{ content: 'mine secret', vector: [1, 0, 0] }]);
    const foreign = await source(db.pool, theirs.workspace, [
      { content: 'theirs secret', vector: [1, 0, 0] },
    ]);
    const query = { query_embedding: [1, 0, 0], query_text: 'secret', match_count: 50 };
    const of = (workspace: string) => ({ ...query, workspace_id: workspace });
    const { viewer } = mine;
    expect(await asUser(db.pool, viewer, (c) => match(c, of(mine.workspace)).then(contents))).toEqual([
      'mine secret',
    ]);
    for (const args of [
      of(theirs.workspace),
      { ...query, agent_id: theirs.agent },
      { ...query, source_ids: [foreign] },
      { ...of(mine.workspace), agent_id: theirs.agent, source_ids: [foreign] },
    ]) {
      expect(await asUser(db.pool, viewer, (c) => match(c, args))).toEqual([]);
    }
    const stranger = await signUp(db.pool);
    expect(await asUser(db.pool, stranger, (c) => match(c, of(mine.workspace)))).toEqual([]);
    for (const role of ['service_role', 'agentd_worker']) {
      const as = (args: Record<string, unknown>) =>
        asRole(db.pool, role, { role }, (c) => match(c, args).then(contents));
      expect(await as(of(mine.workspace)), role).toEqual(['mine secret']);
      expect(await as({ ...of(mine.workspace), source_ids: [foreign] }), role).toEqual([]);
      expect(await as({ ...of(mine.workspace), agent_id: theirs.agent }), role).toEqual(['mine secret']);
    }
  });

  test('who names no workspace searches the only one there is, else is told to name one', async () => {
    const { workspace, viewer } = await company(db.pool);
    await source(db.pool, workspace, [{ vector: [1, 0, 0] }]);
    const unnamed = { query_embedding: [1, 0, 0] };
    await expect(match(db.pool, unnamed)).rejects.toMatchObject({ code: '22023' });
    // he has a personal one beside it
    await expect(asUser(db.pool, viewer, (c) => match(c, unnamed))).rejects.toMatchObject({ code: '22023' });
    const alone = await signUp(db.pool);
    expect(await asUser(db.pool, alone, (c) => match(c, unnamed))).toEqual([]);
  });

  test('anon may not ask', async () => {
    await expect(
      asRole(db.pool, 'anon', { role: 'anon' }, (c) => match(c, { query_text: 'x' })),
    ).rejects.toMatchObject({ code: '42501' });
  });
});
