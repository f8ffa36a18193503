/** Names that people take for other names. */

/** Letters of other scripts that look like Latin ones in most fonts: https://www.unicode.org/reports/tr39/#Confusable_Detection, the common part. */
const LOOKS_LIKE: Readonly<Record<string, string>> = Object.fromEntries(
  [
    // Cyrillic
    ['а', 'a'],
    ['в', 'b'],
    ['с', 'c'],
    ['ԁ', 'd'],
    ['е', 'e'],
    ['ё', 'e'],
    ['һ', 'h'],
    ['н', 'h'],
    ['і', 'i'],
    ['ї', 'i'],
    ['ј', 'j'],
    ['к', 'k'],
    ['ӏ', 'l'],
    ['м', 'm'],
    ['о', 'o'],
    ['р', 'p'],
    ['ԛ', 'q'],
    ['г', 'r'],
    ['ѕ', 's'],
    ['т', 't'],
    ['у', 'y'],
    ['ѵ', 'v'],
    ['ԝ', 'w'],
    ['х', 'x'],
    ['ү', 'y'],
    ['з', '3'],
    ['б', '6'],
    // Greek
    ['α', 'a'],
    ['β', 'b'],
    ['ϲ', 'c'],
    ['ε', 'e'],
    ['η', 'n'],
    ['ι', 'i'],
    ['κ', 'k'],
    ['ν', 'v'],
    ['ο', 'o'],
    ['ρ', 'p'],
    ['τ', 't'],
    ['υ', 'u'],
    ['χ', 'x'],
    ['γ', 'y'],
    ['ω', 'w'],
    ['ϳ', 'j'],
    // Armenian, Latin beyond ASCII
    ['օ', 'o'],
    ['ս', 'u'],
    ['հ', 'h'],
    ['ո', 'n'],
    ['ց', 'g'],
    ['զ', 'q'],
    ['ı', 'i'],
    ['ɑ', 'a'],
    ['ɡ', 'g'],
    ['ɩ', 'i'],
    ['ʋ', 'u'],
    ['ꞌ', "'"],
    ['‐', '-'],
    ['‑', '-'],
    ['‒', '-'],
    ['–', '-'],
    ['—', '-'],
    ['−', '-'],
    ['∕', '/'],
    ['․', '.'],
    ['ǃ', '!'],
  ].map((pair) => [pair[0] as string, pair[1] as string]),
);

const HIDDEN = /[\p{Cf}\p{Mn}\p{Variation_Selector}]/gu;
const ASCII = /^[\u0020-\u007e]*$/;
const SCRIPTS = [/\p{Script=Latin}/u, /\p{Script=Cyrillic}/u, /\p{Script=Greek}/u, /\p{Script=Armenian}/u];

/** What a name looks like: two names of one look differ in nothing that a person sees. Plain ASCII looks like itself. */
export function lookOf(name: string): string {
  if (ASCII.test(name)) return name;
  const plain = name.normalize('NFKD').replace(HIDDEN, '').toLowerCase();
  return [...plain].map((letter) => LOOKS_LIKE[letter] ?? letter).join('');
}

/** Whether a name mixes letters of scripts that look alike, which no word of any language does. */
export function mixesScripts(name: string): boolean {
  return !ASCII.test(name) && SCRIPTS.filter((script) => script.test(name)).length > 1;
}

/**
 * Those of the names that could be taken for another of them, with that other. Of two that look alike the one in plain ASCII stays;
 * where neither is, both are named.
 */
export function confusable(names: readonly string[]): ReadonlyMap<string, string> {
  const byLook = new Map<string, string[]>();
  for (const name of names) {
    const look = lookOf(name).toLowerCase();
    byLook.set(look, [...(byLook.get(look) ?? []), name]);
  }
  const found = new Map<string, string>();
  for (const alike of byLook.values()) {
    for (const name of alike) {
      if (ASCII.test(name)) continue;
      const other =
        alike.find((each) => each !== name && ASCII.test(each)) ?? alike.find((each) => each !== name);
      if (other !== undefined) found.set(name, other);
    }
  }
  return found;
}
