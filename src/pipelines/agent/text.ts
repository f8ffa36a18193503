/** Texts and what they take of a window. */

/** Bytes, or characters of plain English, that a token stands for on average: to keep within a window or to set aside, never to bill. */
export const BYTES_PER_TOKEN = 4;

/** The beginning of a text, and how many characters are not in it; never half a character. */
export function cutTo(text: string, length: number): { readonly text: string; readonly cut: number } {
  if (text.length <= length) return { text, cut: 0 };
  // not between the halves of a surrogate pair
  const end = /[\uD800-\uDBFF]/.test(text.charAt(length - 1)) ? length - 1 : length;
  return { text: text.slice(0, end), cut: text.length - end };
}

/** The beginning of a text, with a note of how much is missing. */
export function cutWithNote(text: string, length: number): string {
  const { text: kept, cut } = cutTo(text, length);
  return cut > 0 ? `${kept}\n[${cut} more characters were left out]` : kept;
}
