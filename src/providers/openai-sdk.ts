/** The official SDK as a worker needs it: no retries of its own, nothing from the environment, whole error bodies. */
import OpenAI, { type APIError } from 'openai';
import { DEFAULT_BASE_URL } from './model-endpoint.ts';
import { StatusError } from './openai-errors.ts';
import { providerFetch } from './provider-fetch.ts';

export interface OpenAiSdkOptions {
  /** Sent to `baseUrl` and to nowhere else. */
  apiKey: string;
  /** Root of an OpenAI-compatible API; null is OpenAI's own. */
  baseUrl: string | null;
  /** The caller's own time limit, which fires first. */
  timeoutMs: number;
  /** Replaces the transport, for example with one that refuses private addresses. */
  fetch?: typeof fetch | undefined;
}

/** The root of the API without a slash at its end. */
export function apiRoot(baseUrl: string | null): string {
  return (baseUrl?.trim() || DEFAULT_BASE_URL).replace(/\/+$/, '');
}

/** An SDK client for one key and one base URL. */
export function openAiSdk(options: OpenAiSdkOptions): OpenAI {
  return new WorkerOpenAI({
    apiKey: options.apiKey,
    baseURL: apiRoot(options.baseUrl),
    // Everything that the SDK would otherwise read from the environment: it is the operator's, the key may be a tenant's.
    adminAPIKey: null,
    organization: null,
    project: null,
    webhookSecret: null,
    logLevel: 'off',
    maxRetries: 0,
    // The caller's fires first and covers the body as well; the SDK insists on having one.
    timeout: options.timeoutMs + 60_000,
    fetch: besideSdk(options.fetch ?? providerFetch),
  });
}

/** Keeps the whole error body: the SDK drops bodies that have no `error` object (Mistral, Gemini, FastAPI servers). */
class WorkerOpenAI extends OpenAI {
  protected override makeStatusError(
    status: number,
    body: unknown,
    text: string | undefined,
    headers: Headers,
  ): APIError {
    return new StatusError(status, body, text, headers);
  }
}

/** What goes to the transport and comes back beside the SDK, as `fetchOptions` of a request. */
export type CallOptions = { callSignal?: AbortSignal; onHeaders?: (headers: Headers) => void };

/**
 * Hands our signal to the transport beside the SDK instead of through it: the SDK composes its own from it and listens
 * on both, which costs 40 of some 210 µs a call. The answer's headers come back the same way.
 */
function besideSdk(transport: typeof fetch): typeof fetch {
  return async (input, init) => {
    const { callSignal, onHeaders, ...rest }: RequestInit & CallOptions = init ?? {};
    const answer = await transport(input, { ...rest, signal: callSignal ?? init?.signal ?? null });
    onHeaders?.(answer.headers);
    return answer;
  };
}
