import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import type { Test } from 'tap';
import { generateKeyring, parseKeyring } from '../../src/crypto/keyring.ts';
import { startService } from './app.ts';
import { runEntry } from './process.ts';

interface LossyProxy {
  /** The database through the proxy. */
  url: string;
  /** Resolves when the commit has arrived and the connection is lost. */
  lost: Promise<void>;
}

/** A `commit` as pg sends it, in the simple query protocol. */
const commit = 'Q\u0000\u0000\u0000\u000bcommit\u0000';

interface Loss {
  what: 'the commit' | 'the reply to it';
  /** A text of the transaction that is lost. */
  marker: string;
}

/** A service, and a process on the same database that loses its connection at a commit. */
export async function startLosingService(t: Test, { env, ...loss }: Loss & { env?: NodeJS.ProcessEnv }) {
  const keyring = generateKeyring(new Date());
  const service = await startService(t, { keyring: parseKeyring(keyring) });
  const proxy = await proxyThatLoses(t, service.urls.app, loss);
  const process = runEntry(t, 'server.ts', [], {
    env: {
      DATABASE_URL: proxy.url,
      LISTEN_DATABASE_URL: service.urls.app,
      LATCHKEY_KEYRING: keyring,
      PORT: '0',
      ...env,
    },
  });
  const [, url = ''] = await process.until(/Server listening at (http:\/\/[^"]+)"/);
  return { service, proxy, process, url };
}

/**
 * A proxy to Postgres that loses the first commit of a transaction with `marker`, or only the reply to it. After that no
 * connection gets a reply, but open connections stay open until the client ends.
 */
async function proxyThatLoses(t: Test, url: string, { what, marker }: Loss): Promise<LossyProxy> {
  const target = new URL(url);
  const [port, host] = [Number(target.port || 5432), target.hostname];
  const sockets = new Set<Socket>();
  let isLost = false;
  let notifyLost: () => void = () => undefined;
  const lost = new Promise<void>((resolve) => {
    notifyLost = resolve;
  });
  const server = createServer((near) => {
    const far = connect(port, host);
    for (const socket of [near, far]) {
      sockets.add(socket);
      socket.on('error', () => undefined);
    }
    let sent = '';
    near.on('data', (chunk) => {
      sent = (sent + chunk.toString('latin1')).slice(-100_000);
      const isTheOne = !isLost && sent.includes(marker) && sent.includes(commit, sent.indexOf(marker));
      if (isTheOne) isLost = true;
      if (!isTheOne || what === 'the reply to it') far.write(chunk);
      if (isTheOne) notifyLost();
    });
    far.on('data', (chunk) => isLost || near.write(chunk));
    near.on('close', () => far.destroy());
    far.on('close', () => near.destroy());
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  target.host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  return { url: target.href, lost };
}
