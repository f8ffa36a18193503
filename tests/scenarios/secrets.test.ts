/**
 * Secrets that are planted wherever agentd reads them stay there: whatever a worker and the commands write, at the most
 * talkative level, through success and through every failure that a test can make, holds no piece of one.
 */

import { randomBytes } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { ToolSource } from '../../src/pipelines/agent/tools.ts';
import { ToolError } from '../../src/pipelines/agent/tools.ts';
import { columnSecretStore, parseKeyRing } from '../../src/secrets.ts';
import { createLogger } from '../../src/telemetry/logger.ts';
import { agentd } from '../commands/support.ts';
import { type ModelServer, type Scripted, startModelServer } from '../peers/model-server.ts';
import { type DaemonProcess, startDaemonProcess, testDaemon } from '../support/daemon.ts';
import { onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { agentKey, makePlatform, type Platform, startTask, workspaceKey } from '../support/platform.ts';
import { tablesWith, until, waitForRun } from '../support/runs.ts';

const secret = (prefix: string): string => prefix + randomBytes(15).toString('base64url');
const ENVIRONMENT_KEY = secret('sk-');
const WORKSPACE_KEY = secret('sk-');
const SEALED_KEY = secret('sk-');
const AGENT_KEY = secret('sk-');
const REFUSED_KEY = secret('sk-');
const ENCRYPTION_KEY = randomBytes(32).toString('hex');
const OTHER_ENCRYPTION_KEY = randomBytes(32).toString('hex');
const URL_PASSWORD = secret('u');
const PG_PASSWORD = secret('p');
const ENDPOINT_PASSWORD = secret('e');
const TOOL_TOKEN = secret('t');

/** Where applications put keys; nowhere else is one in the clear. */
const PLANTED = ['public.workspace_llm_config', 'public.api_connections'];

const PIECES = [
  ENVIRONMENT_KEY,
  WORKSPACE_KEY,
  SEALED_KEY,
  AGENT_KEY,
  REFUSED_KEY,
  ENCRYPTION_KEY,
  OTHER_ENCRYPTION_KEY,
  URL_PASSWORD,
  PG_PASSWORD,
  ENDPOINT_PASSWORD,
  TOOL_TOKEN,
].flatMap((one) => [one.slice(0, 10), one.slice(-8)]);

function leaks(text: string): string[] {
  return PIECES.filter((piece) => text.includes(piece)).flatMap((piece) => {
    const at = text.indexOf(piece);
    return [`${piece} in: …${text.slice(Math.max(0, at - 200), at + 100)}…`];
  });
}

/** Tables in which one is, beside those where applications put them. */
function leakingTables(): Promise<string[]> {
  return tablesWith(db, PIECES, PLANTED);
}

let db: TestDatabase;
let model: ModelServer;
let env: Record<string, string>;
/** What other sessions were seen to execute. */
const statements = new Set<string>();
let watching = true;
let watch: Promise<void>;

/** A connection string with a password that the server does not ask for. */
function withPassword(url: string): string {
  const changed = new URL(url);
  changed.password = URL_PASSWORD;
  return changed.toString();
}

beforeAll(async () => {
  db = await testDatabase();
  model = await startModelServer({ apiKeys: [ENVIRONMENT_KEY, WORKSPACE_KEY, SEALED_KEY, AGENT_KEY] });
  env = {
    DATABASE_URL: withPassword(db.url),
    PGPASSWORD: PG_PASSWORD,
    OPENAI_API_KEY: ENVIRONMENT_KEY,
    OPENAI_BASE_URL: model.url,
    ENCRYPTION_KEY,
    AGENTD_LOG_LEVEL: 'trace',
    AGENTD_DRAIN_SECONDS: '1',
  };
  watch = watchStatements();
});

afterAll(async () => {
  watching = false;
  await watch;
  await model?.close();
  await db?.dispose();
});

async function watchStatements(): Promise<void> {
  while (watching && onServer) {
    const rows = await db.query<{ query: string }>(
      'select distinct query from pg_stat_activity where datname = current_database()',
    );
    for (const { query } of rows) statements.add(query);
    // a sample now and then, not a wait for anything
    await pause(20);
  }
}

/** The worker's statement times, so that every kind of failure is in one process's output. */
async function expectEnded(id: string): Promise<void> {
  await waitForRun(db, id, ['completed', 'failed', 'waiting']);
}

async function sealedKey(owner: Platform, key: string, encryptionKey: string): Promise<void> {
  const id = await workspaceKey(db, owner, null);
  const store = columnSecretStore(parseKeyRing({ ENCRYPTION_KEY: encryptionKey }));
  const sealed = store.seal(key, {
    table: 'public.workspace_llm_config',
    row: id,
    column: 'api_key',
    workspace: owner.workspaceId,
  });
  await db.query('update public.workspace_llm_config set api_key = $2 where id = $1', [id, sealed]);
}

async function platformWith(plant: (owner: Platform) => Promise<unknown>): Promise<Platform> {
  const owner = await makePlatform(db);
  await plant(owner);
  return owner;
}

/** Every way in which providers repeat what they were sent. */
function echoes(key: string): Scripted[] {
  const said = `Key ${key} (Authorization: Bearer ${key}, ${key.slice(0, 10)}…${key.slice(-8)}) is not good`;
  const headers = { 'retry-after-ms': '5', 'x-echo': key, 'www-authenticate': `Bearer realm="${key}"` };
  return [
    ...[400, 401, 403, 404, 429, 500, 503].map((status) => ({
      status,
      headers,
      error: { message: said, code: key },
    })),
    { status: 400, headers, body: `<html><body>${said}</body></html>` },
    { status: 400, headers, body: JSON.stringify({ error: said }) },
    { status: 422, headers, body: JSON.stringify({ detail: [{ msg: said, input: { api_key: key } }] }) },
    { status: 302, headers: { ...headers, location: `https://elsewhere.test/?api_key=${key}` }, body: said },
    { status: 200, headers, body: `not JSON: ${said}` },
    { status: 200, headers, body: JSON.stringify({ error: { message: said, code: 'x' } }) },
  ];
}

describe('a worker that says all it can', () => {
  let worker: DaemonProcess;
  const outcomes: string[] = [];

  afterAll(() => worker?.kill());

  test('goes through success, refusals, echoes, lost connections and broken tables', async () => {
    worker = await startDaemonProcess({ url: env.DATABASE_URL ?? '' }, model, env);
    const owners = {
      environment: await platformWith(async () => {}),
      workspace: await platformWith((owner) => workspaceKey(db, owner, WORKSPACE_KEY)),
      sealed: await platformWith((owner) => sealedKey(owner, SEALED_KEY, ENCRYPTION_KEY)),
      agent: await platformWith((owner) => agentKey(db, owner, AGENT_KEY)),
      refused: await platformWith((owner) => workspaceKey(db, owner, REFUSED_KEY)),
      foreign: await platformWith((owner) => sealedKey(owner, SEALED_KEY, OTHER_ENCRYPTION_KEY)),
      malformed: await platformWith((owner) => workspaceKey(db, owner, `v1:${SEALED_KEY}`)),
      control: await platformWith((owner) => workspaceKey(db, owner, `${SEALED_KEY}\n`)),
    };
    model.respond(() => ({ content: 'good' }));
    for (const [name, owner] of Object.entries(owners)) {
      const run = await waitForRun(db, await startTask(db, owner, 'plain'));
      outcomes.push(`${name} ${run.status} ${run.reason_code ?? ''}`.trim());
    }
    expect(outcomes.slice(0, 4)).toEqual([
      'environment completed',
      'workspace completed',
      'sealed completed',
      'agent completed',
    ]);
    expect(outcomes[4]).toBe('refused failed invalid_api_key');
    expect(outcomes[5]).toMatch(/^foreign failed secret_/);

    // All at once: each run names its provider's answer.
    const keys = {
      environment: ENVIRONMENT_KEY,
      workspace: WORKSPACE_KEY,
      sealed: SEALED_KEY,
      agent: AGENT_KEY,
    };
    const scripts = new Map<string, Scripted>();
    model.respond(({ userText }) => scripts.get(userText) ?? { content: 'good' });
    // The embedded database is slow, and the masking does not depend on it.
    const used = Object.entries(keys).slice(0, onServer ? 4 : 1);
    const started = used.flatMap(([name, key]) =>
      echoes(key).map((echo, index) => {
        const marker = `echo ${name} ${index}.`;
        scripts.set(marker, echo);
        return startTask(db, owners[name as keyof typeof keys], marker, { timeout_seconds: 3 });
      }),
    );
    for (const id of await Promise.all(started)) await expectEnded(id);
    const statuses = await db.query<{ reason_code: string }>(
      `select distinct reason_code from public.task_runs where status in ('failed', 'waiting')`,
    );
    expect(statuses.length).toBeGreaterThan(5);

    // Lost connections while calls are under way, and statements that fail for a reason nobody expects.
    model.respond(async () => {
      if (onServer) {
        await db.query(
          `select pg_terminate_backend(pid) from pg_stat_activity
            where datname = current_database() and pid <> pg_backend_pid() and application_name like 'agentd %'`,
        );
      }
      return { content: 'good' };
    });
    await expectEnded(await startTask(db, owners.agent, 'cut'));
    model.respond(() => ({ drop: true }));
    await expectEnded(await startTask(db, owners.agent, 'drop', { timeout_seconds: 2 }));
    model.respond(() => ({ content: 'good' }));
    await db.query('alter table public.workspace_llm_config rename column vault_api_key_id to away');
    const broken = await startTask(db, owners.workspace, 'broken');
    await until('the worker has met it', () =>
      /job_failed|fetch_failed|database_retry/.test(worker.output()),
    );
    await until('the error is in the output', () => worker.output().includes('vault_api_key_id'));
    await db.query('alter table public.workspace_llm_config rename column away to vault_api_key_id');
    await until('it was tried again', async () => {
      const [row] = await db.query<{ status: string }>('select status from public.task_runs where id = $1', [
        broken,
      ]);
      return row?.status === 'completed' || row?.status === 'failed';
    });
  });

  test('its probes and metrics hold none', async () => {
    const url = /"event":"probes_listening","url":"([^"]+)"/.exec(worker.output())?.[1];
    expect(url).toBeTruthy();
    for (const path of ['livez', 'readyz', 'metrics']) {
      const response = await fetch(`${url}/${path}`);
      const headers = JSON.stringify([...response.headers]);
      expect(leaks(headers + (await response.text()))).toEqual([]);
    }
  });

  test('commands beside it print none', async () => {
    const runs = await db.query<{ id: string }>(
      `select id from public.task_runs where status = 'failed' order by id limit 1`,
    );
    const commands = [
      ['doctor'],
      ['status'],
      ['runs', 'list', '--limit', '1000'],
      ...runs.map(({ id }) => ['runs', 'show', id]),
    ];
    const printed = await Promise.all(
      commands.flatMap((command) => [agentd(command, env), agentd([...command, '--json'], env)]),
    );
    for (const { stdout, stderr } of printed) {
      expect(stdout).not.toBe('');
      expect(leaks(stdout + stderr)).toEqual([]);
    }
  });

  test('its drain says none, and its whole output has been read', async () => {
    // its output ends after it
    const gone = new Promise((resolve) => worker.child.once('close', resolve));
    worker.child.kill('SIGTERM');
    await gone;
    const output = worker.output();
    expect(output).toContain('"event":"stopped"');
    expect(output).toContain('"level":"debug"');
    expect(output.split('\n').length).toBeGreaterThan(20);
    expect(leaks(output)).toEqual([]);
  });

  test('no table holds one but those in which applications put it', async () => {
    for (const key of [WORKSPACE_KEY, AGENT_KEY]) expect(await tablesWith(db, key)).not.toEqual([]);
    expect(await leakingTables()).toEqual([]);
  });

  test.skipIf(!onServer)('server-only: no statement that the server shows holds one', () => {
    expect(statements.size).toBeGreaterThan(10);
    expect(leaks([...statements].join('\n'))).toEqual([]);
  });
});

