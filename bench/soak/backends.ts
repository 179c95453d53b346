import { randomUUID } from 'node:crypto';
import type { Json, KnownKey, SoakSession, SoakStory } from './session.ts';

// What backends and gateways do: verify keys in each way.

/** Presents a random key: mostly as it is, sometimes with a wrong secret or another text. */
export function verifyKeys(session: SoakSession): SoakStory {
  const { keys, tally, target } = session;
  const backend = session.callerWith(target.verifierToken);
  const gateway = session.callerWith(undefined);

  function check({ known, wasValid, text }: Presented, verdict: Json): void {
    if (verdict.valid === true) tally.allowed += 1;
    if (verdict.valid === true && text !== known.key) session.fail('an invalid key was allowed');
    if (text !== known.key || !wasValid || !known.isValid) return;
    if (verdict.valid !== true) session.fail(`a valid key was rejected: ${JSON.stringify(verdict)}`);
    else if (known.externalId !== undefined && verdict.partnerExternalId !== known.externalId)
      session.fail(`${verdict.partnerExternalId} was returned for the partner ${known.externalId}`);
  }

  return async () => {
    const presented = present(keys);
    if (presented === undefined) return;
    const kind = Math.random();
    if (kind < 0.05) {
      const entries = Array.from({ length: 8 }, () => present(keys) ?? presented);
      const body = { entries: entries.map(({ text }) => ({ key: text, permission: 'read' })) };
      const { data } = await backend.call(200, 'POST', '/v1/verify/batch', body);
      for (const [index, entry] of entries.entries()) check(entry, data[index]);
    } else if (kind < 0.15) {
      const headers = {
        'x-latchkey-token': target.verifierToken,
        'x-api-key': presented.text,
        'x-forwarded-method': 'GET',
      };
      const reply = await gateway.send('GET', '/v1/authorize?keyHeader=x-api-key', undefined, headers);
      if (![200, 401, 403].includes(reply.status)) session.fail(`authorize: ${reply.status} ${reply.body}`);
      const partnerExternalId = reply.headers['x-latchkey-partner-external-id'];
      check(presented, { valid: reply.status === 200, partnerExternalId });
    } else if (kind < 0.18) {
      const { active } = await introspect(session, presented.text);
      if (active && presented.text !== presented.known.key) session.fail('an invalid key was active');
    } else {
      const headers: Record<string, string> = kind > 0.98 ? { 'cache-control': 'no-cache' } : {};
      check(
        presented,
        await backend.call(200, 'POST', '/v1/verify', { key: presented.text, permission: 'read' }, headers),
      );
    }
  };
}

interface Presented {
  known: KnownKey;
  wasValid: boolean;
  text: string;
}

function present(keys: readonly KnownKey[]): Presented | undefined {
  const known = keys[Math.floor(Math.random() * keys.length)];
  if (known === undefined) return undefined;
  const random = Math.random();
  const text = random < 0.05 ? `${known.key.slice(0, -6)}000000` : random < 0.1 ? randomUUID() : known.key;
  return { known, wasValid: known.isValid, text };
}

async function introspect({ target, tally }: SoakSession, token: string): Promise<{ active: boolean }> {
  tally.requests += 1;
  const response = await fetch(`${target.url}/v1/introspect`, {
    method: 'POST',
    headers: { authorization: `Bearer ${target.verifierToken}` },
    body: new URLSearchParams({ token }),
  });
  return (await response.json()) as { active: boolean };
}
