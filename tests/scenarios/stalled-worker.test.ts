import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { admitArrivals } from '../../src/db/jobs.ts';
import { claimRuns, renewLeases, writeCheckpoints } from '../../src/db/runs.ts';
import { RunJournal, RunLost } from '../../src/pipelines/agent/journal.ts';
import { type ModelServer, startModelServer } from '../peers/model-server.ts';
import { testDaemon } from '../support/daemon.ts';
import { type TestDatabase, testDatabase } from '../support/database.ts';
import { insert, makePlatform, type Platform, startTask } from '../support/platform.ts';
import {
  findRun,
  jobOutcomes,
  loseLease,
  modelCalls,
  stepRuns,
  toolCalls,
  until,
  waitForRun,
} from '../support/runs.ts';

let db: TestDatabase;
let model: ModelServer;
let platform: Platform;
let channel: string;

beforeEach(async () => {
  db = await testDatabase();
  model = await startModelServer();
  platform = await makePlatform(db);
  channel = await insert(db, 'public.chat_channels', { workspace_id: platform.workspaceId, name: 'results' });
});

afterEach(async () => {
  expect(model.rejected).toEqual([]);
  await model.close();
  await db.dispose();
});

describe('a stalled worker whose run was taken over', () => {
  test('writes nothing, whatever it tries, and hears that the run is lost', async () => {
    const id = await startTask(db, platform, 'x', { target_channel_id: channel });
    await admitArrivals(db);
    const [claimed] = await claimRuns(db, [id], 'stalled', 15);
    if (!claimed || 'refused' in claimed) throw new Error('The run was not claimed.');
    await loseLease(db, id);
    await using _daemon = await testDaemon(db, model);
    await waitForRun(db, id);
    await until('the job is settled', async () => (await jobOutcomes(db, id)).length > 0);
    const before = await everything(id);

    let answer: unknown;
    const journal = new RunJournal(claimed, async (checkpoint) => {
      const [result] = await writeCheckpoints(db, [checkpoint], 15);
      answer = result;
      if (!result) throw new Error('No answer.');
      return result;
    });
    journal.message({
      channel_id: channel,
      conversation_id: null,
      content: 'a ghost’s',
      is_answer: true,
      metadata: {},
    });
    journal.end({
      status: 'failed',
      reason_code: 'ghost',
      reason: 'A ghost wrote this.',
      output: { text: 'ghost' },
      wake_in_ms: null,
      log: null,
    });
    await expect(journal.flush()).rejects.toBeInstanceOf(RunLost);
    expect(answer).toMatchObject({ applied: false, status: 'completed' });
    expect((await renewLeases(db, [{ run: id, epoch: claimed.lease_epoch }], 15)).lost).toEqual(
      new Set([id]),
    );
    expect(await everything(id)).toEqual(before);
  });

  test('writes nothing while its successor has not written anything either: the epoch alone tells them apart', async () => {
    const id = await startTask(db, platform, 'x');
    await admitArrivals(db);
    const [older] = await claimRuns(db, [id], 'stalled', 15);
    await loseLease(db, id);
    const [newer] = await claimRuns(db, [id], 'successor', 15);
    if (!older || 'refused' in older || !newer || 'refused' in newer) throw new Error('Not claimed.');
    expect([newer.lease_epoch, newer.journal_seq]).toEqual([older.lease_epoch + 1, older.journal_seq]);
    const write = (claimed: typeof older): Promise<void> => {
      const journal = new RunJournal(claimed, async (checkpoint) => {
        const [result] = await writeCheckpoints(db, [checkpoint], 15);
        return result ?? { applied: true };
      });
      journal.step({ order: 1, step_id: null, name: 's', attempt: 1, status: 'running', context: {} });
      return journal.flush();
    };
    const before = await everything(id);
    await expect(write(older)).rejects.toBeInstanceOf(RunLost);
    expect((await renewLeases(db, [{ run: id, epoch: older.lease_epoch }], 15)).lost).toEqual(new Set([id]));
    expect(await everything(id)).toEqual(before);
    await write(newer);
    expect((await findRun(db, id))?.journal_seq).toBe(1);
  });

  test('a checkpoint whose answer was lost counts once when it is sent again', async () => {
    const id = await startTask(db, platform, 'x');
    await admitArrivals(db);
    const [claimed] = await claimRuns(db, [id], 'worker', 15);
    if (!claimed || 'refused' in claimed) throw new Error('Not claimed.');
    const answers: unknown[] = [];
    const journal = new RunJournal(claimed, async (checkpoint) => {
      answers.push(...(await writeCheckpoints(db, [checkpoint], 15)));
      answers.push(...(await writeCheckpoints(db, [checkpoint], 15)));
      return { applied: true };
    });
    journal.modelCall({
      order: 1,
      turn: 1,
      provider: 'openai',
      model: 'm',
      model_id: null,
      credential_source: 'agent',
      status: 'completed',
      attempt: 1,
      prompt_tokens: 10,
      completion_tokens: 5,
      cost_micros: 3,
    });
    await journal.flush();
    expect(answers).toEqual([{ applied: true }, { applied: true }]);
    expect(await findRun(db, id)).toMatchObject({
      turns: 1,
      prompt_tokens: 10,
      cost_micros: 3,
      journal_seq: 1,
    });
    expect(await db.query('select 1 from public.usage_events')).toHaveLength(1);
  });

  test('writes nothing between the lapse of its lease and the next claim either', async () => {
    const id = await startTask(db, platform, 'x');
    await admitArrivals(db);
    const [claimed] = await claimRuns(db, [id], 'stalled', 15);
    if (!claimed || 'refused' in claimed) throw new Error('The run was not claimed.');
    await loseLease(db, id);
    const before = await findRun(db, id);
    expect(before?.status).toBe('queued');
    const journal = new RunJournal(claimed, async (checkpoint) => {
      const [result] = await writeCheckpoints(db, [checkpoint], 15);
      return result ?? { applied: true };
    });
    journal.end({
      status: 'completed',
      reason_code: null,
      reason: null,
      output: { text: 'late' },
      wake_in_ms: null,
      log: null,
    });
    await expect(journal.flush()).rejects.toBeInstanceOf(RunLost);
    expect(await findRun(db, id)).toEqual(before);
  });
});

async function everything(id: string): Promise<unknown> {
  return {
    run: await findRun(db, id),
    steps: await stepRuns(db, id),
    model: await modelCalls(db, id),
    tools: await toolCalls(db, id),
    messages: await db.query('select * from public.chat_messages order by id'),
    usage: await db.query('select * from public.usage_events order by id'),
    logs: await db.query('select * from public.agent_logs order by id'),
  };
}
