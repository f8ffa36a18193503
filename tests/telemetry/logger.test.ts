import { expect, test } from 'vitest';
import { createLogger } from '../../src/telemetry/logger.ts';
import { isSecretName } from '../../src/telemetry/redact.ts';

function capture(level = 'info') {
  const lines: string[] = [];
  const logger = createLogger({ level, destination: { write: (line: string) => void lines.push(line) } });
  return {
    logger,
    text: () => lines.join(''),
    last: () => JSON.parse(lines.at(-1) ?? '{}') as Record<string, unknown>,
  };
}

test('fields named like secrets are masked at any depth, whatever their spelling, and counts of tokens are not', () => {
  const { logger, text, last } = capture();
  const secrets = {
    api_key: 's1-secret',
    'x-api-key': 's2-secret',
    Authorization: 's3-secret',
    refreshToken: 's4-secret',
    PASSWORD: 's5-secret',
    ENCRYPTION_KEYS: { first: 's6-secret' },
    client_secret: ['s7-secret'],
  };
  logger.info({ a: { b: [{ c: secrets }] }, ...secrets, prompt_tokens: 12, max_tokens: 100 }, 'call');
  expect(text()).not.toContain('-secret');
  expect(last()).toMatchObject({ prompt_tokens: 12, max_tokens: 100, api_key: '[masked]' });
});

test('fixed fields of a child, and of a child of a child, are masked and stay', () => {
  const { logger, last } = capture();
  logger.child({ token: 'abc', queue: 'task-run' }).child({ password: 'def', job: 'j1' }).warn('hello');
  expect(last()).toMatchObject({ token: '[masked]', queue: 'task-run', password: '[masked]', job: 'j1' });
});

test('passwords in connection strings and bearer credentials are masked in messages, errors, causes and stacks', () => {
  const { logger, text } = capture();
  const cause = new Error('postgres://user:hunter2@host/db');
  logger.error(
    { err: new Error('sent Bearer abcdefgh12345678', { cause }) },
    'failed for postgres://user:hunter2@host',
  );
  logger.error(new Error('postgres://user:hunter2@host refused'));
  logger.error({ err: new Error('postgres://user:hunter2@host refused') });
  expect(text()).not.toContain('hunter2');
  expect(text()).not.toContain('abcdefgh12345678');
  expect(text()).toContain('postgres://user:***@host');
});

test('an error is logged with its reason code, next step and causes', () => {
  const { logger, last } = capture();
  const cause = Object.assign(new Error('no such table'), { code: '42P01' });
  logger.error(
    { err: Object.assign(new Error('boom', { cause }), { reasonCode: 'broken', nextStep: 'Mend it.' }) },
    'x',
  );
  expect(last().err).toMatchObject({
    message: 'boom',
    reason_code: 'broken',
    next_step: 'Mend it.',
    cause: { reason_code: '42P01' },
  });
});

test('a cycle, a thrown text and an error without a message can be logged', () => {
  const { logger, last } = capture();
  const loop: Record<string, unknown> = {};
  loop.self = loop;
  logger.info({ loop, err: 'just a text' }, 'odd');
  expect(last()).toMatchObject({ loop: { self: '[circular]' }, err: 'just a text' });
  logger.error(
    { err: new AggregateError([new Error('::1 refused'), new Error('127.0.0.1 refused')]) },
    'connect',
  );
  expect(last().err).toMatchObject({ message: '::1 refused, 127.0.0.1 refused' });
});

test('names that only resemble secrets are left alone', () => {
  for (const name of ['credential_id', 'key', 'tokenizer', 'secret_form', 'queue'])
    expect([name, isSecretName(name)]).toEqual([name, false]);
});
