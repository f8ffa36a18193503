/** Vectors as a parameter: one array of real numbers, binary, which PostgreSQL casts slices of to vectors by itself. */

/** Of PostgreSQL's type real. */
const REAL = 700;
const HEADER = 5;

export type RealArray = {
  /** All vectors' numbers one after the other: for a parameter that is cast to real[]. */
  readonly numbers: Buffer;
  /** For each vector its place among those that are there, from 1; null: it is not there. */
  readonly places: readonly (number | null)[];
  /** Numbers of one vector; 0 where there is none. */
  readonly dimensions: number;
};

/**
 * Writes vectors of one length, exactly. Decimal numbers are three times as long, and writing, escaping and reading them was half of what the
 * daemon's own thread did while a document was stored.
 *
 * @throws RangeError for vectors of different lengths
 */
export function realArray(vectors: readonly (Float32Array | null)[]): RealArray {
  const there = vectors.filter((vector) => vector !== null);
  const dimensions = there[0]?.length ?? 0;
  const count = there.length * dimensions;
  // dimensions of the array (1), no nulls (0), the elements' type, their number, the first one's index; then length and number of each
  const words = new Int32Array(HEADER + 2 * count);
  words.set([1, 0, REAL, count, 1]);
  let at = HEADER;
  for (const vector of there) {
    if (vector.length !== dimensions) throw new RangeError('Vectors of one statement are of one length.');
    for (const bits of new Int32Array(vector.buffer, vector.byteOffset, vector.length)) {
      words[at++] = 4;
      words[at++] = bits;
    }
  }
  let place = 0;
  return {
    numbers: Buffer.from(words.buffer).swap32(),
    places: vectors.map((vector) => (vector === null ? null : ++place)),
    dimensions,
  };
}
