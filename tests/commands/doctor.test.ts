import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { configInForce } from '../../src/commands/doctor-checks.ts';
import { loadConfig } from '../../src/config.ts';
import { columnSecretStore, parseKeyRing } from '../../src/secrets.ts';
import { emptyDatabase, onServer, type TestDatabase, testDatabase } from '../support/database.ts';
import { agentd, insertTenant, json } from './support.ts';

type Report = {
  ok: boolean;
  checks: {
    name: string;
    status: string;
    message: string;
    next_step: string | null;
    details?: { object: string; problem: string; next_step: string | null }[];
  }[];
  configuration: Record<string, string>;
};

const KEY = 'sk-test-0123456789abcdef0123';
const HEX = 'ab'.repeat(32);
let db: TestDatabase;
let endpoint: Server;
let answer = 200;
let baseUrl = '';

beforeAll(async () => {
  db = await testDatabase();
  endpoint = createServer((request, response) => {
    const known = request.headers.authorization === `Bearer ${KEY}` && request.url === '/v1/models';
    response.writeHead(known ? answer : 418).end('{"data":[]}');
  });
  await new Promise<void>((resolve) => endpoint.listen(0, '127.0.0.1', resolve));
  baseUrl = `http://127.0.0.1:${(endpoint.address() as AddressInfo).port}/v1`;
});
afterEach(() => {
  answer = 200;
});
afterAll(async () => {
  endpoint.closeAllConnections();
  await new Promise((resolve) => endpoint.close(resolve));
  await db.dispose();
});

async function doctor(
  env: Record<string, string> = {},
): Promise<Report & { code: number | null; of(name: string): string | undefined }> {
  const outcome = await agentd(['doctor', '--json'], {
    DATABASE_URL: db.url,
    OPENAI_API_KEY: KEY,
    OPENAI_BASE_URL: baseUrl,
    ENCRYPTION_KEY: HEX,
    ...env,
  });
  const report = json<Report>(outcome);
  return {
    ...report,
    code: outcome.code,
    of: (name) => report.checks.find((check) => check.name === name)?.status,
  };
}

test('a healthy installation passes every check, and only the absent worker is a warning', async () => {
  const report = await doctor();
  expect(
    report.checks.filter((check) => !['ok', 'skip'].includes(check.status)).map((check) => check.name),
  ).toEqual(['workers']);
  expect(report.of('enqueue')).toBe('ok');
  expect(report.of('notifications')).toBe(onServer ? 'ok' : 'skip');
  expect([report.ok, report.code]).toEqual([true, 0]);
});

test('the self-test leaves nothing behind', async () => {
  const rows = () =>
    db.query(
      'select (select count(*) from auth.users) as users, (select count(*) from public.task_runs) as runs, (select count(*) from pgboss.job) as jobs',
    );
  const before = await rows();
  await doctor();
  expect(await rows()).toEqual(before);
});

test('what differs in the schema fails the check thing by thing, and --sql prints the statements that repair it', async () => {
  const env = { DATABASE_URL: db.url };
  expect(await agentd(['doctor', '--sql'], env)).toMatchObject({ code: 0, stdout: '' });
  await db.query('drop policy leads_select on public.leads; drop trigger end_run on public.task_runs');
  const report = await doctor();
  const schema = report.checks.find((check) => check.name === 'schema');
  expect([report.code, schema?.status]).toEqual([1, 'fail']);
  expect(schema?.message).toBe('2 things differ from what this version expects, on 2 objects.');
  expect(schema?.next_step).toContain('agentd doctor --sql');
  expect(schema?.details).toEqual([
    {
      object: 'public.leads',
      problem: 'policy leads_select is missing',
      next_step: expect.stringContaining('create policy leads_select on public.leads for select'),
    },
    { object: 'public.task_runs', problem: 'trigger end_run is missing', next_step: null },
  ]);
  const people = await agentd(['doctor'], env);
  expect(people.stdout).toMatch(
    /fail {2}schema .*\n +public\.leads: policy leads_select is missing\n +→ create policy/,
  );
  const script = await agentd(['doctor', '--sql'], env);
  expect(script.code).toBe(0);
  await db.pool.query(script.stdout);
  expect((await doctor()).of('schema')).toBe('ok');
});

