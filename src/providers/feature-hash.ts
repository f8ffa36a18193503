/**
 * An embedder without a model: the words of a text, hashed into a vector.
 *
 * It knows no meanings: two texts are near each other when they share words, or words that are spelt alike ("invoice",
 * "invoices"). That finds the right passage when a question uses its words. Rare words count more than common ones by a guess from
 * their length, since there is no corpus to count them in.
 *
 * The same text makes the same vector on every machine and in every version of `feature-hash-v1`: what is changed here needs a new name.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { EmbeddedTexts, Embedder } from './embeddings.ts';

export const FEATURE_HASH_MODEL = 'feature-hash-v1';

/** Texts of one request: few, for each takes the processor's time and not a server's. */
const MAX_ITEMS = 64;
/** Milliseconds after which others get a turn of the event loop. */
const TURN_MS = 5;
/** Longer words are cut: a text without a blank is no word. */
const LONGEST_WORD = 64;
/** Weight of a word's beginning beside that of the word, and its length: what it shares with its other forms. */
const STEM = 0.6;
const STEM_LENGTH = 6;
/** Share of a word's weight that its pieces carry together. */
const PIECES = 0.2;
const PIECE_LENGTHS = [3, 4] as const;
/** Weight of two successive words beside that of one. */
const PAIR = 0.3;

const RUN =
  /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}ー]+|[\p{L}\p{M}\p{N}]+/gu;
const WITHOUT_BLANKS =
  /^[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}ー]/u;

/** Makes {@link FEATURE_HASH_MODEL} vectors: no key, no network, no cost, of unit length. @param dimensions at least 16 */
export function featureHashEmbedder(dimensions: number): Embedder {
  if (!Number.isInteger(dimensions) || dimensions < 16) {
    throw new RangeError(`Feature hashing needs at least 16 dimensions, not ${dimensions}.`);
  }
  return {
    model: FEATURE_HASH_MODEL,
    dimensions,
    maxItems: MAX_ITEMS,
    maxTokensPerRequest: 300_000,
    maxItemTokens: 8_192,
    limitKey: null,
    async embed(texts, { signal }): Promise<EmbeddedTexts> {
      const vectors: Float32Array[] = [];
      let turn = performance.now();
      for (const text of texts) {
        if (signal.aborted) throw signal.reason;
        vectors.push(hashText(text, dimensions));
        if (performance.now() - turn < TURN_MS) continue;
        await nextTurn();
        turn = performance.now();
      }
      return { vectors, tokens: 0, isReported: true, costMicros: 0, limits: null };
    },
  };
}

function hashText(text: string, dimensions: number): Float32Array {
  const weights = featureWeights(text);
  const vector = new Float32Array(dimensions);
  for (const [feature, weight] of weights) {
    // A sign from another bit than the place: what collides adds nothing on average.
    const hash = mix(feature);
    vector[hash % dimensions] =
      (vector[hash % dimensions] as number) + (hash & 0x80000000 ? -weight : weight);
  }
  let sum = 0;
  for (const number of vector) sum += number * number;
  if (sum === 0) {
    // No word at all, or all of them cancelled out: still a vector, and the same for the same text.
    vector[mix(fnv(text)) % dimensions] = 1;
    return vector;
  }
  const length = Math.sqrt(sum);
  for (let i = 0; i < dimensions; i++) vector[i] = (vector[i] as number) / length;
  return vector;
}

/** Features by their hash: words, pairs of words, and pieces of words. */
function featureWeights(text: string): Map<number, number> {
  const counts = new Map<string, number>();
  const pairs = new Map<string, number>();
  let previous: string | null = null;
  for (const word of wordsOf(text)) {
    counts.set(word, (counts.get(word) ?? 0) + 1);
    if (previous !== null) {
      const pair = `${previous} ${word}`;
      pairs.set(pair, (pairs.get(pair) ?? 0) + 1);
    }
    previous = word;
  }
  const weights = new Map<number, number>();
  const add = (feature: string, weight: number): void => {
    const hash = fnv(feature);
    weights.set(hash, (weights.get(hash) ?? 0) + weight);
  };
  for (const [word, count] of counts) {
    const weight = rarity(word) * (1 + Math.log(count));
    add(`w${word}`, weight);
    if (WITHOUT_BLANKS.test(word)) continue;
    if (word.length >= STEM_LENGTH - 1) add(`s${word.slice(0, STEM_LENGTH)}`, STEM * weight);
    const pieces = piecesOf(word);
    // The squares of the pieces' weights sum to the square of their share.
    for (const piece of pieces) add(`p${piece}`, (PIECES * weight) / Math.sqrt(pieces.length));
  }
  for (const [pair, count] of pairs) {
    const [first = '', second = ''] = pair.split(' ');
    add(`b${pair}`, PAIR * Math.min(rarity(first), rarity(second)) * (1 + Math.log(count)));
  }
  return weights;
}

/**
 * Words in lower case, without accents. Where words are not set apart by blanks (Chinese, Japanese, Thai), every two
 * characters.
 */
function* wordsOf(text: string): Generator<string> {
  const plain = text
    .normalize('NFKD')
    .replace(/[\u0300-\u036f]/g, '')
    .normalize('NFC')
    .toLowerCase();
  for (const [run] of plain.matchAll(RUN)) {
    if (!WITHOUT_BLANKS.test(run)) {
      yield run.slice(0, LONGEST_WORD);
      continue;
    }
    const characters = [...run];
    if (characters.length === 1) yield run;
    for (let i = 0; i + 1 < characters.length; i++) yield `${characters[i]}${characters[i + 1]}`;
  }
}

/** Frequent words are short, in every language: what stands for the inverse document frequency. Figures tell much. */
function rarity(word: string): number {
  if (/\p{N}/u.test(word) || WITHOUT_BLANKS.test(word)) return 1;
  if (COMMON.has(word)) return 0.1;
  return Math.min(1, 0.2 + 0.13 * word.length);
}

/** The most frequent words of English, German, French, Spanish, Italian and Portuguese that are longer than rarity() expects. */
const COMMON = new Set(
  (
    'the and for are was were with that this from have has had not but what which when where who how why does did can could will would ' +
    'should shall may might must been being its their there they them then than these those your you our his her she him all any into onto about also ' +
    'other some such only more most very just over under after before because while each both between through during here ' +
    'der die das den dem des ein eine einer eines einem einen und oder aber nicht mit von fur auf aus bei nach sich sind ist war wird werden auch wie was wann ' +
    'les des une est dans pour que qui sur avec pas plus par sont cette ces aux los las del una por con para como mas esta este pero ' +
    'che per con non una sono della nel alla gli uma dos das nao com mais'
  ).split(' '),
);

function piecesOf(word: string): string[] {
  const characters = [...`<${word}>`];
  if (characters.length < 5) return [];
  const pieces: string[] = [];
  for (const length of PIECE_LENGTHS) {
    for (let i = 0; i + length <= characters.length; i++)
      pieces.push(characters.slice(i, i + length).join(''));
  }
  return pieces;
}

/** FNV-1a of 32 bits over UTF-16 code units. */
function fnv(text: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) {
    hash ^= text.charCodeAt(i);
    hash = Math.imul(hash, 0x01000193);
  }
  return hash >>> 0;
}

/** Murmur3's last step: FNV's low bits alone are poorly mixed. */
function mix(hash: number): number {
  let h = hash;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}
