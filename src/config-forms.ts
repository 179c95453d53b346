import { BlockList, isIP } from 'node:net';
import { z } from 'zod';

/** The forms that variables of the environment have. */

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
  .refine(isUrlOf('postgres:', 'postgresql:'), 'must be a URL of the form postgres://user:password@host:5432/database');

function isUrlOf(...protocols: string[]): (text: string) => boolean {
  return (text) => {
    // The parser drops line breaks without a word, and a file may have a second line.
    if (/\s/.test(text)) return false;
    const url = URL.canParse(text) ? new URL(text) : undefined;
    return url !== undefined && protocols.includes(url.protocol);
  };
}

export const redisUrl = z.string().refine(isUrlOf('redis:', 'rediss:'), 'must be a URL of the form redis://host:6379');

export const httpUrl = z.string().refine(isUrlOf('http:', 'https:'), 'must be a URL of the form http://host:4318');

export const networks = z
  .string()
  .transform((text) => text.split(',').map((part) => part.trim()))
  .refine((parts) => parts.every(isNetwork), 'must be addresses or networks with commas between them');

function isNetwork(text: string): boolean {
  const [, address = '', bits] = /^([0-9a-f.:]+)(?:\/([0-9]{1,3}))?$/i.exec(text) ?? [];
  const version = isIP(address);
  if (version === 0) return false;
  try {
    new BlockList().addSubnet(address, Number(bits ?? 32), version === 4 ? 'ipv4' : 'ipv6');
    return true;
  } catch {
    return false;
  }
}
