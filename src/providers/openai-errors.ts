import { APIConnectionError, APIConnectionTimeoutError, APIError } from 'openai';
import { ProviderError, type ProviderErrorCode, type ProviderErrorKind } from './errors.ts';
import { maskSecret } from './mask.ts';
import { providerLimits } from './rate-limit-headers.ts';
import { retryAfterMs } from './retry-after.ts';

/** An HTTP error with its whole body, whatever its shape; never leaves the provider, for the body may echo the key. */
export class StatusError extends APIError {
  readonly httpStatus: number;
  readonly fault: ProviderFault;
  readonly answerHeaders: Headers;

  constructor(status: number, body: unknown, text: string | undefined, headers: Headers) {
    super(status, undefined, undefined, headers);
    this.httpStatus = status;
    this.fault = readFault(body, text ?? null);
    this.answerHeaders = headers;
  }

  /** The request parameter that a 400 refuses as such (not its value's type), or null. */
  refusedParameter(): string | null {
    const { code, message, param } = this.fault;
    if (this.httpStatus !== 400 && this.httpStatus !== 422) return null;
    const refused =
      /^unsupported_(parameter|value)$/.test(code) || /unsupported (parameter|value)/i.test(message);
    const name = param ?? /'(temperature|max_tokens|max_completion_tokens)'/.exec(message)?.[1] ?? null;
    return refused && name !== null && /^(temperature|max_tokens|max_completion_tokens)$/.test(name)
      ? name
      : null;
  }
}

/** What a provider's error body says, brought to one shape. Not masked. */
export interface ProviderFault {
  code: string;
  type: string;
  param: string | null;
  message: string;
}

/**
 * Reads the error bodies that are found in the wild: `{error: {message, type, code}}` (OpenAI and most),
 * `[{error: …}]` (Gemini), `{error: "text"}` (Ollama), `{message, type}` (Mistral), `{detail: …}` (FastAPI servers).
 */
export function readFault(body: unknown, text: string | null): ProviderFault {
  const outer = Array.isArray(body) ? body[0] : body;
  const inner = isRecord(outer) ? (outer.error ?? outer) : outer;
  if (!isRecord(inner)) {
    return { code: '', type: '', param: null, message: typeof inner === 'string' ? inner : plainText(text) };
  }
  const message = inner.message ?? inner.detail ?? '';
  return {
    code: typeof inner.code === 'string' || typeof inner.code === 'number' ? String(inner.code) : '',
    type: typeof inner.type === 'string' ? inner.type : typeof inner.status === 'string' ? inner.status : '',
    param: typeof inner.param === 'string' ? inner.param : null,
    message: typeof message === 'string' ? message : JSON.stringify(message),
  };
}

/** A proxy's HTML page says nothing to a person; its first words do. */
function plainText(text: string | null): string {
  return (text ?? '')
    .replace(/<style[\s\S]*?<\/style>|<[^>]*>/g, ' ')
    .replace(/\s+/g, ' ')
    .trim();
}

