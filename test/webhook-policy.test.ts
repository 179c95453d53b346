import {
  decide,
  type Outcome,
  reasonToDisable,
  redactedUrl,
  retryDelaysMs,
  sortEvents,
} from '../src/webhooks/policy.ts';
import { t } from './support/tap.ts';

const hourMs = 3_600_000;

const replied = (status: number, retryAfterSeconds: number | null = null): Outcome => ({
  status,
  reason: null,
  retryAfterSeconds,
  reply: '',
  durationMs: 1,
});
const silent: Outcome = { status: null, reason: 'timed_out', retryAfterSeconds: null, reply: null, durationMs: 15_000 };

t.test('an outcome decides whether a delivery succeeds, is retried or fails', async (t) => {
  const table: Array<[outcome: Outcome, failures: number, kind: string, waitMs?: number]> = [
    [replied(200), 0, 'delivered'],
    [replied(204), 9, 'delivered'],
    [replied(299), 3, 'delivered'],
    [replied(199), 0, 'retry', 5_000],
    [replied(301), 0, 'retry', 5_000],
    [replied(404), 1, 'retry', 300_000],
    [replied(410), 0, 'failed'],
    [replied(500), 8, 'retry', 24 * hourMs],
    [replied(500), 9, 'failed'],
    [silent, 2, 'retry', 1_800_000],
    [silent, 9, 'failed'],
    [replied(429, 60), 0, 'retry', 60_000],
    [replied(429, 60), 1, 'retry', 300_000],
    [replied(503, 0), 0, 'retry', 5_000],
    [replied(503, 1e9), 0, 'retry', 24 * hourMs],
    [replied(503, 60), 9, 'failed'],
    [replied(500, 60), 0, 'retry', 5_000],
  ];
  for (const [outcome, failures, kind, waitMs] of table) {
    const what = `${outcome.status} after ${failures} failures`;
    const [soonest, latest] = [decide(outcome, failures, 0), decide(outcome, failures, 1)];
    if (waitMs === undefined) t.same([soonest, latest], [{ kind }, { kind }], what);
    else {
      t.same(soonest, { kind, delayMs: waitMs }, what);
      t.same(latest, { kind, delayMs: Math.round(waitMs * 1.1) }, what);
    }
  }
  const totalMs = retryDelaysMs.reduce((sum, delayMs) => sum + delayMs, 0);
  t.ok(totalMs > 72 * hourMs && totalMs < 80 * hourMs, 'a delivery is retried for three days');
});

t.test('a failure decides whether its endpoint is disabled', async (t) => {
  const now = new Date('2026-03-10T12:00:00Z');
  const ago = (ms: number) => new Date(now.getTime() - ms);
  t.equal(reasonToDisable(replied(500), ago(120 * hourMs - 1), now), undefined);
  t.equal(reasonToDisable(replied(500), ago(120 * hourMs), now), 'failing');
  t.equal(reasonToDisable(silent, ago(500 * hourMs), now), 'failing');
  t.equal(reasonToDisable(replied(410), now, now), 'gone');
});

t.test('events are stored in a fixed order, and the query of a URL is redacted', async (t) => {
  t.same(sortEvents(['key.deleted', 'partner.created', 'key.created']), [
    'partner.created',
    'key.created',
    'key.deleted',
  ]);
  t.same(sortEvents(['*']), ['*']);
  t.equal(redactedUrl('https://a.example/b?token=c'), 'https://a.example/b?…');
  t.equal(redactedUrl('https://a.example:8443/b'), 'https://a.example:8443/b');
});
