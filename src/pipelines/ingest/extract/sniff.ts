/** What a file is, by its bytes. A name and a declared type are hints that break ties: either may be wrong, or a lie. */
import type { DocumentFormat, DocumentHints } from '../document.ts';
import type { Archive } from './archive.ts';
import { corrupt, needsOcr, password, unsupported } from './failures.ts';
import { textFormat } from './sniff-text.ts';

/** What the first bytes tell: a format, or an archive that must be opened to know. */
export type Sniffed = DocumentFormat | 'zip';

const SAVE_AS =
  'Save it as PDF, DOCX, PPTX, XLSX, ODT, EPUB, HTML, Markdown, text, CSV or JSON and upload that.';

const starts = (bytes: Uint8Array, ...magic: number[]): boolean =>
  magic.every((byte, i) => bytes[i] === byte);
const startsWith = (bytes: Uint8Array, text: string, at = 0): boolean =>
  latin1(bytes.subarray(at, at + text.length)) === text;
const latin1 = (bytes: Uint8Array): string => Buffer.from(bytes).toString('latin1');

/** @throws DocumentError unsupported, needs_ocr (a picture), password (an encrypted office file) */
export function sniff(bytes: Uint8Array, hints: DocumentHints): Sniffed {
  // the header may stand anywhere in the first kilobyte
  if (latin1(bytes.subarray(0, 1024)).includes('%PDF-')) return 'pdf';
  if (starts(bytes, 0x50, 0x4b, 3, 4) || starts(bytes, 0x50, 0x4b, 5, 6)) return 'zip';
  if (starts(bytes, 0xd0, 0xcf, 0x11, 0xe0)) throw oldOffice(bytes);
  const picture = pictureOf(bytes);
  if (picture) throw needsOcr(`A ${picture} picture`);
  const other = otherOf(bytes);
  if (other) throw unsupported(other, SAVE_AS);
  if (isBinary(bytes)) throw unsupported('A file of this kind', SAVE_AS);
  return textFormat(bytes, hints);
}

/** Since 2007 Office wraps an encrypted file in the container of its old formats. */
function oldOffice(bytes: Uint8Array): Error {
  const isEncrypted = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).includes(
    Buffer.from('EncryptedPackage', 'utf16le'),
  );
  return isEncrypted
    ? password('The office file')
    : unsupported(
        'A file of the old office formats (DOC, XLS, PPT)',
        'Save it as DOCX, XLSX or PPTX and upload that.',
      );
}

function pictureOf(bytes: Uint8Array): string | null {
  if (starts(bytes, 0x89, 0x50, 0x4e, 0x47)) return 'PNG';
  if (starts(bytes, 0xff, 0xd8, 0xff)) return 'JPEG';
  if (startsWith(bytes, 'GIF8')) return 'GIF';
  if (starts(bytes, 0x49, 0x49, 0x2a, 0) || starts(bytes, 0x4d, 0x4d, 0, 0x2a)) return 'TIFF';
  if (startsWith(bytes, 'RIFF') && startsWith(bytes, 'WEBP', 8)) return 'WebP';
  if (startsWith(bytes, 'ftypheic', 4) || startsWith(bytes, 'ftypavif', 4)) return 'HEIC or AVIF';
  return startsWith(bytes, 'BM') && isBinary(bytes) ? 'BMP' : null;
}

function otherOf(bytes: Uint8Array): string | null {
  if (startsWith(bytes, '{\\rtf')) return 'An RTF file';
  if (startsWith(bytes, '%!PS')) return 'A PostScript file';
  if (starts(bytes, 0x1f, 0x8b) || startsWith(bytes, 'BZh') || starts(bytes, 0xfd, 0x37, 0x7a, 0x58))
    return 'A compressed file';
  if (startsWith(bytes, 'Rar!') || startsWith(bytes, '7z\xbc\xaf') || startsWith(bytes, 'ustar', 257))
    return 'An archive';
  if (
    startsWith(bytes, 'ftyp', 4) ||
    startsWith(bytes, 'RIFF') ||
    startsWith(bytes, 'OggS') ||
    startsWith(bytes, 'ID3')
  )
    return 'Audio or video';
  if (starts(bytes, 0x7f, 0x45, 0x4c, 0x46) || (startsWith(bytes, 'MZ') && isBinary(bytes)))
    return 'A program';
  return null;
}

/** Text has next to no control characters; UTF-16 has NULs, but in one half of the bytes only. */
function isBinary(bytes: Uint8Array): boolean {
  if (starts(bytes, 0xff, 0xfe) || starts(bytes, 0xfe, 0xff)) return false;
  const sample = bytes.subarray(0, 65_536);
  let [control, evenNul, oddNul] = [0, 0, 0];
  for (let i = 0; i < sample.length; i++) {
    const byte = sample[i] as number;
    if (byte === 0) i % 2 === 0 ? evenNul++ : oddNul++;
    else if (byte < 32 && !(byte >= 7 && byte <= 13) && byte !== 27) control++;
  }
  const isWide =
    Math.max(evenNul, oddNul) > sample.length * 0.3 && Math.min(evenNul, oddNul) < sample.length * 0.02;
  if (isWide) return false;
  // a stray one in a short text does not make it anything else
  return evenNul + oddNul + control > Math.max(sample.length * 0.02, 8);
}

const BY_MIMETYPE: Readonly<Record<string, DocumentFormat>> = {
  'application/epub+zip': 'epub',
  'application/vnd.oasis.opendocument.text': 'odt',
  'application/vnd.oasis.opendocument.text-template': 'odt',
};

/** Macros and templates are the same documents. */
const BY_CONTENT_TYPE: readonly (readonly [RegExp, DocumentFormat])[] = [
  [/wordprocessingml\.(document|template)\.main|ms-word\.(document|template)\.macroEnabled/, 'docx'],
  [/presentationml\.(presentation|slideshow|template)\.main|ms-powerpoint\.\w+\.macroEnabled/, 'pptx'],
  [/spreadsheetml\.(sheet|template)\.main|ms-excel\.(sheet|template)\.macroEnabled/, 'xlsx'],
];

/** Where the list of types is missing or odd, the main part's usual place tells. */
const BY_ENTRY: readonly (readonly [string, DocumentFormat])[] = [
  ['word/document.xml', 'docx'],
  ['ppt/presentation.xml', 'pptx'],
  ['xl/workbook.xml', 'xlsx'],
  ['META-INF/container.xml', 'epub'],
];

/** @throws DocumentError unsupported for archives that are no document */
export async function sniffArchive(archive: Archive): Promise<DocumentFormat> {
  const mimetype = ((await archive.text('mimetype')) ?? '').trim();
  const byMimetype = BY_MIMETYPE[mimetype.slice(0, 100)];
  if (byMimetype) return byMimetype;
  if (mimetype.includes('opendocument'))
    throw unsupported(
      'An OpenDocument file other than a text',
      'Save it as XLSX, PPTX or PDF and upload that.',
    );
  const types = (await archive.text('[Content_Types].xml')) ?? '';
  for (const [pattern, format] of BY_CONTENT_TYPE) if (pattern.test(types)) return format;
  if (/ms-excel\.sheet\.binary/.test(types))
    throw unsupported('A binary spreadsheet (XLSB)', 'Save it as XLSX and upload that.');
  for (const [entry, format] of BY_ENTRY) if (archive.has(entry)) return format;
  if (archive.names.length === 0) throw corrupt('The archive', new Error('it has no entries'));
  throw unsupported('An archive', 'Unpack it and upload its files.');
}
