import { accessSync, constants } from 'node:fs';

/** What decides about TLS where a URL says nothing; by the names that libpq reads. */
export interface TlsDefaults {
  PGSSLMODE?: string | undefined;
  PGSSLROOTCERT?: string | undefined;
}

/** `require`, `verify-ca` and `verify-full` are the same here: encrypted, and the certificate is that of the host. */
export const tlsModes = ['disable', 'no-verify', 'require', 'verify-ca', 'verify-full'] as const;

/** The URL of a Postgres as pg understands it, with `sslmode` and the certificate authority written out. */
export function withTls(text: string, { PGSSLMODE, PGSSLROOTCERT }: TlsDefaults): string {
  const url = new URL(text);
  const mode = url.searchParams.get('sslmode') ?? PGSSLMODE;
  if (mode === undefined) return text;
  const isVerified = mode !== 'disable' && mode !== 'no-verify';
  url.searchParams.set('sslmode', isVerified ? 'verify-full' : mode);
  const authority = url.searchParams.get('sslrootcert') ?? PGSSLROOTCERT;
  url.searchParams.delete('sslrootcert');
  // `system` are the authorities that Node knows anyway.
  if (isVerified && authority !== undefined && authority !== 'system') url.searchParams.set('sslrootcert', authority);
  return url.href;
}

const fileParameters = ['sslrootcert', 'sslcert', 'sslkey'];

/** What is wrong with the TLS settings of such a URL: a mode that there is not, or a file that cannot be read. */
export function tlsProblem(text: string): string | undefined {
  const parameters = new URL(text).searchParams;
  const mode = parameters.get('sslmode');
  if (mode !== null && !tlsModes.some((known) => known === mode)) {
    return `has sslmode=${mode}, which must be one of ${tlsModes.join(', ')}`;
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
