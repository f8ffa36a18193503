/** The SQL of the documents' schemas, made from their data. */
import { type ColumnSpec, type DocumentSpec, isSimple, mapped, type TableSpec } from './document.ts';
import { handWritten } from './hand-written.ts';

/** What the catalog says of a public column. */
export type PublicColumn = {
  /** Schema-qualified where it is not PostgreSQL's own. */
  readonly type: string;
  /** SQL expression; null: none. */
  readonly default: string | null;
};

/** The columns of the public tables, by "table.column". */
export type PublicColumns = ReadonlyMap<string, PublicColumn>;

/** A function of schema public as the catalog describes it. */
export type PublicFunction = {
  readonly name: string;
  /** With names and defaults. */
  readonly arguments: string;
  readonly argumentNames: readonly string[];
  /** Its types alone, as DROP FUNCTION wants them. */
  readonly signature: string;
  readonly result: string;
  readonly volatility: 'immutable' | 'stable' | 'volatile';
};

const quoted = (name: string): string => `"${name}"`;
/** The text key of a row in a document with text ids. Indexed under this very expression. */
const key = (row: string): string => `coalesce(${row}.external_id, ${row}.id::text)`;
const joinName = (column: string): string => `of_${column}`;

/**
 * Parents that a reader of the row sees with it, but for his own words in a workspace that he has left: joined so that a search by their
 * text key uses its index. His own words stand in a second part of the view, where the parent's key is its uuid.
 */
const mostlyVisible = new Set(['conversations', 'agent_messages']);

/** Name of the trigger function that writes a view. */
export const writerOf = (document: DocumentSpec, table: string): string =>
  `agentd.write_${document.schema}_${table}()`;

/** The view of a table, its defaults, and the trigger that writes it where that is needed. */
export function viewOf(
  document: DocumentSpec,
  name: string,
  table: TableSpec,
  columns: PublicColumns,
): string {
  const view = `${document.schema}.${name}`;
  if (table.byHand !== undefined) return handWritten(view);
  const simple = isSimple(table);
  const entries = Object.entries(table.columns);
  const shown = entries.map(
    ([column, spec]) => `${expression(table, column, spec, columns)} as ${quoted(column)}`,
  );
  const joins = entries.flatMap(([column, spec]) => joinOf(column, spec));
  const hidden = entries.find(([column, spec]) => mostlyVisible.has(mapped(column, spec).refersTo ?? ''));
  const options = simple && table.where !== undefined ? ', check_option = local' : '';
  const defaults = entries.flatMap(([column, spec]) => {
    const value = defaultOf(table, column, spec, simple, columns);
    return value === null ? [] : [`alter view ${view} alter column ${quoted(column)} set default ${value};`];
  });
  return [
    `create view ${view} with (security_invoker = true${options}) as
  select ${shown.join(',\n         ')}
    from public.${table.from} t${joins.map((join) => `\n    ${join}`).join('')}${table.where === undefined ? '' : `\n   where ${table.where}`}${hidden === undefined ? '' : wordsLeftBehind(table, hidden[0], columns)};`,
    ...defaults,
    ...(simple ? [] : [writer(document, name, table, columns)]),
  ].join('\n');
}

/** The part of a view with what its reader has written where he no longer sees the parent in `column`. */
function wordsLeftBehind(table: TableSpec, column: string, columns: PublicColumns): string {
  const entries = Object.entries(table.columns);
  const { from: parent, refersTo } = mapped(column, table.columns[column] as ColumnSpec);
  const shown = entries.map(([name, spec]) => {
    const value = name === column ? `t.${parent}::text` : expression(table, name, spec, columns);
    return `${value} as ${quoted(name)}`;
  });
  const joins = entries.flatMap(([name, spec]) => (name === column ? [] : joinOf(name, spec)));
  return `
  union all
  select ${shown.join(',\n         ')}
    from public.${table.from} t${joins.map((join) => `\n    ${join}`).join('')}
   where t.user_id = (select public.current_user_id())
     and not exists (select 1 from public.${refersTo} p where p.id = t.${parent})`;
}

function publicColumn(table: TableSpec, column: string, columns: PublicColumns): PublicColumn {
  const found = columns.get(`${table.from}.${column}`);
  if (found === undefined) throw new Error(`There is no column public.${table.from}.${column}.`);
  return found;
}

