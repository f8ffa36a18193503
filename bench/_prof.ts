import { spawn } from 'node:child_process';
import { withDatabase } from './support/database.ts';
import { createPlatform } from './support/platform.ts';
import { benchPath, Child } from './support/child.ts';
import { batch } from './runs.ts';
await withDatabase('prof', { migrated: true }, async ({ url, pool }) => {
  const tasks = await createPlatform(pool, { workspaces: 250, steps: 3 });
  const daemon = new Child(['--cpu-prof','--cpu-prof-dir=/tmp/prof', benchPath('support/instant-daemon.ts')], { DATABASE_URL: url, OPENAI_API_KEY: 'x', AGENTD_QUEUES: 'task-run=100' });
  await daemon.line('agentd is running');
  await batch(pool, tasks, 1000); await pool.query('vacuum analyze');
  await pool.query(`select pg_stat_reset()`);
  const c0 = await daemon.cpuSeconds(); const t0 = performance.now();
  const perf = spawn('perf', ['record','-e','cpu-clock','-a','-o','/tmp/perf.data','sleep','4.5'], {stdio:'ignore'});
  const rate = await batch(pool, tasks, 3000);
  console.log('rate', rate, 'daemon cpu s', (await daemon.cpuSeconds()) - c0);
  await new Promise(r => perf.once('exit', r));
  await daemon.stop();
});
