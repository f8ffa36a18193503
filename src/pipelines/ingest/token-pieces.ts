/** Where cl100k_base cuts a text before it merges: its regular expression, written out as a scanner. */

export const OTHER = 0;
export const LETTER = 1;
export const NUMBER = 2;
export const BLANK = 3;
export const NEWLINE = 4;
const UNKNOWN = 255;

/** Classes of the characters of the basic plane, by code unit; those of pairs are looked up. */
const classes = new Uint8Array(65_536);
for (let unit = 0; unit < classes.length; unit++) classes[unit] = classify(String.fromCharCode(unit));
const pairClasses = new Uint8Array(0x100000).fill(UNKNOWN);

function classify(character: string): number {
  if (character === '\n' || character === '\r') return NEWLINE;
  if (/^\p{L}/u.test(character)) return LETTER;
  if (/^\p{N}/u.test(character)) return NUMBER;
  // White_Space of Unicode, which the provider's tokenizer means by \s; JavaScript's has a byte order mark for a next line
  return /^\p{White_Space}/u.test(character) ? BLANK : OTHER;
}

/** The class of the character that begins at `at`; a pair is one character. */
export function classAt(text: string, at: number): number {
  const unit = text.charCodeAt(at);
  if ((unit & 0xfc00) !== 0xd800) return classes[unit] as number;
  const code = text.codePointAt(at) as number;
  if (code < 0x10000) return OTHER;
  const known = pairClasses[code - 0x10000] as number;
  if (known !== UNKNOWN) return known;
  const found = classify(String.fromCodePoint(code));
  pairClasses[code - 0x10000] = found;
  return found;
}

/** Code units of the character at `at`. */
export function unitsAt(text: string, at: number): number {
  return (text.charCodeAt(at) & 0xfc00) === 0xd800 && (text.charCodeAt(at + 1) & 0xfc00) === 0xdc00 ? 2 : 1;
}

/** The offset after the characters of one class that begin at `at`. */
function runEnd(text: string, at: number, end: number, wanted: number): number {
  let i = at;
  while (i < end && classAt(text, i) === wanted) i += unitsAt(text, i);
  return i;
}

/**
 * The end of the piece that begins at `at`, in the text up to `end`:
 *
 *     '(?:[sdmt]|ll|ve|re) | [^\r\n\p{L}\p{N}]?\p{L}+ | \p{N}{1,3} | ?[^\s\p{L}\p{N}]+[\r\n]* | \s+$ | \s*[\r\n] | \s+(?!\S) | \s
 *
 * A line's break is never followed, within one piece, by a character of the next line.
 */
export function pieceEnd(text: string, at: number, end: number): number {
  const kind = classAt(text, at);
  if (kind === LETTER) return runEnd(text, at, end, LETTER);
  if (kind === NUMBER) {
    let i = at;
    for (let n = 0; n < 3 && i < end && classAt(text, i) === NUMBER; n++) i += unitsAt(text, i);
    return i;
  }
  const second = at + unitsAt(text, at);
  const follows = second < end ? classAt(text, second) : NEWLINE;
  if (kind === OTHER) {
    if (text.charCodeAt(at) === 39) {
      const suffix = contraction(text, second, end);
      if (suffix > 0) return second + suffix;
    }
    if (follows === LETTER) return runEnd(text, second, end, LETTER);
    return runEnd(text, runEnd(text, second, end, OTHER), end, NEWLINE);
  }
  if (kind === BLANK) {
    if (follows === LETTER) return runEnd(text, second, end, LETTER);
    if (follows === OTHER && text.charCodeAt(at) === 32)
      return runEnd(text, runEnd(text, second, end, OTHER), end, NEWLINE);
  }
  let lastBreak = -1;
  let i = at;
  for (; i < end; i++) {
    const space = classes[text.charCodeAt(i)] as number;
    if (space === NEWLINE) lastBreak = i;
    else if (space !== BLANK) break;
  }
  if (i === end) return end;
  if (lastBreak >= 0) return lastBreak + 1;
  return i - at > 1 ? i - 1 : i;
}

/** Units of s, d, m, t, ll, ve or re at `at`, in small or capital letters; 0 where none of them is. */
function contraction(text: string, at: number, end: number): number {
  if (at >= end) return 0;
  // the bit makes ASCII letters small; what else it makes the same as one of these is below 64
  const first = text.charCodeAt(at) | 32;
  if (first > 122 || text.charCodeAt(at) < 65) return 0;
  if (first === 115 || first === 100 || first === 109 || first === 116) return 1;
  if (at + 1 >= end || text.charCodeAt(at + 1) < 65) return 0;
  const second = text.charCodeAt(at + 1) | 32;
  if (first === 108 && second === 108) return 2;
  return (first === 118 || first === 114) && second === 101 ? 2 : 0;
}
