/** What a Word document says about its paragraphs elsewhere: names of styles, and kinds of lists. */
import type { Archive } from './archive.ts';
import type { Relation } from './opc.ts';
import { parseXml } from './xml.ts';

export type ParagraphKind =
  | { readonly kind: 'heading'; readonly level: number }
  | { readonly kind: 'title' }
  | { readonly kind: 'code' }
  /** A line of a table of contents: a copy of a heading and a page number. */
  | { readonly kind: 'contents' }
  | { readonly kind: 'plain' };

type Style = { name: string; basedOn: string | null; outline: number | null; numbering: string | null };

export class DocxStyles {
  readonly #styles = new Map<string, Style>();
  /** Number formats by `list:level`. */
  readonly #formats = new Map<string, string>();

  static async read(archive: Archive, relations: ReadonlyMap<string, Relation>): Promise<DocxStyles> {
    const styles = new DocxStyles();
    for (const { type, target } of relations.values()) {
      if (type === 'styles') await styles.#readStyles(archive, target);
      if (type === 'numbering') await styles.#readNumbering(archive, target);
    }
    return styles;
  }

  /** @param style its id; null where the paragraph names none. @param outline the paragraph's own level, from 0. */
  kindOf(style: string | null, outline: number | null): ParagraphKind {
    if (outline !== null && outline < 9) return { kind: 'heading', level: outline + 1 };
    for (const { name, outline: level } of this.#chain(style)) {
      const heading = /^heading\s*([1-9])$/.exec(name);
      if (heading) return { kind: 'heading', level: Number(heading[1]) };
      if (name === 'title') return { kind: 'title' };
      if (/^toc(\s*heading|\s*\d+)$/.test(name)) return { kind: 'contents' };
      if (/\b(code|preformatted|source|verbatim)\b/.test(name)) return { kind: 'code' };
      if (level !== null) return level < 9 ? { kind: 'heading', level: level + 1 } : { kind: 'plain' };
    }
    return { kind: 'plain' };
  }

  /** The list that a style brings along; null: none. */
  numberingOf(style: string | null): string | null {
    for (const { numbering } of this.#chain(style)) if (numbering !== null) return numbering;
    return null;
  }

  isOrdered(numbering: string, level: number): boolean {
    const format = this.#formats.get(`${numbering}:${level}`) ?? 'bullet';
    return format !== 'bullet' && format !== 'none';
  }

  /** A style and those that it is based on; a circle of them ends. */
  *#chain(id: string | null): Generator<Style> {
    let next = id;
    for (let i = 0; i < 20 && next !== null; i++) {
      const style = this.#styles.get(next);
      if (!style) return;
      yield style;
      next = style.basedOn;
    }
  }

  async #readStyles(archive: Archive, part: string): Promise<void> {
    let style: Style | null = null;
    await parseXml(archive.stream(part), 'The document', {
      open: (tag, attributes) => {
        const value = attributes.get('val') ?? null;
        if (tag === 'style') {
          style = { name: '', basedOn: null, outline: null, numbering: null };
          this.#styles.set(attributes.get('styleId') ?? '', style);
        } else if (style && tag === 'name') style.name = (value ?? '').toLowerCase();
        else if (style && tag === 'basedOn') style.basedOn = value;
        else if (style && tag === 'outlineLvl') style.outline = Number(value);
        else if (style && tag === 'numId') style.numbering = value === '0' ? null : value;
      },
      close: (tag) => {
        if (tag === 'style') style = null;
      },
    });
  }

  async #readNumbering(archive: Archive, part: string): Promise<void> {
    const formats = new Map<string, string>();
    const lists = new Map<string, string>();
    let [abstract, level, list] = ['', '', ''];
    await parseXml(archive.stream(part), 'The document', {
      open: (tag, attributes) => {
        const value = attributes.get('val') ?? '';
        if (tag === 'abstractNum') abstract = attributes.get('abstractNumId') ?? '';
        else if (tag === 'lvl') level = attributes.get('ilvl') ?? '';
        else if (tag === 'numFmt') formats.set(`${abstract}:${level}`, value);
        else if (tag === 'num') list = attributes.get('numId') ?? '';
        else if (tag === 'abstractNumId') lists.set(list, value);
      },
    });
    for (const [id, of] of lists)
      for (let i = 0; i < 9; i++) {
        const format = formats.get(`${of}:${i}`);
        if (format !== undefined) this.#formats.set(`${id}:${i}`, format);
      }
  }
}
