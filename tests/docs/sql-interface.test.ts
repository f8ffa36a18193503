/** Runs docs/sql-interface.md and the README: every example in order, against a database with a worker and a model. */
import { readFileSync } from 'node:fs';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { loadConfig } from '../../src/config.ts';
import { type Daemon, startDaemon } from '../../src/daemon.ts';
import { createLogger } from '../../src/telemetry/logger.ts';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { difference, readExamples, runExample, type Table } from './sql-examples.ts';

const document = readFileSync(new URL('../../docs/sql-interface.md', import.meta.url), 'utf8');
const examples = readExamples(document);
const readme = readExamples(readFileSync(new URL('../../README.md', import.meta.url), 'utf8'));

let db: TestDatabase;
let model: ModelServer;
let daemon: Daemon;
let client: pg.Client;
const notifications: string[] = [];

beforeAll(async () => {
  model = await startModelServer({
    apiKeys: ['sk-of-the-worker', 'sk-your-own-key', 'sk-key-of-the-workspace'],
  });
  model.respond(({ body, userText }) => {
    const hasAnswered = body.messages.some((message) => message.role === 'tool');
    if (userText.includes('with send_message') && !hasAnswered) {
      return {
        toolCalls: [
          { name: 'send_message', arguments: { channel: 'buyers', content: 'Good morning, buyers.' } },
        ],
      };
    }
    return { content: `Done: ${userText.slice(0, 40)}` };
  });
  db = await testDatabase();
  daemon = await startDaemon(
    loadConfig({
      DATABASE_URL: db.url,
      OPENAI_API_KEY: model.apiKey,
      OPENAI_BASE_URL: model.url,
      // the model server makes no vectors
      AGENTD_EMBEDDING_MODEL: 'feature-hash-v1',
    }),
    { logger: createLogger({ level: 'silent' }), probes: false },
  );
  // Values as the server writes them: what psql shows.
  const asText = (text: string): string => text;
  client = new pg.Client({ connectionString: db.url, types: { getTypeParser: () => asText } });
  client.on('notification', ({ channel, payload }) => {
    if (channel === 'agentd_runs') notifications.push(payload ?? '');
  });
  await client.connect();
});

afterAll(async () => {
  await client?.end();
  await daemon?.stop();
  await db?.dispose();
  await model?.close();
});

const run = (sql: string): Promise<Table> => runExample(client, sql);

/** Resolves when the worker has nothing left to do: what a reader gives it a moment for. */
async function settled(): Promise<void> {
  await vi.waitFor(
    async () => {
      const busy = await db.query<{ what: string }>(`
        select 'run ' || status as what from public.task_runs where status in ('queued', 'running') or (status = 'waiting' and wake_at is not null)
        union all
        select 'event ' || id from agentd.task_events
        union all
        select 'message ' || message_id from agentd.message_queue where failed_at is null
        union all
        select 'messages of ' || id from agentd.message_workspaces where walk_kind is not null
        union all
        select 'task ' || name from public.agent_tasks
         where status = 'active'
           and (next_run_at < now() + interval '3 seconds' or (next_run_at is null and cron_expression is not null))`);
      expect(busy).toEqual([]);
    },
    { timeout: 30_000, interval: 50 },
  );
}

describe('docs/sql-interface.md', () => {
  it('has examples', () => {
    expect(examples.length).toBeGreaterThan(40);
  });

  // One after the other: each builds on those before it.
  for (const example of examples) {
    it(`line ${example.line}, ${example.heading}: runs and gives what it promises`, async () => {
      const given = await run(example.sql);
      if (example.output) expect(difference(example.output, given)).toBeNull();
      await settled();
    });
  }

  it('used the key of the agent that the document connects, and no worker’s key beside it', () => {
    const keys = new Set(model.requests.map((request) => request.apiKey));
    expect([...keys].sort()).toEqual(['sk-revoked', 'sk-your-own-key']);
    expect(model.rejected.map(({ status }) => status)).toEqual([401]);
  });

  it.runIf(onServer)('notified agentd_runs of what ended after the example that listens', async () => {
    await vi.waitFor(() => expect(notifications.length).toBeGreaterThanOrEqual(2));
    expect(new Set(notifications)).toEqual(new Set(['']));
  });

  it('gives the late and stuck views no rows when all is well', async () => {
    expect((await run('select * from agentd.late_tasks')).rows).toEqual([]);
    expect((await run('select * from agentd.stuck_work')).rows).toEqual([]);
  });

  it('has a heading for every link of its table of contents', () => {
    const anchors = [...document.matchAll(/^##+ (.*)$/gm)].map(([, title = '']) =>
      title
        .toLowerCase()
        .replace(/[^a-z0-9 -]/g, '')
        .replaceAll(' ', '-'),
    );
    const links = [...document.matchAll(/\]\(#([^)]*)\)/g)].map(([, anchor]) => anchor);
    expect(links).toEqual(anchors);
  });
});

describe('README.md', () => {
  it('has an example', () => expect(readme.length).toBeGreaterThan(1));

  for (const example of readme) {
    it(`line ${example.line}, ${example.heading}: runs and gives what it promises`, async () => {
      const given = await run(example.sql);
      if (example.output) expect(difference(example.output, given)).toBeNull();
      await settled();
    });
  }
});
