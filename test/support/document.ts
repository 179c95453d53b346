import { readFileSync } from 'node:fs';
import { Ajv2020, type ValidateFunction } from 'ajv/dist/2020.js';
import ajvFormats from 'ajv-formats';
import type { Json } from './app.ts';

/** A reply of the service, from `inject` or a socket. */
export interface DocumentedReply {
  method: string;
  /** With or without host, query and fragment. */
  url: string;
  status: number;
  contentType: string | undefined;
  text: string;
}

const document: Json = JSON.parse(readFileSync('openapi/openapi.json', 'utf8'));
const ajv = new Ajv2020({ strict: false, validateSchema: false, allErrors: true });
ajvFormats.default(ajv);
ajv.addSchema(document, 'openapi');

const problemMediaType = 'application/problem+json';

/** Literal paths first, so that a path segment is not mistaken for an id. */
const paths = Object.keys(document.paths)
  .sort((one, other) => one.split('{').length - other.split('{').length)
  .map((path) => ({ path, pattern: new RegExp(`^${path.replaceAll(/\{[^}]+\}/g, '[^/]+')}$`) }));

const validators = new Map<string, ValidateFunction>();

function validatorAt(...names: string[]): ValidateFunction {
  const pointer = names.map((name) => `/${encodeURIComponent(name.replaceAll('~', '~0').replaceAll('/', '~1'))}`);
  const reference = `openapi#${pointer.join('')}`;
  const known = validators.get(reference) ?? ajv.compile({ $ref: reference });
  validators.set(reference, known);
  return known;
}

/** @throws Error if the document does not allow this reply */
export function requireDocumented(reply: DocumentedReply): void {
  const undocumented = undocumentedIn(reply);
  if (undocumented === undefined) return;
  const { method, url, status, text } = reply;
  throw new Error(`${method} ${url} answered ${status}, and ${undocumented}: ${text.slice(0, 1_000)}`);
}

/** Why the document does not allow the reply; undefined if it does. */
export function undocumentedIn({ method, url, status, contentType, text }: DocumentedReply): string | undefined {
  const pathname = new URL(url, 'http://latchkey').pathname;
  const path = paths.find(({ pattern }) => pattern.test(pathname))?.path;
  const operation = path && document.paths[path][method.toLowerCase()];
  const mediaType = contentType?.split(';')[0];
  if (path === undefined || operation === undefined) {
    // An unknown path is not documented; its rejection is a problem like all others.
    return pathname.startsWith('/v1/') && method !== 'HEAD' && status >= 400 && text !== ''
      ? problemErrors(mediaType, text)
      : undefined;
  }
  const response = operation.responses[status];
  if (response === undefined) return `the document has only ${Object.keys(operation.responses).join(', ')}`;
  if (status >= 400) return problemErrors(mediaType, text);
  const content: Json = response.content ?? {};
  if (Object.keys(content).length === 0) return undefined;
  if (mediaType === undefined || !(mediaType in content)) {
    return `the document has only ${Object.keys(content).join(', ')}, not ${mediaType}`;
  }
  if (mediaType !== 'application/json') return undefined;
  const schema = ['paths', path, method.toLowerCase(), 'responses', String(status), 'content', mediaType, 'schema'];
  return errorsOf(validatorAt(...schema), text);
}

function problemErrors(mediaType: string | undefined, text: string): string | undefined {
  if (mediaType !== problemMediaType) return `is ${mediaType} and no problem`;
  return errorsOf(validatorAt('components', 'schemas', 'Problem'), text);
}

function errorsOf(validate: ValidateFunction, text: string): string | undefined {
  return validate(JSON.parse(text)) ? undefined : ajv.errorsText(validate.errors);
}
