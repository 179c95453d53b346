import { type Load, startLoad } from './load-generator.ts';
import type { Question } from './request-templates.ts';
import type { Server } from './servers.ts';

export interface Flood {
  wrongKeysASecond: number;
  argon2Runs: number;
  /** Of a client with a good key: by itself, and beside the flood. */
  goodP99Ms: { alone: number; beside: number };
  rssBytes: { before: number; after: number };
}

interface FloodOptions {
  server: Server;
  load: Load;
  good: { question: Question; keys: string[] };
  wrong: { question: Question; keys: string[] };
  seconds: number;
}

const wrongKeysASecond = 5_000;
const goodKeysASecond = 300;

/** Wrong keys beside a client with a good one, which asks from a process of its own. */
export async function flood({ server, load, good, wrong, seconds }: FloodOptions): Promise<Flood> {
  const client = startLoad();
  try {
    client.give('good', good.keys);
    load.give('wrong', wrong.keys);
    const askGood = (forSeconds: number) =>
      client.run({
        port: server.port,
        question: good.question,
        connections: 4,
        seconds: forSeconds,
        keySet: 'good',
        order: 'zipf',
        requestsASecond: goodKeysASecond,
      });
    await askGood(1);
    const alone = await askGood(seconds / 2);
    const before = await server.facts();
    const flooding = load.run({
      port: server.port,
      question: wrong.question,
      connections: 32,
      seconds,
      keySet: 'wrong',
      order: 'around',
      requestsASecond: wrongKeysASecond,
    });
    const beside = await askGood(seconds);
    const flooded = await flooding;
    const after = await server.facts();
    if (alone.wrong + beside.wrong + flooded.wrong > 0) throw new Error('the flood was not answered as expected');
    return {
      wrongKeysASecond: flooded.answers / flooded.seconds,
      argon2Runs: after.argon2Runs - before.argon2Runs,
      goodP99Ms: { alone: alone.p99Ms, beside: beside.p99Ms },
      rssBytes: { before: before.rssBytes, after: after.rssBytes },
    };
  } finally {
    client.stop();
  }
}
