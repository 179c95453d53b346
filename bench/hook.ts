import path from 'node:path';
import type { Load } from './load-generator.ts';
import { type Promised, type Row, toRow } from './report.ts';
import type { Question } from './request-templates.ts';
import { alternate, type Contestant, type Measured, type Pace, together } from './sampling.ts';
import { type Server, startServer } from './servers.ts';
import type { Stage } from './testbed.ts';

/** A backend's smallest route, with the hook and without it. */
interface Backends {
  bare: Server;
  protected: Server;
  stop(): Promise<void>;
}

/** @param latchkeyPort of the Latchkey that the protected one asks */
async function startBackends(stage: Stage, latchkeyPort: number): Promise<Backends> {
  const start = (env: NodeJS.ProcessEnv) => startServer(path.join(import.meta.dirname, 'minimal-backend.mjs'), { env });
  const token = stage.bootstrapped.verifierToken.reveal();
  const [bare, hooked] = await Promise.all([
    start({}),
    start({ LATCHKEY_URL: `http://127.0.0.1:${latchkeyPort}`, LATCHKEY_TOKEN: token }),
  ]);
  return { bare, protected: hooked, stop: async () => void (await Promise.all([bare.stop(), hooked.stop()])) };
}

const connections = 16;
const names = { bare: 'backend, GET /hello', protected: 'backend with the hook, 1 key' } as const;

/** The same bytes to both. */
const question: Question = {
  before: 'GET /hello HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer ',
  after: '\r\n\r\n',
  status: 200,
  text: '{"hello":"world"}',
};

/**
 * Both warm, in turns; several of each, one pair after the other, because two processes of one and the same program can
 * differ by as much as the hook costs: in what was compiled when, and in where the machine has put them.
 */
export async function compareBackends(
  { stage, load, latchkeyPort }: { stage: Stage; load: Load; latchkeyPort: number },
  { pairs, ...pace }: Pace & { pairs: number },
): Promise<Row[]> {
  const measured: Array<{ bare: Measured; hooked: Measured }> = [];
  for (let pair = 0; pair < pairs; pair++) {
    const backends = await startBackends(stage, latchkeyPort);
    try {
      measured.push(await compare(load, backends, pace));
    } finally {
      await backends.stop();
    }
  }
  const bare = together(measured.map((pair) => pair.bare));
  const hooked = together(measured.map((pair) => pair.hooked));
  return [toRow(bare, bare), toRow(hooked, bare)];
}

async function compare(load: Load, backends: Backends, pace: Pace): Promise<{ bare: Measured; hooked: Measured }> {
  const contestant = (name: string, server: Server): Contestant => {
    return { name, server, job: () => ({ question, connections, keySet: 'good', order: 'around', from: 0, to: 1 }) };
  };
  const contestants = [contestant(names.bare, backends.bare), contestant(names.protected, backends.protected)];
  await alternate(load, contestants, { rounds: 2, seconds: pace.seconds });
  const [bare, hooked] = await alternate(load, contestants, pace);
  if (bare === undefined || hooked === undefined) throw new Error('nothing was measured');
  return { bare, hooked };
}

const least = 0.8;

export function judgeHook(rows: readonly Row[]): Promised {
  const hooked = rows.find(({ name }) => name === names.protected);
  if (hooked === undefined) throw new Error('the hook was not measured');
  return {
    promise: `${names.protected}: at least ${least} of the unprotected one's requests a second`,
    kept: hooked.ofBare >= least,
    measured: `${hooked.ofBare.toFixed(2)} (by processor time ${hooked.ofBareByCpu.toFixed(2)})`,
  };
}
