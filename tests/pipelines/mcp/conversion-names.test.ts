import fc from 'fast-check';
import { expect, test } from 'vitest';
import { convertTools } from '../../../src/pipelines/mcp/conversion/index.ts';

const FITTING = /^[a-zA-Z0-9_-]{1,64}$/;
const named = (...names: unknown[]) =>
  convertTools(names.map((name) => ({ name, inputSchema: { type: 'object' } })));
const functionOf = (made: ReturnType<typeof named>, tool: string) =>
  [...made.names].find(([, name]) => name === tool)?.[0];

test('a name that fits is kept', () => {
  expect([...named('read_file', 'a'.repeat(64), 'A-b_9').names.keys()]).toEqual([
    'read_file',
    'a'.repeat(64),
    'A-b_9',
  ]);
});

test('two names that become one by cutting stay two: no create becomes a delete', () => {
  const long = 'x'.repeat(70);
  const made = named(`${long}_create`, `${long}_delete`);
  expect(made.names.size).toBe(2);
  expect(new Set(made.names.values())).toEqual(new Set([`${long}_create`, `${long}_delete`]));
  for (const name of made.names.keys()) expect(name).toMatch(FITTING);
});

test('names that only look alike stay two', () => {
  // Latin e, Cyrillic е; composed and decomposed é; a hidden character
  const names = ['delete', 'dеlete', 'caf\u00e9', 'cafe\u0301', 'dele\u200bte', '\ud800', '\ud801'];
  const made = named(...names);
  expect(new Set(made.names.values())).toEqual(new Set(names));
  expect(functionOf(made, 'delete')).toBe('delete');
});

test('a changed name has a hash and stays the same whatever else the server lists', () => {
  const changed = ['files/create', 'files.create', 'dеlete', `${'x'.repeat(64)}_create`];
  const together = named(...changed, 'files_create', 'd_lete', 'x'.repeat(64));
  for (const tool of changed) {
    expect(functionOf(named(tool), tool)).toMatch(/_[0-9a-f]{10}$/);
    expect(functionOf(together, tool)).toBe(functionOf(named(tool), tool));
  }
});

test("a tool that takes another's name with its hash does not take its calls", () => {
  const stolen = functionOf(named('files/delete'), 'files/delete') as string;
  const made = named('files/delete', stolen);
  expect(functionOf(made, stolen)).toBe(stolen);
  expect(functionOf(made, 'files/delete')).not.toBe(stolen);
  expect(named(stolen, 'files/delete').names).toEqual(new Map([...made.names].toReversed()));
});

test("a reserved name is another's", () => {
  const made = convertTools([{ name: 'search' }, { name: 'find' }], new Set(['search']));
  expect([...made.names.values()].toSorted()).toEqual(['find', 'search']);
  expect(functionOf(made, 'search')).toMatch(/^search_[0-9a-f]{10}$/);
});

test('empty, blank and missing names are left out with their reason', () => {
  const made = named('', '  ', '\u200b', undefined, 5, null, 'x'.repeat(2_000), 'kept');
  expect([...made.names.keys()]).toEqual(['kept']);
  expect(made.quarantined.map(({ reason }) => reason)).toEqual([
    ...[
      'empty_name',
      'empty_name',
      'empty_name',
      'invalid_name',
      'invalid_name',
      'invalid_name',
      'invalid_name',
    ],
  ]);
});

test('two different tools of one name are both left out; the same one listed twice is offered once', () => {
  const tool = (name: string, a: string) => ({
    name,
    inputSchema: { type: 'object', properties: { a: { type: a } } },
  });
  const made = convertTools([
    tool('x', 'string'),
    tool('x', 'number'),
    tool('y', 'string'),
    tool('y', 'string'),
    tool('z', 'string'),
  ]);
  expect([...made.names.values()]).toEqual(['y', 'z']);
  expect(made.quarantined).toMatchObject([{ name: 'x', reason: 'duplicate_name' }]);
});

test('a function may be called like something that every object has', () => {
  const made = named('__proto__', 'constructor', 'toString');
  expect([...made.names]).toEqual([
    ['__proto__', '__proto__'],
    ['constructor', 'constructor'],
    ['toString', 'toString'],
  ]);
});

test('any names are one to one, fit, and do not depend on the order', () => {
  const alike = fc.constantFrom('a', 'a b', 'a_b', 'а', 'x'.repeat(65), `${'x'.repeat(64)}y`, 'é', '日本');
  fc.assert(
    fc.property(
      fc.uniqueArray(fc.oneof(fc.string({ unit: 'binary', minLength: 1, maxLength: 80 }), alike)),
      (names) => {
        const made = named(...names);
        const expected = names.filter(
          (name) =>
            !made.quarantined.some(({ reason }) => reason === 'empty_name') || /[^\s\p{Cf}]/u.test(name),
        );
        expect(new Set(made.names.values())).toEqual(new Set(expected));
        expect(made.names.size).toBe(expected.length);
        for (const name of made.names.keys()) expect(name).toMatch(FITTING);
        expect(new Map(named(...names.toReversed()).names)).toEqual(new Map(made.names));
      },
    ),
    { numRuns: 200 },
  );
});
