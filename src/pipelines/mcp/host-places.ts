/** Places at one host: however many connections lead to it, so many of this process are open at once. */
export class HostPlaces {
  readonly #most: number;
  readonly #taken = new Map<string, number>();

  constructor(most: number) {
    this.#most = most;
  }

  /** A place at the URL's host until the returned function is called; null: all are taken. */
  take(url: string): (() => void) | null {
    const host = URL.canParse(url) ? new URL(url).host || url : '';
    const taken = this.#taken.get(host) ?? 0;
    if (taken >= this.#most) return null;
    this.#taken.set(host, taken + 1);
    let isFree = false;
    return () => {
      if (isFree) return;
      isFree = true;
      const now = (this.#taken.get(host) ?? 1) - 1;
      if (now === 0) this.#taken.delete(host);
      else this.#taken.set(host, now);
    };
  }
}
