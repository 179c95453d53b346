import { setTimeout as delay } from 'node:timers/promises';
import type { Secret } from '../../src/crypto/secret.ts';
import { newId } from '../../src/domain/ids.ts';
import { dbQuery } from '../../test/support/database.ts';
import { median } from '../sampling.ts';
import type { Report } from './lists.ts';
import type { SeededOrganization } from './seed.ts';

interface IndexingOptions {
  base: string;
  ownerUrl: string;
  biggest: SeededOrganization;
  verifier: Record<string, string>;
  plaintexts: readonly Secret[];
  report: Report;
}

/** What a later migration does on a table of this size. */
const createIndex = `create index concurrently history_by_trial on history
  (hashtextextended(chain || ' ' || actor_id || ' ' || coalesce(partner_id, ''), 0), sequence)`;

/**
 * Measures how long an index on history takes if it is created concurrently, and what changes, lists and verifications
 * take meanwhile.
 */
export async function measureIndexing({ base, ownerUrl, biggest, verifier, plaintexts, report }: IndexingOptions) {
  const admin = { authorization: `Bearer ${biggest.adminToken.reveal()}`, 'content-type': 'application/json' };
  let partners = 0;
  const works = {
    change: () => {
      partners += 1;
      const body = JSON.stringify({ email: `${newId('partner')}@bench.example`, permissions: ['read'] });
      return fetch(`${base}/v1/partners`, { method: 'POST', headers: admin, body });
    },
    list: () => fetch(`${base}/v1/history?actorId=${biggest.adminId}`, { headers: admin }),
    verify: () => {
      const key = plaintexts[partners % plaintexts.length]?.reveal();
      const headers = { ...verifier, 'content-type': 'application/json' };
      return fetch(`${base}/v1/verify`, { method: 'POST', headers, body: JSON.stringify({ key, permission: 'read' }) });
    },
  };

  async function loadUntil(label: string, end: Promise<unknown>): Promise<void> {
    let isOver = false;
    const ended = end.finally(() => {
      isOver = true;
    });
    // If a request fails, its error is the one to report.
    ended.catch(() => undefined);
    const durations: Record<string, number[]> = { change: [], list: [], verify: [] };
    while (!isOver) {
      for (const [name, work] of Object.entries(works)) {
        const startedAtMs = performance.now();
        const response = await work();
        const text = await response.text();
        if (!response.ok) throw new Error(`${name}: ${text}`);
        durations[name]?.push(performance.now() - startedAtMs);
      }
      // Below the limit of requests for each caller.
      await delay(50);
    }
    await ended;
    for (const [name, all] of Object.entries(durations)) {
      report(`${label}: ${name}, median of ${all.length}`, median(all), 'ms');
      report(`${label}: ${name}, slowest`, Math.max(...all), 'ms');
    }
  }

  await dbQuery(ownerUrl, 'drop index concurrently if exists history_by_trial');
  await loadUntil('before the index', delay(5_000));
  const startedAtMs = performance.now();
  await loadUntil('while an index is created concurrently', dbQuery(ownerUrl, createIndex));
  report('create index concurrently', (performance.now() - startedAtMs) / 1_000, 's');
  await dbQuery(ownerUrl, 'drop index concurrently history_by_trial');
}
