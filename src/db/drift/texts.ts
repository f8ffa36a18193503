/** The texts of facts: what is in them, and when two of them say the same. */
import type { Fact } from '../catalog.ts';

/** `table`, `partitioned table`, `view`, `materialized view` or `sequence`; of other facts the first word of their text. */
export const kindOf = (fact: Fact): string => fact.text.split(', ')[0] ?? '';

/** The owner that a relation's text names. */
export const ownerOf = (fact: Fact): string => /(?:^|, )owner ([^,]+)/.exec(fact.text)?.[1] ?? '';

/** A text as it would be if pgvector were in schema public. */
export function plain(text: string, vectorHome: string): string {
  return text.replaceAll(new RegExp(`"?\\b(?:public|${escaped(vectorHome)})\\b"?\\.(?=[\\w<])`, 'g'), '');
}

const escaped = (text: string): string => text.replaceAll(/\W/g, '\\$&');

const SCHEMAS = new Set(['agentd', 'public', 'auth', 'pg_catalog']);

/** Before PostgreSQL 16 the columns of a view with one table are printed with that table's name. */
function withoutTables(definition: string): string {
  return definition.replaceAll(
    /("[^"]*"|\b[a-z_][a-z0-9_]*)\.(?=["a-z_*])/g,
    (all: string, qualifier: string) => (SCHEMAS.has(qualifier) ? all : ''),
  );
}

/** Columns of auth.users that are text here are varchar on a Supabase project: in a view of them cast, and named again. */
function withoutTextCasts(definition: string): string {
  return definition
    .replaceAll(/ AS ["a-z_0-9]+/g, '')
    .replaceAll(/::(?:text|character varying)(?:\(\d+\))?/g, '')
    .replaceAll(/[() ]/g, '');
}

/** Whether two texts of one kind mean the same on servers of any version, wherever pgvector is. */
export function sameText(expected: Fact, actual: Fact, vectorHome: string): boolean {
  const norm = (text: string): string => {
    const spaced = plain(text, vectorHome).replaceAll(/\s+/g, ' ').trim();
    if (expected.kind !== 'view') return spaced;
    const definition = withoutTables(spaced);
    return /\bauth\.users\b/.test(expected.text) ? withoutTextCasts(definition) : definition;
  };
  return norm(expected.text) === norm(actual.text);
}
