/** How a word that does not fit is cut: after punctuation where there is some, else anywhere but within a grapheme. */
import { graphemeStart } from './graphemes.ts';
import type { TokenIndex } from './token-index.ts';
import { classAt, LETTER, NUMBER, unitsAt } from './token-pieces.ts';

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
  const fits = (place: number): boolean => index.count(start, place) <= limit;
  const places: number[] = [];
  for (let at = start, tokens = 0; at < end; ) {
    const next = index.nextPieceEnd(at, end);
    tokens += index.count(at, next);
    if (tokens > limit) break;
    places.push(next);
    at = next;
  }
  if (places.at(-1) === end && fits(end)) return end;
  const half = (start + (places.at(-1) ?? start)) >> 1;
  const gentle = places.findLast(
    (place) =>
      place > half && isBreak(text, place) && graphemeStart(text, start, place) === place && fits(place),
  );
  if (gentle !== undefined) return gentle;
  for (const place of places.toReversed()) {
    // A piece may end within a grapheme, before a mark that belongs to its last letter.
    const whole = graphemeStart(text, start, place);
    if (whole > start && fits(whole)) return whole;
  }
  return places.findLast(fits) ?? start + unitsAt(text, start);
}

/** Whether the character before `at` is neither a letter nor a digit. */
function isBreak(text: string, at: number): boolean {
  const low = (text.charCodeAt(at - 1) & 0xfc00) === 0xdc00;
  const kind = classAt(text, low ? at - 2 : at - 1);
  return kind !== LETTER && kind !== NUMBER;
}
