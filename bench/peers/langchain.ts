/**
 * LangChain.js from files to a PGVector store: its loaders, its recursive splitter by tokens, its OpenAI embeddings, its store.
 *
 *     node peers/langchain.ts '{"files": […], "warmUp": […], "atOnce": 50, "batchSize": 249, "index": true, "url": "…"}'
 *
 * `atOnce` 1 is what its documentation shows: one document after the other. A page's HTML is made text first, as its transformer for that does.
 * Tokens are counted by gpt-tokenizer, which is faster than the js-tiktoken that it comes with. Prints the seconds and what was stored.
 */
import { readFile } from 'node:fs/promises';
import { DocxLoader } from '@langchain/community/document_loaders/fs/docx';
import { PDFLoader } from '@langchain/community/document_loaders/fs/pdf';
import { HtmlToTextTransformer } from '@langchain/community/document_transformers/html_to_text';
import { PGVectorStore } from '@langchain/community/vectorstores/pgvector';
import { Document } from '@langchain/core/documents';
import { OpenAIEmbeddings } from '@langchain/openai';
import { RecursiveCharacterTextSplitter } from '@langchain/textsplitters';
import { countTokens } from 'gpt-tokenizer/encoding/cl100k_base';

export type LangChainAsked = {
  readonly files: readonly string[];
  readonly warmUp: readonly string[];
  readonly atOnce: number;
  readonly batchSize: number;
  /** Whether the vectors have an HNSW index from the beginning. */
  readonly index: boolean;
  readonly dimensions: number;
  /** Of the embedding server. */
  readonly url: string;
};
export type LangChainEnded = {
  readonly seconds: number;
  /** Processor time of the process in them. */
  readonly cpuSeconds: number;
  readonly chunks: number;
  /** Whether a chunk is found by its own text. */
  readonly found: boolean;
};

const asked = JSON.parse(process.argv[2] ?? '{}') as LangChainAsked;
const embeddings = new OpenAIEmbeddings({
  model: 'text-embedding-3-small',
  dimensions: asked.dimensions,
  batchSize: asked.batchSize,
  maxConcurrency: 8,
  apiKey: 'bench-key',
  configuration: { baseURL: asked.url },
});
const splitter = new RecursiveCharacterTextSplitter({
  chunkSize: 512,
  chunkOverlap: 64,
  lengthFunction: (text) => countTokens(text, { allowedSpecial: new Set(), disallowedSpecial: new Set() }),
});
const toText = new HtmlToTextTransformer();

async function load(file: string): Promise<Document[]> {
  if (file.endsWith('.pdf')) return new PDFLoader(file).load();
  if (file.endsWith('.docx')) return new DocxLoader(file).load();
  const text = new Document({ pageContent: await readFile(file, 'utf8'), metadata: { source: file } });
  return file.endsWith('.html') ? toText.transformDocuments([text]) : [text];
}

async function openStore(tableName: string): Promise<PGVectorStore> {
  const store = await PGVectorStore.initialize(embeddings, {
    postgresConnectionOptions: { connectionString: process.env.DATABASE_URL as string },
    tableName,
    dimensions: asked.dimensions,
  });
  // without a name of its own the second table's index would be taken for the first's, and not be made
  if (asked.index) await store.createHnswIndex({ dimensions: asked.dimensions, namespace: tableName });
  return store;
}

/** Returns how many chunks there are. */
async function ingest(store: PGVectorStore, files: readonly string[]): Promise<number> {
  const left = [...files];
  let chunks = 0;
  const one = async (): Promise<void> => {
    for (let file = left.shift(); file; file = left.shift()) {
      const parts = await splitter.splitDocuments(await load(file));
      await store.addDocuments(parts);
      chunks += parts.length;
    }
  };
  await Promise.all(Array.from({ length: asked.atOnce }, one));
  return chunks;
}

const warm = await openStore('warm_up');
await ingest(warm, asked.warmUp);
await warm.end();
const store = await openStore('documents');
const before = process.cpuUsage();
const began = performance.now();
const chunks = await ingest(store, asked.files);
const seconds = (performance.now() - began) / 1000;
const cpu = process.cpuUsage(before);
const { rows } = await store.pool.query(
  `select count(*)::integer as stored, min(text) as text,
          (select count(*)::integer from pg_indexes where tablename = 'documents' and indexdef like '%hnsw%') as indexes
     from documents`,
);
if (rows[0].stored !== chunks) throw new Error(`${rows[0].stored} of ${chunks} chunks were stored.`);
if (rows[0].indexes !== Number(asked.index))
  throw new Error(`The table has ${rows[0].indexes} indexes of vectors.`);
const [hit] = await store.similaritySearch(rows[0].text, 1);
console.log(
  JSON.stringify({
    seconds,
    cpuSeconds: (cpu.user + cpu.system) / 1e6,
    chunks,
    found: hit?.pageContent === rows[0].text,
  } satisfies LangChainEnded),
);
process.exit(0);
