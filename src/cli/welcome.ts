import type { Service } from '../service/service.ts';

/** The text after a first start without configuration. Its last line can be pasted into a shell. */
export function welcome(url: string, embedded: NonNullable<Service['embedded']>): string {
  const { credentialsFile, hasCredentials, hasKey } = embedded;
  const lines = [`Latchkey listens on ${url}, with an embedded Postgres. API documentation: ${url}/docs`];
  if (!hasCredentials) lines.push(`The file with the tokens, ${credentialsFile}, has been moved or deleted.`);
  else if (!hasKey) lines.push(`The tokens are in ${credentialsFile}`);
  else {
    const file = quoted(credentialsFile);
    const body = `"$(jq '{key, permission: "read"}' ${file})"`;
    const token = `"X-API-Key: $(jq -r .verifierToken ${file})"`;
    lines.push(`The tokens and a first key are in ${credentialsFile}`);
    lines.push(`curl -s ${url}/v1/verify -H ${token} -H 'Content-Type: application/json' -d ${body}`);
  }
  return `\n${lines.join('\n')}\n\n`;
}

/** Quotes a path for a shell if necessary. */
function quoted(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
