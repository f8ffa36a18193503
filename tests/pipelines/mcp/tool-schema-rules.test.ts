import { expect, test } from 'vitest';
import { toolSchemaFault } from '../../peers/tool-schema-rules.ts';

const text = { type: 'string' };
const closed = (properties: Record<string, unknown>, more: object = {}) => ({
  type: 'object',
  properties,
  required: Object.keys(properties),
  additionalProperties: false,
  ...more,
});
const names = (count: number, length = 1) =>
  Object.fromEntries(
    Array.from({ length: count }, (_, i) => [`${i}`.padStart(length, 'p'), { type: 'null' }]),
  );
const values = (count: number, length = 1) =>
  Array.from({ length: count }, (_, i) => `${i}`.padStart(length, 'v'));

const REFUSED: [string, unknown, RegExp][] = [
  ['an optional property', closed({ a: text }, { required: [] }), /Missing 'a'/],
  ['an open object', { ...closed({ a: text }), additionalProperties: true }, /additionalProperties/],
  ['a format', closed({ a: { type: 'string', format: 'uri' } }), /not a valid format/],
  ['oneOf', closed({ a: { oneOf: [text] } }), /'oneOf' is not permitted/],
  ['a default', closed({ a: { type: 'string', default: 'x' } }), /'default' is not permitted/],
  ['no type', closed({ a: {} }), /must have a 'type'/],
  ['a lost definition', closed({ a: { $ref: '#/$defs/A' } }), /unresolved/],
  ['words beside a reference', closed({ a: { $ref: '#', description: 'x' } }), /cannot have keywords/],
  [
    'the same first key',
    closed({ a: { anyOf: [closed({ x: text }), closed({ x: { type: 'number' } })] } }),
    /identical first keys/,
  ],
  ['5,001 properties', closed(names(5_001)), /5000/],
  ['long names', closed(names(1_300, 100)), /120000/],
  [
    '1,001 values',
    closed({ a: { type: 'string', enum: values(600) }, b: { type: 'string', enum: values(401) } }),
    /1000/,
  ],
  ['a long enum', closed({ a: { type: 'string', enum: values(251, 60) } }), /15000/],
  [
    'a deep one',
    Array.from({ length: 12 }).reduce<object>((inner) => closed({ a: inner }), text),
    /nested too deeply/,
  ],
];

test('the rules refuse what the API refuses of strict schemas', () => {
  for (const [what, schema, fault] of REFUSED)
    expect([what, toolSchemaFault(schema, true)]).toEqual([what, expect.stringMatching(fault)]);
});

test('the rules refuse what the API refuses of any schema', () => {
  for (const key of ['oneOf', 'anyOf', 'allOf', 'enum', 'not'])
    expect(toolSchemaFault({ type: 'object', properties: {}, [key]: [{}] }, false)).toContain(key);
  expect(toolSchemaFault({}, false)).toContain('type');
  expect(toolSchemaFault({ type: 'object', properties: { a: { type: 'array' } } }, false)).toContain(
    'missing items',
  );
  expect(toolSchemaFault({ type: 'object', properties: { a: { not: { type: 'any' } } } }, false)).toContain(
    'not a valid type',
  );
});

test('the rules let through what is documented', () => {
  const node = closed({ value: text, next: { anyOf: [{ $ref: '#/$defs/node' }, { type: 'null' }] } });
  const union = {
    anyOf: [closed({ t: { const: 'a', type: 'string' } }), closed({ t: { enum: ['b'], type: 'string' } })],
  };
  expect(
    toolSchemaFault(closed({ node: { $ref: '#/$defs/node' }, union }, { $defs: { node } }), true),
  ).toBeNull();
  expect(toolSchemaFault(closed({ a: { type: 'string', enum: values(1_000) } }), true)).toBeNull();
});
