/** What /metrics says of documents: of those that wait, by the rows; of those that were worked on, by a daemon that did it. */
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { documentsWaiting } from '../../src/db/operations.ts';
import { type EmbeddingServer, startEmbeddingServer } from '../peers/embedding-server.ts';
import { testDaemon } from '../support/daemon.ts';
import {
  setDatabaseClock,
  shiftDatabaseClock,
  type TestDatabase,
  testDatabase,
} from '../support/database.ts';
import { insert, makePlatform, type Platform } from '../support/platform.ts';
import { until } from '../support/runs.ts';

let db: TestDatabase;
let server: EmbeddingServer;
let platform: Platform;

beforeAll(async () => {
  [db, server] = await Promise.all([testDatabase(), startEmbeddingServer()]);
  platform = await makePlatform(db);
});
afterAll(async () => {
  await server?.close();
  await db?.dispose();
});
beforeEach(() => db.query('delete from public.knowledge_sources'));

const text = (name: string, content: string, owner: Platform = platform): Promise<string> =>
  insert(db, 'public.knowledge_sources', { workspace_id: owner.workspaceId, name, type: 'TEXT', content });

test('documents wait for a worker, a place or a time, each since its row last changed', async () => {
  expect(await documentsWaiting(db)).toEqual([
    { state: 'admitted', documents: 0, oldest_seconds: null },
    { state: 'waiting_room', documents: 0, oldest_seconds: null },
    { state: 'retry', documents: 0, oldest_seconds: null },
  ]);
  const other = await makePlatform(db);
  for (let i = 0; i < 3; i++) await text(`of the first ${i}`, 'x');
  await text('of another', 'x', other);
  const ids = await Promise.all([text('later', 'x', other), text('let in', 'x', other)]);
  await db.query(
    `update public.knowledge_sources set retry_at = agentd.now() + interval '5 minutes' where id = $1`,
    [ids[0]],
  );
  await db.query('update public.knowledge_sources set job_id = gen_random_uuid() where id = $1', [ids[1]]);
  const rows = async () =>
    Object.fromEntries(
      (await documentsWaiting(db)).map((row) => [row.state, [row.documents, row.oldest_seconds]]),
    );
  expect(await rows()).toEqual({
    admitted: [1, expect.closeTo(0, -1)],
    waiting_room: [4, expect.closeTo(0, -1)],
    retry: [1, null],
  });
  await shiftDatabaseClock(db, 3_600_000);
  try {
    // an hour later: the one whose time had not come has waited since then, behind its workspace's first in line
    expect(await rows()).toEqual({
      admitted: [1, expect.closeTo(3600, -2)],
      waiting_room: [5, expect.closeTo(3600, -2)],
      retry: [0, null],
    });
  } finally {
    await setDatabaseClock(db, null);
  }
});

test('a daemon tells what it read, what failed and why, and what its vectors took', async () => {
  await using daemon = await testDaemon(db, server, {
    env: {
      AGENTD_HTTP_PORT: '0',
      AGENTD_EMBEDDING_MODEL: 'text-embedding-3-small',
      AGENTD_EMBEDDING_DIMENSIONS: '256',
    },
    probes: true,
  });
  const metrics = async (): Promise<string> => (await fetch(`${daemon.probesUrl}/metrics`)).text();
  const { promise: answer, resolve } = Promise.withResolvers<void>();
  server.respond((request) => (request.texts.some((t) => t.includes('slow')) ? { delay: answer } : {}));
  await text('slow', 'A slow answer.');
  await until('a request is in flight', async () =>
    (await metrics()).includes('agentd_embedding_requests_in_flight 1'),
  );
  resolve();
  await text('nothing', '   ');
  const told = await until('both are told', async () => {
    const now = await metrics();
    return now.includes('outcome="completed",reason_code=""} 1') && now.includes('reason_code="empty"')
      ? now
      : false;
  });
  expect(told).toContain('agentd_documents_total{outcome="failed",reason_code="empty"} 1');
  expect(told).toContain('agentd_embedding_requests_in_flight 0');
  expect(told).toContain(
    'agentd_embedding_requests_total{model="text-embedding-3-small",outcome="completed"} 1',
  );
  expect(told).toContain(
    `agentd_embedding_tokens_total{model="text-embedding-3-small"} ${server.paid.tokens}`,
  );
  for (const stage of ['upload', 'text_extraction', 'chunking', 'embedding', 'indexing'])
    expect(told).toMatch(new RegExp(`agentd_document_stage_seconds_count\\{stage="${stage}"\\} [12]`));
  expect(told).toContain('agentd_documents_waiting{state="admitted"} ');
  expect(told).not.toMatch(new RegExp(platform.workspaceId));
});
