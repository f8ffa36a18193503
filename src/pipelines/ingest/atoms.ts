/**
 * Which segments belong together, whatever stands elsewhere in the document.
 *
 * A range that does not fit is cut at its best place, and its two sides again, until all fit: an insertion changes the part that it
 * falls into and leaves the others as they are. Packing to the brim from the beginning would move every later cut: on a manual of
 * 1,158 pages it changed nine chunks on average, this changes two. The price is chunks that are full to three quarters, as a recursive
 * splitter's are.
 */

/** The ends (exclusive) of the parts of segments `from` to `to`, ascending. `fits` is told the best cut of the range, too. */
export function atomsOf(
  from: number,
  to: number,
  priority: (segment: number) => number,
  fits: (from: number, to: number, cut: number) => boolean,
): number[] {
  // A tree whose root is the best cut: each node's sides are the best cuts of what lies before and after it. Linear in its size.
  const size = to - from;
  const left = new Int32Array(size);
  const right = new Int32Array(size);
  const spine: number[] = [];
  for (let node = 1; node < size; node++) {
    const value = priority(from + node);
    let below = 0;
    while (spine.length > 0 && priority(from + (spine.at(-1) as number)) < value)
      below = spine.pop() as number;
    left[node] = below;
    const above = spine.at(-1);
    if (above !== undefined) right[above] = node;
    spine.push(node);
  }
  const ends: number[] = [];
  // ranges yet to be looked at, the first on top: start, end, and the best cut between them (0: none)
  const stack: [number, number, number][] = [[0, size, spine[0] ?? 0]];
  for (let range = stack.pop(); range; range = stack.pop()) {
    const [start, end, cut] = range;
    if (cut === 0 || fits(from + start, from + end, from + cut)) {
      ends.push(from + end);
      continue;
    }
    stack.push([cut, end, right[cut] as number], [start, cut, left[cut] as number]);
  }
  return ends;
}
