import { dayMs } from '../../src/lib/durations.ts';
import { median } from '../sampling.ts';
import type { SeededOrganization } from './seed.ts';

/** @param limit the target; undefined: only a figure */
export type Report = (
  label: string,
  value: number,
  unit: string,
  limit?: { atMost?: number; atLeast?: number },
) => void;

interface ListOptions {
  base: string;
  biggest: SeededOrganization;
  small: SeededOrganization;
  operator: Record<string, string>;
  report: Report;
  log: (line: string) => void;
}

const rounds = 5;
const worst = (cells: number[]) => Math.max(...cells.filter((ms) => !Number.isNaN(ms)));
const limitMs = 150;

/** Measures the first and a later page of every list with every filter, for each caller that may read it. */
export async function measureLists({ base, biggest, small, operator, report, log }: ListOptions): Promise<void> {
  const admin = ({ adminToken }: SeededOrganization) => ({ authorization: `Bearer ${adminToken.reveal()}` });
  const within = ({ id }: SeededOrganization) => ({ ...operator, 'latchkey-organization': id });
  const callers: Array<[name: string, of: SeededOrganization, headers: Record<string, string>]> = [
    ['admin, biggest', biggest, admin(biggest)],
    ['admin, small', small, admin(small)],
    ['operator, biggest', biggest, within(biggest)],
    ['operator, small', small, within(small)],
    ['operator', small, operator],
  ];
  const table = new Map<string, number[]>();
  const note = (row: string, place: number, medianMs: number) => {
    const cells = table.get(row) ?? callers.map(() => Number.NaN);
    cells[place] = medianMs;
    table.set(row, cells);
  };
  for (const [place, [, of, headers]] of callers.entries()) {
    for (const target of requestsOf(of)) {
      const first = await measure(target, headers);
      if (first === undefined) continue;
      note(shown(target, of), place, first.medianMs);
      if (first.nextCursor === undefined) continue;
      const later = await measure(`${target}${target.includes('?') ? '&' : '?'}cursor=${first.nextCursor}`, headers);
      if (later !== undefined) note(`${shown(target, of)}, next page`, place, later.medianMs);
    }
  }
  log(`| median of ${rounds}, ms | ${callers.map(([name]) => name).join(' | ')} |`);
  for (const [row, cells] of table) {
    log(`| ${row} | ${cells.map((ms) => (Number.isNaN(ms) ? '–' : ms.toFixed(1))).join(' | ')} |`);
  }
  const all = [...table.values()].flat().filter((ms) => !Number.isNaN(ms));
  const [slowest = ''] = [...table].sort(([, one], [, other]) => worst(other) - worst(one))[0] ?? [];
  report(`slowest list: ${slowest}`, Math.max(...all), 'ms', { atMost: limitMs });
  report('lists that take too long', all.filter((ms) => ms > limitMs).length, '', { atMost: 0 });

  /** Undefined if the caller may not read it. */
  async function measure(target: string, headers: Record<string, string>) {
    const durationsMs: number[] = [];
    let nextCursor: string | undefined;
    for (let round = 0; round < rounds; round++) {
      const startedAtMs = performance.now();
      const response = await fetch(`${base}/v1${target}`, { headers });
      const text = await response.text();
      // A checkpoint is plain text.
      const body = (text.startsWith('{') ? JSON.parse(text) : {}) as {
        nextCursor?: string | null;
        code?: string;
        detail?: string;
      };
      durationsMs.push(performance.now() - startedAtMs);
      if (body.code === 'forbidden' || body.detail?.includes('must name the organization')) return undefined;
      if (!response.ok) throw new Error(`${target}: ${JSON.stringify(body)}`);
      nextCursor = body.nextCursor ?? undefined;
    }
    return { medianMs: median(durationsMs), nextCursor };
  }
}

function shown(
  target: string,
  { id, busyKeyId, partnerId, partnerEmail, adminId, webhookId }: SeededOrganization,
): string {
  const names: Array<[string, string]> = [
    [id, 'O'],
    [busyKeyId, 'K'],
    [partnerId, 'P'],
    [adminId, 'A'],
    [webhookId, 'W'],
    [encodeURIComponent(partnerEmail), 'E'],
  ];
  return names
    .reduce((text, [from, to]) => text.replaceAll(from, to), target)
    .replace(/(\d{4}-\d\d-\d\d)T[^&]*/g, '$1');
}

