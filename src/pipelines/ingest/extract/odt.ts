/** OpenDocument texts. Headings, lists, tables, notes. Left out: deleted text, comments, indexes, page headers. */
import type { DocumentLimits, ExtractedDocument } from '../document.ts';
import type { Archive } from './archive.ts';
import { corrupt, password } from './failures.ts';
import { MarkdownWriter } from './markdown-writer.ts';
import { readTitle } from './opc.ts';
import { parseXml } from './xml.ts';

/** Their text is not the document's, or stands elsewhere in it already. */
const SKIPPED = new Set([
  'tracked-changes',
  'annotation',
  'annotation-end',
  'table-of-content',
  'alphabetical-index',
  'illustration-index',
  'table-index',
  'forms',
  'sequence-decls',
  'variable-decls',
  'desc',
]);

/** Repeated cells and blanks are counted, not written out: a file may claim a million of them. */
const MAX_REPEAT = 64;

export async function extractOdt(archive: Archive, limits: DocumentLimits): Promise<ExtractedDocument> {
  if (!archive.has('content.xml')) throw corrupt('The OpenDocument text');
  if (await isEncrypted(archive)) throw password('The OpenDocument text');
  const writer = new MarkdownWriter(limits.maxCharacters);
  const ordered = await readOrderedLists(archive);
  const codeStyles = new Set<string>();
  const paragraphs: { text: string; level: number | null; isCode: boolean }[] = [];
  const lists: { isOrdered: boolean }[] = [];
  const tables: { rows: string[][]; cell: string[] }[] = [];
  const notes: { name: string; text: string[] }[] = [];
  let note: { name: string; text: string[] } | null = null;
  let code: string[] = [];
  let skipped = 0;
  let inCitation = false;
  let firstHeading: string | null = null;

  const flushCode = (): void => {
    if (code.length > 0) writer.code(code.join('\n'));
    code = [];
  };
  const endParagraph = (): void => {
    const paragraph = paragraphs.pop();
    if (!paragraph) return;
    const { text, level } = paragraph;
    if (note) {
      note.text.push(text);
      return;
    }
    const cell = tables.at(-1)?.cell;
    if (cell) {
      if (text.trim() !== '') cell.push(text);
      return;
    }
    if (paragraph.isCode) {
      code.push(text);
      return;
    }
    flushCode();
    if (level !== null) {
      firstHeading ??= text.trim() || null;
      writer.heading(level, text);
    } else if (lists.length > 0) {
      const list = lists.at(-1);
      writer.item(lists.length - 1, list?.isOrdered ?? false, text);
    } else writer.paragraph(text);
  };

  const add = (text: string): void => {
    const paragraph = paragraphs.at(-1);
    if (paragraph && !inCitation) paragraph.text += text;
  };

  await parseXml(archive.stream('content.xml'), 'The OpenDocument text', {
    open(tag, attributes) {
      if (skipped > 0 || SKIPPED.has(tag)) skipped++;
      else if (tag === 'style') {
        const parent = `${attributes.get('name') ?? ''} ${attributes.get('parent-style-name') ?? ''}`;
        if (/preformatted|code|verbatim/i.test(parent)) codeStyles.add(attributes.get('name') ?? '');
      } else if (tag === 'p' || tag === 'h') {
        const style = attributes.get('style-name') ?? '';
        const level =
          tag === 'h' ? Number(attributes.get('outline-level')) || 1 : style === 'Title' ? 1 : null;
        const isCode = codeStyles.has(style) || /^Preformatted|^Source/.test(style);
        paragraphs.push({ text: '', level, isCode });
      } else if (tag === 'list') {
        const style = attributes.get('style-name');
        const isOrdered = style === undefined ? (lists.at(-1)?.isOrdered ?? false) : ordered.has(style);
        lists.push({ isOrdered });
      } else if (tag === 'table') {
        flushCode();
        tables.push({ rows: [], cell: [] });
      } else if (tag === 'table-row') tables.at(-1)?.rows.push([]);
      else if (tag === 'table-cell' || tag === 'covered-table-cell') {
        const repeat = Math.min(Number(attributes.get('number-columns-repeated')) || 1, MAX_REPEAT);
        const row = tables.at(-1)?.rows.at(-1);
        for (let i = 1; i < repeat; i++) row?.push('');
      } else if (tag === 's') add(' '.repeat(Math.min(Number(attributes.get('c')) || 1, MAX_REPEAT)));
      else if (tag === 'tab') add('\t');
      else if (tag === 'line-break') add('\n');
      else if (tag === 'note-citation') inCitation = true;
      else if (tag === 'note-body') {
        const name = String(notes.length + 1);
        add(`[^${name}]`);
        note = { name, text: [] };
      }
    },
    close(tag) {
      if (skipped > 0) {
        skipped--;
        return;
      }
      if (tag === 'p' || tag === 'h') endParagraph();
      else if (tag === 'list') lists.pop();
      else if (tag === 'note-citation') inCitation = false;
      else if (tag === 'note-body' && note) {
        notes.push(note);
        note = null;
      } else if (tag === 'table-cell' || tag === 'covered-table-cell') {
        const table = tables.at(-1);
        table?.rows.at(-1)?.push(table.cell.join(' '));
        if (table) table.cell = [];
      } else if (tag === 'table') {
        const table = tables.pop();
        const outer = tables.at(-1);
        if (table && outer) outer.cell.push(...table.rows.map((row) => row.filter(Boolean).join(', ')));
        else if (table) writer.table(table.rows);
      }
    },
    text(text) {
      if (skipped === 0) add(text.replace(/\s+/g, ' '));
    },
  });
  flushCode();
  for (const { name, text } of notes) writer.paragraph(`[^${name}]: ${text.join(' ')}`);
  return writer.finish('odt', (await readTitle(archive, 'meta.xml')) ?? firstHeading);
}

/** Names of the list styles that number their outermost items. Those of LibreOffice stand with the text, those of Word apart. */
async function readOrderedLists(archive: Archive): Promise<Set<string>> {
  const ordered = new Set<string>();
  for (const part of ['styles.xml', 'content.xml']) {
    let style = '';
    await parseXml(archive.stream(part), 'The OpenDocument text', {
      open(tag, attributes) {
        if (tag === 'list-style') style = attributes.get('name') ?? '';
        else if (tag === 'list-level-style-number' && attributes.get('level') === '1') ordered.add(style);
      },
    });
  }
  return ordered;
}

async function isEncrypted(archive: Archive): Promise<boolean> {
  let found = false;
  await parseXml(archive.stream('META-INF/manifest.xml'), 'The OpenDocument text', {
    open(tag) {
      if (tag === 'encryption-data') found = true;
    },
  });
  return found;
}
