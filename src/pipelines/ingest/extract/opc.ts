/** What the three office formats of Microsoft share: parts, the relations between them, and the document's properties. */
import type { Archive } from './archive.ts';
import { parseXml } from './xml.ts';

export type Relation = { readonly type: string; readonly target: string };

/** Relations of a part by their id; '' for those of the whole package. Targets are names of entries. */
export async function readRelations(archive: Archive, part: string): Promise<Map<string, Relation>> {
  const slash = part.lastIndexOf('/');
  const folder = part.slice(0, slash + 1);
  const name = `${folder}_rels/${part.slice(slash + 1)}.rels`;
  const relations = new Map<string, Relation>();
  await parseXml(archive.stream(name), 'The document', {
    open(tag, attributes) {
      const id = attributes.get('Id');
      const target = attributes.get('Target');
      if (tag !== 'Relationship' || !id || !target || attributes.get('TargetMode') === 'External') return;
      // the transitional and the strict namespaces differ in all but the last word
      const type = (attributes.get('Type') ?? '').split('/').at(-1) ?? '';
      relations.set(id, { type, target: resolvePath(folder, target) });
    },
  });
  return relations;
}

/** The package's main part: where its relations say, else where it usually is. */
export async function mainPart(archive: Archive, usual: string): Promise<string> {
  const relations = await readRelations(archive, '');
  for (const { type, target } of relations.values())
    if (type === 'officeDocument' && archive.has(target)) return target;
  return usual;
}

/** The title among the document's properties; null where it has none. */
export async function readTitle(archive: Archive, part = 'docProps/core.xml'): Promise<string | null> {
  let title = '';
  let inTitle = false;
  await parseXml(archive.stream(part), 'The document', {
    open: (tag) => {
      inTitle = tag === 'title';
    },
    close: () => {
      inTitle = false;
    },
    text: (text) => {
      if (inTitle && title.length < 1000) title += text;
    },
  });
  return title.trim() === '' ? null : title.trim();
}

/** A target relative to a folder (`''` or ending in /), without leaving the archive. */
export function resolvePath(folder: string, target: string): string {
  const path = target.startsWith('/') ? target : folder + target;
  const parts: string[] = [];
  for (const part of path.split('/')) {
    if (part === '..') parts.pop();
    else if (part !== '' && part !== '.') parts.push(part);
  }
  return parts.join('/');
}

/** The relation that an element names: a slide or sheet has a number of its own (id) beside it (r:id, whatever the prefix). */
export const relationOf = (
  attributes: ReadonlyMap<string, string>,
  relations: ReadonlyMap<string, Relation>,
): Relation | null => {
  for (const [name, value] of attributes) {
    const relation = name.endsWith('id') ? relations.get(value) : undefined;
    if (relation) return relation;
  }
  return null;
};
