/** What OpenAI's documentation says of `POST /v1/embeddings`, as a check of a request's body. */
import { countTokens } from 'gpt-tokenizer/encoding/cl100k_base';
import type { EmbeddingCatalog } from '../../src/providers/embedding-models.ts';
import { type ChatFault, fault, wrongType } from './chat-faults.ts';
import { isRecord } from './tool-schema-rules.ts';

export const MAX_ITEMS = 2_048;
export const MAX_ITEM_TOKENS = 8_192;
export const MAX_TOKENS = 300_000;

const PARAMETERS = new Set(['input', 'model', 'encoding_format', 'dimensions', 'user']);

export type EmbeddingBody = {
  model: string;
  input: string[];
  encoding_format?: 'float' | 'base64';
  dimensions?: number;
};

/** Tokens as OpenAI's embedding models count them; special tokens in a text are plain text. */
export function tokensOf(text: string): number {
  return countTokens(text, { disallowedSpecial: new Set() });
}

/** Null when the real API would take the body; models are checked elsewhere. */
export function embeddingRequestFault(body: unknown, catalog: EmbeddingCatalog): ChatFault | null {
  if (!isRecord(body)) return fault('We could not parse the JSON body of your request.', null);
  if (body.model === undefined || body.model === '') return fault('you must provide a model parameter', null);
  if (typeof body.model !== 'string') return wrongType('model', 'a string', body.model);
  const unknown = Object.keys(body).find((key) => !PARAMETERS.has(key));
  if (unknown) return fault(`Unrecognized request argument supplied: ${unknown}`, null);
  const { encoding_format: format, dimensions } = body;
  if (format !== undefined && format !== 'float' && format !== 'base64') {
    return fault(
      `Invalid value: '${String(format)}'. Supported values are: 'float' and 'base64'.`,
      'encoding_format',
    );
  }
  if (dimensions !== undefined) {
    const known = catalog.model(body.model);
    if (typeof dimensions !== 'number' || !Number.isInteger(dimensions)) {
      return wrongType('dimensions', 'an integer', dimensions);
    }
    if (known && !known.isShortenable)
      return fault('This model does not support specifying dimensions.', null);
    if (dimensions < 1 || (known && dimensions > known.dimensions)) {
      return fault(
        `Invalid value for 'dimensions' = ${dimensions}. Must be between 1 and ${known?.dimensions ?? 'what it makes'}.`,
        null,
      );
    }
  }
  return inputFault(body.input);
}

function inputFault(given: unknown): ChatFault | null {
  const input = typeof given === 'string' ? [given] : given;
  if (!Array.isArray(input) || input.length === 0) return fault("'$.input' is invalid.", 'input');
  if (input.length > MAX_ITEMS) {
    return fault(
      `Invalid 'input': array too long. Expected an array with maximum length ${MAX_ITEMS}, but got an array with length ${input.length} instead.`,
      'input',
    );
  }
  let total = 0;
  for (const text of input) {
    if (typeof text !== 'string') return wrongType('input', 'a string or a list of strings', text);
    if (text === '') return fault("'$.input' is invalid: input cannot be an empty string.", 'input');
    const tokens = tokensOf(text);
    if (tokens > MAX_ITEM_TOKENS) {
      return fault(
        `This model's maximum context length is ${MAX_ITEM_TOKENS} tokens, however you requested ${tokens} tokens (${tokens} in your prompt; 0 for the completion). Please reduce your prompt; or completion length.`,
        null,
      );
    }
    total += tokens;
  }
  return total > MAX_TOKENS
    ? fault(`Requested ${total} tokens, max ${MAX_TOKENS} tokens per request`, null)
    : null;
}
