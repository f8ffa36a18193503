/**
 * What the database saw, written by triggers of the harness: every change of a run's holder and of a call's state, with
 * who wrote it. The journal shows the end of the story; this shows its order.
 */
import type { Database, Queryable } from '../../src/db/database.ts';

/** A run was inserted, claimed, given back or ended. Times are in milliseconds since the epoch. */
export type RunEvent = {
  readonly run: string;
  readonly status: string;
  readonly epoch: number;
  /** The worker that holds the run, or held it last. */
  readonly owner: string | null;
  readonly writer: string;
  readonly at: number;
};

/** A call's intent or outcome was written. */
export type CallWrite = {
  readonly key: string;
  readonly run: string;
  readonly tool: string | null;
  readonly status: string;
  readonly owner: string | null;
  readonly writer: string;
  readonly at: number;
};

/** Installs the triggers. Only committed changes are seen, each once. */
export async function installAudit(db: Database): Promise<void> {
  await db.query('create schema chaos');
  await db.query(`
    create table chaos.run_events (
      id bigint generated always as identity primary key, run uuid, status text, epoch integer, owner text, writer text,
      at timestamptz default clock_timestamp())`);
  await db.query(`
    create table chaos.call_writes (
      id bigint generated always as identity primary key, key text, run uuid, tool text, status text, owner text,
      writer text, at timestamptz default clock_timestamp())`);
  await db.query(`
    create function chaos.on_run() returns trigger language plpgsql as $$
    begin
      insert into chaos.run_events (run, status, epoch, owner, writer)
      values (new.id, new.status, new.lease_epoch, new.worker_id, current_setting('application_name'));
      return null;
    end $$`);
  await db.query(`
    create function chaos.on_call() returns trigger language plpgsql as $$
    begin
      insert into chaos.call_writes (key, run, tool, status, owner, writer)
      select new.idempotency_key, new.run_id, to_jsonb(new) ->> 'tool_name', new.status, r.worker_id,
             current_setting('application_name')
        from public.task_runs r where r.id = new.run_id;
      return null;
    end $$`);
  await db.query(`
    create trigger chaos_insert after insert on public.task_runs for each row execute function chaos.on_run()`);
  await db.query(`
    create trigger chaos_update after update on public.task_runs for each row
      when (old.status <> new.status or old.lease_epoch <> new.lease_epoch) execute function chaos.on_run()`);
  for (const table of ['llm_calls', 'tool_calls']) {
    await db.query(`
      create trigger chaos_write after insert or update on public.${table}
        for each row execute function chaos.on_call()`);
  }
}

const AT = 'extract(epoch from at)::double precision * 1000 as at';

export function runEvents(db: Queryable): Promise<RunEvent[]> {
  return db.query<RunEvent>(
    `select run, status, epoch, owner, writer, ${AT} from chaos.run_events order by id`,
  );
}

export function callWrites(db: Queryable): Promise<CallWrite[]> {
  return db.query<CallWrite>(
    `select key, run, tool, status, owner, writer, ${AT} from chaos.call_writes order by id`,
  );
}
