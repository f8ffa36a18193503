/** Values for a JSON Schema of 2020-12, by fast-check: most of them obey it, and the caller drops the rest. */
import fc from 'fast-check';

type Schema = Record<string, unknown>;
type Values = fc.Arbitrary<unknown>;

const DEEPEST = 6;
const FORMATS: Record<string, Values> = {
  'date-time': fc
    .date({ min: new Date(0), max: new Date(4e12), noInvalidDate: true })
    .map((date) => date.toISOString()),
  date: fc
    .date({ min: new Date(0), max: new Date(4e12), noInvalidDate: true })
    .map((date) => date.toISOString().slice(0, 10)),
  time: fc.constant('10:20:30Z'),
  duration: fc.constantFrom('P1D', 'PT5M'),
  email: fc.constantFrom('a@example.com', 'b.c@example.org'),
  hostname: fc.domain(),
  ipv4: fc.ipV4(),
  ipv6: fc.constantFrom('::1', '2001:db8::1'),
  uuid: fc.uuid(),
  uri: fc.webUrl(),
  url: fc.constantFrom('https://example.com/a', 'https://example.org'),
  regex: fc.constantFrom('^a$', '[0-9]+'),
};

/** Values for a schema of `root`. Below six levels optional things are left out, so that recursion ends. */
export function valuesFor(schema: unknown, root: unknown, depth = 0): Values {
  if (!isRecord(schema)) return fc.constantFrom<unknown>('any', 1, true);
  if (typeof schema.$ref === 'string')
    return lazy(() => valuesFor(target(schema.$ref as string, root), root, depth + 1));
  if ('const' in schema) return fc.constant(schema.const);
  if (Array.isArray(schema.enum)) return fc.constantFrom(...schema.enum);
  const branches = [...list(schema.anyOf), ...list(schema.oneOf)];
  if (branches.length > 0 && schema.properties === undefined)
    return fc.oneof(
      ...(depth > DEEPEST ? branches.slice(-1) : branches).map((each) => valuesFor(each, root, depth + 1)),
    );
  const merged = list(schema.allOf).filter(isRecord);
  if (merged.length > 0) return valuesFor(mergedAll([schema, ...merged], root), root, depth + 1);
  const types = [schema.type ?? guessed(schema, depth)].flat() as string[];
  return fc.oneof(...types.map((type) => ofType(type, schema, root, depth)));
}

function ofType(type: string, schema: Schema, root: unknown, depth: number): Values {
  switch (type) {
    case 'string':
      return texts(schema);
    case 'integer':
    case 'number':
      return numbers(type, schema);
    case 'boolean':
      return fc.boolean();
    case 'array':
      return arrays(schema, root, depth);
    case 'object':
      return objects(schema, root, depth);
    default:
      return fc.constant(null);
  }
}

function texts(schema: Schema): Values {
  if (typeof schema.format === 'string' && FORMATS[schema.format]) return FORMATS[schema.format] as Values;
  if (typeof schema.pattern === 'string') {
    try {
      return fc.stringMatching(new RegExp(schema.pattern, 'u'), { maxLength: 40 });
    } catch {
      return fc.string({ unit: 'grapheme-ascii', maxLength: 6 });
    }
  }
  const least = Number(schema.minLength ?? 0);
  return fc.string({
    unit: 'binary',
    minLength: least,
    maxLength: Math.max(least, Math.min(Number(schema.maxLength ?? 12), 12)),
  });
}

function numbers(type: string, schema: Schema): Values {
  const step = Number(schema.multipleOf ?? 1);
  const above = Number(schema.exclusiveMinimum ?? Number.NEGATIVE_INFINITY);
  const below = Number(schema.exclusiveMaximum ?? Number.POSITIVE_INFINITY);
  const least = Math.max(Number(schema.minimum ?? -1000), above, -1000);
  const most = Math.min(Number(schema.maximum ?? least + 2000), below, least + 2000);
  if (type === 'number' && schema.multipleOf === undefined)
    return fc.double({
      min: Math.min(least, most),
      max: most,
      noNaN: true,
      minExcluded: least === above && least < most,
      maxExcluded: most === below && least < most,
    });
  const [low, high] = [Math.ceil(least / step), Math.floor(most / step)];
  return fc.integer({ min: Math.min(low, high), max: high }).map((count) => count * step);
}

function arrays(schema: Schema, root: unknown, depth: number): Values {
  const first = list(schema.prefixItems).map((each) => valuesFor(each, root, depth + 1));
  const least = Math.max(0, Number(schema.minItems ?? 0) - first.length);
  const most =
    depth > DEEPEST ? least : Math.max(least, Math.min(Number(schema.maxItems ?? 3) - first.length, 3));
  const closed =
    schema.items === false ||
    (isRecord(schema.items) && isRecord(schema.items.not)) ||
    schema.unevaluatedItems !== undefined;
  const item = lazy(() => valuesFor(schema.contains ?? schema.items ?? {}, root, depth + 1));
  const rest = closed
    ? fc.constant([])
    : fc.array(item, { minLength: least, maxLength: Math.max(most, least) });
  return fc.tuple(fc.tuple(...first), rest).map(([start, others]) => [...start, ...others]);
}

function objects(schema: Schema, root: unknown, depth: number): Values {
  const properties = Object.entries(isRecord(schema.properties) ? schema.properties : {});
  const required = list(schema.required) as string[];
  const undeclared = required.filter((name) => !properties.some(([each]) => each === name));
  const few = Number(schema.minProperties ?? 0) - properties.length;
  const extra = few > 0 ? Array.from({ length: few }, (_, index) => `extra${index}`) : [];
  const kept = depth > DEEPEST ? properties.filter(([name]) => required.includes(name)) : properties;
  const model = Object.fromEntries([
    ...kept.map(([name, inner]) => [name, lazy(() => valuesFor(inner, root, depth + 1))]),
    ...[...undeclared, ...extra].map((name) => [name, fc.constantFrom<unknown>('any', 1)]),
  ]) as Record<string, Values>;
  return fc.record(model, {
    requiredKeys: [...required.filter((name) => name in model), ...extra],
    noNullPrototype: true,
  });
}

function mergedAll(schemas: readonly Schema[], root: unknown): Schema {
  const made: Schema = {};
  for (const each of schemas) {
    const schema = typeof each.$ref === 'string' ? target(each.$ref, root) : each;
    if (!isRecord(schema)) continue;
    for (const [key, value] of Object.entries(schema)) {
      if (key === 'allOf') continue;
      if (key === 'properties') made.properties = { ...(made.properties as Schema), ...(value as Schema) };
      else if (key === 'required') made.required = [...new Set([...list(made.required), ...list(value)])];
      else made[key] = value;
    }
  }
  return made;
}

function guessed(schema: Schema, depth: number): string[] {
  if (
    schema.properties !== undefined ||
    schema.required !== undefined ||
    schema.additionalProperties !== undefined
  )
    return ['object'];
  if (schema.items !== undefined || schema.prefixItems !== undefined) return ['array'];
  const scalars = ['string', 'integer', 'boolean', 'null'];
  return depth > 2 ? scalars : [...scalars, 'object', 'array'];
}

function target(reference: string, root: unknown): unknown {
  let at = root;
  for (const part of reference.split('/').slice(1)) at = isRecord(at) ? at[part] : undefined;
  return at;
}

/** Made when it is asked for a value: a recursive schema would never be done otherwise. */
function lazy(make: () => Values): Values {
  return fc.constant(null).chain(make);
}

function list(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}

function isRecord(value: unknown): value is Schema {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
