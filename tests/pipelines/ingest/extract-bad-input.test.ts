import { expect, test } from 'vitest';
import { DOCUMENT_LIMITS, type DocumentLimits } from '../../../src/pipelines/ingest/document.ts';
import { codeOf, docx, extract, fixture, paragraph, pdf, pdfOfPages, zip } from './documents.ts';

const ALL = [
  'handbook.pdf',
  'columns-groff.pdf',
  'japanese.pdf',
  'handbook-libreoffice.docx',
  'handbook.odt',
  'handbook.epub',
  'slides-libreoffice.pptx',
  'deliveries-libreoffice.xlsx',
];
const ZIPPED = ALL.filter((name) => !name.endsWith('.pdf'));

test('an empty file, and one of blanks', async () => {
  expect(await codeOf(extract(new Uint8Array()))).toBe('empty');
  expect(await codeOf(extract(' \n\t \r\n'))).toBe('empty');
  expect(await codeOf(extract('\ufeff'))).toBe('empty');
  expect(await codeOf(extract(docx('')))).toBe('empty');
  expect(await codeOf(extract(pdfOfPages([[], []])))).toBe('empty');
});

test('a password, a scan, an office file of before 2007, a picture', async () => {
  expect(await codeOf(extract(fixture('encrypted.pdf')))).toBe('password');
  expect(await codeOf(extract(fixture('encrypted.pdf'), {}, {}, 'pdf-parse'))).toBe('password');
  expect(await codeOf(extract(fixture('scan.pdf')))).toBe('needs_ocr');
  expect(await codeOf(extract(fixture('scan.pdf'), {}, {}, 'pdf-parse'))).toBe('needs_ocr');
  expect(await codeOf(extract(fixture('handbook.doc')))).toBe('unsupported');
  expect(await codeOf(extract(Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 13, 10, 26, 10, 0, 0)))).toBe(
    'needs_ocr',
  );
  const encryptedOffice = new Uint8Array(
    Buffer.concat([
      Buffer.from('d0cf11e0a1b11ae1', 'hex'),
      Buffer.alloc(1024),
      Buffer.from('EncryptedPackage', 'utf16le'),
    ]),
  );
  expect(await codeOf(extract(encryptedOffice, { fileName: 'a.docx' }))).toBe('password');
  const locked = zip([{ name: 'word/document.xml', content: '<w/>', encrypted: true }]);
  expect(await codeOf(extract(locked))).toBe('password');
  const odt = zip([
    { name: 'mimetype', content: 'application/vnd.oasis.opendocument.text' },
    { name: 'content.xml', content: 'garbage' },
    {
      name: 'META-INF/manifest.xml',
      content: '<manifest><file-entry><encryption-data/></file-entry></manifest>',
    },
  ]);
  expect(await codeOf(extract(odt))).toBe('password');
});

test('garbage is unsupported', async () => {
  const noise = Uint8Array.from({ length: 20_000 }, (_, i) => (i * i * 2_654_435_761) >>> 13);
  expect(await codeOf(extract(noise))).toBe('unsupported');
  expect(await codeOf(extract(noise, { fileName: 'notes.txt', contentType: 'text/plain' }))).toBe(
    'unsupported',
  );
  expect(await codeOf(extract(Uint8Array.of(0x1f, 0x8b, 8, 0)))).toBe('unsupported');
});

test.each(ALL)('%s, cut anywhere: damaged or shorter, never anything else', async (name) => {
  const bytes = fixture(name);
  for (const share of [0.02, 0.3, 0.6, 0.95, 0.999]) {
    const code = await codeOf(extract(bytes.slice(0, Math.floor(bytes.length * share))));
    if (ZIPPED.includes(name)) expect(code, `${share}`).toBe('corrupt');
    else expect(['none', 'corrupt', 'needs_ocr', 'empty'], `${share}`).toContain(code);
  }
});

test.each(ALL)('%s under a false name and a false type is what it is', async (name) => {
  const honest = await extract(fixture(name));
  const lied = await extract(fixture(name), {
    fileName: 'page.html',
    contentType: 'text/csv; charset=utf-16',
  });
  expect(lied).toEqual(honest);
});

test('text under a false name', async () => {
  expect(
    await codeOf(extract('just words, no PDF', { fileName: 'a.pdf', contentType: 'application/pdf' })),
  ).toBe('none');
  expect((await extract('<!doctype html><p>Hello', { fileName: 'a.txt' })).format).toBe('html');
  expect((await extract('{"a": 1}', { fileName: 'a.bin' })).format).toBe('json');
  expect((await extract('{"a": 1', { fileName: 'a.txt' })).format).toBe('text');
  expect(await codeOf(extract('{"a": 1', { fileName: 'a.json' }))).toBe('corrupt');
  expect((await extract('name,age\nAda,36\nBob,7\n')).format).toBe('csv');
  expect((await extract('First, a line of prose.\nThen, another one.\nAnd, a third.\n')).format).toBe('text');
});

test('an archive that is no document is not opened further', async () => {
  expect(await codeOf(extract(zip([{ name: 'a.docx', content: docx(paragraph('hidden')) }])))).toBe(
    'unsupported',
  );
  expect(await codeOf(extract(zip([])))).toBe('corrupt');
  // an archive within a document is a part nobody reads
  const nested = docx(paragraph('outer'), [
    { name: 'word/embeddings/a.zip', content: zip([{ name: 'b', content: 'x' }]) },
  ]);
  expect((await extract(nested)).text).toBe('outer');
});

