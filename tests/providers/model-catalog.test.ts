import { expect, test } from 'vitest';
import { callCost, loadModelCatalog, parseModelCatalog } from '../../src/providers/model-catalog.ts';

const catalog = loadModelCatalog();

test('providers are found by any spelling of their name', () => {
  for (const name of ['openai', 'OpenAI', 'OPENAI', ' open ai ', 'Open-AI']) {
    expect(catalog.provider(name)?.baseUrl).toBe('https://api.openai.com/v1');
  }
  expect(catalog.provider('Google Gemini')?.name).toBe('google');
  expect(catalog.provider('nobody')).toBeNull();
});

test('a provider on the worker’s own network has no address in the catalog', () => {
  expect(catalog.provider('Ollama')?.baseUrl).toBeNull();
  for (const { baseUrl } of catalog.providers)
    expect(baseUrl === null || baseUrl.startsWith('https://')).toBe(true);
});

test('a dated snapshot has its model’s window and price; another model does not', () => {
  expect(catalog.model('OpenAI', 'gpt-4o-2024-08-06')?.id).toBe('gpt-4o');
  expect(catalog.model('openai', 'gpt-4o-mini')?.id).toBe('gpt-4o-mini');
  expect(catalog.model('openai', 'gpt-4o-audio')).toBeNull();
  expect(catalog.model('groq', 'gpt-4o')).toBeNull();
});

test('each default model is in the catalog', () => {
  for (const { name, defaultModel } of catalog.providers) {
    if (defaultModel !== null) expect(catalog.model(name, defaultModel)).not.toBeNull();
  }
});

test('a call costs its fresh, cached and written tokens, exactly', () => {
  const usage = { promptTokens: 1000, completionTokens: 500, cachedTokens: 400, reported: true };
  expect(callCost({ inputPer1k: 0.002, cachedInputPer1k: 0.0005, outputPer1k: 0.008 }, usage)).toBe(0.0054);
  expect(callCost({ inputPer1k: 0.002, outputPer1k: 0.008 }, usage)).toBe(0.006);
  expect(
    callCost({ inputPer1k: 0.00005, outputPer1k: 0 }, { ...usage, promptTokens: 1, cachedTokens: 0 }),
  ).toBe(5e-8);
});

test('a catalog with a doubled name, an unknown provider or an unknown field is refused', () => {
  const provider = { name: 'a', aliases: [], baseUrl: null, defaultModel: null };
  const model = {
    provider: 'a',
    id: 'm',
    contextWindow: 1,
    maxOutputTokens: 1,
    inputPer1k: 0,
    cachedInputPer1k: null,
    outputPer1k: 0,
  };
  const good = { pricesAsOf: '2025-01', providers: [provider], models: [model] };
  expect(parseModelCatalog(good).models).toHaveLength(1);
  expect(() =>
    parseModelCatalog({ ...good, providers: [provider, { ...provider, name: 'b', aliases: ['a'] }] }),
  ).toThrow(/twice/);
  expect(() => parseModelCatalog({ ...good, models: [{ ...model, provider: 'z' }] })).toThrow(
    /unknown provider/,
  );
  expect(() => parseModelCatalog({ ...good, models: [{ ...model, inputPer1k: -1 }] })).toThrow();
  expect(() =>
    parseModelCatalog({ ...good, providers: [{ ...provider, baseUrl: 'http://10.0.0.1' }] }),
  ).toThrow();
});
