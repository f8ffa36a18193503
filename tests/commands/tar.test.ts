/** The archive's headers; whether tar reads whole archives, workspace-export.test.ts asks tar. */
import { expect, test } from 'vitest';
import { header } from '../../src/commands/tar.ts';

const numberAt = (block: Buffer, at: number, length: number): number =>
  Number.parseInt(block.toString('latin1', at, at + length), 8);

test('a header adds up, and says the size of what octal digits can and can’t say', () => {
  const block = header('export/tables/agents.jsonl', 8 ** 11 - 1, 1_700_000_000);
  expect(block).toHaveLength(512);
  expect(numberAt(block, 124, 11)).toBe(8 ** 11 - 1);
  expect(numberAt(block, 136, 11)).toBe(1_700_000_000);
  const sum = numberAt(block, 148, 6);
  block.fill(' ', 148, 156);
  expect(sum).toBe(block.reduce((total, byte) => total + byte, 0));
  const large = header('x', 2 ** 40, 0);
  expect(large[124]).toBe(0x80);
  expect(large.readBigUInt64BE(128)).toBe(2n ** 40n);
});

test('a path that the format can’t hold is refused, not cut', () => {
  expect(() => header('x'.repeat(101), 0, 0)).toThrow(RangeError);
  expect(() => header('ü', 0, 0)).toThrow(RangeError);
});
