import { Ajv } from 'ajv';
import { Ajv2019 } from 'ajv/dist/2019.js';
import { Ajv2020 } from 'ajv/dist/2020.js';
import addFormats from 'ajv-formats';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { boundedRun } from '../../../src/pipelines/mcp/conversion/bounded-run.ts';
import {
  convertTools,
  type OpenAiFunction,
  toArguments,
} from '../../../src/pipelines/mcp/conversion/index.ts';
import { toolsFault } from '../../peers/chat-tool-rules.ts';
import { type CorpusTool, corpus } from './corpus.ts';
import { valuesFor } from './generate-arguments.ts';

/** What was reached when this was written. It may rise; a fall means that models lose the guarantee of a shape for tools that had it. */
const LEAST_STRICT = { servers: 130 / 165, all: 212 / 424 };
const VALUES_EACH = 6;

const tools = corpus.flatMap((file) => file.tools);
const all = convertTools(tools);
const toolOf = (made: OpenAiFunction): CorpusTool => {
  const found = tools.find((tool) => tool.name === all.names.get(made.name));
  if (!found) throw new Error(`${made.name} has no tool.`);
  return found;
};

test('the corpus has at least 300 schemas, most of them of real servers and of the test suite', () => {
  expect(tools.length).toBeGreaterThanOrEqual(300);
  const counts = (prefix: string) =>
    corpus.filter(({ file }) => file.startsWith(prefix)).flatMap((each) => each.tools).length;
  expect(counts('server-')).toBeGreaterThanOrEqual(150);
  expect(counts('suite-')).toBeGreaterThanOrEqual(100);
});

test('every function is accepted by the rules of the API, and its description fits', () => {
  const faults = all.functions
    .map((each) => ({
      tool: toolOf(each).name,
      fault: toolsFault({ tools: [{ type: 'function', function: each }] }),
    }))
    .filter(({ fault }) => fault !== null);
  expect(faults).toEqual([]);
  expect(Math.max(...all.functions.map((each) => each.description.length))).toBeLessThanOrEqual(1_024);
});

test('no tool of a real server is left out', () => {
  for (const { file, tools: own } of corpus.filter((each) => each.file.startsWith('server-')))
    expect([file, convertTools(own).quarantined]).toEqual([file, []]);
});

test('a request takes functions and leaves out nothing silently', () => {
  expect(all.functions.length + all.quarantined.length).toBe(tools.length);
});

test('names are one to one and lead back to the tools', () => {
  expect(new Set(all.functions.map((each) => each.name)).size).toBe(all.functions.length);
  expect(all.names.size).toBe(all.functions.length);
  expect(new Set(all.names.values()).size).toBe(all.functions.length);
});

test('the share that is strict does not fall', () => {
  const share = (of: readonly CorpusTool[]): number => {
    const { functions } = convertTools(of);
    return functions.filter((each) => each.strict).length / functions.length;
  };
  const shares = {
    servers: share(corpus.filter(({ file }) => file.startsWith('server-')).flatMap((each) => each.tools)),
    all: share(tools),
  };
  console.log(
    `strict: ${(100 * shares.servers).toFixed(1)} % of real servers' tools, ${(100 * shares.all).toFixed(1)} % of all`,
  );
  expect(shares.servers).toBeGreaterThanOrEqual(LEAST_STRICT.servers);
  expect(shares.all).toBeGreaterThanOrEqual(LEAST_STRICT.all);
});

test('the same tools give the same bytes, and a function does not depend on the order of the list', () => {
  const text = JSON.stringify(all.functions);
  expect(JSON.stringify(convertTools(structuredClone(tools)).functions)).toBe(text);
  const turned = convertTools(tools.toReversed());
  expect(JSON.stringify(turned.functions.toReversed())).toBe(text);
  expect([...turned.names].toSorted()).toEqual([...all.names].toSorted());
});

test('a conversion changes nothing of what it is given', () => {
  const before = JSON.stringify(tools);
  convertTools(tools);
  expect(JSON.stringify(tools)).toBe(before);
});

/** Apart from the product's own: whole schemas, as they are listed. */
function judge(schema: Record<string, unknown>): (value: unknown) => boolean {
  const declared = String(schema.$schema ?? '');
  const old =
    declared.includes('draft-0') || (declared === '' && /"(items)":\[/.test(JSON.stringify(schema)));
  const Dialect = old ? Ajv : declared.includes('2019') ? Ajv2019 : Ajv2020;
  const ajv = new Dialect({
    strict: false,
    validateSchema: false,
    unicodeRegExp: false,
    ownProperties: true,
    logger: false,
  });
  addFormats.default(ajv);
  const { $schema, ...rest } = schema;
  return ajv.compile(rest) as (value: unknown) => boolean;
}

/** Fails loudly where it would never end. */
function judged(run: () => boolean): boolean {
  return boundedRun(10_000, run);
}

/** Checking takes for ever, if not for every value: what happens then is tested with chosen values. */
const COSTLY = /^(catastrophic-|ref-doubling$)/;

/** Tools that no arguments fit, and two whose values the generator does not find. */
const WITHOUT_VALUES: readonly string[] = [
  'keyword-backreference',
  'contradiction-range',
  'contradiction-items',
  'contradiction-enum',
  'contradiction-all',
  'contradiction-false',
  'contradiction-not',
  'contradiction-required',
  // {"type": "object", "enum": [1, 2, 3]}
  'root-enum-0',
  // {"type": "object", "not": {"type": "object", "properties": {"foo": {"type": "string"}}}}
  'root-not-2',
];
/** What Ajv can't compile as it is listed: a pattern of Python. */
const UNREADABLE: readonly string[] = ['keyword-python-pattern'];

test('arguments that a function allows are, mapped back, arguments that its tool allows', () => {
  const without: string[] = [];
  const unreadable: string[] = [];
  let checked = 0;
  for (const each of all.functions) {
    const tool = toolOf(each);
    if (COSTLY.test(tool.name)) continue;
    const allowed = judge(each.parameters as Record<string, unknown>);
    const values = fc
      .sample(valuesFor(each.parameters, each.parameters), { numRuns: 4 * VALUES_EACH, seed: 7 })
      .map((value) => JSON.parse(JSON.stringify(value)) as unknown)
      .filter((value) => judged(() => allowed(value)))
      .slice(0, VALUES_EACH);
    if (values.length === 0) without.push(tool.name);
    let original: ((value: unknown) => boolean) | null = null;
    try {
      original = judge(tool.inputSchema);
    } catch {
      unreadable.push(tool.name);
    }
    for (const value of values) {
      const back = toArguments(tool.inputSchema, each, value);
      expect({ tool: tool.name, value, back }).toMatchObject({ back: { arguments: expect.anything() } });
      const { arguments: mapped } = back as { arguments: unknown };
      const fits = original;
      if (fits) expect([tool.name, value, judged(() => fits(mapped))]).toEqual([tool.name, value, true]);
      checked++;
    }
  }
  expect(checked).toBeGreaterThan(2_000);
  expect(without).toEqual(WITHOUT_VALUES);
  expect(unreadable).toEqual(UNREADABLE);
}, 240_000);
