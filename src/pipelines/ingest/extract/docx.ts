/**
 * Word documents. Headings by their style's name or outline level, lists, tables with merged cells, code by the style's name,
 * foot- and endnotes after the text that refers to them. Left out: deleted text, comments, page headers, the table of contents.
 */
import type { DocumentLimits, ExtractedDocument } from '../document.ts';
import type { Archive } from './archive.ts';
import { DocxStyles } from './docx-styles.ts';
import { corrupt } from './failures.ts';
import { MarkdownWriter } from './markdown-writer.ts';
import { mainPart, type Relation, readRelations, readTitle } from './opc.ts';
import { parseXml, type XmlHandler } from './xml.ts';

type Paragraph = {
  text: string;
  style: string | null;
  outline: number | null;
  list: string | null;
  depth: number;
};
type Table = { rows: string[][]; cell: string[] };

export async function extractDocx(archive: Archive, limits: DocumentLimits): Promise<ExtractedDocument> {
  const part = await mainPart(archive, 'word/document.xml');
  if (!archive.has(part)) throw corrupt('The Word document');
  const relations = await readRelations(archive, part);
  const styles = await DocxStyles.read(archive, relations);
  const writer = new MarkdownWriter(limits.maxCharacters);
  const body = new DocxBody(writer, styles);
  await parseXml(archive.stream(part), 'The Word document', body.handler());
  body.flushCode();
  await writeNotes(archive, relations, writer);
  return writer.finish('docx', (await readTitle(archive)) ?? body.title);
}

/** Paragraphs and tables as they come. Text boxes hold paragraphs within a paragraph, cells hold tables. */
class DocxBody {
  /** The document's first title or heading; null where it has none. */
  title: string | null = null;
  readonly #writer: MarkdownWriter;
  readonly #styles: DocxStyles;
  readonly #paragraphs: Paragraph[] = [];
  readonly #tables: Table[] = [];
  #code: string[] = [];
  /** Depth within an element whose text is not the document's. */
  #skipped = 0;
  #inText = false;

  constructor(writer: MarkdownWriter, styles: DocxStyles) {
    this.#writer = writer;
    this.#styles = styles;
  }

  handler(): XmlHandler {
    return {
      open: (tag, attributes) => this.#open(tag, attributes),
      close: (tag) => this.#close(tag),
      text: (text) => {
        const paragraph = this.#paragraphs.at(-1);
        if (this.#inText && this.#skipped === 0 && paragraph) paragraph.text += text;
      },
    };
  }

  #open(tag: string, attributes: ReadonlyMap<string, string>): void {
    // Fallback repeats what Choice has; rPrChange and its like hold former properties
    if (
      this.#skipped > 0 ||
      tag === 'Fallback' ||
      tag === 'del' ||
      tag === 'moveFrom' ||
      tag === 'pPrChange'
    ) {
      this.#skipped++;
      return;
    }
    const paragraph = this.#paragraphs.at(-1);
    const value = attributes.get('val') ?? null;
    if (tag === 'p') this.#paragraphs.push({ text: '', style: null, outline: null, list: null, depth: 0 });
    else if (tag === 'tbl') {
      this.flushCode();
      this.#tables.push({ rows: [], cell: [] });
    } else if (tag === 'tr') this.#tables.at(-1)?.rows.push([]);
    else if (tag === 't') this.#inText = true;
    else if (!paragraph) this.#openCell(tag, value);
    else if (tag === 'pStyle') paragraph.style = value;
    else if (tag === 'outlineLvl') paragraph.outline = Number(value);
    else if (tag === 'ilvl') paragraph.depth = Math.min(Math.max(Number(value) || 0, 0), 8);
    else if (tag === 'numId') paragraph.list = value;
    else if (tag === 'tab' && !attributes.has('pos')) paragraph.text += '\t';
    else if (tag === 'br' || tag === 'cr') paragraph.text += '\n';
    else if (tag === 'noBreakHyphen') paragraph.text += '-';
    else if (tag === 'footnoteReference' || tag === 'endnoteReference')
      paragraph.text += `[^${noteName(tag, attributes.get('id'))}]`;
  }

