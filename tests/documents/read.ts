/**
 * Reads the five public schema documents as they are, and says what tables, columns, enums, functions and indexes they name.
 *
 * Each document has a notation of its own, so each has a reader; none knows anything of agentd.
 */
import { readFileSync } from 'node:fs';

export type DocumentedColumn = {
  readonly name: string;
  /** In small letters, as written. */
  readonly type: string;
  /** The SQL literal or expression after DEFAULT; null: none. */
  readonly default: string | null;
  /** Words that the document lists for it. */
  readonly words: readonly string[];
  /** Table that it refers to, as the document names it; null: none. */
  readonly refersTo: string | null;
};

export type DocumentedFunction = {
  readonly name: string;
  /** Types of the arguments with their names, in order. */
  readonly arguments: readonly { readonly name: string; readonly type: string }[];
  /** Null where the document does not say. */
  readonly result: string | null;
};

export type DocumentedIndex = {
  /** Null where the document lists columns only. */
  readonly name: string | null;
  readonly table: string;
  readonly columns: readonly string[];
};

export type Documented = {
  readonly tables: ReadonlyMap<string, readonly DocumentedColumn[]>;
  readonly enums: ReadonlyMap<string, readonly string[]>;
  readonly functions: readonly DocumentedFunction[];
  readonly indexes: readonly DocumentedIndex[];
};

/** Reads a document by the name of its schema. */
export function readDocument(schema: string, file: string): Documented {
  const text = readFileSync(new URL(file, import.meta.url), 'utf8');
  const read = readers[schema];
  if (read === undefined) throw new Error(`Nobody reads ${file}.`);
  return { tables: read(text), enums: enumsOf(text), functions: functionsOf(text), indexes: indexesOf(text) };
}

