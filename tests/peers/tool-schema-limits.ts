/**
 * How large a strict schema may be, and how its unions and references must look; it knows nothing of who made the schema.
 *
 * Sources: https://platform.openai.com/docs/guides/structured-outputs#supported-schemas (5,000 object properties; 120,000 characters of property
 * names, definition names, enum values and const values; 1,000 enum values; 15,000 characters in an enum of strings with more than 250), and
 * messages that the API is reported to give: "$ref cannot have keywords {'description'}" (github.com/camel-ai/camel/issues/3001), "Objects
 * provided via 'anyOf' must not share identical first keys" (zenn.dev/nicopin/scraps/a8d8f53f5faebb).
 */
type Schema = Record<string, unknown>;

/** What is wrong with a strict schema as a whole; null if nothing. */
export function strictWholeFault(root: Schema): string | null {
  let [properties, values, characters] = [0, 0, 0];
  let found: string | null = null;
  everySchema(root, (schema) => {
    const names = Object.keys(record(schema.properties));
    const definitions = [...Object.keys(record(schema.$defs)), ...Object.keys(record(schema.definitions))];
    const listed = Array.isArray(schema.enum) ? schema.enum : [];
    const lengths = [...listed, ...('const' in schema ? [schema.const] : [])].map(
      (value) => (typeof value === 'string' ? value : JSON.stringify(value)).length,
    );
    properties += names.length;
    values += listed.length;
    characters += [...names, ...definitions].reduce((sum, name) => sum + name.length, sum(lengths));
    if (listed.length > 250 && listed.every((value) => typeof value === 'string') && sum(lengths) > 15_000)
      found ??= 'enum string values exceed 15000 characters in total when there are more than 250';
    const beside = '$ref' in schema ? Object.keys(schema).filter((key) => key !== '$ref') : [];
    // the root may carry definitions beside everything else
    if (beside.length > 0 && schema !== root)
      found ??= `$ref cannot have keywords {'${beside.join("', '")}'}`;
    if (Array.isArray(schema.anyOf)) found ??= firstKeysFault(schema.anyOf, root);
  });
  if (found) return found;
  if (properties > 5_000) return `${properties} object properties exceed the limit of 5000`;
  if (values > 1_000) return `${values} enum values exceed the limit of 1000`;
  return characters > 120_000
    ? `${characters} characters of names and values exceed the limit of 120000`
    : null;
}

/** Objects of one union: the first key differs, or its listed values do. */
function firstKeysFault(branches: readonly unknown[], root: Schema): string | null {
  const seen = new Map<string, Set<string> | null>();
  for (const branch of branches) {
    const schema = followed(branch, root);
    const [name] = Object.keys(record(schema.properties));
    if (name === undefined) continue;
    const first = followed(record(schema.properties)[name], root);
    const listed = 'const' in first ? [first.const] : Array.isArray(first.enum) ? first.enum : null;
    const own = listed && new Set(listed.map((value) => JSON.stringify(value)));
    if (seen.has(name)) {
      const before = seen.get(name);
      if (!own || !before || [...own].some((value) => before.has(value)))
        return "Objects provided via 'anyOf' must not share identical first keys";
      for (const value of own) before.add(value);
    } else seen.set(name, own);
  }
  return null;
}

function followed(schema: unknown, root: Schema): Schema {
  let at = record(schema);
  for (let steps = 0; typeof at.$ref === 'string' && steps < 20; steps++) {
    const name = at.$ref.replace(/^#\/(\$defs|definitions)\//, '');
    at = at.$ref === '#' ? root : record(record(root.$defs ?? root.definitions)[name]);
  }
  return at;
}

function everySchema(schema: unknown, visit: (schema: Schema) => void): void {
  const at = record(schema);
  visit(at);
  for (const key of ['properties', '$defs', 'definitions'])
    for (const inner of Object.values(record(at[key]))) everySchema(inner, visit);
  if (Array.isArray(at.anyOf)) for (const inner of at.anyOf) everySchema(inner, visit);
  if (at.items !== undefined) everySchema(at.items, visit);
}

function record(value: unknown): Schema {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Schema) : {};
}

function sum(lengths: readonly number[]): number {
  return lengths.reduce((total, length) => total + length, 0);
}
