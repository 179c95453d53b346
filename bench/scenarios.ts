import type { Load, LoadJob } from './load-generator.ts';
import { type Row, toRow } from './report.ts';
import { authorizeQuestion, type Question, verifyQuestion } from './request-templates.ts';
import { alternate, type Contestant, type Measured, type Pace } from './sampling.ts';
import type { Server } from './servers.ts';
import type { Stage } from './testbed.ts';

/** What is measured against each other. */
export interface Servers {
  bare: Server;
  /** Knows one key. */
  one: Server;
  /** Knows all of them, once they have been seen. */
  many: Server;
  /** Knows one key, and counts in Redis; undefined where there is none. */
  redis: Server | undefined;
}

export async function startServers(stage: Stage): Promise<Servers> {
  const redisUrl = await stage.startRedis();
  return {
    bare: await stage.startBare(),
    one: await stage.startLatchkey(),
    many: await stage.startLatchkey(),
    redis: redisUrl === undefined ? undefined : await stage.startLatchkey({ REDIS_URL: redisUrl }),
  };
}

export const connections = 16;

/** Names that the table, the promises and the README use. */
export const names = {
  bareVerify: 'bare Fastify route, POST',
  verifyOne: 'verify, 1 key',
  verifyFresh: 'verify, reading Postgres each time',
  verifyRedis: 'verify, 1 key, with Redis',
  firstSight: 'verify, first sight of each key',
  wrongSecrets: 'verify, wrong secrets',
  unknownIds: 'verify, unknown ids',
  bareAuthorize: 'bare Fastify route, GET',
  authorizeOne: 'authorize, 1 key',
} as const;

/** The questions that a verifier with this token asks. */
export function questionsOf(token: string) {
  return {
    verify: verifyQuestion(token, '"valid":true'),
    verifyFresh: verifyQuestion(token, '"valid":true', 'Cache-Control: no-cache\r\n'),
    verifyWrong: verifyQuestion(token, '"code":"not_found"'),
    authorize: authorizeQuestion(token),
  };
}

type Questions = ReturnType<typeof questionsOf>;

function contestant(
  name: string,
  server: Server,
  question: Question,
  keys: Pick<LoadJob, 'keySet' | 'order'> & Partial<LoadJob>,
): Contestant {
  return { name, server, job: () => ({ question, connections, ...keys }) };
}

export const oneKey = { keySet: 'good', order: 'around', from: 0, to: 1 } as const;

/** Until the code that they run is compiled. */
export async function warmUp(load: Load, servers: Servers, questions: Questions, seconds: number): Promise<void> {
  const { bare, one, many, redis } = servers;
  const present = [bare, one, many, ...(redis === undefined ? [] : [redis])];
  const all = present.flatMap((server) => [
    contestant('warm up', server, questions.verify, oneKey),
    contestant('warm up', server, questions.authorize, oneKey),
  ]);
  await alternate(load, all, { rounds: 2, seconds });
}

/** Each key once, a part of them in each round. */
export async function seeFirst(
  load: Load,
  { bare, many }: Servers,
  { verify }: Questions,
  { rounds, keys }: { rounds: number; keys: number },
): Promise<Row> {
  const part = Math.ceil(keys / rounds);
  const sight: Contestant = {
    name: names.firstSight,
    server: many,
    job: (round) => ({
      question: verify,
      connections,
      keySet: 'good',
      order: 'once',
      from: round * part,
      to: (round + 1) * part,
    }),
  };
  const baseline = contestant(names.bareVerify, bare, verify, oneKey);
  const seconds = 10;
  const [beside, measured] = await alternate(load, [{ ...baseline, job: sight.job }, sight], {
    rounds,
    seconds,
    restMs: 300,
  });
  return rowOf(measured, beside);
}

/** Everything else, each in each round. */
export async function takeTurns(load: Load, servers: Servers, questions: Questions, pace: Pace): Promise<Row[]> {
  const { bare, one, many, redis } = servers;
  const { verify, verifyFresh, verifyWrong, authorize } = questions;
  const contestants = [
    contestant(names.bareVerify, bare, verify, oneKey),
    contestant(names.verifyOne, one, verify, oneKey),
    contestant(names.verifyFresh, one, verifyFresh, oneKey),
    ...(redis === undefined ? [] : [contestant(names.verifyRedis, redis, verify, oneKey)]),
    contestant(names.wrongSecrets, many, verifyWrong, { keySet: 'wrong secrets', order: 'around' }),
    contestant(names.unknownIds, many, verifyWrong, { keySet: 'unknown ids', order: 'around' }),
    contestant(names.bareAuthorize, bare, authorize, oneKey),
    contestant(names.authorizeOne, one, authorize, oneKey),
  ];
  const measured = await alternate(load, contestants, pace);
  const of = (name: string) => measured.find((one) => one.name === name);
  return measured.map((one) => {
    const isAuthorize = one.name === names.bareAuthorize || one.name === names.authorizeOne;
    return rowOf(one, of(isAuthorize ? names.bareAuthorize : names.bareVerify));
  });
}

function rowOf(measured: Measured | undefined, baseline: Measured | undefined): Row {
  if (measured === undefined || baseline === undefined) throw new Error('nothing was measured');
  return toRow(measured, baseline);
}
