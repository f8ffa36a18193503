/** The ways in which a file cannot be read, each with the sentence that its owner reads: what is wrong, what to do. */
import { DocumentError } from '../document.ts';

export const empty = (): DocumentError =>
  new DocumentError('empty', 'The file has no text. Upload a file with content.');

export const needsOcr = (what: string): DocumentError =>
  new DocumentError(
    'needs_ocr',
    `${what} holds pictures of text, not text. Run text recognition (OCR) over it and upload the result.`,
  );

export const password = (what: string): DocumentError =>
  new DocumentError(
    'password',
    `${what} is protected by a password. Save a copy without password and upload it.`,
  );

export const corrupt = (what: string, cause?: unknown): DocumentError =>
  new DocumentError(
    'corrupt',
    `${what} is damaged or incomplete${reason(cause)}. Open it in its program, save it again and upload it anew.`,
    { cause },
  );

export const unsupported = (what: string, advice: string): DocumentError =>
  new DocumentError('unsupported', `${what} cannot be read. ${advice}`);

export const tooLarge = (what: string): DocumentError =>
  new DocumentError('too_large', `${what}. Split the document and upload its parts.`);

export const timedOut = (ms: number): DocumentError =>
  new DocumentError(
    'timeout',
    `Reading the document took longer than ${Math.round(ms / 1000)} s. Split it, or save it anew in a simpler form, and upload that.`,
  );

/** What a library said, short and on one line: its messages can quote the file, which is a tenant's. */
function reason(cause: unknown): string {
  if (!(cause instanceof Error) || cause.message === '') return '';
  const line = cause.message
    .slice(0, 400)
    .replace(/[\p{C}\s]+/gu, ' ')
    .trim();
  return line === '' ? '' : ` (${line.slice(0, 120).replace(/\.$/, '').toWellFormed()})`;
}
