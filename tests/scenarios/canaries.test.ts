/**
 * A secret in every column that holds one, and in the environment; then work of every kind, against peers that answer well and one
 * that repeats to all what they sent. Afterwards no other column of any table, and no line of any log, has one in any spelling.
 */
import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { SECRET_PLACES } from '../../src/db/secret-columns.ts';
import { columnSecretStore, parseKeyRing } from '../../src/secrets.ts';
import { agentd } from '../commands/support.ts';
import { type EchoServer, startEchoServer } from '../peers/echo-server.ts';
import { type EmbeddingServer, startEmbeddingServer } from '../peers/embedding-server.ts';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { Canaries } from '../support/canaries.ts';
import { startDaemonProcess } from '../support/daemon.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, type Platform, startTask } from '../support/platform.ts';
import { until, waitForRun } from '../support/runs.ts';

const canaries = new Canaries();
const ENCRYPTION_KEY = randomBytes(32).toString('hex');
const store = columnSecretStore(parseKeyRing({ ENCRYPTION_KEY }));

let db: TestDatabase;
let model: ModelServer;
let embeddings: EmbeddingServer;
let echo: EchoServer;
let env: Record<string, string>;
let logs = '';

/** Something that holds secrets and works with them. `work` resolves when it has happened, well or not. */
type Part = {
  readonly name: string;
  /** Where the daemon's default models are: at the model server unless it says otherwise. */
  readonly at?: () => string;
  readonly plant: () => Promise<void>;
  readonly work: () => Promise<unknown>;
};

const ended = async (owner: Platform, marker: string): Promise<unknown> =>
  waitForRun(db, await startTask(db, owner, marker, { timeout_seconds: 4 }), [
    'completed',
    'failed',
    'waiting',
  ]);

/** Inserts a row whose column `column` is a canary, sealed if asked. */
async function plantIn(
  table: string,
  column: string,
  columns: Record<string, unknown>,
  workspace: string | null,
  options: { secret?: string; isSealed?: boolean } = {},
): Promise<string> {
  const name = `${table}.${column}`;
  const secret = options.secret ?? canaries.plant(name);
  const id = await insert(db, table, { ...columns, [column]: secret });
  if (options.isSealed === true) {
    const sealed = store.seal(secret, { table, row: id, column, workspace });
    await db.query(`update ${table} set ${column} = $2 where id = $1`, [id, sealed]);
  }
  return id;
}

async function source(owner: Platform, text: string, datastore?: string): Promise<void> {
  const id = await insert(db, 'public.knowledge_sources', {
    workspace_id: owner.workspaceId,
    name: 'Notes',
    type: 'TEXT',
    content: text,
    datastore_id: datastore,
  });
  await until('the document has been tried', async () => {
    const [row] = await db.query<{ done: boolean }>(
      `select processing_status in ('completed', 'failed') or retry_at is not null as done
         from public.knowledge_sources where id = $1`,
      [id],
    );
    return row?.done === true;
  });
}

const owners: Record<string, Platform> = {};
const good: string[] = [];

