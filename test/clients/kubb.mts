import { setConfig } from './api/.kubb/fetch.ts';
import { createPartner, deleteKey, listKeyHistory, listKeys, verifyKey } from './api/index.ts';

// A short way through the API with what kubb makes. All clients of this kind print the same.

const { LATCHKEY_URL: baseURL = '', ADMIN_TOKEN = '', VERIFIER_TOKEN = '' } = process.env;
const as = (token: string) => ({ headers: { Authorization: `Bearer ${token}` } });
const admin = as(ADMIN_TOKEN);
const json = { 'Content-Type': 'application/json' };
setConfig({ baseURL });

const input = { email: 'team@partner.example', permissions: ['read' as const] };
const partner = await createPartner(input, undefined, { headers: { ...admin.headers, ...json } });
const [created] = partner.keys;
if (created === undefined) throw new Error('the partner has no key');
const plaintext: string = created.key;
const verdict = await verifyKey(
  { key: plaintext, permission: 'read' },
  { headers: { ...as(VERIFIER_TOKEN).headers, ...json } },
);
const keys = await listKeys({ partnerId: partner.id }, undefined, admin);
const deleted = await deleteKey(created.id, undefined, undefined, admin);
const history = await listKeyHistory(created.id, undefined, undefined, admin);

console.log(
  JSON.stringify({
    verdict: verdict.code,
    permission: verdict.permission,
    keys: keys.data.map(({ status, permission }) => ({ status, permission })),
    deleted: deleted.status,
    actions: history.data.map(({ action }) => action),
  }),
);
