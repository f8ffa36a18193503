import { randomUUID } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import { basename } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import type { Command } from 'commander';
import type { Config } from '../config.ts';
import type { Database } from '../db/database.ts';
import {
  insertPage,
  insertUpload,
  noteObject,
  type SourceProgress,
  sourceProgress,
  type UploadOwner,
  uploadOwners,
} from '../db/uploads.ts';
import { partOf } from '../providers/object-path.ts';
import { openStorage } from '../providers/object-storage.ts';
import { type CommandContext, resolveId } from './context.ts';
import { CommandError, UsageError } from './errors.ts';
import { count, cut, shortId } from './format.ts';
import { workspaceOf } from './workspace.ts';

type Options = { workspace?: string; agent?: string; name?: string; wait: boolean };

const BUCKET = 'media-library';
const LARGEST_BYTES = 100 * 1024 * 1024;
/** How long storing it may take; LONGEST_UPLOAD_MINUTES is far more. */
const WRITE_MS = 120_000;
const LOOK_MS = 300;
/** Workspaces that are named where it is not clear which is meant. */
const MOST_LISTED = 10;
/** Everybody has a workspace of his own; where agentd may have no trigger on auth.users, when it is first needed. */
const MAKE_WORKSPACE = `insert into auth.users (email) values ('you@example.com'); select agentd.ensure_personal_workspace(id) from auth.users where email = 'you@example.com';`;
/** So long nobody may take it before it is said that no worker runs. */
const PATIENCE_MS = 3_000;

/** `agentd ingest FILE|URL`. */
export function register(program: Command, context: CommandContext): void {
  program
    .command('ingest')
    .description('put a file or a page into a workspace’s knowledge, and show how it becomes searchable')
    .argument('<file-or-url>', 'a file on this machine, or an http(s) address')
    .option(
      '--workspace <slug-or-id>',
      'whose knowledge it is; may be left out where there is only one workspace',
    )
    .option('--agent <id>', 'the agent that reads it; without one, a page is for all of the workspace')
    .option('--name <name>', 'what it is called in citations')
    .option('--no-wait', 'return as soon as it is recorded')
    .addHelpText(
      'after',
      '\nExamples:\n  agentd ingest handbook.pdf\n  agentd ingest https://example.com/terms --workspace 3f2a91c0',
    )
    .action(async (given: string, options: Options, command: Command) => {
      const output = context.output(command.optsWithGlobals<{ json?: boolean }>());
      const result = await context.withDatabase(async (db, config) => {
        const owner = await ownerOf(db, options.workspace);
        const agentId = options.agent ? await resolveId(db, 'agent', options.agent) : null;
        const sourceId = isUrl(given)
          ? await insertPage(db, owner, { url: given, name: options.name ?? given, agentId })
          : await store(db, config, owner, given, { agentId, name: options.name ?? basename(given) });
        context.note(`recorded as source ${sourceId} of workspace ${owner.name}`);
        return { sourceId, progress: options.wait ? await follow(db, sourceId, context) : null };
      });
      const { progress, sourceId } = result;
      if (output.json) output.data({ source_id: sourceId, ...(progress ?? {}) });
      else if (progress?.processing_status === 'completed') {
        const pages = progress.page_count === null ? '' : `${count(progress.page_count)} pages, `;
        output.line(
          `searchable: ${pages}${count(progress.chunk_count)} ${progress.chunk_count === 1 ? 'passage' : 'passages'}, ${count(progress.token_count ?? 0)} tokens, ` +
            `$${(progress.cost_micros / 1_000_000).toFixed(4)}${progress.reason ? `. ${progress.reason}` : ''}`,
        );
      }
      if (progress !== null && progress.processing_status !== 'completed') {
        throw new CommandError(
          `It is ${progress.processing_status}${progress.reason_code ? ` (${progress.reason_code})` : ''}: ${progress.reason ?? 'no reason was given'}`,
          'When that is mended, set processing_status of its row in knowledge_sources to uploaded.',
        );
      }
    });
}

const isUrl = (given: string): boolean => /^https?:\/\//i.test(given);

async function ownerOf(db: Database, workspace: string | undefined): Promise<UploadOwner> {
  const id = await workspaceOf(db, workspace);
  const [owner, ...others] = await uploadOwners(db, id, MOST_LISTED + 1);
  if (owner === undefined) {
    throw new CommandError(
      'There is no workspace yet that could own this.',
      `Make one by its owner, in SQL: ${MAKE_WORKSPACE}`,
    );
  }
  if (others.length > 0) {
    const names = [owner, ...others]
      .slice(0, MOST_LISTED)
      .map(
        ({ workspace_id, slug, name }) => `  ${cut(slug, 60)}  ${shortId(workspace_id)}  ${cut(name, 40)}`,
      );
    const more = others.length >= MOST_LISTED ? '\n  … and more: select id, slug, name from workspaces' : '';
    throw new UsageError(
      `It is not clear whose knowledge this is: there are several workspaces.\n${names.join('\n')}${more}`,
      'Name one by its slug or its id: --workspace SLUG.',
    );
  }
  return owner;
}

async function store(
  db: Database,
  config: Config,
  owner: UploadOwner,
  path: string,
  file: { readonly name: string; readonly agentId: string | null },
): Promise<string> {
  const found = await stat(path).catch((error: NodeJS.ErrnoException) => {
    throw new UsageError(
      `${path} can't be read: ${error.code === 'ENOENT' ? 'there is no such file' : error.message}.`,
      'Give a file on this machine, or an http(s) address.',
    );
  });
  if (!found.isFile()) throw new UsageError(`${path} is not a file.`, 'Give one file after the other.');
  if (found.size > LARGEST_BYTES) {
    throw new UsageError(
      `${path} has ${count(found.size)} bytes; ${count(LARGEST_BYTES)} are the most that is read.`,
      'Cut it into parts.',
    );
  }
  const bytes = await readFile(path);
  const storage = openStorage(config.storageUrl, config.storageKeys);
  try {
    // a name of its own: another file of this name stays what it is
    const place = `${owner.workspace_id}/${randomUUID()}/${partOf(basename(path))}`;
    await noteObject(db, BUCKET, place);
    await storage.write(BUCKET, place, bytes, { contentType: null, signal: AbortSignal.timeout(WRITE_MS) });
    const { sourceId } = await insertUpload(db, owner, {
      name: file.name,
      type: null,
      size: bytes.byteLength,
      bucket: BUCKET,
      path: place,
      agentId: file.agentId,
    });
    return sourceId;
  } finally {
    await storage.close();
  }
}

/** Looks until it is over, and says what changes. */
async function follow(db: Database, sourceId: string, context: CommandContext): Promise<SourceProgress> {
  let said = '';
  const began = performance.now();
  for (;;) {
    const now = await sourceProgress(db, sourceId);
    if (now === null)
      throw new CommandError('The source was deleted meanwhile.', 'Put it in again if that was a mistake.');
    if (now.processing_status !== 'uploaded' && now.processing_status !== 'processing') return now;
    const waits = performance.now() - began > PATIENCE_MS && now.workers === 0;
    const line = waits
      ? 'waiting: no worker that ingests documents is running (agentd start)'
      : now.retry_at !== null && now.reason !== null
        ? `will be tried again: ${now.reason}`
        : now.written > 0
          ? `${count(now.written)} passages stored`
          : now.processing_status;
    if (line !== said) context.note(line);
    said = line;
    await pause(LOOK_MS);
  }
}
