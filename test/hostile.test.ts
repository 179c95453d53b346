import { readdirSync, readFileSync } from 'node:fs';
import { attack } from '../bench/hostile-load.ts';
import { eventually, request } from './support/process.ts';
import { serve } from './support/served.ts';
import { t } from './support/tap.ts';

// The short form of `npm run bench:hostile`, which takes two minutes and also measures times.

const skip = process.platform === 'linux' ? false : 'memory and descriptors are read from /proc';

t.test(
  'hostile clients cause no error for a good client, little memory and no open connections afterwards',
  { skip },
  async (t) => {
    const { process: service, url, tokens } = await serve(t);
    const pid = service.child.pid ?? 0;
    const open = () => readdirSync(`/proc/${pid}/fd`).length;
    const memoryMib = () => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1_024;
    const verifier = tokens['verifierToken'] ?? '';
    const { body: key } = await request(`${url}/v1/keys`, {
      method: 'POST',
      token: tokens['adminToken'] ?? '',
      body: {},
    });
    const verify = () =>
      request(`${url}/v1/verify`, { method: 'POST', token: verifier, body: { key: key.key, permission: 'read' } });
    for (let round = 0; round < 200; round++) t.match(await verify(), { status: 200, body: { valid: true } });
    const before = { open: open(), memoryMib: memoryMib() };

    let isOver = false;
    const attacking = attack({ port: Number(new URL(url).port), adminToken: tokens['adminToken'] }, 6).finally(() => {
      isOver = true;
    });
    let mostMib = 0;
    let verified = 0;
    for (; !isOver; verified++) {
      const reply = await verify();
      if (reply.body.valid !== true) t.match(reply, { status: 200, body: { valid: true } });
      mostMib = Math.max(mostMib, memoryMib());
    }
    t.ok(verified > 20, `${verified} verifications during the attack`);
    t.ok(mostMib - before.memoryMib < 150, `memory grew by ${Math.round(mostMib - before.memoryMib)} MiB`);
    const remaining = await attacking;
    await eventually(async () => open() <= before.open + 2, 60_000);
    for (const socket of remaining) socket.destroy();
    t.equal(service.child.exitCode, null);
    t.notMatch(service.output(), /"level":(?:50|60)/);
  },
);
