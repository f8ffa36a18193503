import { describe, expect, test } from 'vitest';
import { nextOccurrence, occurrences, parseExpression } from '../../src/schedule/index.ts';

const short = (times: readonly Date[]) =>
  times.map((t) => t.toISOString().replace(/(:00)?\.000Z$/, '')).join(' ');

/**
 * What | expression | zone | asked after | expected occurrences. Instants are UTC, written by hand from the zones' published changes;
 * a line beginning with # says when those are.
 */
const CASES = `
# 2026-03-08 02:00 EST → 03:00 EDT at 07:00Z; 2026-11-01 02:00 EDT → 01:00 EST at 06:00Z.
New York, gap: 02:30 runs at 03:00 | 30 2 * * * | America/New_York | 2026-03-07T07:30 | 2026-03-08T07:00 2026-03-09T06:30
New York, gap: two times in it run once | 0,30 2 * * * | America/New_York | 2026-03-07T07:30 | 2026-03-08T07:00 2026-03-09T06:00 2026-03-09T06:30
New York, gap: 02:00 and 03:00 coincide | 0 2,3 * * * | America/New_York | 2026-03-07T08:00 | 2026-03-08T07:00 2026-03-09T06:00 2026-03-09T07:00
New York, gap: 02:30 and 03:30 stay two | 30 2,3 * * * | America/New_York | 2026-03-07T08:30 | 2026-03-08T07:00 2026-03-08T07:30 2026-03-09T06:30
New York, gap: on that date only | 30 2 8 3 * | America/New_York | 2026-01-01T00:00 | 2026-03-08T07:00 2027-03-08T07:30
New York, gap: an interval has nothing to lose | */30 * * * * | America/New_York | 2026-03-08T06:15 | 2026-03-08T06:30 2026-03-08T07:00 2026-03-08T07:30
New York, gap: every second hour | 0 */2 * * * | America/New_York | 2026-03-08T04:59 | 2026-03-08T05:00 2026-03-08T08:00 2026-03-08T10:00
New York, overlap: 01:30 runs once, the first time | 30 1 * * * | America/New_York | 2026-10-31T05:30 | 2026-11-01T05:30 2026-11-02T06:30
New York, overlap: asked between the two | 30 1 * * * | America/New_York | 2026-11-01T05:45 | 2026-11-02T06:30
New York, overlap: 02:00 is not part of it | 0 2 * * * | America/New_York | 2026-11-01T05:30 | 2026-11-01T07:00 2026-11-02T07:00
New York, overlap: an interval runs in both passes | */30 * * * * | America/New_York | 2026-11-01T04:45 | 2026-11-01T05:00 2026-11-01T05:30 2026-11-01T06:00 2026-11-01T06:30 2026-11-01T07:00
New York, overlap: an interval of one date, asked in the first pass | */30 1 1 11 * | America/New_York | 2026-11-01T05:45 | 2026-11-01T06:00 2026-11-01T06:30 2027-11-01T05:00
New York, overlap: hourly | @hourly | America/New_York | 2026-11-01T04:30 | 2026-11-01T05:00 2026-11-01T06:00 2026-11-01T07:00
New York, overlap: a list of hours is fixed times | 0 0,1,2 * * * | America/New_York | 2026-11-01T03:59 | 2026-11-01T04:00 2026-11-01T05:00 2026-11-01T07:00
New York, overlap: 0-59/30 is an interval as */30 is | 0-59/30 * * * * | America/New_York | 2026-11-01T05:45 | 2026-11-01T06:00 2026-11-01T06:30
# 2026-03-29 01:00 GMT → 02:00 BST at 01:00Z; 2026-10-25 02:00 BST → 01:00 GMT at 01:00Z.
London, gap | 15 1 * * * | Europe/London | 2026-03-28T01:15 | 2026-03-29T01:00 2026-03-30T00:15
London, gap: a second within it | 45 59 1 * * * | Europe/London | 2026-03-28T12:00 | 2026-03-29T01:00 2026-03-30T00:59:45
London, overlap | 30 1 * * * | Europe/London | 2026-10-24T12:00 | 2026-10-25T00:30 2026-10-26T01:30
London, overlap: interval | */20 1 * * * | Europe/London | 2026-10-24T12:00 | 2026-10-25T00:00 2026-10-25T00:20 2026-10-25T00:40 2026-10-25T01:00 2026-10-25T01:20 2026-10-25T01:40 2026-10-26T01:00
# 2026-04-05 02:00 +11 → 01:30 +10:30 at 15:00Z on the 4th; 2026-10-04 02:00 +10:30 → 02:30 +11 at 15:30Z on the 3rd.
Lord Howe, half-hour overlap | 45 1 * * * | Australia/Lord_Howe | 2026-04-04T00:00 | 2026-04-04T14:45 2026-04-05T15:15
Lord Howe, half-hour overlap: 01:15 is before it | 15 1 * * * | Australia/Lord_Howe | 2026-04-04T00:00 | 2026-04-04T14:15 2026-04-05T14:45
Lord Howe, half-hour overlap: interval | */15 * * * * | Australia/Lord_Howe | 2026-04-04T14:31 | 2026-04-04T14:45 2026-04-04T15:00 2026-04-04T15:15 2026-04-04T15:30
Lord Howe, half-hour gap | 15 2 * * * | Australia/Lord_Howe | 2026-10-02T15:45 | 2026-10-03T15:30 2026-10-04T15:15
Lord Howe, half-hour gap: 02:30 exists | 30 2 * * * | Australia/Lord_Howe | 2026-10-02T16:00 | 2026-10-03T15:30 2026-10-04T15:30
Lord Howe, half-hour gap: hourly | 0 * * * * | Australia/Lord_Howe | 2026-10-03T14:30 | 2026-10-03T16:00 2026-10-03T17:00
# 2011-12-30 did not happen: -10 → +14 at 10:00Z on the 30th.
Apia, a whole day missing: its run happens as the gap ends | 0 9 * * * | Pacific/Apia | 2011-12-29T00:00 | 2011-12-29T19:00 2011-12-30T10:00 2011-12-30T19:00
Apia, a whole day missing: that date | 0 9 30 12 * | Pacific/Apia | 2011-12-01T00:00 | 2011-12-30T10:00 2012-12-29T19:00
Apia, a whole day missing: interval | 0 */6 * * * | Pacific/Apia | 2011-12-30T03:00 | 2011-12-30T04:00 2011-12-30T10:00 2011-12-30T16:00
# Kwajalein skipped 1993-08-21: -12 → +12 at 12:00Z on the 21st.
Kwajalein, a whole day missing | 0 9 * * * | Pacific/Kwajalein | 1993-08-20T00:00 | 1993-08-20T21:00 1993-08-21T12:00 1993-08-21T21:00
# Midnight itself was skipped: 2018-11-04 00:00 → 01:00 at 03:00Z; and repeated: 2019-02-17 00:00 → 2019-02-16 23:00 at 02:00Z.
Sao Paulo, midnight in the gap | 0 0 * * * | America/Sao_Paulo | 2018-11-03T03:00 | 2018-11-04T03:00 2018-11-05T02:00
Sao Paulo, 23:30 twice | 30 23 * * * | America/Sao_Paulo | 2019-02-16T01:30 | 2019-02-17T01:30 2019-02-18T02:30
Sao Paulo, midnight after 23:30 twice | 0 0 * * * | America/Sao_Paulo | 2019-02-16T02:00 | 2019-02-17T03:00 2019-02-18T03:00
Sao Paulo, the last of the month at the repeated hour | 0 23 16 2 * | America/Sao_Paulo | 2019-01-01T00:00 | 2019-02-17T01:00 2020-02-17T02:00
# 2024-04-26 00:00 → 01:00 at 22:00Z on the 25th; 2024-11-01 00:00 → 2024-10-31 23:00 at 21:00Z on the 31st.
Cairo, midnight in the gap | 0 0 * * FRI | Africa/Cairo | 2024-04-20T00:00 | 2024-04-25T22:00 2024-05-02T21:00
Cairo, the last hour of October twice | 30 23 L * * | Africa/Cairo | 2024-10-01T00:00 | 2024-10-31T20:30 2024-11-30T21:30
Cairo, midnight after it | 0 0 1 * * | Africa/Cairo | 2024-10-15T00:00 | 2024-10-31T22:00 2024-11-30T22:00
# Morocco leaves +01 for Ramadan: 2026-02-15 03:00 → 02:00 at 02:00Z, back 2026-03-22 02:00 → 03:00 at 02:00Z.
Casablanca, Ramadan | 30 2 * * * | Africa/Casablanca | 2026-02-14T12:00 | 2026-02-15T01:30 2026-02-16T02:30
# The one week of summer time in north-eastern Brazil: 2000-10-08 to 2000-10-15.
Recife, a season of one week | 0 12 * * SUN | America/Recife | 2000-10-01T16:00 | 2000-10-08T14:00 2000-10-15T15:00
`
  .split('\n')
  .filter((line) => line !== '' && !line.startsWith('#'))
  .map((line) => line.split(' | '));

