import type { LoadGenerator, LoadJob } from './load-generator.ts';
import { type Row, toRow } from './report.ts';
import { authorizeRequest, type RequestTemplate, verifyRequest } from './request-templates.ts';
import { type SamplingOptions, type Scenario, type ScenarioResult, sampleAlternately } from './sampling.ts';
import type { Server } from './servers.ts';
import type { Testbed } from './testbed.ts';

export interface Servers {
  baseline: Server;
  /** Has one key in memory. */
  oneKey: Server;
  /** Has all keys in memory after their first use. */
  allKeys: Server;
  /** Has one key in memory, and limits in Redis; undefined if redis-server is not installed. */
  redis: Server | undefined;
}

export async function startServers(testbed: Testbed): Promise<Servers> {
  const redisUrl = await testbed.startRedis();
  return {
    baseline: await testbed.startBaseline(),
    oneKey: await testbed.startLatchkey(),
    allKeys: await testbed.startLatchkey(),
    redis: redisUrl === undefined ? undefined : await testbed.startLatchkey({ REDIS_URL: redisUrl }),
  };
}

export const connections = 16;

/** The names of the rows, here and in docs/performance.md. */
export const names = {
  baselineVerify: 'bare Fastify route, POST',
  verifyOneKey: 'verify, 1 key',
  verifyFresh: 'verify, reading Postgres each time',
  verifyRedis: 'verify, 1 key, limits in Redis',
  firstUse: 'verify, first use of each key',
  wrongSecrets: 'verify, wrong secrets',
  unknownIds: 'verify, unknown ids',
  baselineAuthorize: 'bare Fastify route, GET',
  authorizeOneKey: 'authorize, 1 key',
} as const;

export function createTemplates(verifierToken: string) {
  return {
    verify: verifyRequest(verifierToken, '"valid":true'),
    verifyFresh: verifyRequest(verifierToken, '"valid":true', 'Cache-Control: no-cache\r\n'),
    verifyInvalid: verifyRequest(verifierToken, '"code":"not_found"'),
    authorize: authorizeRequest(verifierToken),
  };
}

type Templates = ReturnType<typeof createTemplates>;

function scenario(
  name: string,
  server: Server,
  template: RequestTemplate,
  keys: Pick<LoadJob, 'keySet' | 'order'> & Partial<LoadJob>,
): Scenario {
  return { name, server, job: () => ({ template, connections, ...keys }) };
}

export const firstKey = { keySet: 'valid', order: 'cyclic', from: 0, to: 1 } as const;

/** Sends requests to all servers until V8 has compiled their code. */
export async function warmUp(
  generator: LoadGenerator,
  servers: Servers,
  templates: Templates,
  seconds: number,
): Promise<void> {
  const { baseline, oneKey, allKeys, redis } = servers;
  const started = [baseline, oneKey, allKeys, ...(redis === undefined ? [] : [redis])];
  const scenarios = started.flatMap((server) => [
    scenario('warm-up', server, templates.verify, firstKey),
    scenario('warm-up', server, templates.authorize, firstKey),
  ]);
  await sampleAlternately(generator, scenarios, { rounds: 2, seconds });
}

/** Sends each key once, a different part of them in each round. */
export async function measureFirstUse(
  generator: LoadGenerator,
  { baseline, allKeys }: Servers,
  { verify }: Templates,
  { rounds, keys }: { rounds: number; keys: number },
): Promise<Row> {
  const keysPerRound = Math.ceil(keys / rounds);
  const job = (round: number) => {
    const [from, to] = [round * keysPerRound, (round + 1) * keysPerRound];
    return { template: verify, connections, keySet: 'valid', order: 'once', from, to } as const;
  };
  const scenarios = [
    { name: names.baselineVerify, server: baseline, job },
    { name: names.firstUse, server: allKeys, job },
  ];
  const [baselineResult, result] = await sampleAlternately(generator, scenarios, { rounds, seconds: 10, pauseMs: 300 });
  return rowOf(result, baselineResult);
}

/** Measures everything except the first use of a key. */
export async function measureScenarios(
  generator: LoadGenerator,
  servers: Servers,
  templates: Templates,
  options: SamplingOptions,
): Promise<Row[]> {
  const { baseline, oneKey, allKeys, redis } = servers;
  const { verify, verifyFresh, verifyInvalid, authorize } = templates;
  const scenarios = [
    scenario(names.baselineVerify, baseline, verify, firstKey),
    scenario(names.verifyOneKey, oneKey, verify, firstKey),
    scenario(names.verifyFresh, oneKey, verifyFresh, firstKey),
    ...(redis === undefined ? [] : [scenario(names.verifyRedis, redis, verify, firstKey)]),
    scenario(names.wrongSecrets, allKeys, verifyInvalid, { keySet: 'wrong secrets', order: 'cyclic' }),
    scenario(names.unknownIds, allKeys, verifyInvalid, { keySet: 'unknown ids', order: 'cyclic' }),
    scenario(names.baselineAuthorize, baseline, authorize, firstKey),
    scenario(names.authorizeOneKey, oneKey, authorize, firstKey),
  ];
  const results = await sampleAlternately(generator, scenarios, options);
  const resultOf = (name: string) => results.find((result) => result.name === name);
  return results.map((result) => {
    const isAuthorize = result.name === names.baselineAuthorize || result.name === names.authorizeOneKey;
    return rowOf(result, resultOf(isAuthorize ? names.baselineAuthorize : names.baselineVerify));
  });
}

function rowOf(result: ScenarioResult | undefined, baseline: ScenarioResult | undefined): Row {
  if (result === undefined || baseline === undefined) throw new Error('nothing was measured');
  return toRow(result, baseline);
}
