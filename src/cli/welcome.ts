import type { Service } from '../service/service.ts';

/** What a person reads who has just started Latchkey with nothing configured: the last line can be pasted. */
export function welcome(url: string, embedded: NonNullable<Service['embedded']>): string {
  const { credentialsFile, hasCredentials, hasKey } = embedded;
  const lines = [`Latchkey listens on ${url}, with a Postgres of its own; the API is described at ${url}/docs`];
  if (!hasCredentials) lines.push(`Its tokens are no longer in ${credentialsFile}: somebody has moved that file away.`);
  else if (!hasKey) lines.push(`Its tokens are in ${credentialsFile}`);
  else {
    const file = quoted(credentialsFile);
    const body = `"$(jq '{key, permission: "read"}' ${file})"`;
    const token = `"X-API-Key: $(jq -r .verifierToken ${file})"`;
    lines.push(`Its tokens and a first key are in ${credentialsFile}`);
    lines.push(`curl -s ${url}/v1/verify -H ${token} -H 'Content-Type: application/json' -d ${body}`);
  }
  return `\n${lines.join('\n')}\n\n`;
}

/** For a shell, where a path holds more than letters, digits and a few signs. */
function quoted(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
