/** Spreadsheets: a sheet is a page, its name a heading. Rows without a gap are one table, whose first row is the header. */
import type { DocumentLimits, ExtractedDocument } from '../document.ts';
import type { Archive } from './archive.ts';
import { corrupt, tooLarge } from './failures.ts';
import { MarkdownWriter } from './markdown-writer.ts';
import { mainPart, readRelations, readTitle, relationOf } from './opc.ts';
import {
  columnOf,
  type DateStyle,
  dateOf,
  numberOf,
  readDateStyles,
  readSharedStrings,
} from './xlsx-cells.ts';
import { parseXml } from './xml.ts';

type Workbook = {
  readonly strings: readonly string[];
  readonly dates: ReadonlyMap<number, DateStyle>;
  readonly since1904: boolean;
};

export async function extractXlsx(
  archive: Archive,
  limits: DocumentLimits,
  signal?: AbortSignal,
): Promise<ExtractedDocument> {
  const part = await mainPart(archive, 'xl/workbook.xml');
  if (!archive.has(part)) throw corrupt('The spreadsheet');
  const relations = await readRelations(archive, part);
  const sheets: { name: string; part: string }[] = [];
  let since1904 = false;
  await parseXml(archive.stream(part), 'The spreadsheet', {
    open(tag, attributes) {
      if (tag === 'workbookPr') since1904 = /^(1|true)$/.test(attributes.get('date1904') ?? '');
      const relation = tag === 'sheet' ? relationOf(attributes, relations) : null;
      if (relation) sheets.push({ name: attributes.get('name') ?? '', part: relation.target });
    },
  });
  if (sheets.length > limits.maxPages)
    throw tooLarge(`The spreadsheet has more than ${limits.maxPages} sheets`);
  let strings: readonly string[] = [];
  let dates: ReadonlyMap<number, DateStyle> = new Map();
  for (const { type, target } of relations.values()) {
    if (type === 'sharedStrings') strings = await readSharedStrings(archive, target, limits.maxCharacters);
    if (type === 'styles') dates = await readDateStyles(archive, target);
  }
  const writer = new MarkdownWriter(limits.maxCharacters);
  for (const sheet of sheets) {
    signal?.throwIfAborted();
    writer.page();
    await writeSheet(archive, sheet, { strings, dates, since1904 }, writer, limits);
  }
  return writer.finish('xlsx', await readTitle(archive));
}

type Cell = { column: number; type: string; style: number; value: string };

async function writeSheet(
  archive: Archive,
  sheet: { readonly name: string; readonly part: string },
  workbook: Workbook,
  writer: MarkdownWriter,
  limits: DocumentLimits,
): Promise<void> {
  /** Values by column: a row may have one in its last column alone. */
  let rows: Map<number, string>[] = [];
  let row: Map<number, string> | null = null;
  let nextColumn = 0;
  let cell: Cell | null = null;
  let lastRow = 0;
  let takesText = false;
  let held = 0;
  // an empty sheet has no heading: its name alone would be text where there is none
  let isNamed = false;

  const flush = (): void => {
    if (rows.length === 0) return;
    if (!isNamed) writer.heading(2, sheet.name);
    isNamed = true;
    writer.table(compact(rows));
    rows = [];
    held = 0;
  };
  const endRow = (): void => {
    if (!row) return;
    if (row.size > 0) rows.push(row);
    else flush();
    row = null;
  };

  await parseXml(archive.stream(sheet.part), 'The spreadsheet', {
    open(tag, attributes) {
      if (tag === 'row') {
        const number = Number(attributes.get('r')) || lastRow + 1;
        if (number > lastRow + 1) flush();
        lastRow = number;
        row = new Map();
        nextColumn = 0;
      } else if (tag === 'c' && row) {
        const column = columnOf(attributes.get('r') ?? '') ?? nextColumn;
        nextColumn = column + 1;
        const style = Number(attributes.get('s')) || 0;
        cell = { column, type: attributes.get('t') ?? 'n', style, value: '' };
      } else if (tag === 'v' || tag === 't') takesText = true;
    },
    close(tag) {
      if (tag === 'v' || tag === 't') takesText = false;
      else if (tag === 'c' && row && cell) {
        const value = shown(cell, workbook);
        if (value !== '') {
          row.set(cell.column, value);
          held += value.length + 1;
          if (held > limits.maxCharacters)
            throw tooLarge(`The sheet has more than ${limits.maxCharacters} characters`);
        }
        cell = null;
      } else if (tag === 'row') endRow();
    },
    text(text) {
      if (takesText && cell) cell.value += text;
    },
  });
  endRow();
  flush();
}

/** Rows of the columns that any of them has a value in. */
function compact(rows: readonly ReadonlyMap<number, string>[]): string[][] {
  const columns = [...new Set(rows.flatMap((row) => [...row.keys()]))].sort((a, b) => a - b);
  return rows.map((row) => columns.map((column) => row.get(column) ?? ''));
}

function shown(cell: Cell, { strings, dates, since1904 }: Workbook): string {
  const { type, value } = cell;
  if (type === 's') return strings[Number(value)] ?? '';
  if (type === 'b') return value === '1' ? 'TRUE' : 'FALSE';
  if (type !== 'n' || value === '') return value;
  const style = dates.get(cell.style);
  return (style && dateOf(Number(value), style, since1904)) || numberOf(value);
}
