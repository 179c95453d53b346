import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';

/** A port that was free a moment ago, for programs that cannot choose one themselves. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

/** Whether no process on this machine listens there. */
export async function isFree(port: number): Promise<boolean> {
  const server = createServer();
  const outcome = await new Promise<boolean>((resolve) => {
    server.once('error', () => resolve(false)).once('listening', () => resolve(true));
    server.listen(port, '127.0.0.1');
  });
  await new Promise((resolve) => server.close(resolve));
  return outcome;
}