const readers: Readonly<Record<string, (text: string) => Map<string, DocumentedColumn[]>>> = {
  agentopia: bracedTables,
  agentopia_diagram: bulletTables,
  agentcenter: (text) => pipeTables(text, /^#### `(\w+)`$/),
  agent_platform: createTables,
  agentexpress: (text) => pipeTables(text, /^### ([A-Z]\w+)$/, snakeCase),
};

const snakeCase = (name: string): string => name.replace(/(?<=[a-z])(?=[A-Z])/g, '_').toLowerCase();

/** `table {` … `name: type DEFAULT value, -- words` … `}` */
function bracedTables(text: string): Map<string, DocumentedColumn[]> {
  const tables = new Map<string, DocumentedColumn[]>();
  for (const [, table, body] of text.matchAll(/^(\w+) \{\n([\s\S]*?)^\}/gm)) {
    const columns = [...(body as string).matchAll(/^ {2}(\w+): ([^\n]*)$/gm)].map(([, name, rest]) => {
      const [definition = '', comment = ''] = (rest as string).split('--');
      return {
        name: name as string,
        type: (definition.match(/^[\w[\]]+/)?.[0] ?? '').toLowerCase(),
        default: definition.match(/DEFAULT ('[^']*'|[^,\s]+)/)?.[1] ?? null,
        // words in quotes; a comment that gives examples of names lists no words
        words: comment.includes('etc.')
          ? []
          : [...comment.matchAll(/'([\w-]+)'/g)].map((m) => m[1] as string),
        refersTo:
          comment.match(/References ([\w.]+)/)?.[1]?.replace(/^auth\.users\.id$/, 'auth.users') ?? null,
      };
    });
    tables.set(table as string, columns);
  }
  return tables;
}

/** `### public.table` with bullets `name` (type, FK -> table.id). */
function bulletTables(text: string): Map<string, DocumentedColumn[]> {
  const tables = new Map<string, DocumentedColumn[]>();
  let table: string | null = null;
  for (const line of text.split('\n')) {
    const heading = line.match(/^### `(?:public\.)?([\w.]+)`/);
    if (heading) table = heading[1] as string;
    const bullet = line.match(/^ +\* +((?:`\w+`(?:, )?)+) \((\w+(?:\(\d+\))?)([^)]*(?:\([^)]*\)[^)]*)?)\)/);
    if (table === null || !bullet) continue;
    const [, names, type, rest] = bullet as unknown as [string, string, string, string];
    const columns = tables.get(table) ?? [];
    for (const [, name] of names.matchAll(/`(\w+)`/g)) {
      columns.push({
        name: name as string,
        type: type.toLowerCase(),
        default: rest.match(/DEFAULT ('[^']*'|[^,\s)]+)/)?.[1] ?? null,
        words: [...rest.matchAll(/'(\w+)'/g)].map((m) => m[1] as string),
        refersTo: rest.match(/FK -> `([\w.]+)\.id`/)?.[1] ?? null,
      });
    }
    tables.set(table, columns);
  }
  return tables;
}

/** A heading, and below it lines `| name | type | description |`. */
function pipeTables(
  text: string,
  heading: RegExp,
  nameOf: (heading: string) => string = (name) => name,
): Map<string, DocumentedColumn[]> {
  const tables = new Map<string, DocumentedColumn[]>();
  let table: string | null = null;
  for (const line of text.split('\n')) {
    if (line.startsWith('#')) table = line.match(heading)?.[1] ?? null;
    const row = line.match(/^\| *(\w+) *\| *([A-Za-z]\w*(?:\(\d+\)|\[\])?) *\| *(.*?) *\|$/);
    if (table === null || !row || row[1] === 'Column') continue;
    const [, name, type, description] = row as unknown as [string, string, string, string];
    const reference = description.match(/FK to ([\w.]+)|Foreign key to (\w+)|\(([\w.]+) FK\)/);
    const refersTo = reference?.[1] ?? reference?.[2] ?? reference?.[3] ?? null;
    const columns = tables.get(nameOf(table)) ?? [];
    columns.push({
      name,
      type: type.toLowerCase(),
      default: null,
      words: [],
      refersTo: refersTo === null ? null : nameOf(refersTo),
    });
    tables.set(nameOf(table), columns);
  }
  return tables;
}

/** `CREATE TABLE name ( column TYPE … );` */
function createTables(text: string): Map<string, DocumentedColumn[]> {
  const tables = new Map<string, DocumentedColumn[]>();
  for (const [, table, body] of text.matchAll(/CREATE TABLE (\w+) \(\n([\s\S]*?)\n\s*\);/g)) {
    const columns = (body as string).split('\n').map((line) => {
      const [, name = '', type = ''] = line.match(/^ *(\w+) (TIMESTAMP WITH TIME ZONE|\w+)/) ?? [];
      return {
        name,
        type: type === 'TIMESTAMP WITH TIME ZONE' ? 'timestamptz' : type.toLowerCase(),
        default: line.match(/DEFAULT ('[^']*'|[\w.]+(?:\(\))?)/)?.[1] ?? null,
        words: [],
        refersTo: line.match(/REFERENCES (\w+)\(/)?.[1] ?? null,
      };
    });
    tables.set(table as string, columns);
  }
  return tables;
}

/** Headings of enums with their words as bullets. */
function enumsOf(text: string): Map<string, string[]> {
  const enums = new Map<string, string[]>();
  const section = text.match(/^## Enums$([\s\S]*?)^## /m)?.[1] ?? '';
  for (const [, name, body] of section.matchAll(/^### `(\w+)`\n([\s\S]*?)(?=^### |$(?![\s\S]))/gm)) {
    enums.set(
      name as string,
      [...(body as string).matchAll(/^- `(\w+)`/gm)].map((m) => m[1] as string),
    );
  }
  return enums;
}

/** Lines `name(argument type, …) RETURNS type`, and functions that policies call without arguments. */
function functionsOf(text: string): DocumentedFunction[] {
  const found: DocumentedFunction[] = [];
  for (const [, name, args, result] of text.matchAll(/^(\w+)\(([a-z_]+ \w[^)]*)\)(?: RETURNS (\w+).*)?$/gm)) {
    found.push({
      name: name as string,
      arguments: (args as string).split(', ').map((argument) => {
        const [of = '', type = ''] = argument.split(' ');
        return { name: of, type: type.toLowerCase() };
      }),
      result: result?.toLowerCase() ?? null,
    });
  }
  if (/= current_user_id\(\)/.test(text))
    found.push({ name: 'current_user_id', arguments: [], result: null });
  return found;
}

/** CREATE INDEX statements, and lists `- Table: column (unique), column`. */
function indexesOf(text: string): DocumentedIndex[] {
  const found: DocumentedIndex[] = [];
  for (const [, name, table, columns] of text.matchAll(
    /CREATE (?:UNIQUE )?INDEX (\w+) ON (\w+) ?\(([^)]*)\)/g,
  )) {
    found.push({ name: name as string, table: table as string, columns: (columns as string).split(', ') });
  }
  const list = text.match(/^## Indexes$([\s\S]*?)^## /m)?.[1] ?? '';
  for (const [, table, columns] of list.matchAll(/^- (\w+): (.*)$/gm)) {
    for (const column of (columns as string).split(', ')) {
      found.push({ name: null, table: snakeCase(table as string), columns: [column.replace(/ \(.*/, '')] });
    }
  }
  return found;
}
