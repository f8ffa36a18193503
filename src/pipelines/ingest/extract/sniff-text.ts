/** Which kind of text a text is. */
import type { DocumentFormat, DocumentHints } from '../document.ts';
import { charsetOf, decodeText } from './charset.ts';
import { delimiterOf } from './csv.ts';

const BY_EXTENSION: Readonly<Record<string, DocumentFormat>> = {
  html: 'html',
  htm: 'html',
  xhtml: 'html',
  md: 'markdown',
  markdown: 'markdown',
  mdx: 'markdown',
  csv: 'csv',
  tsv: 'csv',
  json: 'json',
  jsonl: 'json',
  ndjson: 'json',
  geojson: 'json',
};

const BY_TYPE: readonly (readonly [RegExp, DocumentFormat])[] = [
  [/^(text\/html|application\/xhtml\+xml)/i, 'html'],
  [/^text\/(x-)?markdown/i, 'markdown'],
  [/^text\/(csv|tab-separated-values)/i, 'csv'],
  [/^application\/([\w.-]+\+)?(json|x-ndjson)/i, 'json'],
];

/** What somebody says that it is; null where nobody says anything that is more than `text`. */
function hinted({ fileName, contentType }: DocumentHints): DocumentFormat | null {
  const extension = /\.([a-z0-9]{1,10})$/i.exec(fileName ?? '')?.[1]?.toLowerCase() ?? '';
  // a server's text/html stands for pages that have no name; a name's ending was chosen for this file
  return BY_EXTENSION[extension] ?? BY_TYPE.find(([type]) => type.test(contentType ?? ''))?.[1] ?? null;
}

const MARKUP =
  /<(!doctype html|html|head|body|title|div|p|h[1-6]|table|ul|ol|article|section|meta|span|a)[\s>/]/i;

/** @param bytes of a file that is text, in whatever charset */
export function textFormat(bytes: Uint8Array, hints: DocumentHints): DocumentFormat {
  // enough to tell; a character cut at its end does not matter
  const sample = decodeText(bytes.subarray(0, 65_536), charsetOf(hints.contentType)).trimStart();
  const hint = hinted(hints);
  if (/^(<!--[\s\S]{0,5000}?-->\s*|<\?xml[^>]{0,500}>\s*)*<(!doctype html|html|head|body)[\s>]/i.test(sample))
    return 'html';
  if (isJson(sample, hint)) return 'json';
  if (hint === 'html' && MARKUP.test(sample.slice(0, 16_384))) return 'html';
  if (hint === 'markdown') return 'markdown';
  if (hint === 'csv') return 'csv';
  const hasName = /\.[a-z0-9]{1,10}$/i.test(hints.fileName ?? '');
  if (/^<[a-z]/i.test(sample) && countMatches(sample.slice(0, 4096), new RegExp(MARKUP, 'gi')) >= 3)
    return 'html';
  if (hasName) return 'text';
  if (markdownSigns(sample) >= 3) return 'markdown';
  return sample.split('\n', 4).length >= 3 && looksTabular(sample) ? 'csv' : 'text';
}

/** A beginning that can be nothing else, or what is called JSON and begins like it. */
function isJson(sample: string, hint: DocumentFormat | null): boolean {
  if (!/^[[{"\d-]|^(true|false|null)\b/.test(sample)) return false;
  if (hint === 'json') return true;
  return /^(\{\s*("(?:[^"\\\n]|\\.){0,500}"\s*:|\}\s*$)|\[\s*(\{\s*"|\[\s*["\d-]))/.test(sample);
}

function markdownSigns(sample: string): number {
  const text = sample.slice(0, 16_384);
  return (
    Math.min(countMatches(text, /^#{1,6} \S/gm), 2) +
    Math.min(countMatches(text, /^```/gm), 1) +
    Math.min(countMatches(text, /^ {0,3}[-*] \S/gm), 1) +
    Math.min(countMatches(text, /\[[^\]\n]{1,200}\]\([^)\s]{1,500}\)/g), 1) +
    Math.min(countMatches(text, /\*\*\S[^*\n]{0,200}\*\*/g), 1) +
    Math.min(countMatches(text, /^\|[^\n]{1,500}\|\s*\n\|[\s:|-]{3,500}$/gm), 2)
  );
}

/** Commas part fields in prose too, but not the same number of them in each line. */
const looksTabular = (sample: string): boolean => {
  const delimiter = delimiterOf(sample);
  return (
    delimiter !== null &&
    (delimiter !== ',' ||
      countMatches(sample.slice(0, 8192), /, /g) * 2 < countMatches(sample.slice(0, 8192), /,/g))
  );
};

const countMatches = (text: string, pattern: RegExp): number => text.match(pattern)?.length ?? 0;
