/** Reads and checks the answer to a request for embeddings. */
import { endianness } from 'node:os';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { EmbeddingError, type EmbeddingUsage } from './embedding-error.ts';

export type EmbeddingAnswer = {
  /** One for each text, in the texts' order. */
  readonly vectors: Float32Array[];
  readonly usage: EmbeddingUsage;
  /** How the provider wrote them. */
  readonly format: 'base64' | 'float';
};

export type AskedEmbeddings = {
  readonly texts: readonly string[];
  readonly model: string;
  readonly dimensions: number;
  /** US dollars for 1,000 tokens; null: unknown. */
  readonly inputPer1k: number | null;
};

/** Vectors are kept as half precision: what is larger overflows there, and what is smaller is zero. */
const LARGEST = 65_504;
const SMALLEST = 2 ** -24;
/** So many vectors are read before others get a turn of the event loop. */
const AT_ONCE = 64;
const MOST_TOKENS = 1e9;
const CHARACTERS_PER_TOKEN = 4;

/**
 * The vectors of an answer: as many as texts, in their order, of the dimensions that were asked for, every number finite, none of
 * them all zeros.
 *
 * Throws EmbeddingError: `wrong_dimensions`, or `provider_error` where the answer is broken (one text may be the reason).
 */
export async function readEmbeddings(body: unknown, asked: AskedEmbeddings): Promise<EmbeddingAnswer> {
  const usage = readUsage(body, asked);
  const broken = (what: string): EmbeddingError =>
    new EmbeddingError(
      'provider_error',
      `The provider’s answer can’t be used: ${what}. If it lasts, check that the base URL is OpenAI-compatible and that ${asked.model} is an embedding model.`,
      { transient: true, mayBeOneText: true, usage },
    );
  const data = isRecord(body) ? body.data : null;
  if (!Array.isArray(data)) throw broken('it has no list of embeddings');
  if (data.length !== asked.texts.length) {
    throw broken(`it has ${data.length} embeddings for ${asked.texts.length} texts`);
  }
  const vectors = new Array<Float32Array | undefined>(data.length);
  let format: EmbeddingAnswer['format'] = 'base64';
  for (const [position, item] of data.entries()) {
    if (position > 0 && position % AT_ONCE === 0) await nextTurn();
    if (!isRecord(item)) throw broken(`embedding ${position} is none`);
    const index = item.index ?? position;
    if (typeof index !== 'number' || !Number.isInteger(index) || index < 0 || index >= data.length) {
      throw broken(`embedding ${position} has the index ${String(index).slice(0, 20)}`);
    }
    if (vectors[index]) throw broken(`two embeddings have the index ${index}`);
    const vector = readVector(item.embedding);
    if (typeof item.embedding !== 'string') format = 'float';
    if (!vector) throw broken(`embedding ${position} is not a list of numbers`);
    if (vector.length !== asked.dimensions) throw wrongDimensions(vector.length, asked, usage);
    const fault = faultOf(vector);
    if (fault) throw broken(`the embedding of text ${index} ${fault}`);
    vectors[index] = vector;
  }
  return { vectors: vectors as Float32Array[], usage, format };
}

function readVector(value: unknown): Float32Array | null {
  if (Array.isArray(value)) {
    // What is no number becomes NaN, which is refused; null would become 0.
    return Float32Array.from(value, (number) => (typeof number === 'number' ? number : Number.NaN));
  }
  if (typeof value !== 'string') return null;
  // A buffer of its own, aligned for the view.
  const bytes = Buffer.from(new ArrayBuffer(Buffer.byteLength(value, 'base64')));
  const length = bytes.write(value, 'base64');
  if (length === 0 || length % 4 !== 0) return null;
  const whole = bytes.subarray(0, length);
  if (endianness() === 'BE') whole.swap32();
  return new Float32Array(whole.buffer, 0, length / 4);
}

function faultOf(vector: Float32Array): string | null {
  let largest = 0;
  for (const number of vector) {
    const size = Math.abs(number);
    // also true of NaN
    if (!(size <= LARGEST)) return 'has numbers that are not finite or too large';
    if (size > largest) largest = size;
  }
  return largest < SMALLEST ? 'is all zeros' : null;
}

function wrongDimensions(got: number, asked: AskedEmbeddings, usage: EmbeddingUsage): EmbeddingError {
  return new EmbeddingError(
    'wrong_dimensions',
    `${asked.model} makes vectors of ${got} dimensions, and ${asked.dimensions} are kept. ` +
      `Set AGENTD_EMBEDDING_DIMENSIONS to ${got}, or choose another model.`,
    { usage },
  );
}

function readUsage(body: unknown, asked: AskedEmbeddings): EmbeddingUsage {
  const said = isRecord(body) && isRecord(body.usage) ? body.usage : {};
  const count = said.prompt_tokens ?? said.total_tokens;
  const isReported = typeof count === 'number' && count >= 0 && count <= MOST_TOKENS;
  const tokens = isReported ? Math.ceil(count) : guessTokens(asked.texts);
  return { tokens, isReported, costMicros: tokens * (asked.inputPer1k ?? 0) * 1_000 };
}

/** About how many tokens texts are, where nobody counted them. */
function guessTokens(texts: readonly string[]): number {
  return Math.ceil(texts.reduce((sum, text) => sum + text.length, 0) / CHARACTERS_PER_TOKEN);
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
