/** Which addresses a URL that a tenant named may lead to, and which private ones the operator has opened. */
import { isIP } from 'node:net';
import ipaddr from 'ipaddr.js';

/** Ports on which documents are served; any other has to be opened with its host. */
const USUAL_PORTS: ReadonlySet<number> = new Set([80, 443, 8080, 8443]);

/**
 * Names that are no public ones: special use (RFC 6761, 6762, 8375, 9476), and what ICANN and the clouds keep for
 * networks of their own (metadata.google.internal is one).
 */
const PRIVATE_NAME = /(?:^|\.)(?:localhost|local|localdomain|internal|intranet|lan|home\.arpa|alt|onion)$/;

/** Public by their number, yet answered by the cloud's host itself: Azure's wire server. */
const SERVED_BY_THE_HOST: ReadonlySet<string> = new Set(['168.63.129.16']);

type Address = ipaddr.IPv4 | ipaddr.IPv6;

/** One entry of AGENTD_ALLOWED_PRIVATE_HOSTS: `host`, `host:port`, an address, `[v6]:port` or a range like 10.1.0.0/16. */
type AllowedHost = {
  readonly name: string | null;
  readonly range: readonly [Address, number] | null;
  /** Null: the usual ports. */
  readonly port: number | null;
};

export type AllowedHosts = readonly AllowedHost[];

/** Why an address is refused, as a word for the message; null when it is a public one. */
export function notPublic(text: string): string | null {
  const address = parseAddress(text);
  if (address === null) return 'unreadable';
  const range = address.range();
  if (address.kind() === 'ipv4') {
    if (range !== 'unicast') return words(range);
    return SERVED_BY_THE_HOST.has(address.toString()) ? 'metadata' : null;
  }
  if (range !== 'unicast') return words(range);
  const parts = (address as ipaddr.IPv6).parts;
  const [first = 0] = parts;
  // Global unicast is 2000::/3; everything else is unassigned, or an IPv4 address in an old disguise (::127.0.0.1).
  if (first < 0x2000 || first > 0x3fff) return 'reserved';
  // ISATAP, an IPv4 address behind any prefix.
  if (parts[5] === 0x5efe && ((parts[4] ?? 0) & ~0x0200) === 0) return 'embedded IPv4';
  return null;
}

/** Whether a host name can only mean a machine of the operator's own network. */
export function isPrivateName(host: string): boolean {
  const name = plainHost(host);
  return name === '' || PRIVATE_NAME.test(name) || (!name.includes('.') && isIP(name) === 0);
}

/**
 * The operator's exceptions.
 *
 * Throws an Error that names the entry which is none: a typing error must not silently open or close anything.
 */
export function parseAllowedHosts(entries: readonly string[]): AllowedHosts {
  return entries.map((entry) => {
    const allowed = parseEntry(entry.trim().toLowerCase());
    if (allowed !== null) return allowed;
    throw new Error(
      `AGENTD_ALLOWED_PRIVATE_HOSTS: '${entry}' is no host, host:port, address or range like 10.1.0.0/16.`,
    );
  });
}

/** Whether the operator names this very host (a name or an address literal), on whatever port. */
export function isNamed(allowed: AllowedHosts, host: string): boolean {
  const name = plainHost(host);
  return allowed.some((entry) => entry.name === name) || isInRange(allowed, name, null);
}

/** Whether the port is a usual one, or is opened for the host by name or by address. */
export function isPortAllowed(allowed: AllowedHosts, host: string, port: number): boolean {
  if (USUAL_PORTS.has(port)) return true;
  const name = plainHost(host);
  return (
    allowed.some((entry) => entry.name === name && entry.port === port) || isInRange(allowed, name, port)
  );
}

/**
 * Why the connection to `address`, which `host` stands for, is refused; null when it may be made.
 *
 * A name that the operator opened may lead into private networks. It may not lead to link-local, multicast or metadata
 * addresses: these have to be opened by their number.
 */
export function refusal(allowed: AllowedHosts, host: string, address: string, port: number): string | null {
  const why = notPublic(address);
  if (why === null) return null;
  if (isInRange(allowed, address, port)) return null;
  const name = plainHost(host);
  const opened = allowed.some((entry) => entry.name === name && opensPort(entry, port));
  const isLan = ['private', 'loopback', 'unique local', 'carrier grade nat'].includes(why);
  return opened && isLan ? null : why;
}

/** A host as URLs write it, without brackets and without the dot of an absolute name. */
export function plainHost(host: string): string {
  return host
    .toLowerCase()
    .replace(/^\[(.*)\]$/, '$1')
    .replace(/\.$/, '');
}

function opensPort(entry: AllowedHost, port: number): boolean {
  return entry.port === null ? USUAL_PORTS.has(port) : entry.port === port;
}

/** With `port` null, on whatever port. */
function isInRange(allowed: AllowedHosts, host: string, port: number | null): boolean {
  const address = parseAddress(host);
  if (address === null) return false;
  return allowed.some((entry) => {
    if (entry.range === null || (port !== null && !opensPort(entry, port))) return false;
    const [network, bits] = entry.range;
    return network.kind() === address.kind() && address.match(network as never, bits);
  });
}

function parseEntry(entry: string): AllowedHost | null {
  const [, bracketed, plain = '', port] = /^(?:\[([^\]]+)\]|([^[\]]*?))(?::(\d{1,5}))?$/.exec(entry) ?? [];
  // Without brackets an IPv6 address holds colons of its own.
  if (bracketed === undefined && /:.*:/.test(entry)) return ranged(entry, null);
  const number = port === undefined ? null : Number(port);
  if (number !== null && (number < 1 || number > 65_535)) return null;
  const host = bracketed ?? plain;
  const range = ranged(host, number);
  if (range !== null) return range;
  if (bracketed !== undefined || host.includes('/') || /^[\d.]+$/.test(host)) return null;
  const name = plainHost(host);
  if (!/^[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?$/.test(name)) return null;
  return { name, range: null, port: number };
}

function ranged(text: string, port: number | null): AllowedHost | null {
  const [host = '', bits] = text.replace(/^\[(.*)\]$/, '$1').split('/');
  const address = isIP(host) === 0 ? null : parseAddress(host);
  if (address === null) return null;
  const most = address.kind() === 'ipv4' ? 32 : 128;
  if (bits !== undefined && !(/^\d{1,3}$/.test(bits) && Number(bits) <= most)) return null;
  return { name: null, range: [address, bits === undefined ? most : Number(bits)], port };
}

/** An address in its strict spelling, without a zone; a mapped one stays what it is, and is so refused. */
function parseAddress(text: string): Address | null {
  const plain = text.replace(/^\[(.*)\]$/, '$1').replace(/%.*$/, '');
  return isIP(plain) === 0 ? null : ipaddr.parse(plain);
}

function words(range: string): string {
  return range
    .replace(/([A-Z][a-z]+|NAT|Nat)/g, ' $1')
    .trim()
    .toLowerCase();
}
