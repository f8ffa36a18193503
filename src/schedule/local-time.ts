/** Text for people. Nothing here is parsed again. */

/** @param wall local milliseconds @returns 'YYYY-MM-DD' */
export const dateText = (wall: number): string => new Date(wall).toISOString().slice(0, 10);

/** @param wall local milliseconds @returns 'HH:MM', with seconds where there are any */
export function timeText(wall: number): string {
  const text = new Date(wall).toISOString().slice(11, 19);
  return text.endsWith(':00') ? text.slice(0, 5) : text;
}

/** @param offset milliseconds ahead of UTC @returns '-04:00', with seconds where there are any */
export function offsetText(offset: number): string {
  return `${offset < 0 ? '-' : '+'}${timeText(Math.abs(offset))}`;
}

/** @returns 'a', 'a and b', 'a, b and c' */
export function listText(items: readonly string[], word = 'and'): string {
  return items.length < 2 ? (items[0] ?? '') : `${items.slice(0, -1).join(', ')} ${word} ${items.at(-1)}`;
}
