/** Presentations: a slide is a page. Its title is a heading, its other text paragraphs and lists, its notes come last. */
import type { DocumentLimits, ExtractedDocument } from '../document.ts';
import type { Archive } from './archive.ts';
import { corrupt, tooLarge } from './failures.ts';
import { MarkdownWriter } from './markdown-writer.ts';
import { mainPart, type Relation, readRelations, readTitle, relationOf } from './opc.ts';
import { parseXml } from './xml.ts';

export async function extractPptx(
  archive: Archive,
  limits: DocumentLimits,
  signal?: AbortSignal,
): Promise<ExtractedDocument> {
  const part = await mainPart(archive, 'ppt/presentation.xml');
  if (!archive.has(part)) throw corrupt('The presentation');
  const relations = await readRelations(archive, part);
  const slides: string[] = [];
  await parseXml(archive.stream(part), 'The presentation', {
    open(tag, attributes) {
      if (tag !== 'sldId') return;
      const slide = relationOf(attributes, relations);
      if (slide) slides.push(slide.target);
    },
  });
  if (slides.length > limits.maxPages)
    throw tooLarge(`The presentation has more than ${limits.maxPages} slides`);
  const writer = new MarkdownWriter(limits.maxCharacters);
  let firstTitle: string | null = null;
  for (const slide of slides) {
    signal?.throwIfAborted();
    writer.page();
    const title = await writeSlide(archive, slide, writer, false);
    firstTitle ??= title;
    const own = archive.has(slide) ? await readRelations(archive, slide) : new Map<string, Relation>();
    for (const { type, target } of own.values()) {
      if (type === 'diagramData') await writeSlide(archive, target, writer, false);
      if (type === 'notesSlide') await writeSlide(archive, target, writer, true);
    }
  }
  return writer.finish('pptx', (await readTitle(archive)) ?? firstTitle);
}

/** Placeholders whose text is on every slide. */
const FURNITURE = new Set(['sldNum', 'dt', 'ftr', 'hdr', 'sldImg']);

type Line = { text: string; level: number };

/** @returns the slide's title; null where it has none. */
async function writeSlide(
  archive: Archive,
  part: string,
  writer: MarkdownWriter,
  isNotes: boolean,
): Promise<string | null> {
  let placeholder: string | null = null;
  let lines: Line[] = [];
  let line: Line | null = null;
  let inText = false;
  let skipped = 0;
  let rows: string[][] | null = null;
  let cell: string[] = [];
  let title: string | null = null;

  const endShape = (): void => {
    const texts = lines.filter(({ text }) => text.trim() !== '');
    lines = [];
    if (texts.length === 0 || (placeholder !== null && FURNITURE.has(placeholder))) return;
    if (!isNotes && (placeholder === 'title' || placeholder === 'ctrTitle')) {
      const text = texts.map((t) => t.text).join(' ');
      title ??= text.trim();
      writer.heading(1, text);
      return;
    }
    const isList = !isNotes && texts.length > 1;
    for (const [i, { text, level }] of texts.entries()) {
      if (isList) writer.item(level, false, text);
      else writer.paragraph(isNotes && i === 0 ? `Notes: ${text}` : text);
    }
  };

  await parseXml(archive.stream(part), 'The presentation', {
    open(tag, attributes) {
      if (skipped > 0 || tag === 'Fallback') skipped++;
      else if (tag === 'sp' || tag === 'pt') {
        placeholder = null;
        lines = [];
      } else if (tag === 'ph') placeholder = attributes.get('type') ?? 'body';
      else if (tag === 'tbl') rows = [];
      else if (tag === 'tr') rows?.push([]);
      else if (tag === 'p') line = { text: '', level: 0 };
      else if (tag === 'pPr' && line)
        line.level = Math.min(Math.max(Number(attributes.get('lvl')) || 0, 0), 8);
      else if (tag === 't') inText = true;
      else if (tag === 'br' && line) line.text += '\n';
    },
    close(tag) {
      if (skipped > 0) {
        skipped--;
        return;
      }
      if (tag === 't') inText = false;
      else if (tag === 'p' && line) {
        if (rows) cell.push(line.text);
        else lines.push(line);
        line = null;
      } else if (tag === 'tc') {
        rows?.at(-1)?.push(cell.join(' '));
        cell = [];
      } else if (tag === 'tbl' && rows) {
        writer.table(rows);
        rows = null;
      } else if (tag === 'sp' || tag === 'pt') endShape();
    },
    text(text) {
      if (inText && line && skipped === 0) line.text += text;
    },
  });
  return title;
}
