import { expect, test } from 'vitest';
import { createLogger } from '../../src/telemetry/logger.ts';
import { SpanQueue } from '../../src/telemetry/traces-queue.ts';

/** A collector whose every request is answered, or refused, by the test. */
function handCollector() {
  const requests: { readonly spans: readonly number[]; accept(): void; refuse(): void }[] = [];
  let wake = (): void => {};
  const log: string[] = [];
  const outcomes = { sent: 0, dropped: 0 };
  const queue = new SpanQueue<number>({
    send(spans) {
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      requests.push({ spans, accept: resolve, refuse: () => reject(new Error('no')) });
      wake();
      return promise;
    },
    log: createLogger({ level: 'debug', destination: { write: (line: string) => void log.push(line) } }),
    onOutcome: (outcome, spans) => {
      outcomes[outcome] += spans;
    },
    delayMs: 1,
    retryMs: 1,
  });
  /** The request of this number, counted from 0, once it is made. */
  const request = async (index: number) => {
    for (;;) {
      const found = requests[index];
      if (found) return found;
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
  };
  const add = (count: number): void => {
    for (let i = 0; i < count; i++) queue.add(i);
  };
  return { queue, request, requests, log, outcomes, add };
}

test('spans go together, one request at a time', async () => {
  const { queue, request, requests, outcomes, add } = handCollector();
  add(3);
  (await request(0)).accept();
  add(600);
  const second = await request(1);
  expect(second.spans).toHaveLength(512);
  add(600);
  expect(requests).toHaveLength(2);
  second.accept();
  (await request(2)).accept();
  (await request(3)).accept();
  await queue.stop();
  expect(requests.map((each) => each.spans.length)).toEqual([3, 512, 512, 176]);
  expect(outcomes).toEqual({ sent: 1203, dropped: 0 });
});

test('what did not arrive is sent again, and given up after three tries', async () => {
  const { queue, request, requests, outcomes, add } = handCollector();
  add(2);
  for (let i = 0; i < 3; i++) (await request(i)).refuse();
  // counted from here on the collector is known to fail, until it takes something
  add(1);
  (await request(3)).accept();
  await queue.stop();
  expect(requests.map((each) => each.spans.length)).toEqual([2, 2, 2, 1]);
  expect(outcomes).toEqual({ sent: 1, dropped: 2 });
});

test('a collector that never answers fills the queue, and not the memory', async () => {
  const { request, outcomes, add } = handCollector();
  add(1);
  await request(0);
  add(10_000);
  expect(outcomes.dropped).toBe(10_001 - 4_096);
});

test('a collector that is away is mentioned once, not with every request', async () => {
  const { request, log, add } = handCollector();
  add(1);
  for (let i = 0; i < 6; i++) {
    (await request(i)).refuse();
    add(1);
  }
  await request(6);
  expect(log.filter((line) => line.includes('traces_not_sent'))).toHaveLength(1);
});

test('a stop sends what is there, and what comes later is dropped', async () => {
  const { queue, request, outcomes, add } = handCollector();
  add(600);
  const stopped = queue.stop();
  (await request(0)).accept();
  (await request(1)).accept();
  await stopped;
  add(1);
  expect(outcomes).toEqual({ sent: 600, dropped: 1 });
});

test('a stop does not begin with a collector that fails', async () => {
  const { queue, request, requests, outcomes, add } = handCollector();
  add(700);
  const first = await request(0);
  const stopped = queue.stop();
  first.refuse();
  await stopped;
  expect(requests).toHaveLength(1);
  expect(outcomes).toEqual({ sent: 0, dropped: 700 });
});
