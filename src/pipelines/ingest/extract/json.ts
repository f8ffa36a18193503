/**
 * JSON as lines of `path: value`, so that each passage says where its values stand. Values of one object stand together; objects are
 * parted by an empty line. Also JSON of one value a line (NDJSON).
 */
import type { DocumentHints, DocumentLimits, ExtractedDocument } from '../document.ts';
import { charsetOf, decodeText } from './charset.ts';
import { cleanCharacters, cleanText } from './clean.ts';
import { corrupt, tooLarge } from './failures.ts';

/** Of a longer path its end is shown: with each value repeating it, the text would grow with the square of the depth. */
const MAX_PATH = 200;

export function extractJson(
  bytes: Uint8Array,
  hints: DocumentHints,
  limits: DocumentLimits,
): ExtractedDocument {
  const source = decodeText(bytes, charsetOf(hints.contentType)).replace(/^\ufeff/, '');
  const value = parseJson(source);
  if (value === undefined) throw corrupt('The JSON file');
  return {
    format: 'json',
    title: null,
    text: cleanText(writeValue(value, limits.maxCharacters)),
    markup: 'plain',
    pageStarts: null,
  };
}

/** A JSON value, an array of them from one a line, or undefined. */
export function parseJson(source: string): unknown {
  try {
    return parseExactly(source);
  } catch {
    const lines = source.split('\n').filter((line) => line.trim() !== '');
    if (lines.length < 2) return undefined;
    try {
      return lines.map((line) => parseExactly(line));
    } catch {
      return undefined;
    }
  }
}

/** Numbers that a double cannot hold stay as they are written: an order number must not change its last digits. */
function parseExactly(source: string): unknown {
  if (!/\d{16}/.test(source)) return JSON.parse(source);
  const exact = (_key: string, value: unknown, context?: { source?: string }): unknown =>
    typeof value === 'number' && context?.source !== undefined && String(value) !== context.source
      ? context.source
      : value;
  try {
    return JSON.parse(source, exact as Parameters<typeof JSON.parse>[1]);
  } catch (error) {
    // a reviver descends by recursion: what is nested too deeply for it is read without
    if (error instanceof RangeError) return JSON.parse(source);
    throw error;
  }
}

type Pending = { readonly path: string; readonly value: unknown } | null;

/** With a stack of its own, since a file may be nested deeper than ours. Null on the stack is an empty line. */
function writeValue(root: unknown, maxCharacters: number): string {
  const lines: string[] = [];
  let length = 0;
  const put = (line: string): void => {
    length += line.length + 1;
    if (length > maxCharacters) throw tooLarge(`The file has more than ${maxCharacters} characters`);
    lines.push(line);
  };
  const stack: Pending[] = [{ path: '', value: root }];
  while (stack.length > 0) {
    const next = stack.pop();
    if (next === undefined) break;
    if (next === null) {
      if (lines.at(-1) !== '') put('');
      continue;
    }
    const { path, value } = next;
    if (value === null || typeof value !== 'object') {
      if (value !== null && value !== '') put(path === '' ? shown(value) : `${path}: ${shown(value)}`);
      continue;
    }
    const children = Object.entries(value).map(([name, child]) => ({
      path: Array.isArray(value)
        ? extend(`${path}[${name}]`)
        : extend(path === '' ? name : `${path}.${name}`),
      value: child,
    }));
    // values before objects, and an empty line around each object: what belongs together stands together
    const isNested = (child: unknown): boolean => child !== null && typeof child === 'object';
    for (const child of children.filter((c) => isNested(c.value)).reverse()) stack.push(null, child, null);
    for (const child of children.filter((c) => !isNested(c.value)).reverse()) stack.push(child);
  }
  return lines.join('\n');
}

const extend = (path: string): string => (path.length <= MAX_PATH ? path : `…${path.slice(1 - MAX_PATH)}`);

/** A text's own line ends stay, indented. */
const shown = (value: unknown): string => cleanCharacters(String(value)).trimEnd().replaceAll('\n', '\n  ');
