import { setTimeout as delay } from 'node:timers/promises';
import { measureFlood } from './flood.ts';
import { checkHookTarget, compareBackends } from './hook.ts';
import { checkKeyCountTarget, compareKeyCounts } from './key-counts.ts';
import { createInvalidKeys } from './key-rows.ts';
import { type LoadGenerator, startLoadGenerator } from './load-generator.ts';
import { measureNotificationCosts } from './notification-cost.ts';
import { checkRecordingTargets, measureRecordingCosts } from './recording-cost.ts';
import { describeMachine, type Results, toText, writeResults } from './report.ts';
import { createTemplates, measureFirstUse, measureScenarios, startServers, warmUp } from './scenarios.ts';
import { checkTargets } from './targets.ts';
import { startTestbed, type Testbed } from './testbed.ts';

// `npm run bench` compares Latchkey with a bare Fastify route on the same machine. `npm run bench -- --quick` takes one
// minute instead of ten and is less accurate.

const quick = process.argv.includes('--quick');
const sizes = quick
  ? {
      keys: 5_000,
      warmUpSeconds: 0.4,
      rounds: 3,
      seconds: 0.3,
      pauseMs: 300,
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
/** After this time, usage is written and only the keys are still in memory. */
const usageWrittenWithinMs = 7_000;
const timeoutMs = quick ? 120_000 : 690_000;

const testbed = await startTestbed();
const generator = startLoadGenerator();
const stop = async () => {
  generator.stop();
  await testbed.stop();
};
const abort = (reason: string) => {
  process.stderr.write(`bench: ${reason}\n`);
  void stop().finally(() => process.exit(1));
};
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => abort(signal));
setTimeout(() => abort(`did not finish within ${timeoutMs / 1000} s`), timeoutMs).unref();

try {
  const results = await measure(testbed, generator);
  process.stdout.write(`\n${toText(results)}\n\n${writeResults(results)}\n`);
} finally {
  await stop();
}
process.exit(0);

async function measure(testbed: Testbed, generator: LoadGenerator): Promise<Results> {
  logProgress(`writing ${sizes.keys} keys`);
  const keys = await testbed.addKeys(testbed.bootstrapped.organizationId, sizes.keys / 2);
  const { wrongSecrets, unknownIds } = createInvalidKeys(keys, sizes.keys / 5);
  generator.setKeys('valid', keys);
  generator.setKeys('wrong secrets', wrongSecrets);
  generator.setKeys('unknown ids', unknownIds);

  logProgress('warming up the servers');
  const servers = await startServers(testbed);
  const templates = createTemplates(testbed.bootstrapped.verifierToken.reveal());
  await warmUp(generator, servers, templates, sizes.warmUpSeconds);

  logProgress('measuring the first use of each key');
  const before = await servers.allKeys.stats(true);
  const firstUseRow = await measureFirstUse(generator, servers, templates, {
    rounds: quick ? 2 : 10,
    keys: keys.length,
  });
  await delay(usageWrittenWithinMs);
  const after = await servers.allKeys.stats(true);

  logProgress('measuring all other scenarios');
  const rows = await measureScenarios(generator, servers, templates, sizes);

  logProgress('comparing one key with all keys under sustained load');
  const keyCountRows = await compareKeyCounts(
    { testbed, generator, template: templates.verify },
    quick
      ? { pairs: 1, seconds: 0.5, oneKeyWarmUpSeconds: 1, allKeysWarmUpSeconds: 1 }
      : { pairs: 3, seconds: 10, oneKeyWarmUpSeconds: 15, allKeysWarmUpSeconds: 12 },
  );

  logProgress('comparing a backend with and without the hook');
  const hookRows = await compareBackends(
    { testbed, generator, latchkeyPort: servers.oneKey.port },
    { pairs: quick ? 1 : 10, rounds: quick ? 3 : 4, seconds: sizes.seconds },
  );

  logProgress('flooding a server with invalid keys');
  const flood = await measureFlood({
    server: servers.allKeys,
    generator,
    valid: { template: templates.verify, keys },
    invalid: { template: templates.verifyInvalid, keys: [...wrongSecrets, ...unknownIds] },
    seconds: sizes.floodSeconds,
  });

  logProgress('measuring the cost of notifications and recording');
  const notificationCosts = await measureNotificationCosts(testbed, {
    writerCounts: [1, 8],
    rounds: sizes.writeRounds,
    seconds: sizes.writeSeconds,
  });
  const recordingCosts = await measureRecordingCosts(testbed, { rounds: quick ? 1 : 4, seconds: quick ? 0.5 : 1 });
  return {
    date: new Date().toISOString(),
    machine: describeMachine(),
    quick,
    keys: keys.length,
    rows: [...rows, firstUseRow, ...keyCountRows, ...hookRows],
    targets: [
      ...checkTargets(rows, flood),
      checkKeyCountTarget(keyCountRows),
      checkHookTarget(hookRows),
      ...checkRecordingTargets(recordingCosts),
    ],
    bytesPerKnownKey: (after.usedBytes - before.usedBytes) / keys.length,
    flood,
    notificationCosts,
    recordingCosts,
    notMeasured: servers.redis === undefined ? ['Redis was not measured: redis-server is not installed.'] : [],
  };
}

function logProgress(message: string): void {
  process.stderr.write(`${new Date().toISOString().slice(11, 19)} ${message}\n`);
}
