import { validationProblem } from '../domain/errors.ts';

/** Rules about an organization's settings that need no database. */

interface Lifetimes {
  maxKeyLifetimeSeconds: number | null;
  defaultKeyLifetimeSeconds: number | null;
}

/** @throws Problem `validation_failed` if a key with the default lifetime would live too long */
export function requireFittingLifetimes({ maxKeyLifetimeSeconds: most, defaultKeyLifetimeSeconds: usual }: Lifetimes) {
  if (most === null || usual === null || usual <= most) return;
  throw validationProblem(
    'body.defaultKeyLifetimeSeconds',
    `must be at most maxKeyLifetimeSeconds: the default would be ${usual}, the maximum ${most}`,
  );
}
