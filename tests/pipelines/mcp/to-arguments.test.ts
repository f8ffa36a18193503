import { expect, test } from 'vitest';
import {
  convertTools,
  type OpenAiFunction,
  toArguments,
} from '../../../src/pipelines/mcp/conversion/index.ts';

const text = { type: 'string' };
const object = (properties: Record<string, unknown>, more: object = {}) => ({
  type: 'object',
  properties,
  ...more,
});
const functionOf = (inputSchema: unknown): OpenAiFunction => {
  const [made] = convertTools([{ name: 'tool', inputSchema }]).functions;
  if (!made) throw new Error('left out');
  return made;
};
const back = (schema: unknown, given: unknown) => toArguments(schema, functionOf(schema), given);

test('a null for an optional property is taken out, at every depth', () => {
  const schema = object({
    a: text,
    list: { type: 'array', items: object({ b: text, c: object({ d: text }) }) },
  });
  expect(
    back(schema, {
      a: null,
      list: [
        { b: null, c: { d: null } },
        { b: 'x', c: null },
      ],
    }),
  ).toEqual({
    arguments: { list: [{ c: {} }, { b: 'x' }] },
  });
});

test('a null that means something is never taken out', () => {
  const required = object({ parent: { type: ['string', 'null'] }, other: text }, { required: ['parent'] });
  expect(back(required, { parent: null, other: null })).toEqual({ arguments: { parent: null } });
  // absent leaves it, null clears it: a strict function could not say both
  const optional = object({ parent: { type: ['string', 'null'] } });
  expect(functionOf(optional).strict).toBe(false);
  expect(back(optional, { parent: null })).toEqual({ arguments: { parent: null } });
  expect(back(optional, {})).toEqual({ arguments: {} });
});

test('a function that is not strict gets no null taken out', () => {
  const schema = object({ a: text, b: { type: 'string', minLength: 1 } });
  expect(functionOf(schema).strict).toBe(false);
  expect(back(schema, { a: null })).toEqual({ problems: ["'/a' must be string"] });
});

test('of alternatives, the one that was meant says which null is taken out', () => {
  const branch = (t: string, v: object, required: string[]) => object({ t: { const: t }, v }, { required });
  const schema = object(
    { x: { anyOf: [branch('a', text, ['t']), branch('b', { type: ['string', 'null'] }, ['t', 'v'])] } },
    { required: ['x'] },
  );
  expect(functionOf(schema).strict).toBe(true);
  expect(back(schema, { x: { t: 'a', v: null } })).toEqual({ arguments: { x: { t: 'a' } } });
  expect(back(schema, { x: { t: 'b', v: null } })).toEqual({ arguments: { x: { t: 'b', v: null } } });
});

test('alternatives at the top are taken out of their wrapper', () => {
  const schema = object({ id: text, name: text }, { anyOf: [{ required: ['id'] }, { required: ['name'] }] });
  expect(Object.keys(functionOf(schema).parameters.properties as object)).toEqual(['arguments']);
  expect(back(schema, { arguments: { id: 'x' } })).toEqual({ arguments: { id: 'x' } });
  expect(back(schema, { arguments: {} })).toHaveProperty('problems');
  // a model that leaves the wrapper out says the same
  expect(back(schema, { name: 'y' })).toEqual({ arguments: { name: 'y' } });
});

test("a tool's own parameter of the wrapper's name stays", () => {
  const schema = object({ arguments: object({ a: text }, { required: ['a'] }) }, { required: ['arguments'] });
  expect(back(schema, { arguments: { a: 'x' } })).toEqual({ arguments: { arguments: { a: 'x' } } });
});

test('arguments are judged by what the tool says, formats included', () => {
  const schema = object({
    url: { type: 'string', format: 'uri' },
    at: { type: 'string', format: 'date-time' },
  });
  expect(back(schema, { url: 'https://example.com' })).toHaveProperty('arguments');
  expect(back(schema, { url: 'no address' })).toEqual({ problems: [`'/url' must match format "uri"`] });
  expect(back(schema, { at: 'today' })).toEqual({ problems: [`'/at' must match format "date-time"`] });
});

test('each dialect is judged by its own words', () => {
  const tuple = { type: 'array', items: [text], additionalItems: false };
  const draft7 = { $schema: 'http://json-schema.org/draft-07/schema#', ...object({ a: tuple }) };
  expect(back(draft7, { a: ['x'] })).toHaveProperty('arguments');
  expect(back(draft7, { a: ['x', 'y'] })).toHaveProperty('problems');
  expect(back(object({ a: tuple }), { a: ['x', 'y'] })).toHaveProperty('problems');
  const modern = {
    $schema: 'https://json-schema.org/draft/2020-12/schema',
    ...object({ a: { type: 'array', prefixItems: [text], items: false } }),
  };
  expect(back(modern, { a: ['x'] })).toHaveProperty('arguments');
  expect(back(modern, { a: ['x', 'y'] })).toHaveProperty('problems');
});

test('what every object has is no argument that was given', () => {
  const schema = object({ constructor: text, toString: { type: 'number' } });
  expect(back(schema, { constructor: null, toString: null })).toEqual({ arguments: {} });
  const required = object({ constructor: text }, { required: ['constructor'] });
  expect(back(required, {})).toHaveProperty('problems');
  expect(back(object({ a: text }), JSON.parse('{"a":"x","__proto__":{"b":1}}'))).toEqual({
    arguments: JSON.parse('{"a":"x","__proto__":{"b":1}}'),
  });
});

test('a function that an earlier conversion made otherwise is not guessed at; the order of names does not matter', () => {
  const schema = object({ a: text, b: text });
  const made = functionOf(schema);
  expect(toArguments(schema, { ...made, strict: false }, {})).toHaveProperty('problems');
  expect(toArguments(object({ a: text }), made, { a: 'x', b: 'y' })).toHaveProperty('problems');
  const { properties, ...rest } = made.parameters;
  const turned = {
    ...rest,
    properties: Object.fromEntries(Object.entries(properties as object).toReversed()),
  };
  expect(toArguments(schema, { ...made, parameters: turned }, { a: 'x', b: null })).toEqual({
    arguments: { a: 'x' },
  });
});

test('anything but an object is refused', () => {
  for (const given of [null, [], 'a', 5, undefined])
    expect(back(object({}), given)).toEqual({ problems: ['The arguments must be a JSON object.'] });
});
