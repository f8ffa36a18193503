/** AGENTD_STORAGE_URL with s3: where its objects are. */
import { ConfigError } from '../config.ts';
import { DocumentError } from './document-error.ts';
import { objectPath, shown } from './object-path.ts';

export type S3Address = {
  readonly region: string;
  /** The URL of an object; throws DocumentError `not_found` for what is no path. */
  urlOf(bucket: string, path: string): URL;
};

const AWS = /(?:^|\.)s3[.-](?:.*\.)?amazonaws\.com(?:\.cn)?$/;

/**
 * Reads `s3://host[:port][/prefix][?region=…&scheme=http|https&addressing=path|virtual]`.
 *
 * Throws ConfigError with every mistake; no value is repeated, because somebody will have put a key into it.
 */
export function s3Address(text: string, region: string | undefined): S3Address {
  const wrong: string[] = [];
  const given = URL.canParse(text) ? new URL(text) : null;
  if (given?.protocol !== 's3:' || given.host === '') {
    throw new ConfigError(['AGENTD_STORAGE_URL must be s3://host[:port][/prefix] or file:///dir.']);
  }
  if (given.username !== '' || given.password !== '') {
    wrong.push('AGENTD_STORAGE_URL must hold no keys: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.');
  }
  const choice = (name: string, choices: readonly string[]): string | null => {
    const value = given.searchParams.get(name);
    if (value !== null && !choices.includes(value)) {
      wrong.push(`AGENTD_STORAGE_URL: ${name} must be ${choices.join(' or ')}.`);
    }
    return value;
  };
  const scheme = choice('scheme', ['http', 'https']) ?? 'https';
  const addressing = choice('addressing', ['path', 'virtual']);
  for (const name of given.searchParams.keys()) {
    if (!['region', 'scheme', 'addressing'].includes(name)) {
      wrong.push('AGENTD_STORAGE_URL takes no parameters but region, scheme and addressing.');
    }
  }
  const base = `${scheme}://${given.host}`;
  if (!URL.canParse(base)) wrong.push('AGENTD_STORAGE_URL must name a host after s3://.');
  const named =
    given.searchParams.get('region') ??
    region ??
    (URL.canParse(base) ? regionOf(new URL(base).hostname) : '');
  if (!/^[A-Za-z0-9-]{1,64}$/.test(named))
    wrong.push('AGENTD_STORAGE_URL: region must be a name such as eu-central-1.');
  if (wrong.length > 0) throw new ConfigError([...new Set(wrong)]);

  const endpoint = new URL(base);
  const isVirtual = addressing === null ? AWS.test(endpoint.hostname) : addressing === 'virtual';
  const prefix = given.pathname.replace(/\/+$/, '');
  return {
    region: named,
    urlOf(bucket, path) {
      const parts = objectPath(bucket, path);
      // A bucket with a dot has no certificate below the host's name.
      const below = isVirtual && (addressing === 'virtual' || !bucket.includes('.'));
      if (below && !/^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/.test(bucket)) {
        throw new DocumentError(
          'not_found',
          `'${shown(bucket)}' can't be a bucket here: its name would be part of a host's. Use 3 to 63 small letters, ` +
            'digits, dots and hyphens, or addressing=path in AGENTD_STORAGE_URL.',
        );
      }
      const url = new URL(endpoint);
      if (below) url.host = `${bucket}.${endpoint.host}`;
      const places = below ? parts : [bucket, ...parts];
      url.pathname = `${prefix}/${places.map(encoded).join('/')}`;
      return url;
    },
  };
}

function regionOf(host: string): string {
  if (host.endsWith('.r2.cloudflarestorage.com')) return 'auto';
  const [, region] =
    /(?:^|\.)s3[.-](?:dualstack\.)?([a-z]{2}(?:-[a-z]+)+-\d)\.amazonaws\.com/.exec(host) ?? [];
  return region ?? 'us-east-1';
}

/** As AWS's signature wants it: everything but RFC 3986's unreserved characters is encoded. */
function encoded(part: string): string {
  return encodeURIComponent(part).replace(
    /[!'()*]/g,
    (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`,
  );
}
