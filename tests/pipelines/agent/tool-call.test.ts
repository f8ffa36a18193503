import { describe, expect, test } from 'vitest';
import { callKey } from '../../../src/pipelines/agent/call-key.ts';
import { RunLost } from '../../../src/pipelines/agent/journal.ts';
import type { Tool } from '../../../src/pipelines/agent/tools.ts';
import { journaled, run, setup, tool } from './tool-turn.ts';

describe('the calls of one turn', () => {
  test('intents of all of them are on record before the first is made', async () => {
    const { events, calling } = setup([
      tool('read', 'read', async () => {
        events.push('call read');
        return { content: 'r' };
      }),
      tool('write', 'write', async () => {
        events.push('call write');
        return { content: 'w' };
      }),
    ]);
    await calling([{ name: 'write' }, { name: 'read' }]);
    expect(events[0]).toBe('flush 0:started 1:started');
    expect(events.slice(1)).toEqual([
      'call read',
      'call write',
      expect.stringMatching(/^flush .*0:completed/),
    ]);
  });

  test('reads are under way together', async () => {
    let under = 0;
    let most = 0;
    const all = Promise.withResolvers<void>();
    const { calling } = setup([
      tool('read', 'read', async () => {
        most = Math.max(most, ++under);
        if (under === 3) all.resolve();
        await all.promise;
        under--;
        return { content: 'r' };
      }),
    ]);
    await calling([{ name: 'read' }, { name: 'read' }, { name: 'read' }]);
    expect(most).toBe(3);
  });

  test('a write begins only when the one before it is on record', async () => {
    const { events, calling } = setup([
      tool('write', 'write', async () => {
        events.push('call');
        return { content: 'w' };
      }),
    ]);
    await calling([{ name: 'write' }, { name: 'write' }]);
    expect(events).toEqual([
      'flush 0:started 1:started',
      'call',
      'flush 0:completed',
      'call',
      'flush 1:completed',
    ]);
  });

  test('results come back in the order of the calls, whatever the order in which they were made', async () => {
    const { calling } = setup([
      tool('read', 'read', async () => ({ content: 'read' })),
      tool('write', 'write', async () => ({ content: 'written' })),
    ]);
    expect(await calling([{ name: 'write' }, { name: 'read' }, { name: 'write' }])).toEqual([
      'written',
      'read',
      'written',
    ]);
  });

  test('each call has a key of its own, which is the journal’s', async () => {
    const keys: string[] = [];
    const { calling } = setup([
      tool('read', 'read', async (_, { idempotencyKey }) => {
        keys.push(idempotencyKey);
        return { content: '' };
      }),
    ]);
    await calling([{ name: 'read' }, { name: 'read' }]);
    expect(keys).toEqual([callKey(run.id, 1, 2, 0), callKey(run.id, 1, 2, 1)]);
    expect(new Set([...keys, callKey(run.id, 1, 2)]).size).toBe(3);
  });

  test('no call is made when its intent could not be committed', async () => {
    let made = 0;
    const { calling } = setup(
      [
        tool('write', 'write', async () => {
          made++;
          return { content: '' };
        }),
      ],
      () => false,
    );
    await expect(calling([{ name: 'write' }])).rejects.toBeInstanceOf(RunLost);
    expect(made).toBe(0);
  });

  test('a transactional call’s messages are in the checkpoint of its outcome', async () => {
    const message = {
      conversation_id: null,
      channel_id: 'ch',
      content: 'hi',
      is_answer: false,
      metadata: {},
    };
    const { written, calling } = setup([
      tool('post', 'write', async () => ({ content: 'posted', messages: [message] }), true),
    ]);
    await calling([{ name: 'post' }]);
    expect(written.map((c) => [c.tools[0]?.status, c.messages.length])).toEqual([
      ['started', 0],
      ['completed', 1],
    ]);
  });
});

describe('after a takeover', () => {
  async function again(effect: Tool['effect'], transactional = false) {
    let made = 0;
    const { written, journal, calling } = setup([
      tool(
        'any',
        effect,
        async () => {
          made++;
          return { content: 'again' };
        },
        transactional,
      ),
    ]);
    const contents = await calling([{ name: 'any' }], [journaled(0, 'started', effect)]);
    await journal.flush();
    return { made, contents, status: written.at(-1)?.tools[0]?.status };
  }

  test.each(['read', 'idempotent'] as const)('a %s call without an outcome is made again', async (effect) => {
    expect(await again(effect)).toEqual({ made: 1, contents: ['again'], status: 'completed' });
  });

  test('a write without an outcome is not', async () => {
    const { made, contents, status } = await again('write');
    expect([made, status]).toEqual([0, 'unknown']);
    expect(contents[0]).toMatch(/may or may not have taken effect/);
  });

  test('a write whose effect commits with its outcome is: without one it had none', async () => {
    expect(await again('write', true)).toMatchObject({ made: 1, status: 'completed' });
  });

  test.each(['completed', 'failed', 'unknown', 'denied'] as const)(
    'a call that is %s is not made again',
    async (status) => {
      let made = 0;
      const { written, calling } = setup([
        tool('any', 'read', async () => {
          made++;
          return { content: 'new' };
        }),
      ]);
      expect(await calling([{ name: 'any' }], [journaled(0, status, 'read', 'old')])).toEqual(['old']);
      expect(made).toBe(0);
      expect(written).toEqual([]);
    },
  );

  test('only the unsettled calls of a turn are made', async () => {
    const made: unknown[] = [];
    const { calling } = setup([
      tool('any', 'read', async (args) => {
        made.push(args);
        return { content: 'new' };
      }),
    ]);
    const contents = await calling(
      [
        { name: 'any', arguments: '{"n":0}' },
        { name: 'any', arguments: '{"n":1}' },
      ],
      [journaled(0, 'completed', 'read', 'old')],
    );
    expect(made).toEqual([{ n: 1 }]);
    expect(contents).toEqual(['old', 'new']);
  });
});
