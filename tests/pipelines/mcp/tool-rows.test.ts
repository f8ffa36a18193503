import { expect, test } from 'vitest';
import { systemClock } from '../../../src/clock.ts';
import { canonicalHash } from '../../../src/pipelines/mcp/canonical.ts';
import { confusable, mixesScripts } from '../../../src/pipelines/mcp/confusable.ts';
import { toArguments } from '../../../src/pipelines/mcp/conversion/index.ts';
import { HostPlaces } from '../../../src/pipelines/mcp/host-places.ts';
import { toolRows } from '../../../src/pipelines/mcp/tool-rows.ts';
import type { McpListing, RawTool } from '../../../src/providers/mcp-listing.ts';

const listing = (...tools: unknown[]): McpListing => ({
  tools: tools as RawTool[],
  rejected: [],
  ttlMs: null,
});
const plain = (name: string, more: object = {}): object => ({
  name,
  description: `Does ${name}.`,
  inputSchema: { type: 'object', properties: { a: { type: 'string' } } },
  ...more,
});
const wide = (name: string): object =>
  plain(name, {
    inputSchema: {
      type: 'object',
      properties: Object.fromEntries(
        Array.from({ length: 400 }, (_, i) => [`${name}${i}`, { type: ['string', 'null'] }]),
      ),
    },
  });
const rowsOf = async (given: McpListing) => (await toolRows(given, systemClock)).rows;

test('the same tools give the same rows, whatever the order of the list and of the names within', async () => {
  const one = await rowsOf(listing(plain('b'), plain('a', { _meta: { x: 1, y: [{ p: 1, q: 2 }] } })));
  const two = await rowsOf(listing({ _meta: { y: [{ q: 2, p: 1 }], x: 1 }, ...plain('a') }, plain('b')));
  expect(two.toReversed().map(({ row_hash }) => row_hash)).toEqual(one.map(({ row_hash }) => row_hash));
  expect(new Set(one.map(({ schema_hash }) => schema_hash)).size).toBe(2);
});

test('every part of a tool is in its hash, however deep', () => {
  const before = plain('a', {
    _meta: { x: { y: [1, { z: 'old' }] } },
    outputSchema: { type: 'object' },
    annotations: {},
  });
  const hash = canonicalHash(before);
  for (const more of [
    { _meta: { x: { y: [1, { z: 'new' }] } } },
    { outputSchema: { type: 'object', title: 'x' } },
    { annotations: { readOnlyHint: true } },
    { description: 'Other.' },
    { anythingElse: 1 },
  ]) {
    expect(canonicalHash({ ...before, ...more })).not.toBe(hash);
  }
});

test('a row is enough for the way back: what the database gives back converts to the same function', async () => {
  const [row] = await rowsOf(
    listing(
      plain('lone \ud800 surrogate', {
        inputSchema: { type: 'object', properties: { 'a\u0000b': { type: 'string' } } },
      }),
      wide('w'),
    ),
  );
  expect(row?.code).toBe('invalid_name');
  const [, second] = await rowsOf(
    listing(
      plain('x'),
      plain('nul', { inputSchema: { type: 'object', properties: { 'a\u0000b': { type: 'string' } } } }),
    ),
  );
  const stored = JSON.parse(JSON.stringify(second)) as {
    tool_schema: { inputSchema: unknown };
    openai_schema: { function: never };
  };
  expect(
    toArguments(stored.tool_schema.inputSchema, stored.openai_schema.function, { 'a\ufffdb': 'v' }),
  ).toEqual({
    arguments: { 'a\ufffdb': 'v' },
  });
});

test('others have their turn between tools, and a listing that takes too long offers the rest no more', async () => {
  let turns = 0;
  let isOver = false;
  const count = (): void => {
    turns++;
    if (!isOver) setImmediate(count);
  };
  setImmediate(count);
  await rowsOf(listing(...Array.from({ length: 40 }, (_, i) => wide(`wide${i}_`))));
  isOver = true;
  expect(turns).toBeGreaterThan(5);
  let busy = 0;
  // every look at it finds 100 ms gone
  const { rows } = await toolRows(
    listing(...Array.from({ length: 40 }, (_, i) => plain(`t${i}`))),
    systemClock,
    () => {
      busy += 100;
      return busy;
    },
  );
  const codes = rows.map(({ code }) => code);
  expect(codes.slice(0, 20)).toEqual(Array(20).fill(null));
  expect(codes.slice(20)).toEqual(Array(20).fill('schema_too_slow'));
});

test('names that look alike are told apart: the plain one stays', () => {
  const cyrillic = 'p\u0430y'; // а
  const greek = 'p\u03b1y'; // α
  const found = confusable(['pay', cyrillic, greek, 'Pay', 'naïve', 'тест']);
  expect([...found.keys()].toSorted()).toEqual([cyrillic, greek].toSorted());
  expect(confusable(['s\u200bend', 'send', 'ｓｅｎｄ']).size).toBe(2);
  // neither is plain
  expect(confusable(['caf\u00e9', 'cafe\u0301']).size).toBe(2);
  expect(mixesScripts(cyrillic)).toBe(true);
  expect(mixesScripts('тест')).toBe(false);
  expect(mixesScripts('größe')).toBe(false);
});

test('a place at a host is given back once', () => {
  const places = new HostPlaces(2);
  const [one, two] = [places.take('https://a.example/x'), places.take('https://a.example/y')];
  expect(places.take('https://a.example/z')).toBeNull();
  expect(places.take('https://b.example/')).not.toBeNull();
  one?.();
  one?.();
  expect(places.take('https://a.example/z')).not.toBeNull();
  expect(places.take('https://a.example/z')).toBeNull();
  two?.();
  expect(places.take('https://a.example/z')).not.toBeNull();
});
