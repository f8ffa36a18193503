/** The vectors that the embeddings server makes, and how they are written. */

export type EmbeddingItem = { object: 'embedding'; index: number; embedding: string | (number | null)[] };

/** The vector that the server makes of a text: of unit length, the same for the same text. */
export function vectorOf(text: string, dimensions: number): number[] {
  let state = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) state = Math.imul(state ^ text.charCodeAt(i), 0x01000193) >>> 0;
  let sum = 0;
  const numbers = Array.from({ length: dimensions }, () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    const number = state / 2 ** 31 - 1;
    sum += number * number;
    return number;
  });
  const length = Math.sqrt(sum);
  return numbers.map((number) => Math.fround(number / length));
}

/** A text's vector as it stands in an answer. @param change of the numbers, before they are written */
export function embeddingItem(
  text: string,
  index: number,
  dimensions: number,
  isBase64: boolean,
  change?: (text: string, numbers: number[]) => (number | null)[],
): EmbeddingItem {
  const made = vectorOf(text, dimensions);
  const numbers = change?.(text, made) ?? made;
  if (!isBase64) return { object: 'embedding', index, embedding: numbers };
  const bytes = Float32Array.from(numbers, (number) => number ?? Number.NaN);
  return { object: 'embedding', index, embedding: Buffer.from(bytes.buffer).toString('base64') };
}
