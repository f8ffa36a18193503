// docs/schema.md: every table by domain, for application developers. From the catalog's facts, so the same on every server.
import type { Fact } from '../src/db/catalog.ts';
import { documents } from '../src/db/compatibility/documents.ts';
import { type Domain, domains, type TableNote } from './schema-notes.ts';

const HEAD = `# The schema

Written by \`npm run db:generate\` from the catalog and from notes; do not edit.

Every table of schema \`public\`, by domain: what a row is, which of the five platform documents it comes from (a document's own name for it in
brackets), and who writes what. [sql-interface.md](sql-interface.md) shows the work with them; [src/db/schema.txt](../src/db/schema.txt)
has every column, index, policy and function.

- "The worker" writes for you: the agentd process, and the triggers and functions that come with it.
- "Your application" is whatever writes as \`service_role\`, or as a signed-in user where row security lets him.
- "On the way" says that the worker will write it and does not yet.
- A table that no document has was made for what the documents leave open: runs that survive their worker, budgets, exact usage.

A line of a diagram reads from the table that has the foreign key to the one that it refers to, with the column's name; a circle on the other end:
it may be null. Left out, because they are everywhere: \`workspace_id\` to \`workspaces\`, and what refers to \`auth.users\`.
`;

/** Renders the page. A table without a note is on it all the same, at the end. */
export function schemaDocument(facts: readonly Fact[]): string {
  const tables = tablesOf(facts);
  const noted = new Set(domains.flatMap((domain) => Object.keys(domain.tables)));
  const rest = tables.filter((table) => !noted.has(table));
  const all: readonly Domain[] =
    rest.length === 0
      ? domains
      : [
          ...domains,
          {
            title: 'Others',
            about: 'Tables that have no note yet.',
            tables: Object.fromEntries(
              rest.map((table) => [table, { what: '', worker: '', application: '' }]),
            ),
          },
        ];
  const contents = all.map(({ title }) => `- [${title}](#${title.toLowerCase().replaceAll(' ', '-')})`);
  const views = facts.filter(
    (fact) => fact.kind === 'relation' && fact.schema === 'public' && /^view/.test(fact.text),
  );
  return `${[
    HEAD,
    [...contents, ...(views.length === 0 ? [] : ['- [Views](#views)'])].join('\n'),
    ...all.map((domain) => section(domain, facts, new Set(tables))),
    ...(views.length === 0 ? [] : [viewSection(views, facts)]),
  ]
    .join('\n\n')
    .replaceAll(/\n{3,}/g, '\n\n')}\n`;
}

/** Tables of the schemas public and agentd, the latter with their schema. */
export function tablesOf(facts: readonly Fact[]): string[] {
  return facts
    .filter((fact) => fact.kind === 'relation' && /^(partitioned )?table/.test(fact.text))
    .filter((fact) => fact.schema === 'public' || fact.schema === 'agentd')
    .map((fact) => (fact.schema === 'public' ? fact.relation : `${fact.schema}.${fact.relation}`));
}

function section(domain: Domain, facts: readonly Fact[], tables: ReadonlySet<string>): string {
  const here = Object.entries(domain.tables).filter(([table]) => tables.has(table));
  const lines = here.map(
    ([table, note]) =>
      `| \`${table}\` | ${purpose(table, note, facts)} | ${documentsOf(table) || '–'} | ${note.worker || '–'} | ${note.application || '–'} |`,
  );
  const diagram = diagramOf(new Set(here.map(([table]) => table)), facts);
  return [
    `## ${domain.title}`,
    domain.about,
    ...(diagram === null ? [] : [diagram]),
    [
      '| table | a row is | from | the worker writes | your application writes |',
      '|---|---|---|---|---|',
      ...lines,
    ].join('\n'),
  ].join('\n\n');
}

const escaped = (text: string): string => text.replaceAll('|', '\\|').replaceAll(/\s+/g, ' ');

/** The table's comment in the database, else its note. */
function purpose(table: string, note: TableNote, facts: readonly Fact[]): string {
  const [schema, relation] = table.includes('.') ? table.split('.') : ['public', table];
  const comment = facts.find(
    (fact) =>
      fact.kind === 'comment' && fact.schema === schema && fact.relation === relation && fact.name === '',
  );
  return escaped(comment?.text ?? note.what);
}

/** The documents that a table comes from, each with its own name for it where that is another. */
export function documentsOf(table: string): string {
  return documents
    .flatMap((document) =>
      Object.entries(document.tables)
        .filter(([, spec]) => spec.from === table || (spec.from === 'auth.users' && table === 'profiles'))
        .map(([name]) => (name === table ? document.title : `${document.title} (\`${name}\`)`)),
    )
    .join(', ');
}

/** Foreign keys of these tables; null where they have none. Parents in other domains are in it by their name alone. */
function diagramOf(tables: ReadonlySet<string>, facts: readonly Fact[]): string | null {
  const lines = facts.flatMap((fact) => {
    if (fact.kind !== 'constraint' || fact.schema !== 'public' || !tables.has(fact.relation)) return [];
    const [, from = '', to] =
      /^FOREIGN KEY \(([^)]*)\) REFERENCES (?:public\.)?([a-z_]+)\(/.exec(fact.text) ?? [];
    if (to === undefined || (to === 'workspaces' && !tables.has('workspaces'))) return [];
    const columns = from
      .split(', ')
      .filter((column, _, list) => column !== 'workspace_id' || list.length === 1);
    const column = columns.at(-1) ?? from;
    const mayBeNull = !facts.some(
      (other) =>
        other.kind === 'column' &&
        other.schema === 'public' &&
        other.relation === fact.relation &&
        other.name === column &&
        / not null/.test(other.text),
    );
    return [`  ${fact.relation} }o--${mayBeNull ? 'o|' : '||'} ${to} : ${column}`];
  });
  if (lines.length === 0) return null;
  return ['```mermaid', 'erDiagram', ...[...new Set(lines)].sort(), '```'].join('\n');
}

function viewSection(views: readonly Fact[], facts: readonly Fact[]): string {
  const none: TableNote = { what: '', worker: '', application: '' };
  const lines = views.map((view) => `| \`${view.relation}\` | ${purpose(view.relation, none, facts)} |`);
  return [
    '## Views',
    'For reading; each shows a signed-in user what belongs to his workspaces.',
    ['| view | a row is |', '|---|---|', ...lines].join('\n'),
  ].join('\n\n');
}
