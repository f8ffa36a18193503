import { expect, test } from 'vitest';
import { toJson } from '../../src/db/json.ts';

test('NUL and unpaired surrogates are replaced in keys and values, and nothing else is', () => {
  const value = {
    'k\u0000': ['a\u0000b', '\ud800', 'x\udfffy', '😀', '\\u0000', '\\\\u0000\u0000', 'line\nend\\'],
  };
  expect(JSON.parse(toJson(value))).toEqual({
    'k\ufffd': ['a\ufffdb', '\ufffd', 'x\ufffdy', '😀', '\\u0000', '\\\\u0000\ufffd', 'line\nend\\'],
  });
});
