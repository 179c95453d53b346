import type { IncomingMessage } from 'node:http';
import { Problem } from '../domain/errors.ts';
import * as headers from '../lib/read-credential.ts';

/**
 * Reads the credential of a request.
 * @param takesBasic whether it may also be the password of HTTP Basic
 * @returns undefined if none was sent
 * @throws Problem `bad_request` for two different credentials, `unauthorized` for another scheme
 */
export function readCredential(
  request: Pick<IncomingMessage, 'headers' | 'rawHeaders'>,
  takesBasic = false,
): string | undefined {
  try {
    return headers.readCredential(request, takesBasic);
  } catch (error) {
    if (!(error instanceof headers.UnreadableCredential)) throw error;
    if (error.status === 400) throw new Problem('bad_request', error.message);
    throw unauthorized('unauthorized', error.message, 'invalid_request');
  }
}

/**
 * The texts that a request presents as its credential, whatever their form. Only for removing them from text that is
 * recorded.
 */
export function presentedTexts({ headers, url = '' }: Pick<IncomingMessage, 'headers' | 'url'>): string[] {
  const texts: string[] = [];
  const { authorization, 'x-api-key': apiKey } = headers;
  if (authorization !== undefined) texts.push(authorization.slice(authorization.lastIndexOf(' ') + 1));
  if (typeof apiKey === 'string') texts.push(apiKey);
  // A gateway may name another header that carries its client's key.
  const [, named] = /[?&]keyHeader=([\w!#$'*+.^`|~-]+)/.exec(url) ?? [];
  const other = named === undefined ? undefined : headers[named.toLowerCase()];
  if (typeof other === 'string') texts.push(other);
  return texts;
}

export function isBasic(authorization: string | undefined): boolean {
  return /^basic(?: |$)/i.test(authorization ?? '');
}

/** A 401 with the challenge of RFC 6750 section 3; without `error` if no credential was sent. */
export function unauthorized(
  code: 'unauthorized' | 'token_malformed' | 'token_expired',
  detail: string,
  error?: 'invalid_token' | 'invalid_request',
): Problem {
  const reason = error === undefined ? '' : `, error="${error}", error_description="${detail.replaceAll('"', "'")}"`;
  return new Problem(code, detail, { headers: { 'www-authenticate': `Bearer realm="latchkey"${reason}` } });
}
