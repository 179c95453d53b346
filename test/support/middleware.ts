import { createServer, type RequestListener } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Test } from 'tap';

/** A plain HTTP server behind a middleware of `@latchkey/client/express`. Both end with the test. @returns its URL */
export async function listenBehind(
  t: Test,
  middleware: { close(): Promise<void> },
  listener: RequestListener,
): Promise<string> {
  const server = createServer(listener);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(async () => {
    server.closeAllConnections();
    server.close();
    await middleware.close();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}
