/** Where a text may be cut when nothing else is left. */

const segmenter = new Intl.Segmenter(undefined, { granularity: 'grapheme' });
/** How far back the beginning of a grapheme is looked for: families of emoji and stacked marks are shorter. UTF-16 units. */
const WINDOW = 64;

/**
 * The last beginning of a grapheme at `at` or before it. In a grapheme that is longer than anything a script needs, `at` itself or the
 * unit before it: never within a surrogate pair.
 *
 * @param from the result is greater, always
 */
export function graphemeStart(text: string, from: number, at: number): number {
  if (at >= text.length) return text.length;
  const pair = (text.charCodeAt(at) & 0xfc00) === 0xdc00 && (text.charCodeAt(at - 1) & 0xfc00) === 0xd800;
  const whole = pair ? at - 1 : at;
  // plain letters on both sides: nothing joins
  if (text.charCodeAt(whole) < 0x300 && text.charCodeAt(whole - 1) < 0x300) return whole;
  const window = Math.max(from, whole - WINDOW);
  const slice = text.slice(window, whole + WINDOW);
  const start = window + (segmenter.segment(slice).containing(whole - window)?.index ?? 0);
  if (start > window) return start;
  return whole > from ? whole : at + 1;
}
