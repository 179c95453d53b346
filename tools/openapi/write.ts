import { writeFile } from 'node:fs/promises';
import { as30, describeApi } from './describe-api.ts';

// `npm run openapi`: writes the OpenAPI documents of the routes as they are now.

const text = await describeApi();
await writeFile('openapi/openapi.json', text);
await writeFile('openapi/openapi-3.0.json', as30(text));
