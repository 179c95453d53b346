import { InvalidArgumentError } from 'commander';
import { isId } from '../domain/ids.ts';
import { installationChain } from '../history/chain.ts';

/** The value of an option that names a chain. @throws InvalidArgumentError */
export function parseChain(text: string): string {
  if (text === installationChain || isId('org', text)) return text;
  throw new InvalidArgumentError(`Must be the id of an organization, or ${installationChain}.`);
}