describe('a worker and commands that can’t begin', () => {
  test.each([
    ['no server there', { DATABASE_URL: `postgres://agentd:${URL_PASSWORD}@127.0.0.1:1/none` }],
    [
      'a password as a parameter',
      { DATABASE_URL: `postgres://agentd@127.0.0.1:1/none?password=${URL_PASSWORD}` },
    ],
    ['a URL that is none', { DATABASE_URL: `postgres//agentd:${URL_PASSWORD}@127.0.0.1:1/none` }],
    ['a URL with a broken port', { DATABASE_URL: `postgres://agentd:${URL_PASSWORD}@127.0.0.1:port/none` }],
    ['an encryption key that is none', { ENCRYPTION_KEY: `${ENCRYPTION_KEY}zz` }],
    ['a ring that is none', { ENCRYPTION_KEYS: `a:${ENCRYPTION_KEY},b:${OTHER_ENCRYPTION_KEY.slice(1)}` }],
    [
      'a model endpoint with a password',
      { OPENAI_BASE_URL: `http://u:${ENDPOINT_PASSWORD}@127.0.0.1:1/v1?key=x` },
    ],
  ])('say why without it: %s', async (_, wrong) => {
    const broken = { ...env, ...wrong };
    const [doctor, started] = await Promise.all([
      agentd(['doctor'], broken),
      'OPENAI_BASE_URL' in wrong ? null : agentd(['start'], broken),
    ]);
    if (started) expect(started.code).not.toBe(0);
    for (const { stdout, stderr } of [doctor, started].filter((outcome) => outcome !== null)) {
      expect(stdout + stderr).not.toBe('');
      expect(leaks(stdout + stderr)).toEqual([]);
    }
  });

  test('a model endpoint whose URL has a password fails runs without it', async () => {
    const lines: string[] = [];
    const logger = createLogger({ level: 'trace', destination: { write: (line) => lines.push(line) } });
    await using _daemon = await testDaemon(db, model, {
      logger,
      env: { OPENAI_BASE_URL: `http://u:${ENDPOINT_PASSWORD}@127.0.0.1:1/v1` },
    });
    const owner = await makePlatform(db);
    await expectEnded(await startTask(db, owner, 'endpoint', { timeout_seconds: 2 }));
    expect(leaks(lines.join('\n'))).toEqual([]);
    expect(await leakingTables()).toEqual([]);
  });
});

