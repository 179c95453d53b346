import { randomBytes } from 'node:crypto';
import { dbAddPartners } from '../test/support/database.ts';
import { measureFlood } from './flood.ts';
import { startLoadGenerator } from './load-generator.ts';
import { createTemplates } from './scenarios.ts';
import { startTestbed } from './testbed.ts';

// `npm run bench:foreign-flood` sends 5,000 unknown tokens a second, all different and none in Latchkey's form, to a
// server whose organization has imported keys, beside a client that uses those keys.

const seconds = 10;
const unknownTokens = 60_000;
const goodKeys = 20;
const p99LimitMs = 50;
const grownLimitBytes = 64 * 2 ** 20;
/** The templates have the length of a Latchkey key. */
const foreignToken = () => `x${randomBytes(60).toString('base64url')}`;

const testbed = await startTestbed();
const generator = startLoadGenerator();
let isMet = true;
const check = (what: string, met: boolean) => {
  isMet &&= met;
  process.stdout.write(`${met ? 'met' : 'missed'}: ${what}\n`);
};
try {
  const { adminToken, verifierToken, organizationId } = testbed.bootstrapped;
  await dbAddPartners(testbed.urls.superuser, organizationId, goodKeys);
  const server = await testbed.startLatchkey();
  const keys = Array.from({ length: goodKeys }, foreignToken);
  const entries = keys.map((plaintext, index) => ({
    partnerExternalId: `customer-${index}`,
    permission: 'read',
    plaintext,
  }));
  const imported = await fetch(`http://127.0.0.1:${server.port}/v1/keys/import`, {
    method: 'POST',
    headers: { authorization: `Bearer ${adminToken.reveal()}`, 'content-type': 'application/json' },
    body: JSON.stringify({ entries }),
  });
  if (imported.status !== 201) throw new Error(`the import failed: ${await imported.text()}`);
  const templates = createTemplates(verifierToken.reveal());
  const { validP99Ms, invalidKeysPerSecond, argon2Runs, rssBytes } = await measureFlood({
    server,
    generator,
    valid: { template: templates.verify, keys },
    invalid: { template: templates.verifyInvalid, keys: Array.from({ length: unknownTokens }, foreignToken) },
    seconds,
  });
  const p99 = `p99 of the good client: ${validP99Ms.alone.toFixed(1)} ms alone, ${validP99Ms.duringFlood.toFixed(1)} ms`;
  check(
    `${p99} beside ${Math.round(invalidKeysPerSecond)} unknown tokens a second`,
    validP99Ms.duringFlood < p99LimitMs,
  );
  const grownBy = rssBytes.after - rssBytes.before;
  check(`memory grew by ${(grownBy / 2 ** 20).toFixed(1)} MiB`, grownBy < grownLimitBytes);
  check(`${argon2Runs} runs of argon2id`, argon2Runs === 0);
} finally {
  generator.stop();
  await testbed.stop();
}
process.exit(isMet ? 0 : 1);
