/**
 * What a public schema document says, and where agentd keeps it: the words in which the data files of this folder are written.
 *
 * A table of a document is shown as a view of the document's own schema. Where every column is a column of the public table, under
 * whatever name, the view is simple: PostgreSQL writes through it by itself, `ON CONFLICT` included. Where one is not, triggers
 * write, and `ON CONFLICT` is refused.
 */

/** A column whose name and type the public table has too: the type, as the document says it. */
export type ColumnSpec = string | MappedColumn;

export type MappedColumn = {
  /** As the document says it, in small letters. */
  readonly type: string;
  /** The public column, where it has another name. */
  readonly from?: string;
  /** The default of inserts through the view, where it is not the public column's: an SQL expression. */
  readonly default?: string;
  /** Only the platform reads it (service_role and its like); to signed-in users it is null. Written by whoever may write the row. */
  readonly secret?: true;
  /** The public column is an enum where the document has text: shown as text. */
  readonly asText?: true;
  /** Spellings that are understood when they are written, and what they become. */
  readonly spellings?: Readonly<Record<string, string>>;
  /** The document's own text id of this row: its application's, or the uuid as text. */
  readonly isKey?: true;
  /** The text id of a row of another public table. */
  readonly refersTo?: 'agents' | 'api_connections' | 'agent_messages' | 'conversations' | 'users';
};

/** One table of a document. */
export type TableSpec = {
  /** The table of schema public that has its rows. */
  readonly from: string;
  readonly columns: Readonly<Record<string, ColumnSpec>>;
  /** Which rows of the public table are the document's: a condition on `t`. */
  readonly where?: string;
  /** Written by hand, in hand-written.ts: the reason why it cannot be generated. */
  readonly byHand?: string;
};

/** One document, and the schema of this name that serves it. */
export type DocumentSpec = {
  readonly schema: string;
  readonly title: string;
  /** Name of the document's file among the tests' documents. */
  readonly file: string;
  readonly tables: Readonly<Record<string, TableSpec>>;
  /** Enums that the document names: types of schema public. */
  readonly enums: readonly string[];
  /** Functions of schema public that the document names, under the same name and arguments. */
  readonly functions: readonly string[];
  /** What the document has and the schema has not, or has otherwise: `table.column`, or another name, and the reason. */
  readonly exceptions: Readonly<Record<string, string>>;
};

/** Agents and workspaces that their owner shows to everyone are for documents that know of such: others see their own. */
const ofMine = (id: string): string =>
  `(not t.is_public or ${id} = any (array(select agentd.my_workspace_ids())) or (select agentd.is_service_caller()))`;
export const NO_FOREIGN_AGENTS = ofMine('t.workspace_id');
export const NO_FOREIGN_WORKSPACES = ofMine('t.id');

/** A column with everything said. */
export function mapped(name: string, spec: ColumnSpec): MappedColumn & { readonly from: string } {
  const column = typeof spec === 'string' ? { type: spec } : spec;
  return { ...column, from: column.from ?? name };
}

/** Whether PostgreSQL writes through the table's view by itself. */
export function isSimple(table: TableSpec): boolean {
  return (
    table.byHand === undefined &&
    Object.entries(table.columns).every(([name, spec]) => {
      const column = mapped(name, spec);
      return !column.secret && !column.asText && !column.isKey && !column.refersTo && !column.spellings;
    })
  );
}
