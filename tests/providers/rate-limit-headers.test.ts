/** What is read from the rate limit headers of providers. */
import { describe, expect, test } from 'vitest';
import { providerLimits } from '../../src/providers/rate-limit-headers.ts';

const NOW = Date.UTC(2026, 0, 1);

function read(headers: Record<string, string>) {
  return providerLimits(new Headers(headers), NOW);
}

/** OpenAI's three headers of one limit. */
function openai(
  what: 'requests' | 'tokens',
  limit: number | string,
  remaining: number | string,
  reset?: string,
) {
  return {
    [`x-ratelimit-limit-${what}`]: String(limit),
    [`x-ratelimit-remaining-${what}`]: String(remaining),
    ...(reset === undefined ? {} : { [`x-ratelimit-reset-${what}`]: reset }),
  };
}

describe('the period of a limit', () => {
  test.each([
    ['OpenAI, one request missing', 500, 499, '120ms', 500 / 60],
    ['OpenAI, half missing', 10_000, 5_000, '30s', 10_000 / 60],
    ['OpenAI, all missing', 3, 0, '1m0s', 3 / 60],
    ['a rounded reset', 600, 590, '1s', 600 / 60],
    ['OpenAI’s lowest tier, by day', 200, 199, '7m12s', 200 / 86_400],
    ['Groq’s requests, by day', 14_400, 14_370, '2m59.56s', 14_400 / 86_400],
    ['Groq’s tokens, by minute', 18_000, 17_997, '7.66ms', 18_000 / 60],
    ['hours and minutes', 1_000, 500, '12h0m0s', 1_000 / 86_400],
    ['seconds without a unit', 100, 50, '30', 100 / 60],
    ['nothing missing: it can’t be told, and is taken for a minute', 1_000, 1_000, '0s', 1_000 / 60],
    ['no reset', 1_000, 10, undefined, 1_000 / 60],
    ['a reset that is no time', 1_000, 10, 'soon', 1_000 / 60],
    ['a reset of nothing', 1_000, 10, '0s', 1_000 / 60],
  ])('%s', (_, limit, remaining, reset, perSecond) => {
    const { tokens } = read(openai('tokens', limit, remaining, reset)) ?? {};
    expect(tokens).toEqual({ limit, left: remaining, perSecond: expect.closeTo(perSecond, 9) });
  });
});

test('requests and tokens are limits of their own; one may be missing', () => {
  expect(read({ ...openai('requests', 60, 10, '50s'), ...openai('tokens', 6_000, 3_000, '30s') })).toEqual({
    requests: { limit: 60, left: 10, perSecond: 1 },
    tokens: { limit: 6_000, left: 3_000, perSecond: 100 },
  });
  expect(read(openai('requests', 60, 10, '50s'))).toEqual({
    requests: { limit: 60, left: 10, perSecond: 1 },
    tokens: null,
  });
});

test('Anthropic’s headers say when by a date, counted from the answer’s own', () => {
  const limit = {
    'anthropic-ratelimit-requests-limit': '50',
    'anthropic-ratelimit-requests-remaining': '25',
    'anthropic-ratelimit-requests-reset': '2026-01-01T00:00:30Z',
  };
  const expected = { requests: { limit: 50, left: 25, perSecond: 50 / 60 }, tokens: null };
  expect(read(limit)).toEqual(expected);
  const other = { ...limit, 'anthropic-ratelimit-requests-reset': '2030-05-05T00:00:30Z' };
  expect(read({ ...other, date: 'Sun, 05 May 2030 00:00:00 GMT' })).toEqual(expected);
});

test.each([
  ['nothing', {}],
  ['a limit without what is left', { 'x-ratelimit-limit-requests': '60' }],
  ['what is left without a limit', { 'x-ratelimit-remaining-requests': '60' }],
  ['words', openai('requests', 'many', 'some', '1s')],
  ['a negative number', openai('requests', -1, 0, '1s')],
  ['a limit of nothing', openai('requests', 0, 0, '1s')],
  ['a number beyond all reason', openai('tokens', '9'.repeat(40), 1, '1s')],
  ['infinity', openai('tokens', 'Infinity', 'NaN', '1s')],
])('%s is no limit', (_, headers) => {
  expect(read(headers)).toBeNull();
});

test('more left than the limit is a full bucket', () => {
  expect(read(openai('requests', 60, 90, '1s'))?.requests).toEqual({ limit: 60, left: 60, perSecond: 1 });
});
