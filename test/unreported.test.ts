import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { type KnownKey, KnownKeys, learnLimit, Unreported } from '../clients/node/src/known-keys.ts';
import type { Question, Verdict } from '../clients/node/src/verdict.ts';
import { t } from './support/tap.ts';

// Locally allowed uses are reported once, for the right key, and count against its limits until then.

const facts: Verdict = {
  valid: true,
  code: 'valid',
  keyId: 'key_a',
  organizationId: 'org_a',
  partnerId: 'partner_a',
  partnerExternalId: null,
  partnerEmail: 'a@a.example',
  permission: 'read',
  scopes: [],
  name: null,
  metadata: {},
  expiresAt: null,
  dependsOnIp: false,
  rateLimit: null,
};
const windowMs = 1_000;
const rateLimit = { policy: 'key', limit: 10, windowSeconds: 1, remaining: 10, resetSeconds: 1 } as const;

function start() {
  const known = new KnownKeys(100);
  const unreported = new Unreported(known);
  const cacheKey = (id: string) => known.learn(id, input(id), { ...facts, keyId: `key_${id}` }, 0);
  const input = (id: string): Question => ({ key: `text of ${id}`, permission: 'read' });
  const use = (key: KnownKey, nowMs = 0, cost = 1) => unreported.add(key, 'read', input(key.hash), cost, nowMs);
  const takeReports = (most = 100, nowMs = 0) =>
    unreported.take(most, nowMs).map(({ entry: { key, uses, cost } }) => [key, uses, cost]);
  return { known, unreported, cacheKey, use, takeReports };
}

t.test("a key's text is kept from the first use until the uses are taken for a report", async (t) => {
  const { unreported, cacheKey, use, takeReports } = start();
  const [a, b] = [cacheKey('a'), cacheKey('b')];
  t.equal(a.unreported, undefined, 'before');
  use(a, 0, 3);
  use(b);
  use(a);
  t.equal(a.unreported?.entry.key, 'text of a');
  t.equal(b.unreported?.entry.key, 'text of b');
  t.equal(unreported.size, 2);
  t.same(takeReports(1), [['text of a', 2, 4]]);
  t.equal(a.unreported, undefined);
  t.equal(b.unreported?.entry.key, 'text of b', 'the report had no room for it');
  use(a);
  t.same(takeReports(), [
    ['text of b', 1, 1],
    ['text of a', 1, 1],
  ]);
  t.same([unreported.size, takeReports()], [0, []]);
});

t.test('uses of a key that was dropped and cached again are each reported once', async (t) => {
  const { known, unreported, cacheKey, use, takeReports } = start();
  for (let round = 0; round < 3; round++) {
    known.forget('a');
    use(cacheKey('a'), 0, round);
    use(cacheKey('b'));
  }
  t.equal(unreported.size, 4);
  t.same(takeReports(1), [['text of a', 1, 0]]);
  t.same(takeReports(), [
    ['text of b', 3, 3],
    ['text of a', 1, 1],
    ['text of a', 1, 2],
  ]);
  t.same([unreported.size, takeReports()], [0, []]);
});

t.test("uses of a failed report wait without the key's text, and are reported with the next use", async (t) => {
  const { unreported, cacheKey, use, takeReports } = start();
  const a = cacheKey('a');
  use(a, 0, 2);
  for (const lost of unreported.take(100, 0)) unreported.putBack(lost);
  t.same([unreported.size, a.unreported, a.keyLimit.pending], [0, undefined, 2]);
  use(a);
  const later = unreported.take(100, 0);
  use(a);
  for (const lost of later) unreported.putBack(lost);
  t.same(takeReports(), [['text of a', 3, 4]]);
  use(a);
  t.same(takeReports(), [['text of a', 1, 1]], 'not reported again');
  use(a);
  const first = unreported.take(100, 0);
  use(a);
  for (const lost of [...first, ...unreported.take(100, 0)]) unreported.putBack(lost);
  use(a);
  t.same(takeReports(), [['text of a', 3, 3]], 'two failed reports');
});

