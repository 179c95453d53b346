import { register } from 'node:module';

// openapi-typescript builds its output with the compiler's JavaScript API, which TypeScript 7 no longer has. Loaded before
// it, this resolves `typescript` to TypeScript 5.

const hook = `export const resolve = (name, context, next) => next(name === 'typescript' ? 'typescript-5' : name, context);`;
register(`data:text/javascript,${encodeURIComponent(hook)}`);
