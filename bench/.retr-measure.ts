import pg from 'pg';
import { readFileSync } from 'node:fs';
import { CLASSES, measure } from './retrieval.ts';
import { median, percentile } from './support/stats.ts';
const pool = new pg.Pool({ connectionString: 'postgres://postgres@127.0.0.1:55456/retr', max: 4 });
const filled = JSON.parse(readFileSync('/tmp/retr-filled.json','utf8'));
const only = process.argv[2];
for (const of of CLASSES) for (const a of [false,true]) {
  if (only && !(of.name+a).includes(only)) continue;
  const m = await measure(pool, filled, of, a, of.chunks>50000 && !a ? 20 : 40);
  console.log(m.name, 'p50', median(m.times).toFixed(1), 'p95', percentile(m.times,.95).toFixed(1), 'max', Math.max(...m.times).toFixed(1), 'cpu p50', median(m.cpu).toFixed(1), 'p95', percentile(m.cpu,.95).toFixed(1), 'recall', m.recall.toFixed(3), 'short', m.short);
}
await pool.end();
