/**
 * Reading PDFs: pages a second, what the daemon's own loop notices of it, and memory; beside pdf-parse as its documentation shows it, and
 * beside pdftotext where that is installed.
 *
 * The documents are manuals of Octave and R from Debian's packages octave-doc and r-doc-pdf, which `apt-get download` brings into a folder for
 * temporary files; or BENCH_DOCUMENTS names a folder with octave.pdf and refman.pdf. Speeds are per second of processor time, all threads
 * together: other work on the machine then matters less. They are those of a second reading: a daemon has read documents before.
 */
import { execFile, spawn } from 'node:child_process';
import { access, copyFile, mkdir, readdir } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { benchPath, Child } from './support/child.ts';
import type { Result } from './support/result.ts';

const run = promisify(execFile);
const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 3);
const MANUALS = {
  'octave.pdf': ['octave-doc', 'usr/share/doc/octave/octave.pdf'],
  'refman.pdf': ['r-doc-pdf', 'usr/share/R/doc/manual/refman.pdf'],
} as const;

type Reading = { pages: number; seconds: number; cpuSeconds: number; stallMs: number; peakMb: number };

async function documents(): Promise<{ octave: string; refman: string }> {
  const folder = process.env.BENCH_DOCUMENTS ?? join(tmpdir(), 'agentd-bench-documents');
  await mkdir(folder, { recursive: true });
  for (const [name, [debian, path]] of Object.entries(MANUALS)) {
    const file = join(folder, name);
    if (
      await access(file).then(
        () => true,
        () => false,
      )
    )
      continue;
    await run('apt-get', ['download', debian], { cwd: folder });
    const deb = (await readdir(folder)).find((entry) => entry.startsWith(`${debian}_`));
    await run('dpkg', ['-x', join(folder, deb ?? ''), join(folder, debian)]);
    await copyFile(join(folder, debian, path), file);
  }
  return { octave: join(folder, 'octave.pdf'), refman: join(folder, 'refman.pdf') };
}

async function read(
  way: 'pool' | 'pdfium' | 'pdf-parse' | 'alone',
  file: string,
  which: 'first' | 'again' = 'first',
): Promise<Reading> {
  return new Child([benchPath('support/extract-child.ts'), way, file, which], {}).json<Reading>();
}

/** Seconds of processor time that pdftotext takes; null where it is not installed. */
async function pdftotext(file: string): Promise<number | null> {
  return new Promise((resolve) => {
    const child = spawn('bash', ['-c', `TIMEFORMAT='%U %S'; time pdftotext "$1" /dev/null`, 'bash', file], {
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    let out = '';
    child.stderr.on('data', (chunk: Buffer) => {
      out += String(chunk);
    });
    child.on('close', (code) => {
      const times = /([\d.]+) ([\d.]+)\s*$/.exec(out);
      resolve(code === 0 && times ? Number(times[1]) + Number(times[2]) : null);
    });
  });
}

const median = (values: readonly number[]): number =>
  values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN;

export async function bench(): Promise<Result> {
  const { octave, refman } = await documents();
  type Round = Record<'pool' | 'pdfium' | 'pdfjs' | 'alone' | 'coldJs' | 'coldAlone', Reading>;
  const rounds: (Round & { native: number | null })[] = [];
  // one after the other, in turns: each round meets the same machine
  for (let i = 0; i < ROUNDS; i++)
    rounds.push({
      pool: await read('pool', octave),
      pdfium: await read('pdfium', octave, 'again'),
      pdfjs: await read('pdf-parse', octave, 'again'),
      alone: await read('alone', octave, 'again'),
      coldJs: await read('pdf-parse', octave),
      coldAlone: await read('alone', octave),
      native: await pdftotext(octave),
    });
  const large = await read('pool', refman);
  const largeAlone = await read('alone', refman);
  const largePdfium = await read('pdfium', refman);

  const speed = (pick: (round: (typeof rounds)[number]) => Reading): number =>
    median(rounds.map((round) => pick(round).pages / pick(round).cpuSeconds));
  const pages = rounds[0]?.pool.pages ?? 0;
  const [pdfium, pdfjs, alone] = [speed((r) => r.pdfium), speed((r) => r.pdfjs), speed((r) => r.alone)];
  const cold = speed((r) => r.coldJs) / speed((r) => r.coldAlone);
  const natives = rounds.flatMap(({ native }) => (native === null ? [] : [pages / native]));
  const native = natives.length === 0 ? null : median(natives);
  const stall = median(rounds.map(({ pool }) => pool.stallMs));
  const stallAlone = median(rounds.map((round) => round.coldAlone.stallMs));
  const perSecond = (value: number): string => `${value.toFixed(0)} pages/s`;
  return {
    bench: 'extract',
    lines: [
      {
        measured: `longest stall of the main loop, PDF of ${pages} pages`,
        agentd: `${stall.toFixed(1)} ms`,
        beside: `pdf-parse on the main thread: ${stallAlone.toFixed(0)} ms`,
        goal: '≤ 25 ms',
        met: stall <= 25,
        note: `extraction and chunking in a thread; medians of ${ROUNDS}, highest ${Math.max(...rounds.map(({ pool }) => pool.stallMs)).toFixed(1)} ms`,
      },
      {
        measured: 'the same by pdf-parse, cleaned',
        agentd: perSecond(pdfjs),
        beside: `pdf-parse alone: ${perSecond(alone)}`,
        goal: '≥ 0.95 ×',
        met: pdfjs >= 0.95 * alone,
        note: `${(pdfjs / alone).toFixed(2)} ×; per second of processor time, the second reading in a process, median of ${ROUNDS}; of the first reading ${cold.toFixed(2)} ×`,
      },
      {
        measured: 'the same by PDFium, cleaned',
        agentd: perSecond(pdfium),
        beside: `pdf-parse alone: ${perSecond(alone)}`,
        goal: '≥ 1.7 ×',
        met: pdfium >= 1.7 * alone,
        note: `${(pdfium / alone).toFixed(2)} ×`,
      },
      {
        measured: 'the same by PDFium, cleaned',
        agentd: perSecond(pdfium),
        beside: native === null ? null : `pdftotext: ${perSecond(native)}`,
        goal: '≥ 0.9 ×',
        met: native === null ? null : pdfium >= 0.9 * native,
        note: native === null ? 'pdftotext is not installed' : `${(pdfium / native).toFixed(2)} ×`,
      },
      {
        measured: `highest resident memory, PDF of ${large.pages} pages`,
        agentd: `${large.peakMb.toFixed(0)} MB`,
        beside: `pdf-parse alone: ${largeAlone.peakMb.toFixed(0)} MB`,
        goal: '≤ 400 MB',
        met: large.peakMb <= 400,
        note: `whole process, thread and chunking included; without chunking ${largePdfium.peakMb.toFixed(0)} MB; stall ${large.stallMs.toFixed(1)} ms`,
      },
    ],
  };
}
