import { accessSync, constants } from 'node:fs';

/** The default TLS settings for URLs without their own, by the names of libpq. */
export interface TlsDefaults {
  PGSSLMODE?: string | undefined;
  PGSSLROOTCERT?: string | undefined;
}

/** `require`, `verify-ca` and `verify-full` are the same here: encrypted, with a verified certificate and host name. */
export const tlsModes = ['disable', 'no-verify', 'require', 'verify-ca', 'verify-full'] as const;

/** A Postgres URL for pg, with explicit `sslmode` and certificate authority. */
export function withTls(text: string, { PGSSLMODE, PGSSLROOTCERT }: TlsDefaults): string {
  const url = new URL(text);
  const mode = url.searchParams.get('sslmode') ?? PGSSLMODE;
  if (mode === undefined) return text;
  const isVerified = mode !== 'disable' && mode !== 'no-verify';
  url.searchParams.set('sslmode', isVerified ? 'verify-full' : mode);
  const authority = url.searchParams.get('sslrootcert') ?? PGSSLROOTCERT;
  url.searchParams.delete('sslrootcert');
  // `system` means Node's own authorities, which are used anyway.
  if (isVerified && authority !== undefined && authority !== 'system') url.searchParams.set('sslrootcert', authority);
  return url.href;
}

const fileParameters = ['sslrootcert', 'sslcert', 'sslkey'];

/** The problem of a URL's TLS settings: an unknown mode, or a file that cannot be read. */
export function tlsProblem(text: string): string | undefined {
  const parameters = new URL(text).searchParams;
  const mode = parameters.get('sslmode');
  if (mode !== null && !tlsModes.some((known) => known === mode)) {
    return `has sslmode=${mode}. It must be one of ${tlsModes.join(', ')}`;
  }
  for (const name of fileParameters) {
    const file = parameters.get(name);
    if (file === null || file === 'system') continue;
    try {
      accessSync(file, constants.R_OK);
    } catch (error) {
      return `has ${name}=${file}, which cannot be read (${(error as NodeJS.ErrnoException).code})`;
    }
  }
  return undefined;
}
