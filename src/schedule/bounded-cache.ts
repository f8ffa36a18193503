/** A map that forgets its oldest entry when full, so that a table full of odd schedules cannot grow the process. */
export type BoundedCache<K, V> = {
  get(key: K): V | undefined;
  set(key: K, value: V): void;
  readonly size: number;
};

/**
 * @param limit entries kept, at least 1. Eviction is by age of insertion: an LRU would write on every read, and what is
 *   cached here (parsed expressions, zones) costs microseconds to make again.
 */
export function boundedCache<K, V>(limit: number): BoundedCache<K, V> {
  const entries = new Map<K, V>();
  return {
    get: (key) => entries.get(key),
    set(key, value) {
      if (entries.size >= limit && !entries.has(key)) {
        for (const oldest of entries.keys()) {
          entries.delete(oldest);
          break;
        }
      }
      entries.set(key, value);
    },
    get size() {
      return entries.size;
    },
  };
}
