/** Vectors in a statement: the numbers that were given are those that are stored. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { realArray } from '../../src/db/real-array.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';

let db: TestDatabase;
beforeAll(async () => {
  db = await testDatabase();
});
afterAll(() => db?.dispose());

const stored = async (vectors: readonly (Float32Array | null)[]): Promise<(number[] | null)[]> => {
  const { numbers, places, dimensions } = realArray(vectors);
  const rows = await db.query<{ numbers: number[] | null }>(
    `select ($1::real[])[(p.place - 1) * $3::integer + 1 : p.place * $3::integer] as numbers
       from unnest($2::integer[]) with ordinality p (place, n) order by p.n`,
    [numbers, places, dimensions],
  );
  // the driver reads what PostgreSQL writes of a real as a number of twice the bits
  return rows.map((row) => row.numbers?.map(Math.fround) ?? null);
};

test('every number arrives as it is, and a missing vector is null', async () => {
  const first = Float32Array.of(1, -0.1, 1e-45, 3.4028234663852886e38, -0, Math.fround(1 / 3));
  // a view into a larger buffer, not at its beginning
  const second = Float32Array.from({ length: 9 }, (_, i) => Math.sin(i)).subarray(2, 8);
  expect(await stored([null, first, null, second])).toEqual([null, [...first], null, [...second]]);
});

test('no vectors at all are no numbers', async () => {
  expect(await stored([null, null])).toEqual([null, null]);
});

test('vectors of different lengths are refused before anything is sent', () => {
  expect(() => realArray([Float32Array.of(1, 2), Float32Array.of(1)])).toThrow(RangeError);
});
