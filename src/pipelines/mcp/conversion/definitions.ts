/** The definitions that the references of a result lead to. */
import type { References } from './references.ts';
import type { Walk } from './strict-walk.ts';
import type { Schema } from './types.ts';

/**
 * Makes a schema together with the `$defs` that it, and they, refer to. Only what is referred to is there, and nothing is referred to that is
 * not there: schemas come with definitions that nobody uses, and lose those that somebody does.
 */
export function withDefinitions(
  references: References | null,
  root: (walk: Walk) => Schema,
  definition: (target: unknown, walk: Walk) => Schema,
): Schema {
  const names = new Map<unknown, string>();
  const taken = new Set<string>();
  const open: unknown[] = [];
  const refer = (reference: string): string => {
    const target = references?.target(reference);
    let name = names.get(target);
    if (name === undefined) {
      name = freeName(reference, taken);
      taken.add(name);
      names.set(target, name);
      open.push(target);
    }
    return `#/$defs/${name}`;
  };
  const walk: Walk = { references, refer };
  const made = root(walk);
  if (open.length === 0) return made;
  const definitions: [string, Schema][] = [];
  // the list grows while definitions are made
  for (const target of open) definitions.push([names.get(target) as string, definition(target, walk)]);
  return { ...made, $defs: Object.fromEntries(definitions) };
}

/** The last word of a reference where it is plain: a model reads it. */
function freeName(reference: string, taken: ReadonlySet<string>): string {
  const last = reference.slice(reference.lastIndexOf('/') + 1).replace(/^#/, '');
  const plain = /^[a-zA-Z0-9_-]{1,60}$/.test(last) && last !== '__proto__' ? last : 'value';
  if (!taken.has(plain)) return plain;
  let number = 2;
  while (taken.has(`${plain}_${number}`)) number++;
  return `${plain}_${number}`;
}