const parts: readonly Part[] = [
  {
    name: 'keys of agents and workspaces, plain and sealed, at a good server and at one that repeats them',
    async plant() {
      for (const name of ['workspace', 'sealed', 'agent', 'echoed']) {
        const owner = await makePlatform(db);
        owners[name] = owner;
        const { workspaceId, userId, agentId } = owner;
        if (name === 'agent') {
          const id = await plantIn(
            'public.api_connections',
            'api_key',
            { workspace_id: workspaceId, user_id: userId, name: 'A', service: 'openai' },
            workspaceId,
          );
          await insert(db, 'public.agent_api_connections', { agent_id: agentId, api_connection_id: id });
        } else {
          await plantIn(
            'public.workspace_llm_config',
            'api_key',
            { workspace_id: workspaceId, provider: 'openai' },
            workspaceId,
            { isSealed: name === 'sealed' },
          );
        }
        if (name !== 'echoed') good.push(canaries.all.at(-1)?.secret as string);
      }
    },
    async work() {
      const keys = new Set(good);
      model.respond(({ apiKey, userText }) =>
        userText.includes('fail')
          ? { status: 400, error: { message: `Bearer ${apiKey} is wrong`, code: apiKey ?? '' } }
          : { content: 'good' },
      );
      for (const name of ['workspace', 'sealed', 'agent', 'echoed']) {
        expect(await ended(owners[name] as Platform, 'work')).toMatchObject({
          status: name === 'echoed' ? 'failed' : 'completed',
        });
        await ended(owners[name] as Platform, 'fail');
      }
      expect(keys.size).toBe(3);
    },
  },
  {
    name: 'keys that embed, at a server that knows them and at one that repeats them',
    at: () => embeddings.url,
    plant: async () => {},
    work: async () => {
      await source(owners.workspace as Platform, 'The workspace pays for this text.');
      await source(owners.echoed as Platform, 'Nobody pays for this one.');
      expect(embeddings.requests.some(({ apiKey }) => apiKey === good[0])).toBe(true);
    },
  },
  {
    name: 'all of it once more where every answer repeats what was sent',
    at: () => `${echo.url}/v1`,
    plant: async () => {},
    async work() {
      for (const owner of Object.values(owners)) await ended(owner, 'work');
      await source(owners.workspace as Platform, 'Repeated.');
      expect(echo.heard.some((said) => said.includes(good[0] as string))).toBe(true);
    },
  },
  {
    name: 'stores elsewhere',
    at: () => embeddings.url,
    async plant() {
      for (const [type, entry] of [
        ['pinecone', { index: 'x', host: echo.url }],
        ['getzep', { host: echo.url }],
      ] as const) {
        const owner = await makePlatform(db);
        owners[type] = owner;
        const secret = canaries.plant('public.datastores.config');
        const datastore = await insert(db, 'public.datastores', {
          workspace_id: owner.workspaceId,
          user_id: owner.userId,
          name: 'D',
          type,
          config: JSON.stringify({ ...entry, api_key: secret }),
        });
        await insert(db, 'public.agent_datastores', { agent_id: owner.agentId, datastore_id: datastore });
        await source(owner, `What ${type} is to hold.`, datastore);
        owners[`${type} key`] = { ...owner, agentId: secret };
      }
    },
    work: () =>
      until('both were asked', () =>
        ['pinecone', 'getzep'].every((type) =>
          echo.heard.some((said) => said.includes((owners[`${type} key`] as Platform).agentId)),
        ),
      ),
  },
  {
    name: 'connections to MCP servers',
    async plant() {
      const { agentId, workspaceId } = await makePlatform(db);
      for (const [index, isSealed] of [false, true].entries()) {
        await plantIn(
          'public.agent_mcp_connections',
          'auth_secret',
          {
            agent_id: agentId,
            connection_name: `C${index}`,
            server_url: `${echo.url}/mcp-${index}`,
            auth_type: index === 0 ? 'bearer' : 'header',
            auth_header: index === 0 ? undefined : 'x-api-key',
          },
          workspaceId,
          { isSealed },
        );
      }
    },
    work: () =>
      until('both were asked', () =>
        [0, 1].every((index) => echo.asked.some((line) => line.includes(`/mcp-${index}`))),
      ),
  },
  {
    name: 'tokens that are refreshed',
    async plant() {
      const { userId, workspaceId } = await makePlatform(db);
      const provider = await insert(db, 'public.service_providers', {
        name: 'echo',
        display_name: 'Echo',
        provider_type: 'oauth',
        token_endpoint: `${echo.url}/token`,
        configuration_metadata: JSON.stringify({
          client_id: 'client',
          client_secret: canaries.plant('public.service_providers.configuration_metadata'),
        }),
      });
      for (const isSealed of [false, true]) {
        const table = 'public.user_integration_credentials';
        const id = await insert(db, table, {
          workspace_id: workspaceId,
          user_id: userId,
          service_provider_id: provider,
          credential_type: 'oauth',
          connection_name: `C${isSealed}`,
        });
        const stored = ['vault_access_token_id', 'vault_refresh_token_id'].map((column) => {
          const secret = canaries.plant(`${table}.${column}`);
          return isSealed ? store.seal(secret, { table, row: id, column, workspace: workspaceId }) : secret;
        });
        await db.query(
          `update ${table} set vault_access_token_id = $2, vault_refresh_token_id = $3,
                  token_expires_at = agentd.now() - interval '1 minute' where id = $1`,
          [id, ...stored],
        );
      }
    },
    work: () => until('it was asked', () => echo.asked.includes('POST /token')),
  },
];

