// Emits dist/, what the published package and the container run. Old output goes first: a renamed file must not stay.
import { spawnSync } from 'node:child_process';
import { rmSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
rmSync(new URL('../dist', import.meta.url), { recursive: true, force: true });
const { status, error } = spawnSync('tsc', ['-p', 'tsconfig.build.json'], { cwd: root, stdio: 'inherit' });
if (error) console.error(`The compiler did not start: ${error.message}. Run it as: npm run build`);
process.exit(status ?? 1);
