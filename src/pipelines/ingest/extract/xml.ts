/** XML as events, read while it is inflated: no part of a file is ever held as a tree. */
import { TextDecoder } from 'node:util';
import { SaxesParser } from 'saxes';
import { encodingOf } from './archive.ts';
import { corrupt } from './failures.ts';

export type XmlHandler = {
  /** @param name without its prefix; attributes by their name, with and without prefix (the first of two wins). */
  open?(name: string, attributes: ReadonlyMap<string, string>): void;
  close?(name: string): void;
  text?(text: string): void;
};

/** Deeper than any real document; a parser's stack for each level is memory that a file could ask for without bound. */
const MAX_DEPTH = 1000;

const local = (name: string): string => name.slice(name.indexOf(':') + 1);

/**
 * Entities are the five of XML and numbers: a document's own are not expanded, external ones are not fetched.
 *
 * @throws DocumentError corrupt when it is not well-formed
 */
export async function parseXml(
  source: AsyncIterable<Uint8Array>,
  what: string,
  handler: XmlHandler,
): Promise<void> {
  const parser = new SaxesParser({ position: false });
  let depth = 0;
  parser.on('error', (error) => {
    throw corrupt(what, error);
  });
  parser.on('opentag', (tag) => {
    if (++depth > MAX_DEPTH) throw corrupt(what, new Error('nested too deeply'));
    const attributes = new Map<string, string>();
    for (const [name, value] of Object.entries(tag.attributes)) {
      attributes.set(name, String(value));
      const short = local(name);
      if (!attributes.has(short)) attributes.set(short, String(value));
    }
    handler.open?.(local(tag.name), attributes);
  });
  parser.on('closetag', (tag) => {
    depth--;
    handler.close?.(local(tag.name));
  });
  parser.on('text', (text) => handler.text?.(text));
  parser.on('cdata', (text) => handler.text?.(text));

  let decoder: TextDecoder | null = null;
  for await (const chunk of source) {
    decoder ??= new TextDecoder(encodingOf(chunk));
    parser.write(decoder.decode(chunk, { stream: true }));
  }
  if (decoder === null) return;
  parser.write(decoder.decode());
  parser.close();
}
