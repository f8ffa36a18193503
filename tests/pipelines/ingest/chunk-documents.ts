/** Generated documents: every script and shape that the chunker knows, and some that it does not. */
import fc from 'fast-check';

const SCRIPTS = [
  'the quick brown fox jumps over a lazy dog and Zürich façade naïve œuvre',
  'e.g. Dr. Smith U.S. No. 5 3.14 1,000.50 i.e. etc. a.m. it’s don’t we’ll',
  'هذا نص عربي طويل إلى حد ما من اليمين إلى اليسار',
  'זה טקסט בעברית שנכתב מימין לשמאל',
  'Это русский текст с длинными словами достопримечательность',
  'यह हिन्दी में एक वाक्य है। और दूसरा॥',
  '日本語の文章です。これは二番目の文です！本当に？「はい。」と言った。 漢字とカタカナ',
  '这是一个中文句子。第二句话！第三句？ 没有空格的文字',
  'ภาษาไทยไม่มีช่องว่างระหว่างคำ 한국어 문장입니다. 두 번째',
  '👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 é̂̃ 🇩🇪🇯🇵 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠮷野家 ﷽ Z̷̛̳a̸̢l̵g̷o̸',
  '<|endoftext|> <|im_start|> <|fim_prefix|> \u200b \u00a0x\u00a0 \u2028 \u3000全角',
  '==== ---- **** ____ ….. ??!! )]}"\' --> |x|y| # `code` ~~~ 1) - * +',
].map((line) => line.split(' '));

const word = fc.constantFrom(...SCRIPTS).chain((words) => fc.constantFrom(...words));
const longWord = fc
  .tuple(
    fc.constantFrom('a', 'ab9', '漢字', '👨‍👩‍👧', 'x=1;', '123', 'é', '-'),
    fc.integer({ min: 20, max: 500 }),
  )
  .map(([unit, times]) => unit.repeat(times));
const anyWord = fc.oneof({ weight: 30, arbitrary: word }, { weight: 1, arbitrary: longWord });
const words = (max: number): fc.Arbitrary<string> =>
  fc.array(anyWord, { minLength: 1, maxLength: max }).map((list) => list.join(' '));
const sentence = fc
  .tuple(words(25), fc.constantFrom('. ', '! ', '? ', '… ', '.” ', '。', '\n', ': ', '.\n', '... '))
  .map((parts) => parts.join(''));
const paragraph = fc.array(sentence, { minLength: 1, maxLength: 12 }).map((list) => list.join(''));
const row = (columns: number): fc.Arbitrary<string> =>
  fc
    .array(words(4), { minLength: columns, maxLength: columns })
    .map((cells) => `| ${cells.map((cell) => cell.replaceAll('|', '/').replace(/\s+/g, ' ')).join(' | ')} |`);
/** A table with its header row. */
export const table = fc
  .integer({ min: 1, max: 5 })
  .chain((columns) =>
    fc.tuple(
      row(columns),
      fc.constant(`|${' --- |'.repeat(columns)}`),
      fc.array(row(columns), { maxLength: 30 }),
    ),
  )
  .map(([head, rule, rows]) => [head, rule, ...rows].join('\n'));
/** A block of code between fences. */
export const code = fc
  .array(fc.oneof(words(8), fc.constant(''), fc.constant('  if (x) {\n    return 1;\n  }')), {
    maxLength: 40,
  })
  .map((lines) => `\`\`\`ts\n${lines.join('\n').replaceAll('`', "'").replaceAll('~', '-')}\n\`\`\``);
const heading = fc
  .tuple(
    fc.integer({ min: 1, max: 6 }),
    fc.oneof({ weight: 9, arbitrary: words(8) }, { weight: 1, arbitrary: words(300) }),
  )
  .map(([level, title]) => `${'#'.repeat(level)} ${title.replace(/\s+/g, ' ')}`);
const list = fc
  .array(fc.tuple(fc.constantFrom('- ', '* ', '1. ', '  - ', '12) ', '• '), paragraph), {
    minLength: 1,
    maxLength: 10,
  })
  .map((items) => items.map((item) => item.join('').trim()).join('\n'));
const setext = fc.tuple(words(6), fc.constantFrom('===', '---')).map((parts) => parts.join('\n'));
const noise = fc.string({ unit: 'binary', maxLength: 300 }).map((text) =>
  text
    .replaceAll('\0', '')
    .replaceAll('\r', '\n')
    .replace(/[\u0085\ufeff]/g, '')
    .toWellFormed(),
);
const separator = fc.constantFrom('\n\n', '\n', '\n \n', '\n\n\n\n', '\n\f\n');

const textOf = (block: fc.Arbitrary<string>): fc.Arbitrary<string> =>
  fc
    .array(fc.tuple(block, separator), { maxLength: 25 })
    .map((blocks) => blocks.flat().join('').toWellFormed());

/** Markdown of every kind of block. */
export const markdownText = textOf(fc.oneof(paragraph, paragraph, heading, list, table, code, setext, noise));
/** Paragraphs and lists. */
export const plainText = textOf(fc.oneof(paragraph, paragraph, list, words(200), noise));

/** Limits from the smallest to the largest that an embedding model has. */
export const options = fc
  .tuple(
    fc.oneof(
      fc.integer({ min: 16, max: 80 }),
      fc.constantFrom(16, 64, 128, 256, 512, 1024, 8191),
      fc.integer({ min: 16, max: 8191 }),
    ),
    fc.double({ min: 0, max: 0.5, noNaN: true }),
  )
  .map(([maxTokens, share]) => ({ maxTokens, overlapTokens: Math.floor(maxTokens * share) }));

/** Ascending places in a text, the first at 0; or no pages. */
export const pagesOf = (text: string): fc.Arbitrary<number[] | null> =>
  fc.option(
    fc
      .array(fc.integer({ min: 0, max: text.length }), { maxLength: 10 })
      .map((starts) => [0, ...starts].sort((a, b) => a - b)),
  );
