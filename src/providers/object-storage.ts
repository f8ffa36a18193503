/** Where uploaded files are: `bucket` and `storage_path` of a row, in a folder or behind S3's protocol. */
import type { Dispatcher } from 'undici';
import { type Clock, systemClock } from '../clock.ts';
import { openFileStorage } from './object-storage-file.ts';
import { openS3Storage } from './object-storage-s3.ts';

export type StoredObject = {
  readonly bytes: Buffer;
  /** As declared by whoever stored it; null where the storage keeps none. */
  readonly contentType: string | null;
  /** Names this very version of the object; null where the storage has no such name. */
  readonly etag: string | null;
};

export type ReadOptions = {
  readonly maxBytes: number;
  readonly signal: AbortSignal;
  /** The version that is wanted; another one is `changed_while_read`. */
  readonly etag?: string | null;
};

/** Where the bytes of an object go that is not held in memory. */
export type ObjectSink = {
  /** The object comes, from its start: whatever was taken before is void. */
  begin(): Promise<void>;
  /** The piece is the storage's again when this is over. */
  take(piece: Uint8Array): Promise<void>;
};

export type WriteOptions = { readonly contentType: string | null; readonly signal: AbortSignal };

/**
 * Every method throws DocumentError (`not_found`, `too_large`, `changed_while_read`, `storage_error`, `timeout`,
 * `no_credentials`, `credentials_refused`), or the reason of the caller's signal. No message holds a key.
 */
export type ObjectStorage = {
  /** The whole object, of one version. */
  read(bucket: string, path: string, options: ReadOptions): Promise<StoredObject>;
  /** The same into a sink; what that fails with may come as an error of the storage. */
  readInto(
    bucket: string,
    path: string,
    sink: ObjectSink,
    options: { readonly maxBytes: number; readonly signal: AbortSignal },
  ): Promise<void>;
  /** Puts the whole object there or nothing; replaces what is there. */
  write(bucket: string, path: string, bytes: Uint8Array, options: WriteOptions): Promise<void>;
  /** What is not there counts as removed. */
  remove(bucket: string, path: string, options: { readonly signal: AbortSignal }): Promise<void>;
  exists(bucket: string, path: string, options: { readonly signal: AbortSignal }): Promise<boolean>;
  close(): Promise<void>;
};

/** The AWS_* variables of the worker's environment. */
export type StorageEnv = {
  readonly AWS_ACCESS_KEY_ID?: string | undefined;
  readonly AWS_SECRET_ACCESS_KEY?: string | undefined;
  readonly AWS_SESSION_TOKEN?: string | undefined;
  readonly AWS_REGION?: string | undefined;
};

export type StorageOptions = {
  readonly clock?: Clock;
  /** Of one attempt, in milliseconds. */
  readonly timeouts?: { readonly connectMs?: number; readonly stallMs?: number; readonly totalMs?: number };
  /** Milliseconds of the first wait between attempts; it doubles. */
  readonly backoffMs?: number;
  /** Connections, instead of a pool of its own. The caller closes it. */
  readonly dispatcher?: Dispatcher;
};

/**
 * Opens AGENTD_STORAGE_URL.
 *
 * - `file:///dir`
 * - `s3://host[:port][/prefix][?region=…&scheme=http&addressing=path|virtual]`: the prefix stands before the bucket, as in
 *   Supabase's `s3://ref.supabase.co/storage/v1/s3`. The region is also taken from AWS_REGION. Buckets are part of the
 *   host's name (`virtual`) with AWS, of the path elsewhere.
 *
 * Throws ConfigError for a URL that is neither. Nothing is asked of the storage before the first use.
 */
export function openStorage(url: string, env: StorageEnv, options: StorageOptions = {}): ObjectStorage {
  const clock = options.clock ?? systemClock;
  if (url.startsWith('file:')) return openFileStorage(url, clock);
  return openS3Storage(url, env, { ...options, clock });
}
