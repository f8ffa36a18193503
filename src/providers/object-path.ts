/** `bucket` and `storage_path` are columns that tenants write: what could lead out of the bucket is no path. */
import { DocumentError } from './document-error.ts';

const MAX_BUCKET_BYTES = 100;
/** S3's limit for a key. */
const MAX_PATH_BYTES = 1024;

// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is refused
const CONTROL = /[\u0000-\u001f\u007f]/;

/**
 * The parts of the path, none of them empty, `.` or `..`.
 *
 * Throws DocumentError `not_found`: there can be no such object. S3 itself knows keys with such parts, but URLs do not:
 * a client takes `a/../../other` for another bucket, even when its dots are percent-encoded.
 */
export function objectPath(bucket: string, path: string): readonly string[] {
  const isBucket =
    bucket !== '' && Buffer.byteLength(bucket) <= MAX_BUCKET_BYTES && isPart(bucket) && !/[/\\]/.test(bucket);
  if (!isBucket) throw refused(`'${shown(bucket)}' is no name of a bucket`);
  const parts = path.split('/');
  if (
    path === '' ||
    Buffer.byteLength(path) > MAX_PATH_BYTES ||
    !path.isWellFormed() ||
    !parts.every(isPart)
  ) {
    throw refused(
      `'${shown(path)}' is no path of a stored file: it has an empty part, '.', '..' or a control character, or is over ` +
        `${MAX_PATH_BYTES} bytes`,
    );
  }
  return parts;
}

/** A path for a message. */
export function shown(path: string): string {
  return path.replace(new RegExp(CONTROL, 'g'), '·').slice(0, 200);
}

/** A file's name as a part of a path: what no path may have becomes `_`, so that every storage takes it. */
export function partOf(name: string): string {
  const part = name.toWellFormed().replace(new RegExp(CONTROL, 'g'), '_');
  return isPart(part) ? part : '_';
}

function isPart(part: string): boolean {
  return part !== '' && part !== '.' && part !== '..' && !CONTROL.test(part);
}

function refused(message: string): DocumentError {
  return new DocumentError('not_found', `${message}. Correct the row, or upload the file again.`);
}
