/**
 * Connections to hosts that tenants name.
 *
 * The check is made where the connection is: the resolver's answer is judged and then handed to the socket itself, so
 * that a name which changes its answer between a check and a use has nothing to win. Any dispatcher of undici can be
 * built on it, a model endpoint's as well as a page's.
 */
import { lookup, Resolver } from 'node:dns/promises';
import { isIP, type LookupFunction } from 'node:net';
import { buildConnector } from 'undici';
import { type AllowedHosts, isNamed, isPortAllowed, plainHost, refusal } from './guarded-address.ts';
import { notPublicError } from './guarded-url.ts';

/** All addresses of a name; rejects with an error that has Node's `code` (ENOTFOUND, EAI_AGAIN, …). */
export type Resolve = (host: string) => Promise<readonly string[]>;

/** Addresses that are tried of a name that has more; all are judged. */
const TRIED_ADDRESSES = 8;

/** Connects where the rules allow it, and fails with DocumentError `blocked_address` elsewhere. */
export function guardedConnector(
  allowed: AllowedHosts,
  resolve: Resolve,
  timeoutMs: number,
): buildConnector.connector {
  return (options, callback) => {
    const host = plainHost(options.hostname);
    const port = Number(options.port || (options.protocol === 'https:' ? 443 : 80));
    const url = new URL(`${options.protocol}//${isIP(host) === 6 ? `[${host}]` : host}:${port}`);
    const refuse = (why: string): void => callback(notPublicError(url, why), null);
    if (!isPortAllowed(allowed, host, port)) return refuse('port');
    if (isIP(host) !== 0) {
      // Sockets do not look up what is an address already, so the judgement below would never be asked for.
      const why = refusal(allowed, host, host, port);
      if (why !== null) return refuse(why);
    }
    const judged: LookupFunction = (name, wanted, done) => {
      resolve(name).then(
        (addresses) => {
          for (const address of addresses) {
            const why = refusal(allowed, host, address, port);
            // One bad answer among good ones is a trap as well: which one is taken is up to the socket.
            if (why !== null) return done(notPublicError(url, why), '', 0);
          }
          const found = addresses
            .slice(0, TRIED_ADDRESSES)
            .map((address) => ({ address, family: isIP(address) }));
          const [first] = found;
          if (first === undefined) return done(noAddress(name), '', 0);
          if (wanted.all) done(null, found);
          else done(null, first.address, first.family);
        },
        (error: NodeJS.ErrnoException) => done(error, '', 0),
      );
    };
    buildConnector({ timeout: timeoutMs, allowH2: false, lookup: judged })(options, callback);
  };
}

/**
 * The resolver in use: names that the operator opened as the system resolves them (hosts file, search domains), all
 * others by DNS alone.
 *
 * Not the system's for the latter: `getaddrinfo` occupies one of the process's few file and name threads for as long as
 * a tenant's name server likes to be silent.
 *
 * @param servers name servers as `address:port`, instead of the system's
 */
export function publicResolver(allowed: AllowedHosts, servers: readonly string[] | null = null): Resolve {
  const dns = new Resolver({ timeout: 3000, tries: 2 });
  if (servers !== null) dns.setServers(servers);
  return async (host) => {
    if (isNamed(allowed, host)) return (await lookup(host, { all: true })).map(({ address }) => address);
    const answers = await Promise.allSettled([dns.resolve4(host), dns.resolve6(host)]);
    const addresses = answers.flatMap((answer) => (answer.status === 'fulfilled' ? answer.value : []));
    if (addresses.length > 0) return addresses;
    const failed = answers.map((answer) => (answer.status === 'rejected' ? answer.reason : null));
    // A family without records says nothing beside one that could not be asked.
    throw (
      failed.find((error) => !['ENODATA', 'ENOTFOUND'].includes(error?.code)) ?? failed[0] ?? noAddress(host)
    );
  };
}

function noAddress(host: string): NodeJS.ErrnoException {
  return Object.assign(new Error(`${host} has no address.`), { code: 'ENOTFOUND' });
}
