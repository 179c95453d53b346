import type { Test } from 'tap';
import { generateKeyring, parseKeyring } from '../../src/crypto/keyring.ts';
import { startService } from './app.ts';
import { freePort } from './ports.ts';
import { eventually, runEntry } from './process.ts';

/** A Latchkey process that the backend uses, and a replica through which keys are changed. */
export async function twoReplicas(t: Test) {
  const keyringText = generateKeyring(new Date());
  const replica = await startService(t, { keyring: parseKeyring(keyringText) });
  const port = await freePort();
  const env = {
    DATABASE_URL: replica.urls.app,
    LATCHKEY_KEYRING: keyringText,
    PORT: String(port),
    LOG_LEVEL: 'warn',
    ARGON2_MEMORY_KIB: '8',
    ARGON2_TIME_COST: '1',
  };
  const start = async () => {
    const latchkey = runEntry(t, 'server.ts', [], { env });
    await eventually(async () => (await fetch(`http://127.0.0.1:${port}/readyz`).catch(() => undefined))?.ok, 30_000);
    return latchkey;
  };
  return { replica, start, url: `http://127.0.0.1:${port}` };
}
