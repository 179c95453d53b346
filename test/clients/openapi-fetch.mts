import createClient from 'openapi-fetch';
import type { paths } from './api.js';

// Uses the API with types that openapi-typescript generates from the 3.1 document. oazapfts.mts prints the same.

const { LATCHKEY_URL: baseUrl = '', ADMIN_TOKEN = '', VERIFIER_TOKEN = '' } = process.env;
// The filters of metadata are parameters of their own.
const querySerializer = { object: { style: 'form', explode: true } } as const;
const as = (token: string) =>
  createClient<paths>({ baseUrl, querySerializer, headers: { Authorization: `Bearer ${token}` } });
const admin = as(ADMIN_TOKEN);
const verifier = as(VERIFIER_TOKEN);

/** The reply, or its problem as an error. */
async function answered<Data>(
  asking: Promise<{ data?: Data; error?: { code: string; detail: string } }>,
): Promise<Data> {
  const { data, error } = await asking;
  if (data === undefined) throw new Error(`${error?.code}: ${error?.detail}`);
  return data;
}

const verdictOn = async (key: string) =>
  (await answered(verifier.POST('/v1/verify', { body: { key, permission: 'read' } }))).code;

const partner = await answered(
  admin.POST('/v1/partners', {
    params: { header: { 'Idempotency-Key': 'tour-openapi-fetch' } },
    body: { email: 'openapi-fetch@partner.example', permissions: ['read'] },
  }),
);
const [first] = partner.keys;
if (first === undefined) throw new Error('the partner has no key');
const verdicts = [await verdictOn(first.key)];

const path = { keyId: first.id };
const second = await answered(admin.POST('/v1/keys/{keyId}/rotate', { params: { path } }));
verdicts.push(await verdictOn(second.key));
const revealed = await answered(
  admin.POST('/v1/keys/{keyId}/reveal', { params: { path }, body: { reason: 'A tour' } }),
);
const third = await admin.POST('/v1/keys', { body: { partnerId: partner.id } });

const deleted = await answered(admin.DELETE('/v1/keys/{keyId}', { params: { path, query: { reason: 'rotated' } } }));
verdicts.push(await verdictOn(first.key));
const restored = await answered(admin.POST('/v1/keys/{keyId}/restore', { params: { path } }));
verdicts.push(await verdictOn(first.key));

const filter = { partnerId: partner.id, metadata: { 'metadata.team': 'none', 'metadata.tier': '1' } };
const filtered = await answered(admin.GET('/v1/keys', { params: { query: filter } }));
const planned = await answered(
  admin.POST('/v1/keys/bulk', {
    body: {
      action: 'suspend',
      filter: { partnerId: partner.id, includeDeleted: true, 'metadata.team': 'none' },
      dryRun: true,
    },
  }),
);

const actions: string[] = [];
let pages = 0;
for (let cursor: string | null | undefined; cursor !== null; pages += 1) {
  const query = { limit: 2, partnerId: partner.id, ...(cursor === undefined ? {} : { cursor }) };
  const page = await answered(admin.GET('/v1/history', { params: { query } }));
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
    refusal: third.error?.code,
    statuses: [deleted.status, restored.status],
    found: [filtered.data.length, planned.matched],
    pages,
    actions,
  }),
);
