import { writeFile } from 'node:fs/promises';
import { configurationPage } from './configuration.ts';

// `npm run docs`: writes the pages that are generated from the code.

await writeFile('docs/configuration.md', configurationPage());