  /** A cell over several columns leaves the others empty, so that the columns below keep their place. */
  #openCell(tag: string, value: string | null): void {
    const table = this.#tables.at(-1);
    if (tag !== 'gridSpan' || !table) return;
    const extra = Math.min(Math.max(Number(value) || 1, 1), 64) - 1;
    table.rows.at(-1)?.push(...Array.from({ length: extra }, () => SPANNED));
  }

  #close(tag: string): void {
    if (this.#skipped > 0) {
      this.#skipped--;
      return;
    }
    if (tag === 't') this.#inText = false;
    else if (tag === 'p') this.#endParagraph();
    else if (tag === 'tc') this.#endCell();
    else if (tag === 'tbl') this.#endTable();
  }

  #endParagraph(): void {
    const paragraph = this.#paragraphs.pop();
    if (!paragraph) return;
    const table = this.#tables.at(-1);
    if (table) {
      if (paragraph.text.trim() !== '') table.cell.push(paragraph.text);
      return;
    }
    const { text } = paragraph;
    const kind = this.#styles.kindOf(paragraph.style, paragraph.outline);
    if (kind.kind === 'code') {
      this.#code.push(text);
      return;
    }
    this.flushCode();
    if (text.trim() === '' || kind.kind === 'contents') return;
    if (kind.kind === 'title' || kind.kind === 'heading') {
      this.title ??= text.trim();
      this.#writer.heading(kind.kind === 'title' ? 1 : kind.level, text);
      return;
    }
    const list = paragraph.list ?? this.#styles.numberingOf(paragraph.style);
    if (list === null || list === '0') this.#writer.paragraph(text);
    else this.#writer.item(paragraph.depth, this.#styles.isOrdered(list, paragraph.depth), text);
  }

  #endCell(): void {
    const table = this.#tables.at(-1);
    const row = table?.rows.at(-1);
    if (!table || !row) return;
    // what gridSpan announced stands behind the cell that it belongs to
    let at = row.length;
    while (at > 0 && row[at - 1] === SPANNED) at--;
    row.splice(at, 0, table.cell.join(' '));
    for (let i = at + 1; i < row.length; i++) row[i] = '';
    table.cell = [];
  }

  #endTable(): void {
    const table = this.#tables.pop();
    if (!table) return;
    const outer = this.#tables.at(-1);
    if (outer) outer.cell.push(...table.rows.map((row) => row.filter((cell) => cell !== '').join(', ')));
    else this.#writer.table(table.rows);
  }

  /** Each line of code is a paragraph of its own in Word. */
  flushCode(): void {
    if (this.#code.length === 0) return;
    this.#writer.code(this.#code.join('\n'));
    this.#code = [];
  }
}

/** Stands for a column that a spanning cell covers, until that cell is complete; no text can be this. */
const SPANNED = '\0';

const noteName = (tag: string, id: string | undefined): string =>
  `${tag.startsWith('end') ? 'e' : ''}${(id ?? '').replace(/\D/g, '').slice(0, 9)}`;

async function writeNotes(
  archive: Archive,
  relations: ReadonlyMap<string, Relation>,
  writer: MarkdownWriter,
): Promise<void> {
  for (const { type, target } of relations.values()) {
    if (type !== 'footnotes' && type !== 'endnotes') continue;
    let note: { name: string; text: string; isReal: boolean } | null = null;
    let inText = false;
    await parseXml(archive.stream(target), 'The Word document', {
      open(tag, attributes) {
        if (tag === 'footnote' || tag === 'endnote')
          // separators between text and notes are notes too, with a type
          note = { name: noteName(tag, attributes.get('id')), text: '', isReal: !attributes.has('type') };
        else if (tag === 't') inText = true;
        else if (tag === 'tab' || tag === 'br') if (note) note.text += ' ';
      },
      close(tag) {
        if (tag === 't') inText = false;
        else if (tag === 'p' && note) note.text += ' ';
        else if ((tag === 'footnote' || tag === 'endnote') && note) {
          if (note.isReal && note.text.trim() !== '') writer.paragraph(`[^${note.name}]: ${note.text}`);
          note = null;
        }
      },
      text(text) {
        if (inText && note) note.text += text;
      },
    });
  }
}
