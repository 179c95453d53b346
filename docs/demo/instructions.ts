import type { Client, Reply } from './client.ts';

interface Tokens {
  adminToken: string;
  operatorToken: string;
  organizationId: string;
}

/** @returns the text that the demo prints: commands to paste, each with a description of its output */
export async function createInstructions(
  url: string,
  admin: Client,
  { adminToken, operatorToken, organizationId }: Tokens,
): Promise<string> {
  const { data: keys } = await admin.get('/v1/keys?limit=200');
  const { data: partners } = await admin.get('/v1/partners?limit=200');
  const partnerNamed = (name: string): Reply => partners.find((partner: Reply) => partner.name === name);
  const keyOf = (name: string): Reply => keys.find((key: Reply) => key.partnerId === partnerNamed(name).id);
  const curl = (path: string, token = adminToken, options = '') =>
    `curl -sw '\\n' '${url}${path}' -H 'X-API-Key: ${token}'${options}`;
  const commands: Array<[description: string, command: string]> = [
    ['All rows with their keys; the old key of shipping expires in a week', curl('/v1/rows')],
    ['Who has revealed the key of marketplace, and why', curl(`/v1/keys/${keyOf('marketplace').id}/viewers`)],
    [
      'The usage of analytics, which exceeded its limit of 50 per hour',
      curl(`/v1/partners/${partnerNamed('analytics').id}/usage`),
    ],
    ['The ten latest events, among them the use of a leaked key', curl('/v1/history?limit=10')],
    ['The verification of the whole chain', curl('/v1/history/verify?full=true')],
    [
      'Open recovery requests, which an operator answers',
      curl('/v1/recovery-requests', operatorToken, ` -H 'Latchkey-Organization: ${organizationId}'`),
    ],
    ['The metrics of the service', `curl -sw '\\n' '${url}/metrics'`],
  ];
  const text = commands.map(([description, command]) => `${description}:\n${command}\n`).join('\n');
  return `
The demo is ready, and Latchkey listens on ${url}. Paste these commands, one at a time:

${text}
API documentation: ${url}/docs. Ctrl-C stops the demo. The next start uses the same data.
`;
}
