/** Collisions in words: what is there, what agentd needs, and the statements that get it out of the way and its rows back. */
import { type Collision, type Found, type MadeObject, madeObjects } from './collisions.ts';

/** Where an application's own objects are moved to. */
export const ASIDE = 'before_agentd';

export type Advice = {
  readonly object: string;
  readonly there: string;
  readonly needed: string;
  /** SQL that makes room; it loses nothing. */
  readonly make_room: string;
  /** SQL for the rows, after the migration; null where there are none, or where no form of the table fits. */
  readonly rows_back: string | null;
};

/** Names in such a list at most, so that a line stays readable. */
const NAMED = 6;

/** The words for one collision. */
export function adviceFor({ made, found }: Collision): Advice {
  const name = made.name === '' ? made.schema : `${made.schema}.${made.name}`;
  return {
    object: `${made.kind} ${name}`,
    there: described(made, found),
    needed: neededText(made),
    make_room: makeRoom(found),
    rows_back: found.kind === 'table' && found.schema === 'public' ? rowsBack(found) : null,
  };
}

function described(made: MadeObject, found: Found): string {
  if (found.kind === 'schema')
    return found.detail === '' ? 'an empty schema' : `a schema with ${found.detail}`;
  if (found.schema === 'auth' && found.kind !== 'function') {
    if (found.detail === 'no email') return `a ${found.kind} without a column email`;
    return `a ${found.kind} ${found.detail === '' ? 'without a column id' : `with ${found.detail}, or without a key on it`}`;
  }
  if (found.kind === 'index' || found.kind === 'sequence')
    return found.detail === '' ? `another ${found.kind}` : `${found.kind} of table ${found.detail}`;
  if (found.kind === 'function' || found.kind === 'procedure' || found.kind === 'aggregate') {
    return `a ${found.kind} that returns ${found.detail === made.detail ? 'the same' : found.detail || 'nothing'}`;
  }
  if (found.kind === 'enum' && made.kind === 'type') return labels(made, found);
  if (found.kind === 'table' && made.kind === 'table') return columns(made, found);
  return `a ${found.kind}`;
}

function columns(made: MadeObject, found: Found): string {
  const [ours, theirs] = [columnsOf(made.detail), columnsOf(found.detail)];
  const lacks = [...ours.keys()].filter((name) => !theirs.has(name));
  const more = [...theirs.keys()].filter((name) => !ours.has(name));
  const other = [...theirs].filter(([name, type]) => ours.has(name) && ours.get(name) !== type);
  const parts = [
    lacks.length > 0 ? `lacks ${listed(lacks)}` : '',
    more.length > 0 ? `has ${listed(more)}` : '',
    other.length > 0 ? `of other type: ${listed(other.map(([name, type]) => `${name} ${type}`))}` : '',
  ].filter((part) => part !== '');
  return parts.length === 0
    ? 'a table with the same columns'
    : `a table with other columns: ${parts.join('; ')}`;
}

function labels(made: MadeObject, found: Found): string {
  return made.detail === found.detail
    ? 'an enum with the same labels'
    : `an enum with other labels: ${listed(found.detail.split(', '))}`;
}

function neededText(made: MadeObject): string {
  switch (made.kind) {
    case 'table':
      return made.schema === 'auth'
        ? 'a table with a unique id uuid and an email'
        : `a table of ${columnsOf(made.detail).size} columns`;
    case 'type':
      return `an enum: ${listed(made.detail.split(', '))}`;
    case 'function':
      return `a function that returns ${made.detail.length > 40 ? `${made.detail.slice(0, 40)}…` : made.detail}`;
    case 'index':
    case 'sequence':
      return `for table ${made.detail}`;
    default:
      return `a ${made.kind} of its own`;
  }
}

function makeRoom(found: Found): string {
  // the name of something that a migration makes: it needs no quotes
  const name = `public.${found.name}`;
  if (found.schema === 'auth' && found.kind === 'function')
    return '-- use another database for agentd, or let auth.uid() return uuid: null for an id that is none';
  switch (found.kind) {
    case 'schema':
      return `alter schema ${found.schema} rename to ${found.schema}_${ASIDE};`;
    case 'table':
      return found.schema === 'auth'
        ? found.detail === 'no email'
          ? 'alter table auth.users add column email text;'
          : 'use another database for agentd, or give auth.users a unique id of type uuid'
        : // indexes, sequences, policies and the foreign keys between such tables go along
          `alter table ${name} set schema ${ASIDE};`;
    case 'index':
      return `alter index ${name} rename to ${`${found.name}`.slice(0, 40)}_${ASIDE};`;
    case 'enum':
    case 'range type':
    case 'composite type':
    case 'type':
      return `alter type ${name} set schema ${ASIDE};`;
    default:
      return `alter ${found.kind} ${name} set schema ${ASIDE};`;
  }
}

/** Into the view of the document whose columns take all of the table's; the table itself where one of agentd's own fits. */
function rowsBack(found: Found): string | null {
  const theirs = columnsOf(found.detail);
  const fits = (object: MadeObject): boolean => {
    const ours = columnsOf(object.detail);
    return [...theirs.keys()].every((name) => ours.has(name));
  };
  const target =
    madeObjects.find((made) => made.schema !== 'public' && made.name === found.name && fits(made)) ??
    madeObjects.find(
      (made) => made.schema === 'public' && made.name === found.name && made.kind === 'table' && fits(made),
    );
  if (!target) return null;
  const list = [...theirs.keys()].join(', ');
  // an enum of the application's is another type than ours of that name
  const enums = new Set(madeObjects.filter((made) => made.kind === 'type').map((made) => made.name));
  const ours = columnsOf(target.detail);
  const values = [...theirs.keys()].map((name) => {
    const type = ours.get(name) ?? '';
    return enums.has(type) ? `${name}::text::public.${type}` : name;
  });
  return `insert into ${target.schema}.${target.name} (${list}) select ${values.join(', ')} from ${ASIDE}.${found.name};`;
}

/** "id uuid, price numeric" as name → type; names as SQL needs them. A type is written without its modifiers, so it holds no comma. */
function columnsOf(detail: string): Map<string, string> {
  const columns = detail.matchAll(/("(?:[^"]|"")*"|[^" ,]+) ([^,]+)(?:, |$)/g);
  return new Map([...columns].map(([, name = '', type = '']) => [name, type]));
}

function listed(names: readonly string[]): string {
  const shown = names.slice(0, NAMED).join(', ');
  return names.length > NAMED ? `${shown} and ${names.length - NAMED} more` : shown;
}
