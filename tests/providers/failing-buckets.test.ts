/** A bucket that does not answer is waited for a few times; objects that fail alone are asked for each. */
import { expect, test } from 'vitest';
import { FailingBuckets } from '../../src/providers/failing-buckets.ts';
import { openStorage } from '../../src/providers/object-storage.ts';
import { startS3Server } from '../peers/s3-server.ts';

test('a bucket that does not answer is given up; objects that break the storage, and refusals, give up nothing', async () => {
  await using server = await startS3Server();
  for (const name of ['files', 'silent', 'forbidden']) server.buckets.set(name, new Map());
  server.forbidden.add('forbidden');
  server.broken.add('silent');
  const storage = openStorage(
    `s3://${server.host}?scheme=http&region=${server.keys.region}`,
    { AWS_ACCESS_KEY_ID: server.keys.accessKeyId, AWS_SECRET_ACCESS_KEY: server.keys.secretAccessKey },
    { backoffMs: 1 },
  );
  const failing = new FailingBuckets(storage);
  const { signal } = new AbortController();
  const asked = async (bucket: string): Promise<string[]> => {
    const codes: string[] = [];
    for (let i = 0; i < 25; i++) {
      server.broken.add(`files/${i}`);
      const known = failing.givenUp(bucket);
      if (known !== null) break;
      const error: unknown = await storage.remove(bucket, `${i}`, { signal }).catch((reason) => reason);
      codes.push((await failing.failed(bucket, error)).reason_code);
    }
    return codes;
  };
  expect(await asked('files')).toEqual(Array(25).fill('storage_error'));
  expect(await asked('forbidden')).toEqual(Array(25).fill('credentials_refused'));
  expect(await asked('silent')).toEqual(Array(10).fill('storage_error'));
  expect(failing.givenUp('silent')).toMatchObject({ reason_code: 'storage_error' });
  expect([failing.givenUp('files'), failing.givenUp('forbidden')]).toEqual([null, null]);
  await storage.close();
});
