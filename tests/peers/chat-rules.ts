import { type ChatFault, fault, idFault, nameFault, wrongType } from './chat-faults.ts';
import { toolsFault } from './chat-tool-rules.ts';
import { isRecord, typeName } from './tool-schema-rules.ts';

/** Null when the real API would take this body of `POST /v1/chat/completions`; otherwise the message of its 400. */
export function validateChatRequest(body: unknown): string | null {
  return chatRequestFault(body)?.message ?? null;
}

const PARAMETERS = new Set(
  (
    'model messages tools tool_choice parallel_tool_calls temperature top_p max_tokens max_completion_tokens n stop seed ' +
    'user presence_penalty frequency_penalty response_format metadata store logprobs top_logprobs logit_bias ' +
    'reasoning_effort verbosity service_tier prompt_cache_key safety_identifier stream stream_options modalities'
  ).split(' '),
);

/** {@link validateChatRequest} with the parameter and code that the error body carries. */
export function chatRequestFault(body: unknown): ChatFault | null {
  if (!isRecord(body)) return fault('We could not parse the JSON body of your request.', null);
  if (body.model === undefined || body.model === '') return fault('you must provide a model parameter', null);
  if (typeof body.model !== 'string') return wrongType('model', 'a string', body.model);
  const unknown = Object.keys(body).find((key) => !PARAMETERS.has(key));
  if (unknown) return fault(`Unrecognized request argument supplied: ${unknown}`, null);
  if (body.stream === true) return fault('This server does not stream.', 'stream');
  return (
    numbersFault(body) ?? reasoningFault(body, body.model) ?? messagesFault(body.messages) ?? toolsFault(body)
  );
}

/** Parameter, least, most, whether only whole numbers. */
const NUMBERS: [string, number, number, boolean][] = [
  ['temperature', 0, 2, false],
  ['top_p', 0, 1, false],
  ['presence_penalty', -2, 2, false],
  ['frequency_penalty', -2, 2, false],
  ['max_tokens', 1, Number.POSITIVE_INFINITY, true],
  ['max_completion_tokens', 1, Number.POSITIVE_INFINITY, true],
  ['n', 1, 128, true],
];

function numbersFault(body: Record<string, unknown>): ChatFault | null {
  for (const [name, least, most, whole] of NUMBERS) {
    const value = body[name];
    if (value === undefined || value === null) continue;
    if (typeof value !== 'number' || (whole && !Number.isInteger(value))) {
      return wrongType(name, whole ? 'an integer' : 'a decimal number', value);
    }
    if (value < least) {
      return fault(
        `Invalid '${name}': below minimum value. Expected a value >= ${least}, but got ${value} instead.`,
        name,
      );
    }
    if (value > most) {
      return fault(
        `Invalid '${name}': above maximum value. Expected a value <= ${most}, but got ${value} instead.`,
        name,
      );
    }
  }
  if (body.max_tokens != null && body.max_completion_tokens != null) {
    return fault("Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.", null);
  }
  return null;
}

/** Reasoning models take neither another temperature than 1 nor the older name of the limit. */
function reasoningFault(body: Record<string, unknown>, model: string): ChatFault | null {
  if (!/^(o\d|gpt-5)/.test(model)) return null;
  if (body.max_tokens != null) {
    return {
      message:
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
      param: 'max_tokens',
      code: 'unsupported_parameter',
    };
  }
  if (body.temperature != null && body.temperature !== 1) {
    return {
      message: `Unsupported value: 'temperature' does not support ${body.temperature} with this model. Only the default (1) value is supported.`,
      param: 'temperature',
      code: 'unsupported_value',
    };
  }
  return null;
}

function messagesFault(messages: unknown): ChatFault | null {
  if (messages === undefined) return fault("Missing required parameter: 'messages'.", 'messages');
  if (!Array.isArray(messages)) return wrongType('messages', 'an array of objects', messages);
  if (messages.length === 0) {
    return fault(
      "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.",
      'messages',
    );
  }
  let open = new Set<string>();
  let openAt = -1;
  for (const [index, message] of messages.entries()) {
    const at = `messages[${index}]`;
    const found = messageFault(message, at);
    if (found) return found;
    if (message.role === 'tool') {
      if (openAt < 0) {
        return fault(
          "Invalid parameter: messages with role 'tool' must be a response to a preceding message with 'tool_calls'.",
          `${at}.role`,
        );
      }
      if (!open.delete(message.tool_call_id)) {
        return fault(
          `Invalid parameter: 'tool_call_id' of '${message.tool_call_id}' not found in 'tool_calls' of previous message.`,
          `${at}.tool_call_id`,
        );
      }
      continue;
    }
    if (open.size > 0) return unanswered(open, openAt);
    openAt = -1;
    if (message.role === 'assistant' && message.tool_calls !== undefined) {
      open = new Set(message.tool_calls.map((call: { id: string }) => call.id));
      openAt = index;
    }
  }
  return open.size > 0 ? unanswered(open, openAt) : null;
}

