import type { IncomingHttpHeaders } from 'node:http';
import { decodePercent } from './decode-percent.ts';

/** The headers of a request contain no readable credential. The message is for the client. */
export class UnreadableCredential extends Error {
  override readonly name = 'UnreadableCredential';
  /** 400: two different credentials; 401: another scheme than Bearer. */
  readonly status: 400 | 401;

  constructor(status: 400 | 401, message: string) {
    super(message);
    this.status = status;
  }
}

/**
 * The credential of a request: `Authorization: Bearer <token>` (RFC 6750 section 2.1) or `X-API-Key: <token>`.
 * @param takesBasic whether it may also be the password of HTTP Basic
 * @returns undefined if none was sent
 * @throws UnreadableCredential
 */
export function readCredential(
  { headers, rawHeaders }: { headers: IncomingHttpHeaders; rawHeaders: readonly string[] },
  takesBasic = false,
): string | undefined {
  requireOneAuthorization(rawHeaders);
  const { authorization } = headers;
  const basic = takesBasic && authorization !== undefined ? basicSecret(authorization) : undefined;
  const bearer = authorization === undefined ? undefined : (basic ?? bearerToken(authorization));
  const apiKey = headers['x-api-key'];
  // Node joins this repeated header with a comma, which no token contains.
  const other = Array.isArray(apiKey) ? apiKey.join(', ') : apiKey;
  if (bearer !== undefined && other !== undefined && bearer !== other) {
    throw new UnreadableCredential(400, 'Authorization and X-API-Key contain different credentials. Send one of them.');
  }
  return bearer ?? other;
}

/** Node keeps the first of a repeated Authorization; another program on the way may have read the last. */
function requireOneAuthorization(rawHeaders: readonly string[]): void {
  let found: string | undefined;
  for (let index = 0; index < rawHeaders.length; index += 2) {
    const name = rawHeaders[index] ?? '';
    if (name.length !== 'authorization'.length || name.toLowerCase() !== 'authorization') continue;
    const value = rawHeaders[index + 1];
    if (found !== undefined && value !== found) {
      const detail = 'Authorization was sent twice, with different credentials. Send one of them.';
      throw new UnreadableCredential(400, detail);
    }
    found = value;
  }
}

const usualStart = 'Bearer ';

function bearerToken(authorization: string): string {
  // The usual form first: the expression below takes longer, and this runs for every request.
  if (authorization.startsWith(usualStart) && authorization.length > usualStart.length) {
    if (!authorization.includes(' ', usualStart.length)) return authorization.slice(usualStart.length);
  }
  const match = /^bearer +([^ ]+) *$/i.exec(authorization);
  if (match?.[1] !== undefined) return match[1];
  throw new UnreadableCredential(401, 'Authorization must be of the form: Bearer <token>.');
}

/**
 * The password of `Authorization: Basic` (RFC 7617), percent-encoded or not: RFC 6749 section 2.3.1 asks for the
 * encoding, but not all clients do it. The user name does not matter. Undefined for another scheme, and without a
 * password.
 */
function basicSecret(authorization: string): string | undefined {
  const [, encoded = ''] = /^basic +([A-Za-z0-9+/_-]+=*) *$/i.exec(authorization) ?? [];
  const secret = /^[^:]*:(.+)$/s.exec(Buffer.from(encoded, 'base64').toString())?.[1];
  return secret === undefined ? undefined : decodePercent(secret);
}
