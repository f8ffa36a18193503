/**
 * A JSON value with its names in the order in which jsonb gives them back: by their length in bytes, then by their bytes.
 *
 * What is made of a tool before it is stored must be what is made of its row: the order of names decides that of `required`, and which of
 * two definitions gets the plain name.
 */
export function inDatabaseOrder(value: unknown): unknown {
  if (typeof value !== 'object' || value === null) return value;
  if (Array.isArray(value)) return value.map(inDatabaseOrder);
  const names = Object.keys(value).map((name) => ({ name, bytes: Buffer.from(name) }));
  names.sort((a, b) => a.bytes.length - b.bytes.length || Buffer.compare(a.bytes, b.bytes));
  const ordered: Record<string, unknown> = {};
  for (const { name } of names) {
    // not by assignment: a name may be __proto__
    Object.defineProperty(ordered, name, {
      value: inDatabaseOrder((value as Record<string, unknown>)[name]),
      enumerable: true,
      configurable: true,
      writable: true,
    });
  }
  return ordered;
}
