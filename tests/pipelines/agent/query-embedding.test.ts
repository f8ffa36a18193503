import { pino } from 'pino';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { VectorModel } from '../../../src/db/knowledge.ts';
import { findKnowledge, QueryEmbedder } from '../../../src/pipelines/agent/query-embedding.ts';
import { builtInTools } from '../../../src/pipelines/agent/tools-builtin.ts';
import { DocumentError } from '../../../src/providers/document-error.ts';
import type { Embedder } from '../../../src/providers/embeddings.ts';
import { featureHashEmbedder } from '../../../src/providers/feature-hash.ts';
import { source } from '../../db/retrieval-rows.ts';
import { company } from '../../db/schema-support.ts';
import { type TestDatabase, testDatabase } from '../../support/database.ts';
import { handClock } from '../../support/hand-clock.ts';
import { setup } from './tool-turn.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await testDatabase();
});
afterAll(() => db.dispose());

const hash = featureHashEmbedder(64);
const vectorOf = async (text: string): Promise<number[]> => {
  const { vectors } = await hash.embed([text], { signal: new AbortController().signal });
  return Array.from(vectors[0] as Float32Array);
};

/** An embedder that counts what it is asked, behind a query embedder. */
function embedding(embed: Embedder['embed'] = (texts, options) => hash.embed(texts, options)) {
  const clock = handClock();
  const asked: { readonly workspace: string; readonly model: VectorModel; readonly text: string }[] = [];
  const queries = new QueryEmbedder({
    clock,
    log: pino({ level: 'silent' }),
    embedderOf: (owner, model) => ({
      provider: 'test',
      embedder: {
        ...hash,
        ...model,
        embed: (texts, options) => {
          asked.push({ workspace: owner.workspace_id, model, text: texts[0] as string });
          return embed(texts, options);
        },
      },
    }),
  });
  return { clock, asked, queries };
}

/** A workspace whose passages are embedded under the given models, two each. */
async function knowledge(models: readonly string[] = ['a']) {
  const { workspace, agent } = await company(db.pool);
  for (const model of models) {
    await source(
      db.pool,
      workspace,
      [
        {
          content: `invoices are paid in May, says ${model}`,
          vector: await vectorOf('invoices are paid in May'),
          model,
        },
        { content: `whales swim, says ${model}`, vector: await vectorOf('whales swim'), model },
      ],
      { name: `Handbook ${model}` },
    );
  }
  const query = (text: string, signal = new AbortController().signal) => ({
    workspaceId: workspace,
    agentId: agent,
    text,
    limit: null,
    signal,
  });
  return { workspace, agent, query };
}

