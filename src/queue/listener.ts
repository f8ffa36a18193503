/**
 * One connection that listens to agentd's channels, reconnecting for as long as it takes.
 *
 * Notifications are hints: losing them costs latency, never work. After every (re)connect `onConnect` is
 * called, because something may have been missed.
 */
import pg from 'pg';
import type { Logger } from 'pino';
import type { Clock, Timer } from '../clock.ts';

/**
 * Channels and what they carry: a queue's name, nothing, nothing, the name of a queue that was paused or resumed. Whoever has a login may
 * listen, so nothing of a tenant's is ever said.
 */
export const CHANNELS = {
  wake: 'agentd_wake',
  cancel: 'agentd_cancel',
  schedule: 'agentd_schedule',
  control: 'agentd_control',
} as const;

export type ListenerOptions = {
  readonly url: string;
  readonly clock: Clock;
  readonly log: Logger;
  readonly onNotification: (channel: string, payload: string) => void;
  readonly onConnect: () => void;
};

const FIRST_DELAY_MS = 100;
const LONGEST_DELAY_MS = 5_000;
/** A dead peer is found out by a query that does not come back. */
const CHECK_MS = 10_000;

export class Listener {
  readonly #options: ListenerOptions;
  #client: pg.Client | null = null;
  #timer: Timer | null = null;
  #failures = 0;
  #stopped = false;
  /** True while notifications arrive. */
  connected = false;

  constructor(options: ListenerOptions) {
    this.#options = options;
  }

  /** Resolves when the first attempt has succeeded or failed; a failure is retried in the background. */
  async start(): Promise<void> {
    await this.#connect();
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    this.#timer?.cancel();
    const client = this.#client;
    this.#client = null;
    await client?.end().catch(() => {});
  }

  async #connect(): Promise<void> {
    if (this.#stopped) return;
    const { url, log, clock, onConnect, onNotification } = this.#options;
    const client = new pg.Client({
      connectionString: url,
      application_name: 'agentd listener',
      keepAlive: true,
      query_timeout: 5_000,
      connectionTimeoutMillis: 10_000,
    });
    this.#client = client;
    const lost = (error?: Error): void => {
      if (this.#client !== client) return;
      this.#client = null;
      this.connected = false;
      client.end().catch(() => {});
      if (this.#stopped) return;
      const delay = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** Math.min(this.#failures++, 6));
      log.warn(
        { event: 'listener_lost', err: error, retry_in_ms: delay },
        'the listening connection was lost',
      );
      this.#timer?.cancel();
      this.#timer = clock.after(delay, () => void this.#connect());
    };
    client.on('error', lost);
    client.on('end', () => lost());
    client.on('notification', (message) => onNotification(message.channel, message.payload ?? ''));
    try {
      await client.connect();
      for (const channel of Object.values(CHANNELS)) await client.query(`listen ${channel}`);
      this.#failures = 0;
      this.connected = true;
      onConnect();
      this.#check(client, lost);
    } catch (error) {
      lost(error as Error);
    }
  }

  #check(client: pg.Client, lost: (error?: Error) => void): void {
    this.#timer = this.#options.clock.after(CHECK_MS, () => {
      client.query('select 1').then(
        () => {
          if (this.#client === client) this.#check(client, lost);
        },
        (error: Error) => lost(error),
      );
    });
  }
}
