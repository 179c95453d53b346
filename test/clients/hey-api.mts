import { client } from './api/client.gen.ts';
import { createPartner, deleteKey, listKeyHistory, listKeys, verifyKey } from './api/index.ts';

// A short way through the API with what @hey-api/openapi-ts makes. All clients of this kind print the same.

const { LATCHKEY_URL: baseUrl = '', ADMIN_TOKEN = '', VERIFIER_TOKEN = '' } = process.env;
client.setConfig({ baseUrl, auth: ADMIN_TOKEN, throwOnError: true });

const { data: partner } = await createPartner<true>({ body: { email: 'team@partner.example', permissions: ['read'] } });
const [created] = partner.keys;
if (created === undefined) throw new Error('the partner has no key');
const plaintext: string = created.key;
const { data: verdict } = await verifyKey<true>({ auth: VERIFIER_TOKEN, body: { key: plaintext, permission: 'read' } });
const { data: keys } = await listKeys<true>({ query: { partnerId: partner.id } });
const { data: deleted } = await deleteKey<true>({ path: { keyId: created.id } });
const { data: history } = await listKeyHistory<true>({ path: { keyId: created.id } });

console.log(
  JSON.stringify({
    verdict: verdict.code,
    permission: verdict.permission,
    keys: keys.data.map(({ status, permission }) => ({ status, permission })),
    deleted: deleted.status,
    actions: history.data.map(({ action }) => action),
  }),
);
