/** The statements that make a database again what this version of agentd expects. */
import type { Fact } from '../catalog.ts';
import type { Drift } from './compare.ts';
import { kindOf } from './texts.ts';

/** So that each statement finds what it names. */
const ORDER = [
  'schema',
  'enum',
  'table',
  'column',
  'function',
  'view',
  // of columns, those of views among them
  'change',
  'constraint',
  'index',
  'trigger',
  'policy',
  'option',
  'owner',
  'grant',
] as const;

type Statement = { readonly place: (typeof ORDER)[number]; readonly sql: string };

const quoted = (name: string): string =>
  /^[a-z_][a-z0-9_]*$/.test(name) ? name : `"${name.replaceAll('"', '""')}"`;

/** `schema.name`; a function with its arguments. */
const on = (fact: Fact): string => {
  const [, name = '', rest = ''] = /^([^(]*)(.*)$/s.exec(fact.relation) ?? [];
  return `${quoted(fact.schema)}.${quoted(name)}${rest}`;
};

/**
 * A script for psql, without a transaction around it: indexes are made while others write. Empty where nothing is to be done by a
 * statement. Running it twice does no harm.
 */
export function repairScript(drifts: readonly Drift[], vectorHome: string): string[] {
  const statements = drifts.flatMap(statementsFor);
  if (statements.length === 0) return [];
  const sorted = ORDER.flatMap((place) => statements.filter((statement) => statement.place === place));
  return [
    // names are written as whoever has these schemas in his search_path would write them
    `set search_path = public, ${quoted(vectorHome)}`,
    'set check_function_bodies = off',
    ...new Set(sorted.map((statement) => statement.sql)),
    'reset search_path',
    'reset check_function_bodies',
  ].map((sql) => `${sql.replace(/;\s*$/, '')};`);
}

/** The one statement that repairs a difference, where there is one and it is short enough to be read in a line; else null. */
export function shortRepair(drift: Drift): string | null {
  const statements = statementsFor(drift);
  const sql = statements.map((statement) => `${statement.sql};`).join(' ');
  return statements.length > 0 && sql.length <= 200 && !sql.includes('\n') ? sql : null;
}

/** The statements for one difference, in their order. */
export function statementsFor(drift: Drift): Statement[] {
  const [home] = drift.missing;
  if (home && (home.kind === 'relation' || home.kind === 'schema') && drift.problem.endsWith('is missing'))
    return newObject(drift);
  const wrong = new Map(drift.wrong.map((fact) => [`${fact.kind} ${fact.name}`, fact]));
  const revokes = drift.wrong
    .filter((fact) => fact.kind === 'grant')
    .map((fact) => grant('revoke', fact, 'from'));
  return [
    ...drift.missing.flatMap((fact) =>
      statements(fact, wrong.get(`${fact.kind} ${fact.name}`) ?? null, drift),
    ),
    ...revokes,
  ];
}

function newObject(drift: Drift): Statement[] {
  const [home, ...own] = drift.missing;
  if (!home) return [];
  if (home.kind === 'schema') {
    const grants = own.map((fact) => grant('grant', fact, 'to'));
    return [{ place: 'schema', sql: `create schema if not exists ${quoted(home.schema)}` }, ...grants];
  }
  const kind = kindOf(home);
  const owner = ownerStatement(home, kind);
  if (kind.endsWith('view')) {
    const rest = own.filter((fact) => fact.kind !== 'column' && fact.kind !== 'view');
    const defaults = own
      .filter((fact) => fact.kind === 'column')
      .flatMap((fact) => columnChanges(fact, { ...fact, text: fact.text.replace(/ default .*$/s, '') }));
    const options = home.text.split(', ').filter((part) => part.includes('='));
    const withOptions = options.length > 0 ? ` with (${options.join(', ')})` : '';
    const definition = own.find((fact) => fact.kind === 'view')?.text ?? '';
    const create: Statement = {
      place: 'view',
      sql: `create ${kind} ${on(home)}${withOptions} as\n${definition.replace(/;\s*$/, '')}`,
    };
    return [create, ...defaults, ...owner, ...rest.flatMap((fact) => statements(fact, null, drift))];
  }
  const columns = own.filter((fact) => fact.kind === 'column').map((fact) => `  ${columnText(fact)}`);
  const rest = own.filter((fact) => fact.kind !== 'column' && !isOfConstraint(fact, own));
  const table: Statement = { place: 'table', sql: `create table ${on(home)} (\n${columns.join(',\n')}\n)` };
  const security: Statement[] = home.text.includes('row security')
    ? [{ place: 'option', sql: `alter table ${on(home)} enable row level security` }]
    : [];
  return [table, ...security, ...owner, ...rest.flatMap((fact) => statements(fact, null, drift))];
}

const isOfConstraint = (fact: Fact, own: readonly Fact[]): boolean =>
  fact.kind === 'index' && own.some((other) => other.kind === 'constraint' && other.name === fact.name);

const columnText = (fact: Fact): string =>
  `${quoted(fact.name)} ${fact.text}${/ generated always as \(/.test(fact.text) ? ' stored' : ''}`;

function ownerStatement(fact: Fact, kind: string): Statement[] {
  const owner = /owner ([^,]+)/.exec(fact.text)?.[1];
  const what = kind === 'partitioned table' ? 'table' : kind;
  return owner ? [{ place: 'owner', sql: `alter ${what} ${on(fact)} owner to ${quoted(owner)}` }] : [];
}

function statements(fact: Fact, wrong: Fact | null, drift: Drift): Statement[] {
  const name = quoted(fact.name);
  switch (fact.kind) {
    case 'enum':
      return enumStatements(fact, wrong);
    case 'column':
      return wrong
        ? columnChanges(fact, wrong)
        : [{ place: 'column', sql: `alter table ${on(fact)} add column ${columnText(fact)}` }];
    case 'constraint': {
      const drop = wrong ? `drop constraint ${name}, ` : '';
      return [
        { place: 'constraint', sql: `alter table ${on(fact)} ${drop}add constraint ${name} ${fact.text}` },
      ];
    }
    case 'index':
      return indexStatements(fact, wrong, drift);
    case 'trigger': {
      if (drift.problem.endsWith('is disabled'))
        return [{ place: 'trigger', sql: `alter table ${on(fact)} enable trigger ${name}` }];
      const drop = `drop trigger if exists ${name} on ${on(fact)}`;
      return [{ place: 'trigger', sql: `${wrong ? `${drop};\n` : ''}${fact.text}` }];
    }
    case 'policy': {
      const restrictive = fact.text.startsWith('restrictive ') ? 'as restrictive ' : '';
      const text = `create policy ${name} on ${on(fact)} ${restrictive}${fact.text.replace(/^restrictive /, '')}`;
      return [{ place: 'policy', sql: wrong ? `drop policy ${name} on ${on(fact)};\n${text}` : text }];
    }
    case 'view':
      return [{ place: 'view', sql: `create or replace view ${on(fact)} as\n${fact.text}` }];
    case 'function':
      return functionStatements(fact, drift);
    case 'grant':
      return [grant('grant', fact, 'to')];
    case 'relation':
      if (fact.text === 'row security')
        return [{ place: 'option', sql: `alter table ${on(fact)} enable row level security` }];
      if (fact.text.startsWith('security_'))
        return [{ place: 'option', sql: `alter view ${on(fact)} set (${fact.text})` }];
      return ownerStatement(fact, kindOf(fact));
    default:
      return [];
  }
}

function enumStatements(fact: Fact, wrong: Fact | null): Statement[] {
  const type = `${quoted(fact.schema)}.${quoted(fact.name)}`;
  const labels = fact.text.split(', ').map((label) => `'${label.replaceAll("'", "''")}'`);
  if (!wrong) return [{ place: 'enum', sql: `create type ${type} as enum (${labels.join(', ')})` }];
  return labels.map((label) => ({
    place: 'enum',
    sql: `alter type ${type} add value if not exists ${label}`,
  }));
}

/** What differs of a column: its type, its default, whether it may be null. */
function columnChanges(fact: Fact, wrong: Fact): Statement[] {
  const parts = (text: string): { type: string; isDemanded: boolean; initial: string | null } => {
    const [, type = '', not, initial] = /^(.*?)( not null)?(?: default (.*))?$/s.exec(text) ?? [];
    return { type, isDemanded: not !== undefined, initial: initial ?? null };
  };
  const [to, from] = [parts(fact.text), parts(wrong.text)];
  const name = quoted(fact.name);
  const changes = [
    to.type === from.type ? null : `alter column ${name} type ${to.type} using ${name}::${to.type}`,
    to.initial === from.initial
      ? null
      : `alter column ${name} ${to.initial === null ? 'drop default' : `set default ${to.initial}`}`,
    to.isDemanded === from.isDemanded
      ? null
      : `alter column ${name} ${to.isDemanded ? 'set' : 'drop'} not null`,
  ];
  return changes
    .filter((change) => change !== null)
    .map((change) => ({ place: 'change', sql: `alter table ${on(fact)} ${change}` }));
}

function indexStatements(fact: Fact, wrong: Fact | null, drift: Drift): Statement[] {
  const name = `${quoted(fact.schema)}.${quoted(fact.name)}`;
  if (drift.problem.endsWith('is invalid'))
    return [{ place: 'index', sql: `reindex index concurrently ${name}` }];
  // one of a partitioned table is made for all partitions at once, and not beside those who write
  const isOfPartitions = / ON ONLY /.test(fact.text);
  const create = isOfPartitions
    ? fact.text.replace(' ON ONLY ', ' ON ')
    : fact.text.replace(/^CREATE (UNIQUE )?INDEX /, 'CREATE $1INDEX CONCURRENTLY ');
  const drop = `drop index ${isOfPartitions ? '' : 'concurrently '}${name}`;
  return [...(wrong ? [drop] : []), create].map((sql) => ({ place: 'index', sql }));
}

function functionStatements(fact: Fact, drift: Drift): Statement[] {
  const owner: Statement = {
    place: 'owner',
    sql: `alter function ${on(fact)} owner to ${quoted(fact.name)}`,
  };
  if (fact.text === '') return [owner];
  if (!drift.problem.endsWith('is missing')) return [{ place: 'function', sql: fact.text }];
  // a new function is everybody's to call
  const closed: Statement = { place: 'owner', sql: `revoke all on function ${on(fact)} from public` };
  return [{ place: 'function', sql: fact.text }, closed, owner];
}

function grant(verb: 'grant' | 'revoke', fact: Fact, preposition: 'to' | 'from'): Statement {
  const isFunction = fact.relation.includes('(');
  const what =
    fact.relation === '' ? `schema ${quoted(fact.schema)}` : `${isFunction ? 'function ' : ''}${on(fact)}`;
  const rights = fact.text.replaceAll(' with grant option', '');
  const role = fact.name === 'public' ? 'public' : quoted(fact.name);
  return { place: 'grant', sql: `${verb} ${rights} on ${what} ${preposition} ${role}` };
}
