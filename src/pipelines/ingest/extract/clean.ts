/** Text as the database and the tokenizer want it, whatever a file holds. All of it is linear in the text. */

const LIGATURES: readonly (readonly [RegExp, string])[] = [
  [/ﬀ/g, 'ff'],
  [/ﬁ/g, 'fi'],
  [/ﬂ/g, 'fl'],
  [/ﬃ/g, 'ffi'],
  [/ﬄ/g, 'ffl'],
  [/[ﬅﬆ]/g, 'st'],
];

// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const NOTHING = /[\0-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u2060\ufeff\ufffe\uffff]+/g;
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const NEW_LINES = /\r\n?|[\x0b\x0c\x85\u2028\u2029]/g;
const SPACES = /[\xa0\u2000-\u200a\u202f\u205f]/g;

const LIGATURE = /[ﬀ-ﬆ]/;
/**
 * Where it finds nothing there are no letters but those of ASCII, whose expressions are several times as fast as those for all letters.
 * Dashes, quotes and bullets are in most texts.
 */
export const BEYOND_ASCII = /[^\0-\x7f\u2010-\u2027]/;
/** What makes a text worth a closer look: any character but those of a typewriter. */
const UNUSUAL = /[^\t\n -~]/;

/**
 * Characters only: no NUL and no other control but tab and newline, no lone surrogates, no soft hyphens and zero-width
 * spaces, ligatures spelled out, composed (NFC; not NFKC, which makes x² an x2). Lines end with \n.
 */
export function cleanCharacters(text: string): string {
  if (!UNUSUAL.test(text)) return text;
  let clean = text.replace(NEW_LINES, '\n');
  if (!UNUSUAL.test(clean)) return clean;
  clean = clean.replace(NOTHING, '').replace(SPACES, ' ');
  // without a function for each match: all matches at once would be kept for it
  if (LIGATURE.test(clean))
    for (const [ligature, letters] of LIGATURES) clean = clean.replace(ligature, letters);
  return clean.toWellFormed().normalize('NFC');
}

/** Clean characters, no blanks at line ends, at most one empty line between two others. Indentation stays. */
export function cleanText(text: string): string {
  const clean = cleanCharacters(text);
  const lines: string[] = [];
  for (let at = 0; at <= clean.length; ) {
    const end = clean.indexOf('\n', at);
    const line = clean.slice(at, end === -1 ? clean.length : end).trimEnd();
    if (line !== '' || (lines.length > 0 && lines.at(-1) !== '')) lines.push(line);
    if (end === -1) break;
    at = end + 1;
  }
  if (lines.at(-1) === '') lines.pop();
  return lines.join('\n');
}

/** A piece within a line: every run of white space is one blank. Keeps one at either end. */
export const cleanInline = (text: string): string => cleanCharacters(text).replace(/\s+/g, ' ');
