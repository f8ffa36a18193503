import { readdirSync, readFileSync } from 'node:fs';
import type { ListedTool } from '../../../src/pipelines/mcp/conversion/index.ts';

const folder = new URL('../../fixtures/tool-schemas/', import.meta.url);

export type CorpusTool = ListedTool & {
  readonly name: string;
  readonly inputSchema: Record<string, unknown>;
  /** Of the hand-made ones: `strict`, `loose`, or the reason why it is left out. */
  readonly expected?: string;
};

export type CorpusFile = {
  readonly file: string;
  readonly source: string;
  readonly tools: readonly CorpusTool[];
};

/** Every file of tests/fixtures/tool-schemas, by name: `server-*` of real servers, `suite-*` of the JSON Schema test suite, the rest by hand. */
export const corpus: readonly CorpusFile[] = readdirSync(folder)
  .filter((file) => file.endsWith('.json'))
  .toSorted()
  .map((file) => ({
    file,
    ...(JSON.parse(readFileSync(new URL(file, folder), 'utf8')) as Omit<CorpusFile, 'file'>),
  }));
