import type pg from 'pg';
/** Reads the examples of a document: each sql block, and the output that a text block after it promises. */

export type Example = {
  /** The heading that it stands under. */
  readonly heading: string;
  /** Line of the document, for messages. */
  readonly line: number;
  readonly sql: string;
  /** Names of the columns and rows of cells; null where the document promises nothing. */
  readonly output: Table | null;
};

export type Table = { readonly columns: readonly string[]; readonly rows: readonly (readonly string[])[] };

/** The examples in the document's order. Throws for a text block that does not follow an sql block. */
export function readExamples(markdown: string): Example[] {
  const examples: { heading: string; line: number; sql: string; output: Table | null }[] = [];
  let heading = '';
  let block: { language: string; line: number; lines: string[] } | null = null;
  for (const [index, text] of markdown.split('\n').entries()) {
    if (block === null) {
      const fence = /^```(\w*)$/.exec(text);
      if (fence) block = { language: fence[1] ?? '', line: index + 1, lines: [] };
      else heading = /^##+ (.*)$/.exec(text)?.[1] ?? heading;
      continue;
    }
    if (text !== '```') {
      block.lines.push(text);
      continue;
    }
    if (block.language === 'sql') {
      examples.push({ heading, line: block.line, sql: block.lines.join('\n'), output: null });
    } else if (block.language === 'text') {
      const example = examples.at(-1);
      if (!example || example.output !== null) {
        throw new Error(`Line ${block.line}: an output without a statement before it.`);
      }
      example.output = readTable(block.lines);
    }
    block = null;
  }
  return examples;
}

function readTable(lines: readonly string[]): Table {
  const cells = lines.map((line) => line.split('|').map((cell) => cell.trim()));
  return { columns: cells[0] ?? [], rows: cells.slice(1) };
}

/** Null if the table is what was promised, in which `…` stands for anything but nothing; otherwise what differs. */
export function difference(promised: Table, given: Table): string | null {
  if (promised.columns.join() !== given.columns.join()) {
    return `columns: promised ${promised.columns.join(', ')}, given ${given.columns.join(', ')}`;
  }
  if (promised.rows.length !== given.rows.length) {
    return `rows: promised ${promised.rows.length}, given ${given.rows.length}: ${JSON.stringify(given.rows)}`;
  }
  for (const [at, row] of promised.rows.entries()) {
    for (const [column, cell] of row.entries()) {
      const value = given.rows[at]?.[column] ?? '';
      const pattern = new RegExp(`^${cell.split('…').map(escapeRegExp).join('[^]+')}$`);
      if (!pattern.test(value)) {
        return `row ${at + 1}, ${promised.columns[column]}: promised '${cell}', given '${value}'`;
      }
    }
  }
  return null;
}

function escapeRegExp(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
}

/** Runs a block as it stands and gives what its last query gave. */
export async function runExample(client: pg.Client, sql: string): Promise<Table> {
  const answer: pg.QueryArrayResult | pg.QueryArrayResult[] = await client.query({
    text: sql,
    rowMode: 'array',
  });
  const last = [answer].flat().findLast((result) => result.fields.length > 0);
  return {
    columns: last?.fields.map((field) => field.name) ?? [],
    rows: (last?.rows ?? []).map((row: unknown[]) =>
      row.map((value) => (value === null ? '' : String(value))),
    ),
  };
}
