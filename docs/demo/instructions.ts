import type { Client, Reply } from './client.ts';

interface Tokens {
  adminToken: string;
  operatorToken: string;
  organizationId: string;
}

/** Lines to paste, and what each of them shows. */
export async function whatToLookAt(
  url: string,
  admin: Client,
  { adminToken, operatorToken, organizationId }: Tokens,
): Promise<string> {
  const { data: keys } = await admin.get('/v1/keys?limit=200');
  const { data: partners } = await admin.get('/v1/partners?limit=200');
  const partnerNamed = (name: string): Reply => partners.find((partner: Reply) => partner.name === name);
  const keyOf = (name: string): Reply => keys.find((key: Reply) => key.partnerId === partnerNamed(name).id);
  const line = (path: string, token = adminToken, more = '') =>
    `curl -sw '\\n' '${url}${path}' -H 'X-API-Key: ${token}'${more}`;
  const lines: Array<[what: string, command: string]> = [
    ['Every row with its keys; shipping has two of which the old one ends in a week', line('/v1/rows')],
    ['Who has revealed the key of marketplace, and why', line(`/v1/keys/${keyOf('marketplace').id}/viewers`)],
    [
      'How much analytics was used: more than its limit of 50 an hour',
      line(`/v1/partners/${partnerNamed('analytics').id}/usage`),
    ],
    ['The latest ten events: who did what, down to a leaked key that was used', line('/v1/history?limit=10')],
    ['The whole chain, verified', line('/v1/history/verify')],
    [
      'Recovery requests, as an operator sees them',
      line('/v1/recovery-requests', operatorToken, ` -H 'Latchkey-Organization: ${organizationId}'`),
    ],
    ['The metrics of the service', `curl -sw '\\n' '${url}/metrics'`],
  ];
  const pasteable = lines.map(([what, command]) => `${what}:\n${command}\n`).join('\n');
  return `
The demo's organization is filled, and Latchkey listens on ${url}. Paste one line after the other:

${pasteable}
API documentation: ${url}/docs. Ctrl-C stops the demo; the next start has the same data.
`;
}
