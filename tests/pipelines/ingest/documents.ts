/** Documents and archives for the tests of extraction. */
import { readFileSync } from 'node:fs';
import { crc32, deflateRawSync, deflateSync } from 'node:zlib';
import {
  DOCUMENT_LIMITS,
  DocumentError,
  type DocumentHints,
  type DocumentLimits,
  type ExtractedDocument,
} from '../../../src/pipelines/ingest/document.ts';
import { extractDocument } from '../../../src/pipelines/ingest/extract/extract.ts';
import type { PdfEngineName } from '../../../src/pipelines/ingest/extract/pdf-engine.ts';

export const fixture = (name: string): Uint8Array =>
  new Uint8Array(readFileSync(new URL(`../../fixtures/documents/${name}`, import.meta.url)));

export const NO_HINTS: DocumentHints = { fileName: null, contentType: null };

/** Extracts, and checks what holds of every document. */
export async function extract(
  content: Uint8Array | string,
  hints: Partial<DocumentHints> = {},
  limits: Partial<DocumentLimits> = {},
  engine?: PdfEngineName,
): Promise<ExtractedDocument> {
  const bytes = typeof content === 'string' ? new TextEncoder().encode(content) : content;
  const all = { ...DOCUMENT_LIMITS, ...limits };
  const document = await extractDocument(bytes, { ...NO_HINTS, ...hints }, all, undefined, engine);
  mustBeWellFormed(document);
  return document;
}

/** Throws where a document breaks the contract of `document.ts`. */
export function mustBeWellFormed({ text, title, pageStarts }: ExtractedDocument): void {
  if (!text.isWellFormed() || !(title ?? '').isWellFormed()) throw new Error('a lone surrogate');
  if (text.includes('\0') || text.includes('\r') || title === '')
    throw new Error('NUL, CR or an empty title');
  for (const [i, start] of (pageStarts ?? []).entries()) {
    if (i === 0 && start !== 0) throw new Error(`the first page starts at ${start}`);
    if (start > text.length || start < (pageStarts?.[i - 1] ?? 0))
      throw new Error(`page ${i + 1} starts at ${start}`);
  }
}

/** The code with which a document fails. */
export async function codeOf(attempt: Promise<unknown>): Promise<string> {
  try {
    await attempt;
  } catch (error) {
    if (!(error instanceof DocumentError)) throw error;
    // every reason is two sentences at least: what is wrong, and what to do
    if (!/\. [A-Z].*\.$/s.test(error.message)) throw new Error(`no next step: ${error.message}`);
    return error.code;
  }
  return 'none';
}

export type ZipEntry = {
  readonly name: string;
  readonly content: Uint8Array | string;
  /** What the archive claims it inflates to, where that is a lie. */
  readonly claimed?: number;
  readonly encrypted?: boolean;
};

/** A zip archive, honest or not. */
export function zip(entries: readonly ZipEntry[]): Uint8Array {
  const parts: Buffer[] = [];
  const directory: Buffer[] = [];
  let offset = 0;
  for (const { name, content, claimed, encrypted } of entries) {
    const raw = Buffer.from(content as Uint8Array);
    const data = deflateRawSync(raw);
    const title = Buffer.from(name);
    const common = Buffer.alloc(26);
    common.writeUInt16LE(20, 0);
    common.writeUInt16LE(encrypted ? 1 : 0, 2);
    common.writeUInt16LE(8, 4);
    common.writeUInt32LE(crc32(raw), 10);
    common.writeUInt32LE(data.length, 14);
    common.writeUInt32LE(claimed ?? raw.length, 18);
    common.writeUInt16LE(title.length, 22);
    const local = Buffer.concat([Buffer.from('PK\x03\x04'), common, title, data]);
    const tail = Buffer.alloc(14);
    tail.writeUInt32LE(offset, 10);
    directory.push(Buffer.concat([Buffer.from('PK\x01\x02\x14\0'), common, tail, title]));
    parts.push(local);
    offset += local.length;
  }
  const listing = Buffer.concat(directory);
  const end = Buffer.alloc(22);
  end.write('PK\x05\x06', 'latin1');
  end.writeUInt16LE(entries.length, 8);
  end.writeUInt16LE(entries.length, 10);
  end.writeUInt32LE(listing.length, 12);
  end.writeUInt32LE(offset, 16);
  return new Uint8Array(Buffer.concat([...parts, listing, end]));
}