function expression(table: TableSpec, name: string, spec: ColumnSpec, columns: PublicColumns): string {
  const column = mapped(name, spec);
  if (column.isKey) return key('t');
  if (column.refersTo === 'users') return `t.${column.from}::text`;
  if (column.refersTo !== undefined) {
    return mostlyVisible.has(column.refersTo)
      ? key(joinName(name))
      : `coalesce(${joinName(name)}.external_id, t.${column.from}::text)`;
  }
  const { type } = publicColumn(table, column.from, columns);
  if (column.secret) {
    const value = `agentd.secret_column('${table.from}.${column.from}', t.id)`;
    return type === 'jsonb' ? value : `(${value} #>> '{}')::${type}`;
  }
  return column.asText ? `t.${column.from}::text` : `t.${quoted(column.from)}`;
}

function joinOf(name: string, spec: ColumnSpec): string[] {
  const { refersTo, from } = mapped(name, spec);
  if (refersTo === undefined || refersTo === 'users') return [];
  const kind = mostlyVisible.has(refersTo) ? 'join' : 'left join';
  return [`${kind} public.${refersTo} ${joinName(name)} on ${joinName(name)}.id = t.${from}`];
}

/** Triggers get every column of the row: what the insert left out must have its default already. */
function defaultOf(
  table: TableSpec,
  name: string,
  spec: ColumnSpec,
  simple: boolean,
  columns: PublicColumns,
): string | null {
  const column = mapped(name, spec);
  if (column.default !== undefined) return column.default === 'null' ? null : column.default;
  if (simple || column.isKey || column.refersTo !== undefined) return null;
  const value = publicColumn(table, column.from, columns).default;
  return value !== null && column.asText ? `(${value})::text` : value;
}

/** What the view's column becomes in the public one. */
function written(table: TableSpec, name: string, spec: ColumnSpec, columns: PublicColumns): string {
  const column = mapped(name, spec);
  const value = `new.${quoted(name)}`;
  if (column.refersTo !== undefined) return `v_${name}`;
  if (!column.asText) return value;
  const spellings = Object.entries(column.spellings ?? {}).map(
    ([from, to]) => ` when '${from}' then '${to}'`,
  );
  const word = spellings.length === 0 ? value : `(case ${value}${spellings.join('')} else ${value} end)`;
  return `${word}::${publicColumn(table, column.from, columns).type}`;
}

