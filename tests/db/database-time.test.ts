import { expect, test } from 'vitest';
import { DatabaseTime } from '../../src/db/database-time.ts';
import { handClock } from '../support/hand-clock.ts';

const NOON = Date.UTC(2026, 5, 1, 12);

/** A node whose date is years off, and a database whose clock a test sets. */
function scene() {
  const clock = handClock(Date.UTC(1999, 0, 1));
  const steps: number[] = [];
  const time = new DatabaseTime(clock, { gapMs: 5_000, onStep: (ms) => steps.push(ms) });
  const start = clock.elapsed();
  const server = { set: 0 };
  const actual = (): number => NOON + server.set + clock.elapsed() - start;
  return {
    clock,
    time,
    steps,
    server,
    actual,
    /** Asks; the question and its answer take as long as that on their way. */
    read: (thereMs = 0, backMs = 0) =>
      time.read(async () => {
        await clock.advance(thereMs);
        const now = new Date(actual());
        await clock.advance(backMs);
        return now;
      }),
    error: () => time.now().getTime() - actual(),
  };
}

test('before the first reading it is the node’s own time, afterwards the database’s, whatever the node’s date', async () => {
  const { clock, time, read, error } = scene();
  expect(time.now().getTime()).toBe(clock.now());
  await read();
  expect(error()).toBe(0);
  await clock.advance(3_000);
  expect(error()).toBe(0);
  expect(time.steadyMs()).toBe(Number.POSITIVE_INFINITY);
});

test('it is off by half of the round trip at most', async () => {
  const { read, error } = scene();
  await read(800, 0);
  expect(Math.abs(error())).toBe(400);
  await read(0, 600);
  expect(Math.abs(error())).toBe(300);
});

test('a slow reading does not replace a good one, until that is old', async () => {
  const { clock, read, error, steps } = scene();
  await read();
  await read(4_000, 0);
  expect(error()).toBe(0);
  await clock.advance(60_000);
  await read(4_000, 0);
  expect(Math.abs(error())).toBe(2_000);
  expect(steps).toEqual([]);
});

test.each([3_600_000, -3_600_000, 2_500])(
  'a clock that is set by %i ms is noticed once, and followed',
  async (ms) => {
    const { clock, time, server, read, error, steps } = scene();
    await read();
    await clock.advance(1_000);
    server.set = ms;
    await read(100, 100);
    expect(steps).toEqual([ms]);
    expect(error()).toBe(0);
    expect(time.steadyMs()).toBe(0);
    await clock.advance(1_000);
    await read();
    expect(steps).toEqual([ms]);
    expect(time.steadyMs()).toBe(1_000);
  },
);

test('a slow answer is not taken for a clock that was set', async () => {
  const { read, steps } = scene();
  await read();
  await read(4_000, 0);
  await read(0, 4_000);
  expect(steps).toEqual([]);
});

test('a database that was away interrupts, one that fails for a moment does not', async () => {
  const { clock, time, read, steps } = scene();
  await read();
  await clock.advance(2_000);
  await expect(time.read(() => Promise.reject(new Error('away')))).rejects.toThrow('away');
  await clock.advance(2_000);
  await read();
  expect(time.steadyMs()).toBe(Number.POSITIVE_INFINITY);
  await clock.advance(6_000);
  await read();
  expect(time.steadyMs()).toBe(0);
  await clock.advance(700);
  expect(time.steadyMs()).toBe(700);
  expect(steps).toEqual([]);
});

test('it is not steady before the first reading, while the database is silent, and for a while after that', async () => {
  const { clock, time, read } = scene();
  expect(time.isSteady(2_000)).toBe(false);
  await read();
  expect(time.isSteady(2_000)).toBe(true);
  await clock.advance(5_001);
  expect(time.isSteady(2_000), 'nothing was heard, and nobody has asked').toBe(false);
  await read();
  expect(time.isSteady(2_000)).toBe(false);
  await clock.advance(2_000);
  expect(time.isSteady(2_000)).toBe(true);
});
