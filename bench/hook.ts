import path from 'node:path';
import type { LoadGenerator } from './load-generator.ts';
import { type Row, type TargetResult, toRow } from './report.ts';
import type { RequestTemplate } from './request-templates.ts';
import {
  mergeResults,
  type SamplingOptions,
  type Scenario,
  type ScenarioResult,
  sampleAlternately,
} from './sampling.ts';
import { type Server, startServer } from './servers.ts';
import type { Testbed } from './testbed.ts';

/** The same minimal backend, with and without the hook. */
interface Backends {
  unprotected: Server;
  protected: Server;
  stop(): Promise<void>;
}

async function startBackends(testbed: Testbed, latchkeyPort: number): Promise<Backends> {
  const start = (env: NodeJS.ProcessEnv) => startServer(path.join(import.meta.dirname, 'minimal-backend.mjs'), { env });
  const token = testbed.bootstrapped.verifierToken.reveal();
  const [without, withHook] = await Promise.all([
    start({}),
    start({ LATCHKEY_URL: `http://127.0.0.1:${latchkeyPort}`, LATCHKEY_TOKEN: token }),
  ]);
  return {
    unprotected: without,
    protected: withHook,
    stop: async () => void (await Promise.all([without.stop(), withHook.stop()])),
  };
}

const connections = 16;
const names = { unprotected: 'backend without the hook', protected: 'backend with the hook' } as const;

/** Both backends get the key; the unprotected one ignores it. */
const template: RequestTemplate = {
  beforeKey: 'GET /hello HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer ',
  afterKey: '\r\n\r\n',
  expectedStatus: 200,
  expectedText: '{"hello":"world"}',
};

/** Measures several pairs, because two processes of the same program can differ by as much as the hook costs. */
export async function compareBackends(
  { testbed, generator, latchkeyPort }: { testbed: Testbed; generator: LoadGenerator; latchkeyPort: number },
  { pairs, ...options }: SamplingOptions & { pairs: number },
): Promise<Row[]> {
  const results: Array<{ unprotected: ScenarioResult; protected: ScenarioResult }> = [];
  for (let pair = 0; pair < pairs; pair++) {
    const backends = await startBackends(testbed, latchkeyPort);
    try {
      results.push(await comparePair(generator, backends, options));
    } finally {
      await backends.stop();
    }
  }
  const baseline = mergeResults(results.map((result) => result.unprotected));
  const withHook = mergeResults(results.map((result) => result.protected));
  return [toRow(baseline, baseline), toRow(withHook, baseline)];
}

async function comparePair(
  generator: LoadGenerator,
  backends: Backends,
  options: SamplingOptions,
): Promise<{ unprotected: ScenarioResult; protected: ScenarioResult }> {
  const scenario = (name: string, server: Server): Scenario => {
    return { name, server, job: () => ({ template, connections, keySet: 'valid', order: 'cyclic', from: 0, to: 1 }) };
  };
  const scenarios = [scenario(names.unprotected, backends.unprotected), scenario(names.protected, backends.protected)];
  await sampleAlternately(generator, scenarios, { rounds: 2, seconds: options.seconds });
  const [without, withHook] = await sampleAlternately(generator, scenarios, options);
  if (without === undefined || withHook === undefined) throw new Error('nothing was measured');
  return { unprotected: without, protected: withHook };
}

const minimumRatio = 0.8;

export function checkHookTarget(rows: readonly Row[]): TargetResult {
  const row = rows.find(({ name }) => name === names.protected);
  if (row === undefined) throw new Error('the hook was not measured');
  return {
    target: `${names.protected}: at least ${minimumRatio} of the requests per second without the hook`,
    isMet: row.ratio >= minimumRatio,
    measured: `${row.ratio.toFixed(2)} (by processor time ${row.cpuRatio.toFixed(2)})`,
  };
}
