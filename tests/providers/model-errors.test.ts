import { expect, test } from 'vitest';
import { ProviderError } from '../../src/providers/errors.ts';
import { maskSecret } from '../../src/providers/mask.ts';
import { errorFromFault, judge, readFault } from '../../src/providers/openai-errors.ts';
import { retryAfterMs } from '../../src/providers/retry-after.ts';

const verdict = (status: number, body: unknown = {}) => {
  const { kind, code } = judge(status, readFault(body, null));
  return `${kind}/${code}`;
};
const said = (message: string, code?: string) => ({ error: { message, code } });

test('every status has one meaning', () => {
  const meanings: [number, string][] = [
    [307, 'permanent/redirect'],
    [400, 'permanent/invalid_request'],
    [401, 'credential/invalid_api_key'],
    [402, 'credential/insufficient_quota'],
    [403, 'credential/permission_denied'],
    [404, 'permanent/not_found'],
    [408, 'retry/timeout'],
    [409, 'retry/server_error'],
    [413, 'context_overflow/context_length_exceeded'],
    [422, 'permanent/invalid_request'],
    [429, 'rate_limited/rate_limit'],
    [500, 'retry/server_error'],
    [502, 'retry/server_error'],
    [503, 'retry/overloaded'],
    [504, 'retry/server_error'],
    [529, 'retry/overloaded'],
  ];
  for (const [status, meaning] of meanings) expect(verdict(status), String(status)).toBe(meaning);
});

test('a body refines what its status means, in each provider’s words', () => {
  const cases: [number, unknown, string][] = [
    [400, said('too long', 'context_length_exceeded'), 'context_overflow/context_length_exceeded'],
    [
      400,
      said('prompt is too long: 210000 tokens > 200000 maximum'),
      'context_overflow/context_length_exceeded',
    ],
    [
      400,
      { object: 'error', message: 'This model has a maximum context length of 4096' },
      'context_overflow/context_length_exceeded',
    ],
    [
      400,
      [{ error: { code: 400, message: 'API key not valid.', status: 'INVALID_ARGUMENT' } }],
      'credential/invalid_api_key',
    ],
    [
      400,
      [{ error: { message: 'The input token count (40000) exceeds the maximum' } }],
      'context_overflow/context_length_exceeded',
    ],
    [400, said('Your credit balance is too low'), 'credential/insufficient_quota'],
    [400, said('triggered the content management policy', 'content_filter'), 'permanent/content_filter'],
    [
      400,
      { error: { message: 'nonesuch is not a valid model', code: 'model_not_found' } },
      'permanent/model_not_found',
    ],
    [403, said('input was flagged by moderation'), 'permanent/content_filter'],
    [404, said('The model `x` does not exist', 'model_not_found'), 'permanent/model_not_found'],
    [404, { error: "model 'llama9' not found" }, 'permanent/model_not_found'],
    [404, said('Invalid URL (POST /v2/chat/completions)'), 'permanent/not_found'],
    [422, { detail: [{ loc: ['body'], msg: 'field required' }] }, 'permanent/invalid_request'],
    [429, said('You exceeded your current quota', 'insufficient_quota'), 'credential/insufficient_quota'],
    [
      429,
      said(
        'Request too large for gpt-4o on tokens per min: Limit 30000, Requested 40000',
        'rate_limit_exceeded',
      ),
      'context_overflow/context_length_exceeded',
    ],
    [429, said('Rate limit reached for gpt-4o', 'rate_limit_exceeded'), 'rate_limited/rate_limit'],
  ];
  for (const [status, body, meaning] of cases)
    expect(verdict(status, body), JSON.stringify(body)).toBe(meaning);
});

test('a wait is taken only where waiting helps', () => {
  const headers = new Headers({ 'retry-after': '20' });
  const wait = (status: number) => errorFromFault(status, readFault({}, null), headers, 'key').retryAfterMs;
  expect([429, 503, 500].map(wait)).toEqual([20_000, 20_000, 20_000]);
  expect([400, 401, 404].map(wait)).toEqual([null, null, null]);
});

