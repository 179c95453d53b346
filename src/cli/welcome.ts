import type { Service } from '../service.ts';

/** What a person reads who has just started Latchkey with nothing configured. */
export function welcome(url: string, embedded: NonNullable<Service['embedded']>): string {
  const { credentialsFile, bootstrapped } = embedded;
  if (bootstrapped === undefined) {
    return `\nLatchkey listens on ${url}. Its tokens are in ${credentialsFile}.\n\n`;
  }
  const admin = bootstrapped.adminToken.reveal();
  const verifier = bootstrapped.verifierToken.reveal();
  const newestKey = `$(curl -s '${url}/v1/keys?limit=1' -H 'X-API-Key: ${admin}' | grep -o 'key_[0-9a-z]*' | head -n 1)`;
  const reveal = `curl -s -X POST ${url}/v1/keys/${newestKey}/reveal -H 'X-API-Key: ${admin}'`;
  const revealed = `$(${reveal} | cut -d '"' -f 4)`;
  const json = `-H 'Content-Type: application/json'`;
  return `
Latchkey listens on ${url}, with a Postgres of its own.

  organization    ${bootstrapped.organizationId}
  admin token     ${admin}
  verifier token  ${verifier}
  operator token  ${bootstrapped.operatorToken.reveal()}

The tokens are shown this once; they are also in ${credentialsFile}, which only you can read.
Try it, by pasting one line after the other:

Add a partner that may read. The reply has its first key:
curl -sw '\\n' ${url}/v1/partners -H 'X-API-Key: ${admin}' ${json} -d '{"email":"team@partner.example","permissions":["read"]}'

Look at the newest key once more, which is recorded, and ask whether it may read:
curl -sw '\\n' ${url}/v1/verify -H 'X-API-Key: ${verifier}' ${json} -d "{\\"key\\":\\"${revealed}\\",\\"permission\\":\\"read\\"}"

Delete the newest key, then read who did all that:
curl -sw '\\n' -X DELETE ${url}/v1/keys/${newestKey} -H 'X-API-Key: ${admin}' && curl -sw '\\n' ${url}/v1/history -H 'X-API-Key: ${admin}'

All of it is described at ${url}/docs

`;
}
