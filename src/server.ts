import { ignoreGoneReader } from './cli/print.ts';
import { serve } from './cli/serve.ts';

// What `npm start` runs: the same as `latchkey try`.
ignoreGoneReader();
await serve(process.env, { mayEmbed: true });
