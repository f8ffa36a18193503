/** Secrets that a test plants, and the search for them where they must not be, in every spelling that a program gives a text. */
import { randomBytes } from 'node:crypto';
import type { Queryable } from '../../src/db/database.ts';

export type Canary = { readonly name: string; readonly secret: string };

export class Canaries {
  readonly #planted: Canary[] = [];
  /** Columns where applications put them, `schema.table.column`: nowhere else is one to be. */
  readonly #places = new Set<string>();

  /**
   * A new secret. `name` is where it is planted: a column, `schema.table.column`, or words for a place outside of the database. It
   * has characters that every encoding changes.
   */
  plant(name: string, prefix = 'sk-'): string {
    const secret = `${prefix}${randomBytes(9).toString('hex')}/${randomBytes(9).toString('hex')}+Z~`;
    this.#planted.push({ name, secret });
    if (/^[a-z_]+\.[a-z_]+\.[a-z_]+$/.test(name)) this.#places.add(name);
    return secret;
  }

  get all(): readonly Canary[] {
    return this.#planted;
  }

  /** What of whom is in a text, and how it is written there. Empty: nothing. */
  leaksIn(text: string): string[] {
    const lower = text.toLowerCase();
    return this.#planted.flatMap(({ name, secret }) =>
      spellings(secret)
        .filter(({ piece }) => lower.includes(piece.toLowerCase()))
        .map(({ how, piece }) => {
          const at = lower.indexOf(piece.toLowerCase());
          return `${name} as ${how}: …${text.slice(Math.max(0, at - 120), at)}`;
        }),
    );
  }

  /** Columns of all tables that have one, beside those where it was planted, as `schema.table.column: name as spelling`. */
  async leakingColumns(db: Queryable): Promise<string[]> {
    const columns = await db.query<{ tab: string; col: string; name: string }>(
      `select format('%I.%I', n.nspname, c.relname) as tab, quote_ident(a.attname) as col,
              concat_ws('.', n.nspname, c.relname, a.attname) as name
         from pg_class c
         join pg_namespace n on n.oid = c.relnamespace
         join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        where n.nspname in ('public', 'agentd', 'auth', 'pgboss') and c.relkind in ('r', 'm')
        order by 1, a.attnum`,
    );
    const searched = columns.filter(({ name }) => !this.#places.has(name));
    const tables = Map.groupBy(searched, ({ tab }) => tab);
    const pieces = this.#planted.flatMap(({ name, secret }) =>
      spellings(secret).map(({ how, piece }) => ({ told: `${name} as ${how}`, piece: piece.toLowerCase() })),
    );
    const found: string[] = [];
    for (const [tab, of] of tables) {
      const text = of.map(({ col }) => `lower(t.${col}::text)`).join(', ');
      const rows = await db.query<{ which: string; hits: string[] }>(
        `select p.told as which,
                array(select distinct x.col from unnest($3::text[], array[${text}]) as x (col, said)
                       where strpos(x.said, p.piece) > 0) as hits
           from ${tab} t, unnest($1::text[], $2::text[]) as p (told, piece)
          where strpos(concat_ws(' ', ${text}), p.piece) > 0`,
        [pieces.map(({ told }) => told), pieces.map(({ piece }) => piece), of.map(({ col }) => col)],
      );
      for (const { which, hits } of rows) found.push(...hits.map((col) => `${tab}.${col}: ${which}`));
    }
    return [...new Set(found)];
  }
}

/**
 * A secret as others may write it. Inside of a longer text that was put into Base64 it looks one of three ways, without the
 * characters that share bits with their neighbours.
 */
export function spellings(secret: string): { readonly how: string; readonly piece: string }[] {
  const bytes = Buffer.from(secret);
  const base64 = [0, 1, 2].map((before) => {
    const text = Buffer.concat([Buffer.alloc(before), bytes]).toString('base64');
    const from = before === 0 ? 0 : 4;
    return text.slice(from, from + Math.floor((bytes.length - 4) / 3) * 4);
  });
  return [
    { how: 'it is', piece: secret },
    { how: 'its beginning', piece: secret.slice(0, 16) },
    { how: 'its end', piece: secret.slice(-12) },
    ...base64.map((piece) => ({ how: 'Base64', piece })),
    ...base64.map((piece) => ({
      how: 'Base64 for URLs',
      piece: piece.replaceAll('+', '-').replaceAll('/', '_'),
    })),
    { how: 'hex', piece: bytes.toString('hex') },
    { how: 'a part of a URL', piece: encodeURIComponent(secret) },
    { how: 'JSON with escaped slashes', piece: JSON.stringify(secret).slice(1, -1).replaceAll('/', '\\/') },
  ];
}
