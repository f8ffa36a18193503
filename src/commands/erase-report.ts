/** What `agentd workspace erase` prints. */
import { count, cut } from './format.ts';
import type { Output } from './output.ts';
import type { Erasure, Preview } from './workspace-erase.ts';

type Named = { readonly id: string; readonly name: string };

export function printPreview(output: Output, workspace: Named, preview: Preview): void {
  output.line(`Erasing workspace ${cut(workspace.name, 60)} (${workspace.id}) would delete:\n`);
  output.table(
    preview.tables,
    [
      { title: 'TABLE', value: (row) => row.table },
      { title: 'ROWS', value: (row) => count(row.rows), align: 'right' },
      { title: 'OF OTHERS', value: (row) => (row.others === 0 ? '' : count(row.others)), align: 'right' },
      { title: '', value: (row) => (row.is_kept ? 'kept' : '') },
    ],
    'no rows',
  );
  output.line('');
  if (preview.tables.some((row) => row.others > 0))
    output.line(
      'Rows of others go with what they are about: what was said to its public agents, what was read from its files, uses of its stores.',
    );
  const { files } = preview;
  output.line(`${count(files.deleted)} stored files${files.kept > 0 ? `; ${count(files.kept)} stay` : ''}.`);
  for (const file of files.kept_files)
    output.line(`  stays: ${cut(`${file.bucket}/${file.storage_path}`, 100)}: ${file.reason}`);
  if (preview.jobs > 0) output.line(`${count(preview.jobs)} jobs.`);
  for (const store of preview.stores)
    output.line(`What ${count(store.sources)} sources have in the ${store.kind} store ${store.store}.`);
  if (preview.work.length > 0)
    output.line(`First it stops ${preview.work.map((one) => `${count(one.count)} ${one.kind}`).join(', ')}.`);
}

export function printErasure(output: Output, workspace: Named, erasure: Erasure): void {
  const tables = Object.entries(erasure.rows).map(([table, rows]) => ({ table, rows }));
  output.table(
    tables,
    [
      { title: 'TABLE', value: (row) => row.table },
      { title: 'DELETED', value: (row) => count(row.rows), align: 'right' },
    ],
    'There were no rows.',
  );
  const rows = tables.reduce((sum, row) => sum + row.rows, 0);
  const { files } = erasure;
  output.line(
    `\n${erasure.is_done ? `Workspace ${cut(workspace.name, 60)} (${workspace.id}) is erased` : 'So far'}: ${count(rows)} rows, ` +
      `${count(files.deleted)} stored files, ${count(erasure.jobs)} jobs; ${count(erasure.cancelled_runs)} runs were cancelled.`,
  );
  if (erasure.kept_tables.length > 0) output.line(`Kept: ${erasure.kept_tables.join(', ')}.`);
  for (const { table, reason } of erasure.left_rows) output.line(`Left: ${table}: ${cut(reason, 200)}`);
  for (const file of [...files.failed, ...files.kept_files])
    output.line(`Left: ${cut(`${file.bucket}/${file.storage_path}`, 100)}: ${cut(file.reason, 200)}`);
  const more = files.not_deleted + files.kept - files.failed.length - files.kept_files.length;
  if (more > 0) output.line(`Left: ${count(more)} more files.`);
  for (const store of erasure.left_stores)
    output.line(
      `Daemons go on deleting ${count(store.sources)} sources in the ${store.kind} store ${store.store}` +
        `${store.reason_code === null ? '' : ` (${store.reason_code}: ${cut(store.reason ?? '', 200)})`}. After seven days they give up.`,
    );
  for (const note of erasure.notes) output.line(`- ${note}`);
}
