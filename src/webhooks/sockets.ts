import { connect, isIP, type Socket } from 'node:net';
import { connect as connectTls, type TLSSocket } from 'node:tls';
import { DeliveryFailed } from './delivery-failed.ts';
import { type AddressRange, isPublicAddress } from './public-address.ts';

/** How many addresses of a name are tried, and how long an attempt may take while there is another address. */
const triedAtMost = 4;
const attemptMs = 1_500;

interface ConnectOptions {
  port: number;
  allowedRanges: readonly AddressRange[];
  signal: AbortSignal;
}

/**
 * Connects to the first address that accepts. Checks the peer before sending a byte: an address such as 0.0.0.0 leads
 * elsewhere.
 * @param addresses already checked, at least one
 * @throws DeliveryFailed `address_refused`; otherwise the error of the last attempt
 */
export async function connectToFirst(addresses: readonly string[], options: ConnectOptions): Promise<Socket> {
  const tried = addresses.slice(0, triedAtMost);
  for (const [index, address] of tried.entries()) {
    const isLast = index === tried.length - 1;
    options.signal.throwIfAborted();
    try {
      const socket = await connectTo(address, options, isLast ? 0 : attemptMs);
      requirePublicPeer(socket, options.allowedRanges);
      return socket;
    } catch (error) {
      if (isLast || error instanceof DeliveryFailed) throw error;
    }
  }
  throw new RangeError('There is no address to connect to.');
}

/** @param silenceMs 0: limited by the signal only */
function connectTo(address: string, { port, signal }: ConnectOptions, silenceMs: number): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host: address, port, signal, noDelay: true });
    const giveUp = () => socket.destroy(new Error('No connection was made in time.'));
    socket.setTimeout(silenceMs, giveUp);
    // This listener stays, so that a late error of the socket is not uncaught.
    socket.on('error', reject);
    socket.once('connect', () => {
      socket.setTimeout(0, giveUp);
      resolve(socket);
    });
  });
}

function requirePublicPeer(socket: Socket, allowedRanges: readonly AddressRange[]): void {
  const peer = socket.remoteAddress;
  if (peer !== undefined && isPublicAddress(peer, allowedRanges)) return;
  socket.destroy();
  throw new DeliveryFailed('address_refused', new Error(`The connection led to ${peer ?? 'an unknown address'}.`));
}

/**
 * Starts TLS on a connection. The certificate must be valid for the host, whatever NODE_TLS_REJECT_UNAUTHORIZED says.
 * @param host the name or the address in the URL
 * @param ca PEM certificates to trust instead of Node's own
 */
export function secure(socket: Socket, host: string, ca: string | undefined): Promise<TLSSocket> {
  return new Promise((resolve, reject) => {
    const secured = connectTls({
      socket,
      host,
      servername: isIP(host) === 0 ? host : '',
      ALPNProtocols: ['http/1.1'],
      rejectUnauthorized: true,
      ...(ca === undefined ? {} : { ca }),
    });
    secured.on('error', reject);
    secured.once('close', () => reject(new Error('The connection ended during the TLS handshake.')));
    secured.once('secureConnect', () => resolve(secured));
  });
}
