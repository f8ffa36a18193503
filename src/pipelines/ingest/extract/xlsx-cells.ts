/** Values of a spreadsheet's cells as a person sees them: shared texts, dates, numbers without the noise of binary fractions. */
import type { Archive } from './archive.ts';
import { tooLarge } from './failures.ts';
import { parseXml } from './xml.ts';

/** The texts that cells refer to by number. Phonetic guides are left out. */
export async function readSharedStrings(
  archive: Archive,
  part: string,
  maxCharacters: number,
): Promise<string[]> {
  const strings: string[] = [];
  let text: string | null = null;
  let inText = false;
  let phonetic = false;
  let length = 0;
  await parseXml(archive.stream(part), 'The spreadsheet', {
    open(tag) {
      if (tag === 'si') text = '';
      else if (tag === 'rPh') phonetic = true;
      else if (tag === 't') inText = true;
    },
    close(tag) {
      if (tag === 't') inText = false;
      else if (tag === 'rPh') phonetic = false;
      else if (tag === 'si') {
        strings.push(text ?? '');
        text = null;
        // an empty one costs memory too
        length++;
      }
      if (length > maxCharacters) throw tooLarge(`The spreadsheet has more than ${maxCharacters} characters`);
    },
    text(part) {
      if (!inText || phonetic || text === null) return;
      text += part;
      length += part.length;
      if (length > maxCharacters) throw tooLarge(`The spreadsheet has more than ${maxCharacters} characters`);
    },
  });
  return strings;
}

export type DateStyle = 'date' | 'time' | 'datetime';

/** Which cell styles show a number as a date or a time. */
export async function readDateStyles(archive: Archive, part: string): Promise<Map<number, DateStyle>> {
  const formats = new Map<number, string>();
  const styles = new Map<number, DateStyle>();
  let inCells = false;
  let index = 0;
  await parseXml(archive.stream(part), 'The spreadsheet', {
    open(tag, attributes) {
      if (tag === 'numFmt')
        formats.set(Number(attributes.get('numFmtId')), attributes.get('formatCode') ?? '');
      else if (tag === 'cellXfs') inCells = true;
      else if (tag === 'xf' && inCells) {
        const id = Number(attributes.get('numFmtId'));
        const style = dateStyle(id, formats.get(id) ?? null);
        if (style) styles.set(index, style);
        index++;
      }
    },
    close(tag) {
      if (tag === 'cellXfs') inCells = false;
    },
  });
  return styles;
}

/** The built-in formats are known by number; of others the code tells. */
function dateStyle(id: number, code: string | null): DateStyle | null {
  if (code === null) {
    if ((id >= 14 && id <= 17) || (id >= 27 && id <= 31) || (id >= 50 && id <= 58)) return 'date';
    if ((id >= 18 && id <= 21) || (id >= 32 && id <= 35) || (id >= 45 && id <= 47)) return 'time';
    return id === 22 ? 'datetime' : null;
  }
  // without quoted text, escaped characters and [colours]; the first section is that of positive numbers
  const marks = code
    .slice(0, 300)
    .replace(/"[^"]*"|\\.|\[[^\]hms]*\]/g, '')
    .split(';')[0] as string;
  if (/general|[#?]|0(?!.*s)/i.test(marks) && !/[dy]/i.test(marks)) return null;
  const [date, time] = [/[dy]|mmm/i.test(marks), /[hs]/i.test(marks)];
  if (date && time) return 'datetime';
  return date ? 'date' : time ? 'time' : null;
}

/** A day of the spreadsheet's calendar (days since 1899-12-30, or since 1904-01-01) in ISO form; null where it is none. */
export function dateOf(serial: number, style: DateStyle, since1904: boolean): string | null {
  if (!Number.isFinite(serial) || serial < 0 || serial > 2_958_466) return null;
  const epoch = since1904 ? Date.UTC(1904, 0, 1) : Date.UTC(1899, 11, 30);
  const iso = new Date(epoch + Math.round(serial * 86_400) * 1000).toISOString();
  if (style === 'time' && serial < 1) return iso.slice(11, 19);
  if (style === 'date') return iso.slice(0, 10);
  return `${iso.slice(0, 10)} ${iso.slice(11, 19)}`;
}

/** 0.1 + 0.2 is stored as 0.30000000000000004 and shown as 0.3. Whole numbers keep every digit. */
export function numberOf(raw: string): string {
  if (!/[.eE]/.test(raw)) return raw;
  const value = Number(raw);
  return Number.isFinite(value) ? String(Number(value.toPrecision(15))) : raw;
}

/** The column of a reference such as BC12, from 0; null where it is none. At most XFD, the last one there is. */
export function columnOf(reference: string): number | null {
  const letters = /^[A-Za-z]{1,3}/.exec(reference)?.[0];
  if (!letters) return null;
  let column = 0;
  for (const letter of letters.toUpperCase()) column = column * 26 + letter.charCodeAt(0) - 64;
  return column <= 16_384 ? column - 1 : null;
}
