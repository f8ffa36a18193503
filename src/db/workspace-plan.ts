/**
 * Where the rows of a workspace are: derived from the catalog, so that a table that is added later is not forgotten.
 *
 * A row is a workspace's own by its workspace_id, by a reference to the workspace, or by a reference that deletes it together with a row that is.
 * Beside these there are rows of others that can't stay when the workspace's own go, such as what was said to its public agents.
 */
import { type CatalogReference, type CatalogTable, isOurs, quoted } from './workspace-catalog.ts';
import { APART, LINKS, OWNERS } from './workspace-tables.ts';

/** A way to rows. */
export type Path = {
  /** A condition over the alias, in which $1 is the workspace. */
  where(alias: string): string;
  /** The same over `t`. */
  readonly sql: string;
  /** Whether an index leads to them. */
  readonly isIndexed: boolean;
};

export type PlannedTable = CatalogTable & {
  /** Ways to the workspace's own rows. */
  readonly own: readonly Path[];
  /** Ways to rows that go with them, whosever they are. */
  readonly reached: readonly Path[];
};

const WORKSPACES = 'public.workspaces';
const MOST_DEEP = 12;

/** The tables that hold rows of a workspace, those that refer to others before what they refer to. */
export function planWorkspace(catalog: readonly CatalogTable[]): PlannedTable[] {
  const tables = new Map(catalog.filter(({ name }) => !(name in APART)).map((table) => [table.name, table]));
  const own = new Map<string, readonly Path[]>();
  for (const table of tables.values()) own.set(table.name, ownPaths(table, tables, own, 0));
  const reached = new Map<string, readonly Path[]>();
  const covered = [...tables.values()].filter((table) => (own.get(table.name) ?? []).length > 0);
  const pathsOf = (name: string, depth: number): readonly Path[] => {
    const known = reached.get(name);
    const table = tables.get(name);
    if (table === undefined || depth > MOST_DEEP) return [];
    const mine = own.get(name) ?? [];
    if (known !== undefined) return [...mine, ...known];
    const more = new Map<string, Path>();
    for (const reference of cascading(table)) {
      if (reference.to === name) continue;
      for (const path of pathsOf(reference.to, depth + 1)) {
        const through = throughReference(table, reference, path);
        // of the same workspace by its key: the row is found by its own workspace_id
        const isSame = reference.columns.includes('workspace_id') && isPlain(path);
        if (!isSame && !mine.some(({ sql }) => sql === through.sql)) more.set(through.sql, through);
      }
    }
    reached.set(name, [...more.values()]);
    return [...mine, ...more.values()];
  };
  for (const { name } of covered) pathsOf(name, 0);
  return childrenFirst(
    covered.map((table) => ({
      ...table,
      own: own.get(table.name) ?? [],
      reached: reached.get(table.name) ?? [],
    })),
  );
}

const isPlain = ({ sql }: Path): boolean => sql === 't."workspace_id" = $1' || sql === 't."id" = $1';

const cascading = (table: CatalogTable): CatalogReference[] => [
  ...table.references.filter(({ onDelete }) => onDelete === 'cascade'),
  ...linkOf(table),
];

function linkOf(table: CatalogTable): CatalogReference[] {
  const link = LINKS[table.name];
  return link === undefined
    ? []
    : [{ columns: [link.column], to: link.to, toColumns: ['id'], onDelete: 'cascade' }];
}

function ownPaths(
  table: CatalogTable,
  tables: ReadonlyMap<string, CatalogTable>,
  known: ReadonlyMap<string, readonly Path[]>,
  depth: number,
): readonly Path[] {
  const found = known.get(table.name);
  if (found !== undefined) return found;
  const column = workspaceColumn(table);
  if (column !== null)
    return [pathOf((alias) => `${alias}.${quoted(column)} = $1`, table.leading.includes(column))];
  if (depth > MOST_DEEP) return [];
  const owners = OWNERS[table.name];
  const candidates = cascading(table).filter(
    ({ to, columns }) =>
      to !== table.name && (owners === undefined || columns.some((name) => owners.includes(name))),
  );
  return candidates.flatMap((reference) => {
    const parent = tables.get(reference.to);
    if (parent === undefined) return [];
    return ownPaths(parent, tables, known, depth + 1).map((path) => throughReference(table, reference, path));
  });
}

/** The column that names the workspace itself; null: there is none. */
function workspaceColumn(table: CatalogTable): string | null {
  if (table.name === WORKSPACES) return 'id';
  const reference = table.references.find(
    ({ to, columns, onDelete }) => to === WORKSPACES && columns.length === 1 && onDelete === 'cascade',
  );
  if (reference !== undefined) return reference.columns[0] ?? null;
  if (table.name === 'agentd.vault_owners') return 'owner_id';
  // a table of an application's that has such a column, and no reference, may mean something else by it
  const isNamed = table.columns.some(({ name, type }) => name === 'workspace_id' && type === 'uuid');
  return isNamed && isOurs(table.name) ? 'workspace_id' : null;
}

function throughReference(table: CatalogTable, reference: CatalogReference, path: Path): Path {
  const list = (names: readonly string[], alias: string): string =>
    names.map((name) => `${alias}.${quoted(name)}`).join(', ');
  const [schema, relation] = split(reference.to);
  const isIndexed = reference.columns.some((name) => table.leading.includes(name));
  return pathOf((alias) => {
    const columns = list(reference.columns, alias);
    const parent = `${alias}p`;
    return (
      `${reference.columns.length > 1 ? `(${columns})` : columns} in (select ${list(reference.toColumns, parent)}` +
      ` from ${quoted(schema)}.${quoted(relation)} ${parent} where ${path.where(parent)})`
    );
  }, isIndexed);
}

const pathOf = (where: (alias: string) => string, isIndexed: boolean): Path => ({
  where,
  sql: where('t'),
  isIndexed,
});

function split(name: string): [string, string] {
  const at = name.indexOf('.');
  return [name.slice(0, at), name.slice(at + 1)];
}

/** What refers to a table stands before it; where references form a ring, those that delete count. */
function childrenFirst(tables: readonly PlannedTable[]): PlannedTable[] {
  const left = new Map(tables.map((table) => [table.name, table]));
  const order: PlannedTable[] = [];
  const refersTo = (table: PlannedTable, name: string, isHard: boolean): boolean =>
    table.name !== name &&
    [...table.references, ...linkOf(table)].some(
      ({ to, onDelete }) => to === name && !(isHard && onDelete === 'set null'),
    );
  while (left.size > 0) {
    const all = [...left.values()];
    const next =
      all.find(({ name }) => !all.some((other) => refersTo(other, name, false))) ??
      all.find(({ name }) => !all.some((other) => refersTo(other, name, true))) ??
      all[0];
    if (next === undefined) break;
    left.delete(next.name);
    order.push(next);
  }
  return order;
}
