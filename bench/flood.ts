import { type LoadGenerator, startLoadGenerator } from './load-generator.ts';
import type { RequestTemplate } from './request-templates.ts';
import type { Server } from './servers.ts';

export interface Flood {
  invalidKeysPerSecond: number;
  argon2Runs: number;
  /** The p99 of a client with valid keys, without and with the flood. */
  validP99Ms: { alone: number; duringFlood: number };
  rssBytes: { before: number; after: number };
}

interface FloodOptions {
  server: Server;
  generator: LoadGenerator;
  valid: { template: RequestTemplate; keys: string[] };
  invalid: { template: RequestTemplate; keys: string[] };
  seconds: number;
}

const invalidKeysPerSecond = 5_000;
const validKeysPerSecond = 300;

/** Floods a server with invalid keys while a second load generator sends valid keys. */
export async function measureFlood({ server, generator, valid, invalid, seconds }: FloodOptions): Promise<Flood> {
  const validClient = startLoadGenerator();
  try {
    validClient.setKeys('valid', valid.keys);
    generator.setKeys('invalid', invalid.keys);
    const sendValid = (durationSeconds: number) =>
      validClient.run({
        port: server.port,
        template: valid.template,
        connections: 4,
        seconds: durationSeconds,
        keySet: 'valid',
        order: 'zipf',
        requestsPerSecond: validKeysPerSecond,
      });
    await sendValid(1);
    const alone = await sendValid(seconds / 2);
    const before = await server.stats();
    const flooding = generator.run({
      port: server.port,
      template: invalid.template,
      connections: 32,
      seconds,
      keySet: 'invalid',
      order: 'cyclic',
      requestsPerSecond: invalidKeysPerSecond,
    });
    const duringFlood = await sendValid(seconds);
    const flood = await flooding;
    const after = await server.stats();
    if (alone.unexpected + duringFlood.unexpected + flood.unexpected > 0) {
      throw new Error('the server sent unexpected responses during the flood');
    }
    return {
      invalidKeysPerSecond: flood.responses / flood.seconds,
      argon2Runs: after.argon2Runs - before.argon2Runs,
      validP99Ms: { alone: alone.p99Ms, duringFlood: duringFlood.p99Ms },
      rssBytes: { before: before.rssBytes, after: after.rssBytes },
    };
  } finally {
    validClient.stop();
  }
}
