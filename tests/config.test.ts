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
    OPENAI_BASE_URL: 'openai.com',
  };
  const problems = problemsOf(wrong);
  expect(problems).toHaveLength(Object.keys(wrong).length);
  for (const name of Object.keys(wrong))
    expect(problems.filter((problem) => problem.includes(name))).toHaveLength(1);
});

test('no message repeats a value that may hold a password', () => {
  expect(
    problemsOf({ DATABASE_URL: 'mysql://u:hunter2@h/db', AGENTD_STORAGE_URL: 'ftp://u:hunter2@h' }).join(),
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
