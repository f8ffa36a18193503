import pg from 'pg';
import { matchKnowledgeChunks } from '../src/db/migrations/match-knowledge-chunks.ts';
const c = new pg.Client({ connectionString: 'postgres://postgres@127.0.0.1:55456/retr' }); await c.connect();
const l = JSON.parse(process.argv[2]);
await c.query(matchKnowledgeChunks('"public"', l).replace('create function','create or replace function')); await c.end();
