/** The models that misbehave, each with the task that meets it. */
import type { Scripted } from '../peers/model-server.ts';
import type { Columns, StepColumns } from '../support/platform.ts';

/** What the model does in each scenario: the answers to its requests in order; the last one stands for all further ones. */
export const scripts: Record<string, readonly Scripted[]> = {
  'healthy run': [{ content: 'fine' }],
  'nonsense body': [{ body: 'no json' }],
  'foreign body': [{ body: '{"hello":1}' }],
  'nonsense once': [{ body: '<html>busy</html>' }, { content: 'better' }],
  nothing: [{ content: '' }],
  'nothing once': [{ content: '  ' }, { content: 'something' }],
  refusal: [{ refusal: 'I can’t help with that.' }],
  'content filter': [{ content: '', finishReason: 'content_filter' }],
  'cut off': [{ content: 'The beginning', finishReason: 'length' }],
  'cut off at once': [{ content: '', finishReason: 'length' }],
  'malformed arguments': [
    { toolCalls: [{ name: 'current_time', arguments: '{"timezone": "UT' }] },
    { content: 'done' },
  ],
  'unknown tool': [{ toolCalls: [{ name: 'launch', arguments: {} }] }, { content: 'done' }],
  'impossible tool name': [{ toolCalls: [{ name: 'search the web!', arguments: {} }] }, { content: 'done' }],
  overflow: [
    {
      status: 400,
      error: { code: 'context_length_exceeded', message: 'maximum context length is 8 tokens' },
    },
  ],
  'no such model': [{ status: 404, error: { code: 'model_not_found', message: 'The model does not exist' } }],
  'short rate limit': [
    { status: 429, headers: { 'retry-after-ms': '40' }, error: { code: 'rate_limit_exceeded' } },
    { content: 'served' },
  ],
  'server errors': [
    { status: 500, headers: { 'retry-after-ms': '20' } },
    { status: 503, headers: { 'retry-after-ms': '20' } },
    { content: 'recovered' },
  ],
  'server errors for ever': [{ status: 500, headers: { 'retry-after-ms': '10' } }],
  'dropped connection': [{ drop: true }, { content: 'reconnected' }],
  hang: [{ hang: true }],
  'rate limit without a pause': [{ status: 429, headers: { 'retry-after': '0' } }],
  characters: [{ content: 'a\u0000b\ud800c' }, { content: 'second' }],
  'characters in arguments': [
    { toolCalls: [{ name: 'current_time', arguments: '{"timezone":"\\u0000\\ud800"}' }] },
    { content: 'done' },
  ],
  'characters in argument names': [
    { toolCalls: [{ name: 'current_time', arguments: '{"\\u0000":"x"}' }] },
    { content: 'done' },
  ],
  'a megabyte': [{ content: `begin ${'x'.repeat(1_000_000)} end` }, { content: 'second' }],
  'absurd usage': [{ content: 'ok', usage: { promptTokens: 3e9, completionTokens: 1 } }],
  'no usage': [{ content: 'ok', usage: null }],
  'tools for ever': [{ toolCalls: [{ name: 'current_time', arguments: {} }] }],
};

export const stepsOf: Record<string, StepColumns[]> = {
  hang: [{ timeoutSeconds: 1 }],
  characters: [{}, { previous: true }],
  'a megabyte': [{}, { previous: true }],
};
export const columnsOf: Record<string, Columns> = {
  'rate limit without a pause': { timeout_seconds: 3 },
  'nonsense body': { max_retries: 1 },
  'nonsense once': { max_retries: 1 },
  nothing: { max_retries: 1 },
  'nothing once': { max_retries: 1 },
};
