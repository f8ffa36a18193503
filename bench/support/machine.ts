/** The machine and versions that a table belongs to. */
import { readFileSync } from 'node:fs';
import { cpus, loadavg, release, totalmem } from 'node:os';
import pg from 'pg';
import { serverUrl } from './database.ts';

/** One paragraph: processor, memory, Node, PostgreSQL with its settings that matter, the peers' versions. */
export async function describeMachine(): Promise<string> {
  const client = new pg.Client({ connectionString: serverUrl });
  await client.connect();
  const { rows } = await client.query<{ name: string; setting: string }>(
    `select name, current_setting(name) as setting
       from unnest(array['server_version', 'shared_buffers', 'fsync', 'synchronous_commit', 'jit']) name`,
  );
  await client.end();
  const setting = new Map(rows.map((row) => [row.name, row.setting]));
  const manifest = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as {
    dependencies: Record<string, string>;
  };
  const peers = Object.entries(manifest.dependencies).map(([name, version]) => `${name} ${version}`);
  return [
    `${cpus().length} × ${cpus()[0]?.model.trim() ?? 'unknown processor'}, ${Math.round(totalmem() / 2 ** 30)} GB, Linux ${release()}, load ${loadavg()[0]?.toFixed(1)} before the start.`,
    `Node ${process.versions.node}. PostgreSQL ${setting.get('server_version')} on the same processors: shared_buffers ${setting.get('shared_buffers')}, fsync ${setting.get('fsync')}, synchronous_commit ${setting.get('synchronous_commit')}, jit ${setting.get('jit')}.`,
    `Beside: ${peers.join(', ')}.`,
  ].join(' ');
}