describe('a query', () => {
  test('is embedded once by each model of the agent’s knowledge, and then remembered', async () => {
    const { query } = await knowledge(['a', 'b']);
    const { asked, queries } = embedding();
    const first = await findKnowledge({ db, queries }, query('invoicing'));
    expect(asked.map(({ model }) => model.model).sort()).toEqual(['a', 'b']);
    // no word of the question stands in a passage: these are found by their vectors, of both models
    expect(
      first.chunks
        .slice(0, 2)
        .map((chunk) => chunk.source)
        .sort(),
    ).toEqual(['Handbook a', 'Handbook b']);
    expect(first.chunks.slice(0, 2).every((chunk) => chunk.content.startsWith('invoices'))).toBe(true);
    expect(first.paid.map((one) => one.model).sort()).toEqual(['a', 'b']);
    expect(first.note).toBeNull();
    const again = await findKnowledge({ db, queries }, query('invoicing'));
    expect(asked).toHaveLength(2);
    expect(again.paid).toEqual([]);
    expect(again.chunks).toEqual(first.chunks);
  });

  test('of another workspace is another', async () => {
    const { asked, queries } = embedding();
    for (const { query } of [await knowledge(), await knowledge()]) {
      await findKnowledge({ db, queries }, query('the same'));
    }
    expect(new Set(asked.map(({ workspace }) => workspace)).size).toBe(2);
  });

  test('whose provider does not answer in time is searched by its words, and so are the next ones for a while', async () => {
    const { query } = await knowledge();
    const called = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
    const { asked, clock, queries } = embedding((_, { signal }) => {
      called[asked.length - 1]?.resolve();
      return new Promise((_resolve, reject) => {
        signal.addEventListener('abort', () => reject(signal.reason), { once: true });
      });
    });
    const searching = findKnowledge({ db, queries }, query('whales'));
    await called[0]?.promise;
    await clock.advance(2_000);
    const found = await searching;
    expect(found.chunks.map((chunk) => chunk.content)).toEqual(['whales swim, says a']);
    expect(found.note).toMatch(/model a could not be asked \(it did not answer in time\)/);
    expect((await findKnowledge({ db, queries }, query('May'))).note).toBe(found.note);
    expect(asked).toHaveLength(1);
    await clock.advance(10_001);
    const later = findKnowledge({ db, queries }, query('swim'));
    await called[1]?.promise;
    await clock.advance(2_000);
    expect((await later).chunks).toHaveLength(1);
    expect(asked).toHaveLength(2);
  });

  test('without a key is searched by its words, and the note says nothing but that', async () => {
    const { query } = await knowledge();
    const { queries } = embedding(async () => {
      throw new DocumentError('no_credentials', 'sk-secret');
    });
    const { chunks, note, paid } = await findKnowledge({ db, queries }, query('whales'));
    expect(chunks).toHaveLength(1);
    expect(note).toBe('the embedding model a could not be asked (no credentials)');
    expect(paid).toEqual([]);
  });

  test('of a run that is stopped ends with the run’s reason', async () => {
    const { query } = await knowledge();
    const { queries } = embedding();
    const stopped = new Error('stopped');
    await expect(findKnowledge({ db, queries }, query('whales', AbortSignal.abort(stopped)))).rejects.toBe(
      stopped,
    );
  });
});

describe('the tool', () => {
  test('gives passages with their places, and books what the query cost in the checkpoint of its outcome, once', async () => {
    const { workspace, agent } = await knowledge();
    const { queries } = embedding(async (texts, options) => ({
      ...(await hash.embed(texts, options)),
      tokens: 7,
      costMicros: 3.4,
    }));
    const tools = await builtInTools({ db, now: () => new Date(), queries }).list({
      workspaceId: workspace,
      agentId: agent,
      selected: [],
      hasKnowledge: true,
      hasMessages: false,
      hasConnections: false,
      capabilities: null,
    });
    const search = tools.find((one) => one.definition.function.name === 'search_knowledge');
    if (!search) throw new Error('There is no search_knowledge.');
    const { calling, journal, written } = setup([
      {
        ...search,
        call: (args, context) => search.call(args, { ...context, workspaceId: workspace, agentId: agent }),
      },
    ]);
    const [content] = await calling([
      { name: 'search_knowledge', arguments: '{"query":"invoicing","limit":1}' },
    ]);
    expect(content).toBe('[Handbook a, page 1, Part › 0]\ninvoices are paid in May, says a');
    await journal.flush();
    const booked = written.flatMap((checkpoint) =>
      checkpoint.usage
        .filter((event) => event.metric === 'embedding_tokens')
        .map((event) => ({
          event,
          settled: checkpoint.tools.map((call) => call.status),
          cost: checkpoint.cost_micros,
        })),
    );
    expect(booked).toEqual([
      {
        event: expect.objectContaining({
          quantity: 7,
          cost_micros: 3,
          key: expect.stringMatching(/^embed:.+:1:2:0:a$/),
          dimensions: { provider: 'test', model: 'a' },
        }),
        settled: ['completed'],
        cost: 3,
      },
    ]);
    expect(journal.totals.cost_micros).toBe(3);
    const settled = written
      .flatMap((checkpoint) => checkpoint.tools)
      .find((call) => call.status === 'completed');
    expect(settled?.result).toMatchObject({
      citations: [{ source: 'Handbook a', page: 1, heading: 'Part › 0' }],
    });
  });
});
