import { ok } from '@oazapfts/runtime';
import {
  changeKeys,
  createKey,
  createPartner,
  defaults,
  deleteKey,
  listHistory,
  listKeys,
  restoreKey,
  revealKey,
  rotateKey,
  verifyKey,
} from './client.ts';

// The same requests as openapi-fetch.mts, with functions that oazapfts generates from the 3.0 document.

const { LATCHKEY_URL: baseUrl = '', ADMIN_TOKEN = '', VERIFIER_TOKEN = '' } = process.env;
defaults.baseUrl = baseUrl;
defaults.headers = { Authorization: `Bearer ${ADMIN_TOKEN}` };
const asVerifier = { headers: { Authorization: `Bearer ${VERIFIER_TOKEN}` } };

const verdictOn = async (key: string) => (await ok(verifyKey({ key, permission: 'read' }, asVerifier))).code;

const partner = await ok(
  createPartner({ email: 'oazapfts@partner.example', permissions: ['read'] }, { idempotencyKey: 'tour-oazapfts' }),
);
const [first] = partner.keys;
if (first === undefined) throw new Error('the partner has no key');
const verdicts = [await verdictOn(first.key)];

// oazapfts announces JSON even without a body.
const second = await ok(rotateKey(first.id));
verdicts.push(await verdictOn(second.key));
const revealed = await ok(revealKey(first.id, { reason: 'A tour' }));
const third = await createKey({ partnerId: partner.id });

const deleted = await ok(deleteKey(first.id, { reason: 'rotated' }));
verdicts.push(await verdictOn(first.key));
const restored = await ok(restoreKey(first.id));
verdicts.push(await verdictOn(first.key));

const metadata = { 'metadata.team': 'none', 'metadata.tier': '1' };
const filtered = await ok(listKeys({ partnerId: partner.id, metadata }));
const filter = { partnerId: partner.id, includeDeleted: true, 'metadata.team': 'none' };
const planned = await ok(changeKeys({ action: 'suspend', filter, dryRun: true }));

const actions: string[] = [];
let pages = 0;
for (let cursor: string | null | undefined; cursor !== null; pages += 1) {
  const page = await ok(listHistory({ limit: 2, partnerId: partner.id, ...(cursor === undefined ? {} : { cursor }) }));
  if (page.kind !== 'events') throw new Error('the reply has no events');
  // The event of a used deleted key is recorded about a second later, so it may be missing or not.
  actions.push(
    ...page.data
      .filter((event) => !('unreadable' in event) && event.actor.type !== 'system')
      .map(({ action }) => action),
  );
  cursor = page.nextCursor;
}

console.log(
  JSON.stringify({
    verdicts,
    isSameKey: revealed.key === first.key,
    refusal: third.status === 409 ? third.data.code : undefined,
    statuses: [deleted.status, restored.status],
    found: [filtered.data.length, planned.matched],
    pages,
    actions,
  }),
);
