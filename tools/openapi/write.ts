import { writeFile } from 'node:fs/promises';
import { clientTypes } from './client-types.ts';
import { as30, describeApi } from './describe-api.ts';

// `npm run openapi`: writes the OpenAPI documents of the routes as they are now, and the types of the Node client.

const text = await describeApi();
await writeFile('openapi/openapi.json', text);
await writeFile('openapi/openapi-3.0.json', as30(text));
await writeFile('clients/node/src/api.ts', clientTypes(text));
