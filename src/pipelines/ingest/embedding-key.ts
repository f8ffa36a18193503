/** What an embedding is kept under, and how it is written. */
import { createHash } from 'node:crypto';
import type { Embedder } from '../../providers/embeddings.ts';

/** sha256 of model, dimensions and text, as a bytea literal: what was paid for once in a workspace is found by it. */
export function embeddingKey(
  { model, dimensions }: Pick<Embedder, 'model' | 'dimensions'>,
  text: string,
): string {
  const key = createHash('sha256').update(JSON.stringify([model, dimensions, text]));
  return `\\x${key.digest('hex')}`;
}

/** A vector as PostgreSQL reads it. Nine digits say a 32-bit number exactly. */
export function vectorLiteral(vector: Float32Array): string {
  return `[${Array.from(vector, (x) => x.toPrecision(9)).join(',')}]`;
}

/** How many vectors one statement writes at most: writing numbers as text is work on the daemon's own thread. */
export function vectorsAtOnce(dimensions: number): number {
  return Math.max(1, Math.floor(NUMBERS_AT_ONCE / dimensions));
}

const NUMBERS_AT_ONCE = 40_000;
