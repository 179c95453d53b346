import type { IncomingMessage } from 'node:http';
import { Problem } from '../core/errors.ts';
import { decodePercent } from '../lib/decode-percent.ts';

/**
 * The credential of a request: `Authorization: Bearer <token>` (RFC 6750 section 2.1) or `X-API-Key: <token>`.
 * @param takesBasic whether it may also be the secret of HTTP Basic
 * @returns undefined where none was sent
 * @throws Problem `bad_request` for two that differ, `unauthorized` for another scheme
 */
export function readCredential(
  request: Pick<IncomingMessage, 'headers' | 'rawHeaders'>,
  takesBasic = false,
): string | undefined {
  const { headers } = request;
  requireOneAuthorization(request.rawHeaders);
  const { authorization } = headers;
  const basic = takesBasic && authorization !== undefined ? basicSecret(authorization) : undefined;
  const bearer = authorization === undefined ? undefined : (basic ?? bearerToken(authorization));
  const apiKey = headers['x-api-key'];
  // Node joins a repeated header of this kind with a comma, which no token contains.
  const other = Array.isArray(apiKey) ? apiKey.join(', ') : apiKey;
  if (bearer !== undefined && other !== undefined && bearer !== other) {
    throw new Problem('bad_request', 'Authorization and X-API-Key carry different credentials. Send one of them.');
  }
  return bearer ?? other;
}

/** Node keeps the first of a repeated Authorization; another program on the way may have looked at the last. */
function requireOneAuthorization(rawHeaders: readonly string[]): void {
  let found: string | undefined;
  for (let index = 0; index < rawHeaders.length; index += 2) {
    const name = rawHeaders[index] ?? '';
    if (name.length !== 'authorization'.length || name.toLowerCase() !== 'authorization') continue;
    const value = rawHeaders[index + 1];
    if (found !== undefined && value !== found) {
      throw new Problem('bad_request', 'Authorization was sent twice, with different credentials. Send one of them.');
    }
    found = value;
  }
}

const usualStart = 'Bearer ';

function bearerToken(authorization: string): string {
  // As nearly everybody writes it. The expression below takes several times as long, and this is on every request's path.
  if (authorization.startsWith(usualStart) && authorization.length > usualStart.length) {
    if (!authorization.includes(' ', usualStart.length)) return authorization.slice(usualStart.length);
  }
  const match = /^bearer +([^ ]+) *$/i.exec(authorization);
  if (match?.[1] === undefined) {
    throw unauthorized('unauthorized', 'Authorization must be of the form: Bearer <token>.', 'invalid_request');
  }
  return match[1];
}

/**
 * The secret of `Authorization: Basic` (RFC 7617), percent-encoded or not: RFC 6749 section 2.3.1 asks for it, and not all
 * clients do it. The client's id may be any. Undefined for another scheme, and where there is no secret.
 */
function basicSecret(authorization: string): string | undefined {
  const [, encoded = ''] = /^basic +([A-Za-z0-9+/_-]+=*) *$/i.exec(authorization) ?? [];
  const secret = /^[^:]*:(.+)$/s.exec(Buffer.from(encoded, 'base64').toString())?.[1];
  return secret === undefined ? undefined : decodePercent(secret);
}

export function isBasic(authorization: string | undefined): boolean {
  return /^basic(?: |$)/i.test(authorization ?? '');
}

/** A 401 with the challenge that RFC 6750 section 3 asks for; without `error` where no credential was sent. */
export function unauthorized(
  code: 'unauthorized' | 'token_malformed' | 'token_expired',
  detail: string,
  error?: 'invalid_token' | 'invalid_request',
): Problem {
  const reason = error === undefined ? '' : `, error="${error}", error_description="${detail.replaceAll('"', "'")}"`;
  return new Problem(code, detail, { headers: { 'www-authenticate': `Bearer realm="latchkey"${reason}` } });
}
