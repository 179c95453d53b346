import { readFileSync } from 'node:fs';
import { Ajv2020, type ValidateFunction } from 'ajv/dist/2020.js';
import ajvFormats from 'ajv-formats';
import type { Json } from './app.ts';

/** A reply of the service, whichever way it was asked for. */
export interface DocumentedReply {
  method: string;
  /** With or without a host, a query and a fragment. */
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

/** Literal paths first, so that a name is not taken for an id. */
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

/** @throws Error where the document does not say that the service may answer like this */
export function requireDocumented(reply: DocumentedReply): void {
  const wrong = undocumentedIn(reply);
  if (wrong === undefined) return;
  const { method, url, status, text } = reply;
  throw new Error(`${method} ${url} answered ${status}, and ${wrong}: ${text.slice(0, 1_000)}`);
}

/** What the document does not say about the reply; undefined where it says all of it. */
export function undocumentedIn({ method, url, status, contentType, text }: DocumentedReply): string | undefined {
  const asked = new URL(url, 'http://latchkey').pathname;
  const path = paths.find(({ pattern }) => pattern.test(asked))?.path;
  const operation = path && document.paths[path][method.toLowerCase()];
  const mediaType = contentType?.split(';')[0];
  if (path === undefined || operation === undefined) {
    // Nothing is documented where nothing is; the refusal has the shape of all others.
    return asked.startsWith('/v1/') && method !== 'HEAD' && status >= 400 && text !== ''
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
