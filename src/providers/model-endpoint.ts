/** Whether a model endpoint answers and takes the key: what `agentd doctor` asks before any run has to find out. */
import { maskSecret } from './mask.ts';
import { providerFetch } from './provider-fetch.ts';

export const DEFAULT_BASE_URL = 'https://api.openai.com/v1';

/** What the endpoint said. `status` is null when no HTTP answer came, and `detail` then says why. */
export type EndpointAnswer = { readonly status: number | null; readonly detail: string };

/** Asks for the list of models, which costs nothing. Never throws; the key is never part of the answer. */
export async function askModelEndpoint(
  baseUrl: string,
  apiKey: string,
  deadlineMs: number,
): Promise<EndpointAnswer> {
  try {
    const response = await providerFetch(`${baseUrl.replace(/\/+$/, '')}/models`, {
      headers: { authorization: `Bearer ${apiKey}`, accept: 'application/json' },
      signal: AbortSignal.timeout(deadlineMs),
    });
    return { status: response.status, detail: response.statusText };
  } catch (error) {
    const { name, message } = error instanceof Error ? error : new Error(String(error));
    const detail = name === 'TimeoutError' ? `no answer within ${deadlineMs} ms` : message;
    return { status: null, detail: maskSecret(detail, apiKey) };
  }
}
