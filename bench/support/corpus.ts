/**
 * Fifty real documents of mixed size, made by other software: manuals, guides and pages of Debian's documentation packages, and the
 * documents that the tests carry. The packages are brought by `apt-get download` into a folder for temporary files, or BENCH_DOCUMENTS names a
 * folder where they are unpacked (`octave-doc/usr/…`).
 */
import { execFile } from 'node:child_process';
import { access, mkdir, readdir, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const run = promisify(execFile);

const PACKAGED: Readonly<Record<string, readonly string[]>> = {
  'r-doc-pdf': ['R-admin', 'R-data', 'R-exts', 'R-intro', 'R-ints', 'R-lang', 'R-FAQ'].map(
    (name) => `usr/share/R/doc/manual/${name}.pdf`,
  ),
  'octave-doc': ['liboctave', 'refcard-a4'].map((name) => `usr/share/doc/octave/${name}.pdf`),
  'gnuplot-doc': ['usr/share/doc/gnuplot/gnuplot.pdf'],
  'libdigidoc-doc': ['SK-COM-PRG-GUIDE', 'SK-CDD-PRG-GUIDE'].flatMap((name) =>
    ['pdf', 'docx'].map((ending) => `usr/share/doc/libdigidoc/libdigidoc/${name}.${ending}`),
  ),
  'python3.11-doc': [
    ...['stdtypes', 'typing', 'logging', 'argparse', 'os', 'ctypes', 'turtle', 'decimal', 'sqlite3', 'ast'],
    ...[
      'asyncio-task',
      'collections',
      'pathlib',
      'random',
      're',
      'json',
      'heapq',
      'shelve',
      'bisect',
      'html',
    ],
    ...['csv', 'uuid', 'glob', 'zipfile', 'getpass', 'graphlib', 'textwrap', 'shlex', 'bz2'],
  ].map((name) => `usr/share/doc/python3.11/html/library/${name}.html`),
};
const CARRIED = [
  ...['handbook.pdf', 'columns-groff.pdf', 'handbook-libreoffice.docx', 'handbook-pandoc.docx'],
  ...['handbook.html', 'handbook.md', 'colorsys-sphinx.html'],
];

/** Pages of Python's documentation that count as small, in bytes. */
const SMALL = { least: 15_000, most: 60_000, count: 50 } as const;

/** Paths of the documents: always the same ones, in the same order. Downloads packages that are missing. */
export async function corpus(): Promise<string[]> {
  const files: string[] = [];
  for (const [debian, paths] of Object.entries(PACKAGED)) {
    const unpacked = await unpackedPackage(debian);
    files.push(...paths.map((path) => join(unpacked, path)));
  }
  files.push(
    ...CARRIED.map((name) =>
      fileURLToPath(new URL(`../../tests/fixtures/documents/${name}`, import.meta.url)),
    ),
  );
  await Promise.all(files.map((file) => stat(file)));
  // large and small ones in turns, as they might come
  return files.map((file, i) => files[(i * 19) % files.length] ?? file);
}

/** Paths of as many small pages of HTML, always the same ones. */
export async function smallPages(): Promise<string[]> {
  const library = join(await unpackedPackage('python3.11-doc'), 'usr/share/doc/python3.11/html/library');
  const names = (await readdir(library)).filter((name) => name.endsWith('.html')).sort();
  const paths = names.map((name) => join(library, name));
  const sizes = await Promise.all(paths.map(async (path) => (await stat(path)).size));
  const small = paths.filter((_, i) => (sizes[i] ?? 0) > SMALL.least && (sizes[i] ?? 0) < SMALL.most);
  return small.filter((_, i) => i % Math.floor(small.length / SMALL.count) === 0).slice(0, SMALL.count);
}

async function unpackedPackage(debian: string): Promise<string> {
  const folder = process.env.BENCH_DOCUMENTS ?? join(tmpdir(), 'agentd-bench-documents');
  await mkdir(folder, { recursive: true });
  const unpacked = join(folder, debian);
  const isThere = await access(unpacked).then(
    () => true,
    () => false,
  );
  if (!isThere) await unpack(folder, debian);
  return unpacked;
}

async function unpack(folder: string, debian: string): Promise<void> {
  await run('apt-get', ['download', debian], { cwd: folder });
  const deb = (await readdir(folder)).find((entry) => entry.startsWith(`${debian}_`));
  await run('dpkg', ['-x', join(folder, deb ?? ''), join(folder, debian)]);
}
