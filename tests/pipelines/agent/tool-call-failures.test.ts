import { describe, expect, test } from 'vitest';
import { ToolError } from '../../../src/pipelines/agent/tools.ts';
import { setup, tool } from './tool-turn.ts';

describe('what goes wrong', () => {
  test('a tool’s own complaint is told to the model as it is', async () => {
    const { written, journal, calling } = setup([
      tool('any', 'read', async () => {
        throw new ToolError('no_such_city', 'There is no city Atlantis.');
      }),
    ]);
    expect(await calling([{ name: 'any' }])).toEqual(['There is no city Atlantis.']);
    await journal.flush();
    expect(written.at(-1)?.tools).toMatchObject([{ status: 'failed', error_code: 'no_such_city' }]);
  });

  test('an internal failure is not: it may hold what nobody should repeat', async () => {
    const { calling } = setup([
      tool('any', 'read', async () => {
        throw new Error('password=hunter2 refused');
      }),
    ]);
    expect((await calling([{ name: 'any' }]))[0]).not.toContain('hunter2');
  });

  test('one read that fails does not spoil the others', async () => {
    let n = 0;
    const { calling } = setup([
      tool('any', 'read', async () => {
        if (n++ === 0) throw new ToolError('bad', 'first fails');
        return { content: 'ok' };
      }),
    ]);
    expect(await calling([{ name: 'any' }, { name: 'any' }])).toEqual(['first fails', 'ok']);
  });

  test.each([['{"a":'], ['[1]'], ['"text"'], ['null'], ['7']])(
    'arguments %s are refused without a call',
    async (text) => {
      let made = 0;
      const { journal, written, calling } = setup([
        tool('any', 'write', async () => {
          made++;
          return { content: '' };
        }),
      ]);
      const [content] = await calling([{ name: 'any', arguments: text }]);
      await journal.flush();
      expect(made).toBe(0);
      expect(content).toMatch(/JSON object/);
      expect(written.at(-1)?.tools).toMatchObject([{ status: 'failed', arguments: text }]);
    },
  );

  test('empty arguments are an empty object: some models send none', async () => {
    const seen: unknown[] = [];
    const { calling } = setup([
      tool('any', 'read', async (args) => {
        seen.push(args);
        return { content: '' };
      }),
    ]);
    await calling([{ name: 'any', arguments: '' }]);
    expect(seen).toEqual([{}]);
  });

  test('a long result is cut for the model and kept cut in the journal', async () => {
    const { written, journal, calling } = setup([
      tool('any', 'read', async () => ({ content: 'x'.repeat(10_000) })),
    ]);
    const [content] = await calling([{ name: 'any' }], [], 1000);
    await journal.flush();
    expect(content).toMatch(/^x{1000}\n\[9000 more/);
    expect(written.at(-1)?.tools[0]?.result).toEqual({ content });
  });

  test('an aborted call is not settled: who takes the run over decides what it was', async () => {
    const { written, controller, calling } = setup([
      tool('any', 'write', (_, { signal }) => {
        queueMicrotask(() => controller.abort(new Error('drain')));
        return new Promise((_, reject) =>
          signal.addEventListener('abort', () => reject(new Error('stopped'))),
        );
      }),
    ]);
    await expect(calling([{ name: 'any' }])).rejects.toThrow('drain');
    expect(written.flatMap((c) => c.tools.map((t) => t.status))).toEqual(['started']);
  });

  test('after an abort no further call of the turn begins', async () => {
    let made = 0;
    const { controller, calling } = setup([
      tool('any', 'write', async () => {
        made++;
        controller.abort(new Error('drain'));
        return { content: 'first' };
      }),
    ]);
    await expect(calling([{ name: 'any' }, { name: 'any' }])).rejects.toThrow('drain');
    expect(made).toBe(1);
  });
});
