/** The peer's limits are those of a provider: continuous, in its headers, and counted. */
import { describe, expect, test } from 'vitest';
import { providerLimits } from '../../src/providers/rate-limit-headers.ts';
import { EnforcedLimits } from './rate-limits.ts';

function limits(given: ConstructorParameters<typeof EnforcedLimits>[0]) {
  let now = 0;
  const enforced = new EnforcedLimits(given, () => now);
  return {
    enforced,
    pass(ms: number): void {
      now += ms;
    },
  };
}

describe('a limited server', () => {
  test('lets a full bucket through at once, and then one whenever one has come in', () => {
    const { enforced, pass } = limits({ requestsPerMinute: 60 });
    for (let i = 0; i < 60; i++) expect(enforced.take(1)).toBeNull();
    expect(enforced.take(1)).toBe(1_000);
    pass(999);
    expect(enforced.take(1)).toBe(1);
    pass(1);
    expect(enforced.take(1)).toBeNull();
    expect(enforced).toMatchObject({ admitted: 61, refused: 2 });
  });

  test('counts what is answered when it is', () => {
    const { enforced } = limits({ tokensPerMinute: 600 });
    expect(enforced.take(500)).toBeNull();
    enforced.takeTokens(200);
    expect(enforced.take(10)).toBe(11_000);
    expect(enforced.admittedTokens).toBe(700);
  });

  test('says so in headers that can be read back', () => {
    const { enforced, pass } = limits({ requestsPerMinute: 500, tokensPerMinute: 30_000 });
    enforced.take(20_000);
    pass(1_000);
    enforced.take(9_000);
    expect(providerLimits(new Headers(enforced.headers()), 0)).toEqual({
      requests: { limit: 500, left: 499, perSecond: expect.closeTo(500 / 60, 9) },
      tokens: { limit: 30_000, left: 1_500, perSecond: 500 },
    });
    expect(enforced.headers()['x-ratelimit-reset-tokens']).toBe('57s');
  });

  test('without limits refuses nothing and says nothing', () => {
    const { enforced } = limits({});
    expect(enforced.take(1e9)).toBeNull();
    expect(enforced.headers()).toEqual({});
  });
});
