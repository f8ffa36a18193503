import { expect, test } from 'vitest';
import { parseTraceparent, traceIdOfRun } from '../../src/telemetry/traceparent.ts';

const TRACE = '4bf92f3577b34da6a3ce929d0e0e4736';
const SPAN = '00f067aa0ba902b7';

test.each([
  [`00-${TRACE}-${SPAN}-01`, true],
  [` 00-${TRACE}-${SPAN}-01 `, true],
  [`00-${TRACE}-${SPAN}-00`, false],
  // other flags than the first bit say nothing about sampling
  [`00-${TRACE}-${SPAN}-02`, false],
  [`00-${TRACE}-${SPAN}-03`, true],
  // a later version may have more fields
  [`cc-${TRACE}-${SPAN}-01-what-the-future-will-be-like`, true],
])('%s is a trace context', (text, sampled) => {
  expect(parseTraceparent(text)).toEqual({ traceId: TRACE, spanId: SPAN, sampled });
});

test.each([
  null,
  undefined,
  '',
  'nonsense',
  `ff-${TRACE}-${SPAN}-01`,
  `00-${TRACE}-${SPAN}-01-more`,
  `00-${TRACE.toUpperCase()}-${SPAN}-01`,
  `00-${'0'.repeat(32)}-${SPAN}-01`,
  `00-${TRACE}-${'0'.repeat(16)}-01`,
  `00-${TRACE}-${SPAN}`,
  `00-${TRACE}-${SPAN}-1`,
])('%s is none', (text) => {
  expect(parseTraceparent(text)).toBeNull();
});

test('a run’s trace id is its own id, but for the one that is no trace id', () => {
  expect(traceIdOfRun('4BF92F35-77b3-4da6-a3ce-929d0e0e4736')).toBe(TRACE);
  expect(traceIdOfRun('00000000-0000-0000-0000-000000000000')).toBeNull();
});
