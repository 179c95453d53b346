import type { Migration } from 'kysely';
import * as initial from '../../migrations/0001-initial.ts';

/** It only adds: the previous version works before and after it. */
interface Expand {
  kind: 'expand';
  /** For `create index concurrently`, which builds a large index without blocking writes. A second run must repair the first. */
  outsideTransaction?: true;
}

/** It removes or changes what older versions use. This version works before and after it. */
interface Contract {
  kind: 'contract';
  /** An earlier migration. A version that knows it no longer uses what this one removes. */
  requires: string;
}

export type SchemaMigration = Pick<Migration, 'up'> & (Expand | Contract);

/** In order. A released migration is never renamed, edited or removed. */
export const migrations: Record<string, SchemaMigration> = {
  '0001-initial': initial,
};
