/** Preloaded into a child process (`--import`): its date is off by WRONG_DATE_MS, for everything that runs in it. */
const off = Number(process.env.WRONG_DATE_MS);
const Real = Date;

globalThis.Date = new Proxy(Real, {
  construct: (target, args, self) => Reflect.construct(target, args.length === 0 ? [now()] : args, self),
  apply: () => new Real(now()).toString(),
  get: (target, name) => (name === 'now' ? now : Reflect.get(target, name)),
});

function now(): number {
  return Real.now() + off;
}
