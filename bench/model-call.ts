/**
 * CPU of one model call in this process, the network and the server (a child process) left out.
 *
 *     node bench/model-call.ts [calls]
 *
 * Prints microseconds of user and system CPU per call, best of three rounds, and the ratio to a bare undici request.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import OpenAI from 'openai';
import { Agent, request, fetch as undiciFetch } from 'undici';
import { type ModelRequest, openAiModelClient } from '../src/providers/models.ts';
import { providerFetch } from '../src/providers/provider-fetch.ts';

const CALLS = Number(process.argv[2] ?? 3000);
const CONCURRENT = 16;

const server = spawn(
  process.execPath,
  [
    '-e',
    `const answer = JSON.stringify({id:'chatcmpl-1',object:'chat.completion',model:'gpt-4.1-mini',choices:[{index:0,
       message:{role:'assistant',content:'An answer of ordinary length. '.repeat(20)},finish_reason:'stop'}],
       usage:{prompt_tokens:900,completion_tokens:120,total_tokens:1020}});
     const s = require('node:http').createServer((q, r) => { q.resume(); q.on('end', () => {
       r.writeHead(200, {'content-type':'application/json','x-request-id':'r','content-length':Buffer.byteLength(answer)}); r.end(answer); }); });
     s.keepAliveTimeout = 60000;
     s.listen(0, '127.0.0.1', () => console.log(s.address().port));`,
  ],
  { stdio: ['ignore', 'pipe', 'inherit'] },
);
const [first] = await once(server.stdout, 'data');
const baseURL = `http://127.0.0.1:${String(first).trim()}/v1`;

const call: ModelRequest = {
  model: 'gpt-4.1-mini',
  messages: [
    { role: 'system', content: 'You are a careful assistant. '.repeat(40) },
    { role: 'user', content: 'Summarise the following notes. '.repeat(80) },
  ],
  temperature: 0.2,
  idempotencyKey: 'bench',
};
const body = { model: call.model, messages: call.messages, temperature: 0.2 };
const agent = new Agent({ keepAliveTimeout: 30_000 });
const apiKey = 'bench-key';
const overNode = new OpenAI({ apiKey, baseURL, maxRetries: 0 });
const overUndici = new OpenAI({
  apiKey,
  baseURL,
  maxRetries: 0,
  fetch: undiciFetch as unknown as typeof fetch,
  fetchOptions: { dispatcher: agent } as object,
});
const ours = openAiModelClient({ apiKey, baseUrl: baseURL, timeoutMs: 60_000 });
const signal = new AbortController().signal;

const ways: [string, () => Promise<unknown>][] = [
  [
    'bare undici.request',
    async () => {
      const answer = await request(`${baseURL}/chat/completions`, {
        dispatcher: agent,
        method: 'POST',
        headers: { authorization: `Bearer ${apiKey}`, 'content-type': 'application/json' },
        body: JSON.stringify(body),
      });
      return answer.body.json();
    },
  ],
  [
    'providerFetch, no SDK',
    async () => {
      const answer = await providerFetch(`${baseURL}/chat/completions`, {
        method: 'POST',
        headers: { authorization: `Bearer ${apiKey}`, 'content-type': 'application/json' },
        body: JSON.stringify(body),
        signal,
      });
      return answer.json();
    },
  ],
  ['openai, Node fetch', () => overNode.chat.completions.create(body, { signal })],
  ['openai, undici fetch and agent', () => overUndici.chat.completions.create(body, { signal })],
  ['openAiModelClient', () => ours.complete(call, signal)],
];

let bare = 0;
for (const [name, one] of ways) {
  let best = Number.POSITIVE_INFINITY;
  for (let round = 0; round < 4; round++) {
    let left = round === 0 ? 500 : CALLS;
    const total = left;
    const before = process.cpuUsage();
    await Promise.all(
      Array.from({ length: CONCURRENT }, async () => {
        while (left-- > 0) await one();
      }),
    );
    const used = process.cpuUsage(before);
    if (round > 0) best = Math.min(best, (used.user + used.system) / total);
  }
  bare ||= best;
  console.log(`${name.padEnd(32)} ${best.toFixed(0).padStart(6)} µs CPU/call   ${(best / bare).toFixed(2)}x`);
}
server.kill();
