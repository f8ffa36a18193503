/** Where a document's bytes come from: a stored file, a page, or the row itself. */
import type { ClaimedDocument } from '../../db/documents.ts';
import { DocumentError } from '../../providers/document-error.ts';
import type { GuardedClient } from '../../providers/guarded-fetch.ts';
import type { ObjectStorage } from '../../providers/object-storage.ts';
import type { FetchedInput } from './ingest.ts';

export type InputDeps = {
  readonly storage: ObjectStorage;
  readonly client: GuardedClient;
  readonly maxBytes: number;
};

/**
 * Reads a document's input: its file, its page or its text, whichever its type puts first. Null: the page says that it has not changed.
 *
 * Throws DocumentError, or the signal's reason.
 */
export async function fetchInput(
  deps: InputDeps,
  document: ClaimedDocument,
  signal: AbortSignal,
): Promise<FetchedInput | null> {
  const { media } = document;
  if (media !== null) {
    if (media.storage_path !== null) {
      const object = await deps.storage.read(media.bucket, media.storage_path, {
        maxBytes: deps.maxBytes,
        signal,
      });
      return {
        bytes: object.bytes,
        hints: { fileName: media.file_name, contentType: object.contentType ?? media.file_type },
        etag: object.etag,
        lastModified: null,
      };
    }
    if (media.file_url !== null) return fromUrl(deps, media.file_url, document, signal);
    throw new DocumentError(
      'no_input',
      'The media row names no file: set storage_path (and bucket), or file_url.',
    );
  }
  const text = document.content === null ? null : fromText(document.content, document.name);
  const page = document.url === null ? null : () => fromUrl(deps, document.url as string, document, signal);
  const first = document.type === 'TEXT' ? (text ?? page) : (page ?? text);
  if (first === null) {
    throw new DocumentError('no_input', 'The source has nothing to read: set media_id, url or content.');
  }
  return typeof first === 'function' ? first() : first;
}

function fromText(content: string, name: string): FetchedInput {
  return {
    bytes: Buffer.from(content, 'utf8'),
    // whether it is Markdown, HTML or plain text, it shows itself
    hints: { fileName: name, contentType: null },
    etag: null,
    lastModified: null,
  };
}

async function fromUrl(
  deps: InputDeps,
  url: string,
  document: ClaimedDocument,
  signal: AbortSignal,
): Promise<FetchedInput | null> {
  const page = await deps.client.fetch(url, {
    signal,
    maxBytes: deps.maxBytes,
    etag: document.etag,
    lastModified: document.last_modified,
  });
  if (page.notModified) return null;
  return {
    bytes: page.bytes,
    hints: { fileName: page.fileName, contentType: page.contentType },
    etag: page.etag,
    lastModified: page.lastModified,
  };
}
