import { expect, test } from 'vitest';
import { docx, extract, paragraph, pdfOfPages } from './documents.ts';

test('NUL, controls, lone surrogates, soft hyphens, ligatures and zero-width characters go; the rest is composed', async () => {
  const { text } = await extract(`a\0b\u0007c\u00add\ufb01n\u200b e\u0301 \u00a0x²\r\ny\u2028z`, {
    fileName: 'a.txt',
  });
  expect(text).toBe('abcdfin é  x²\ny\nz');
  const json = await extract('{"a": "x\\ud800y\\u0000z", "b": "\\udc00"}', { fileName: 'a.json' });
  expect(json.text).toBe('a: x\ufffdyz\nb: \ufffd');
});

test('right-to-left, Chinese, Japanese, Korean and emoji come through whole', async () => {
  const words = 'שלום עולם — مرحبا بالعالم — 你好世界 — こんにちは — 안녕하세요 — 👩‍👩‍👧 𠮷野家';
  for (const document of [
    await extract(words),
    await extract(docx(paragraph(words))),
    await extract(`<html><p>${words}`),
  ])
    expect(document.text).toBe(words);
});

test.each([
  ['utf-16le with its mark', Buffer.from('\ufeffGrüße, 東京', 'utf16le'), null],
  ['utf-16be with its mark', Buffer.from('\ufeffGrüße, 東京', 'utf16le').swap16(), null],
  ['utf-16le without', Buffer.from('Plain words, and Grüße to all of you', 'utf16le'), null],
  ['utf-8 with its mark', Buffer.from('\ufeffGrüße, 東京'), null],
  ['utf-8 that a server calls Latin 1', Buffer.from('Grüße, 東京'), 'text/plain; charset=iso-8859-1'],
  ['utf-8 cut in a character', Buffer.from('Grüße, Grüße, 東京').subarray(0, -1), null],
  ['windows-1252', Buffer.from('Gr\xfc\xdfe \x96 all', 'latin1'), null],
  ['koi8-r, declared', Buffer.from([0xf0, 0xd2, 0xc9, 0xd7, 0xc5, 0xd4]), 'text/plain; charset=koi8-r'],
  ['an unknown charset', Buffer.from('Gr\xfc\xdfe', 'latin1'), 'text/plain; charset=klingon'],
])('charset: %s', async (_name, bytes, contentType) => {
  const { text } = await extract(new Uint8Array(bytes), { contentType, fileName: 'a.txt' });
  expect(text).toMatch(/^(Grüße|Plain words, and Grüße to all of you$|Привет$)/);
});

test('a megabyte without a blank, and one of blanks only within, take no time', async () => {
  const start = performance.now();
  expect((await extract('a'.repeat(4_000_000), { fileName: 'a.txt' })).text.length).toBe(4_000_000);
  expect((await extract(`x${' '.repeat(4_000_000)}y`, { fileName: 'a.txt' })).text.length).toBe(4_000_002);
  await extract(`<html><p>${'<'.repeat(500_000)}`);
  await extract(`<html><p>x${' '.repeat(2_000_000)}y`);
  await extract(`a,"${'"",'.repeat(500_000)}`, { fileName: 'a.csv' });
  // a pattern that is quadratic would take hours
  expect(performance.now() - start).toBeLessThan(30_000);
});

test('Markdown’s marks in text that is none are escaped', async () => {
  const document = await extract(
    docx(`${paragraph('# not a heading')}${paragraph('```')}${paragraph('| a | b |')}`),
  );
  expect(document.text).toBe('\\# not a heading\n\n\\```\n\n\\| a | b |');
});

test('web pages: what is hidden or furniture goes, what is nested stays readable', async () => {
  const { text, title } =
    await extract(`<!doctype html><html><head><title> A  page </title><style>p{}</style></head><body>
    <nav>Home</nav><script>alert("<p>no</p>")</script><h2>One</h2><p>a <b>bold</b> word,<br>and a <a href="/x">link</a>.</p>
    <div hidden>secret</div><ul><li>x<ol><li>y</li><li>z</li></ol></li></ul>
    <table><tr><th>k</th><th>v</th></tr><tr><td>a|b</td><td>two
    lines</td></tr></table><pre class="language-sql">select *
  from t</pre><p>end</body></html>`);
  expect(title).toBe('A page');
  expect(text).toBe(`## One

a bold word,
and a link.

- x
  1. y
  2. z

| k | v |
| --- | --- |
| a\\|b | two lines |

\`\`\`sql
select *
  from t
\`\`\`

end`);
});

test('a page’s main part is the page, where it holds most of it', async () => {
  const article = '<main><h1>Coffee</h1><p>Long words about coffee and its growers.</p></main>';
  expect((await extract(`<html><div>Menu</div>${article}<footer>Imprint</footer>`)).text).not.toContain(
    'Imprint',
  );
  const around = `<p>${'The text of this page stands beside its main part. '.repeat(5)}</p>`;
  expect((await extract(`<html>${around}<main><p>Ad</p></main>`)).text).toContain('stands beside');
});

test('headers, footers and page numbers of a PDF go; a line that only looks like one stays', async () => {
  const pages = Array.from({ length: 8 }, (_, i) => [
    i % 2 ? `Annual report ${i + 3}` : `${i + 3} Annual report`,
    `Year ${2000 + i * i} was a year of growth for the whole of the company.`,
    'Total',
    `${i * i * 31}`,
    `- ${i + 3} -`,
  ]);
  const { text } = await extract(pdfOfPages(pages));
  expect(text).not.toContain('Annual report');
  expect(text).not.toMatch(/^- \d+ -$/m);
  for (let i = 0; i < 8; i++) expect(text).toContain(`${i * i * 31}`);
  expect(text.match(/was a year of growth/g)).toHaveLength(8);
});

test('words parted at a line’s end: joined, unless the document writes them with a hyphen', async () => {
  const long = 'and then some more words that fill this line up to its very end with inter-';
  const lines = [
    long,
    'national trade, and the same again with words that are used up to well-',
    'known names and an inter-',
    'national body. It is well-known.',
  ];
  const { text } = await extract(pdfOfPages([lines, lines]));
  expect(text).toContain('international trade');
  expect(text).toContain('well-known names');
  expect(text).not.toContain('inter-');
});

test('a paragraph goes on over the end of a page, and the page begins within it', async () => {
  const width = 'These words are here to make a line as wide as all the other lines are';
  const first = [width, width, `${width} which does not end`];
  const document = await extract(
    pdfOfPages([first, ['here but on the page that comes after it, as is usual in books.', width, width]]),
  );
  expect(document.text).toContain('which does not end here but');
  expect(document.text.slice(document.pageStarts?.[1])).toMatch(/^here but/);
});
