/** The offline embedder finds by words, always the same. */
import { createHash } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { featureHashEmbedder } from '../../src/providers/feature-hash.ts';

const forever = { signal: new AbortController().signal };

async function similarity(a: string, b: string, dimensions = 1536): Promise<number> {
  const { vectors } = await featureHashEmbedder(dimensions).embed([a, b], forever);
  const [x, y] = vectors as [Float32Array, Float32Array];
  return x.reduce((sum, number, i) => sum + number * (y[i] as number), 0);
}

/** The place of the passage that a question is nearest to. */
async function nearest(question: string, passages: readonly string[], dimensions?: number): Promise<number> {
  const scores = await Promise.all(passages.map((passage) => similarity(question, passage, dimensions)));
  return scores.indexOf(Math.max(...scores));
}

const HANDBOOK = [
  'Invoices are sent on the first working day of each month. Late payments are charged a fee of two per cent after thirty days.',
  'The espresso machine is descaled every two weeks with citric acid. Rinse the boiler twice before you brew coffee again.',
  'Employees have thirty days of holidays a year. Requests for vacation are approved by the team lead within a week.',
  'Passwords have at least sixteen characters and are kept in the password manager. Two-factor authentication is required.',
  'Die Kaffeemaschine wird alle zwei Wochen entkalkt. Danach wird der Wassertank gründlich ausgespült.',
  '返品は商品の到着から十四日以内に受け付けます。送料はお客様のご負担となります。',
  'Les factures impayées sont transmises au service de recouvrement après soixante jours.',
  'Backups run every night at two. A restore is rehearsed each quarter and its duration is written down.',
];

describe('the right passage is found', () => {
  test.each([
    ['When are invoices sent?', 0],
    ['how do I descale the espresso machine', 1],
    ['How many days of holiday does an employee have?', 2],
    ['password length', 3],
    ['Wie oft muss man die Kaffeemaschine entkalken?', 4],
    ['返品はいつまで受け付けますか', 5],
    ['facture impayee', 6],
    ['restoring a backup', 7],
  ] as const)('%s', async (question, place) => {
    expect(await nearest(question, HANDBOOK)).toBe(place);
    expect(await nearest(question, HANDBOOK, 512)).toBe(place);
  });
});

describe('vectors', () => {
  test('are of unit length and finite, whatever the text', async () => {
    const texts = [
      '',
      ' ',
      '🙂🙂',
      'a',
      'a'.repeat(100_000),
      '\u{d800}',
      '1 2 3',
      'the and of',
      '<|endoftext|>',
      'ー',
      'ไทย',
    ];
    for (const dimensions of [16, 256, 1536]) {
      const { vectors } = await featureHashEmbedder(dimensions).embed(texts, forever);
      for (const vector of vectors) {
        expect(vector).toHaveLength(dimensions);
        expect(vector.every(Number.isFinite)).toBe(true);
        expect(Math.hypot(...vector)).toBeCloseTo(1, 4);
      }
    }
  });

  test('are those of feature-hash-v1, for ever: what is stored was made by other versions', async () => {
    const { vectors } = await featureHashEmbedder(64).embed(HANDBOOK, forever);
    const rounded = vectors.map((vector) => Array.from(vector, (number) => Math.round(number * 1e5)));
    expect(createHash('sha256').update(JSON.stringify(rounded)).digest('hex').slice(0, 16)).toBe(
      '9e2f837c4477aabc',
    );
  });

  test('disregard case, accents and Unicode form', async () => {
    expect(await similarity('CAFÉ Brûlée', 'cafe brulee')).toBeCloseTo(1, 5);
    expect(await similarity('é', 'e\u0301')).toBeCloseTo(1, 5);
  });

  test('of unrelated texts are nearly orthogonal', async () => {
    expect(Math.abs(await similarity(HANDBOOK[0] as string, HANDBOOK[1] as string))).toBeLessThan(0.15);
  });
});

test('it obeys its signal between texts', async () => {
  const stop = new AbortController();
  const reason = new Error('drained');
  stop.abort(reason);
  await expect(featureHashEmbedder(64).embed(['a'], { signal: stop.signal })).rejects.toBe(reason);
});

test('it refuses dimensions that can hold nothing', () => {
  expect(() => featureHashEmbedder(8)).toThrow(RangeError);
});
