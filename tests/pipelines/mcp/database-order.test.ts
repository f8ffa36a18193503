import { afterEach, beforeEach, expect, test } from 'vitest';
import { systemClock } from '../../../src/clock.ts';
import type { ToolRow } from '../../../src/db/mcp.ts';
import { type OpenAiFunction, toArguments } from '../../../src/pipelines/mcp/conversion/index.ts';
import { inDatabaseOrder } from '../../../src/pipelines/mcp/database-order.ts';
import { toolRows } from '../../../src/pipelines/mcp/tool-rows.ts';
import { type TestDatabase, testDatabase } from '../../support/database.ts';

let db: TestDatabase;

beforeEach(async () => {
  db = await testDatabase();
});

afterEach(() => db.dispose());

async function stored<T>(value: T): Promise<T> {
  const [row] = await db.query<{ value: T }>('select $1::jsonb as value', [JSON.stringify(value)]);
  return row?.value as T;
}

test('names stand as the database gives them back', async () => {
  const value = { zz: 1, b: { é: 1, ab: 2, a: [{ y: 1, x: 2 }] }, 10: 1, 9: 2, aaa: 3, Z: 4, 'a b': 5 };
  expect(JSON.stringify(inDatabaseOrder(value))).toBe(JSON.stringify(await stored(value)));
  expect(Object.keys(inDatabaseOrder(JSON.parse('{"__proto__": 1, "a": 2}')) as object)).toEqual([
    'a',
    '__proto__',
  ]);
});

test('a tool’s function is still the tool’s after both were stored, however its server orders its names', async () => {
  const inputSchema = {
    type: 'object',
    properties: {
      duration: { $ref: '#/definitions/inner/definitions/part' },
      steps: { $ref: '#/definitions/part' },
      to: { type: 'string' },
    },
    definitions: {
      part: { type: 'object', properties: { seconds: { type: 'number' }, at: { type: 'string' } } },
      inner: { definitions: { part: { type: 'number' } } },
    },
  };
  const { rows } = await toolRows(
    { tools: [{ name: 'wait', inputSchema }], rejected: [], ttlMs: null },
    systemClock,
  );
  const row = (await stored(rows[0])) as ToolRow;
  const tool = row.tool_schema as { inputSchema: unknown };
  const made = (row.openai_schema as { function: OpenAiFunction }).function;
  expect(
    toArguments(tool.inputSchema, made, { duration: 3, steps: { seconds: 1, at: null }, to: null }),
  ).toEqual({
    arguments: { duration: 3, steps: { seconds: 1 } },
  });
});
