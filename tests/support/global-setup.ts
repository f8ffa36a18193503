/**
 * Prepares one migrated database that every test file clones: a template on a PostgreSQL server
 * (TEST_DATABASE_URL), or the saved files of an embedded one, and those of an empty one.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PGlite } from '@electric-sql/pglite';
import { vector } from '@electric-sql/pglite-pgvector';
import type { TestProject } from 'vitest/node';
import { loadConfig } from '../../src/config.ts';
import { openDatabase } from '../../src/db/database.ts';
import { serveEmbedded } from '../../src/db/embedded.ts';
import { migrateUp } from '../../src/db/migrate.ts';
import { saveEmbedded } from './prepared-database.ts';

declare module 'vitest' {
  interface ProvidedContext {
    /** A server's URL and the migrated template's name, or the files with an empty and a migrated embedded database. */
    template: { url: string; name: string } | { empty: string; migrated: string };
  }
}

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const { queues } = loadConfig({});
  const serverUrl = process.env.TEST_DATABASE_URL;
  if (serverUrl) {
    const name = `agentd_template_${process.pid}`;
    const admin = openDatabase({ url: serverUrl, embedded: false, max: 1 });
    await admin.query(`create database ${name}`);
    const url = databaseUrl(serverUrl, name);
    const db = openDatabase({ url, embedded: false });
    await migrateUp(db, queues);
    await db.close();
    project.provide('template', { url: serverUrl, name });
    return async () => {
      await admin.query(`drop database if exists ${name} with (force)`);
      await admin.close();
    };
  }
  const folder = await mkdtemp(join(tmpdir(), 'agentd-test-'));
  const pglite = await PGlite.create({ extensions: { vector } });
  const template = { empty: join(folder, 'empty'), migrated: join(folder, 'migrated') };
  await saveEmbedded(pglite, template.empty);
  const server = await serveEmbedded(pglite, 0);
  const db = openDatabase({ url: server.url, embedded: true });
  await migrateUp(db, queues);
  await db.close();
  await saveEmbedded(pglite, template.migrated);
  await server.stop();
  project.provide('template', template);
  return () => rm(folder, { recursive: true, force: true });
}

/** The same server's other database. */
export function databaseUrl(url: string, name: string): string {
  const parsed = new URL(url);
  parsed.pathname = `/${name}`;
  return parsed.toString();
}
