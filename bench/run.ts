import { setTimeout as delay } from 'node:timers/promises';
import { flood } from './flood.ts';
import { compareBackends, judgeHook } from './hook.ts';
import { compareKeyCounts, judgeKeyCounts } from './key-counts.ts';
import { wrongKeys } from './key-rows.ts';
import { type Load, startLoad } from './load-generator.ts';
import { measureNotifying } from './notification-cost.ts';
import { judgeRecording, measureRecording } from './recording-cost.ts';
import { describeMachine, type Results, toText, writeResults } from './report.ts';
import { questionsOf, seeFirst, startServers, takeTurns, warmUp } from './scenarios.ts';
import { judge } from './targets.ts';
import { openStage, type Stage } from './testbed.ts';

// Measures Latchkey beside a bare Fastify route, in turns on the same machine: `npm run bench`, or, for a rough look
// within a minute, `npm run bench -- --quick`. Whatever it starts it ends.

const quick = process.argv.includes('--quick');
const sizes = quick
  ? {
      keys: 5_000,
      warmUpSeconds: 0.4,
      rounds: 3,
      seconds: 0.3,
      restMs: 300,
      floodSeconds: 3,
      writeRounds: 1,
      writeSeconds: 0.5,
    }
  : {
      keys: 100_000,
      warmUpSeconds: 0.8,
      rounds: 10,
      seconds: 0.7,
      floodSeconds: 12,
      writeRounds: 4,
      writeSeconds: 1.5,
    };
/** By then what was counted is in the database, and what is left in memory are the keys. */
const settleMs = 7_000;
const endsWithinMs = quick ? 120_000 : 690_000;

const stage = await openStage();
const load = startLoad();
const end = async () => {
  load.stop();
  await stage.close();
};
const giveUp = (why: string) => {
  process.stderr.write(`bench: ${why}\n`);
  void end().finally(() => process.exit(1));
};
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => giveUp(signal));
setTimeout(() => giveUp(`not done within ${endsWithinMs / 1000} s`), endsWithinMs).unref();

try {
  const results = await measure(stage, load);
  process.stdout.write(`\n${toText(results)}\n\n${writeResults(results)}\n`);
} finally {
  await end();
}
process.exit(0);

async function measure(stage: Stage, load: Load): Promise<Results> {
  say(`${sizes.keys} keys are written`);
  const keys = await stage.addKeys(stage.bootstrapped.organizationId, sizes.keys / 2);
  const { wrongSecrets, unknownIds } = wrongKeys(keys, sizes.keys / 5);
  load.give('good', keys);
  load.give('wrong secrets', wrongSecrets);
  load.give('unknown ids', unknownIds);

  say('the servers warm up');
  const servers = await startServers(stage);
  const questions = questionsOf(stage.bootstrapped.verifierToken.reveal());
  await warmUp(load, servers, questions, sizes.warmUpSeconds);

  say('each key is seen for the first time');
  const before = await servers.many.facts(true);
  const sight = await seeFirst(load, servers, questions, { rounds: quick ? 2 : 10, keys: keys.length });
  await delay(settleMs);
  const after = await servers.many.facts(true);

  say('all take turns');
  const rows = await takeTurns(load, servers, questions, sizes);

  say('one key and all of them are asked for, for long');
  const keyCountRows = await compareKeyCounts(
    { stage, load, question: questions.verify },
    quick
      ? { pairs: 1, seconds: 0.5, untilCompiledSeconds: 1, untilSteadySeconds: 1 }
      : { pairs: 3, seconds: 10, untilCompiledSeconds: 15, untilSteadySeconds: 12 },
  );

  say('a backend has its turns, with the hook and without it');
  const hookRows = await compareBackends(
    { stage, load, latchkeyPort: servers.one.port },
    { pairs: quick ? 1 : 10, rounds: quick ? 3 : 4, seconds: sizes.seconds },
  );

  say('wrong keys come beside a good client');
  const flooded = await flood({
    server: servers.many,
    load,
    good: { question: questions.verify, keys },
    wrong: { question: questions.verifyWrong, keys: [...wrongSecrets, ...unknownIds] },
    seconds: sizes.floodSeconds,
  });

  say('changes are written');
  const { writeRounds: rounds, writeSeconds: seconds } = sizes;
  const notifying = await measureNotifying(stage, { writerCounts: [1, 8], rounds, seconds });
  const recording = await measureRecording(stage, { rounds: quick ? 1 : 4, seconds: quick ? 0.5 : 1 });
  return {
    date: new Date().toISOString(),
    machine: describeMachine(),
    quick,
    keys: keys.length,
    rows: [...rows, sight, ...keyCountRows, ...hookRows],
    promises: [
      ...judge(rows, flooded),
      judgeKeyCounts(keyCountRows),
      judgeHook(hookRows),
      ...judgeRecording(recording),
    ],
    bytesPerKnownKey: (after.usedBytes - before.usedBytes) / keys.length,
    flood: flooded,
    notifying,
    recording,
    notMeasured: servers.redis === undefined ? ['With Redis: not measured, redis-server is not installed.'] : [],
  };
}

function say(what: string): void {
  process.stderr.write(`${new Date().toISOString().slice(11, 19)} ${what}\n`);
}