test('a proxy’s HTML page becomes its words, and every message is bounded', () => {
  const page = readFault(undefined, '<html><style>a{}</style><h1>Bad   gateway</h1></html>');
  expect(page.message).toBe('Bad gateway');
  const long = errorFromFault(500, readFault(said('x'.repeat(10_000)), null), null, 'key');
  expect(long.message.length).toBeLessThan(600);
});

test('every error has a next step and no cause', () => {
  const error = new ProviderError({ kind: 'retry', code: 'timeout', message: 'late' });
  expect(error.nextStep).toMatch(/\w/);
  expect(error.cause).toBeUndefined();
  expect(
    new ProviderError({ kind: 'retry', code: 'timeout', message: 'late', nextStep: 'Wait.' }).nextStep,
  ).toBe('Wait.');
});

const NOW = Date.parse('2025-03-01T12:00:00Z');
const wait = (headers: Record<string, string>) => retryAfterMs(new Headers(headers), NOW);

test('Retry-After is read in seconds, milliseconds and dates', () => {
  expect(wait({ 'retry-after': '7' })).toBe(7000);
  expect(wait({ 'retry-after': '0.25' })).toBe(250);
  expect(wait({ 'retry-after-ms': '1500', 'retry-after': '9' })).toBe(1500);
  expect(wait({ 'retry-after-ms': 'soon', 'retry-after': '9' })).toBe(9000);
  expect(wait({ 'retry-after': 'Sat, 01 Mar 2025 12:00:30 GMT' })).toBe(30_000);
});

test('a Retry-After date is measured by the server’s clock when it tells it', () => {
  const headers = { 'retry-after': 'Sat, 01 Mar 2025 09:00:30 GMT', date: 'Sat, 01 Mar 2025 09:00:00 GMT' };
  expect(wait(headers)).toBe(30_000);
});

test('a wait is never negative, never endless, and null when nothing readable is said', () => {
  expect(wait({ 'retry-after': '-5' })).toBe(0);
  expect(wait({ 'retry-after': 'Sat, 01 Mar 2025 11:00:00 GMT' })).toBe(0);
  expect(wait({ 'retry-after': '99999999999' })).toBe(7 * 24 * 3600_000);
  expect(wait({ 'retry-after': 'later' })).toBeNull();
  expect(wait({})).toBeNull();
});

test('the reset of an exhausted limit counts, the longer one if both are', () => {
  expect(wait({ 'x-ratelimit-remaining-requests': '0', 'x-ratelimit-reset-requests': '6m0s' })).toBe(360_000);
  expect(wait({ 'x-ratelimit-remaining-requests': '5', 'x-ratelimit-reset-requests': '6m0s' })).toBeNull();
  expect(
    wait({
      'x-ratelimit-remaining-requests': '0',
      'x-ratelimit-reset-requests': '120ms',
      'x-ratelimit-remaining-tokens': '0',
      'x-ratelimit-reset-tokens': '7.66s',
    }),
  ).toBe(7660);
});

test('masking removes a key however it is shortened and leaves ordinary words', () => {
  const key = 'sk-proj-Zq81LmNv02Kd';
  const texts = [
    `key ${key} x`,
    'key sk-proj-…02Kd x',
    'key sk-p****02Kd x',
    'key Zq81LmNv x',
    'key (Zq81LmNv02) x',
  ];
  for (const text of texts) {
    const masked = maskSecret(text, key);
    expect(masked).toMatch(/^key .*\[masked\].* x$/);
    expect(masked).not.toMatch(/02Kd|Zq81/);
  }
  expect(maskSecret('The project does not exist.', key)).toBe('The project does not exist.');
  expect(maskSecret('Other key sk-abcdefghijklmnopqrst leaked', key)).toBe('Other key [masked] leaked');
});
