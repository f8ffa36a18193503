/** Rows of the documents' tables, in the documents' own columns. */
import { randomUUID } from 'node:crypto';
import type pg from 'pg';
import { type DocumentSpec, mapped, type TableSpec } from '../../src/db/compatibility/document.ts';
import { documents } from '../../src/db/compatibility/documents.ts';
import { newRow, type Place, referenceRow } from './schema-rows.ts';

export type View = {
  /** schema.table */
  readonly name: string;
  readonly document: DocumentSpec;
  readonly table: TableSpec;
  /** Columns that find one row. */
  readonly key: readonly string[];
};

/** Every table of every document. */
export const views: readonly View[] = documents.flatMap((document) =>
  Object.entries(document.tables).map(([name, table]) => ({
    name: `${document.schema}.${name}`,
    document,
    table,
    key: keyOf(table),
  })),
);

export function viewNamed(name: string): View {
  const view = views.find((candidate) => candidate.name === name);
  if (view === undefined) throw new Error(`No document has ${name}.`);
  return view;
}

function keyOf(table: TableSpec): string[] {
  if ('id' in table.columns) return ['id'];
  const columns = Object.keys(table.columns).filter((name) => /^(user|role|agent|datastore)_id$/.test(name));
  return columns;
}

/** The columns of a new row, as an application of the document would give them. */
export function rowOf({ name, table }: View, at: Place): Record<string, unknown> {
  if (name === 'agentexpress.users') return { email: `${randomUUID()}@example.test`, first_name: 'F' };
  if (name === 'agentopia_diagram.user_roles') return { user_id: at.newcomer, role_id: at.of('roles') };
  if (name === 'agentopia_diagram.chat_channels') return { room_id: at.of('chat_rooms'), name: 'c' };
  if (name === 'agentopia_diagram.chat_room_members') {
    return { room_id: at.of('chat_rooms'), member_type: 'agent', member_id: at.of('agents') };
  }
  if (table.from === 'integration_capabilities') {
    return { integration_id: at.of('service_providers'), capability_key: randomUUID(), display_label: 'l' };
  }
  const columns = newRow[table.from]?.(at) ?? referenceRow[table.from]?.();
  if (columns === undefined) throw new Error(`Nobody makes rows of ${table.from}.`);
  return Object.fromEntries(
    Object.entries(table.columns)
      .map(([column, spec]) => [column, columns[mapped(column, spec).from]] as const)
      .filter(([, value]) => value !== undefined),
  );
}

/** The condition that finds a row, and its values from `$first` on. */
export function found(
  view: View,
  row: Record<string, unknown>,
  first = 1,
): { condition: string; values: unknown[] } {
  return {
    condition: view.key.map((column, i) => `${column} = $${first + i}`).join(' and '),
    values: view.key.map((column) => row[column]),
  };
}

/** Inserts a row and gives it as the view returned it. What stands in its way, of the same company, goes. */
export async function insertRow(
  client: pg.PoolClient,
  view: View,
  columns: Record<string, unknown>,
): Promise<Record<string, unknown>> {
  const names = Object.keys(columns);
  const text = `insert into ${view.name} (${names.map((name) => `"${name}"`)})
                values (${names.map((_, i) => `$${i + 1}`)}) returning *`;
  for (let attempt = 1; ; attempt++) {
    await client.query('savepoint row');
    try {
      const { rows, rowCount } = await client.query(text, Object.values(columns));
      if (rowCount !== 1) throw new Error(`${view.name}: ${rowCount} rows were inserted.`);
      return rows[0];
    } catch (error) {
      await client.query('rollback to savepoint row');
      if (attempt > 1 || (error as { code?: string }).code !== '23505') throw error;
      await client.query(`delete from public.${view.table.from}`);
    }
  }
}
