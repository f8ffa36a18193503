/** How `agentd embeddings` prints moves. */
import type { MoveReport } from '../db/embedding-reports.ts';
import { nameOf } from './embedding-target.ts';
import { cost, count, cut, orDash, shortId, statusStyle } from './format.ts';
import type { Output } from './output.ts';

/** Moves with their progress. */
export function printMoves(output: Output, rows: readonly MoveReport[]): void {
  output.table(
    rows,
    [
      { title: 'WORKSPACE', value: (row) => cut(row.workspace_name, 24) },
      { title: 'ID', value: (row) => shortId(row.workspace_id) },
      { title: 'TO', value: (row) => cut(nameOf(row), 48) },
      { title: 'STATUS', value: (row) => row.status, style: (row) => statusStyle(row.status) },
      {
        title: 'PASSAGES',
        value: (row) =>
          `${count(row.status === 'completed' ? row.chunks : row.done_chunks)}/${count(row.chunks)}`,
        align: 'right',
      },
      { title: 'TOKENS', value: (row) => count(row.embedded_tokens), align: 'right' },
      { title: 'COST', value: (row) => cost(row.cost_micros), align: 'right' },
      {
        title: 'REASON',
        value: (row) =>
          cut(orDash(row.reason_code === null ? null : `${row.reason_code}: ${row.reason}`), 90),
      },
    ],
    'There are none.',
  );
}