const OVERFLOW =
  /context[ _]?(length|window|size)|maximum context|prompt is too long|too many (input )?tokens|reduce the length|input (token count|length).*exceed|exceeds? the (available |model's |maximum )?(context|number of tokens)|request too large/i;
const NO_CREDIT =
  /insufficient[ _](quota|balance|credit|funds)|billing|exceeded your current quota|out of credits|credit balance/i;
const FILTER = /content[ _](filter|policy|management)|moderation|flagged|safety/i;

interface Verdict {
  kind: ProviderErrorKind;
  code: ProviderErrorCode;
}

/** What an HTTP status and a fault mean: the one table from a provider's words to ours. */
export function judge(status: number, fault: ProviderFault): Verdict {
  const said = `${fault.code} ${fault.type} ${fault.message}`;
  if (status === 401) return { kind: 'credential', code: 'invalid_api_key' };
  if (status === 402) return { kind: 'credential', code: 'insufficient_quota' };
  if (status === 403) {
    if (FILTER.test(said)) return { kind: 'permanent', code: 'content_filter' };
    return { kind: 'credential', code: NO_CREDIT.test(said) ? 'insufficient_quota' : 'permission_denied' };
  }
  if (status === 429) {
    // Waiting never helps here: an empty account (OpenAI), or one request larger than a minute's tokens.
    if (/insufficient_quota|billing_hard_limit|insufficient (balance|credit)|credit balance/i.test(said)) {
      return { kind: 'credential', code: 'insufficient_quota' };
    }
    if (/request too large/i.test(said)) return { kind: 'context_overflow', code: 'context_length_exceeded' };
    return { kind: 'rate_limited', code: 'rate_limit' };
  }
  if (status === 413) return { kind: 'context_overflow', code: 'context_length_exceeded' };
  if (status === 408) return { kind: 'retry', code: 'timeout' };
  if (status === 409 || status === 425) return { kind: 'retry', code: 'server_error' };
  if (status === 503 || status === 529) return { kind: 'retry', code: 'overloaded' };
  if (status >= 500) return { kind: 'retry', code: 'server_error' };
  if (status >= 300 && status < 400) return { kind: 'permanent', code: 'redirect' };
  if (status === 404 || status === 405) {
    const model = /model/i.test(said) && !/url|route|path/i.test(fault.message);
    return { kind: 'permanent', code: model ? 'model_not_found' : 'not_found' };
  }
  if (OVERFLOW.test(said)) return { kind: 'context_overflow', code: 'context_length_exceeded' };
  if (/invalid_api_key|api[ _]key (not valid|is invalid|not found)|invalid api[ _]key/i.test(said)) {
    return { kind: 'credential', code: 'invalid_api_key' };
  }
  if (NO_CREDIT.test(said)) return { kind: 'credential', code: 'insufficient_quota' };
  if (/content_filter|content_policy|responsible ?ai|content management policy/i.test(said)) {
    return { kind: 'permanent', code: 'content_filter' };
  }
  if (
    /model_not_found|model_not_exist|(unknown|invalid) model|model .*(not found|does not exist)/i.test(said)
  ) {
    return { kind: 'permanent', code: 'model_not_found' };
  }
  return { kind: 'permanent', code: 'invalid_request' };
}

/** The error of an HTTP answer. @param headers of that answer; null where the fault came inside a 200 */
export function errorFromFault(
  status: number,
  fault: ProviderFault,
  headers: { get(name: string): string | null } | null,
  apiKey: string,
): ProviderError {
  const { kind, code } = judge(status, fault);
  const wait =
    headers && (kind === 'rate_limited' || kind === 'retry') ? retryAfterMs(headers, Date.now()) : null;
  // A refused key's message is the place where providers echo the key, and says nothing beyond the code.
  const said = code === 'invalid_api_key' ? '' : maskSecret(fault.message, apiKey).slice(0, 500);
  const message =
    code === 'invalid_api_key'
      ? `The provider refused the API key (HTTP ${status}).`
      : `The provider answered HTTP ${status}${said ? `: ${said}` : '.'}`;
  const limits = headers && providerLimits(headers, Date.now());
  return new ProviderError({ kind, code, message, status, retryAfterMs: wait, limits });
}

/** How a call ended besides what was thrown. */
export interface ThrownContext {
  apiKey: string;
  /** The caller's signal fired before the time limit. */
  aborted: boolean;
  /** The time limit in milliseconds if it fired, else null. */
  timedOutAfterMs: number | null;
}

/** Whatever the SDK or the transport threw, as our error. Nothing of the original is attached. */
export function errorFromThrown(error: unknown, context: ThrownContext): ProviderError {
  if (context.aborted) {
    return new ProviderError({
      kind: 'aborted',
      code: 'aborted',
      message: 'The call was stopped by its caller.',
    });
  }
  if (context.timedOutAfterMs !== null || error instanceof APIConnectionTimeoutError) {
    const after = context.timedOutAfterMs === null ? '' : ` within ${context.timedOutAfterMs} ms`;
    return new ProviderError({
      kind: 'retry',
      code: 'timeout',
      message: `The provider did not answer${after}.`,
    });
  }
  if (error instanceof StatusError) {
    return errorFromFault(error.httpStatus, error.fault, error.answerHeaders, context.apiKey);
  }
  if (error instanceof SyntaxError) {
    return new ProviderError({
      kind: 'retry',
      code: 'bad_response',
      message: 'The provider’s answer is not JSON.',
    });
  }
  const code = systemCode(error);
  if (code === 'UND_ERR_RES_EXCEEDED_MAX_SIZE' || code === 'ERR_BUFFER_TOO_LARGE' || code?.startsWith('Z_')) {
    return new ProviderError({
      kind: 'retry',
      code: 'bad_response',
      message: `The provider’s answer cannot be read (${code}).`,
    });
  }
  if (error instanceof APIConnectionError || code !== null) {
    return new ProviderError({
      kind: 'retry',
      code: code === 'UND_ERR_CONNECT_TIMEOUT' || code === 'ETIMEDOUT' ? 'timeout' : 'connection',
      message: `The connection to the provider failed${code ? ` (${code})` : ''}.`,
    });
  }
  const what =
    error instanceof Error ? maskSecret(error.message, context.apiKey).slice(0, 500) : 'unknown failure';
  return new ProviderError({
    kind: 'permanent',
    code: 'invalid_request',
    message: `The call was not sent: ${what}`,
  });
}

/** The first system or undici code in a chain of causes, such as ECONNREFUSED. */
function systemCode(error: unknown): string | null {
  let at: unknown = error;
  for (let depth = 0; depth < 5 && at instanceof Error; depth++) {
    const code = (at as { code?: unknown }).code;
    if (typeof code === 'string' && /^[A-Z][A-Z0-9_]+$/.test(code)) return code;
    at = at instanceof AggregateError ? at.errors[0] : at.cause;
  }
  return null;
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
