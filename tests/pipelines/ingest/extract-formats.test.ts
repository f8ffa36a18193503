import { expect, test } from 'vitest';
import type { ExtractedDocument } from '../../../src/pipelines/ingest/document.ts';
import { extract, fixture } from './documents.ts';

const headings = ({ text }: ExtractedDocument): string[] => text.match(/^#{1,6} .+$/gm) ?? [];
/** Text of a page, from 1. */
const page = ({ text, pageStarts }: ExtractedDocument, number: number): string =>
  text.slice(pageStarts?.[number - 1], pageStarts?.[number]).trim();

const SECTIONS = ['# Purchasing', '## Samples', '## Grades', '# Logistics', '## Insurance'];

const HANDBOOK_TABLE = `| Grade | Score | Price per kg |
| --- | --- | --- |
| AA | 86.5 | 7.40 |
| AB | 84.0 | 6.85 |
| PB | 85.25 | 7.10 |`;

const HANDBOOK_REST = `# Logistics

Containers are booked six weeks ahead. The booking script is short:

\`\`\`
def book(container, port):
    # one container, one port
    return {"container": container, "port": port}
\`\`\`

## Insurance

Marine insurance covers 110 % of the invoice. Claims are filed within 21 days; call +49 40 555 0199.

Übergrößen, naïve façades and the word “coöperate” stay as they are: 東京, Αθήνα, שלום.`;

const HANDBOOK_LISTS = `A sample of 300 grams arrives before every shipment. It is roasted within two days and cupped by three people.

1. Weigh the sample.
2. Roast it light.
3. Cup it blind.

Things that spoil a sample:

- moisture above 12.5 %
- storage beside spices
  - cardamom is the worst
- a torn bag`;

test.each([
  ['handbook-libreoffice.docx', 'docx'],
  ['handbook-pandoc.docx', 'docx'],
  ['handbook.odt', 'odt'],
  ['handbook.epub', 'epub'],
  ['handbook.html', 'html'],
] as const)('%s: title, headings, lists, the table, code and notes', async (name, format) => {
  const document = await extract(fixture(name));
  expect(document).toMatchObject({
    format,
    markup: 'markdown',
    title: 'Handbook of the coffee importer',
    pageStarts: null,
  });
  expect(headings(document).filter((line) => SECTIONS.includes(line))).toEqual(SECTIONS);
  expect(document.text).toContain(HANDBOOK_LISTS);
  expect(document.text).toContain(HANDBOOK_TABLE);
  expect(document.text).toContain(HANDBOOK_REST);
  expect(document.text).toContain('Prices are free on board unless the contract says otherwise.');
  expect(document.text.match(/Prices are free/g)).toHaveLength(1);
});

test('a note stands where it is referred to, by its mark', async () => {
  const { text } = await extract(fixture('handbook-libreoffice.docx'));
  const mark = /port of loading\.(\[\^\d+\])/.exec(text)?.[1];
  expect(mark).toBeDefined();
  expect(text).toContain(`${mark}: Prices are free on board`);
});

test.each(['pdfium', 'pdf-parse'] as const)(
  'a PDF of LibreOffice by %s: two pages, its words in order',
  async (engine) => {
    const document = await extract(fixture('handbook.pdf'), {}, {}, engine);
    expect(document.format).toBe('pdf');
    expect(document.pageStarts).toHaveLength(2);
    expect(document.title).toBe('Handbook of the coffee importer');
    expect(page(document, 1)).toContain(
      'The importer buys green coffee from twelve growers. Each contract names a price in euros per kilogram, a harvest and a port of loading.',
    );
    expect(page(document, 1)).not.toContain('Marine insurance');
    expect(page(document, 2)).toContain(
      'Marine insurance covers 110 % of the invoice. Claims are filed within 21 days; call +49 40 555 0199.',
    );
    expect(page(document, 2)).toContain('Übergrößen, naïve façades');
  },
);

test('a PDF’s bookmarks become the headings of their lines, and a comment in code does not', async () => {
  const document = await extract(fixture('handbook.pdf'));
  expect(document.markup).toBe('markdown');
  expect(headings(document)).toEqual(SECTIONS);
  expect(document.text).toContain('\\# one container, one port');
});

test.each(['pdfium', 'pdf-parse'] as const)(
  'hyphenated columns by %s: words are whole, columns do not mix, no header',
  async (engine) => {
    const document = await extract(fixture('columns-groff.pdf'), {}, {}, engine);
    expect(document.pageStarts).toHaveLength(5);
    const { text } = document;
    expect(text).not.toMatch(/\p{L}-\s+\p{L}/u);
    for (const word of [
      'cultivation',
      'extraordinary',
      'concentration',
      'characteristics',
      'representatives',
      'interpretations',
      'precipitation',
    ])
      expect(text.match(new RegExp(`\\b${word}\\b`, 'gi'))?.length, word).toBeGreaterThanOrEqual(18);
    expect(text.match(/\bfifteen-minute\b/g)).toHaveLength(18);
    const sentence =
      'Experienced growers nevertheless appreciate these circumstances: the concentration of carbohydrates increases proportionally, and international purchasers acknowledge the characteristics with correspondingly advantageous remuneration.';
    expect(text.replace(/\s+/g, ' ').split(sentence).length - 1).toBeGreaterThanOrEqual(14);
    expect(text).not.toContain('Growers’ Journal');
    expect(text).not.toContain("Growers' Journal");
  },
);

test.each(['pdfium', 'pdf-parse'] as const)(
  'a Japanese PDF by %s: lines of a paragraph are joined without blanks',
  async (engine) => {
    const document = await extract(fixture('japanese.pdf'), {}, {}, engine);
    expect(document).toMatchObject({ title: '珈琲の手引き', pageStarts: [0] });
    expect(document.text).toContain(
      '生豆は十二の農園から買い付けます。契約書には一キログラムあたりの価格、収穫年、積み出し港が記されます。見本は三百グラムで、出荷の前に届きます。',
    );
    if (engine === 'pdfium') expect(headings(document)).toEqual(['# 珈琲の手引き', '## 焙煎']);
  },
);

test.each(['slides-libreoffice.pptx', 'slides-pandoc.pptx'])('%s: a slide is a page', async (name) => {
  const document = await extract(fixture(name));
  expect(document).toMatchObject({ format: 'pptx', title: 'Coffee quarterly' });
  expect(document.pageStarts).toHaveLength(4);
  expect(headings(document)).toEqual(['# Coffee quarterly', '# Harvest', '# Prices by port', '# Outlook']);
  expect(page(document, 2)).toBe(
    '# Harvest\n\n- Yield fell by 8 %\n- Prices rose\n  - Brazil most of all\n\nNotes: Say that the figures are provisional.',
  );
  expect(page(document, 3)).toBe(
    '# Prices by port\n\n| Port | Price |\n| --- | --- |\n| Hamburg | 7.40 |\n| Trieste | 7.15 |',
  );
  expect(page(document, 4)).toContain('Demand in Japan (日本) keeps growing.');
});

test.each(['deliveries-libreoffice.xlsx', 'deliveries-openpyxl.xlsx'])(
  '%s: a sheet is a page, values as they are shown',
  async (name) => {
    const document = await extract(fixture(name));
    expect(document.format).toBe('xlsx');
    expect(document.pageStarts).toHaveLength(3);
    expect(page(document, 1)).toContain(`## Deliveries

| Date | Grower | Bags | Price | Paid |
| --- | --- | --- | --- | --- |
| 2024-03-01 | Finca La Paz | 120 | 7.4 | TRUE |
| 2024-03-15 | Sítio São João \\| north | 80 | 6.85 | FALSE |
| 2024-04-02 | Kiambu Estate | 200 | 0.3 | TRUE |`);
    expect(page(document, 1)).toContain('Total');
    expect(page(document, 2)).toBe('');
    expect(page(document, 3)).toContain('| 東京支店 | 03-5555-0100 |');
  },
);

test('a page of Sphinx: the article alone, without navigation, permalinks and scripts', async () => {
  const document = await extract(fixture('colorsys-sphinx.html'));
  expect(document.title).toMatch(/^colorsys — Conversions between color systems/);
  expect(headings(document)[0]).toBe('# colorsys — Conversions between color systems');
  expect(document.text).toContain('Convert the color from RGB coordinates to YIQ coordinates.');
  expect(document.text).toContain('```\n>>> import colorsys\n>>> colorsys.rgb_to_hsv(0.2, 0.4, 0.4)');
  for (const noise of ['¶', 'Navigation', 'Report a Bug', 'Created using', 'DOCUMENTATION_OPTIONS'])
    expect(document.text, noise).not.toContain(noise);
});

test('a page in Shift_JIS that says so', async () => {
  const document = await extract(fixture('japanese-shift-jis.html'));
  expect(document.title).toBe('珈琲の手引き');
  expect(document.text).toContain('見本は二日以内に浅く焙煎し、三人で味を確かめます。');
});

test('Markdown stays as it is', async () => {
  const document = await extract(fixture('handbook.md'), { fileName: 'handbook.md' });
  expect(document).toMatchObject({ format: 'markdown', title: 'Handbook of the coffee importer' });
  expect(document.text).toBe(new TextDecoder().decode(fixture('handbook.md')).trim());
});

test('plain text of Windows', async () => {
  const document = await extract(fixture('windows-1252.txt'), { fileName: 'preise.txt' });
  expect(document).toMatchObject({ format: 'text', markup: 'plain', title: null });
  expect(document.text).toBe('Der Großhandel für Kaffee\n\nPreise in € je Kilo – netto.');
});

test('a narrow CSV is a table: its delimiter is found, quotes and line ends within fields are kept apart', async () => {
  const document = await extract(fixture('deliveries.csv'), { fileName: 'deliveries.csv' });
  expect(document.format).toBe('csv');
  expect(document.text).toBe(`| Date | Grower | Bags | Price |
| --- | --- | --- | --- |
| 2024-03-01 | Finca "La Paz" | 120 | 7,40 |
| 2024-03-15 | Sítio São João; north slope | 80 | 6,85 |
| 2024-04-02 | Kiambu Estate | 200 | 0,30 |`);
});

test('a wide CSV is a record of named values for each row', async () => {
  const columns = Array.from({ length: 12 }, (_, i) => `c${i}`);
  const rows = [columns.join(','), columns.map((_, i) => `v${i}`).join(','), `x${','.repeat(11)}`];
  const { text } = await extract(rows.join('\n'), { fileName: 'wide.csv' });
  expect(text).toBe(`${columns.map((name, i) => `${name}: v${i}`).join('\n')}\n\nc0: x`);
});

test('JSON: each value with its path, numbers to their last digit', async () => {
  const document = await extract(fixture('growers.json'), { fileName: 'growers.json' });
  expect(document.format).toBe('json');
  expect(document.text).toBe(`updated: 2024-04-02
order: 12345678901234567890

growers[0].name: Finca La Paz
growers[0].altitude: 1650

growers[0].varieties[0]: Bourbon
growers[0].varieties[1]: Caturra

growers[0].certified: true

growers[1].name: Kiambu Estate
growers[1].altitude: 1800

growers[1].varieties[0]: SL28

growers[1].certified: false`);
});
