import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import type { Test } from 'tap';

export interface LossyProxy {
  /** The database, by the way that will be lost. */
  url: string;
  /** Resolves when the commit in question has come by and the way is lost. */
  lost: Promise<void>;
}

/** A `commit` as pg sends it: the simple query protocol's message. */
const commit = 'Q\u0000\u0000\u0000\u000bcommit\u0000';

/**
 * A way to Postgres that loses the first commit of a transaction that has sent `marker`, or only the reply to it.
 * Nothing comes back after that, to whichever connection, but what is open stays open until the client ends.
 */
export async function proxyThatLoses(
  t: Test,
  url: string,
  { what, marker }: { what: 'the commit' | 'the reply to it'; marker: string },
): Promise<LossyProxy> {
  const target = new URL(url);
  const [port, host] = [Number(target.port || 5432), target.hostname];
  const sockets = new Set<Socket>();
  let isLost = false;
  let tellLost: () => void = () => undefined;
  const lost = new Promise<void>((resolve) => {
    tellLost = resolve;
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
      if (isTheOne) tellLost();
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
