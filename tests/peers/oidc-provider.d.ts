/** As much of oidc-provider, which has no types of its own, as the tests use. */
declare module 'oidc-provider' {
  import type { IncomingMessage, ServerResponse } from 'node:http';

  type Client = { readonly clientId: string };
  export default class Provider {
    constructor(issuer: string, configuration: Readonly<Record<string, unknown>>);
    readonly Client: { find(id: string): Promise<Client | undefined> };
    readonly Grant: new (of: {
      accountId: string;
      clientId: string;
    }) => { addOIDCScope(scope: string): void; save(): Promise<string> };
    readonly RefreshToken: new (of: {
      accountId: string;
      client: Client;
      grantId: string;
      scope: string;
      gty: string;
    }) => { save(): Promise<string> };
    on(event: 'grant.revoked', told: (context: unknown, grantId: string) => void): void;
    on(event: 'grant.success', told: () => void): void;
    callback(): (request: IncomingMessage, response: ServerResponse) => void;
  }
}
