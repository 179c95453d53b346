import { type AddressInfo, connect as connectSocket, createServer, type Socket } from 'node:net';
import type { Test } from 'tap';

export interface Proxy {
  /** The same place, by way of the proxy. */
  url: string;
  /** Breaks the connections that there are; new ones are taken. */
  end(): void;
  /** Whether bytes vanish, in both directions and without a word. @param only on connections whose last request began with this text */
  swallow(on: boolean, only?: string): void;
  /** Whether the server's replies are kept back; what was kept is passed on when this ends. @param only as above */
  hold(on: boolean, only?: string): void;
  /** Whether there is something that was kept back. */
  isHolding(): boolean;
  /** Makes the server's replies late by so much, in their order. @param only as above */
  lag(ms: number, only?: string): void;
  /** Makes those pieces of the server's replies vanish that contain this text. */
  lose(text: string): void;
  /** From now on the connections that there are swallow everything, for good. New ones work. @param only as above */
  forsake(only?: string): void;
  /** Whether new connections are closed as soon as they are made. */
  refuse(on: boolean): void;
}

/** A way to a server that can be made to swallow everything, or to break. */
export async function proxyTo(t: Test, url: string): Promise<Proxy> {
  const target = new URL(url);
  const [port, host] = [Number(target.port || 5432), target.hostname];
  const sockets = new Set<Socket>();
  let isSwallowing = false;
  let isRefusing = false;
  let isHolding = false;
  let held: Array<() => void> = [];
  let affected = '';
  let lagMs = 0;
  let lost: string | undefined;
  let forsaken = new WeakSet<Socket>();
  const server = createServer((near) => {
    if (isRefusing) {
      near.destroy();
      return;
    }
    const far = connectSocket(port, host);
    let beginning = '';
    near.on('data', (chunk) => {
      const text = chunk.toString('latin1');
      if (beginning === '' || /^[A-Z]+ \//.test(text)) beginning = text;
    });
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      sockets.add(from);
      from.on('data', (chunk) => {
        const isAffected = beginning.startsWith(affected);
        if (forsaken.has(from) && isAffected) return;
        if (from === far && lost !== undefined && chunk.includes(lost)) return;
        if (isSwallowing && isAffected) return;
        if (isHolding && isAffected && from === far) held.push(() => to.write(chunk));
        else if (lagMs > 0 && isAffected && from === far) {
          // What nobody waits for any more does not keep the test's process.
          setTimeout(() => to.write(chunk), lagMs).unref();
        } else to.write(chunk);
      });
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
    swallow: (on: boolean, only = '') => {
      affected = only;
      isSwallowing = on;
    },
    isHolding: () => held.length > 0,
    hold: (on: boolean, only = '') => {
      affected = only;
      isHolding = on;
      if (on) return;
      for (const passOn of held) passOn();
      held = [];
    },
    lag: (ms: number, only = '') => {
      affected = only;
      lagMs = ms;
    },
    lose: (text: string) => {
      lost = text;
    },
    forsake: (only = '') => {
      affected = only;
      forsaken = new WeakSet(sockets);
    },
    refuse: (on: boolean) => {
      isRefusing = on;
    },
  };
}
