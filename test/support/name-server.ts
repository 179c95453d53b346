import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import type { Test } from 'tap';

/** The reply for a name: addresses by type, an unknown name, or no reply. */
export type NameAnswer = { A?: string[]; AAAA?: string[] } | 'no such name' | 'silence';

const types = { A: 1, AAAA: 28 } as const;

/** A name server for a test (RFC 1035, UDP): `127.0.0.1:port`. */
export async function startNameServer(t: Test, names: Record<string, NameAnswer>) {
  const queries: string[] = [];
  const server = createSocket('udp4');
  server.on('message', (query, from) => {
    const { name, type, end } = parseQuery(query);
    queries.push(`${name} ${type}`);
    const answer = names[name] ?? 'no such name';
    if (answer === 'silence') return;
    const addresses = answer === 'no such name' ? [] : (answer[type] ?? []);
    const header = Buffer.alloc(12);
    query.copy(header, 0, 0, 2);
    header.writeUInt16BE(answer === 'no such name' ? 0x8183 : 0x8180, 2);
    header.writeUInt16BE(1, 4);
    header.writeUInt16BE(addresses.length, 6);
    const records = addresses.map((address) => record(type, address));
    server.send(Buffer.concat([header, query.subarray(12, end), ...records]), from.port, from.address);
  });
  server.bind(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => server.close());
  return { server: `127.0.0.1:${server.address().port}`, queries };
}

function parseQuery(query: Buffer) {
  const labels: string[] = [];
  let at = 12;
  for (let length = query[at] ?? 0; length > 0; length = query[at] ?? 0) {
    labels.push(query.toString('latin1', at + 1, at + 1 + length));
    at += 1 + length;
  }
  const type: keyof typeof types = query.readUInt16BE(at + 1) === types.AAAA ? 'AAAA' : 'A';
  return { name: labels.join('.').toLowerCase(), type, end: at + 5 };
}

/** A record of the queried name, with TTL 0. */
function record(type: keyof typeof types, address: string): Buffer {
  const data =
    type === 'A'
      ? Buffer.from(address.split('.').map(Number))
      : Buffer.from(
          address
            .split(':')
            .map((part) => part.padStart(4, '0'))
            .join(''),
          'hex',
        );
  const fixed = Buffer.from([0xc0, 0x0c, 0, types[type], 0, 1, 0, 0, 0, 0, 0, data.length]);
  return Buffer.concat([fixed, data]);
}
