/** Web pages as Markdown. */
import type { DocumentHints, DocumentLimits, ExtractedDocument } from '../document.ts';
import { charsetOf, decodeText } from './charset.ts';
import { convertHtml } from './html-blocks.ts';
import { MarkdownWriter } from './markdown-writer.ts';

/** A page's own word on its charset stands in its first kilobyte or not at all. */
function declaredWithin(bytes: Uint8Array): string | null {
  const head = new TextDecoder('latin1').decode(bytes.subarray(0, 2048));
  return /<meta[^>]{0,200}charset\s*=\s*["']?([\w.:-]{1,40})/i.exec(head)?.[1] ?? xmlEncoding(head);
}

const xmlEncoding = (head: string): string | null =>
  /<\?xml[^>]{0,100}encoding\s*=\s*["']([\w.:-]{1,40})/i.exec(head)?.[1] ?? null;

export function extractHtml(
  bytes: Uint8Array,
  hints: DocumentHints,
  limits: DocumentLimits,
): ExtractedDocument {
  const html = decodeText(bytes, charsetOf(hints.contentType) ?? declaredWithin(bytes));
  const writer = new MarkdownWriter(limits.maxCharacters);
  const { title, heading } = convertHtml(html, writer);
  return writer.finish('html', title ?? heading);
}
