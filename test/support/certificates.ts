import { generateKeyPairSync, type KeyObject, randomBytes, sign } from 'node:crypto';
import { isIPv4 } from 'node:net';

/** A certificate authority for the servers of the tests: X.509 (RFC 5280) with P-256, in PEM. */
export interface CertificateAuthority {
  certificate: string;
  /** @param hosts names and IPv4 addresses for which the certificate is valid */
  issue(hosts: readonly string[], validity?: Validity): { cert: string; key: string };
}

interface Validity {
  from: Date;
  until: Date;
}

const hourMs = 3_600_000;

export function createCertificateAuthority(): CertificateAuthority {
  const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const issuer = { name: 'Authority of the tests', key: privateKey };
  const now = { from: new Date(Date.now() - hourMs), until: new Date(Date.now() + hourMs) };
  const isAuthority = extension('551d13', true, sequence(der(0x01, Buffer.from([0xff]))));
  return {
    certificate: certify({ issuer, subject: issuer.name, publicKey, validity: now, extensions: [isAuthority] }),
    issue(hosts, validity = now) {
      const pair = generateKeyPairSync('ec', { namedCurve: 'P-256' });
      const names = extension('551d11', false, sequence(...hosts.map(generalName)));
      const { publicKey } = pair;
      const cert = certify({ issuer, subject: 'A receiver', publicKey, validity, extensions: [names] });
      return { cert, key: pair.privateKey.export({ type: 'pkcs8', format: 'pem' }).toString() };
    },
  };
}

interface Request {
  issuer: { name: string; key: KeyObject };
  subject: string;
  publicKey: KeyObject;
  validity: Validity;
  extensions: Buffer[];
}

/** RFC 5280 section 4.1 */
function certify({ issuer, subject, publicKey, validity, extensions }: Request): string {
  const ecdsaWithSha256 = sequence(objectId('2a8648ce3d040302'));
  const toBeSigned = sequence(
    der(0xa0, integer(Buffer.from([2]))),
    integer(Buffer.concat([Buffer.from([1]), randomBytes(8)])),
    ecdsaWithSha256,
    commonName(issuer.name),
    sequence(time(validity.from), time(validity.until)),
    commonName(subject),
    publicKey.export({ type: 'spki', format: 'der' }),
    der(0xa3, sequence(...extensions)),
  );
  const signature = sign('sha256', toBeSigned, issuer.key);
  const certificate = sequence(toBeSigned, ecdsaWithSha256, der(0x03, Buffer.from([0]), signature));
  return `-----BEGIN CERTIFICATE-----\n${certificate.toString('base64')}\n-----END CERTIFICATE-----\n`;
}

function der(tag: number, ...parts: Uint8Array[]): Buffer {
  const content = Buffer.concat(parts);
  const { length } = content;
  const lengthBytes = length < 0x80 ? [length] : [0x82, length >> 8, length & 0xff];
  return Buffer.concat([Buffer.from([tag, ...lengthBytes]), content]);
}

const sequence = (...parts: Uint8Array[]) => der(0x30, ...parts);
const integer = (bytes: Uint8Array) => der(0x02, bytes);
const objectId = (hex: string) => der(0x06, Buffer.from(hex, 'hex'));
const commonName = (text: string) => sequence(der(0x31, sequence(objectId('550403'), der(0x0c, Buffer.from(text)))));

/** GeneralizedTime, which OpenSSL accepts for any year. */
const time = (at: Date) => der(0x18, Buffer.from(`${at.toISOString().slice(0, 19).replace(/[-:T]/g, '')}Z`));

const generalName = (host: string) =>
  isIPv4(host) ? der(0x87, Buffer.from(host.split('.').map(Number))) : der(0x82, Buffer.from(host));

function extension(id: string, isCritical: boolean, value: Buffer): Buffer {
  return sequence(objectId(id), ...(isCritical ? [der(0x01, Buffer.from([0xff]))] : []), der(0x04, value));
}
