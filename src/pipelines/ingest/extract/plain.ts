/** Files that are text already. */
import type { DocumentHints, ExtractedDocument } from '../document.ts';
import { charsetOf, decodeText } from './charset.ts';
import { cleanText } from './clean.ts';
import { oneLine } from './markdown-writer.ts';

/** Plain text has no title. */
export function extractText(bytes: Uint8Array, hints: DocumentHints): ExtractedDocument {
  const text = cleanText(decodeText(bytes, charsetOf(hints.contentType)));
  return { format: 'text', title: null, text, markup: 'plain', pageStarts: null };
}

/** Markdown stays as it is. Its title is that of the front matter, else the first heading. */
export function extractMarkdown(bytes: Uint8Array, hints: DocumentHints): ExtractedDocument {
  const text = cleanText(decodeText(bytes, charsetOf(hints.contentType)));
  const head = text.slice(0, 20_000);
  const matter = /^---\n([\s\S]{0,10000}?)\n---(?:\n|$)/.exec(head)?.[1];
  const named = matter === undefined ? null : /^title:[ \t]*(.+)$/m.exec(matter)?.[1];
  const heading = /^#{1,2}[ \t]+(.+)$/m.exec(head)?.[1] ?? /^(.+)\n=+[ \t]*$/m.exec(head)?.[1];
  const title = oneLine((named ?? heading ?? '').replace(/^["']|["']$|[ \t]+#+[ \t]*$/g, '')).slice(0, 500);
  return {
    format: 'markdown',
    title: title === '' ? null : title.toWellFormed(),
    text,
    markup: 'markdown',
    pageStarts: null,
  };
}
