/**
 * npm run chaos -- [--kills N] [--runs N] [--seed N] [--quick]
 * npm run chaos -- --documents N
 *
 * On a PostgreSQL of its own, which it restarts; without PostgreSQL's programs on TEST_DATABASE_URL, without restarts.
 * Exits with 1 and the facts if an invariant broke.
 */
import { parseArgs } from 'node:util';
import { loadConfig } from '../../src/config.ts';
import { type Database, openDatabase } from '../../src/db/database.ts';
import { migrateUp } from '../../src/db/migrate.ts';
import { databaseUrl } from '../support/global-setup.ts';
import { type ChaosPlan, runChaos } from './chaos.ts';
import { brokenByKills, describeKills } from './document-report.ts';
import { killWhileEmbedding } from './documents.ts';
import { describeReport } from './report.ts';
import { findPostgres, type Server, startServer } from './server.ts';

const { values } = parseArgs({
  options: {
    kills: { type: 'string' },
    runs: { type: 'string' },
    seed: { type: 'string' },
    quick: { type: 'boolean', default: false },
    documents: { type: 'string' },
  },
});
/** What fits two cores. */
const usual = {
  daemons: 4,
  concurrency: 8,
  leaseSeconds: 3,
  modelMs: [40, 240],
  toolMs: [10, 80],
  betweenKills: { ms: 1_000, calls: 60 },
  ageJobs: false,
} as const satisfies Partial<ChaosPlan>;
const say = (line: string): void => console.log(line);
const seed = Number(values.seed ?? Date.now() % 1_000_000);
const part = values.quick ? 0.1 : 1;
const kills = Number(values.kills ?? 400 * part);

const server = await ownServer();
const url = server?.url ?? process.env.TEST_DATABASE_URL;
if (!url) {
  console.error('No PostgreSQL: install its server with pgvector (or set PG_BIN), or set TEST_DATABASE_URL.');
  process.exit(2);
}
// its own server must not outlive it
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.on(signal, () => void (server?.stop() ?? Promise.resolve()).finally(() => process.exit(1)));
}
const name = `agentd_chaos_${process.pid}`;
const admin = openDatabase({ url, embedded: false, max: 1, onError: () => {} });
try {
  await admin.query(`create database ${name}`);
  const target = databaseUrl(url, name);
  const db = openDatabase({ url: target, embedded: false });
  await migrateUp(db, loadConfig({}).queues);
  if (values.documents !== undefined) process.exitCode = await killDocuments(db, Number(values.documents));
  await db.close();
  if (values.documents === undefined) process.exitCode = await killRuns(target);
} finally {
  if (!server) await admin.query(`drop database if exists ${name} with (force)`);
  await admin.close();
  await server?.stop();
}

async function killRuns(databaseUrl: string): Promise<number> {
  const report = await runChaos({
    databaseUrl,
    seed,
    runs: Number(values.runs ?? 1_000 * part),
    kills,
    stalls: Math.ceil(kills / 40),
    longestDrainSeconds: 2,
    drains: Math.ceil(50 * part),
    cuts: Math.ceil(500 * part),
    cutsAtOnce: 10,
    restarts: Math.ceil(10 * part),
    ...(server ? { restart: server.restart } : {}),
    ...usual,
    say,
  });
  for (const line of describeReport(report)) say(line);
  return report.violations.length === 0 ? 0 : 1;
}

async function killDocuments(db: Database, times: number): Promise<number> {
  const report = await killWhileEmbedding(db, { kills: times, say });
  for (const line of describeKills(report)) say(line);
  return brokenByKills(report).length === 0 ? 0 : 1;
}

async function ownServer(): Promise<Server | null> {
  const bin = findPostgres(process.env);
  if (!bin) {
    say('There is no PostgreSQL with pgvector to restart on this machine.');
    return null;
  }
  try {
    const own = await startServer(bin);
    say(`${own.version} in a temporary folder`);
    return own;
  } catch (error) {
    say(`A PostgreSQL of its own can't be started, so nothing is restarted: ${(error as Error).message}`);
    return null;
  }
}
