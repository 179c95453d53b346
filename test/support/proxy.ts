import { type AddressInfo, connect as connectSocket, createServer, type Socket } from 'node:net';
import type { Test } from 'tap';

/** A way to Postgres that can be made to swallow everything, to break, or to lead nowhere. */
export async function proxyTo(t: Test, url: string) {
  const target = new URL(url);
  const [port, host] = [Number(target.port || 5432), target.hostname];
  const sockets = new Set<Socket>();
  let isSwallowing = false;
  let isRefusing = false;
  const server = createServer((near) => {
    if (isRefusing) {
      near.destroy();
      return;
    }
    const far = connectSocket(port, host);
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      sockets.add(from);
      from.on('data', (chunk) => isSwallowing || to.write(chunk));
      from.on('error', () => undefined);
      from.on('close', () => to.destroy());
    }
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const end = () => {
    for (const socket of sockets) socket.destroy();
  };
  t.teardown(() => {
    end();
    server.close();
  });
  target.host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  return {
    url: target.href,
    end,
    swallow: (on: boolean) => {
      isSwallowing = on;
    },
    /** As while a server is down: what is open ends, and nothing new is let in. */
    refuse: (on: boolean) => {
      isRefusing = on;
      if (on) end();
    },
  };
}
