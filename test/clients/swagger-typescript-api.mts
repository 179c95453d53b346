import { Access, Api } from './api/api.ts';

// A short way through the API with what swagger-typescript-api makes. All clients of this kind print the same.

const { LATCHKEY_URL: baseUrl = '', ADMIN_TOKEN = '', VERIFIER_TOKEN = '' } = process.env;
const as = (token: string) =>
  new Api({ baseUrl, baseApiParams: { format: 'json', headers: { Authorization: `Bearer ${token}` } } }).v1;
const admin = as(ADMIN_TOKEN);

const { data: partner } = await admin.createPartner({ email: 'team@partner.example', permissions: [Access.Read] });
const [created] = partner.keys;
if (created === undefined) throw new Error('the partner has no key');
const plaintext: string = created.key;
const { data: verdict } = await as(VERIFIER_TOKEN).verifyKey({ key: plaintext, permission: Access.Read });
const { data: keys } = await admin.listKeys({ partnerId: partner.id });
const { data: deleted } = await admin.deleteKey(created.id);
const { data: history } = await admin.listKeyHistory(created.id);

console.log(
  JSON.stringify({
    verdict: verdict.code,
    permission: verdict.permission,
    keys: keys.data.map(({ status, permission }) => ({ status, permission })),
    deleted: deleted.status,
    actions: history.data.map(({ action }) => action),
  }),
);
