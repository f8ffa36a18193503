/** Which embedder is chosen: never an offline one by accident. */
import { expect, test } from 'vitest';
import { loadConfig } from '../../src/config.ts';
import { chooseEmbedder, type EmbeddingCredential } from '../../src/providers/choose-embedder.ts';
import { DocumentError } from '../../src/providers/document-error.ts';
import { loadEmbeddingCatalog } from '../../src/providers/embedding-models.ts';

const catalog = loadEmbeddingCatalog();
const SERVER = { DATABASE_URL: 'postgres://127.0.0.1/x' };

function choose(env: Record<string, string>, credential: EmbeddingCredential | null = null) {
  return chooseEmbedder(loadConfig(env), catalog, credential);
}

function code(choice: () => unknown): string {
  try {
    choice();
  } catch (error) {
    if (error instanceof DocumentError) return error.code;
    throw error;
  }
  return 'none';
}

test('a key, or an endpoint without one, gives the configured model', () => {
  const own = choose({ ...SERVER, OPENAI_API_KEY: 'k' });
  expect(own).toMatchObject({ model: 'text-embedding-3-small', dimensions: 1536, maxItemTokens: 8192 });
  expect(choose({ OPENAI_BASE_URL: 'http://127.0.0.1:1/v1', AGENTD_EMBEDDING_MODEL: 'nomic' }).model).toBe(
    'nomic',
  );
});

test('the document’s own key goes before the environment’s, and has a limit of its own', () => {
  const own = choose({ ...SERVER, OPENAI_API_KEY: 'k' });
  const other = choose({ ...SERVER, OPENAI_API_KEY: 'k' }, { apiKey: 'theirs', baseUrl: null });
  expect(other.limitKey).not.toBe(own.limitKey);
  expect(choose({ ...SERVER, OPENAI_API_KEY: 'k' }).limitKey).toBe(own.limitKey);
  expect(own.limitKey).toMatch(/^[0-9a-f]{64}$/);
});

test('without a key the embedded database gets the offline one, and a server a reason', () => {
  expect(choose({})).toMatchObject({ model: 'feature-hash-v1', dimensions: 1536, limitKey: null });
  expect(code(() => choose(SERVER))).toBe('no_credentials');
  expect(() => choose(SERVER)).toThrow(/OPENAI_API_KEY.*OPENAI_BASE_URL/);
  // nothing was found for the document: the environment's key is not taken in its place
  expect(code(() => choose({ ...SERVER, OPENAI_API_KEY: 'k' }, { apiKey: null, baseUrl: null }))).toBe(
    'no_credentials',
  );
});

test('the offline one can be asked for by name, key or not', () => {
  const env = { ...SERVER, OPENAI_API_KEY: 'k', AGENTD_EMBEDDING_MODEL: 'feature-hash-v1' };
  expect(choose({ ...env, AGENTD_EMBEDDING_DIMENSIONS: '512' })).toMatchObject({
    model: 'feature-hash-v1',
    dimensions: 512,
  });
  expect(code(() => choose({ ...env, AGENTD_EMBEDDING_DIMENSIONS: '8' }))).toBe('wrong_dimensions');
});

test('dimensions that the model can’t make are refused before anything is paid', () => {
  const env = { ...SERVER, OPENAI_API_KEY: 'k', AGENTD_EMBEDDING_DIMENSIONS: '3000' };
  expect(code(() => choose(env))).toBe('wrong_dimensions');
  expect(choose({ ...env, AGENTD_EMBEDDING_MODEL: 'text-embedding-3-large' }).dimensions).toBe(3000);
});