const W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"';

/** A Word document of this body. */
export const docx = (body: string, more: readonly ZipEntry[] = []): Uint8Array =>
  zip([
    { name: 'word/document.xml', content: `<w:document ${W}><w:body>${body}</w:body></w:document>` },
    ...more,
  ]);

export const paragraph = (text: string): string => `<w:p><w:r><w:t>${text}</w:t></w:r></w:p>`;

/** A PDF of these objects, the first being 1; with a table of where they stand. */
export function pdf(objects: readonly string[]): Uint8Array {
  let body = '%PDF-1.4\n';
  const places: number[] = [];
  for (const [i, object] of objects.entries()) {
    places.push(body.length);
    body += `${i + 1} 0 obj\n${object}\nendobj\n`;
  }
  const table = places.map((place) => `${String(place).padStart(10, '0')} 00000 n \n`).join('');
  const end = `xref\n0 ${objects.length + 1}\n0000000000 65535 f \n${table}`;
  const trailer = `trailer << /Size ${objects.length + 1} /Root 1 0 R >>\nstartxref\n${body.length}\n%%EOF\n`;
  return new TextEncoder().encode(body + end + trailer);
}

/** A PDF whose pages hold these lines. */
export function pdfOfPages(pages: readonly (readonly string[])[]): Uint8Array {
  const kids = pages.map((_, i) => `${4 + 2 * i} 0 R`).join(' ');
  const objects = [
    '<< /Type /Catalog /Pages 2 0 R >>',
    `<< /Type /Pages /Kids [${kids}] /Count ${pages.length} /MediaBox [0 0 612 792] >>`,
    '<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>',
  ];
  for (const [i, lines] of pages.entries()) {
    const text = lines.map((line) => `(${line.replace(/[()\\]/g, '\\$&')}) Tj T*`).join('\n');
    const content = `BT /F1 11 Tf 14 TL 72 720 Td\n${text}\nET`;
    objects.push(
      `<< /Type /Page /Parent 2 0 R /Contents ${5 + 2 * i} 0 R /Resources << /Font << /F1 3 0 R >> >> >>`,
      `<< /Length ${content.length} >>\nstream\n${content}\nendstream`,
    );
  }
  return pdf(objects);
}

/** A PDF of one page that draws so many lines, each an object that PDFium keeps. */
export function pdfOfStrokes(count: number): Uint8Array {
  const content = `${deflateSync('0 0 m 1 1 l S\n'.repeat(count), { level: 1 }).toString('hex')}>`;
  return pdf([
    '<< /Type /Catalog /Pages 2 0 R >>',
    '<< /Type /Pages /Kids [3 0 R] /Count 1 /MediaBox [0 0 612 792] >>',
    '<< /Type /Page /Parent 2 0 R /Contents 4 0 R >>',
    `<< /Length ${content.length} /Filter [/ASCIIHexDecode /FlateDecode] >>\nstream\n${content}\nendstream`,
  ]);
}

/** A PDF of one line whose page inflates to so many megabytes of blanks. */
export function pdfThatInflates(megabytes: number): Uint8Array {
  const blanks = Buffer.alloc(megabytes * 1024 * 1024, ' ');
  blanks.write('BT /F1 11 Tf 72 720 Td (Coffee is a plant.) Tj ET');
  const content = `${deflateSync(blanks, { level: 1 }).toString('hex')}>`;
  return pdf([
    '<< /Type /Catalog /Pages 2 0 R >>',
    '<< /Type /Pages /Kids [4 0 R] /Count 1 /MediaBox [0 0 612 792] >>',
    '<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>',
    '<< /Type /Page /Parent 2 0 R /Contents 5 0 R /Resources << /Font << /F1 3 0 R >> >> >>',
    `<< /Length ${content.length} /Filter [/ASCIIHexDecode /FlateDecode] >>\nstream\n${content}\nendstream`,
  ]);
}