beforeAll(async () => {
  db = await testDatabase();
  echo = await startEchoServer();
  const own = canaries.plant('OPENAI_API_KEY');
  const url = new URL(db.url);
  url.password = canaries.plant('the password of DATABASE_URL', 'pw');
  env = {
    DATABASE_URL: url.toString(),
    PGPASSWORD: canaries.plant('PGPASSWORD'),
    OPENAI_API_KEY: own,
    ENCRYPTION_KEY,
    AWS_ACCESS_KEY_ID: 'AKIDEXAMPLE',
    AWS_SECRET_ACCESS_KEY: canaries.plant('AWS_SECRET_ACCESS_KEY'),
    AWS_SESSION_TOKEN: canaries.plant('AWS_SESSION_TOKEN'),
    OTEL_EXPORTER_OTLP_ENDPOINT: `${echo.url}/otel`,
    OTEL_EXPORTER_OTLP_HEADERS: `authorization=${encodeURIComponent(canaries.plant('OTEL_EXPORTER_OTLP_HEADERS'))}`,
    AGENTD_ALLOWED_PRIVATE_HOSTS: echo.host,
    AGENTD_EMBEDDING_MODEL: 'text-embedding-3-small',
    AGENTD_EMBEDDING_DIMENSIONS: '256',
    AGENTD_LOG_LEVEL: 'trace',
    AGENTD_DRAIN_SECONDS: '1',
  };
  await parts[0]?.plant();
  model = await startModelServer({ apiKeys: [own, ...good] });
  embeddings = await startEmbeddingServer({ apiKeys: [own, ...good] });
});
afterAll(async () => {
  await model?.close();
  await embeddings?.close();
  await echo?.close();
  await db?.dispose();
});

test('the search finds a secret in every spelling, also inside of other text and JSON', async () => {
  const seen = new Canaries();
  const secret = seen.plant('a test');
  const spelt = [
    `x ${secret} y`,
    Buffer.from(secret).toString('base64'),
    ...['', 'a', 'ab'].map((before) => Buffer.from(`${before}${secret}:more`).toString('base64')),
    Buffer.from(`ab${secret}`).toString('base64url'),
    Buffer.from(secret).toString('hex').toUpperCase(),
    encodeURIComponent(`user:${secret}`),
    secret.slice(0, 20),
  ];
  for (const text of spelt) {
    expect(seen.leaksIn(text)).not.toEqual([]);
    const id = await insert(db, 'agentd.audit_log', {
      action: 'a',
      object_type: 'b',
      details: JSON.stringify({ deep: [text] }),
    });
    expect((await seen.leakingColumns(db)).map((leak) => leak.split(':')[0])).toContain(
      'agentd.audit_log.details',
    );
    await db.query('delete from agentd.audit_log where id = $1', [id]);
  }
  expect(await seen.leakingColumns(db)).toEqual([]);
});

describe('a worker that says all it can', () => {
  test.each(parts.map((part, index) => [part.name, part, index] as const))(
    'works: %s',
    async (_, part, index) => {
      const worker = await startDaemonProcess(
        db,
        { url: part.at?.() ?? model.url, apiKey: '' },
        { ...env, OPENAI_BASE_URL: part.at?.() ?? model.url },
      );
      try {
        if (index > 0) await part.plant();
        await part.work();
      } finally {
        // its output ends after it
        const gone = new Promise((resolve) => worker.child.once('close', resolve));
        worker.child.kill('SIGTERM');
        await gone;
        logs += worker.output();
      }
      expect(worker.output()).toContain('"event":"stopped"');
    },
    60_000,
  );

  test('a secret was planted in every column that the worker opens secrets from', () => {
    const planted = new Set(canaries.all.map(({ name }) => name));
    const missing = SECRET_PLACES.filter(({ isOpened }) => isOpened)
      .map(({ table, column }) => `${table}.${column}`)
      .filter((name) => !planted.has(name));
    // ids of the Vault are no secrets; what the worker itself fills is searched like every other column
    expect(missing.filter((name) => !/vault_api_key_id$|connection_metadata$|^agentd\./.test(name))).toEqual(
      [],
    );
  });

  test('the commands beside it print none', async () => {
    for (const command of [
      ['doctor'],
      ['status'],
      ['secrets', 'status'],
      ['secrets', 'rotate', '--dry-run'],
      ['secrets', 'seal'],
    ]) {
      for (const form of [command, [...command, '--json']]) {
        const { stdout, stderr } = await agentd(form, { ...env, OPENAI_BASE_URL: model.url });
        expect(stdout).not.toBe('');
        expect(canaries.leaksIn(stdout + stderr)).toEqual([]);
      }
    }
  });

  test('no line of its logs has one', () => {
    expect(logs.split('\n').length).toBeGreaterThan(50);
    expect(canaries.leaksIn(logs)).toEqual([]);
  });

  test('no column of any table has one but those in which it was planted', async () => {
    expect(await canaries.leakingColumns(db)).toEqual([]);
  });
});