test('the table of clock changes is read in full', () => {
  expect(CASES).toHaveLength(38);
  expect(CASES.every((row) => row.length === 5)).toBe(true);
});

describe('a change of the clocks', () => {
  test.each(CASES)('%s', (_what = '', expression = '', zone = '', after = '', expected = '') => {
    const count = expected.split(' ').length;
    expect(short(occurrences(parseExpression(expression), zone, new Date(`${after}Z`), count))).toBe(
      expected,
    );
  });
});

describe('a late recomputation gives the same occurrences, from wherever the search begins', () => {
  test.each([
    ['30 1 * * *', 'America/New_York', '2026-10-30T00:00', 4],
    ['30 2 * * *', 'America/New_York', '2026-03-06T00:00', 4],
    ['*/20 * * * *', 'America/New_York', '2026-11-01T03:00', 4],
    ['45 1 * * *', 'Australia/Lord_Howe', '2026-04-03T00:00', 3],
    ['15 2 * * *', 'Australia/Lord_Howe', '2026-10-02T00:00', 3],
    ['0 0 * * *', 'America/Sao_Paulo', '2018-11-02T00:00', 4],
    ['30 23 * * *', 'America/Sao_Paulo', '2019-02-15T00:00', 4],
  ])('%s in %s', (expression, zone, start, days) => {
    const expr = parseExpression(expression);
    const begin = Date.parse(`${start}Z`);
    const all = occurrences(expr, zone, new Date(begin), 400).map((t) => t.getTime());
    // Every minute of those days as the late clock; each answer must be the next member of the one set.
    for (let late = begin; late < begin + days * 86_400_000; late += 60_000) {
      expect(nextOccurrence(expr, zone, new Date(late))?.getTime()).toBe(all.find((t) => t > late));
    }
  });
});
