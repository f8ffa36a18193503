/** Where sentences end: by their punctuation, in the scripts that have some, without a model. */

/** Ends a sentence if a blank follows. */
const BEFORE_BLANK = 1;
/** Ends a sentence whatever follows: scripts that are written without blanks. */
const ANYWHERE = 2;

const ends = new Uint8Array(65_536);
for (const mark of '.!?…؟۔‼⁇⁈⁉') ends[mark.charCodeAt(0)] = BEFORE_BLANK;
for (const mark of '。！？｡．।॥።။។') ends[mark.charCodeAt(0)] = ANYWHERE;

const closing = new Set(')]}"\'*_`”’»›」』）】》〉〗］'.split(''));

/** Titles and the like: a name or more of the sentence follows. */
const BEFORE_WORDS = new Set(
  'mr mrs ms dr prof rev hon gen col lt sgt capt st sr jr mt vs cf viz approx resp incl excl ca bzw evtl ggf dept est e.g i.e z.b d.h u.a'.split(
    ' ',
  ),
);
/** A number follows. */
const BEFORE_NUMBERS = new Set(
  'no nos nr p pp fig figs tab eq eqs eqn sec sect ch chap vol art par jan feb mar apr jun jul aug sep sept oct nov dec bd abb kap'.split(
    ' ',
  ),
);

const isBlank = (unit: number): boolean =>
  unit === 32 || (unit >= 9 && unit <= 13) || unit === 0xa0 || unit === 0x3000 || unit === 0x2028;
const isDigit = (unit: number): boolean => unit >= 48 && unit <= 57;

/**
 * The end of the sentence that begins at `from`, after its closing quotes and brackets, or `end`.
 *
 * @param end of the paragraph, not blank before it
 */
export function sentenceEnd(text: string, from: number, end: number): number {
  for (let at = from; at < end; at++) {
    if (ends[text.charCodeAt(at)] === 0) continue;
    const mark = at;
    let anywhere = false;
    while (at < end && ends[text.charCodeAt(at)] !== 0) {
      anywhere ||= ends[text.charCodeAt(at)] === ANYWHERE;
      at++;
    }
    const marks = at - mark;
    const unclosed = at;
    while (at < end && closing.has(text[at] as string)) at++;
    if (at >= end) return end;
    const closed = at > unclosed;
    if (anywhere) {
      // 「…。」と: what was said is part of the sentence
      if (closed && text[at] === 'と') continue;
      return at;
    }
    if (!isBlank(text.charCodeAt(at))) {
      at--;
      continue;
    }
    let next = at;
    while (next < end && isBlank(text.charCodeAt(next))) next++;
    if (next >= end) return end;
    if (endsHere(text, from, mark, marks, closed, next)) return at;
  }
  return end;
}

/** Whether the marks at `mark`, with blanks after them and the next word at `next`, end a sentence. */
function endsHere(
  text: string,
  from: number,
  mark: number,
  marks: number,
  closed: boolean,
  next: number,
): boolean {
  const stop = text[mark] === '.';
  if (stop || closed || text[mark] === '…') {
    const letter = String.fromCodePoint(text.codePointAt(next) as number);
    if (letter === letter.toLowerCase() && letter !== letter.toUpperCase()) return false;
  }
  if (!stop || marks > 1 || closed) return true;
  let start = mark;
  while (start > from && mark - start < 12 && /[\p{L}\p{N}.]/u.test(text[start - 1] as string)) start--;
  const word = text.slice(start, mark).toLowerCase();
  if (BEFORE_WORDS.has(word)) return false;
  // an initial, or U.S
  if (/^\p{L}(?:\.\p{L})*$/u.test(word)) return false;
  // the number of what follows
  if (start === from && /^\d{1,3}(?:\.\d+)*$/.test(word)) return false;
  return !(BEFORE_NUMBERS.has(word) && (isDigit(text.charCodeAt(next)) || text[next] === '('));
}
