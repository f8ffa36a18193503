/** How a word that does not fit is cut: after punctuation where there is some, else anywhere but within a grapheme. */
import { graphemeStart } from './graphemes.ts';
import type { TokenIndex } from './token-index.ts';
import { classAt, LETTER, NUMBER, unitsAt } from './token-pieces.ts';
import { pieceTokenEnds } from './token-table.ts';

/**
 * The end of the first part of a word, at most `limit` tokens of it and at least a character.
 *
 * @param limit not below 4: the tokens of one character
 */
export function wordPartEnd(
  text: string,
  index: TokenIndex,
  start: number,
  end: number,
  limit: number,
): number {
  const places = tokenEnds(text, index, start, end, limit);
  const fits = (place: number): boolean => index.count(start, place) <= limit;
  // A piece may end within a grapheme, before a mark that belongs to its last letter.
  const whole = places.map((place) => graphemeStart(text, start, place)).filter((place) => place > start);
  const last = whole.at(-1) ?? start;
  if (last === end && fits(end)) return end;
  const half = (start + last) >> 1;
  const gentle = whole.findLast((place) => place > half && isBreak(text, place) && fits(place));
  return gentle ?? whole.findLast(fits) ?? places.findLast(fits) ?? start + unitsAt(text, start);
}

/** Ends of pieces up to the limit; where the first piece is longer, ends of its tokens. Ascending. */
function tokenEnds(text: string, index: TokenIndex, start: number, end: number, limit: number): number[] {
  const places: number[] = [];
  let tokens = 0;
  for (let at = start; at < end; ) {
    const next = index.nextPieceEnd(at, end);
    const more = index.count(at, next);
    if (tokens + more > limit) {
      if (places.length > 0) break;
      for (const [units, count] of pieceTokenEnds(text.slice(at, next)))
        if (count <= limit) places.push(at + units);
      break;
    }
    tokens += more;
    places.push(next);
    at = next;
  }
  return places;
}

/** Whether the character before `at` is neither a letter nor a digit. */
function isBreak(text: string, at: number): boolean {
  const low = (text.charCodeAt(at - 1) & 0xfc00) === 0xdc00;
  const kind = classAt(text, low ? at - 2 : at - 1);
  return kind !== LETTER && kind !== NUMBER;
}
