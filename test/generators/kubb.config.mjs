import { defineConfig } from '@kubb/core';
import { pluginClient } from '@kubb/plugin-client';
import { pluginOas } from '@kubb/plugin-oas';
import { pluginTs } from '@kubb/plugin-ts';

export default defineConfig({
  input: { path: './openapi.json' },
  output: { path: './api', extension: { '.ts': '.ts' } },
  plugins: [
    pluginOas({ validate: false, generators: [] }),
    pluginTs({}),
    pluginClient({ client: 'fetch', bundle: true }),
  ],
});
