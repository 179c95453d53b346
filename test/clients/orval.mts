import { createPartner, deleteKey, listKeyHistory, listKeys, verifyKey } from './api/api.ts';

// A short way through the API with what orval makes. All clients of this kind print the same.

const { LATCHKEY_URL = '', ADMIN_TOKEN = '', VERIFIER_TOKEN = '' } = process.env;
// What orval makes asks for paths.
const fetchUrl = globalThis.fetch;
globalThis.fetch = (path, options) => fetchUrl(new URL(String(path), LATCHKEY_URL), options);
const as = (token: string) => ({ headers: { Authorization: `Bearer ${token}` } });
const admin = as(ADMIN_TOKEN);

const partner = await createPartner({ email: 'team@partner.example', permissions: ['read'] }, admin);
if (partner.status !== 201) throw new Error(partner.data.detail);
const [created] = partner.data.keys;
if (created === undefined) throw new Error('the partner has no key');
const plaintext: string = created.key;
const verdict = await verifyKey({ key: plaintext, permission: 'read' }, as(VERIFIER_TOKEN));
const keys = await listKeys({ partnerId: partner.data.id }, admin);
const deleted = await deleteKey(created.id, undefined, admin);
const history = await listKeyHistory(created.id, undefined, admin);
if (verdict.status !== 200) throw new Error(verdict.data.detail);
if (keys.status !== 200) throw new Error(keys.data.detail);
if (deleted.status !== 200) throw new Error(deleted.data.detail);
if (history.status !== 200) throw new Error(history.data.detail);

console.log(
  JSON.stringify({
    verdict: verdict.data.code,
    permission: verdict.data.permission,
    keys: keys.data.data.map(({ status, permission }) => ({ status, permission })),
    deleted: deleted.data.status,
    actions: history.data.data.map(({ action }) => action),
  }),
);
