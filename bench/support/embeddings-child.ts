/**
 * An embeddings server that costs nearly nothing, in a process of its own: each request is answered after so many milliseconds (its
 * argument), with vectors that are put together from pieces made beforehand, the same for the same text. It neither counts tokens nor checks
 * anything. Prints its port; for every line of input, what it was asked for so far.
 */
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { createInterface } from 'node:readline';
import { seeded } from './stats.ts';

export type EmbeddingsAsked = { requests: number; texts: number; mostTexts: number; mostAtOnce: number };

const delayMs = Number(process.argv[2] ?? 50);
const DIMENSIONS = 1536;
const PIECES = 8;
const POOL = 256;
const random = seeded(11);
const gauss = (): number => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
// a piece's bytes are a multiple of three, so that their base64 can be joined
const pool = Array.from({ length: POOL }, () => {
  const numbers = Float32Array.from({ length: DIMENSIONS / PIECES }, gauss);
  const length = Math.hypot(...numbers) * Math.sqrt(PIECES);
  return numbers.map((x) => x / length);
});
const base64 = pool.map((numbers) => Buffer.from(numbers.buffer).toString('base64'));

function piecesOf(text: string): number[] {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193) >>> 0;
  return Array.from({ length: PIECES }, () => {
    hash = (Math.imul(hash, 1_664_525) + 1_013_904_223) >>> 0;
    return hash >>> 24;
  });
}

const asked: EmbeddingsAsked = { requests: 0, texts: 0, mostTexts: 0, mostAtOnce: 0 };
let open = 0;
const server = createServer((request, response) => {
  const parts: Buffer[] = [];
  asked.mostAtOnce = Math.max(asked.mostAtOnce, ++open);
  response.once('close', () => open--);
  request.on('data', (part: Buffer) => parts.push(part));
  request.on('end', () => {
    const arrived = performance.now();
    const body = JSON.parse(Buffer.concat(parts).toString()) as {
      input: string | string[];
      model: string;
      encoding_format?: string;
    };
    const texts = [body.input].flat();
    asked.requests++;
    asked.texts += texts.length;
    asked.mostTexts = Math.max(asked.mostTexts, texts.length);
    const isBase64 = body.encoding_format === 'base64';
    const data = texts.map((text, index) => {
      const pieces = piecesOf(text);
      const embedding = isBase64
        ? `"${pieces.map((piece) => base64[piece]).join('')}"`
        : `[${pieces.map((piece) => pool[piece]?.join(',')).join(',')}]`;
      return `{"object":"embedding","index":${index},"embedding":${embedding}}`;
    });
    const tokens = texts.reduce((sum, text) => sum + Math.ceil(text.length / 4), 0);
    const answer = `{"object":"list","data":[${data.join(',')}],"model":"${body.model}","usage":{"prompt_tokens":${tokens},"total_tokens":${tokens}}}`;
    // the time to put the answer together is part of the delay
    setTimeout(
      () => {
        response.writeHead(200, {
          'content-type': 'application/json',
          'content-length': Buffer.byteLength(answer),
        });
        response.end(answer);
      },
      Math.max(0, delayMs - (performance.now() - arrived)),
    );
  });
});
server.keepAliveTimeout = 60_000;
server.listen(0, '127.0.0.1', () => {
  console.log(JSON.stringify({ port: (server.address() as AddressInfo).port }));
});
createInterface({ input: process.stdin }).on('line', () => {
  console.log(JSON.stringify(asked));
  Object.assign(asked, { requests: 0, texts: 0, mostTexts: 0, mostAtOnce: open });
});
process.on('SIGTERM', () => process.exit(0));
