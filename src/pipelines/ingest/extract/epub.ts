/** E-books: the chapters in reading order, each of them a web page. There are no pages but those of a reader's screen. */
import type { DocumentLimits, ExtractedDocument } from '../document.ts';
import type { Archive } from './archive.ts';
import { charsetOf, decodeText } from './charset.ts';
import { corrupt, password } from './failures.ts';
import { convertHtml } from './html-blocks.ts';
import { MarkdownWriter } from './markdown-writer.ts';
import { resolvePath } from './opc.ts';
import { parseXml } from './xml.ts';

type Package = { title: string; readonly chapters: readonly string[] };

export async function extractEpub(
  archive: Archive,
  limits: DocumentLimits,
  signal?: AbortSignal,
): Promise<ExtractedDocument> {
  let root: string | null = null;
  await parseXml(archive.stream('META-INF/container.xml'), 'The e-book', {
    open(tag, attributes) {
      if (tag === 'rootfile') root ??= attributes.get('full-path') ?? null;
    },
  });
  if (root === null || !archive.has(root)) throw corrupt('The e-book');
  const { title, chapters } = await readPackage(archive, root);
  const protectedParts = await readEncrypted(archive);
  const writer = new MarkdownWriter(limits.maxCharacters);
  let heading: string | null = null;
  for (const chapter of chapters) {
    signal?.throwIfAborted();
    if (protectedParts.has(chapter)) throw password('The e-book');
    const bytes = await archive.bytes(chapter);
    if (bytes === null) continue;
    const head = new TextDecoder('latin1').decode(bytes.subarray(0, 200));
    const html = decodeText(bytes, charsetOf(head.replace('encoding', 'charset')));
    const titles = convertHtml(html, writer);
    heading ??= titles.heading;
  }
  return writer.finish('epub', title === '' ? heading : title);
}

async function readPackage(archive: Archive, part: string): Promise<Package> {
  const folder = part.slice(0, part.lastIndexOf('/') + 1);
  const items = new Map<string, { path: string; isChapter: boolean }>();
  const order: string[] = [];
  let title = '';
  let inTitle = false;
  await parseXml(archive.stream(part), 'The e-book', {
    open(tag, attributes) {
      if (tag === 'title' && title === '') inTitle = true;
      else if (tag === 'item') {
        const properties = (attributes.get('properties') ?? '').split(/\s+/);
        items.set(attributes.get('id') ?? '', {
          path: resolvePath(folder, decodePath(attributes.get('href') ?? '')),
          // the list of contents is a copy of the headings
          isChapter: /html/.test(attributes.get('media-type') ?? '') && !properties.includes('nav'),
        });
      } else if (tag === 'itemref') order.push(attributes.get('idref') ?? '');
    },
    close(tag) {
      if (tag === 'title') inTitle = false;
    },
    text(text) {
      if (inTitle && title.length < 1000) title += text;
    },
  });
  // a chapter that is listed twice is read once: otherwise a small file could ask for a large one many times
  const chapters = new Set(order.map((id) => items.get(id)).filter((item) => item?.isChapter));
  return { title: title.trim(), chapters: [...chapters].map((item) => item?.path ?? '') };
}

/** Entries that are encrypted. Fonts are obfuscated in free books too and do not matter. */
async function readEncrypted(archive: Archive): Promise<Set<string>> {
  const names = new Set<string>();
  await parseXml(archive.stream('META-INF/encryption.xml'), 'The e-book', {
    open(tag, attributes) {
      if (tag === 'CipherReference') names.add(resolvePath('', decodePath(attributes.get('URI') ?? '')));
    },
  });
  return names;
}

function decodePath(path: string): string {
  try {
    return decodeURIComponent(path);
  } catch {
    return path;
  }
}
