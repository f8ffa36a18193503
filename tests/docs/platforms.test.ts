/** Runs docs/platforms.md: every example in order, in one session, against a database with a worker and a model. */
import { readFileSync } from 'node:fs';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { type TestDaemon, testDaemon } from '../support/daemon.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { until } from '../support/runs.ts';
import { difference, readExamples, runExample, type Table } from './sql-examples.ts';

const page = readFileSync(new URL('../../docs/platforms.md', import.meta.url), 'utf8');
const examples = readExamples(page);

let db: TestDatabase;
let model: ModelServer;
let daemon: TestDaemon;
let client: pg.Client;

beforeAll(async () => {
  db = await testDatabase();
  model = await startModelServer();
  model.respond(() => ({ content: 'Good morning.' }));
  daemon = await testDaemon(db, model);
  // Values as the server writes them: what psql shows.
  const asText = (text: string): string => text;
  client = new pg.Client({ connectionString: db.url, types: { getTypeParser: () => asText } });
  await client.connect();
});
afterAll(async () => {
  await client?.end();
  await daemon?.stop();
  await model?.close();
  await db?.dispose();
});

const run = (sql: string): Promise<Table> => runExample(client, sql);

/** The worker has nothing left to do: what a reader gives it a moment for. */
const settled = (): Promise<true> =>
  until('no run is open and no task is due', async () => {
    const busy = await client.query(`
      select 1 from public.task_runs where status in ('queued', 'running')
      union all
      select 1 from public.agent_tasks where status = 'active' and next_run_at < now() + interval '3 seconds'`);
    return busy.rows.length === 0;
  });

describe('docs/platforms.md', () => {
  for (const example of examples) {
    test(`line ${example.line}, ${example.heading}: runs and gives what it promises`, async () => {
      const given = await run(example.sql);
      if (example.output) expect(difference(example.output, given)).toBeNull();
      if (!example.sql.startsWith('begin')) await settled();
    });
  }

  test('has examples, and a heading for every link of its table of contents', () => {
    expect(examples.length).toBeGreaterThan(10);
    const anchors = [...page.matchAll(/^## (.*)$/gm)].map(([, title = '']) =>
      title.toLowerCase().replaceAll(' ', '-'),
    );
    expect([...page.matchAll(/\]\(#([^)]*)\)/g)].map(([, anchor]) => anchor)).toEqual(anchors);
  });

  test('a cast to an enum by its schema, as Prisma sends it, is taken by a view', async () => {
    const { rows } = await client.query(
      `select "agentcenter"."agents"."name" from "agentcenter"."agents"
        where "agentcenter"."agents"."status" = cast($1::text as "public"."agent_status")`,
      ['live'],
    );
    expect(rows.map((row) => row.name)).toContain('Reception');
  });

  test.skipIf(!onServer)('server-only: a search path is the role’s or the connection’s', async () => {
    const app = `agentd_test_app_${process.pid}`;
    const path = async (url: string): Promise<unknown> => {
      const session = new pg.Client({ connectionString: url });
      await session.connect();
      try {
        await session.query(`insert into agents (name) values ('By ${app}')`);
        return (
          await session.query(
            `select current_schema() as schema, status from agents where name = 'By ${app}'`,
          )
        ).rows[0];
      } finally {
        await session.end();
      }
    };
    const url = new URL(db.url);
    url.username = app;
    await client.query(`reset role; create role ${app} login; grant service_role, authenticated to ${app};
                        alter role ${app} set role = service_role`);
    try {
      url.searchParams.set('options', '-c search_path=agentcenter,public');
      expect(await path(url.href)).toEqual({ schema: 'agentcenter', status: 'draft' });
      url.searchParams.delete('options');
      await client.query(`delete from public.agents where name = 'By ${app}'`);
      await client.query(`alter role ${app} set search_path = agentcenter, public`);
      expect(await path(url.href)).toEqual({ schema: 'agentcenter', status: 'draft' });
    } finally {
      await client.query(`drop role ${app}`);
    }
  });
});
