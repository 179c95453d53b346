import { z } from 'zod';
// Replaces zod's own messages.
import './input-messages.ts';
import { readAllowed } from './ip-address.ts';
import { isClusterUrl } from './redis-url.ts';

/** The forms of settings. */

export function integer(least: number, most: number) {
  return z
    .string()
    .regex(/^[0-9]{1,12}$/, `must be a whole number from ${least} to ${most}`)
    .transform(Number)
    .refine((value) => value >= least && value <= most, `must be a whole number from ${least} to ${most}`);
}

export const boolean = z.enum(['true', 'false'], 'must be true or false').transform((text) => text === 'true');

export const postgresUrl = z
  .string()
  .refine(
    (text) => isUrlOf('postgres:', 'postgresql:')(text) && isUnambiguous(text),
    'must be a URL of the form postgres://user:password@host:5432/database, in which @ : / ? # % of a password are ' +
      'percent-encoded (@ is %40)',
  );

/** With an unescaped / ? or # in the password, the host would end there and the rest would be read as a path. */
function isUnambiguous(text: string): boolean {
  const { hash, pathname, search } = new URL(text);
  return hash === '' && !pathname.includes('@') && !search.includes('@');
}

function isUrlOf(...protocols: string[]): (text: string) => boolean {
  return (text) => {
    // The URL parser silently drops line breaks, and a file may have a second line.
    if (/\s/.test(text)) return false;
    const url = URL.canParse(text) ? new URL(text) : undefined;
    return url !== undefined && protocols.includes(url.protocol);
  };
}

export const redisUrl = z
  .string()
  .refine(
    (text) => isClusterUrl(text) || isUrlOf('redis:', 'rediss:')(text),
    'must be a URL of the form redis://host:6379, or for a cluster redis+cluster://host:6379,host:6379',
  );

export const httpUrl = z.string().refine(isUrlOf('http:', 'https:'), 'must be a URL of the form http://host:4318');

/** For keys that decide who is trusted: https, or http on this machine, without a user. */
export function isTrustworthyUrl(text: string): boolean {
  if (!isUrlOf('http:', 'https:')(text)) return false;
  const { protocol, hostname, username, password } = new URL(text);
  return username + password === '' && (protocol === 'https:' || isLoopback(hostname));
}

export function isLoopback(hostname: string): boolean {
  return ['localhost', '127.0.0.1', '[::1]'].includes(hostname);
}

/** A URL to which paths are appended, so without a slash at the end. */
export const publicUrl = z
  .string()
  .refine(
    (text) => isUrlOf('http:', 'https:')(text) && isBare(new URL(text)),
    'must be a URL of the form https://host or https://host/prefix, without user, query and fragment',
  )
  .transform((text) => text.replace(/\/+$/, ''));

function isBare({ username, password, search, hash, href }: URL): boolean {
  return username + password + search + hash === '' && !/[?#]/.test(href);
}

/** Addresses and networks, separated by commas. */
export const networks = z.string().transform((text, context) =>
  text.split(',').map((part, index) => {
    const read = readAllowed(part.trim());
    if (typeof read === 'string') return read;
    context.addIssue({ code: 'custom', message: `entry ${index + 1} ${read.problem}` });
    return z.NEVER;
  }),
);
