/** Text as the database and the tokenizer want it, whatever a file holds. All of it is linear in the text. */

const LIGATURES: Readonly<Record<string, string>> = {
  ﬀ: 'ff',
  ﬁ: 'fi',
  ﬂ: 'fl',
  ﬃ: 'ffi',
  ﬄ: 'ffl',
  ﬅ: 'st',
  ﬆ: 'st',
};

// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const NOTHING = /[\0-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u2060\ufeff\ufffe\uffff]+/g;
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const NEW_LINES = /\r\n?|[\x0b\x0c\x85\u2028\u2029]/g;
const SPACES = /[\xa0\u2000-\u200a\u202f\u205f]/g;

/**
 * Characters only: no NUL and no other control but tab and newline, no lone surrogates, no soft hyphens and zero-width
 * spaces, ligatures spelled out, composed (NFC; not NFKC, which makes x² an x2). Lines end with \n.
 */
export function cleanCharacters(text: string): string {
  return text
    .replace(NEW_LINES, '\n')
    .replace(NOTHING, '')
    .replace(SPACES, ' ')
    .replace(/[ﬀ-ﬆ]/g, (ligature) => LIGATURES[ligature] ?? ligature)
    .toWellFormed()
    .normalize('NFC');
}

/** Clean characters, no blanks at line ends, at most one empty line between two others. Indentation stays. */
export function cleanText(text: string): string {
  return (
    cleanCharacters(text)
      // one match for each run of blanks: a pattern that looks for the newline behind a run starts anew at each blank of it
      .replace(/[ \t]+(\n|$)?/g, (run, end: string | undefined) => end ?? run)
      .replace(/\n{3,}/g, '\n\n')
      .replace(/^\n+|\n+$/g, '')
  );
}

/** A piece within a line: every run of white space is one blank. Keeps one at either end. */
export const cleanInline = (text: string): string => cleanCharacters(text).replace(/\s+/g, ' ');
