import { type AddressInfo, connect as connectSocket, createServer, type Socket } from 'node:net';
import type { Test } from 'tap';

export interface Proxy {
  /** The URL of the server through the proxy. */
  url: string;
  /** Resets the open connections; new ones are accepted. */
  end(): void;
  /**
   * Whether bytes are dropped silently, in both directions. @param only on connections whose last request began with
   * this text
   */
  swallow(on: boolean, only?: string): void;
  /** Whether replies are held back; held replies are sent when this ends. @param only as above */
  hold(on: boolean, only?: string): void;
  /** Whether a reply is held back. */
  isHolding(): boolean;
  /** Delays the server's replies by this time, in order. @param only as above */
  lag(ms: number, only?: string): void;
  /** Drops the pieces of replies that contain this text. */
  lose(text: string): void;
  /** Drops everything on the open connections for good. New connections work. @param only as above */
  swallowOpen(only?: string): void;
  /** Whether new connections are closed at once. */
  refuse(on: boolean): void;
}

/** A proxy to a server that can drop, delay or break connections. */
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
  let dropped = new WeakSet<Socket>();
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
        if (dropped.has(from) && isAffected) return;
        if (from === far && lost !== undefined && chunk.includes(lost)) return;
        if (isSwallowing && isAffected) return;
        if (isHolding && isAffected && from === far) held.push(() => to.write(chunk));
        else if (lagMs > 0 && isAffected && from === far) {
          // Held timers must not keep the test's process alive.
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
    swallowOpen: (only = '') => {
      affected = only;
      dropped = new WeakSet(sockets);
    },
    refuse: (on: boolean) => {
      isRefusing = on;
    },
  };
}