test('a database of a newer version is not compared with this one’s schema', async () => {
  await db.query(`insert into agentd.migrations (name, timestamp) values ('9999_later', '2099-01-01')`);
  try {
    await db.query('drop index public.task_runs_finished_idx');
    const report = await doctor();
    expect(report.checks.find((check) => check.name === 'schema')).toMatchObject({
      status: 'skip',
      message: expect.stringContaining('9999_later'),
    });
    const script = await agentd(['doctor', '--sql'], { DATABASE_URL: db.url });
    expect([script.code, script.stdout]).toEqual([1, '']);
    expect(script.stderr).toContain('9999_later');
  } finally {
    await db.query(
      'create index task_runs_finished_idx on public.task_runs (finished_at) where finished_at is not null',
    );
    await db.query(`delete from agentd.migrations where name = '9999_later'`);
  }
});

test('a disabled trigger fails the checks by name', async () => {
  await db.query('alter table public.task_runs disable trigger prepare_run');
  try {
    const report = await doctor();
    expect(report.code).toBe(1);
    expect(report.checks.find((check) => check.name === 'schema')?.details).toEqual([
      {
        object: 'public.task_runs',
        problem: 'trigger prepare_run is disabled',
        next_step: 'alter table public.task_runs enable trigger prepare_run;',
      },
    ]);
    expect(report.of('enqueue')).toBe('fail');
  } finally {
    await db.query('alter table public.task_runs enable trigger prepare_run');
  }
});

test('a missing queue fails the enqueue self-test although every table is there', async () => {
  await db.query(`update pgboss.queue set name = 'elsewhere' where name = 'task-run'`);
  try {
    expect((await doctor()).of('enqueue')).toBe('fail');
  } finally {
    await db.query(`update pgboss.queue set name = 'task-run' where name = 'elsewhere'`);
  }
});

test('a refused key, an endpoint without a list and one that is away are told apart', async () => {
  answer = 401;
  expect((await doctor()).of('model endpoint')).toBe('fail');
  answer = 404;
  expect((await doctor()).of('model endpoint')).toBe('warn');
  expect((await doctor({ OPENAI_BASE_URL: 'http://127.0.0.1:1/v1' })).of('model endpoint')).toBe('fail');
  expect((await doctor({ OPENAI_API_KEY: '' })).of('model endpoint')).toBe('warn');
});

test('plain-text keys in the tables are counted', async () => {
  const { workspace } = await insertTenant(db, 'Plain');
  const before = (await doctor()).of('stored secrets');
  await db.query(
    `insert into public.workspace_llm_config (workspace_id, provider, api_key) values ($1, 'openai', 'sk-in-plain-text')`,
    [workspace],
  );
  const report = await doctor();
  expect([before, report.of('stored secrets')]).toEqual(['ok', 'warn']);
});

test('keys that stored secrets still need, and those that they lack, are named', async () => {
  const { workspace } = await insertTenant(db, 'Sealed');
  const [older, newer] = ['ab', 'cd'].map((byte) => byte.repeat(32));
  await db.query('delete from public.workspace_llm_config');
  const [row] = await db.query<{ id: string }>(
    `insert into public.workspace_llm_config (workspace_id, provider) values ($1, 'openai') returning id`,
    [workspace],
  );
  const sealed = columnSecretStore(parseKeyRing({ ENCRYPTION_KEYS: `older:${older}` })).seal('sk-sealed', {
    table: 'public.workspace_llm_config',
    row: row?.id as string,
    column: 'api_key',
    workspace,
  });
  await db.query('update public.workspace_llm_config set api_key = $1', [sealed]);
  const said = async (ring: string): Promise<Report['checks'][number] | undefined> => {
    const report = await doctor({ ENCRYPTION_KEY: '', ENCRYPTION_KEYS: ring });
    return report.checks.find(({ name }) => name === 'stored secrets');
  };
  expect(await said(`older:${older}`)).toMatchObject({ status: 'ok' });
  expect(await said(`newer:${newer},older:${older}`)).toMatchObject({
    status: 'warn',
    message: expect.stringContaining('still needed beside the first: older (1)'),
    next_step: expect.stringContaining('agentd secrets rotate'),
  });
  expect(await said(`newer:${newer}`)).toMatchObject({
    status: 'fail',
    message: expect.stringContaining('older (1)'),
  });
  await db.query('delete from public.workspace_llm_config');
});