describe('a tool that fails with its credential in the message', () => {
  test.each([
    ['of its own accord', (message: string) => new Error(message)],
    ['as something the model should hear', (message: string) => new ToolError('refused', message)],
  ])('%s: neither the model nor a row nor the log gets it', async (_, fail) => {
    const lines: string[] = [];
    const logger = createLogger({ level: 'trace', destination: { write: (line) => lines.push(line) } });
    const source: ToolSource = {
      name: 'shop',
      list: async () => [
        {
          source: 'shop',
          effect: 'read',
          definition: {
            type: 'function',
            function: { name: 'order', parameters: { type: 'object', properties: {} } },
          },
          call: async () => {
            throw fail(
              `POST https://user:${TOOL_TOKEN}@shop.test failed. Authorization: Bearer ${TOOL_TOKEN}; authorization: Basic ${TOOL_TOKEN}`,
            );
          },
        },
      ],
    };
    model.requests.length = 0;
    model.respond(({ body }) =>
      body.messages.at(-1)?.role === 'tool'
        ? { content: 'done' }
        : { toolCalls: [{ name: 'order', arguments: {} }] },
    );
    await using _daemon = await testDaemon(
      db,
      { url: model.url, apiKey: ENVIRONMENT_KEY },
      {
        logger,
        toolSources: [source],
      },
    );
    const owner = await makePlatform(db);
    expect((await waitForRun(db, await startTask(db, owner, 'tool'))).status).toBe('completed');
    expect(leaks(lines.join('\n'))).toEqual([]);
    expect(leaks(JSON.stringify(model.requests.map((request) => request.body)))).toEqual([]);
    expect(await leakingTables()).toEqual([]);
  });
});