function unanswered(open: Set<string>, at: number): ChatFault {
  return fault(
    "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. " +
      `The following tool_call_ids did not have response messages: ${[...open].join(', ')}`,
    `messages[${at}].tool_calls`,
  );
}

const MESSAGE_KEYS: Record<string, string[]> = {
  system: ['role', 'content', 'name'],
  developer: ['role', 'content', 'name'],
  user: ['role', 'content', 'name'],
  assistant: ['role', 'content', 'name', 'tool_calls', 'refusal', 'audio'],
  tool: ['role', 'content', 'tool_call_id'],
};
const PARTS: Record<string, string[]> = {
  system: ['text'],
  developer: ['text'],
  user: ['text', 'image_url', 'input_audio', 'file'],
  assistant: ['text', 'refusal'],
  tool: ['text'],
};

function messageFault(message: unknown, at: string): ChatFault | null {
  if (!isRecord(message)) return wrongType(at, 'an object', message);
  const role = message.role;
  if (role === undefined) return fault(`Missing required parameter: '${at}.role'.`, `${at}.role`);
  const keys = typeof role === 'string' ? MESSAGE_KEYS[role] : undefined;
  if (typeof role !== 'string' || !keys) {
    return fault(
      `Invalid value: '${String(role)}'. Supported values are: 'system', 'assistant', 'user', 'tool', and 'developer'.`,
      `${at}.role`,
    );
  }
  const extra = Object.keys(message).find((key) => !keys.includes(key));
  if (extra) return fault(`Unknown parameter: '${at}.${extra}'.`, `${at}.${extra}`);
  if (
    message.name !== undefined &&
    (typeof message.name !== 'string' || !/^[^\s<|\\/>]{1,64}$/.test(message.name))
  ) {
    return fault(`Invalid '${at}.name': string does not match pattern.`, `${at}.name`);
  }
  if (role === 'tool') {
    if (message.tool_call_id === undefined)
      return fault(`Missing required parameter: '${at}.tool_call_id'.`, `${at}.tool_call_id`);
    const id = idFault(message.tool_call_id, `${at}.tool_call_id`);
    if (id) return id;
  }
  if (role === 'assistant') {
    const calls = callsFault(message.tool_calls, at);
    if (calls) return calls;
    const empty = message.content === null || message.content === undefined;
    if (empty && (message.tool_calls !== undefined || typeof message.refusal === 'string')) return null;
  }
  return contentFault(message.content, PARTS[role] ?? [], `${at}.content`);
}

function contentFault(content: unknown, kinds: string[], at: string): ChatFault | null {
  if (typeof content === 'string') return null;
  if (!Array.isArray(content))
    return fault(`Invalid value for 'content': expected a string, got ${typeName(content)}.`, at);
  if (content.length === 0) return fault(`Invalid '${at}': empty array.`, at);
  for (const [index, part] of content.entries()) {
    const place = `${at}[${index}]`;
    if (!isRecord(part)) return wrongType(place, 'an object', part);
    if (typeof part.type !== 'string' || !kinds.includes(part.type)) {
      return fault(
        `Invalid value: '${String(part.type)}'. Supported values are: ${kinds.join(', ')}.`,
        `${place}.type`,
      );
    }
    if (part.type === 'text' && typeof part.text !== 'string')
      return wrongType(`${place}.text`, 'a string', part.text);
    if (part.type === 'image_url' && (!isRecord(part.image_url) || typeof part.image_url.url !== 'string')) {
      return wrongType(`${place}.image_url`, 'an object', part.image_url);
    }
  }
  return null;
}

function callsFault(calls: unknown, message: string): ChatFault | null {
  if (calls === undefined) return null;
  const at = `${message}.tool_calls`;
  if (!Array.isArray(calls)) return wrongType(at, 'an array of objects', calls);
  if (calls.length === 0)
    return fault(`Invalid '${at}': empty array. Expected an array with minimum length 1.`, at);
  const ids = new Set<unknown>();
  for (const [index, call] of calls.entries()) {
    const place = `${at}[${index}]`;
    if (!isRecord(call)) return wrongType(place, 'an object', call);
    const id = idFault(call.id, `${place}.id`);
    if (id) return id;
    if (ids.has(call.id))
      return fault(`Duplicate value for 'tool_call_id' of '${String(call.id)}'.`, `${place}.id`);
    ids.add(call.id);
    if (call.type !== 'function')
      return fault(
        `Invalid value: '${String(call.type)}'. Supported values are: 'function'.`,
        `${place}.type`,
      );
    if (!isRecord(call.function)) return wrongType(`${place}.function`, 'an object', call.function);
    const name = nameFault(call.function.name, `${place}.function.name`);
    if (name) return name;
    if (typeof call.function.arguments !== 'string') {
      return wrongType(`${place}.function.arguments`, 'a string', call.function.arguments);
    }
  }
  return null;
}
