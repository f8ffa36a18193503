/** Tables of text. Narrow ones become one table; of wide ones each row becomes lines of `header: value`, which can be cut. */
import type { DocumentHints, DocumentLimits, ExtractedDocument } from '../document.ts';
import { charsetOf, decodeText } from './charset.ts';
import { tooLarge } from './failures.ts';
import { MarkdownWriter, oneLine } from './markdown-writer.ts';

/** More columns or longer rows than these are read badly as a table, and cut badly. */
const MAX_TABLE_COLUMNS = 8;
const MAX_TABLE_ROW = 240;

const DELIMITERS = [',', ';', '\t', '|'] as const;

export function extractCsv(
  bytes: Uint8Array,
  hints: DocumentHints,
  limits: DocumentLimits,
): ExtractedDocument {
  const text = decodeText(bytes, charsetOf(hints.contentType));
  const rows = [...parseRows(text, delimiterOf(text) ?? ',', limits.maxCharacters)].filter((row) =>
    row.some((cell) => cell.trim() !== ''),
  );
  const writer = new MarkdownWriter(limits.maxCharacters);
  const columns = rows.reduce((most, row) => Math.max(most, row.length), 0);
  const characters = rows.reduce((sum, row) => sum + row.reduce((n, cell) => n + cell.length + 3, 0), 0);
  if (columns <= MAX_TABLE_COLUMNS && characters <= MAX_TABLE_ROW * rows.length) {
    writer.table(rows);
    return writer.finish('csv', null);
  }
  const header = (rows[0] ?? []).map((cell) => oneLine(cell));
  for (const row of rows.slice(1)) {
    const lines: string[] = [];
    for (const [i, cell] of row.entries()) {
      const value = oneLine(cell);
      if (value !== '') lines.push(`${header[i] || `Column ${i + 1}`}: ${value}`);
    }
    writer.paragraph(lines.join('\n'));
  }
  // a header alone is what the file says
  if (rows.length === 1) writer.paragraph(header.filter((cell) => cell !== '').join('\n'));
  return writer.finish('csv', null);
}

/**
 * The delimiter by which the first lines fall into the same number of fields, at least two; null where there is none.
 */
export function delimiterOf(text: string): string | null {
  const sample = text.slice(0, 16_384);
  let best: { delimiter: string; score: number } | null = null;
  for (const delimiter of DELIMITERS) {
    const rows = [...parseRows(sample, delimiter, sample.length + 1)].slice(0, 40);
    // the sample's last row may be cut
    if (text.length > sample.length && rows.length > 1) rows.pop();
    const full = rows.filter((row) => row.length > 1 || row[0]?.trim() !== '');
    const width = full[0]?.length ?? 0;
    if (width < 2) continue;
    const same = full.filter((row) => row.length === width).length / full.length;
    const score = same * (1 + Math.log2(width));
    if (same >= 0.8 && (best === null || score > best.score)) best = { delimiter, score };
  }
  return best?.delimiter ?? null;
}

/** Rows as RFC 4180 has them, and what is close to it: any line end, a quote within a bare field, a quote that is never closed. */
function* parseRows(text: string, delimiter: string, maxCharacters: number): Generator<string[]> {
  let row: string[] = [];
  let at = 0;
  let fields = 0;
  while (at < text.length) {
    // a field costs memory even when it is empty
    if (++fields > maxCharacters) throw tooLarge('The table has too many fields');
    let field: string;
    if (text[at] === '"') [field, at] = quoted(text, at);
    else field = '';
    const end = endOfField(text, at, delimiter);
    row.push(field + text.slice(at, end));
    at = end;
    if (text[at] === delimiter) {
      at++;
      if (at === text.length) row.push('');
      continue;
    }
    if (at < text.length) at += text[at] === '\r' && text[at + 1] === '\n' ? 2 : 1;
    yield row;
    row = [];
  }
  if (row.length > 0) yield row;
}

function endOfField(text: string, from: number, delimiter: string): number {
  let at = from;
  while (at < text.length) {
    const char = text[at];
    if (char === delimiter || char === '\n' || char === '\r') break;
    at++;
  }
  return at;
}

/** A quoted field, and where it ends. */
function quoted(text: string, from: number): [string, number] {
  const parts: string[] = [];
  let at = from + 1;
  for (;;) {
    const quote = text.indexOf('"', at);
    if (quote === -1) return [parts.join('') + text.slice(at), text.length];
    parts.push(text.slice(at, quote));
    if (text[quote + 1] !== '"') return [parts.join(''), quote + 1];
    parts.push('"');
    at = quote + 2;
  }
}
