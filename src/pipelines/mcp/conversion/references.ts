/** Where the references of a schema lead. Nothing is ever fetched. */
import { eachInner, IN_PLACE } from './keywords.ts';
import { isSchema, type Schema, Unfit } from './types.ts';

/** The schemas that a tool's references name. */
export class References {
  readonly #root: Schema;
  readonly #targets = new Map<string, unknown>();
  readonly #schemas = new Set<unknown>();
  readonly #anchors = new Map<string, unknown>();

  /** Walks the schema and follows each reference once. Throws `Unfit` on one that leads nowhere, elsewhere, or round and round. */
  constructor(root: Schema) {
    this.#root = root;
    const references: string[] = [];
    this.#gather(root, references);
    for (const reference of references) this.#targets.set(reference, this.#find(reference));
    const done = new Set<unknown>();
    for (const target of this.#targets.values()) this.#endsFrom(target, new Set(), done);
  }

  /** The schema that a reference of this tool names; it may be true or false. */
  target(reference: string): unknown {
    return this.#targets.get(reference);
  }

  #gather(schema: unknown, references: string[]): void {
    this.#schemas.add(schema);
    if (!isSchema(schema)) return;
    if (typeof schema.$ref === 'string') references.push(schema.$ref);
    if (typeof schema.$anchor === 'string') this.#anchors.set(`#${schema.$anchor}`, schema);
    eachInner(schema, (inner) => this.#gather(inner, references));
  }

  #find(reference: string): unknown {
    const shown = JSON.stringify(reference.slice(0, 120).toWellFormed());
    if (!reference.startsWith('#'))
      throw new Unfit('remote_reference', `The schema refers to ${shown}, and references are never fetched.`);
    if (this.#anchors.has(reference)) return this.#anchors.get(reference);
    const found = reference === '#' || reference.startsWith('#/') ? at(this.#root, reference) : undefined;
    // a place that holds no schema (`#/properties`), or below a keyword that is not JSON Schema's, has not been surveyed
    if (found === undefined || !this.#schemas.has(found))
      throw new Unfit('broken_reference', `The schema refers to ${shown}, where it has no schema.`);
    return found;
  }

  /** A value is judged by a schema and by those it applies in place; should one of them be the first again, judging would never end. */
  #endsFrom(schema: unknown, above: Set<unknown>, done: Set<unknown>): void {
    if (!isSchema(schema) || done.has(schema)) return;
    if (above.has(schema))
      throw new Unfit(
        'endless_reference',
        'A reference of the schema leads back to itself and never to a value.',
      );
    above.add(schema);
    if (typeof schema.$ref === 'string') this.#endsFrom(this.#targets.get(schema.$ref), above, done);
    eachInner(schema, (inner, keyword) => {
      if (IN_PLACE.has(keyword)) this.#endsFrom(inner, above, done);
    });
    above.delete(schema);
    done.add(schema);
  }
}

/** The value at a JSON pointer in a fragment; undefined where there is none. */
function at(root: unknown, fragment: string): unknown {
  let path: string;
  try {
    path = decodeURIComponent(fragment.slice(1));
  } catch {
    return undefined;
  }
  let value: unknown = root;
  for (const part of path.split('/').slice(1)) {
    const key = part.replaceAll('~1', '/').replaceAll('~0', '~');
    if (typeof value !== 'object' || value === null || !Object.hasOwn(value, key)) return undefined;
    value = (value as Schema)[key];
  }
  return value;
}
