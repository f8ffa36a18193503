/**
 * Tools of MCP servers as functions: schemas a second, of the tools that real servers list and of everything in tests/fixtures/tool-schemas.
 *
 * One call converts one tool, as when a single one has changed; nothing is kept from one call to the next but what the runtime keeps.
 */
import { convertTools } from '../src/pipelines/mcp/conversion/convert-tools.ts';
import { corpus } from '../tests/pipelines/mcp/corpus.ts';
import type { Line, Result } from './support/result.ts';
import { median } from './support/stats.ts';

const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 5);
const SECONDS = 2;
const GOAL = 5_000;

export async function bench(): Promise<Result> {
  const servers = corpus.filter(({ file }) => file.startsWith('server-'));
  return {
    bench: 'conversion',
    lines: [
      line(
        'tools of real MCP servers',
        servers.flatMap(({ tools }) => tools),
      ),
      line(
        'the whole corpus, known breakers included',
        corpus.flatMap(({ tools }) => tools),
      ),
    ],
  };
}

function line(measured: string, tools: Parameters<typeof convertTools>[0]): Line {
  const rates: number[] = [];
  for (let round = -1; round < ROUNDS; round++) {
    const started = performance.now();
    let converted = 0;
    do {
      for (const tool of tools) convertTools([tool]);
      converted += tools.length;
    } while (performance.now() - started < SECONDS * 1000);
    // the first round warms the compiler
    if (round >= 0) rates.push(converted / ((performance.now() - started) / 1000));
  }
  const rate = median(rates);
  const { functions } = convertTools(tools);
  const strict = functions.filter((each) => each.strict).length;
  return {
    measured: `schemas to functions: ${measured}`,
    agentd: `${Math.round(rate).toLocaleString('en')} schemas/s`,
    beside: null,
    goal: `≥ ${GOAL.toLocaleString('en')}/s`,
    met: rate >= GOAL,
    note: `${tools.length} tools, one a call; median of ${ROUNDS} rounds of ${SECONDS} s; ${strict} of ${functions.length} functions strict`,
  };
}
