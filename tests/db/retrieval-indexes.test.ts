import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { dropUnusedVectorIndexes, ensureVectorIndex, prepareVectorIndex } from '../../src/db/knowledge.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { contents, match, type Passage, source } from './retrieval-rows.ts';
import { asUser, column, company, denied, outcome, value } from './schema-support.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await testDatabase();
});
afterAll(() => db.dispose());

const indexes = () =>
  column<string>(
    db.pool,
    `select indexname from pg_indexes where schemaname = 'public' and indexname ~ '^p_knowledge_chunks' order by 1`,
  );

/** Unit vectors of 16 dimensions in groups, the same every time. */
function vectors(count: number, seed: number): number[][] {
  let state = seed;
  const random = () => {
    state = (state * 1103515245 + 12345) % 2147483648;
    return state / 2147483648 - 0.5;
  };
  const groups = Array.from({ length: 20 }, () => Array.from({ length: 16 }, random));
  return Array.from({ length: count }, (_, i) => groups[i % 20]?.map((x) => x + random() * 0.4) ?? []);
}
const cosine = (a: readonly number[], b: readonly number[]): number => {
  const dot = (x: readonly number[], y: readonly number[]) =>
    x.reduce((sum, v, i) => sum + v * (y[i] ?? 0), 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
};

describe('the index of a model', () => {
  test('is made once, whatever the model is called, and by two daemons at once', async () => {
    const before = (await indexes()).length;
    const models = [
      'text-embedding-3-small',
      `"; drop table public.agents; --'`,
      '%I %L %s $1',
      'ü'.repeat(500),
      '',
    ];
    for (const model of models) {
      expect(await ensureVectorIndex(db, { model, dimensions: 16 })).toBe(true);
      expect(await ensureVectorIndex(db, { model, dimensions: 16 })).toBe(true);
    }
    expect(await ensureVectorIndex(db, { model: 'text-embedding-3-small', dimensions: 32 })).toBe(true);
    expect((await indexes()).length - before).toBe(models.length + 1);
    await Promise.all([1, 2, 3].map(() => ensureVectorIndex(db, { model: 'at once', dimensions: 16 })));
    expect(await ensureVectorIndex(db, { model: 'at once', dimensions: 16 })).toBe(true);
    expect((await indexes()).length - before).toBe(models.length + 2);

    const { workspace } = await company(db.pool);
    for (const model of models) {
      const id = await source(db.pool, workspace, [
        { content: model, vector: vectors(1, 1)[0] as number[], model },
      ]);
      const found = await match(db.pool, {
        query_embedding: vectors(1, 1)[0],
        workspace_id: workspace,
        embedding_model: model,
        source_ids: [id],
      });
      expect(contents(found)).toEqual([model]);
    }
    // an insert of another length under an indexed model's name is the tenant's own affair, and never fails
    await source(db.pool, workspace, [{ vector: [1, 2, 3], model: 'text-embedding-3-small' }]);
  });

  test('is not made for few passages, but before so many of them come or when so many are there', async () => {
    const before = (await indexes()).length;
    const { workspace } = await company(db.pool);
    const few = { model: 'few', dimensions: 3 };
    const ids = [await source(db.pool, workspace, [{ vector: [1, 0, 0], model: 'few' }])];
    ids.push(await source(db.pool, workspace, [{ vector: [0, 1, 0], model: 'few' }]));
    const have = (chunks: number) =>
      db.query(
        `update public.knowledge_sources set chunk_count = $2, embedding_model = 'few', embedding_dimensions = 3 where id = any ($1)`,
        [ids, chunks],
      );
    await have(2_000);
    expect(await prepareVectorIndex(db, few, 999)).toBe(false);
    expect((await indexes()).length).toBe(before);
    expect(await prepareVectorIndex(db, { model: 'another', dimensions: 3 }, 4_999)).toBe(false);
    expect(await prepareVectorIndex(db, { model: 'another', dimensions: 3 }, 5_000)).toBe(true);
    await have(2_500);
    expect(await prepareVectorIndex(db, few, 0)).toBe(true);
    expect((await indexes()).length).toBe(before + 2);
    // once there, it stays, however few are left
    await have(1);
    expect(await prepareVectorIndex(db, few, 0)).toBe(true);
  });

  test('over 4,000 dimensions there is none, and the search is exact', async () => {
    const before = await indexes();
    expect(await ensureVectorIndex(db, { model: 'large', dimensions: 4001 })).toBe(true);
    expect(await indexes()).toEqual(before);
    const { workspace } = await company(db.pool);
    const long = (x: number) => [x, ...Array.from({ length: 4000 }, () => 1)];
    await source(db.pool, workspace, [
      { content: 'other', vector: long(-500), model: 'large' },
      { content: 'same', vector: long(500), model: 'large' },
    ]);
    const found = await match(db.pool, {
      query_embedding: long(400),
      workspace_id: workspace,
      match_count: 1,
    });
    expect(contents(found)).toEqual(['same']);
  });

  test('is left to an operator where writers would wait long for it', async () => {
    const { workspace } = await company(db.pool);
    const id = await source(db.pool, workspace, [{ vector: [1, 0, 0], model: 'many' }]);
    // counted is what is there, whoever wrote it: what sources say can be anybody's word
    await db.query('update public.knowledge_sources set chunk_count = 10001 where id = $1', [id]);
    await db.query(
      `insert into public.knowledge_chunks (source_id, chunk_index, content, embedding_model, embedding)
       select $1, n, 'x', 'many', '[1,0,0]' from generate_series(1, 10000) n`,
      [id],
    );
    expect(await ensureVectorIndex(db, { model: 'many', dimensions: 3 })).toBe(false);
    const statement = await value<string>(db.pool, `select agentd.vector_index_definition('many', 3)`);
    expect(statement).toMatch(/^create index concurrently if not exists p_knowledge_chunks_/);
    await db.pool.query(statement as string);
    expect(await ensureVectorIndex(db, { model: 'many', dimensions: 3 })).toBe(true);
  });

  test('goes when no passage is of its model any more, and stays while one is', async () => {
    await ensureVectorIndex(db, { model: 'kept', dimensions: 3 });
    await ensureVectorIndex(db, { model: 'left', dimensions: 3 });
    const { workspace } = await company(db.pool);
    await source(db.pool, workspace, [{ vector: [1, 0, 0], model: 'kept' }]);
    const left = await source(db.pool, workspace, [{ vector: [1, 0, 0], model: 'left' }]);
    await dropUnusedVectorIndexes(db);
    const name = (model: string) => value<string>(db.pool, 'select agentd.vector_index_name($1, 3)', [model]);
    expect(await indexes()).toEqual(expect.arrayContaining([await name('kept'), await name('left')]));
    await db.pool.query('delete from public.knowledge_sources where id = $1', [left]);
    expect(await dropUnusedVectorIndexes(db)).toBe(1);
    expect(await indexes()).toContain(await name('kept'));
    expect(await indexes()).not.toContain(await name('left'));
  });

  test('stays where a workspace moves to its model or from it, or the caller is about to use it', async () => {
    const { workspace } = await company(db.pool);
    const models = ['moved to', 'moved from', 'pinned', 'own', 'wanted by nobody'];
    for (const model of models) await ensureVectorIndex(db, { model, dimensions: 3 });
    await db.query(
      `insert into agentd.embedding_migrations
         (workspace_id, status, model, dimensions, from_model, from_dimensions, pinned_model, pinned_dimensions, chunks, tokens)
       values ($1, 'failed', 'moved to', 3, 'moved from', 3, 'pinned', 3, 0, 0)`,
      [workspace],
    );
    await dropUnusedVectorIndexes(db, { model: 'own', dimensions: 3 });
    const left = await indexes();
    for (const model of models) {
      const name = await value<string>(db.pool, 'select agentd.vector_index_name($1, 3)', [model]);
      expect(left.includes(name as string), model).toBe(model !== 'wanted by nobody');
    }
    await db.query('delete from agentd.embedding_migrations');
  });

  test('stays while a passage of an application’s own has its model, also behind many that are gone', async () => {
    const model = 'of an application';
    await ensureVectorIndex(db, { model, dimensions: 3 });
    const { workspace } = await company(db.pool);
    // dead rows nearest to where an index is likely to be asked
    const gone = await source(
      db.pool,
      workspace,
      Array.from({ length: 300 }, () => ({ vector: [1, 1, 1], model })),
    );
    const kept = await source(db.pool, workspace, [{ vector: [-1, -1, -0.9], model }]);
    await db.query('update public.knowledge_sources set embedding_model = null where id = $1', [kept]);
    await db.query('delete from public.knowledge_sources where id = $1', [gone]);
    await dropUnusedVectorIndexes(db);
    const name = await value<string>(db.pool, 'select agentd.vector_index_name($1, 3)', [model]);
    expect(await indexes()).toContain(name);
  });

  test('is nobody’s to make but the worker’s', async () => {
    const { owner } = await company(db.pool);
    for (const call of [`ensure_vector_index('x', 3)`, 'drop_unused_vector_indexes()']) {
      expect(await asUser(db.pool, owner, (c) => outcome(c, `select agentd.${call}`))).toBe(denied);
    }
  });

  test.runIf(onServer)('is not waited for while somebody holds the table', async () => {
    const holder = await db.pool.connect();
    try {
      await holder.query('begin; lock table public.knowledge_chunks in row exclusive mode');
      expect(await ensureVectorIndex(db, { model: 'held', dimensions: 3 })).toBe(false);
    } finally {
      await holder.query('rollback');
      holder.release();
    }
    expect(await ensureVectorIndex(db, { model: 'held', dimensions: 3 })).toBe(true);
  });

  test.runIf(onServer)(
    'is not dropped while somebody holds the table, and nobody waits for that',
    async () => {
      await ensureVectorIndex(db, { model: 'to be dropped', dimensions: 3 });
      const name = await value<string>(db.pool, `select agentd.vector_index_name('to be dropped', 3)`);
      const holder = await db.pool.connect();
      try {
        await holder.query('begin; lock table public.knowledge_chunks in row exclusive mode');
        expect(await dropUnusedVectorIndexes(db)).toBe(0);
      } finally {
        await holder.query('rollback');
        holder.release();
      }
      expect(await indexes()).toContain(name);
      await dropUnusedVectorIndexes(db);
      expect(await indexes()).not.toContain(name);
    },
  );
});

describe('a search by vector', () => {
  test('gives exactly as many as there are, and the right ones, by each of the three ways', async () => {
    for (const [count, way] of [
      [150, 'each'],
      [700, 'bits'],
      [1500, 'index'],
    ] as const) {
      const model = `model of ${way}`;
      const { workspace, agent, owner } = await company(db.pool);
      if (way === 'index') await ensureVectorIndex(db, { model, dimensions: 16 });
      const all = vectors(count, count);
      const passages: Passage[] = all.map((vector, i) => ({ content: String(i), vector, model }));
      for (let from = 0; from < count; from += 50) {
        await source(
          db.pool,
          workspace,
          passages.slice(from, from + 50),
          from === 0 ? { agent_id: agent } : {},
        );
      }
      await db.query('analyze public.knowledge_chunks');
      const name = await value<string>(db.pool, 'select agentd.vector_index_name($1, 16)', [model]);
      let right = 0;
      for (let q = 0; q < 10; q++) {
        const query = vectors(q + 1, 99 + q)[q] as number[];
        const best = all
          .map((vector, i) => ({ i, like: cosine(query, vector) }))
          .sort((a, b) => b.like - a.like)
          .slice(0, 10)
          .map(({ i }) => String(i));
        const args = {
          query_embedding: query,
          workspace_id: workspace,
          embedding_model: model,
          match_count: 10,
        };
        const found = await match(db.pool, args);
        expect(found).toHaveLength(10);
        right += contents(found).filter((content) => best.includes(content)).length;
        expect(await match(db.pool, { ...args, match_count: 200 })).toHaveLength(Math.min(count, 200));
        const member = await asUser(db.pool, owner, (c) => match(c, args));
        expect(member).toHaveLength(10);
      }
      expect(right / 100, way).toBeGreaterThanOrEqual(way === 'each' ? 1 : 0.9);

      const client = await db.pool.connect();
      try {
        await client.query('begin');
        await match(client, {
          query_embedding: all[3],
          workspace_id: workspace,
          embedding_model: model,
          match_count: 10,
        });
        const scans = await value<string>(
          client,
          'select coalesce(pg_stat_get_xact_numscans(to_regclass($1)), 0)',
          [`public.${name}`],
        );
        expect(Number(scans) > 0, way).toBe(way === 'index');
      } finally {
        await client.query('rollback');
        client.release();
      }
    }
  });

  test('where the index comes across fewer than there are, the others are found without it', async () => {
    const model = 'crowded';
    await ensureVectorIndex(db, { model, dimensions: 16 });
    const { workspace } = await company(db.pool);
    const id = await source(
      db.pool,
      workspace,
      vectors(1200, 5).map((vector, i) => ({
        content: String(i),
        vector,
        model,
        generation: i < 900 ? 2 : 1,
      })),
      { generation: 1 },
    );
    // what counts as searchable is more than there is: the index is asked, and most of what it has is of another generation
    await db.query('update public.knowledge_sources set chunk_count = 1200 where id = $1', [id]);
    await db.query('analyze public.knowledge_chunks');
    const found = await match(db.pool, {
      query_embedding: vectors(1, 5)[0],
      workspace_id: workspace,
      embedding_model: model,
      match_count: 100,
    });
    expect(found).toHaveLength(100);
    expect(contents(found).every((content) => Number(content) >= 900)).toBe(true);
  });

  test('two models side by side are searched apart, and a query that fits both must name one', async () => {
    const { workspace } = await company(db.pool);
    await source(db.pool, workspace, [{ content: 'of a', vector: [1, 0, 0], model: 'a' }]);
    await source(db.pool, workspace, [{ content: 'of b', vector: [1, 0, 0], model: 'b' }]);
    await source(db.pool, workspace, [{ content: 'of c', vector: [1, 0], model: 'c' }]);
    const query = { query_embedding: [1, 0, 0], workspace_id: workspace };
    expect(contents(await match(db.pool, { ...query, embedding_model: 'a' }))).toEqual(['of a']);
    expect(contents(await match(db.pool, { ...query, embedding_model: 'b' }))).toEqual(['of b']);
    expect(contents(await match(db.pool, { ...query, query_embedding: [1, 0] }))).toEqual(['of c']);
    await expect(match(db.pool, query)).rejects.toMatchObject({
      code: '22023',
      message: expect.stringMatching(/Several models/),
    });
  });

  test('a query of other dimensions is told so', async () => {
    const { workspace } = await company(db.pool);
    await source(db.pool, workspace, [{ vector: [1, 0, 0] }]);
    await expect(match(db.pool, { query_embedding: [1, 0], workspace_id: workspace })).rejects.toMatchObject({
      code: '22023',
      message: expect.stringMatching(/2 dimensions/),
    });
  });
});
