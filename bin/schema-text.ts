// The schema as a text that people read in reviews: src/db/schema.txt.
import type { Fact, FactKind } from '../src/db/catalog.ts';

/** Sections under a table, in this order. */
const SECTIONS: readonly (readonly [kind: FactKind, title: string])[] = [
  ['column', 'columns'],
  ['constraint', 'constraints'],
  ['index', 'indexes'],
  ['trigger', 'triggers'],
  ['policy', 'policies'],
  ['grant', 'grants'],
];

/** Renders facts as text: schemas with their enums, tables, views and functions, each with all that belongs to it. */
export function schemaText(facts: readonly Fact[]): string {
  const lines = [
    'The schema that the migrations make. Written by: npm run db:generate. Do not edit.',
    'Left out: partitions (agentd.p_…), the record of migrations, the schema of pg-boss.',
    '',
    `extensions: ${of(facts, 'extension')
      .map((fact) => fact.name)
      .join(', ')}`,
  ];
  const schemas = [...new Set(facts.map((fact) => fact.schema))].filter((schema) => schema !== '').sort();
  for (const schema of schemas) {
    const here = facts.filter((fact) => fact.schema === schema);
    lines.push('', '', `# Schema ${schema}`);
    section(
      lines,
      'grants',
      here.filter((fact) => fact.kind === 'grant' && fact.relation === ''),
    );
    section(lines, 'enums', of(here, 'enum'));
    const relations = of(here, 'relation');
    const tables = relations.filter((relation) => !isView(relation));
    for (const relation of [...tables, ...relations.filter(isView)]) relationText(lines, relation, here);
    for (const fn of of(here, 'function')) functionText(lines, fn, here);
  }
  return `${lines.map((line) => line.trimEnd()).join('\n')}\n`;
}

const of = (facts: readonly Fact[], kind: FactKind): Fact[] => facts.filter((fact) => fact.kind === kind);

const isView = (relation: Fact): boolean => /^(materialized )?view,/.test(relation.text);

function section(lines: string[], title: string, facts: readonly Fact[]): void {
  if (facts.length === 0) return;
  lines.push(`  ${title}`);
  const width = Math.max(...facts.map((fact) => fact.name.length));
  for (const fact of facts) {
    lines.push(
      ...`    ${fact.name.padEnd(width)} ${fact.text}`
        .split('\n')
        .map((line, i) => (i ? `      ${line}` : line)),
    );
  }
}

function relationText(lines: string[], relation: Fact, all: readonly Fact[]): void {
  const here = all.filter((fact) => fact.relation === relation.relation);
  lines.push('', `## ${relation.schema}.${relation.relation}: ${relation.text}`);
  const comments = of(here, 'comment');
  for (const comment of comments.filter((fact) => fact.name === '')) lines.push(`  ${comment.text}`);
  for (const [kind, title] of SECTIONS) {
    const facts = of(here, kind);
    if (kind === 'column') facts.sort((a, b) => a.position - b.position);
    section(lines, title, facts);
  }
  section(
    lines,
    'comments',
    comments.filter((fact) => fact.name !== ''),
  );
  for (const view of of(here, 'view')) lines.push('  definition', ...indented(view.text));
}

function functionText(lines: string[], fn: Fact, all: readonly Fact[]): void {
  lines.push('', `## ${fn.schema}.${fn.relation}: function, owner ${fn.name}`);
  section(
    lines,
    'grants',
    of(all, 'grant').filter((fact) => fact.relation === fn.relation),
  );
  lines.push(...indented(fn.text));
}

const indented = (text: string): string[] => text.split('\n').map((line) => `    ${line}`);