test('an unusable encryption key fails, and no secret is ever printed', async () => {
  const bad = await agentd(['doctor'], {
    DATABASE_URL: db.url,
    OPENAI_API_KEY: KEY,
    OPENAI_BASE_URL: baseUrl,
    ENCRYPTION_KEY: 'tooshort',
  });
  expect(bad.code).toBe(1);
  expect(bad.stdout).toMatch(/fail {2}encryption keys/);
  const good = await agentd(['doctor'], {
    DATABASE_URL: db.url,
    OPENAI_API_KEY: KEY,
    OPENAI_BASE_URL: baseUrl,
    ENCRYPTION_KEY: HEX,
  });
  for (const secret of [KEY, HEX, 'tooshort'])
    expect(bad.stdout + good.stdout + good.stderr).not.toContain(secret);
});

test('where traces go is shown, the collector’s key is not', () => {
  const shown = configInForce(
    loadConfig({
      OTEL_EXPORTER_OTLP_ENDPOINT: 'https://u:hunter2secret@collector',
      OTEL_EXPORTER_OTLP_HEADERS: 'api-key=hunter2secret',
      OTEL_TRACES_SAMPLER: 'traceidratio',
      OTEL_TRACES_SAMPLER_ARG: '0.25',
    }),
  );
  expect(shown).toMatchObject({
    'OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT': 'https://u:***@collector/v1/traces',
    OTEL_EXPORTER_OTLP_HEADERS: 'set',
    OTEL_SERVICE_NAME: 'agentd',
    'OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG': 'traceidratio, 0.25',
  });
  expect(JSON.stringify(shown)).not.toContain('hunter2secret');
});

test('an empty database: what can be asked is asked, the rest is skipped, and the next step is said', async () => {
  const empty = await emptyDatabase();
  try {
    const report = await doctor({ DATABASE_URL: empty.url });
    expect([report.code, report.of('server'), report.of('migrations'), report.of('enqueue')]).toEqual([
      1,
      'ok',
      'fail',
      'skip',
    ]);
    expect(report.checks.find((check) => check.name === 'migrations')?.next_step).toContain(
      'agentd migrate up',
    );
  } finally {
    await empty.dispose();
  }
});

test('an unreachable database fails, and the other checks are made all the same', async () => {
  const report = await doctor({ DATABASE_URL: 'postgres://u:hunter2secret@127.0.0.1:1/x' });
  expect([report.code, report.of('database'), report.of('model endpoint')]).toEqual([1, 'fail', 'ok']);
  expect(JSON.stringify(report)).not.toContain('hunter2secret');
});

test.runIf(onServer)(
  'a role without rights is told what to grant, not that the database is unmigrated',
  async () => {
    const role = `doctor_nobody_${process.pid}`;
    await db.query(`create role ${role} login`);
    try {
      const url = new URL(db.url);
      url.username = role;
      const report = await doctor({ DATABASE_URL: url.toString() });
      expect(report.code).toBe(1);
      const migrations = report.checks.find((check) => check.name === 'migrations');
      expect(migrations).toMatchObject({
        status: 'fail',
        message: expect.stringContaining('permission denied'),
      });
      expect(migrations?.next_step).toContain('agentd_worker');
    } finally {
      await db.query(`drop role ${role}`);
    }
  },
);