function writer(document: DocumentSpec, name: string, table: TableSpec, columns: PublicColumns): string {
  const view = `${document.schema}.${name}`;
  const entries = Object.entries(table.columns).map(([column, spec]) => ({
    name: column,
    spec,
    ...mapped(column, spec),
  }));
  const hasTextKey = entries.some((column) => column.isKey);
  const references = entries.filter((column) => column.refersTo !== undefined);
  const plain = entries.filter((column) => !column.isKey);
  const one = hasTextKey ? `${key('t')} = old.id` : 't.id = old.id';
  const inserted = [
    ...(hasTextKey
      ? [
          ['id', 'coalesce(agentd.uuid_of(new.id), gen_random_uuid())'],
          ['external_id', 'case when agentd.uuid_of(new.id) is null then new.id end'],
        ]
      : []),
    ...plain.map((column) => [column.from, written(table, column.name, column.spec, columns)]),
  ];
  const updated = [
    ...(hasTextKey
      ? ['external_id = case when new.id is distinct from old.id then new.id else t.external_id end']
      : []),
    ...plain
      .filter((column) => !column.secret)
      .map(
        (column) =>
          `${quoted(column.from)} = case when new.${quoted(column.name)} is distinct from old.${quoted(column.name)} then ${written(table, column.name, column.spec, columns)} else t.${quoted(column.from)} end`,
      ),
  ];
  const secrets = entries.filter((column) => column.secret);
  // Public tables look again at a row that changed while the statement waited for it; a view's trigger has what was read before, so
  // that what it changes must still be what it was.
  const compared = plain.filter(
    (column) => !column.secret && column.refersTo === undefined && column.from !== 'updated_at',
  );
  const unchanged = compared
    .map((column) => {
      const [was, is] = [
        `old.${quoted(column.name)}`,
        `t.${quoted(column.from)}${column.asText ? '::text' : ''}`,
      ];
      return `(new.${quoted(column.name)} is not distinct from ${was} or ${is} is not distinct from ${was})`;
    })
    .join('\n       and ');
  return `
create function ${writerOf(document, name)} returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_id uuid;
  v_row ${view};${references.map((column) => `\n  v_${column.name} uuid;`).join('')}
begin
  if tg_op = 'DELETE' then
    delete from public.${table.from} t where ${one};
    return case when found then old end;
  end if;
${references.map((column) => resolve(column.name, column.refersTo as string)).join('')}
  if tg_op = 'INSERT' then
    insert into public.${table.from} as t (${inserted.map(([column]) => quoted(column as string)).join(', ')})
    values (${inserted.map(([, value]) => value).join(', ')})
    returning t.id into v_id;
  else
    -- What the statement leaves as it was is not written: it may have changed since.
    update public.${table.from} t
       set ${updated.join(',\n           ')}
     where ${one}
       and ${unchanged}
    returning t.id into v_id;
    if v_id is null then
      if exists (select 1 from public.${table.from} t where ${one} and not (${unchanged})) then
        raise exception 'the row has changed since it was read' using errcode = 'serialization_failure', hint = 'Try again.';
      end if;
      return null;
    end if;${secrets
      .map(
        (column) => `
    if new.${quoted(column.name)} is distinct from old.${quoted(column.name)} then
      update public.${table.from} t set ${quoted(column.from)} = new.${quoted(column.name)} where t.id = v_id;
    end if;`,
      )
      .join('')}
  end if;
  select v.* into v_row from ${view} v where v.id = ${hasTextKey ? `(select ${key('t')} from public.${table.from} t where t.id = v_id)` : 'v_id'};
  return case when found then v_row else new end;
end
$$;
create trigger write_row instead of insert or update or delete on ${view}
  for each row execute function ${writerOf(document, name)};`;
}

/** The uuid of the row that a text names. */
function resolve(column: string, table: string): string {
  if (table === 'users') {
    return `
  v_${column} := agentd.uuid_of(new.${column});
  if v_${column} is null and new.${column} is not null then
    raise exception 'user % does not exist', new.${column}
      using errcode = 'foreign_key_violation', hint = 'Users are those of auth.users; their ids are uuids.';
  end if;`;
  }
  if (table === 'conversations') {
    return `
  if tg_op = 'INSERT' or new.${column} is distinct from old.${column} then
    v_${column} := agentd.conversation_of(new.${column},
      coalesce(v_agent_id, (select t.agent_id from public.agent_messages t where ${key('t')} = old.id)),
      coalesce(v_user_id, public.current_user_id(),
               (select a.user_id from public.agents a where a.id = v_agent_id)));
  end if;`;
  }
  return `
  if tg_op = 'INSERT' or new.${column} is distinct from old.${column} then
    v_${column} := (select r.id from public.${table} r where ${key('r')} = new.${column});
    if v_${column} is null and new.${column} is not null then
      raise exception '% % does not exist', '${column}', new.${column} using errcode = 'foreign_key_violation';
    end if;
  end if;`;
}

/** A function of schema public under the same name in the document's schema. */
export function wrapperOf(document: DocumentSpec, f: PublicFunction): string {
  const call = `public.${f.name}(${f.argumentNames.map((name) => `${f.name}.${name}`).join(', ')})`;
  const table = document.tables[f.result.replace(/^(public\.)?/, '')];
  const result = table === undefined ? f.result : `${document.schema}.${table.from}`;
  const columns =
    table === undefined
      ? null
      : Object.entries(table.columns).map(([name, spec]) => `r.${quoted(mapped(name, spec).from)}`);
  const body =
    columns === null
      ? f.result.startsWith('TABLE(')
        ? `select * from ${call}`
        : `select ${call}`
      : `select ${columns.join(', ')} from ${call} r`;
  return `create function ${document.schema}.${f.name}(${f.arguments}) returns ${result}
language sql ${f.volatility} set search_path = pg_catalog, pg_temp as $$ ${body} $$;`;
}
