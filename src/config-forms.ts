import { z } from 'zod';
// What zod itself finds wrong is said in the project's own words.
import './lib/input-messages.ts';
import { readAllowed } from './lib/ip-address.ts';

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

/** Addresses and networks with commas between them. */
export const networks = z.string().transform((text, context) =>
  text.split(',').map((part, index) => {
    const read = readAllowed(part.trim());
    if (typeof read === 'string') return read;
    context.addIssue({ code: 'custom', message: `entry ${index + 1} ${read.problem}` });
    return z.NEVER;
  }),
);
