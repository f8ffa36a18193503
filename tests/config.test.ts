import { expect, test } from 'vitest';
import { ConfigError, loadConfig } from '../src/config.ts';

const problemsOf = (env: Record<string, string>): readonly string[] => {
  try {
    loadConfig(env);
  } catch (error) {
    if (error instanceof ConfigError) return error.problems;
    throw error;
  }
  return [];
};

test('an empty environment is a usable configuration: embedded, migrating by itself, on loopback', () => {
  const config = loadConfig({});
  expect(config).toMatchObject({
    databaseUrl: null,
    autoMigrate: true,
    http: { host: '127.0.0.1', port: 9464 },
    drainSeconds: 30,
    logLevel: 'info',
  });
  expect(config.queues['task-run']?.concurrency).toBeGreaterThan(0);
});

test('a server of one’s own is not migrated unless asked', () => {
  const DATABASE_URL = 'postgres://h/db';
  expect(loadConfig({ DATABASE_URL }).autoMigrate).toBe(false);
  expect(loadConfig({ DATABASE_URL, AGENTD_AUTO_MIGRATE: 'yes' }).autoMigrate).toBe(true);
});

test('empty variables count as absent', () => {
  expect(loadConfig({ DATABASE_URL: '', OPENAI_API_KEY: '  ', AGENTD_HTTP_PORT: '' })).toEqual(
    loadConfig({}),
  );
});

test('every mistake is reported, all of them at once, each by the name of its variable', () => {
  const wrong = {
    DATABASE_URL: 'mysql://h/db',
    AGENTD_AUTO_MIGRATE: 'perhaps',
    AGENTD_HTTP_PORT: '70000',
    AGENTD_DRAIN_SECONDS: '1.5',
    AGENTD_EMBEDDING_DIMENSIONS: '0',
    AGENTD_LOG_LEVEL: 'loud',
    AGENTD_STORAGE_URL: 'ftp://h',
    AGENTD_QUEUES: 'nothing',
    AGENTD_DOCUMENT_THREADS: '0',
    OPENAI_BASE_URL: 'openai.com',
    OTEL_EXPORTER_OTLP_ENDPOINT: 'collector:4318',
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: 'grpc://collector:4317',
    OTEL_EXPORTER_OTLP_HEADERS: 'not a list',
    OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc',
    OTEL_SDK_DISABLED: 'perhaps',
    OTEL_TRACES_SAMPLER: 'some',
    OTEL_TRACES_SAMPLER_ARG: '2',
  };
  const problems = problemsOf(wrong);
  expect(problems).toHaveLength(Object.keys(wrong).length);
  for (const name of Object.keys(wrong))
    expect(problems.filter((problem) => new RegExp(`\\b${name}\\b`).test(problem))).toHaveLength(1);
});

test('no message repeats a value that may hold a password', () => {
  expect(
    problemsOf({
      DATABASE_URL: 'mysql://u:hunter2@h/db',
      AGENTD_STORAGE_URL: 'ftp://u:hunter2@h',
      OTEL_EXPORTER_OTLP_ENDPOINT: 'grpc://u:hunter2@h',
      OTEL_EXPORTER_OTLP_HEADERS: 'api-key=hunter2\u0000',
    }).join(),
  ).not.toContain('hunter2');
});

test('AGENTD_QUEUES chooses queues and their concurrency', () => {
  const queues = loadConfig({ AGENTD_QUEUES: ' task-run=7 ,' }).queues;
  expect(Object.entries(queues).map(([name, queue]) => [name, queue.concurrency])).toEqual([['task-run', 7]]);
  for (const count of ['0', 'x', '1001', ''])
    expect(problemsOf({ AGENTD_QUEUES: `task-run=${count}` })).toHaveLength(1);
});

test('the configuration cannot be changed once it is in force', () => {
  const config = loadConfig({});
  expect(() => Object.assign(config.http, { port: 1 })).toThrow(TypeError);
  expect(() => Object.assign(config.queues, { other: {} })).toThrow(TypeError);
});

test('traces are off until there is a place for them to go', () => {
  const OTEL_EXPORTER_OTLP_ENDPOINT = 'http://collector:4318';
  expect(loadConfig({ OTEL_SERVICE_NAME: 'a', OTEL_TRACES_SAMPLER: 'always_on' }).traces).toBeNull();
  expect(loadConfig({ OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SDK_DISABLED: 'true' }).traces).toBeNull();
  expect(loadConfig({ OTEL_EXPORTER_OTLP_ENDPOINT }).traces).toEqual({
    url: 'http://collector:4318/v1/traces',
    headers: {},
    serviceName: 'agentd',
    sampler: { name: 'parentbased_always_on', ratio: 1 },
  });
});

test('the endpoint for traces is taken as it is, the one for all signals gets their path', () => {
  const url = (env: Record<string, string>): string | undefined => loadConfig(env).traces?.url;
  expect(url({ OTEL_EXPORTER_OTLP_ENDPOINT: 'https://h/otlp/' })).toBe('https://h/otlp/v1/traces');
  expect(url({ OTEL_EXPORTER_OTLP_ENDPOINT: 'https://h?key=1' })).toBe('https://h/v1/traces?key=1');
  expect(
    url({ OTEL_EXPORTER_OTLP_ENDPOINT: 'https://h', OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: 'https://t/own' }),
  ).toBe('https://t/own');
});

test('headers are a list of pairs, percent-encoded; those for traces go before those for all', () => {
  const { traces } = loadConfig({
    OTEL_EXPORTER_OTLP_ENDPOINT: 'http://h',
    OTEL_EXPORTER_OTLP_HEADERS: 'Authorization=Basic%20YTpi=, x-tenant=a,',
    OTEL_EXPORTER_OTLP_TRACES_HEADERS: 'x-tenant=b%2Cc',
  });
  expect(traces?.headers).toEqual({ authorization: 'Basic YTpi=', 'x-tenant': 'b,c' });
  for (const wrong of ['a', '=b', 'a b=c', 'a=%zz', 'a=b%0d%0ac: d'])
    expect(problemsOf({ OTEL_EXPORTER_OTLP_HEADERS: wrong })).toHaveLength(1);
});
