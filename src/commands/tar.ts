/** A folder as a tar archive (ustar; sizes from 8 GiB up in GNU's binary form), which every tar reads. */
import { createReadStream } from 'node:fs';
import { type FileHandle, open, readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';

const BLOCK = 512;
const LARGEST_OCTAL = 0o77777777777;

/** Writes the folder's files to a new archive, under `top/`. manifest.json, if there is one, stands last. Their paths are short and ASCII. */
export async function packTar(folder: string, archive: string, top: string): Promise<void> {
  const out = await open(archive, 'wx', 0o600);
  try {
    const entries = await readdir(folder, { recursive: true, withFileTypes: true });
    const files = entries
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name))
      .map((place) => ({ place, name: place.slice(folder.length + 1).replaceAll('\\', '/') }))
      .sort((a, b) => Number(isManifest(a.name)) - Number(isManifest(b.name)) || (a.name < b.name ? -1 : 1));
    const root = /^[\w.-]{1,60}$/.test(top) ? top : 'export';
    for (const { place, name } of files) {
      const { size, mtimeMs } = await stat(place);
      await write(out, header(`${root}/${name}`, size, Math.floor(mtimeMs / 1000)));
      let written = 0;
      for await (const piece of createReadStream(place, { highWaterMark: 256 * 1024 })) {
        written += (piece as Buffer).length;
        await write(out, piece as Buffer);
      }
      if (written !== size) throw new Error(`${name} changed while it was packed`);
      await write(out, Buffer.alloc((BLOCK - (size % BLOCK)) % BLOCK));
    }
    await write(out, Buffer.alloc(2 * BLOCK));
    await out.sync();
  } finally {
    await out.close();
  }
}

const isManifest = (name: string): boolean => name === 'manifest.json';

async function write(out: FileHandle, bytes: Buffer): Promise<void> {
  for (let at = 0; at < bytes.length; ) at += (await out.write(bytes, at)).bytesWritten;
}

/** Throws for a path that the old format can't hold. */
export function header(path: string, size: number, seconds: number): Buffer {
  if (!/^[\x21-\x7e]{1,100}$/.test(path)) throw new RangeError(`${path} is no path for an archive`);
  const block = Buffer.alloc(BLOCK);
  block.write(path, 0, 100, 'latin1');
  block.write('0000600\0', 100, 'latin1');
  block.write('0000000\0', 108, 'latin1');
  block.write('0000000\0', 116, 'latin1');
  if (size <= LARGEST_OCTAL) block.write(`${size.toString(8).padStart(11, '0')}\0`, 124, 'latin1');
  else {
    block.writeUInt8(0x80, 124);
    block.writeBigUInt64BE(BigInt(size), 128);
  }
  block.write(`${seconds.toString(8).padStart(11, '0')}\0`, 136, 'latin1');
  block.write('        ', 148, 'latin1');
  block.write('0', 156, 'latin1');
  block.write('ustar\x0000', 257, 'latin1');
  const sum = block.reduce((total, byte) => total + byte, 0);
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  return block;
}
