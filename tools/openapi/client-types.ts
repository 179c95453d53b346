import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';

/** The schemas that the Node client sends and receives. */
const roots = ['VerifyBatchEntry', 'VerdictOrProblem'];

type Schemas = Record<string, unknown>;

/** The types of the Node client. @param document the text of openapi.json */
export function clientTypes(document: string): string {
  const { openapi, info, components } = JSON.parse(document) as {
    openapi: string;
    info: unknown;
    components: { schemas: Schemas };
  };
  const schemas: Schemas = {};
  for (const name of roots) addWithReferences(name, components.schemas, schemas);
  const folder = mkdtempSync(path.join(tmpdir(), 'latchkey-types-'));
  try {
    const [input, output] = [path.join(folder, 'openapi.json'), path.join(folder, 'api.ts')];
    writeFileSync(input, JSON.stringify({ openapi, info, paths: {}, components: { schemas } }));
    generate(folder, [input, `--output=${output}`, '--root-types', '--root-types-no-schema-prefix']);
    return `// Written by \`npm run openapi\` from openapi/openapi.json.\n${withoutEmptyParts(readFileSync(output, 'utf8'))}`;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function addWithReferences(name: string, from: Schemas, to: Schemas): void {
  if (name in to) return;
  to[name] = from[name];
  const text = JSON.stringify(from[name]);
  for (const [, other = ''] of text.matchAll(/"#\/components\/schemas\/(\w+)"/g)) addWithReferences(other, from, to);
}

/** @param cwd a folder without rules for OpenAPI documents: this one has schemas alone */
function generate(cwd: string, args: string[]): void {
  const [hook, cli] = ['tools/typescript-5.mjs', 'node_modules/openapi-typescript/bin/cli.js'].map((file) =>
    path.resolve(file),
  );
  const { status, stderr } = spawnSync(process.execPath, [`--import=${hook}`, String(cli), ...args], {
    cwd,
    encoding: 'utf8',
  });
  if (status !== 0) throw new Error(`openapi-typescript failed: ${stderr}`);
}

/** There are no paths, so these parts say nothing. */
function withoutEmptyParts(text: string): string {
  return text
    .replaceAll(/^export type (paths|webhooks|\$defs|operations) = .*\n/gm, '')
    .replace(/^\/\*\*[\s\S]*?\*\/\n+/, '')
    .replaceAll(/^ {4}(responses|parameters|requestBodies|headers|pathItems): never;\n/gm, '');
}