t.test('uses older than the window are reported without counting against a limit; newer uses count', async (t) => {
  const { unreported, cacheKey, use, takeReports } = start();
  const a = cacheKey('a');
  learnLimit(a, rateLimit, 0);
  const failReport = (nowMs: number) => {
    for (const lost of unreported.take(100, nowMs)) unreported.putBack(lost);
  };
  use(a, 0, 4);
  failReport(windowMs);
  t.match(a.failed, { uses: 1, cost: 4 });
  use(a, windowMs);
  failReport(windowMs + 1);
  t.match(a.failed, { uses: 2, cost: 0 });
  t.same([a.ownerLimit.pending, a.keyLimit.pending], [0, 0]);
  use(a, windowMs + 2);
  t.same(takeReports(100, windowMs + 2), [['text of a', 3, 1]]);
});

t.test('unreported uses count against the limits until Latchkey has counted them, or they are given up', async (t) => {
  const { unreported, cacheKey, use } = start();
  const a = cacheKey('a');
  learnLimit(a, rateLimit, 0);
  const limitState = () => [a.ownerLimit.pending, a.keyLimit.pending, a.keyLimit.state('key', 0)?.remaining];
  use(a, 0, 4);
  t.same(limitState(), [4, 4, 6]);
  for (const use of unreported.take(100, 0)) unreported.abandon(use);
  t.same(limitState(), [0, 0, 6]);
  use(a, 0, 2);
  for (const use of unreported.take(100, 0)) unreported.settle(use);
  t.same(limitState(), [0, 0, 6], 'the reply contains the remaining limit');
});

t.test(
  "a key that is dropped takes its unreported uses along, and its owner's other keys keep their limit",
  async (t) => {
    for (const when of ['before', 'after'] as const) {
      const { known, unreported, cacheKey, use } = start();
      const [dropped, kept] = [cacheKey('gone'), cacheKey('stays')];
      learnLimit(kept, { ...rateLimit, policy: 'owner' }, 0);
      use(dropped, 0, 4);
      const [report] = unreported.take(100, 0);
      if (report === undefined) throw new Error('nothing to report');
      if (when === 'before') known.forgetDependents(['key_gone']);
      unreported.putBack(report);
      if (when === 'after') known.forgetDependents(['key_gone']);
      t.equal(kept.ownerLimit.pending, 0, `${when} its report has failed`);
      t.match(kept.ownerLimit.state('owner', 0), { remaining: 6 });
    }
  },
);

t.test('however long reports fail, no window allows more than the limit', async (t) => {
  const { unreported, cacheKey, use } = start();
  const a = cacheKey('a');
  learnLimit(a, rateLimit, 0);
  for (let window = 0; window < 5; window++) {
    let allowed = 0;
    for (let nowMs = window * windowMs; nowMs < (window + 1) * windowMs; nowMs += 25) {
      for (; allowed < 1_000 && a.keyLimit.hasRest(1, nowMs); allowed++) use(a, nowMs);
      if (nowMs % 250 === 0) for (const lost of unreported.take(100, nowMs)) unreported.putBack(lost);
    }
    t.equal(allowed, rateLimit.limit, `window ${window}`);
  }
});

t.test('evicted keys leave no memory behind', async (t) => {
  setFlagsFromString('--expose-gc');
  const collectGarbage = runInNewContext('gc') as () => void;
  const known = new KnownKeys(10);
  const cacheMany = (from: number) => {
    for (let index = from; index < from + 50_000; index++) {
      known.learn(`hash ${index}`, { key: '', permission: 'read' }, { ...facts, keyId: `key_${index}` }, 0);
    }
    collectGarbage();
    return process.memoryUsage().heapUsed;
  };
  const before = cacheMany(0);
  const grown = cacheMany(50_000) - before;
  t.ok(grown < 4_000_000, `${grown} bytes`);
});
