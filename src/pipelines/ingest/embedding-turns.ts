/** Whose turn it is: workspaces take turns, and within each its documents, however much each has to send. */

type Line<T> = { readonly workspaceId: string; readonly members: T[] };

export class Turns<T extends { readonly workspaceId: string }> {
  /** The next to be served first. */
  readonly #lines: Line<T>[] = [];

  get size(): number {
    return this.#lines.reduce((sum, line) => sum + line.members.length, 0);
  }

  add(member: T): void {
    const line = this.#lines.find(({ workspaceId }) => workspaceId === member.workspaceId);
    if (line) line.members.push(member);
    else this.#lines.push({ workspaceId: member.workspaceId, members: [member] });
  }

  remove(member: T): void {
    const at = this.#lines.findIndex(({ workspaceId }) => workspaceId === member.workspaceId);
    const line = this.#lines[at];
    const place = line?.members.indexOf(member) ?? -1;
    if (!line || place < 0) return;
    line.members.splice(place, 1);
    if (line.members.length === 0) this.#lines.splice(at, 1);
  }

  /** The next that is ready; it goes to the end of its line, and the line behind the others. Null: nobody is. */
  next(isReady: (member: T) => boolean): T | null {
    for (const [at, line] of this.#lines.entries()) {
      const place = line.members.findIndex(isReady);
      if (place < 0) continue;
      const [member] = line.members.splice(place, 1) as [T];
      line.members.push(member);
      this.#lines.splice(at, 1);
      this.#lines.push(line);
      return member;
    }
    return null;
  }
}