test('a zip bomb stops at the limit, whatever it claims to be', async () => {
  const blanks = ' '.repeat(40_000_000);
  const bomb = docx(`${paragraph('a')}${blanks}`);
  expect(bomb.length).toBeLessThan(60_000);
  expect(await codeOf(extract(bomb))).toBe('too_large');
  expect(await codeOf(extract(bomb, {}, { maxInflatedBytes: 1_000_000 }))).toBe('too_large');
  const liar = zip([
    { name: 'word/document.xml', content: `<w:document>${blanks}</w:document>`, claimed: 100 },
  ]);
  expect(['corrupt', 'too_large']).toContain(await codeOf(extract(liar)));
});

test('limits: bytes, entries, pages, characters', async () => {
  const limited = (limits: Partial<DocumentLimits>, bytes: Uint8Array): Promise<string> =>
    codeOf(extract(bytes, {}, limits));
  expect(await limited({ maxBytes: 100 }, fixture('handbook.pdf'))).toBe('too_large');
  expect(await limited({ maxEntries: 5 }, fixture('handbook.odt'))).toBe('too_large');
  expect(await limited({ maxPages: 1 }, fixture('handbook.pdf'))).toBe('too_large');
  expect(await limited({ maxPages: 2 }, fixture('slides-libreoffice.pptx'))).toBe('too_large');
  for (const name of [...ALL, 'handbook.html', 'handbook.md', 'deliveries.csv', 'growers.json'])
    expect(await limited({ maxCharacters: 100 }, fixture(name)), name).toBe('too_large');
});

test('XML: entities are not expanded, depth is bounded, broken markup is damage', async () => {
  const laughs = `<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><w:document><w:p><w:t>&b;</w:t></w:p></w:document>`;
  expect(await codeOf(extract(zip([{ name: 'word/document.xml', content: laughs }])))).toBe('corrupt');
  expect(await codeOf(extract(docx(`${'<w:p>'.repeat(5000)}${'</w:p>'.repeat(5000)}`)))).toBe('corrupt');
  expect(await codeOf(extract(docx('<w:p><w:t>open')))).toBe('corrupt');
  expect(await codeOf(extract(`<html>${'<i>'.repeat(20_000)}deep`))).toBe('corrupt');
});

test('JSON nested a hundred thousand deep is read, and its paths stay short', async () => {
  const depth = 100_000;
  const { text } = await extract(`${'[{"a":'.repeat(depth)}1${'}]'.repeat(depth)}`, {
    fileName: 'deep.json',
  });
  expect(text.length).toBeLessThan(300);
  expect(text).toMatch(/: 1$/);
});

test('a sheet of one value in the last column of each row is not a million empty cells', async () => {
  const rows = Array.from(
    { length: 3000 },
    (_, i) => `<row r="${i + 1}"><c r="XFD${i + 1}"><v>${i}</v></c></row>`,
  ).join('');
  const sheet = zip([
    {
      name: 'xl/workbook.xml',
      content: '<workbook xmlns:r="r"><sheets><sheet name="S" r:id="a"/></sheets></workbook>',
    },
    {
      name: 'xl/_rels/workbook.xml.rels',
      content: '<Relationships><Relationship Id="a" Type="x/worksheet" Target="s.xml"/></Relationships>',
    },
    { name: 'xl/s.xml', content: `<worksheet><sheetData>${rows}</sheetData></worksheet>` },
  ]);
  const { text } = await extract(sheet);
  expect(text.length).toBeLessThan(30_000);
  expect(text).toContain('2999');
});

test('a PDF whose pages and bookmarks point at each other in circles ends', async () => {
  const circle = pdf([
    '<< /Type /Catalog /Pages 2 0 R /Outlines 5 0 R >>',
    '<< /Type /Pages /Kids [3 0 R 2 0 R 4 0 R] /Count 3 >>',
    '<< /Type /Pages /Parent 2 0 R /Kids [2 0 R] /Count 9 >>',
    '<< /Type /Page /Parent 4 0 R /Contents 4 0 R >>',
    '<< /First 6 0 R /Last 6 0 R >>',
    '<< /Title (a) /Next 6 0 R /First 6 0 R /Parent 6 0 R /Dest [4 0 R /Fit] >>',
  ]);
  for (const engine of ['pdfium', 'pdf-parse'] as const)
    expect(['empty', 'corrupt', 'needs_ocr']).toContain(await codeOf(extract(circle, {}, {}, engine)));
});

test('three thousand pages, each at its place', async () => {
  const pages = Array.from({ length: 3000 }, (_, i) => [
    `This is what stands on sheet number ${i * 7} of them all.`,
  ]);
  const document = await extract(pdfOfPages(pages));
  expect(document.pageStarts).toHaveLength(3000);
  for (const i of [0, 1, 1499, 2999])
    expect(document.text.slice(document.pageStarts?.[i])).toMatch(
      new RegExp(`^This is what stands on sheet number ${i * 7} `),
    );
});

test('the signal ends the work', async () => {
  const { extractDocument } = await import('../../../src/pipelines/ingest/extract/extract.ts');
  const reason = new Error('enough');
  const attempt = extractDocument(
    fixture('handbook.pdf'),
    { fileName: null, contentType: null },
    DOCUMENT_LIMITS,
    AbortSignal.abort(reason),
  );
  await expect(attempt).rejects.toBe(reason);
});