function requestsOf({ busyKeyId, partnerId, partnerEmail, adminId, webhookId }: SeededOrganization): string[] {
  const now = Date.now();
  const daysAgo = (days: number) => new Date(now - days * dayMs).toISOString();
  const historyFilters = [
    `keyId=${busyKeyId}`,
    `partnerId=${partnerId}`,
    `actorId=${adminId}`,
    'action=key.revealed',
    'action=key.rotated',
  ];
  const pairs = historyFilters.flatMap((one, index) =>
    historyFilters.slice(index + 1).map((other) => `${one}&${other}`),
  );
  const times = [`from=${daysAgo(30)}`, `to=${daysAgo(180)}`, `from=${daysAgo(200)}&to=${daysAgo(190)}`];
  return [
    '/rows',
    '/keys',
    ...['active', 'suspended', 'expired', 'deleted'].map((status) => `/keys?status=${status}`),
    ...['read', 'write', 'read_write'].map((permission) => `/keys?permission=${permission}`),
    '/keys?includeDeleted=true',
    '/keys?partnerId=default',
    `/keys?partnerId=${partnerId}`,
    `/keys?partnerId=${partnerId}&permission=write&status=expired`,
    ...['key%201', 'none'].map((name) => `/keys?name=${name}`),
    ...['seed', 'none'].map((text) => `/keys?lastFour=${text}`),
    ...[
      'scope=orders:read',
      'scope=none',
      'metadata.team=team-7',
      'metadata.team=none',
      'metadata.environment=seeded',
    ].map((filter) => `/keys?${filter}`),
    ...['expiresBefore', 'lastUsedBefore', 'createdBefore'].flatMap((name) =>
      [300, 30, 0].map((days) => `/keys?${name}=${daysAgo(days)}`),
    ),
    `/keys?lastUsedBefore=${daysAgo(300)}&status=suspended`,
    `/keys?metadata.team=team-7&status=expired&createdBefore=${daysAgo(100)}`,
    '/claims',
    ...['pending', 'redeemed', 'expired', 'cancelled'].map((status) => `/claims?status=${status}`),
    `/claims?keyId=${busyKeyId}`,
    `/claims?partnerId=${partnerId}`,
    '/partners',
    '/partners?includeDeleted=true',
    `/partners?email=${encodeURIComponent(partnerEmail)}`,
    `/partners?email=${encodeURIComponent(partnerEmail)}&includeDeleted=true`,
    '/partners?externalId=external-0',
    '/partners?externalId=external-0&includeDeleted=true',
    '/partners?externalId=none&includeDeleted=true',
    '/access-tokens',
    '/organizations',
    '/organization',
    '/recovery-requests',
    ...['open', 'approved', 'declined'].map((status) => `/recovery-requests?status=${status}`),
    '/webhooks',
    `/webhooks?partnerId=${partnerId}`,
    `/webhooks/${webhookId}/deliveries`,
    ...['pending', 'delivered', 'failed'].map((status) => `/webhooks/${webhookId}/deliveries?status=${status}`),
    `/keys/${busyKeyId}/viewers`,
    `/keys/${busyKeyId}/usage`,
    `/keys/${busyKeyId}/usage?granularity=hour&from=${daysAgo(30)}`,
    `/keys/${busyKeyId}/usage?granularity=day&from=${daysAgo(365)}`,
    `/partners/${partnerId}/usage`,
    `/partners/${partnerId}/usage?granularity=day&from=${daysAgo(365)}`,
    '/history',
    `/keys/${busyKeyId}/history`,
    `/partners/${partnerId}/history`,
    ...historyFilters.map((filter) => `/history?${filter}`),
    ...pairs.filter((pair) => pair.split('action=').length < 3).map((pair) => `/history?${pair}`),
    ...times.map((range) => `/history?${range}`),
    ...times.map((range) => `/history?action=key.revealed&${range}`),
    '/history?kind=refused',
    `/history?kind=refused&actorId=${adminId}`,
    '/history?kind=refused&operation=deleteKey',
    '/history?kind=refused&code=scope_missing',
    '/history?kind=refused&operation=deletePartner',
    `/history?kind=refused&from=${daysAgo(50)}&to=${daysAgo(40)}`,
    '/history/checkpoint',
  ];
}
