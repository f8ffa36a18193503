/** Token endpoints: a real OpenID provider that rotates refresh tokens and revokes a family on reuse, and one that answers what a test says. */
import { generateKeyPairSync } from 'node:crypto';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import Provider from 'oidc-provider';

export const CLIENT = { id: 'agentd-tests', secret: 'client-secret-of-the-tests' } as const;

/** What the servers were asked, by the form's fields. */
export type TokenAsked = {
  readonly form: URLSearchParams;
  readonly headers: IncomingMessage['headers'];
  readonly at: number;
};

export type OAuthServer = {
  readonly url: string;
  readonly tokenEndpoint: string;
  readonly port: number;
  /** A new grant's refresh token. */
  grant(): Promise<string>;
  /** Requests to the token endpoint so far. */
  readonly asked: TokenAsked[];
  /** Grants that were revoked because a rotated token came again. */
  readonly revoked: string[];
  /** Refreshes that were carried out. */
  readonly succeeded: () => number;
  /** Runs before every request is looked at; what it waits for, the client waits for. */
  before: ((asked: TokenAsked) => Promise<void>) | null;
  /** Runs after the refresh was carried out, before its answer leaves. */
  after: (() => Promise<void>) | null;
  close(): Promise<void>;
};

async function listen(
  handle: (request: IncomingMessage, response: ServerResponse) => void,
): Promise<{ port: number; close(): Promise<void> }> {
  const server = createServer(handle);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    port: (server.address() as AddressInfo).port,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

async function bodyOf(request: IncomingMessage): Promise<string> {
  const pieces: Buffer[] = [];
  for await (const piece of request) pieces.push(piece as Buffer);
  return Buffer.concat(pieces).toString();
}

/** Starts an OpenID provider whose refresh tokens may be used once. Access tokens live `lifetimeSeconds`. */
export async function startOAuthServer(options: { lifetimeSeconds?: number } = {}): Promise<OAuthServer> {
  let callback: ((request: IncomingMessage, response: ServerResponse) => void) | null = null;
  const asked: TokenAsked[] = [];
  const revoked: string[] = [];
  let succeeded = 0;
  const handle = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const body = await bodyOf(request);
    const one = { form: new URLSearchParams(body), headers: request.headers, at: Date.now() };
    if (request.url === '/token') asked.push(one);
    await server.before?.(one);
    // oidc-provider takes a body that was read before
    Object.assign(request, { body: Object.fromEntries(one.form) });
    if (server.after) {
      const end = response.end.bind(response) as (...args: unknown[]) => ServerResponse;
      const { after } = server;
      response.end = ((...args: unknown[]) => {
        void after().then(() => end(...args));
        return response;
      }) as typeof response.end;
    }
    callback?.(request, response);
  };
  const http = await listen((request, response) => {
    void handle(request, response).catch(() => response.destroy());
  });
  const url = `http://127.0.0.1:${http.port}`;
  const provider = new Provider(url, {
    clients: [
      {
        client_id: CLIENT.id,
        client_secret: CLIENT.secret,
        grant_types: ['authorization_code', 'refresh_token'],
        redirect_uris: ['https://application.example/callback'],
        token_endpoint_auth_method: 'client_secret_post',
      },
    ],
    adapter: adapters(),
    rotateRefreshToken: true,
    issueRefreshToken: async () => true,
    findAccount: async (_: unknown, id: string) => ({ accountId: id, claims: async () => ({ sub: id }) }),
    scopes: ['openid', 'offline_access'],
    ttl: {
      AccessToken: options.lifetimeSeconds ?? 3600,
      IdToken: 3600,
      Grant: 86_400,
      RefreshToken: 86_400,
    },
    features: { devInteractions: { enabled: false } },
    cookies: { keys: ['tests'] },
    jwks: { keys: [signingKey()] },
  });
  provider.on('grant.revoked', (_, id) => revoked.push(id));
  provider.on('grant.success', () => {
    succeeded += 1;
  });
  callback = provider.callback();
  let accounts = 0;
  const server: OAuthServer = {
    url,
    tokenEndpoint: `${url}/token`,
    port: http.port,
    asked,
    revoked,
    succeeded: () => succeeded,
    before: null,
    after: null,
    async grant() {
      const accountId = `account-${++accounts}`;
      const grant = new provider.Grant({ accountId, clientId: CLIENT.id });
      grant.addOIDCScope('openid offline_access');
      const grantId = await grant.save();
      const client = await provider.Client.find(CLIENT.id);
      if (!client) throw new Error('The provider does not know its client.');
      const token = new provider.RefreshToken({
        accountId,
        client,
        grantId,
        scope: 'openid offline_access',
        gty: 'authorization_code',
      });
      return token.save();
    },
    close: http.close,
  };
  return server;
}

type Stored = Record<string, unknown> & { grantId?: string; consumed?: number };

/** The provider's storage: its own forgets what is older than a thousand entries. */
function adapters(): unknown {
  const rows = new Map<string, Stored>();
  return class {
    readonly #name: string;
    constructor(name: string) {
      this.#name = name;
    }
    #key(id: string): string {
      return `${this.#name}:${id}`;
    }
    async upsert(id: string, row: Stored): Promise<void> {
      rows.set(this.#key(id), row);
    }
    async find(id: string): Promise<Stored | undefined> {
      return rows.get(this.#key(id));
    }
    async findByUid(): Promise<undefined> {}
    async findByUserCode(): Promise<undefined> {}
    async destroy(id: string): Promise<void> {
      rows.delete(this.#key(id));
    }
    async consume(id: string): Promise<void> {
      const row = rows.get(this.#key(id));
      if (row) row.consumed = Math.floor(Date.now() / 1000);
    }
    async revokeByGrantId(grantId: string): Promise<void> {
      for (const [key, row] of rows) if (row.grantId === grantId) rows.delete(key);
    }
  };
}

function signingKey(): unknown {
  return generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey.export({ format: 'jwk' });
}

/** What a fault server says to one request; `hang` keeps the connection open without a word, `cut` ends it. */
export type Fault =
  | { status: number; body: string | object; headers?: Record<string, string> }
  | 'hang'
  | 'cut';

export type FaultServer = {
  readonly url: string;
  readonly port: number;
  readonly asked: TokenAsked[];
  respond(how: (asked: TokenAsked, path: string) => Fault | Promise<Fault>): void;
  close(): Promise<void>;
};

/** Starts a server that answers as the test says. */
export async function startFaultServer(): Promise<FaultServer> {
  const asked: TokenAsked[] = [];
  let how: (asked: TokenAsked, path: string) => Fault | Promise<Fault> = () => ({ status: 500, body: '' });
  const handle = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const body = await bodyOf(request);
    const form = new URLSearchParams(
      body.startsWith('{') ? (JSON.parse(body) as Record<string, string>) : body,
    );
    const one = { form, headers: request.headers, at: Date.now() };
    asked.push(one);
    const fault = await how(one, request.url ?? '/');
    if (fault === 'hang') return;
    if (fault === 'cut') {
      response.destroy();
      return;
    }
    const text = typeof fault.body === 'string' ? fault.body : JSON.stringify(fault.body);
    response.writeHead(fault.status, {
      ...(typeof fault.body === 'string' ? {} : { 'content-type': 'application/json' }),
      ...fault.headers,
    });
    response.end(text);
  };
  const http = await listen((request, response) => {
    void handle(request, response).catch(() => response.destroy());
  });
  return {
    url: `http://127.0.0.1:${http.port}`,
    port: http.port,
    asked,
    respond(next) {
      how = next;
    },
    close: http.close,
  };
}
